//! A node for tests: a private mount namespace, discovery directories in it, the real daemon, and a real control plane.

// Each test binary uses what it needs.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use local_volume_provisioner::plan::Limits;
use local_volume_provisioner::scan::ScanSettings;
use local_volume_provisioner::settings::Settings;
use serde_json::json;
use testkit::config_volume::ConfigVolume;
use testkit::mounts;
use testkit::plane::Plane;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What is waited for takes milliseconds; this is for a machine that is busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(40);
/// Short, so that what waits for a period is soon seen; the safety timer must not be what makes a test pass, so tests of
/// wakes use a longer one.
pub const PERIOD: Duration = Duration::from_millis(400);
/// Of volumes that have vanished.
pub const GRACE: Duration = Duration::from_millis(600);

/// One of the ways in which the provisioner may be run. Every test of recycling runs in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// The user that the daemon is: `full` may patch PVs, `classic` has the classic RBAC.
    pub user: &'static str,
    /// The host's mount table is there.
    pub sees_pods: bool,
}

/// Both permission modes, with both views of the host.
pub const WORLDS: [World; 4] = [
    World {
        user: "full",
        sees_pods: true,
    },
    World {
        user: "full",
        sees_pods: false,
    },
    World {
        user: "classic",
        sees_pods: true,
    },
    World {
        user: "classic",
        sees_pods: false,
    },
];

/// Both permission modes, on nodes that see the mounts of pods: for tests that are not about scrubbing.
pub const MODES: [World; 2] = [WORLDS[0], WORLDS[2]];

/// The control plane of this test binary.
pub fn plane() -> Result<&'static Plane, String> {
    static PLANE: OnceLock<Result<Plane, String>> = OnceLock::new();
    PLANE
        .get_or_init(|| {
            Plane::available()?;
            Plane::start().map_err(|error| format!("{error:#}"))
        })
        .as_ref()
        .map_err(Clone::clone)
}

/// The control plane, or `None` where it or mounts cannot be had here, and said so.
pub fn plane_for(name: &str) -> Option<&'static Plane> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: {name}: needs root for mounts and loop devices");
        return None;
    }
    if let Err(why) = Plane::available() {
        println!("SKIPPED: {name}: {why}");
        return None;
    }
    Some(plane().unwrap())
}

/// Runs a test once in every world, each on a thread with a mount namespace of its own.
pub fn in_every_world<F: AsyncFn(Rc<Node>) -> Result<()> + Send + Sync + Copy + 'static>(name: &str, test: F) {
    in_worlds(name, &WORLDS, test);
}

/// Runs a test in these worlds.
pub fn in_worlds<F: AsyncFn(Rc<Node>) -> Result<()> + Send + Sync + Copy + 'static>(
    name: &str,
    worlds: &[World],
    test: F,
) {
    let Some(plane) = plane_for(name) else { return };
    let threads: Vec<_> = worlds
        .iter()
        .map(|world| {
            let world = *world;
            let thread = std::thread::spawn(move || run(plane, world, test).with_context(|| format!("{world:?}")));
            (world, thread)
        })
        .collect();
    let failed: Vec<String> = threads
        .into_iter()
        .filter_map(|(world, thread)| match thread.join() {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("{world:?} panicked")),
        })
        .collect();
    assert!(failed.is_empty(), "{name}:\n{}", failed.join("\n\n"));
}

/// Runs a test in a world, on this thread, which moves into a mount namespace of its own.
pub fn run<F: AsyncFn(Rc<Node>) -> Result<()>>(plane: &'static Plane, world: World, test: F) -> Result<()> {
    mounts::private_namespace()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async {
        let node = Rc::new(Node::new(plane, world).await?);
        let result = test(Rc::clone(&node)).await;
        let logs = if result.is_err() {
            node.explain().await
        } else {
            String::new()
        };
        node.stop().await?;
        result.with_context(|| logs)
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// The settings of a test's daemon, which does not see the mounts of pods.
pub fn settings(node_name: &str, config_dir: &Path) -> Settings {
    Settings {
        node_name: node_name.into(),
        namespace: "default".into(),
        job_image: Some("none".into()),
        config_dir: config_dir.into(),
        config_map: None,
        pod: None,
        ready_volumes: BTreeMap::new(),
        stuck_after: Duration::from_secs(120),
        listen_address: None,
        status_address: None,
        metrics_path: "/metrics".into(),
        limits: Limits {
            grace_period: GRACE,
            discovery_period: PERIOD,
            scrub_concurrency: 4,
            creations: local_volume_provisioner::run::CREATIONS,
            scrub_retries: 10,
        },
        scrub: Default::default(),
        scan: ScanSettings {
            host_mountinfo: config_dir.join("no-such-file"),
            ..ScanSettings::default()
        },
    }
}

/// A daemon: what stops it, and its end.
type Running = (oneshot::Sender<()>, JoinHandle<Result<()>>);

/// The node, its directories and its daemon.
pub struct Node {
    pub plane: &'static Plane,
    pub world: World,
    /// The node's name; classes and claims carry it, too, for the plane serves many tests.
    pub name: String,
    pub admin: kube::Client,
    dir: tempfile::TempDir,
    config: std::cell::RefCell<ConfigVolume>,
    pub settings: std::cell::RefCell<Settings>,
    /// Whom the daemon runs as, if not the world's user.
    pub user: std::cell::RefCell<Option<String>>,
    /// How often the PVs are looked at while something is waited for.
    pub poll: std::cell::Cell<Duration>,
    daemon: std::cell::RefCell<Option<Running>>,
}

impl Node {
    async fn new(plane: &'static Plane, world: World) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("n{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir()?;
        let config = ConfigVolume::new(dir.path().join("config"))?;
        let task = format!("/proc/{}/task/{}/mountinfo", std::process::id(), nix::unistd::gettid());
        let mut settings = settings(&name, config.dir());
        if world.sees_pods {
            settings.scan.host_mountinfo = PathBuf::from(&task);
        }
        settings.scan.own_mountinfo = task.into();
        let node = Self {
            plane,
            world,
            name,
            admin: plane.client().await?,
            dir,
            config: config.into(),
            settings: settings.into(),
            user: None.into(),
            poll: Duration::from_millis(20).into(),
            daemon: None.into(),
        };
        // Its hostname label is not its name, as on some clouds.
        plane.create_node(&node.name, &node.hostname()).await?;
        Ok(node)
    }

    /// A class of this node: its StorageClass is made, its directory too, and it is configured.
    pub async fn class(&self, policy: &str, extra: &str) -> Result<String> {
        let class = self.free_class_name()?;
        self.plane.create_storage_class(&class, policy).await?;
        std::fs::create_dir(self.path(&class))?;
        self.configure_class(&class, extra)?;
        Ok(class)
    }

    /// A name for a class that no other test has.
    pub fn free_class_name(&self) -> Result<String> {
        let existing = std::fs::read_dir(self.dir.path())?.count();
        Ok(format!("{}-c{existing}", self.name))
    }

    /// Adds a class to storageClassMap; neither its StorageClass nor its directory is made.
    pub fn configure_class(&self, class: &str, extra: &str) -> Result<()> {
        let map = self.config.borrow().get("storageClassMap").to_owned() + &self.settings_of(class, extra);
        self.configure("storageClassMap", &map)
    }

    /// A class as it stands in storageClassMap.
    pub fn settings_of(&self, class: &str, extra: &str) -> String {
        let directory = self.path(class);
        format!(
            "{class}:\n  hostDir: {0}\n  mountDir: {0}\n{extra}",
            directory.display()
        )
    }

    /// Sets a key of the configuration.
    pub fn configure(&self, key: &str, value: &str) -> Result<()> {
        Ok(self.config.borrow_mut().set(key, value)?)
    }

    /// One edit of the ConfigMap: sets keys, and removes those without a value.
    pub fn edit<'a>(&self, changes: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Result<()> {
        Ok(self.config.borrow_mut().edit(changes)?)
    }

    /// A path below the test's directory.
    pub fn path(&self, rest: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(rest)
    }

    /// An entry's path.
    pub fn entry(&self, class: &str, entry: &str) -> PathBuf {
        self.dir.path().join(class).join(entry)
    }

    /// Mounts a tmpfs at an entry.
    pub fn tmpfs(&self, class: &str, entry: &str) -> Result<PathBuf> {
        self.tmpfs_of(class, entry, 16 << 20)
    }

    /// Mounts a tmpfs of this size in bytes at an entry.
    pub fn tmpfs_of(&self, class: &str, entry: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.entry(class, entry);
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
        mounts::tmpfs(&path, bytes)?;
        Ok(path)
    }

    /// The value of this node's label `kubernetes.io/hostname`.
    pub fn hostname(&self) -> String {
        format!("host-{}", self.name)
    }

    /// Whether the daemon may patch PVs.
    pub fn patches(&self) -> bool {
        self.world.user == "full"
    }

    /// Changes the settings that the daemon is started with.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.borrow_mut());
    }

    /// Gives the daemon an address for its endpoints.
    pub fn listen(&self) -> Result<std::net::SocketAddr> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        self.set(|settings| settings.listen_address = Some(address));
        Ok(address)
    }

    /// Starts the daemon.
    pub async fn start(&self) -> Result<()> {
        let user = self.user.borrow().clone();
        let user = user.as_deref().unwrap_or(self.world.user);
        let config = kube::Config::from_custom_kubeconfig(
            kube::config::Kubeconfig::read_from(self.plane.kubeconfig_of(user)?)?,
            &kube::config::KubeConfigOptions::default(),
        )
        .await?;
        let client = local_volume_provisioner::api::client(config)?;
        let (stop, stopped) = oneshot::channel();
        let settings = self.settings.borrow().clone();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let daemon = tokio::task::spawn_local(local_volume_provisioner::run::run(settings, client, shutdown));
        *self.daemon.borrow_mut() = Some((stop, daemon));
        Ok(())
    }

    /// Stops the daemon, if it runs.
    pub async fn stop(&self) -> Result<()> {
        let running = self.daemon.borrow_mut().take();
        if let Some((stop, daemon)) = running {
            let _ = stop.send(());
            daemon.await.context("the daemon panicked")??;
        }
        Ok(())
    }

    pub fn pvs(&self) -> Api<PersistentVolume> {
        Api::all(self.admin.clone())
    }

    /// The PVs of this node by their entry's name.
    pub async fn published(&self) -> Result<BTreeMap<String, PersistentVolume>> {
        let root = self.dir.path().to_string_lossy().into_owned();
        let all = self.pvs().list(&ListParams::default()).await?;
        let path = |pv: &PersistentVolume| pv.spec.as_ref()?.local.as_ref().map(|local| local.path.clone());
        Ok(all
            .items
            .into_iter()
            .filter_map(|pv| Some((path(&pv)?, pv)))
            .filter(|(path, _)| path.starts_with(&root))
            .map(|(path, pv)| (path.rsplit('/').next().unwrap_or_default().to_owned(), pv))
            .collect())
    }

    /// Waits until a condition on the PV of an entry holds (`None`: there is no PV).
    pub async fn until(
        &self,
        entry: &str,
        what: &str,
        holds: impl Fn(Option<&PersistentVolume>) -> bool,
    ) -> Result<Option<PersistentVolume>> {
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let found = self.published().await?.remove(entry);
            if holds(found.as_ref()) {
                return Ok(found);
            }
            if tokio::time::Instant::now() > end {
                bail!(
                    "not within {DEADLINE:?}: {what}; the PV is {}",
                    serde_json::to_string_pretty(&found)?
                );
            }
            tokio::time::sleep(self.poll.get()).await;
        }
    }

    /// Waits until the entry's PV is Available and not being deleted.
    pub async fn available(&self, entry: &str) -> Result<PersistentVolume> {
        let pv = self
            .until(entry, &format!("{entry} is Available"), |pv| {
                pv.is_some_and(|pv| phase(pv) == "Available" && pv.metadata.deletion_timestamp.is_none())
            })
            .await?;
        pv.context("no PV")
    }

    /// Waits until exactly these entries are published and Available.
    pub async fn exactly(&self, entries: &[&str]) -> Result<BTreeMap<String, PersistentVolume>> {
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let published = self.published().await?;
            let all_available = published.values().all(|pv| phase(pv) == "Available");
            if all_available
                && published
                    .keys()
                    .eq(entries.iter().copied().collect::<std::collections::BTreeSet<_>>())
            {
                return Ok(published);
            }
            if tokio::time::Instant::now() > end {
                bail!(
                    "not within {DEADLINE:?}: {entries:?} are published; there are {:?}",
                    published.keys()
                );
            }
            tokio::time::sleep(self.poll.get()).await;
        }
    }

    /// Waits until the entry is Available under another UID.
    pub async fn again(&self, entry: &str, former: &PersistentVolume) -> Result<PersistentVolume> {
        let what = format!("{entry} is Available with another UID than {:?}", former.uid());
        let pv = self
            .until(entry, &what, |pv| {
                pv.is_some_and(|pv| {
                    phase(pv) == "Available" && pv.metadata.deletion_timestamp.is_none() && pv.uid() != former.uid()
                })
            })
            .await?;
        pv.context("no PV")
    }

    /// Waits until the entry has a PV that is [surely unused](is_surely_unused): one that is not, is made anew by the daemon.
    pub async fn surely_unused(&self, entry: &str) -> Result<PersistentVolume> {
        let end = tokio::time::Instant::now() + DEADLINE * 3;
        let mut pv = self.available(entry).await?;
        while !is_surely_unused(&pv) {
            ensure!(
                tokio::time::Instant::now() < end,
                "{entry} never became Available in {SOON} s"
            );
            self.delete(&pv).await?;
            pv = self.again(entry, &pv).await?;
        }
        Ok(pv)
    }

    /// The same of a PV that no daemon makes.
    pub async fn create_unused(
        &self,
        entry: &str,
        create: impl AsyncFn() -> Result<PersistentVolume>,
    ) -> Result<PersistentVolume> {
        let end = tokio::time::Instant::now() + DEADLINE * 3;
        loop {
            create().await?;
            let pv = self.available(entry).await?;
            if is_surely_unused(&pv) {
                return Ok(pv);
            }
            ensure!(
                tokio::time::Instant::now() < end,
                "{entry} never became Available in {SOON} s"
            );
            self.delete(&pv).await?;
            self.until(entry, "it is gone", |pv| pv.is_none()).await?;
        }
    }

    /// A class with one disk, `disk1`, the running daemon, and claim `a` bound to the disk's PV.
    pub async fn tenant(&self, policy: &str) -> Result<(String, PathBuf, PersistentVolume)> {
        let class = self.class(policy, "").await?;
        let disk = self.tmpfs(&class, "disk1")?;
        self.start().await?;
        let pv = self.available("disk1").await?;
        self.claim("a", &class).await?;
        Ok((class, disk, pv))
    }

    /// Binds a claim of this name and class: the scheduler chooses a volume.
    pub async fn claim(&self, name: &str, class: &str) -> Result<PersistentVolume> {
        self.claim_of_mode(name, class, "Filesystem").await
    }

    /// Binds a claim with this volumeMode.
    pub async fn claim_of_mode(&self, name: &str, class: &str, mode: &str) -> Result<PersistentVolume> {
        let claim = format!("{}-{name}", self.name);
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class, "volumeMode": mode,
            "resources": {"requests": {"storage": "1Mi"}}});
        let object: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": claim}, "spec": spec}))?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.admin.clone(), "default");
        claims.create(&PostParams::default(), &object).await?;
        let mut container = json!({"name": "c", "image": "none"});
        if mode == "Block" {
            container["volumeDevices"] = json!([{"name": "v", "devicePath": "/dev/v"}]);
        } else {
            container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        }
        let pod = json!({"metadata": {"name": claim}, "spec": {"containers": [container],
            "nodeSelector": {"kubernetes.io/hostname": self.hostname()},
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}});
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), "default");
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let bound = self.published().await?.into_values().find(|pv| {
                let reference = pv.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
                reference.and_then(|reference| reference.name.as_deref()) == Some(&claim) && phase(pv) == "Bound"
            });
            if let Some(bound) = bound {
                return Ok(bound);
            }
            if tokio::time::Instant::now() > end {
                bail!("claim {claim} was not bound within {DEADLINE:?}");
            }
            tokio::time::sleep(self.poll.get()).await;
        }
    }

    /// Deletes the pod and the claim of a name.
    pub async fn release(&self, name: &str) -> Result<()> {
        let name = format!("{}-{name}", self.name);
        self.plane.delete_pod("default", &name).await?;
        self.plane.delete_claim("default", &name).await
    }

    /// Changes a PV by a merge patch.
    pub async fn patch(&self, pv: &PersistentVolume, patch: serde_json::Value) -> Result<PersistentVolume> {
        Ok(self
            .pvs()
            .patch(&pv.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await?)
    }

    /// Deletes a PV by hand.
    pub async fn delete(&self, pv: &PersistentVolume) -> Result<()> {
        self.pvs().delete(&pv.name_any(), &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits for an event of this reason about a PV, whose message contains `text`.
    pub async fn event(&self, pv: &PersistentVolume, reason: &str, text: &str) -> Result<Event> {
        let events: Api<Event> = Api::namespaced(self.admin.clone(), "default");
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let all = events.list(&ListParams::default()).await?.items;
            let about: Vec<Event> = all
                .into_iter()
                .filter(|event| event.involved_object.uid == pv.uid())
                .collect();
            let found = about.iter().find(|event| {
                event.reason.as_deref() == Some(reason)
                    && event.message.as_ref().is_some_and(|message| message.contains(text))
            });
            if let Some(found) = found {
                return Ok(found.clone());
            }
            if tokio::time::Instant::now() > end {
                let texts: Vec<_> = about.iter().map(|event| (&event.reason, &event.message)).collect();
                bail!("no event {reason} with {text:?} within {DEADLINE:?}; there are {texts:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Removes what this node has in the control plane, so that others need not look through it. No daemon runs.
    pub async fn clear(&self) -> Result<()> {
        let own = |name: &str| name.starts_with(&format!("{}-", self.name));
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.admin.clone(), "default");
        let names = claims.list_metadata(&ListParams::default()).await?;
        for claim in names.iter().map(ResourceExt::name_any).filter(|name| own(name)) {
            // What goes meanwhile is no failure.
            let _ = self.plane.delete_pod("default", &claim).await;
            let _ = self.plane.delete_claim("default", &claim).await;
        }
        for pv in self.published().await?.values() {
            let _ = self.delete(pv).await;
            let _ = self.patch(pv, json!({"metadata": {"finalizers": null}})).await;
        }
        Ok(())
    }

    /// Lets the daemon look at least this often, and then some: for asserting that something does not happen.
    pub async fn several_passes(&self) {
        tokio::time::sleep(PERIOD * 4).await;
    }

    /// A pod's mount of an entry, as kubelet makes it.
    pub fn pod_mount(&self, pv: &PersistentVolume, entry: &Path) -> Result<PathBuf> {
        let path = self
            .path("kubelet/pods/9e1f0c4d/volumes/kubernetes.io~local-volume")
            .join(pv.name_any());
        std::fs::create_dir_all(&path)?;
        mounts::bind(entry, &path)?;
        Ok(path)
    }

    async fn explain(&self) -> String {
        let pvs = self.published().await.unwrap_or_default();
        let summary: Vec<String> = pvs
            .iter()
            .map(|(entry, pv)| {
                format!(
                    "{entry}: {} {} deleted {:?} {:?}",
                    pv.name_any(),
                    phase(pv),
                    pv.metadata.deletion_timestamp,
                    pv.finalizers()
                )
            })
            .collect();
        format!("in {:?} on node {}; PVs: {summary:#?}", self.world, self.name)
    }
}

/// Seconds.
const SOON: i64 = 2;

/// Whether a PV became Available so soon after its creation that a process that was not there knows, too, that it was
/// never used. Without that it keeps its capacity, and is neither withdrawn nor given up. A control plane that is busy
/// may take longer.
pub fn is_surely_unused(pv: &PersistentVolume) -> bool {
    let since = pv
        .status
        .as_ref()
        .and_then(|status| status.last_phase_transition_time.as_ref());
    let created = pv.metadata.creation_timestamp.as_ref();
    let times = since.zip(created);
    phase(pv) == "Available"
        && times.is_some_and(|(since, created)| since.0.as_second() - created.0.as_second() <= SOON)
}

/// Asks the daemon's endpoint: the status code and the body.
pub async fn http_get(address: std::net::SocketAddr, path: &str) -> Result<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("no HTTP answer")?, answer))
}

/// Waits until a condition on the answer of one of the daemon's endpoints holds.
pub async fn http_until(
    address: std::net::SocketAddr,
    path: &str,
    holds: impl Fn(u16, &str) -> bool,
) -> Result<String> {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        let answer = http_get(address, path).await;
        if let Ok((code, body)) = &answer
            && holds(*code, body)
        {
            return Ok(body.clone());
        }
        if tokio::time::Instant::now() > end {
            bail!("{path} does not say so within {DEADLINE:?}: {answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A PV's phase.
pub fn phase(pv: &PersistentVolume) -> String {
    pv.status
        .as_ref()
        .and_then(|status| status.phase.clone())
        .unwrap_or_default()
}

/// The names in a directory.
pub fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
