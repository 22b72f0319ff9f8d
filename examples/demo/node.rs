//! The stage: a node with its disks, and a cluster around it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use local_volume_provisioner::plan::Limits;
use local_volume_provisioner::scan::ScanSettings;
use local_volume_provisioner::settings::Settings;
use testkit::api::{Api, Controllers};
use testkit::mounts;

/// The name of the class and its StorageClass.
pub(crate) const CLASS: &str = "fast";
const NAME: &str = "demo-node";
/// Of every disk here.
pub(crate) const DISK_BYTES: u64 = 64 << 20;
/// One of these directories is on every system. It is covered, for this process only, so that nothing is left behind.
const ROOTS: [&str; 4] = ["/mnt", "/media", "/srv", "/opt"];

/// The node and the cluster.
pub(crate) struct Node {
    /// A tmpfs with everything in it.
    pub(crate) root: PathBuf,
    pub(crate) api: Api,
    _controllers: Controllers,
}

impl Node {
    /// Needs a tokio runtime, and a mount namespace of its own.
    pub(crate) fn new() -> Result<Self> {
        let root = ROOTS.iter().map(Path::new).find(|path| path.is_dir());
        let root = root
            .with_context(|| format!("none of {ROOTS:?} is a directory, so there is no place to mount at; make one"))?;
        // The bind-mounted directory is in here, too: as large as any of the disks.
        mounts::tmpfs(root, DISK_BYTES)?;
        for directory in ["config", "disks"] {
            fs::create_dir(root.join(directory))
                .with_context(|| format!("create {directory} in {}", root.display()))?;
        }
        let api = Api::new();
        api.create_node(NAME, NAME);
        api.create_storage_class(CLASS, "Delete");
        let controllers = api.run_controllers();
        Ok(Self {
            root: root.to_path_buf(),
            api,
            _controllers: controllers,
        })
    }

    /// Writes `storageClassMap`, and returns it.
    pub(crate) fn configure(&self) -> Result<String> {
        let disks = self.root.join("disks");
        let map = format!("{CLASS}:\n  hostDir: {0}\n  mountDir: {0}\n", disks.display());
        let path = self.root.join("config/storageClassMap");
        fs::write(&path, &map).with_context(|| format!("write {}", path.display()))?;
        Ok(map)
    }

    pub(crate) fn settings(&self) -> Settings {
        // What pods have mounted is in the same table, for kubelet is played by this process.
        let mountinfo = PathBuf::from("/proc/self/mountinfo");
        Settings {
            node_name: NAME.into(),
            namespace: "default".into(),
            job_image: None,
            scrub: Default::default(),
            config_dir: self.root.join("config"),
            config_map: None,
            pod: None,
            ready_volumes: std::collections::BTreeMap::new(),
            stuck_after: local_volume_provisioner::http::STUCK_AFTER,
            listen_address: None,
            status_address: None,
            metrics_path: "/metrics".into(),
            // The defaults of the flags.
            limits: Limits {
                grace_period: Duration::from_secs(60),
                discovery_period: Duration::from_secs(10),
                scrub_concurrency: 4,
                creations: local_volume_provisioner::run::CREATIONS,
                scrub_retries: 10,
            },
            scan: ScanSettings {
                host_mountinfo: mountinfo.clone(),
                own_mountinfo: mountinfo,
                ..ScanSettings::default()
            },
        }
    }

    /// The path of an entry of the discovery directory.
    pub(crate) fn disk(&self, entry: &str) -> PathBuf {
        self.root.join("disks").join(entry)
    }

    /// Mounts a filesystem of its own.
    pub(crate) fn mount_tmpfs(&self, entry: &str) -> Result<()> {
        mounts::tmpfs(&self.disk(entry), DISK_BYTES)
    }

    /// Makes a directory elsewhere and bind-mounts it.
    pub(crate) fn mount_directory(&self, entry: &str) -> Result<PathBuf> {
        let source = self.root.join("data").join(entry);
        fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
        fs::create_dir(self.disk(entry)).with_context(|| format!("create {}", self.disk(entry).display()))?;
        mounts::bind(&source, &self.disk(entry))?;
        Ok(source)
    }

    /// Kubelet's part: mounts a volume for a pod, and says where.
    pub(crate) fn mount_for_pod(&self, pv: &str, entry: &str) -> Result<PathBuf> {
        let pod = self
            .root
            .join("kubelet/pods/2f6c1f0e-8c1b-4d0e-9f3a-5f0d3c7a9b11/volumes");
        let path = pod.join("kubernetes.io~local-volume").join(pv);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        mounts::bind(&self.disk(entry), &path)?;
        Ok(path)
    }
}

/// What to do where nothing can be mounted; only what applies to this machine.
pub(crate) fn advice() -> String {
    let is = |file: &str, value: &str| fs::read_to_string(file).is_ok_and(|text| text.trim() == value);
    let mut lines = Vec::new();
    if nix::unistd::getuid().is_root() {
        lines.push("root lacks CAP_SYS_ADMIN, as in most containers; run it outside of the container,".to_owned());
        lines.push("or in one that was started with --privileged".to_owned());
    } else {
        let program = std::env::current_exe().unwrap_or_else(|_| "target/debug/examples/demo".into());
        lines.push(format!("run it as root:  sudo {}", program.display()));
        for (file, value, setting) in [
            (
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1",
                "kernel.apparmor_restrict_unprivileged_userns=0",
            ),
            (
                "/proc/sys/kernel/unprivileged_userns_clone",
                "0",
                "kernel.unprivileged_userns_clone=1",
            ),
            (
                "/proc/sys/user/max_user_namespaces",
                "0",
                "user.max_user_namespaces=10000",
            ),
        ] {
            if is(file, value) {
                lines.push(format!("or permit user namespaces:  sudo sysctl {setting}"));
            }
        }
        if Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists() {
            lines.push("or run it outside of this container, or in one started with --privileged".to_owned());
        }
    }
    lines
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
