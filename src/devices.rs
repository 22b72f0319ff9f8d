//! Block devices: what they are, who uses them, and taking one exclusively.
//!
//! A published device is only looked at. Opening it with `O_EXCL` would make a pod's mkfs fail by chance, so that, and
//! everything else about its use, is asked for by name: see [`probe`] and [`ExclusiveDevice`].

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::identity::read;
use crate::observed::DeviceFacts;
use crate::sys;
use sysfs::Block;
use users::Surroundings;

pub mod signature;
pub mod sysfs;
#[cfg(test)]
mod tests;
pub mod users;

/// Why a device could not be opened or taken.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Another holder has it: it is mounted, swap, part of another device, or opened exclusively by a program.
    #[error("another holder has it open exclusively (a mount, swap, device mapper, md, or a program such as mkfs)")]
    Busy,
    /// It is no block device.
    #[error("not a block device")]
    NotABlockDevice,
    /// A system call failed.
    #[error("{call}: {errno}")]
    System {
        /// Which.
        call: &'static str,
        /// With what.
        errno: Errno,
    },
    /// /sys does not know it.
    #[error("looking it up in /sys: {0}")]
    Sysfs(#[source] std::io::Error),
    /// A read failed.
    #[error("reading it: {0}")]
    Read(#[source] std::io::Error),
}

fn system(call: &'static str) -> impl Fn(Errno) -> DeviceError {
    move |errno| DeviceError::System { call, errno }
}

/// Opens the device behind an `O_PATH` descriptor. Nothing but a block device is ever opened: a FIFO would block, and a
/// tape would rewind.
fn reopen(node: BorrowedFd<'_>, flags: OFlag) -> Result<(File, u64), DeviceError> {
    let status = sys::status(node).map_err(system("statx"))?;
    if status.file_type() != nix::libc::S_IFBLK {
        return Err(DeviceError::NotABlockDevice);
    }
    let link = format!("/proc/self/fd/{}", node.as_raw_fd());
    // Without O_NONBLOCK the kernel may wait for a medium.
    let fd = open(
        link.as_str(),
        flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| match errno {
        Errno::EBUSY => DeviceError::Busy,
        errno => DeviceError::System { call: "open", errno },
    })?;
    Ok((File::from(fd), status.rdev))
}

/// What there is to know about the device behind an `O_PATH` descriptor without disturbing anyone: its users and
/// signature are left out.
///
/// # Errors
/// Where it cannot be opened for reading or is not known to /sys.
pub fn examine(node: BorrowedFd<'_>, around: &Surroundings) -> Result<DeviceFacts, DeviceError> {
    let (file, rdev) = reopen(node, OFlag::O_RDONLY)?;
    facts(&file, rdev, around).map(|(facts, _)| facts)
}

/// As [`examine`], and who uses it, and whether it is a member of something larger. Opens it with `O_EXCL` for a
/// moment, which would make a concurrent mkfs or mount fail: only for devices that are not published.
///
/// # Errors
/// As [`examine`]; a signature that cannot be read is one, too.
pub fn probe(node: BorrowedFd<'_>, around: &Surroundings) -> Result<DeviceFacts, DeviceError> {
    match reopen(node, OFlag::O_RDONLY | OFlag::O_EXCL) {
        Ok((file, rdev)) => probed(&file, rdev, around),
        Err(DeviceError::Busy) => {
            let (file, rdev) = reopen(node, OFlag::O_RDONLY)?;
            let (mut facts, block) = facts(&file, rdev, around)?;
            let mut users = users::of(&block, around);
            if users.is_empty() {
                users.push(DeviceError::Busy.to_string());
            }
            facts.users = Some(users);
            Ok(facts)
        }
        Err(error) => Err(error),
    }
}

/// The facts of a device that is held exclusively.
fn probed(file: &File, rdev: u64, around: &Surroundings) -> Result<DeviceFacts, DeviceError> {
    let (mut facts, block) = facts(file, rdev, around)?;
    facts.users = Some(users::of(&block, around));
    let member = signature::member_of(file, facts.capacity_bytes).map_err(DeviceError::Read)?;
    facts.member_of = member.map(str::to_owned);
    Ok(facts)
}

fn facts(file: &File, rdev: u64, around: &Surroundings) -> Result<(DeviceFacts, Block), DeviceError> {
    let fd = file.as_fd();
    let block = Block::find(&around.sysfs, rdev).map_err(DeviceError::Sysfs)?;
    // Nothing attached is a loop device without identity; it says so itself.
    let attached = if block.is_loop() {
        sys::loop_status(fd).ok()
    } else {
        None
    };
    let facts = DeviceFacts {
        dev: rdev,
        kernel_name: block.name(),
        capacity_bytes: sys::block_bytes(fd).map_err(system("BLKGETSIZE64"))?,
        read_only: sys::block_read_only(fd).map_err(system("BLKROGET"))?,
        failing: crate::health::device(&around.sysfs, rdev),
        id: read::device_of(&block, attached.as_ref(), &around.boot_id).map_err(|error| format!("{error:#}")),
        storage_keys: read::storage_keys(&block, attached.as_ref()),
        users: None,
        member_of: None,
    };
    Ok((facts, block))
}

/// A device that is held open for reading and writing with `O_EXCL`: as long as this lives, nobody can mount it, swap
/// to it, build on it, or open it exclusively. Loop devices and programs that do not ask for exclusivity are not kept
/// out; [`facts`](Self::facts) shows the former.
#[derive(Debug)]
pub struct ExclusiveDevice {
    /// The device.
    pub file: File,
    /// Its device number.
    pub rdev: u64,
}

impl ExclusiveDevice {
    /// What there is to know about it now, with its users apart from us and its signature.
    ///
    /// # Errors
    /// As [`probe`].
    pub fn facts(&self, around: &Surroundings) -> Result<DeviceFacts, DeviceError> {
        probed(&self.file, self.rdev, around)
    }
}

/// Takes the device at a path, following symlinks, exclusively and for writing.
///
/// # Errors
/// [`DeviceError::Busy`] if another has it.
pub fn claim_exclusive(path: &Path) -> Result<ExclusiveDevice, DeviceError> {
    let node = open_node(AT_FDCWD, path, true).map_err(system("open"))?;
    claim(node.as_fd())
}

/// Takes the device behind an `O_PATH` descriptor exclusively and for writing.
///
/// # Errors
/// [`DeviceError::Busy`] if another has it.
pub fn claim(node: BorrowedFd<'_>) -> Result<ExclusiveDevice, DeviceError> {
    let (file, rdev) = reopen(node, OFlag::O_RDWR | OFlag::O_EXCL)?;
    Ok(ExclusiveDevice { file, rdev })
}

/// An `O_PATH` descriptor: it names a file without opening it, and triggers no automount.
pub(crate) fn open_node(dir: BorrowedFd<'_>, path: &Path, follow: bool) -> nix::Result<OwnedFd> {
    let flags = if follow {
        OFlag::O_PATH
    } else {
        OFlag::O_PATH | OFlag::O_NOFOLLOW
    };
    openat(
        dir,
        path.as_os_str().as_bytes(),
        flags | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}
