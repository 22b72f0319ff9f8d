//! The start: who we are, what we may do, and the watches.

use super::{
    Arc, BTreeSet, Board, Client, Daemon, Directories, Duration, Eyes, Health, Instant, JoinSet, Locks, Memory,
    Metrics, Mode, Outbox, Scanner, Semaphore, Settings, Shared, Told, WRITES, info, warn,
};

use k8s_openapi::api::core::v1::Node;
use kube::api::Api;

use crate::api::{self, WriteError};
use crate::wakes::MountTables;
use crate::watch;

use super::look::Intent;

/// A daemon that has not looked at anything yet.
pub(super) fn daemon(
    settings: Settings,
    client: Client,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    board: Arc<Board>,
) -> Daemon {
    let shared = Shared::default();
    let _ = shared.restarts.set(metrics.watch_restarts()); // It is new, so nobody has set it.
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
    let slots = settings.limits.scrub_concurrency.min(Semaphore::MAX_PERMITS);
    let told = Arc::clone(&metrics);
    let (outbox, delivery) = Outbox::new(client.clone(), move |posted| told.event(posted));
    // It ends with the daemon, and not before, as a watch does.
    let mut watches = JoinSet::new();
    watches.spawn(delivery);
    Daemon {
        tables: eyes.scanner.tables().clone(),
        settings,
        client,
        shared,
        metrics,
        health,
        board,
        started: Instant::now(),
        mount_tables,
        pace: super::pace::Pace::default(),
        calm: None,
        calm_looks: 0,
        announced: false,
        eyes: Some(eyes),
        looking: None,
        mode: Mode::Classic,
        watches,
        pv_watches: JoinSet::new(),
        watched_pvs: None,
        unwatched_read: Instant::now(),
        mode_asked: Instant::now(),
        jobs: super::jobs::Reading::new(),
        node_watched: false,
        node_read: None,
        config: None,
        problems: Vec::new(),
        config_news: super::configuration::News::default(),
        broken_classes: BTreeSet::new(),
        memory: Memory::default(),
        told: Told::default(),
        outbox,
        tasks: JoinSet::new(),
        writes: Arc::new(Semaphore::new(WRITES)),
        questions: Arc::new(Semaphore::new(WRITES)),
        slots: Arc::new(Semaphore::new(slots)),
        scrubs_ended: 0,
        running: std::collections::BTreeMap::new(),
        notes: std::collections::BTreeMap::new(),
        directories_read: BTreeSet::new(),
        directories_unread: std::collections::BTreeMap::new(),
        locked_out: Vec::new(),
        was_ready: false,
        taint: super::taint::Taint::default(),
        gaps: 0,
        blind_told: false,
        progress_told: Duration::ZERO,
    }
}

impl Daemon {
    /// Reads the first configuration, the Node and the permissions, and starts the watches. An API server that is away
    /// or refuses is waited for.
    ///
    /// # Errors
    /// A look at the node failed, other than by what the node shows.
    pub(super) async fn connect(&mut self) -> anyhow::Result<()> {
        let first = crate::config::load_directory(&self.settings.config_dir);
        self.take_config(first);
        // While the API server answers: the first look takes longer than those that come after it.
        self.begin_look(Intent::Learn)?;
        // First, for as long as that is refused no other permission says anything.
        let node = self
            .until("read the node", |client, settings| {
                read_node(client, settings.node_name.clone())
            })
            .await;
        self.node_read = Some(Instant::now());
        self.shared.update(|store| store.node(&node));
        let (mode, no_node_watch, no_jobs) = self.permissions().await;
        self.mode = mode;
        info!(node = %self.settings.node_name, mode = ?self.mode, "connected");
        let (client, shared) = (self.client.clone(), self.shared.clone());
        self.watches
            .spawn(watch::storage_classes(client.clone(), shared.clone()));
        self.node_watched = no_node_watch.is_none();
        if self.node_watched {
            let name = self.settings.node_name.clone();
            self.watches.spawn(watch::node(client, shared, name));
        }
        self.take_job_permission(no_jobs);
        // Once more in a moment: permissions that are being granted come one after the other.
        self.jobs.ask_again_if_refused();
        self.follow_identity();
        self.health.pass(Some(std::time::Instant::now()));
        // What it has shown of the node may be old by now: the first pass looks again.
        if let Some(loaded) = self.look().await?.config {
            self.take_config(loaded);
        }
        self.health.pass(None);
        Ok(())
    }

    /// What may be done with PVs, and which verb keeps the Node and Jobs from being watched. All is asked at once; only a
    /// server that does not answer is asked for one thing after the other.
    async fn permissions(&self) -> (Mode, Option<&'static str>, Option<&'static str>) {
        const WHAT: &str = "ask for the permissions";
        let mode = |client: Client| async move { api::mode(&client).await };
        let watch_node =
            |client| async move { api::refused_to_watch(&Api::<Node>::all(client), "", "nodes", None).await };
        let jobs = |client, settings: &Settings| super::jobs::ask(client, settings.namespace.clone());
        let client = || self.client.clone();
        let at_once = tokio::try_join!(mode(client()), watch_node(client()), jobs(client(), &self.settings));
        match at_once {
            Ok(answers) => answers,
            // An error is no answer: to take it for "there are no Jobs" would scrub beside one.
            Err(error) => {
                tokio::time::sleep(api::wait(1, error.asked())).await;
                (
                    self.until(WHAT, |client, _| mode(client)).await,
                    self.until(WHAT, |client, _| watch_node(client)).await,
                    self.until(WHAT, jobs).await,
                )
            }
        }
    }

    /// Watches the PVs in the way that fits the permissions, the node's hostname label, and whether PVs are named by the
    /// node's name only, as all that is now.
    pub(super) fn follow_identity(&mut self) {
        let name_only = self.config.as_ref().is_some_and(|config| config.use_node_name_only);
        let hostname = {
            let mut store = self.shared.store();
            store.use_node_name_only(name_only);
            store.ownership().map(|ownership| ownership.hostname.clone())
        };
        let Some(hostname) = hostname else {
            // What cannot be watched is asked for as long as its label is missing.
            if !self.node_watched {
                self.read_node();
            }
            return;
        };
        let wanted = Some((hostname.clone(), self.mode));
        if wanted == self.watched_pvs {
            return;
        }
        if self
            .watched_pvs
            .as_ref()
            .is_none_or(|(watched, _)| *watched != hostname)
        {
            self.shared.store().pvs_unknown();
        }
        self.watched_pvs = wanted;
        self.pv_watches = JoinSet::new();
        let (client, shared) = (self.client.clone(), self.shared.clone());
        let name = self.settings.node_name.clone();
        self.pv_watches.spawn(watch::unlabelled_volumes(
            client.clone(),
            shared.clone(),
            self.mode,
            name,
        ));
        self.pv_watches
            .spawn(watch::persistent_volumes(client, shared, self.mode, hostname));
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
                    tokio::time::sleep(api::wait(failures, err.asked())).await;
                }
            }
        }
    }
}

/// Reads the own Node.
pub(super) async fn read_node(client: Client, name: String) -> Result<Node, WriteError> {
    Ok(Api::<Node>::all(client).get(&name).await?)
}
