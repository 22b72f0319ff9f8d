//! One scrub from its order to its end: the checks right before the first destructive call, on the descriptor that stays
//! on the storage, and the scrub itself. Runs on a thread of its own.

mod wipe;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use kube::Client;
use tokio::runtime::Handle;

use crate::cluster::{Mode, Phase, Pv};
use crate::config::Cleaner;
use crate::devices::{self, DeviceError, ExclusiveDevice};
use crate::failpoint;
use crate::health;
use crate::identity::{Comparison, VolumeId, part, read};
use crate::mounts::{Mount, Table};
use crate::names;
use crate::observed::{DeviceFacts, HostView};
use crate::plan::{ScrubKind, ScrubOrder};
use crate::reason::Held;
use crate::scan::{self, ScanSettings, Tables};
use crate::scrub::checkpoint::Notes;
use crate::scrub::command::{self, Invocation};
use crate::scrub::filesystem::{FilesystemOutcome, MountRoot};
use crate::scrub::limits::{IdlePriority, Limits};
use crate::scrub::progress::{Cancel, Progress};
use crate::scrub::{ScrubError, filesystem};

/// Runs one order.
pub struct Scrubber {
    /// Reads the PV once more before anything is touched.
    pub client: Client,
    /// Where calls of the API are made.
    pub runtime: Handle,
    /// What may be done with PVs.
    pub mode: Mode,
    /// Where mounts and devices are looked up.
    pub scan: ScanSettings,
    /// The mount tables.
    pub tables: Tables,
    /// What to scrub.
    pub order: ScrubOrder,
    /// How an earlier scrub of this release left the volume.
    pub earlier_stamp: Option<String>,
    /// What bounds it.
    pub limits: Limits,
    /// How far it is.
    pub progress: Progress,
    /// Stops it.
    pub cancel: Cancel,
    /// Where it notes how far a wipe is; `None` where nothing can be noted on PVs.
    pub notes: Option<Notes>,
    /// Nothing has happened in this process that a checkpoint of an interrupted wipe does not outlive.
    pub may_resume: bool,
}

/// A volume that is clean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clean {
    /// Directory entries that were removed.
    pub entries_removed: u64,
    /// How the volume looked at the end.
    pub stamp: Option<String>,
    /// It needs no second look: mounts of pods can be seen, or nothing has touched it since the first.
    pub settled: bool,
}

impl Scrubber {
    /// Checks, scrubs, verifies.
    ///
    /// # Errors
    /// [`ScrubError::Held`] where a check says no, and nothing was touched.
    pub fn run(&self) -> Result<Clean, ScrubError> {
        let _idle = IdlePriority::of_this_thread();
        failpoint::hit!("scrub.begin");
        let clean = match &self.order.kind {
            ScrubKind::Filesystem => self.filesystem(),
            ScrubKind::Device(cleaner) => self.device(cleaner),
        }?;
        failpoint::hit!("scrub.end");
        Ok(clean)
    }

    fn filesystem(&self) -> Result<Clean, ScrubError> {
        let root = filesystem::open_mount_root(&self.order.directory.mount_dir, &self.order.entry)?;
        let mount = examine_filesystem(&root, &self.scan, &self.tables, self.order.expected.as_ref())?;
        let mut check = || {
            self.check_pv()?; // A call of the API takes its time: what it may let happen is looked for after it.
            self.check_mounts(&mount)
        };
        let outcome = filesystem::filesystem(&root, &mut check, &self.progress, &self.cancel)?;
        let stamp = stamp(&outcome);
        let untouched = outcome.entries_removed == 0 && self.earlier_stamp.as_ref() == Some(&stamp);
        Ok(Clean {
            entries_removed: outcome.entries_removed,
            stamp: Some(stamp),
            settled: !self.order.blind || untouched,
        })
    }

    /// Nothing is mounted below the volume, here or on the host, and no pod has it mounted.
    fn check_mounts(&self, mount: &Mount) -> Result<(), ScrubError> {
        let (mount, own) = as_it_is(mount.mount_id, &self.tables)?;
        let host = self.host_mounts(mount.is_of_a_directory())?;
        check_nested(&mount, &own, &host)?;
        self.check_pods(&host, |dev, subtree| dev == mount.dev && overlap(subtree, &mount.root))
    }

    /// The host's mounts. The order was made seeing them: without that sight nothing is touched.
    fn host_mounts(&self, anew: bool) -> Result<Arc<Table>, ScrubError> {
        let tables = &self.tables;
        match if anew { tables.host_anew() } else { tables.host() } {
            (HostView::Blind(reason), _) if !self.order.blind => Err(ScrubError::Held(Held::Unreadable(reason))),
            (_, mounts) => Ok(mounts),
        }
    }

    fn check_pods(&self, host: &Table, same: impl Fn(u64, &Path) -> bool) -> Result<(), ScrubError> {
        let user = host
            .pods()
            .iter()
            .find(|pod| pod.pv == self.order.pv.name || same(pod.dev, &pod.subtree));
        match user {
            None => Ok(()),
            Some(pod) => Err(ScrubError::Held(Held::InUse(format!(
                "pod {} has it mounted (as PV {})",
                pod.pod_uid, pod.pv
            )))),
        }
    }

    fn device(&self, cleaner: &Cleaner) -> Result<Clean, ScrubError> {
        let path = self.order.directory.mount_dir.join(&self.order.entry);
        let device = claim(&path, &self.scan, &self.tables)?;
        let facts = examine_device(&device, &path, &self.scan, &self.tables, self.order.expected.as_ref())?;
        let mut check = || {
            let host = self.host_mounts(false)?;
            self.check_pods(&host, |dev, _| dev == facts.dev)?;
            self.check_pv()
        };
        match command::resolve(cleaner, &self.order.command) {
            Cleaner::Command(words) => {
                self.begin(&mut check, |_| Err("a command leaves and takes none".into()))?;
                // mkfs, wipefs and blkdiscard want it exclusively themselves.
                drop(device);
                let invocation = Invocation {
                    words: &words,
                    variable: command::DEVICE_VARIABLE,
                    volume: &path,
                    stall_timeout: self.limits.stall_timeout,
                };
                self.progress.leave_to_others();
                failpoint::hit!("scrub.command.before");
                command::run(&invocation, &self.cancel)?;
                failpoint::hit!("scrub.command.after");
            }
            native => self.wipe(&native, &device.file, &facts, &mut check)?,
        }
        Ok(Clean {
            entries_removed: 0,
            stamp: None,
            settled: true,
        })
    }

    /// The PV as it is now, if it still says that its volume is to be scrubbed: read anew, for what the watch shows may be
    /// late.
    fn check_pv(&self) -> Result<Pv, ScrubError> {
        let changed = |what: &str| ScrubError::Held(Held::InUse(format!("its PV has changed: {what}")));
        // Not a failure of the scrub, which would count: nothing was touched.
        let found = self
            .runtime
            .block_on(crate::api::read(&self.client, &self.order.pv.name))
            .map_err(|error| ScrubError::Held(Held::Unreadable(format!("its PV cannot be read: {error}"))))?;
        let Some(pv) = found.as_deref().map(Pv::from) else {
            return Err(changed("it is gone"));
        };
        if pv.uid != self.order.pv.uid {
            return Err(changed("it has another UID"));
        }
        if pv.claim_uid() != self.order.claim_uid.as_deref() {
            return Err(changed("its claimRef"));
        }
        let returning = match self.mode {
            Mode::Patch if !pv.is_leaving() => pv.deleting && pv.phase != Phase::Bound && !pv.is_protected(),
            _ => pv.phase == Phase::Released,
        };
        if !returning {
            return Err(changed("it is not released any more"));
        }
        let told = (self.mode == Mode::Patch || pv.is_stand_in()) && pv.annotation(names::RETAINED) == Some("scrub");
        if pv.reclaim_policy != "Delete" && !told {
            return Err(changed(&format!("its reclaim policy is {}", pv.reclaim_policy)));
        }
        Ok(pv)
    }
}

/// Takes a device exclusively, for a scrub.
///
/// # Errors
/// `Held`: another has it (`InUse`), there is no block device (`NotMounted`), or it is read-only. `Failed`: it cannot be
/// opened.
pub fn claim(path: &Path, scan: &ScanSettings, tables: &Tables) -> Result<ExclusiveDevice, ScrubError> {
    devices::claim_exclusive(path).map_err(|error| match error {
        DeviceError::Busy => ScrubError::Held(Held::InUse(
            users(path, scan, tables).unwrap_or_else(|| error.to_string()),
        )),
        DeviceError::NotABlockDevice => ScrubError::Held(Held::NotMounted(error.to_string())),
        DeviceError::System {
            errno: nix::errno::Errno::ENOENT | nix::errno::Errno::ENXIO,
            ..
        } => ScrubError::Held(Held::NotMounted(error.to_string())),
        // What a read-only device answers, but so does a filesystem that is mounted with nodev.
        DeviceError::System {
            errno: nix::errno::Errno::EACCES | nix::errno::Errno::EPERM | nix::errno::Errno::EROFS,
            ..
        } if is_read_only(path) => ScrubError::Held(Held::ReadOnly),
        other => ScrubError::Failed(anyhow!(other).context(format!("cannot open {}", path.display()))),
    })
}

/// Who has a device, in the words in which it is said of one that is not published.
fn users(device: &Path, scan: &ScanSettings, tables: &Tables) -> Option<String> {
    let node = devices::open_node(nix::fcntl::AT_FDCWD, device, true).ok()?;
    let facts = devices::probe(node.as_fd(), &scan::surroundings(scan, tables)).ok()?;
    facts
        .users
        .filter(|users| !users.is_empty())
        .map(|users| users.join(", "))
}

fn is_read_only(device: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let says_so = || {
        let rdev = std::fs::metadata(device).ok()?.rdev();
        let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).ok()
    };
    says_so().is_some_and(|text| text.trim() == "1")
}

/// Whether the device that is held is the storage that is expected, nobody uses it, and it does not fail.
///
/// # Errors
/// `Held`: it is other storage, in use, or failing. `Failed`: it cannot be examined.
pub(crate) fn examine_device(
    device: &ExclusiveDevice,
    path: &Path,
    scan: &ScanSettings,
    tables: &Tables,
    expected: Option<&VolumeId>,
) -> Result<DeviceFacts, ScrubError> {
    let facts = device
        .facts(&scan::surroundings(scan, tables))
        .with_context(|| format!("cannot examine {}", path.display()))?;
    compare(expected, || facts.id.clone().map_err(|error| anyhow!(error)))?;
    match &facts.users {
        Some(users) if !users.is_empty() => Err(ScrubError::Held(Held::InUse(users.join(", ")))),
        _ => sound(facts.failing.clone()).map(|()| facts),
    }
}

/// Whether the open directory is the filesystem that is expected, and does not fail.
///
/// # Errors
/// `Held`: it is other storage, not mounted any more, or failing. `Failed`: it cannot be examined.
pub(crate) fn examine_filesystem(
    root: &MountRoot,
    scan: &ScanSettings,
    tables: &Tables,
    expected: Option<&VolumeId>,
) -> Result<Mount, ScrubError> {
    let id = crate::sys::mount_id(root.as_fd()).context("statx")?;
    let (mount, _) = as_it_is(id, tables)?;
    let boot_id = scan::boot_id();
    compare(expected, || {
        read::filesystem(root.as_fd(), &mount, &boot_id, &scan.sysfs)
    })?;
    let uuid = expected.and_then(|id| id.get(part::UUID));
    sound(health::filesystem(&scan.sysfs, &mount, uuid))?;
    Ok(mount)
}

/// Nothing shows that the storage fails.
fn sound(failing: Option<String>) -> Result<(), ScrubError> {
    failing.map_or(Ok(()), |what| Err(ScrubError::Held(Held::Failing(what))))
}

/// A mount as it is now, and the own mount table.
///
/// # Errors
/// `Held`: it is not mounted any more. `Failed`: the own mount table cannot be read.
pub(crate) fn as_it_is(mount_id: u64, tables: &Tables) -> Result<(Mount, Arc<Table>), ScrubError> {
    let unreadable = |error: std::io::Error| ScrubError::Failed(error.into());
    let mut table = tables.own().map_err(unreadable)?;
    // The directory that it shows may be elsewhere by now, or something mounted below it.
    if table.get(mount_id).is_some_and(Mount::is_of_a_directory) {
        table = tables.own_anew().map_err(unreadable)?;
    }
    let mount = table.get(mount_id).cloned();
    let gone = || ScrubError::Held(Held::NotMounted("it was unmounted a moment ago".into()));
    Ok((mount.ok_or_else(gone)?, table))
}

/// Nothing is mounted below the volume, here or on the host.
///
/// # Errors
/// `Held`: something is.
pub(crate) fn check_nested(mount: &Mount, own: &Table, host: &Table) -> Result<(), ScrubError> {
    let mut nested = own.nesting().below(mount.dev, &mount.root);
    nested.extend(host.nesting().below(mount.dev, &mount.root));
    if nested.is_empty() {
        return Ok(());
    }
    nested.sort();
    nested.dedup();
    let points = nested.iter().map(|point| point.display().to_string()).collect();
    Err(ScrubError::Held(Held::NestedMounts(points)))
}

/// Whether one of two subtrees of a filesystem contains the other.
pub(crate) fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn compare(expected: Option<&VolumeId>, found: impl FnOnce() -> anyhow::Result<VolumeId>) -> Result<(), ScrubError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let found = found().map_err(|error| ScrubError::Held(Held::IdentityUnknown(format!("{error:#}"))))?;
    match expected.compare(&found) {
        Comparison::Same => Ok(()),
        Comparison::Different | Comparison::LostWithReboot => Err(ScrubError::Held(Held::WrongStorage {
            expected: expected.to_string(),
            found: found.to_string(),
        })),
    }
}

/// How a scrubbed filesystem looks, to see later whether anybody has touched it.
fn stamp(outcome: &FilesystemOutcome) -> String {
    let (ctime, mtime) = (outcome.ctime, outcome.mtime);
    format!(
        "{}.{:09} {}.{:09}",
        ctime.seconds, ctime.nanoseconds, mtime.seconds, mtime.nanoseconds
    )
}
