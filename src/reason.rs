//! Why a volume is not in circulation: one closed set of reasons, with one wording.
//!
//! The same words stand on the event, the command line and the log; [`Held::slug`] and
//! [`Ignored::slug`] are the metric labels.

use std::fmt;

/// Why an entry of a discovery directory is no volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ignored {
    /// A plain file.
    File,
    /// A directory that is not a mount point.
    NotAMountPoint,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A symlink whose target does not exist.
    DanglingSymlink,
    /// A symlink to a directory.
    SymlinkToDirectory,
    /// A symlink to something that is neither a directory nor a block device.
    SymlinkToOther,
    /// The name is not UTF-8.
    NotUtf8,
    /// The name does not match the class's `namePattern`.
    NamePattern(String),
    /// A mount in a class of mode Block.
    FilesystemInBlockClass,
    /// The source directory of the mount was deleted.
    SourceDeleted,
    /// Mounted or set read-only.
    ReadOnly,
    /// In use by something else: mounted, held, swap.
    InUse(String),
    /// Member of an LVM, ZFS or RAID set.
    MemberOf(String),
    /// The same storage is served under another entry.
    Duplicate(String),
    /// Too small to hold anything.
    NoCapacity,
    /// Looking at it failed.
    Failed(String),
}

impl Ignored {
    /// The reason as a metric label.
    #[must_use]
    pub fn slug(&self) -> &'static str {
        match self {
            Self::File => "file",
            Self::NotAMountPoint => "not-a-mount-point",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::CharacterDevice => "character-device",
            Self::DanglingSymlink => "dangling-symlink",
            Self::SymlinkToDirectory => "symlink-to-directory",
            Self::SymlinkToOther => "symlink-to-other",
            Self::NotUtf8 => "not-utf8",
            Self::NamePattern(_) => "name-pattern",
            Self::FilesystemInBlockClass => "filesystem-in-block-class",
            Self::SourceDeleted => "source-deleted",
            Self::ReadOnly => "read-only",
            Self::InUse(_) => "in-use",
            Self::MemberOf(_) => "member-of",
            Self::Duplicate(_) => "duplicate",
            Self::NoCapacity => "no-capacity",
            Self::Failed(_) => "failed",
        }
    }
}

impl Ignored {
    /// What to do about it, as far as its words say so.
    #[must_use]
    pub fn action(&self) -> Option<String> {
        let action = match self {
            Self::NotAMountPoint => "mount a filesystem (or bind a directory) on it",
            Self::SymlinkToDirectory => "use a bind mount instead",
            Self::NotUtf8 => "rename it",
            Self::SourceDeleted => "unmount it",
            Self::MemberOf(_) => "wipe it (wipefs) if it is meant to be a volume",
            _ => return None,
        };
        Some(action.to_owned())
    }

    /// Its words without what to do.
    #[must_use]
    pub fn cause(&self) -> String {
        let mut words = String::new();
        let _ = self.write_cause(&mut words); // Into memory.
        words
    }

    fn write_cause(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Self::File => write!(f, "a plain file; only mount points and block devices are volumes"),
            Self::NotAMountPoint => write!(f, "a directory that is not a mount point"),
            Self::Fifo => write!(f, "a FIFO"),
            Self::Socket => write!(f, "a socket"),
            Self::CharacterDevice => write!(f, "a character device"),
            Self::DanglingSymlink => write!(f, "a symlink whose target does not exist"),
            Self::SymlinkToDirectory => write!(f, "a symlink to a directory"),
            Self::SymlinkToOther => write!(f, "a symlink to something that is no block device"),
            Self::NotUtf8 => write!(f, "its name is not UTF-8, which a PersistentVolume's path must be"),
            Self::NamePattern(pattern) => write!(f, "its name does not match namePattern {pattern:?}"),
            Self::FilesystemInBlockClass => write!(
                f,
                "a mounted filesystem in a class with volumeMode Block, which takes block devices only"
            ),
            Self::SourceDeleted => write!(f, "the directory behind this mount was deleted"),
            Self::ReadOnly => write!(f, "read-only"),
            Self::InUse(by) => write!(f, "in use: {by}"),
            Self::MemberOf(set) => write!(f, "carries the signature of {set}"),
            Self::Duplicate(other) => write!(f, "the same storage as {other}, which is served already"),
            Self::NoCapacity => write!(f, "its capacity is 0 bytes"),
            Self::Failed(error) => write!(f, "cannot be examined: {error}"),
        }
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_cause(f)?;
        with_action(f, self.action())
    }
}

/// Why a volume is held: out of circulation until its cause ends or an operator decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// The path shows other storage than the PV was published with.
    WrongStorage {
        /// The volume id on the PV.
        expected: String,
        /// The volume id that is there now.
        found: String,
    },
    /// The identity of what is at the path could not be read.
    IdentityUnknown(String),
    /// The entry exists but is not the mount or device that was published.
    NotMounted(String),
    /// Mount points below the volume.
    NestedMounts(Vec<String>),
    /// In use by a pod's mount, or by something else on the node.
    InUse(String),
    /// Read-only: it cannot be scrubbed.
    ReadOnly,
    /// The class of the PV is neither configured nor noted on the PV.
    ClassNotConfigured,
    /// The StorageClass object does not exist.
    StorageClassMissing,
    /// The StorageClass has a reclaim policy that local volumes cannot have.
    UnsupportedPolicy(String),
    /// Released with policy Retain.
    Retain,
    /// Released with policy Retain and being deleted: waits for the operator's word.
    RetainDeleting,
    /// The operator said `retained=keep`: the data stays, so the entry is not published while it is there.
    Kept,
    /// Nobody can say whether it was ever bound.
    UnknownUse,
    /// A claim was bound, or about to be, when its PV was removed, and may bind again to a PV of that name.
    ClaimMayLive(String),
    /// Its PV was removed before it was scrubbed; one that stands in for it is being made.
    RemovedByForce,
    /// A PV that another program made stands for this path.
    ForeignPv(String),
    /// In phase Failed.
    PhaseFailed,
    /// Another program's finalizer keeps the PV.
    ForeignFinalizer(String),
    /// A cleaning Job for it is at work.
    JobRunning(String),
    /// No container of its cleaning Job has run yet.
    JobPending {
        /// Its namespace.
        namespace: String,
        /// Its name.
        job: String,
        /// When it was made, as RFC 3339.
        since: String,
        /// It was ended by its deadline, and is made anew.
        timed_out: bool,
    },
    /// The cleaner that it was published with cannot be run.
    CleanerUnavailable(String),
    /// The directory or the entry could not be read.
    Unreadable(String),
    /// The blind node's rest after a release, and again after the scrub.
    Resting(String),
    /// The last scrub failed; it is tried again.
    ScrubFailed {
        /// Why.
        error: String,
        /// How many times in a row.
        failures: u32,
    },
    /// The scrub failed so often that it is not tried again until the operator says so.
    Quarantined {
        /// Why it failed last.
        error: String,
        /// How many times in a row.
        failures: u32,
    },
    /// What must be written on its PV may not be written.
    NotPermitted(String),
}

impl Held {
    /// The reason as a metric label.
    #[must_use]
    pub fn slug(&self) -> &'static str {
        match self {
            Self::WrongStorage { .. } => "wrong-storage",
            Self::IdentityUnknown(_) => "identity-unknown",
            Self::NotMounted(_) => "not-mounted",
            Self::NestedMounts(_) => "nested-mounts",
            Self::InUse(_) => "in-use",
            Self::ReadOnly => "read-only",
            Self::ClassNotConfigured => "class-not-configured",
            Self::StorageClassMissing => "storage-class-missing",
            Self::UnsupportedPolicy(_) => "unsupported-policy",
            Self::Retain => "retain",
            Self::RetainDeleting => "retain-deleting",
            Self::Kept => "kept",
            Self::UnknownUse => "unknown-use",
            Self::ClaimMayLive(_) => "claim-may-live",
            Self::RemovedByForce => "removed-by-force",
            Self::ForeignPv(_) => "foreign-pv",
            Self::PhaseFailed => "phase-failed",
            Self::ForeignFinalizer(_) => "foreign-finalizer",
            Self::JobRunning(_) => "job-running",
            Self::JobPending { .. } => "job-pending",
            Self::CleanerUnavailable(_) => "cleaner-unavailable",
            Self::Unreadable(_) => "unreadable",
            Self::Resting(_) => "resting",
            Self::ScrubFailed { .. } => "scrub-failed",
            Self::Quarantined { .. } => "quarantined",
            Self::NotPermitted(_) => "not-permitted",
        }
    }
}

impl Held {
    /// What to do about it, as far as its words say so.
    #[must_use]
    pub fn action(&self) -> Option<String> {
        let action = match self {
            Self::WrongStorage { .. } => {
                "bring the right one back, or accept this one with the annotation local-volume-provisioner/resolve=adopt"
            }
            Self::IdentityUnknown(_) => {
                "mend that, or accept what is there with the annotation local-volume-provisioner/resolve=adopt"
            }
            Self::NotMounted(_) => "bring it back",
            Self::NestedMounts(_) => "unmount that first",
            Self::ReadOnly => "make it writable, and look for I/O errors (dmesg)",
            Self::ClassNotConfigured => "configure the class",
            Self::StorageClassMissing => "create it",
            Self::UnsupportedPolicy(_) => "use Delete or Retain",
            Self::RetainDeleting | Self::UnknownUse => {
                "decide with the annotation local-volume-provisioner/retained=scrub (erase and publish again) or =keep"
            }
            Self::Kept => {
                "take its entry out of the discovery directory (unmount and remove the name) to let the PV go"
            }
            Self::ClaimMayLive(_) => {
                "delete the claim, or, where claims may not be read and it is known to be gone, set the annotation local-volume-provisioner/retained=scrub"
            }
            Self::ForeignPv(_) => "look at it, and delete it if it should not be there",
            Self::PhaseFailed => "delete it to have the volume scrubbed and published again",
            Self::Quarantined { .. } => {
                "mend the cause and have it tried again with the annotation local-volume-provisioner/resolve=retry"
            }
            Self::JobPending { namespace, job, .. } => {
                return Some(format!(
                    "look at it and its pods (kubectl -n {namespace} describe job {job}; kubectl -n {namespace} describe pod -l job-name={job}); it goes on when that is mended"
                ));
            }
            _ => return None,
        };
        Some(action.to_owned())
    }

    /// Its words without what to do.
    #[must_use]
    pub fn cause(&self) -> String {
        let mut words = String::new();
        let _ = self.write_cause(&mut words); // Into memory.
        words
    }

    fn write_cause(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Self::WrongStorage { expected, found } => write!(
                f,
                "the path shows other storage than was published: expected {expected}, found {found}"
            ),
            Self::IdentityUnknown(error) => write!(f, "the identity of the storage cannot be read: {error}"),
            Self::NotMounted(what) => write!(f, "what was published is not there: {what}"),
            Self::NestedMounts(points) => write!(f, "mounted below it: {}", points.join(", ")),
            Self::InUse(by) => write!(f, "still in use: {by}"),
            Self::ReadOnly => write!(f, "read-only, so it cannot be scrubbed"),
            Self::ClassNotConfigured => write!(
                f,
                "its class is not in storageClassMap and the PV does not say where its directory is"
            ),
            Self::StorageClassMissing => write!(f, "its StorageClass does not exist"),
            Self::UnsupportedPolicy(policy) => {
                write!(f, "reclaimPolicy {policy} is not supported")
            }
            Self::Retain => write!(f, "released with reclaim policy Retain; its data is kept"),
            Self::RetainDeleting => write!(f, "released with reclaim policy Retain and being deleted"),
            Self::Kept => write!(f, "its data is kept (local-volume-provisioner/retained=keep)"),
            Self::UnknownUse => write!(f, "it cannot be known whether it was ever bound"),
            Self::ClaimMayLive(claim) => {
                write!(f, "claim {claim} may live, and would bind to the next PV of that name")
            }
            Self::RemovedByForce => write!(
                f,
                "its PV was removed before the volume was scrubbed; a PV that stands in for it is being made"
            ),
            Self::ForeignPv(pv) => write!(
                f,
                "PV {pv}, which this provisioner did not make (or made while the node had another UID), stands for this path or has its name"
            ),
            Self::PhaseFailed => write!(f, "the PV is in phase Failed"),
            Self::ForeignFinalizer(finalizers) => write!(f, "another program's finalizer keeps its PV: {finalizers}"),
            Self::JobRunning(job) => write!(f, "cleaning Job {job} is at work on it"),
            Self::JobPending {
                namespace,
                job,
                since,
                timed_out,
            } => {
                let what = if *timed_out {
                    "never started, and was ended by its deadline; it is made anew"
                } else {
                    "has not started"
                };
                write!(
                    f,
                    "cleaning Job {job}, made {since}, {what}; JOB_CONTAINER_IMAGE cannot be pulled, jobTolerations lacks a taint of the node, the node is full, or privileged pods are refused in {namespace}"
                )
            }
            Self::CleanerUnavailable(cleaner) => write!(f, "{cleaner}"),
            Self::Unreadable(error) => write!(f, "cannot be examined: {error}"),
            Self::Resting(until) => write!(
                f,
                "resting, because mounts of pods cannot be seen without /host/mountinfo: {until}"
            ),
            Self::ScrubFailed { error, .. } => write!(f, "its scrub failed, and is tried again: {error}"),
            Self::Quarantined { error, failures } => {
                write!(f, "quarantined, because its scrub failed {failures} times: {error}")
            }
            Self::NotPermitted(what) => write!(f, "not permitted: {what}"),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_cause(f)?;
        with_action(f, self.action())
    }
}

fn with_action(f: &mut fmt::Formatter<'_>, action: Option<String>) -> fmt::Result {
    match action {
        Some(action) => write!(f, "; {action}"),
        None => Ok(()),
    }
}
