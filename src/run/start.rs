//! The start: who we are, what we may do, and the watches.

use super::{
    Arc, BTreeSet, Client, Daemon, Directories, Duration, Eyes, Health, Instant, JoinSet, Locks, Memory, Metrics, Mode,
    Scanner, Semaphore, Settings, Shared, Told, WRITES, info, warn,
};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};

use crate::api::{self, WriteError};
use crate::memory::api_backoff;
use crate::store::Store;
use crate::wakes::MountTables;
use crate::watch;

/// A daemon that has not looked at anything yet.
pub(super) fn daemon(settings: Settings, client: Client, metrics: Arc<Metrics>, health: Arc<Health>) -> Daemon {
    let shared = Shared::default();
    let eyes = Eyes {
        scanner: Scanner::new(settings.scan.clone()),
        locks: Locks::default(),
        directories: Directories::new(Arc::clone(&shared.wake), &settings.config_dir),
        config_read: None,
    };
    let tables = [
        settings.scan.own_mountinfo.clone(),
        settings.scan.host_mountinfo.clone(),
    ];
    let mount_tables = MountTables::watch(&tables, Arc::clone(&shared.wake))
        .inspect_err(|error| warn!(%error, "mount tables cannot be watched; changes are found by the safety timer"))
        .ok();
    Daemon {
        settings,
        client,
        shared,
        metrics,
        health,
        started: Instant::now(),
        _mount_tables: mount_tables,
        eyes: Some(eyes),
        mode: Mode::Classic,
        watches: JoinSet::new(),
        pv_watches: JoinSet::new(),
        watched_pvs: None,
        unwatched_read: Instant::now(),
        node_watched: false,
        node_read: None,
        config: None,
        problems: Vec::new(),
        memory: Memory::default(),
        told: Told::default(),
        tasks: JoinSet::new(),
        writes: Arc::new(Semaphore::new(WRITES)),
        running: std::collections::BTreeMap::new(),
        directories_read: BTreeSet::new(),
        gaps: 0,
        states: std::collections::BTreeMap::new(),
    }
}

impl Daemon {
    /// Reads the first configuration, the Node and the permissions, and starts the watches. An API server that is away
    /// or refuses is waited for.
    pub(super) async fn connect(&mut self) {
        let first = crate::config::load_directory(&self.settings.config_dir);
        self.take_config(first);
        let node = self
            .until("read the node", |client, settings| {
                read_node(client, settings.node_name.clone())
            })
            .await;
        self.node_read = Some(Instant::now());
        self.shared.update(|store| store.node(&node));
        self.mode = self
            .until("ask for the permissions", |client, _| async move {
                api::mode(&client).await
            })
            .await;
        info!(node = %self.settings.node_name, mode = ?self.mode, "connected");
        self.node_watched = self
            .until("ask for the permission to watch nodes", |client, _| {
                may_watch_nodes(client)
            })
            .await;
        let reads_jobs = self
            .until("ask for the permission to read Jobs", |client, settings| {
                may_read_jobs(client, settings.namespace.clone())
            })
            .await;
        let (client, shared) = (self.client.clone(), self.shared.clone());
        self.watches
            .spawn(watch::storage_classes(client.clone(), shared.clone()));
        if self.node_watched {
            let name = self.settings.node_name.clone();
            self.watches.spawn(watch::node(client.clone(), shared.clone(), name));
        }
        if reads_jobs {
            let namespace = self.settings.namespace.clone();
            self.watches
                .spawn(watch::jobs(client.clone(), shared.clone(), namespace));
        } else {
            shared.update(Store::jobs_unreadable);
        }
    }

    /// Watches the PVs in the way that fits the permissions and the node's hostname label, as they are now.
    pub(super) fn watch_pvs(&mut self) {
        let hostname = self
            .shared
            .store()
            .ownership()
            .map(|ownership| ownership.hostname.clone());
        let wanted = hostname.map(|hostname| (hostname, self.mode));
        if wanted == self.watched_pvs {
            return;
        }
        self.pv_watches = JoinSet::new();
        self.watched_pvs.clone_from(&wanted);
        self.shared.store().pvs_unknown();
        let Some((hostname, mode)) = wanted else { return };
        let (client, shared) = (self.client.clone(), self.shared.clone());
        let name = self.settings.node_name.clone();
        self.pv_watches
            .spawn(watch::unlabelled_volumes(client.clone(), shared.clone(), mode, name));
        self.pv_watches
            .spawn(watch::persistent_volumes(client, shared, mode, hostname));
    }

    /// Reads again, every discovery period, what stands in our way and is not seen by the watch.
    pub(super) fn doubt_unwatched(&mut self) {
        if self.mode != Mode::Patch || self.unwatched_read.elapsed() < self.settings.limits.discovery_period {
            return;
        }
        self.unwatched_read = Instant::now();
        let mut store = self.shared.store();
        for name in store.unwatched() {
            store.doubt(&name);
        }
    }

    /// Tries a call until the API server answers it.
    async fn until<T, F, C>(&self, what: &str, call: C) -> T
    where
        F: Future<Output = Result<T, WriteError>>,
        C: Fn(Client, &Settings) -> F,
    {
        let mut failures = 0;
        loop {
            match call(self.client.clone(), &self.settings).await {
                Ok(answer) => return answer,
                Err(err) => {
                    failures += 1;
                    if failures == 1 {
                        warn!(error = %err, "cannot {what}; trying again");
                    }
                    self.health
                        .waits_for(vec![format!("the API server: cannot {what}: {err}")]);
                    tokio::time::sleep(api_backoff(failures).max(Duration::from_millis(100))).await;
                }
            }
        }
    }
}

/// Reads the own Node.
pub(super) async fn read_node(client: Client, name: String) -> Result<Node, WriteError> {
    Ok(Api::<Node>::all(client).get(&name).await?)
}

/// Whether the own Node may be watched. Where that cannot be asked, it is taken not to be: it is read then.
async fn may_watch_nodes(client: Client) -> Result<bool, WriteError> {
    match api::may(&client, "watch", "", "nodes", None).await {
        Err(WriteError::Forbidden(_)) => Ok(false),
        answer => answer,
    }
}

/// Whether Jobs may be read; where that cannot be asked, by trying. An error is none of these answers: to take it for
/// "there are no Jobs" would scrub beside one.
async fn may_read_jobs(client: Client, namespace: String) -> Result<bool, WriteError> {
    match api::may(&client, "watch", "batch", "jobs", Some(&namespace)).await {
        Err(WriteError::Forbidden(_)) => {}
        Ok(true) => return api::may(&client, "list", "batch", "jobs", Some(&namespace)).await,
        answer => return answer,
    }
    let jobs: Api<Job> = Api::namespaced(client, &namespace);
    match jobs
        .list(&ListParams::default().limit(1))
        .await
        .map_err(WriteError::from)
    {
        Ok(_) => Ok(true),
        Err(WriteError::Forbidden(_)) => Ok(false),
        Err(err) => Err(err),
    }
}
