//! What the API server says, cut down to what is used: own PersistentVolumes, the StorageClasses, the own Node, own Jobs.

mod jobs;
mod ownership;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::jiff::Timestamp;
use litemap::LiteMap;

use crate::config::VolumeMode;
use crate::names;

pub use jobs::{CleaningJob, JobProgress, Jobs, cleaning_job};
pub use ownership::{Owner, Ownership};

/// What the provisioner may do with PersistentVolumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Patch is permitted: finalizers and marks make the API server the ledger.
    Patch,
    /// Only create and delete are (the built-in role `system:persistent-volume-provisioner`).
    Classic,
}

/// Everything the API server says that concerns this node.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// PVs by name: ours, and foreign ones that stand in the way of an entry.
    pub pvs: BTreeMap<String, Pv>,
    /// StorageClasses by name.
    pub storage_classes: BTreeMap<String, StorageClass>,
    /// The own Node.
    pub node: Option<Node>,
    /// The cleaning Jobs.
    pub jobs: Jobs,
    /// Names of PVs that exist and belong to another node, path or class.
    pub names_taken: BTreeSet<String>,
}

/// The own Node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// The keys of its taints.
    pub taint_keys: BTreeSet<String>,
}

impl Node {
    /// The value of the label `kubernetes.io/hostname`, which may differ from the node's name.
    #[must_use]
    pub fn hostname(&self) -> Option<&str> {
        self.labels.get(names::HOSTNAME_LABEL).map(String::as_str)
    }
}

impl From<&core::Node> for Node {
    fn from(node: &core::Node) -> Self {
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taint_keys: taints.map(|taint| taint.key.clone()).collect(),
        }
    }
}

/// What is used of a StorageClass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageClass {
    /// `reclaimPolicy`; Delete when absent.
    pub reclaim_policy: String,
    /// `mountOptions`.
    pub mount_options: Vec<String>,
}

impl From<&storage::StorageClass> for StorageClass {
    fn from(class: &storage::StorageClass) -> Self {
        Self {
            reclaim_policy: class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into()),
            mount_options: class.mount_options.clone().unwrap_or_default(),
        }
    }
}

/// `status.phase` of a PV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not looked at by the controller yet.
    Pending,
    /// Free.
    Available,
    /// Bound to a claim.
    Bound,
    /// Its claim is gone.
    Released,
    /// Its reclamation failed.
    Failed,
}

/// `spec.claimRef` of a PV.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimRef {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub name: String,
    /// UID of the claim; empty while only prebound by hand.
    pub uid: String,
}

impl std::fmt::Display for ClaimRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether a PV is known to have ever been bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It was bound.
    Used,
    /// It never was.
    Unused,
    /// Nobody can say.
    Unknown,
}

/// What is used of a PersistentVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pv {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// Label [`names::NODE_LABEL`].
    pub node_label: Option<String>,
    /// The annotations that are ours or matter to us.
    pub annotations: LiteMap<&'static str, Box<str>>,
    /// `spec.storageClassName`.
    pub class: String,
    /// `spec.local.path`; `None` for a PV of another type.
    pub path: Option<PathBuf>,
    /// Values of `kubernetes.io/hostname` in the first term of the node affinity.
    pub hostnames: Vec<String>,
    /// `spec.capacity.storage`.
    pub capacity: String,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// `spec.persistentVolumeReclaimPolicy`.
    pub reclaim_policy: String,
    /// `spec.claimRef`.
    pub claim: Option<ClaimRef>,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.lastPhaseTransitionTime`.
    pub phase_since: Option<Timestamp>,
    /// This process saw it in use, whatever it says now.
    pub seen_used: bool,
}

/// The annotations that are kept of a PV.
const KEPT_ANNOTATIONS: [&str; 13] = [
    names::PROVISIONED_BY,
    names::BOUND_BY_CONTROLLER,
    names::VOLUME_ID,
    names::VOLUME_ID_ORIGIN,
    names::USED,
    names::CLEANER,
    names::CLASS_DIRECTORY,
    names::RESOLVE,
    names::RETAINED,
    names::LEAVING,
    names::STAND_IN,
    names::LAST_CLAIM,
    names::CHECKPOINT,
];

/// A PV whose phase changed last within this time of its creation has never been bound: the first change is to
/// Available, and a bind needs a claim to be scheduled first.
const FIRST_TRANSITION_SECONDS: i64 = 2;

impl Pv {
    /// An annotation's value.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(Box::as_ref)
    }

    /// Whether it carries our finalizer.
    #[must_use]
    pub fn has_our_finalizer(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == names::FINALIZER)
    }

    /// Whether `uninstall` has taken it out of our hands: it is treated as without permission to patch.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.annotations.contains_key(names::LEAVING)
    }

    /// Whether it was made to stand in for one that was removed before its volume was scrubbed.
    #[must_use]
    pub fn is_stand_in(&self) -> bool {
        self.annotations.contains_key(names::STAND_IN)
    }

    /// Whether it stands in for another, and for nothing else: nobody has bound it by hand.
    #[must_use]
    pub fn only_stands_in(&self) -> bool {
        let being_bound = matches!(self.phase, Phase::Available | Phase::Pending)
            && self.claim_uid().is_some_and(|uid| uid != names::NO_CLAIM);
        self.is_stand_in() && self.phase != Phase::Bound && !being_bound
    }

    /// The claim that may still live, and would bind again to a PV of this name.
    #[must_use]
    pub fn last_claim(&self) -> Option<ClaimRef> {
        let mut parts = self.annotation(names::LAST_CLAIM)?.splitn(3, '/').map(str::to_owned);
        Some(ClaimRef {
            namespace: parts.next()?,
            name: parts.next()?,
            uid: parts.next()?,
        })
    }

    /// Whether Kubernetes still protects it.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.finalizers
            .iter()
            .any(|finalizer| finalizer == names::PV_PROTECTION)
    }

    /// UID of the claim, where the claimRef has one.
    #[must_use]
    pub fn claim_uid(&self) -> Option<&str> {
        self.claim
            .as_ref()
            .map(|claim| claim.uid.as_str())
            .filter(|uid| !uid.is_empty())
    }

    /// Whether it was ever bound. `watched_since_creation`: this process saw every change of it, without a gap.
    #[must_use]
    pub fn usage(&self, watched_since_creation: bool) -> Use {
        let never_bound = self.claim_uid().is_none_or(|uid| uid == names::NO_CLAIM);
        if self.annotation(names::STAND_IN) == Some("unknown") && never_bound {
            return Use::Unknown; // Whatever its claimRef says.
        }
        let used = self.seen_used
            || self.annotations.contains_key(names::USED)
            || self.claim_uid().is_some()
            || self.annotations.contains_key(names::BOUND_BY_CONTROLLER)
            || matches!(self.phase, Phase::Bound | Phase::Released | Phase::Failed);
        if used {
            return Use::Used;
        }
        let first_transition = match (self.created, self.phase_since) {
            (Some(created), Some(since)) => (since.as_second() - created.as_second()).abs() <= FIRST_TRANSITION_SECONDS,
            _ => false,
        };
        if watched_since_creation || first_transition {
            Use::Unused
        } else {
            Use::Unknown
        }
    }

    /// The entry's name: the last component of `local.path`.
    #[must_use]
    pub fn entry(&self) -> Option<&std::ffi::OsStr> {
        self.path.as_deref().and_then(Path::file_name)
    }

    /// The class directory on the node: the parent of `local.path`.
    #[must_use]
    pub fn host_dir(&self) -> Option<&Path> {
        self.path.as_deref().and_then(Path::parent)
    }
}

impl From<&core::PersistentVolume> for Pv {
    fn from(pv: &core::PersistentVolume) -> Self {
        let meta = &pv.metadata;
        let (spec, status) = (pv.spec.as_ref(), pv.status.as_ref());
        let annotation = |key| Some((key, meta.annotations.as_ref()?.get(key)?.as_str().into()));
        let kept: Vec<_> = KEPT_ANNOTATIONS.into_iter().filter_map(annotation).collect();
        let mut annotations = LiteMap::with_capacity(kept.len());
        annotations.extend(kept);
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            node_label: meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get(names::NODE_LABEL).cloned()),
            annotations,
            class: spec
                .and_then(|spec| spec.storage_class_name.clone())
                .unwrap_or_default(),
            path: spec.and_then(|spec| Some(PathBuf::from(&spec.local.as_ref()?.path))),
            hostnames: spec.map(hostnames).unwrap_or_default(),
            capacity: spec
                .and_then(|spec| spec.capacity.as_ref()?.get("storage"))
                .map(|quantity| quantity.0.clone())
                .unwrap_or_default(),
            mode: match spec.and_then(|spec| spec.volume_mode.as_deref()) {
                Some("Block") => VolumeMode::Block,
                _ => VolumeMode::Filesystem,
            },
            // The API server's default for a PV that was made by hand.
            reclaim_policy: spec
                .and_then(|spec| spec.persistent_volume_reclaim_policy.clone())
                .unwrap_or_else(|| "Retain".into()),
            claim: spec.and_then(|spec| spec.claim_ref.as_ref()).map(|claim| ClaimRef {
                namespace: claim.namespace.clone().unwrap_or_default(),
                name: claim.name.clone().unwrap_or_default(),
                uid: claim.uid.clone().unwrap_or_default(),
            }),
            phase: match status.and_then(|status| status.phase.as_deref()) {
                Some("Available") => Phase::Available,
                Some("Bound") => Phase::Bound,
                Some("Released") => Phase::Released,
                Some("Failed") => Phase::Failed,
                _ => Phase::Pending,
            },
            phase_since: status.and_then(|status| Some(status.last_phase_transition_time.as_ref()?.0)),
            seen_used: false,
        }
    }
}

fn hostnames(spec: &core::PersistentVolumeSpec) -> Vec<String> {
    let mut hostnames: Vec<String> = spec
        .node_affinity
        .iter()
        .flat_map(|affinity| affinity.required.iter())
        // Ours is the first; a class's selector follows.
        .flat_map(|required| required.node_selector_terms.first())
        .flat_map(|term| term.match_expressions.iter().flatten())
        .filter(|expression| expression.key == names::HOSTNAME_LABEL && expression.operator == "In")
        .flat_map(|expression| expression.values.iter().flatten().cloned())
        .collect();
    hostnames.shrink_to_fit();
    hostnames
}
