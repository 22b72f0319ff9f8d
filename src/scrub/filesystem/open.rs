//! Opening directories without ever following a link or leaving a mount.

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use std::cell::Cell;
use std::ffi::CStr;

/// openat2 answers EAGAIN when a rename or a mount happened anywhere on the system during the lookup. Each retry is a
/// new chance of a few microseconds, so 128 in a row mean that something is wrong.
const OPENAT2_ATTEMPTS: usize = 128;

/// For reading the entries of a directory, and nothing but a directory: a FIFO or a device is refused unopened.
pub(super) const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// What a descriptor stands on: the inode, seen through this mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

impl FileId {
    /// The mount's id, which is not used twice while a descriptor on it is open.
    pub(super) fn mount(self) -> u64 {
        self.mount
    }

    pub(super) fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let status = status(&fd)?;
        Ok(Self::from_statx(&status, mount_id(&fd, &status)?))
    }

    fn from_statx(status: &Statx, mount: u64) -> Self {
        Self {
            mount,
            device: (status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
        }
    }
}

/// statx of what a descriptor stands on.
pub(super) fn status(fd: impl AsFd) -> Result<Statx, Errno> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
        mask,
    )
}

/// The mount id from statx, or, before Linux 5.8, from /proc.
pub(super) fn mount_id(fd: impl AsFd, status: &Statx) -> Result<u64, Errno> {
    if status.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        return Ok(status.stx_mnt_id);
    }
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    mount_id_from_fdinfo(&text).ok_or(Errno::NOSYS)
}

/// The mount id in the text of /proc/<pid>/fdinfo/<fd> (proc_pid_fdinfo(5)).
fn mount_id_from_fdinfo(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// How paths are resolved: by openat2, or, where that is missing (before Linux 5.6) or forbidden (old seccomp profiles
/// answer EPERM), one component at a time.
#[derive(Debug)]
pub(super) struct Opener {
    openat2: Cell<bool>,
}

impl Opener {
    pub(super) fn new() -> Self {
        Self {
            openat2: Cell::new(true),
        }
    }

    /// An opener that never tries openat2.
    #[cfg(test)]
    pub(super) fn component_wise() -> Self {
        Self {
            openat2: Cell::new(false),
        }
    }

    /// Opens one component beneath a directory, which may be the root of another mount.
    pub(super) fn open(
        &self,
        dir: impl AsFd,
        name: &CStr,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        self.resolve(&dir, name, flags, ResolveFlags::BENEATH)
    }

    /// Opens one component beneath a directory that is on mount `mount`; EXDEV if something is mounted there.
    pub(super) fn open_on_mount(
        &self,
        dir: impl AsFd,
        name: &CStr,
        flags: OFlags,
        mount: u64,
    ) -> Result<OwnedFd, Errno> {
        self.stay_on_mount(&dir, name, flags, ResolveFlags::BENEATH, mount)
    }

    /// Opens the parent of a directory that is on mount `mount`; EXDEV if the directory is that mount's root.
    pub(super) fn open_parent(&self, dir: impl AsFd, mount: u64) -> Result<OwnedFd, Errno> {
        self.stay_on_mount(&dir, c"..", DIRECTORY, ResolveFlags::empty(), mount)
    }

    fn stay_on_mount(
        &self,
        dir: &impl AsFd,
        name: &CStr,
        flags: OFlags,
        resolve: ResolveFlags,
        mount: u64,
    ) -> Result<OwnedFd, Errno> {
        let fd = self.resolve(dir, name, flags, resolve | ResolveFlags::NO_XDEV)?;
        // NO_XDEV has settled it; without openat2 only the mount id tells.
        if !self.openat2.get() && mount_id(&fd, &status(&fd)?)? != mount {
            return Err(Errno::XDEV);
        }
        Ok(fd)
    }

    fn resolve(
        &self,
        dir: &impl AsFd,
        name: &CStr,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = resolve | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..OPENAT2_ATTEMPTS {
            if !self.openat2.get() {
                return rustix::fs::openat(dir, name, flags, Mode::empty());
            }
            match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOSYS | Errno::PERM) => self.openat2.set(false),
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_mount_id_is_read_from_fdinfo() {
        let text = "pos:\t0\nflags:\t02100000\nmnt_id:\t27\nino:\t2\n";
        assert_eq!(mount_id_from_fdinfo(text), Some(27));
        assert_eq!(mount_id_from_fdinfo("pos:\t0\n"), None);
    }

    #[test]
    fn both_sources_of_the_mount_id_agree() {
        let dir = rustix::fs::open("/", DIRECTORY, Mode::empty()).unwrap();
        let mut status = status(&dir).unwrap();
        let by_statx = mount_id(&dir, &status).unwrap();
        status.stx_mask &= !StatxFlags::MNT_ID.bits();
        assert_eq!(mount_id(&dir, &status).unwrap(), by_statx);
    }

    #[test]
    fn neither_way_follows_a_link_or_crosses_a_mount() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("directory")).unwrap();
        symlink("directory", temp.path().join("link")).unwrap();
        let dir = rustix::fs::open(temp.path(), DIRECTORY, Mode::empty()).unwrap();
        let root = rustix::fs::open("/", DIRECTORY, Mode::empty()).unwrap();
        for opener in [Opener::new(), Opener::component_wise()] {
            let mount = FileId::of(&dir).unwrap().mount();
            let child = opener
                .open_on_mount(&dir, c"directory", DIRECTORY, mount)
                .unwrap();
            let parent = opener.open_parent(&child, mount).unwrap();
            assert_eq!(FileId::of(&parent).unwrap(), FileId::of(&dir).unwrap());
            let refused = opener.open(&dir, c"link", DIRECTORY).unwrap_err();
            assert!(matches!(refused, Errno::LOOP | Errno::NOTDIR), "{refused}");
            let mount = FileId::of(&root).unwrap().mount();
            let refused = opener
                .open_on_mount(&root, c"proc", DIRECTORY, mount)
                .unwrap_err();
            assert_eq!(refused, Errno::XDEV);
            opener.open(&root, c"proc", DIRECTORY).unwrap();
        }
    }
}
