//! What one look at the node has shown: plain data, made by [`crate::scan`] and judged by [`crate::plan`].
//!
//! Facts only. Whether an entry qualifies as a volume, and what to do about it, is decided by the planner.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::VolumeId;

/// A discovery directory: the class it belongs to and where it is on the node and in this process. A clone is the same
/// one: every volume has it.
#[derive(Debug, Clone)]
pub struct DirectoryKey(Arc<Place>);

/// What a [`DirectoryKey`] says.
#[derive(Debug)]
pub struct Place {
    /// The class, which is also the name of its StorageClass.
    pub class: String,
    /// The directory as the node (and kubelet) sees it; the parent of every `local.path`.
    pub host_dir: PathBuf,
    /// The directory as this process sees it.
    pub mount_dir: PathBuf,
}

impl DirectoryKey {
    /// A discovery directory of a class.
    #[must_use]
    pub fn new(class: impl Into<String>, host_dir: impl Into<PathBuf>, mount_dir: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Place {
            class: class.into(),
            host_dir: host_dir.into(),
            mount_dir: mount_dir.into(),
        }))
    }

    /// Compared byte by byte: a pass compares the same few keys for every volume, and paths compare by component.
    fn words(&self) -> (&str, &OsStr, &OsStr) {
        (&self.class, self.host_dir.as_os_str(), self.mount_dir.as_os_str())
    }
}

impl Deref for DirectoryKey {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0
    }
}

impl PartialEq for DirectoryKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.words() == other.words()
    }
}

impl Eq for DirectoryKey {}

impl Ord for DirectoryKey {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        self.words().cmp(&other.words())
    }
}

impl PartialOrd for DirectoryKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for DirectoryKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words().hash(state);
    }
}

/// Everything that one look at the node has shown.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// The discovery directories that were asked for.
    pub directories: BTreeMap<DirectoryKey, Directory>,
    /// What pods have mounted, from the host's mount table.
    pub host: HostView,
    /// The kernel's boot id, which tells one run of the machine from the next.
    pub boot_id: String,
}

/// The host's own mount table, where it is mounted into the container.
#[derive(Debug, Clone, PartialEq)]
pub enum HostView {
    /// Readable: these are the pods' mounts of local volumes.
    Seen(Vec<PodMount>),
    /// Missing or unreadable, with the reason: the node is blind to mounts of pods.
    Blind(String),
}

impl Default for HostView {
    fn default() -> Self {
        Self::Blind("not read yet".into())
    }
}

/// A mount whose mount point contains `/pods/<uid>/volumes/kubernetes.io~local-volume/<pv>`, or is one of a `subPath` of
/// such a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodMount {
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the PersistentVolume that the pod mounted.
    pub pv: String,
    /// Device number of the filesystem that is mounted there, as the mount table shows it.
    pub dev: u64,
    /// The mounted subtree of that filesystem (mountinfo's root field).
    pub subtree: PathBuf,
}

/// One discovery directory.
#[derive(Debug, Clone, PartialEq)]
pub enum Directory {
    /// Its entries, sorted by name.
    Read(Vec<Entry>),
    /// It does not exist (ENOENT).
    Missing,
    /// It exists, or may exist, but could not be read: nothing is known about its entries. An unreadable directory
    /// is not an empty one.
    Unreadable(String),
}

/// One name directly inside a discovery directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name as the kernel gives it.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq)]
pub enum EntryKind {
    /// A directory that is the root of a mount.
    Mount(Box<MountFacts>),
    /// A directory that is not a mount point.
    PlainDirectory,
    /// A block device, or a symlink that resolves to one.
    Device(Box<DeviceFacts>),
    /// A regular file.
    File,
    /// A FIFO; never opened.
    Fifo,
    /// A socket; never opened.
    Socket,
    /// A character device; never opened.
    CharacterDevice,
    /// A symlink whose target does not exist.
    DanglingSymlink,
    /// A symlink to a directory: never a volume.
    SymlinkToDirectory,
    /// A symlink to anything else that is no block device.
    SymlinkToOther,
    /// Looking at it failed with this error.
    Failed(String),
    /// A mount point or a block device whose storage answers with errors, which are named.
    Failing(String),
    /// A system call on it did not return within `--syscall-timeout`.
    Unresponsive(String),
}

/// A directory that is the root of a mount.
#[derive(Debug, Clone, PartialEq)]
pub struct MountFacts {
    /// Device number of the filesystem as the mount table shows it, comparable with [`PodMount::dev`]. It is the `st_dev`
    /// of its files except on btrfs, where every subvolume has another.
    pub dev: u64,
    /// The mounted subtree of the filesystem (mountinfo's root field); `/` unless it is a bind mount.
    pub subtree: PathBuf,
    /// Filesystem type as in mountinfo.
    pub fs_type: String,
    /// Mounted read-only, or the filesystem itself is.
    pub read_only: bool,
    /// What shows that the filesystem or its disk fails, though it can be examined: see [`crate::health`].
    pub failing: Option<String>,
    /// The source directory was deleted (mountinfo's root ends in `//deleted`, or nlink is 0).
    pub deleted: bool,
    /// Size of the whole filesystem in bytes (statfs).
    pub capacity_bytes: u64,
    /// What identifies the storage; an error text where it could not be read.
    pub id: Result<VolumeId, String>,
    /// Mount points found below the volume, in our own or in the host's mount table.
    pub nested: Vec<PathBuf>,
}

/// A block device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFacts {
    /// `st_rdev` of the device.
    pub dev: u64,
    /// Its kernel name, such as `sda1` or `loop0`.
    pub kernel_name: String,
    /// Size in bytes.
    pub capacity_bytes: u64,
    /// BLKROGET, or /sys/block/*/ro.
    pub read_only: bool,
    /// What shows that it fails, though it can be examined: see [`crate::health`].
    pub failing: Option<String>,
    /// What identifies the storage; an error text where it could not be read.
    pub id: Result<VolumeId, String>,
    /// Keys under which the same storage could be met again through another node or link (dev_t, loop backing file,
    /// WWN). Two devices that share a key are the same storage, in part or as a whole: a disk has the keys of its
    /// partitions, too, a partition only its own.
    pub storage_keys: Vec<String>,
    /// What uses it now. Empty if nothing does; `None` if that was not probed (a published device is never probed:
    /// mkfs in a pod would fail by chance).
    pub users: Option<Vec<String>>,
    /// The signature of an LVM, ZFS or RAID member; `None` without one or when not probed.
    pub member_of: Option<String>,
}
