//! The daemon's settings: flags and environment, validated.

use std::net::SocketAddr;
use std::path::PathBuf;

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
