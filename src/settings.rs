//! The daemon's settings: flags and environment, validated.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::plan::Limits;
use crate::scan::ScanSettings;

/// Everything the daemon is told from outside, besides the ConfigMap.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `MY_NODE_NAME`.
    pub node_name: String,
    /// `MY_NAMESPACE`: of the cleaning Jobs.
    pub namespace: String,
    /// `JOB_CONTAINER_IMAGE`: of the cleaning Jobs.
    pub job_image: Option<String>,
    /// `--config-dir`.
    pub config_dir: PathBuf,
    /// `--config-map`: the ConfigMap that is mounted there, in our namespace. Events about it are its own then.
    pub config_map: Option<String>,
    /// `POD_NAME` and `POD_UID`: what events about the configuration are about otherwise.
    pub pod: Option<Pod>,
    /// `--ready-volumes`: how many PVs of a class must be there before the startup taint is removed.
    pub ready_volumes: BTreeMap<String, usize>,
    /// A pass that takes longer than this is stuck, by `/livez`.
    pub stuck_after: Duration,
    /// `--listen-address`; `None`: no HTTP endpoints.
    pub listen_address: Option<SocketAddr>,
    /// `--status-address`; `None`: no status page.
    pub status_address: Option<SocketAddr>,
    /// `--metrics-path`.
    pub metrics_path: String,
    /// Periods and bounds.
    pub limits: Limits,
    /// `--scrub-bandwidth` and `--stall-timeout`.
    pub scrub: crate::scrub::limits::Limits,
    /// `--syscall-timeout`, `--host-mountinfo`, and where else the node is looked at.
    pub scan: ScanSettings,
}

/// The own pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `POD_NAME`.
    pub name: String,
    /// `POD_UID`: `kubectl describe pod` finds events by it.
    pub uid: Option<String>,
}
