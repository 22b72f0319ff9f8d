//! Whether the storage of a volume fails, as far as the kernel says so without any I/O: from /sys and the mount table.
//!
//! At most four small files are read for each volume. What is said never counts anything up (a disk that dies has a new
//! number of errors every second): the same ailment is the same text.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::stat::{major, minor};
use nix::time::{ClockId, clock_gettime};

use crate::mounts::Mount;

#[cfg(test)]
mod tests;

/// What shows that a mounted filesystem, or the disk below it, fails. `uuid` is the filesystem's, where it is known: it
/// names a btrfs in /sys.
///
/// Looked at are: the options `shutdown` and `emergency_ro` in the mount table, the errors that ext4 notes in its
/// superblock (`/sys/fs/ext4/<device>/errors_count`, Documentation/ABI/testing/sysfs-fs-ext4) if the last one is of this
/// boot, those that btrfs counts
/// for each device (`/sys/fs/btrfs/<uuid>/devinfo/<id>/error_stats`, btrfs(5)), and the disk's state, see [`device`].
/// xfs counts nothing that lasts: after an error that matters it shuts down, and every call answers EIO, see
/// [`is_error`].
#[must_use]
pub fn filesystem(sysfs: &Path, mount: &Mount, uuid: Option<&str>) -> Option<String> {
    let recorded = match mount.fs_type.as_str() {
        "ext2" | "ext3" | "ext4" => ext4(sysfs, mount.dev),
        "btrfs" => uuid.and_then(|uuid| btrfs(sysfs, uuid)),
        _ => None,
    };
    let given_up = || {
        mount.gave_up.then(|| {
            format!(
                "its {} has given up after an error (dmesg says which) and takes no writes; unmount it, mend it (e2fsck, xfs_repair), and mount it again",
                mount.fs_type
            )
        })
    };
    recorded.or_else(given_up).or_else(|| device(sysfs, mount.dev))
}

/// What shows that a block device fails: its disk's `device/state`, which SCSI disks and NVMe namespaces have. A SCSI
/// disk is `offline` when its error handling has given up (drivers/scsi/scsi_sysfs.c), an NVMe controller `dead` when
/// its reset has failed (drivers/nvme/host/sysfs.c). Other states pass by themselves.
#[must_use]
pub fn device(sysfs: &Path, rdev: u64) -> Option<String> {
    if major(rdev) == 0 {
        return None; // Of a filesystem without a device of its own: tmpfs, btrfs.
    }
    let dir = device_dir(sysfs, rdev);
    // A partition's disk is the directory above it; the kernel takes the `..` after the symlink.
    let state = read(&dir.join("device/state")).or_else(|| read(&dir.join("../device/state")))?;
    matches!(state.as_str(), "offline" | "transport-offline" | "dead").then(|| {
        format!(
            "the kernel has given its disk up (state {state}); see dmesg, and replace the disk or mend its connection"
        )
    })
}

/// Whether an error says that the storage fails, rather than that something is not there or not permitted.
#[must_use]
pub fn is_error(errno: Errno) -> bool {
    matches!(
        errno,
        // EUCLEAN and EBADMSG are the EFSCORRUPTED and EFSBADCRC of ext4, xfs and btrfs.
        Errno::EIO | Errno::EUCLEAN | Errno::EBADMSG | Errno::ESHUTDOWN | Errno::EREMOTEIO
    )
}

fn ext4(sysfs: &Path, dev: u64) -> Option<String> {
    let name = fs::read_link(device_dir(sysfs, dev)).ok()?;
    let dir = sysfs.join("fs/ext4").join(name.file_name()?);
    let count: u64 = read(&dir.join("errors_count"))?.parse().ok()?;
    let last: Option<i64> = read(&dir.join("last_error_time")).and_then(|text| text.parse().ok());
    // The record stays until somebody runs e2fsck: an error of years ago, on the disk that the node boots from perhaps,
    // says nothing of the disk today.
    if count == 0 || last.is_some_and(|last| last < boot_seconds()) {
        return None;
    }
    let since = read(&dir.join("first_error_time"))
        .and_then(|text| text.parse().ok())
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map(|since| format!(" since {since}"))
        .unwrap_or_default();
    Some(format!(
        "its ext4 has recorded errors{since} (dmesg says which); unmount it and run e2fsck, which mends it and clears the record, and mount it again"
    ))
}

/// When the machine was booted, in seconds since 1970; 0 if that is not known.
fn boot_seconds() -> i64 {
    let seconds = |clock| clock_gettime(clock).map(|time| time.tv_sec());
    match (seconds(ClockId::CLOCK_REALTIME), seconds(ClockId::CLOCK_BOOTTIME)) {
        (Ok(now), Ok(since_boot)) => now - since_boot,
        _ => 0,
    }
}

fn btrfs(sysfs: &Path, uuid: &str) -> Option<String> {
    let devices = fs::read_dir(sysfs.join("fs/btrfs").join(uuid).join("devinfo")).ok()?;
    let stats = devices.filter_map(|device| read(&device.ok()?.path().join("error_stats")));
    let mut counted: Vec<String> = stats
        .flat_map(|stats| counters(&stats).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    counted.sort();
    counted.dedup();
    (!counted.is_empty()).then(|| {
        format!(
            "its btrfs has counted {} (btrfs device stats); mend it, then clear the count with btrfs device stats -z",
            counted.join(", ")
        )
    })
}

/// The names of the counters that are not 0, in lines such as `write_errs 3`.
fn counters(stats: &str) -> impl Iterator<Item = &str> {
    stats.lines().filter_map(|line| {
        let (name, count) = line.split_once(' ')?;
        (name.ends_with("_errs") && count.trim().parse::<u64>().ok()? > 0).then_some(name)
    })
}

fn device_dir(sysfs: &Path, dev: u64) -> PathBuf {
    sysfs.join(format!("dev/block/{}:{}", major(dev), minor(dev)))
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
