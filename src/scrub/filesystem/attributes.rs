//! What stands in the way of a removal, and what a removal leaves: inode flags and extended attributes.

use crate::scrub::{ScrubError, failed};
use anyhow::anyhow;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, IFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CStr;

/// The flags that forbid the removal of a file, or of what is in a directory (`chattr +i`, `+a`).
const LOCKS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// The longest list of names that the kernel gives out (XATTR_LIST_MAX, linux/limits.h).
const XATTR_LIST_MAX_BYTES: usize = 65_536;

/// A file whose flags were cleared so that one of its names can be removed.
pub(super) struct Unlocked {
    file: OwnedFd,
    flags: IFlags,
}

impl Unlocked {
    /// Sets the flags again if the file lives on under another name: a hard link may be outside the volume, where a
    /// bind mount shows only a part of a filesystem.
    pub(super) fn restore_if_linked(&self) {
        let linked = rustix::fs::fstat(&self.file).is_ok_and(|status| status.st_nlink > 0);
        if linked && let Err(error) = rustix::fs::ioctl_setflags(&self.file, self.flags) {
            tracing::warn!(%error, "could not set the flags of a file again that has further hard links");
        }
    }
}

/// Clears the flags that forbid removals; `None` if there are none, or the filesystem has no flags.
///
/// The descriptor must not be O_PATH.
pub(super) fn unlock(file: OwnedFd) -> Result<Option<Unlocked>, Errno> {
    Ok(clear_locks(&file)?.map(|flags| Unlocked { file, flags }))
}

/// As [`unlock`], for a descriptor that is borrowed; returns the flags as they were.
pub(super) fn clear_locks(file: impl AsFd) -> Result<Option<IFlags>, Errno> {
    let flags = match rustix::fs::ioctl_getflags(&file) {
        Ok(flags) => flags,
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !flags.intersects(LOCKS) {
        return Ok(None);
    }
    rustix::fs::ioctl_setflags(&file, flags - LOCKS)?;
    Ok(Some(flags))
}

/// A descriptor that takes ioctls from an O_PATH one. `None` if it is no regular file: others are not opened, because
/// opening a device or a FIFO has effects, and they carry no flags.
pub(super) fn reopen_regular(path: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let status = rustix::fs::fstat(path)?;
    if !rustix::fs::FileType::from_raw_mode(status.st_mode).is_file() {
        return Ok(None);
    }
    let link = format!("/proc/self/fd/{}", path.as_raw_fd());
    rustix::fs::open(
        link,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map(Some)
}

/// Removes what a tenant can leave on the root directory itself: its user.* attributes and POSIX ACLs.
pub(super) fn clear_xattrs(root: impl AsFd, path: &str) -> Result<(), ScrubError> {
    let mut list = vec![0_u8; XATTR_LIST_MAX_BYTES];
    let length = match rustix::fs::flistxattr(&root, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => {
            return Err(failed(error, || {
                format!("cannot list the extended attributes of {path}")
            }));
        }
    };
    for name in list[..length]
        .split_inclusive(|byte| *byte == 0)
        .filter(|name| is_tenants(name))
    {
        let name = CStr::from_bytes_with_nul(name)
            .map_err(|_| anyhow!("the kernel gave an unterminated attribute name of {path}"))?;
        match rustix::fs::fremovexattr(&root, name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => {
                return Err(failed(error, || {
                    format!(
                        "cannot remove the extended attribute {} of {path}",
                        name.to_string_lossy()
                    )
                }));
            }
        }
    }
    Ok(())
}

/// Whether the filesystem still takes changes. A journal that could not be written, because the disk failed, takes back
/// all removals with the next mount; and syncfs says nothing of it where the kernel's own commit, every few seconds, was
/// what failed. Every later transaction is refused, though, also this one, which changes nothing.
pub(super) fn check_journal(root: impl AsFd) -> Result<(), Errno> {
    match rustix::fs::fremovexattr(&root, c"user.local-volume-provisioner.none") {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        // No attributes of users here (nouser_xattr, or none at all; or a sticky directory): it takes a real change.
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
            let name = c".local-volume-provisioner";
            rustix::fs::mkdirat(&root, name, Mode::empty())?;
            rustix::fs::unlinkat(&root, name, AtFlags::REMOVEDIR)
        }
        Err(error) => Err(error),
    }
}

/// Whether a tenant sets attributes of this name. Labels (security.*) belong to the node, trusted.* to overlayfs.
fn is_tenants(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}
