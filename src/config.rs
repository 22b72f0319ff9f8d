//! The configuration: a directory of files (a ConfigMap volume) whose names are keys and whose contents are YAML values.
//!
//! Each key is parsed for itself and each class for itself: what is broken becomes a [`Problem`], the rest is used.
//! [`parse`] is the pure core; [`load_directory`] and [`load_manifest`] read a ConfigMap volume and a manifest for it.
//! After an edit, [`Loaded::keep_last_good`] fills the gaps from the configuration that was in use.

mod class;
mod cleaner;
mod directory;
pub mod duration;
mod manifest;
pub mod names;
mod path;
mod raw;
mod reload;
mod scalar;
mod selector;
mod settings;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Toleration};

pub use self::cleaner::Cleaner;
pub use self::directory::load_directory;
pub use self::manifest::{load_manifest, parse_manifest};
pub use self::path::clean;
pub use self::settings::parse;
use crate::name_pattern::NamePattern;

/// The configuration, validated. Classes that are broken are not in it; [`Loaded::problems`] says why.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `storageClassMap`: the classes by name.
    pub classes: BTreeMap<String, Class>,
    /// `nodeLabelsForPV`: labels of the node that are copied to its PVs.
    pub node_labels_for_pv: Vec<String>,
    /// `labelsForPV`: constant labels of the PVs.
    pub labels_for_pv: BTreeMap<String, String>,
    /// `useJobForCleaning`: scrub block devices in Jobs.
    pub use_job_for_cleaning: bool,
    /// `jobTolerations`: of the Jobs' pods.
    pub job_tolerations: Vec<Toleration>,
    /// `minResyncPeriod`: accepted, not used.
    pub min_resync_period: Duration,
    /// `useNodeNameOnly`: provisioned-by without the node's UID.
    pub use_node_name_only: bool,
    /// `setPVOwnerRef`: the PV gets an ownerReference to its Node.
    pub set_pv_owner_ref: bool,
    /// `removeNodeNotReadyTaint`: remove the startup taint when ready.
    pub remove_node_not_ready_taint: bool,
    /// `provisionerNotReadyNodeTaintKey`: that taint's key.
    pub provisioner_not_ready_node_taint_key: String,
}

/// The classic program's default of `minResyncPeriod`.
const DEFAULT_MIN_RESYNC_PERIOD: Duration = Duration::from_secs(5 * 60);

impl Default for Config {
    fn default() -> Self {
        Self {
            classes: BTreeMap::new(),
            node_labels_for_pv: Vec::new(),
            labels_for_pv: BTreeMap::new(),
            use_job_for_cleaning: false,
            job_tolerations: Vec::new(),
            min_resync_period: DEFAULT_MIN_RESYNC_PERIOD,
            use_node_name_only: false,
            set_pv_owner_ref: false,
            remove_node_not_ready_taint: false,
            provisioner_not_ready_node_taint_key: String::new(),
        }
    }
}

/// One class: a key of `storageClassMap`.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// The class, which is also the name of its StorageClass.
    pub name: String,
    /// `hostDir`, cleaned as by Go's filepath.Clean.
    pub host_dir: PathBuf,
    /// `mountDir`, cleaned as by Go's filepath.Clean.
    pub mount_dir: PathBuf,
    /// `volumeMode`.
    pub volume_mode: VolumeMode,
    /// `accessMode`, such as `ReadWriteOnce`.
    pub access_mode: String,
    /// `fsType`.
    pub fs_type: Option<String>,
    /// `namePattern`.
    pub name_pattern: NamePattern,
    /// `blockCleanerCommand`; `None` when absent.
    pub block_cleaner_command: Option<Vec<String>>,
    /// `selector`: appended to the node affinity after the hostname term.
    pub selector: Vec<NodeSelectorTerm>,
}

/// `volumeMode` of a class and of a PV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum VolumeMode {
    /// A mounted filesystem, or a device that kubelet formats.
    #[default]
    Filesystem,
    /// A raw block device.
    Block,
}

/// Something wrong with the configuration, in words that name file, key and line and what to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The file, such as `/etc/provisioner/config/storageClassMap` or `configmap.yaml`.
    pub file: String,
    /// Where in it, counted from 1.
    pub line: Option<u64>,
    /// The key or the path to it, such as `storageClassMap.fast.hostDir`; empty if nothing at all could be read.
    pub key: String,
    /// The class that is broken by it, if it is one class.
    pub class: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

/// What a configuration directory or manifest yielded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    /// What could be used of it.
    pub config: Config,
    /// What could not be used: one broken class does not cost the others.
    pub problems: Vec<Problem>,
    /// What was accepted but looks wrong, such as unknown keys.
    pub warnings: Vec<Problem>,
}

impl Problem {
    /// The top-level key that it concerns, such as `storageClassMap`; empty if nothing at all could be read.
    pub fn top_key(&self) -> &str {
        self.key.split(['.', '[']).next().unwrap_or_default()
    }
}

/// `FILE:LINE: KEY: MESSAGE`, without what is not known, in one line whatever is in a key.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape_controls(f, &self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            f.write_str(": ")?;
            escape_controls(f, &self.key)?;
        }
        f.write_str(": ")?;
        escape_controls(f, &self.message)
    }
}

fn escape_controls(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| {
        if c.is_control() {
            write!(f, "{}", c.escape_debug())
        } else {
            f.write_char(c)
        }
    })
}
