//! Who uses a block device now.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sysfs::Block;
use crate::mounts::Table;
use crate::sys;

/// A loop device that something is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedLoop {
    /// The kernel's name of it.
    pub name: String,
    /// What is attached, as the kernel shows it to this process.
    pub backing: PathBuf,
    /// Device number of the block device that is attached, 0 for a regular file; `None` if it could not be asked.
    pub rdev: Option<u64>,
}

impl AttachedLoop {
    /// Asks the loop device; may block for as long as the backing file's filesystem does.
    ///
    /// Where its node in `dev` cannot be opened (a container has those that were there when it started), the path
    /// decides if it leads somewhere here.
    #[must_use]
    pub fn examine(name: &str, backing: &Path, dev: &Path) -> Self {
        let ask = || {
            let node = fs::OpenOptions::new()
                .read(true)
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
                .open(dev.join(name))
                .ok()?;
            sys::loop_status(node.as_fd()).ok().map(|status| status.rdev)
        };
        let by_path = || {
            let metadata = fs::metadata(backing).ok()?;
            Some(if metadata.file_type().is_block_device() {
                metadata.rdev()
            } else {
                0
            })
        };
        Self::unexamined(name, backing).with_rdev(ask().or_else(by_path))
    }

    /// A loop device that was not asked, or did not answer.
    #[must_use]
    pub fn unexamined(name: &str, backing: &Path) -> Self {
        Self {
            name: name.to_owned(),
            backing: backing.to_path_buf(),
            rdev: None,
        }
    }

    fn with_rdev(self, rdev: Option<u64>) -> Self {
        Self { rdev, ..self }
    }

    /// Whether it may sit on one of these devices, if it cannot be asked: kubelet attaches loop devices to raw block
    /// volumes by a path of its own, others by one below /dev.
    fn suspicious(&self) -> bool {
        let path = self.backing.as_os_str().as_bytes();
        path.starts_with(b"/dev/") || path.windows(15).any(|part| part == b"/volumeDevices/")
    }
}

/// What is known of the rest of the node when a device is looked at.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Root of /sys.
    pub sysfs: PathBuf,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The mounts of this process's namespace, and of the host's where they are known.
    pub mounts: Vec<Arc<Table>>,
    /// All loop devices that something is attached to.
    pub loops: Vec<AttachedLoop>,
    /// What the kernel swaps to: paths as in /proc/swaps.
    pub swaps: Vec<PathBuf>,
}

/// The paths in `/proc/swaps`: the first column, escaped as in mountinfo, below a line of headings.
#[must_use]
pub fn parse_swaps(swaps: &[u8]) -> Vec<PathBuf> {
    let lines = swaps.split(|&byte| byte == b'\n').skip(1);
    lines
        .filter_map(|line| line.split(|&byte| byte == b' ' || byte == b'\t').next())
        .filter(|path| !path.is_empty())
        .map(|path| PathBuf::from(std::ffi::OsString::from_vec(crate::mounts::unescape(path))))
        .collect()
}

/// What uses the device, its partitions, or the disk that it is a partition of, as far as the kernel shows it; in words
/// for the operator.
#[must_use]
pub fn of(block: &Block, around: &Surroundings) -> Vec<String> {
    let mut users = Vec::new();
    let mut pieces = vec![block.clone()];
    pieces.extend(block.partitions());
    for piece in &pieces {
        let what = piece.name();
        users.extend(
            piece
                .holders()
                .into_iter()
                .map(|holder| format!("{what} is part of {holder}")),
        );
        let mut points: Vec<&Path> = around
            .mounts
            .iter()
            .flat_map(|table| table.mounts())
            .filter(|mount| mount.dev == piece.rdev)
            .map(|mount| mount.mount_point.as_path())
            .collect();
        points.sort();
        points.dedup();
        users.extend(
            points
                .into_iter()
                .map(|point| format!("{what} is mounted at {point:?}")),
        );
        if around.swaps.iter().any(|path| is_device(path, piece)) {
            users.push(format!("{what} is swap space"));
        }
    }
    let numbers: Vec<u64> = pieces.iter().map(|piece| piece.rdev).chain(block.disk_rdev()).collect();
    for attached in &around.loops {
        let (name, path) = (&attached.name, &attached.backing);
        match attached.rdev {
            Some(rdev) if numbers.contains(&rdev) => users.push(format!("{name} is attached to it as {path:?}")),
            None if attached.suspicious() => {
                users.push(format!(
                    "{name}, attached to {path:?}, may sit on it and cannot be asked"
                ));
            }
            _ => {}
        }
    }
    users
}

/// Whether a path of /proc/swaps, which is that of the host, means this device.
fn is_device(path: &Path, block: &Block) -> bool {
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => metadata.rdev() == block.rdev,
        _ => path
            .strip_prefix("/dev")
            .is_ok_and(|name| name == Path::new(&block.name())),
    }
}
