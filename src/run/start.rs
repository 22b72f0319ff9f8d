//! The start: who we are, what we may do, and the watches.

use super::{
    Arc, BTreeSet, Client, Daemon, Directories, Duration, Eyes, Health, Instant, JoinSet, Locks, Memory, Metrics, Mode,
    Scanner, Semaphore, Settings, Shared, Told, WRITES, info, warn,
};

use k8s_openapi::api::core::v1::Node;
use kube::api::Api;

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
        watch_of_pvs: None,
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
        let name_only = self.config.as_ref().is_some_and(|config| config.use_node_name_only);
        let node = self
            .until("read the node", |client, settings| {
                read_node(client, settings.node_name.clone())
            })
            .await;
        self.node_read = Some(Instant::now());
        self.shared.update(|store| store.node(&node, name_only));
        self.mode = self
            .until("ask for the permissions", |client, _| async move {
                api::mode(&client).await
            })
            .await;
        info!(node = %self.settings.node_name, mode = ?self.mode, "connected");
        let hostname = node
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(crate::names::HOSTNAME_LABEL))
            .cloned();
        let (client, shared, settings) = (self.client.clone(), self.shared.clone(), &self.settings);
        tokio::spawn(watch::storage_classes(client.clone(), shared.clone()));
        if allowed(&client, "watch", "", "nodes", None).await {
            self.node_watched = true;
            tokio::spawn(watch::node(
                client.clone(),
                shared.clone(),
                settings.node_name.clone(),
                name_only,
            ));
        }
        if allowed(&client, "list", "batch", "jobs", Some(&settings.namespace)).await
            && allowed(&client, "watch", "batch", "jobs", Some(&settings.namespace)).await
        {
            tokio::spawn(watch::jobs(client.clone(), shared.clone(), settings.namespace.clone()));
        } else {
            shared.update(Store::jobs_unreadable);
        }
        tokio::spawn(watch::unlabelled_volumes(
            client,
            shared,
            self.mode,
            settings.node_name.clone(),
        ));
        self.watch_pvs(hostname.unwrap_or_default());
    }

    /// Starts the watch of PVs that fits the permissions.
    pub(super) fn watch_pvs(&mut self, hostname: String) {
        if let Some(former) = self.watch_of_pvs.take() {
            former.abort();
        }
        let watch = watch::persistent_volumes(self.client.clone(), self.shared.clone(), self.mode, hostname);
        self.watch_of_pvs = Some(tokio::spawn(watch));
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

/// Whether something is permitted; where that cannot be asked, it is taken not to be.
async fn allowed(client: &Client, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> bool {
    api::may(client, verb, group, resource, namespace)
        .await
        .unwrap_or(false)
}
