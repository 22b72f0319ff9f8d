//! The watches of the API server: they keep the [`Store`] current and wake the loop.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use prometheus::IntCounterVec;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::api::{self, PrunedPv, WriteError};
use crate::cluster::Mode;
use crate::job;
use crate::names;
use crate::store::Store;
use crate::wakes::{Cause, Wake};

/// A watch call is renewed after this time, give or take: before the 350 s after which load balancers forget idle
/// connections. Nodes that started together do not renew together.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 200..=LONGEST_WATCH_SECONDS;
/// The most that a watch call lasts; the library takes less than 295 s.
pub const LONGEST_WATCH_SECONDS: u32 = 260;
/// A failure this long after the last one is a new trouble, which begins with a short wait again. Longer than any wait
/// and any request that times out.
const CALM: Duration = Duration::from_secs(60);
/// Objects for each page of a list.
const PAGE: u32 = 500;
/// Whole PVs for each page of a list that is dropped at once: it shall not be seen in the memory's peak.
const PAGE_OF_WHOLE: u32 = 100;

/// The store, shared between the watches, the writers and the loop.
#[derive(Clone, Default)]
pub struct Shared {
    store: Arc<Mutex<Store>>,
    /// "Look again".
    pub wake: Arc<Wake>,
    /// What counts watches that failed, by resource; may be left unset.
    pub restarts: Arc<OnceLock<IntCounterVec>>,
}

impl Shared {
    /// The store. Nothing that holds it awaits.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        // A panic while it was held has ended the process; the lock is fine in any case.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the store, and wakes the loop if that has changed anything: foreign objects and heartbeats do not.
    pub fn update(&self, change: impl FnOnce(&mut Store)) {
        let mut store = self.store();
        let before = store.version();
        change(&mut store);
        if store.version() != before {
            self.wake.wake(Cause::Api);
        }
    }
}

fn config() -> watcher::Config {
    watcher::Config::default()
        .timeout(fastrand::u32(WATCH_SECONDS))
        .page_size(PAGE)
}

/// Runs a watch for ever: errors are waited out, and a stream whose start is refused with 410 is made anew (the library
/// would retry it with the same resourceVersion).
async fn keep<K, S>(shared: &Shared, what: &str, make: impl Fn() -> S, seen: impl FnMut(Event<K>))
where
    S: Stream<Item = watcher::Result<Event<K>>> + Send,
{
    match keep_until(shared, what, make, seen, |_| None::<Infallible>).await {}
}

/// As [`keep`], until an error that ends it.
async fn keep_until<K, S, T>(
    shared: &Shared,
    what: &str,
    make: impl Fn() -> S,
    mut seen: impl FnMut(Event<K>),
    over: impl Fn(&watcher::Error) -> Option<T>,
) -> T
where
    S: Stream<Item = watcher::Result<Event<K>>> + Send,
{
    let mut failures = 0;
    let mut failed_at = Instant::now();
    loop {
        let mut stream = std::pin::pin!(make());
        while let Some(event) = stream.next().await {
            match event {
                // Not a sign of success: every try begins with Init, and a list may go well where its watch does not.
                Ok(event) => seen(event),
                Err(err) => {
                    if let Some(end) = over(&err) {
                        return end;
                    }
                    if let Some(restarts) = shared.restarts.get() {
                        restarts.with_label_values(&[what]).inc();
                    }
                    failures = if failed_at.elapsed() > CALM { 1 } else { failures + 1 };
                    failed_at = Instant::now();
                    if failures == 1 {
                        warn!(watch = what, error = %describe(&err), "watch failed; it is tried again");
                    } else {
                        debug!(watch = what, failures, error = %describe(&err), "watch failed again");
                    }
                    tokio::time::sleep(api::wait(failures, api::asked_by_watch(&err))).await;
                    if is_gone(&err) {
                        break;
                    }
                }
            }
        }
    }
}

fn describe(err: &watcher::Error) -> String {
    let mut text = err.to_string();
    let mut source = std::error::Error::source(err);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn is_gone(err: &watcher::Error) -> bool {
    match err {
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == 410,
        watcher::Error::WatchError(status) => status.code == 410,
        _ => false,
    }
}

/// Watches PersistentVolumes: own ones by label where they can be labelled, else all, of which foreign ones are dropped
/// as they arrive.
pub async fn persistent_volumes(client: Client, shared: Shared, mode: Mode, hostname: String) {
    let api: Api<PrunedPv> = Api::all(client);
    let config = match mode {
        Mode::Patch => config().labels(&format!("{}={hostname}", names::NODE_LABEL)),
        Mode::Classic => config(),
    };
    keep(
        &shared,
        "persistentvolumes",
        || watcher(api.clone(), config.clone()),
        |event| match event {
            Event::Init => shared.store().pvs_restart(),
            Event::InitApply(pv) => shared.store().pv_listed(&pv),
            Event::InitDone => shared.update(Store::pvs_complete),
            Event::Apply(pv) => shared.update(|store| store.pv_changed(&pv)),
            Event::Delete(pv) => shared.update(|store| store.pv_left_watch(&pv)),
        },
    )
    .await;
}

/// Finds the own PVs that the label-scoped watch cannot see, those of the classic program, by one paged listing of
/// metadata; they are labelled by the next pass. Tried until it succeeds.
pub async fn unlabelled_volumes(client: Client, shared: Shared, mode: Mode, node_name: String) {
    // Without patch permission the watch is not scoped, and shows them.
    if mode == Mode::Patch {
        let mut failures = 0;
        while let Err(err) = list_unlabelled(&client, &shared, &node_name).await {
            failures += 1;
            warn!(error = %format!("{err:#}"), "cannot list the PersistentVolumes of the classic program; trying again");
            let asked = err.downcast_ref().and_then(api::asked_by);
            tokio::time::sleep(api::wait(failures, asked)).await;
        }
    }
    shared.update(Store::former_listed);
}

async fn list_unlabelled(client: &Client, shared: &Shared, node_name: &str) -> anyhow::Result<()> {
    let api: Api<PrunedPv> = Api::all(client.clone());
    let ours = names::provisioned_by(node_name, None);
    let unlabelled = ListParams::default().labels(&format!("!{}", names::NODE_LABEL));
    let mut params = unlabelled.clone().limit(PAGE);
    let mut by_hand = false;
    loop {
        let page = api.list_metadata(&params).await?;
        for object in &page.items {
            let by = object.annotations().get(names::PROVISIONED_BY);
            by_hand |= by.is_none();
            if by.is_some_and(|by| by.starts_with(&ours)) {
                let name = object.name_any();
                let pv = api.get_opt(&name).await?;
                shared.update(|store| store.read_by_name(&name, pv.as_deref()));
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    if by_hand {
        list_foreign(&api, shared, unlabelled.limit(PAGE_OF_WHOLE)).await?;
    }
    Ok(())
}

/// PVs that no program has made may stand for our paths, which their metadata does not show. Clusters that have none
/// are spared this.
async fn list_foreign(api: &Api<PrunedPv>, shared: &Shared, mut params: ListParams) -> anyhow::Result<()> {
    loop {
        let page = api.list(&params).await?;
        page.items.iter().for_each(|pv| shared.store().pv_found(pv));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// Collects a small collection of objects as a whole.
struct Whole<K> {
    objects: BTreeMap<String, K>,
    relist: BTreeMap<String, K>,
    /// It was listed once.
    listed: bool,
}

impl<K: ResourceExt> Whole<K> {
    fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            relist: BTreeMap::new(),
            listed: false,
        }
    }

    /// Takes an event in; true if the collection may have changed. A list changes nothing before it is complete.
    fn take(&mut self, event: Event<K>) -> bool {
        match event {
            Event::Init => self.relist.clear(),
            Event::InitApply(object) => drop(self.relist.insert(object.name_any(), object)),
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.relist);
                self.listed = true;
                return true;
            }
            Event::Apply(object) => {
                self.objects.insert(object.name_any(), object);
                return true;
            }
            Event::Delete(object) => {
                self.objects.remove(&object.name_any());
                return true;
            }
        }
        false
    }
}

/// Watches the StorageClasses.
pub async fn storage_classes(client: Client, shared: Shared) {
    let api: Api<StorageClass> = Api::all(client);
    let mut classes = Whole::new();
    let stream =
        || watcher(api.clone(), config()).map_ok(|event| event.modify(|class| class.metadata.managed_fields = None));
    keep(&shared, "storageclasses", stream, |event| {
        if classes.take(event) {
            shared.update(|store| store.classes(&classes.objects));
        }
    })
    .await;
}

/// Watches the cleaning Jobs of this node in this namespace, by [their labels](job::selectors). Before that, those without the
/// label `pv` that have the name of one are looked for. Ends with the verb when that is refused.
pub async fn jobs(client: Client, shared: Shared, namespace: String, node_name: String) -> &'static str {
    let mut failures = 0;
    loop {
        match unlabelled_jobs(&client, &shared, &namespace).await {
            Ok(()) => break,
            Err(WriteError::Forbidden(_)) => return "list",
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    warn!(watch = "jobs", %error, "list of Jobs failed; it is tried again");
                }
                tokio::time::sleep(api::wait(failures, error.asked())).await;
            }
        }
    }
    let api: Api<Job> = Api::namespaced(client, &namespace);
    let selectors = job::selectors(&node_name);
    let jobs: Mutex<Vec<Whole<Job>>> = Mutex::new(selectors.iter().map(|_| Whole::new()).collect());
    let take = |which: usize, event| {
        let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = jobs.get_mut(which).is_some_and(|jobs| jobs.take(event));
        if changed && jobs.iter().all(|jobs| jobs.listed) {
            shared.update(|store| store.jobs(jobs.iter().flat_map(|jobs| jobs.objects.values())));
        }
    };
    let watches = selectors.iter().enumerate().map(|(which, selector)| {
        let (api, shared, take) = (&api, &shared, &take);
        let stream = move || watcher(api.clone(), config().labels(selector)).map_ok(|event| event.modify(prune_job));
        keep_until(shared, "jobs", stream, move |event| take(which, event), refused_verb).boxed()
    });
    futures::future::select_all(watches).await.0
}

/// Drops what is not used of a Job.
fn prune_job(job: &mut Job) {
    job.metadata.managed_fields = None;
    if let Some(pod) = job.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()) {
        pod.containers.clear();
        pod.volumes = None;
    }
}

/// The verb that is not permitted, if that is the error.
fn refused_verb(err: &watcher::Error) -> Option<&'static str> {
    let forbidden = |err: &kube::Error| matches!(err, kube::Error::Api(status) if status.code == 403);
    match err {
        watcher::Error::InitialListFailed(err) if forbidden(err) => Some("list"),
        watcher::Error::WatchStartFailed(err) | watcher::Error::WatchFailed(err) if forbidden(err) => Some("watch"),
        _ => None,
    }
}

/// Reads the Jobs that have the name of a cleaning Job, and lack the label by which the watch selects.
async fn unlabelled_jobs(client: &Client, shared: &Shared, namespace: &str) -> Result<(), WriteError> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let mut params = ListParams::default().labels("!pv").limit(PAGE);
    loop {
        let page = api.list_metadata(&params).await?;
        for name in page.items.iter().map(ResourceExt::name_any) {
            if job::pv_of(&name).is_some()
                && let Some(job) = api::job_named(client, namespace, &name).await?
            {
                shared.update(|store| store.job_found(&job));
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// Watches the own Node.
pub async fn node(client: Client, shared: Shared, name: String) {
    let api: Api<Node> = Api::all(client);
    let stream = || watcher(api.clone(), config().fields(&format!("metadata.name={name}")));
    keep(&shared, "nodes", stream, |event| {
        if let Event::Apply(node) | Event::InitApply(node) = event {
            shared.update(|store| store.node(&node));
        }
    })
    .await;
}

/// How old a reading of the own Node may be when a PV is created and the Node cannot be watched.
pub const NODE_READING: Duration = Duration::from_secs(10);
