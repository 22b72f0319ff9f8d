//! The decisions, all of them: what every entry is and why, and what to do.
//!
//! [`plan`] is a pure function over plain data: no I/O, no clock, no client. The daemon and the dry run
//! both use it; there is no second implementation of any decision.

mod condition;
mod entry;
mod job;
mod release;
mod sight;
mod storage;
mod upkeep;
mod volume;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolume;

use crate::cluster::{ClaimRef, CleaningJob, Cluster, Mode, Node, Owner, Ownership, Pv, Use};
use crate::config::{Cleaner, Config};
use crate::identity::VolumeId;
use crate::memory::{Memory, ScrubState};
use crate::observed::{DirectoryKey, Observed};
use crate::reason::{Ailment, Held, Ignored};
use crate::scrub::progress::Snapshot;

use sight::{ClassDirectories, Entries, Sight};

/// Everything a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Classes that the configuration names, but that could not be read from it: not configured, and not removed.
    pub broken_classes: &'a BTreeSet<String>,
    /// How long to wait where the design says to wait.
    pub limits: Limits,
    /// What may be done with PVs.
    pub mode: Mode,
    /// What cleaning Jobs are made with.
    pub jobs: JobSettings<'a>,
    /// The own Node.
    pub node: &'a Node,
    /// Tells own PVs from others.
    pub ownership: &'a Ownership,
    /// What the node shows.
    pub observed: &'a Observed,
    /// What the API server says.
    pub cluster: &'a Cluster,
    /// What this process remembers.
    pub memory: &'a Memory,
    /// How far the running scrubs are, by the UID of the PV.
    pub progress: &'a BTreeMap<String, Snapshot>,
    /// The time, since the process's start.
    pub now: Duration,
}

/// What cleaning Jobs are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobSettings<'a> {
    /// `MY_NAMESPACE`.
    pub namespace: &'a str,
    /// `JOB_CONTAINER_IMAGE`.
    pub image: Option<&'a str>,
    /// `--scrub-bandwidth`.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// Periods and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `--grace-period`: how long a volume may be missing before its PV is withdrawn.
    pub grace_period: Duration,
    /// `--discovery-period`: how long a released volume rests on a blind node, twice.
    pub discovery_period: Duration,
    /// `--scrub-concurrency`: how many scrubs run at once.
    pub scrub_concurrency: usize,
    /// How many PVs are being made at once. Each is some kilobytes until it is made, and thousands of volumes may be new.
    pub creations: usize,
    /// `--scrub-retries`: after how many failures in a row a volume is quarantined.
    pub scrub_retries: u32,
}

/// What to do, and what every entry is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Every entry of every discovery directory, and every own PV without an entry.
    pub volumes: Vec<Volume>,
    /// What to do now. None needs another of the same plan.
    pub actions: Vec<Action>,
    /// What to tell.
    pub events: Vec<Notice>,
    /// When something is due that no wake announces.
    pub wake_at: Option<Duration>,
}

/// An entry, or a PV without one, with its state.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Where it is.
    pub directory: DirectoryKey,
    /// The entry's name.
    pub entry: OsString,
    /// What it is and why.
    pub state: State,
    /// Its PV, published or about to be.
    pub pv: Option<String>,
    /// Its PV exists.
    pub published: bool,
    /// `namespace/name` of the claim.
    pub claim: Option<String>,
    /// Capacity as a quantity.
    pub capacity: Option<String>,
    /// The storage's identity as seen now.
    pub id: Option<VolumeId>,
    /// Something wrong with it that does not change its state.
    pub warning: Option<String>,
    /// Whether its storage does its service.
    pub health: Health,
}

/// Whether the storage of a volume does its service, as far as this look has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// It could not be seen, or is no volume.
    #[default]
    Unknown,
    /// It does.
    Good,
    /// It does not.
    Bad(Ailment),
}

impl Health {
    /// What is wrong, if anything is known to be.
    #[must_use]
    pub fn ailment(self) -> Option<Ailment> {
        match self {
            Self::Bad(ailment) => Some(ailment),
            Self::Unknown | Self::Good => None,
        }
    }
}

/// The state of a volume.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// No volume.
    Ignored(Ignored),
    /// Free to be claimed, or about to be published.
    Available,
    /// Bound to a claim.
    Bound,
    /// Its claim is gone; it is to be scrubbed.
    Released,
    /// Being scrubbed.
    Scrubbing(Option<Snapshot>),
    /// Out of circulation.
    Held(Held),
    /// A system call on it hangs.
    Unresponsive(String),
    /// Published, and not there any more.
    Vanished(String),
}

impl State {
    /// All that [`State::word`] says.
    pub const WORDS: [&str; 8] = [
        "ignored",
        "available",
        "bound",
        "released",
        "scrubbing",
        "held",
        "unresponsive",
        "vanished",
    ];

    /// The state as one word: a metric label and a table cell.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ignored(_) => "ignored",
            Self::Available => "available",
            Self::Bound => "bound",
            Self::Released => "released",
            Self::Scrubbing(_) => "scrubbing",
            Self::Held(_) => "held",
            Self::Unresponsive(_) => "unresponsive",
            Self::Vanished(_) => "vanished",
        }
    }

    /// Why, without what to do about it, for the states that have a reason.
    #[must_use]
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Ignored(reason) => Some(reason.cause()),
            Self::Held(reason) => Some(reason.cause()),
            state => state.reason(),
        }
    }

    /// Why, for the states that have a reason.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Ignored(reason) => Some(reason.to_string()),
            Self::Held(reason) => Some(reason.to_string()),
            Self::Unresponsive(what) | Self::Vanished(what) => Some(what.clone()),
            Self::Scrubbing(Some(progress)) => Some(progress.to_string()),
            _ => None,
        }
    }
}

/// A PV as an action refers to it: every write carries UID and resourceVersion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PvRef {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

impl From<&Pv> for PvRef {
    fn from(pv: &Pv) -> Self {
        Self {
            name: pv.name.clone(),
            uid: pv.uid.clone(),
            resource_version: pv.resource_version.clone(),
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Publish a volume.
    Create(Box<PersistentVolume>),
    /// Change a PV.
    Patch {
        /// Which.
        pv: PvRef,
        /// How.
        patch: PvPatch,
        /// This lets the PV go: its end is our doing.
        lets_go: bool,
        /// Why, for the log.
        why: String,
    },
    /// Delete a PV.
    Delete {
        /// Which.
        pv: PvRef,
        /// The volume was scrubbed (or never used): the end of the PV is our doing.
        lets_go: bool,
        /// Why, for the log.
        why: String,
    },
    /// Scrub a volume.
    Scrub(Box<ScrubOrder>),
    /// Stop a scrub.
    AbortScrub {
        /// UID of its PV.
        uid: String,
        /// Why.
        why: String,
    },
    /// Read a claim.
    ReadClaim(ClaimRef),
    /// Scrub a device in a Job.
    CreateJob(Box<JobOrder>),
    /// Delete a cleaning Job, and end its pods first.
    DeleteJob {
        /// The PV that it is for.
        pv: String,
        /// The Job.
        job: Box<CleaningJob>,
        /// Why it failed, if it did and its volume waits for it.
        cause: Option<Box<FailureCause>>,
        /// Why, for the log.
        why: String,
    },
}

/// A change of a PV, as a merge patch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PvPatch {
    /// New value of the node label.
    pub node_label: Option<String>,
    /// Annotations to set, or to remove where `None`.
    pub annotations: BTreeMap<String, Option<String>>,
    /// The new, complete list of finalizers.
    pub finalizers: Option<Vec<String>>,
    /// New `spec.capacity.storage`.
    pub capacity: Option<String>,
}

impl PvPatch {
    /// Nothing to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a volume is scrubbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScrubKind {
    /// The files of a filesystem are removed.
    Filesystem,
    /// A block device is wiped in this way.
    Device(Cleaner),
}

/// The word for what a Job runs, for metrics: its command is the operator's.
pub const JOB_COMMAND: &str = "job";

impl ScrubKind {
    /// The kind as a word of a closed set, for metrics: a command of the operator's own is `command`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Filesystem | Self::Device(Cleaner::Fsclean) => "fsclean",
            Self::Device(Cleaner::Zero) => "zero",
            Self::Device(Cleaner::Discard) => "discard",
            Self::Device(Cleaner::Shred { .. }) => "shred",
            Self::Device(Cleaner::Quick) => "quick",
            Self::Device(Cleaner::Command(_)) => "command",
        }
    }
}

/// A scrub to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct ScrubOrder {
    /// The PV.
    pub pv: PvRef,
    /// UID of the claim that it was released from.
    pub claim_uid: Option<String>,
    /// Where the volume is.
    pub directory: DirectoryKey,
    /// The entry's name.
    pub entry: OsString,
    /// The storage that was published; `None` for a PV of the classic program.
    pub expected: Option<VolumeId>,
    /// How.
    pub kind: ScrubKind,
    /// `blockCleanerCommand` of a device, as it was written; empty for a filesystem.
    pub command: Vec<String>,
    /// Mounts of pods cannot be seen on this node.
    pub blind: bool,
    /// Capacity as on the PV, for the metrics.
    pub capacity: String,
}

/// A cleaning Job to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct JobOrder {
    /// The object, but for its `start-time`.
    pub job: Job,
    /// Name of the PV, live or gone.
    pub pv: String,
    /// Its UID.
    pub pv_uid: String,
    /// UID of the claim that it was released from.
    pub claim_uid: Option<String>,
    /// The device, which is looked at before.
    pub device: JobDevice,
}

/// The device of a Job: whether the Job would be held by it is seen by looking at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobDevice {
    /// Where this process sees it.
    pub path: PathBuf,
    /// The storage that was published; `None` for a PV of the classic program.
    pub expected: Option<VolumeId>,
}

/// Why a Job failed: what a Job's status says of it is only that it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureCause {
    /// A hold, which does not count as a failure.
    Held(Held),
    /// A hold if the device shows one now; else a failed scrub.
    Device(JobDevice),
}

/// Whether a notice warns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// `Normal`.
    Normal,
    /// `Warning`.
    Warning,
}

/// Something to tell about a PV, as an event. The same notice in every pass is one event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Notice {
    /// The PV's name.
    pub pv: String,
    /// The PV's UID.
    pub uid: String,
    /// The claim that is told, where it is not the PV: who has the claim may not see PVs.
    pub claim: Option<ClaimRef>,
    /// Normal or Warning.
    pub severity: Severity,
    /// The event's reason.
    pub reason: &'static str,
    /// The event's message.
    pub message: String,
}

/// Decides. Same inputs, same plan.
#[must_use]
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let entries = Entries::of(inputs.observed);
    let class_directories = ClassDirectories::of(inputs.config);
    let mut creating: HashMap<PathBuf, Vec<&str>> = HashMap::new();
    for pv in inputs.memory.creating.values() {
        if let Some(path) = &pv.path {
            creating.entry(path.clone()).or_default().push(&pv.name);
        }
    }
    // One that failed and is to be read before it is tried again takes no turn.
    let under_way = |name: &&String| inputs.memory.in_flight.contains(*name);
    let being_made = inputs.memory.creating.keys().filter(under_way).count();
    let mut planner = Planner {
        i: inputs,
        plan: Plan::default(),
        storage: storage::Index::of_published(inputs, &entries, &class_directories),
        entries,
        class_directories,
        creating,
        slots: inputs.limits.scrub_concurrency.saturating_sub(
            inputs
                .memory
                .scrubs
                .iter()
                // One that hangs does not keep others waiting.
                .filter(|(uid, scrub)| {
                    let progress = inputs.progress.get(*uid);
                    matches!(scrub.state, ScrubState::Running) && progress.is_none_or(|now| now.stalled.is_none())
                })
                .count(),
        ),
        creations: inputs.limits.creations.saturating_sub(being_made),
        occupied: HashMap::new(),
        names: HashSet::new(),
        wanted_jobs: BTreeSet::new(),
        acted: BTreeSet::new(),
    };
    for pv in inputs.cluster.pvs.values() {
        planner.names.insert(Cow::Borrowed(&pv.name));
        match inputs.ownership.of(pv) {
            Owner::Ours => planner.pv(pv),
            Owner::FormerNode => planner.former_node_pv(pv),
            Owner::Foreign => planner.foreign_pv(pv),
        }
    }
    for class in inputs.config.classes.values() {
        planner.class(class);
    }
    planner.finish()
}

/// The directories to look at: those of the configuration, and those of PVs that were published from elsewhere.
#[must_use]
pub fn directories(config: &Config, cluster: &Cluster) -> Vec<DirectoryKey> {
    let class_directories = ClassDirectories::of(config);
    let mut keys: BTreeSet<DirectoryKey> = class_directories.0.values().cloned().collect();
    keys.extend(cluster.pvs.values().filter_map(|pv| class_directories.of_pv(pv)));
    keys.into_iter().collect()
}

struct Planner<'a> {
    i: &'a Inputs<'a>,
    plan: Plan,
    entries: Entries<'a>,
    class_directories: ClassDirectories<'a>,
    /// Names of the PVs that may have been made for a path without that being known yet.
    creating: HashMap<PathBuf, Vec<&'a str>>,
    storage: storage::Index<'a>,
    slots: usize,
    /// So many more PVs may be made.
    creations: usize,
    /// Paths that a PV stands for, and its name.
    occupied: HashMap<&'a Path, Occupant<'a>>,
    /// Names of PVs that are taken.
    names: HashSet<Cow<'a, str>>,
    /// PVs whose Job is waited for or counted.
    wanted_jobs: BTreeSet<String>,
    /// PVs that something is done for in this pass: one thing at a time.
    acted: BTreeSet<String>,
}

#[derive(Clone, Copy)]
struct Occupant<'a> {
    pv: &'a str,
    class: &'a str,
    foreign: bool,
}

impl<'a> Planner<'a> {
    fn wake(&mut self, at: Duration) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |other| other.min(at)));
    }

    /// Whether something can be done for a PV now: no call for it is under way, and its retry is due.
    fn can_act(&mut self, pv_name: &str) -> bool {
        if self.i.memory.in_flight.contains(pv_name) {
            return false;
        }
        if let Some(retry) = self.i.memory.retries.get(pv_name)
            && retry.due > self.i.now
        {
            self.wake(retry.due);
            return false;
        }
        true
    }

    /// Adds an action for a PV, if it can be done now.
    fn act(&mut self, pv_name: &str, action: Action) {
        if !self.can_act(pv_name) {
            return;
        }
        self.acted.insert(pv_name.to_owned());
        self.plan.actions.push(action);
    }

    fn usage(&self, pv: &Pv) -> Use {
        pv.usage(self.i.memory.watched_since_creation.contains(&pv.uid))
    }

    fn notice(&mut self, pv: &Pv, severity: Severity, reason: &'static str, message: String) {
        self.plan.events.push(Notice {
            pv: pv.name.clone(),
            uid: pv.uid.clone(),
            claim: None,
            severity,
            reason,
            message,
        });
    }

    fn finish(mut self) -> Plan {
        self.unwanted_jobs();
        self.plan
            .volumes
            .sort_by(|a, b| (&a.directory, &a.entry).cmp(&(&b.directory, &b.entry)));
        self.plan
    }
}
