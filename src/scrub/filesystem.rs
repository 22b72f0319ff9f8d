//! Removing everything in a filesystem volume: through descriptors that stay on it, and nothing else.
//!
//! What is kept is the mount root directory itself with its owner, its mode and its security labels: they are the
//! operator's (or kubelet's, with fsGroup), not data. Its user.* attributes and ACLs go. `lost+found` is an ordinary
//! entry and is removed, as the classic provisioner did: fsck makes it again when it needs it.

mod attributes;
mod level;
mod open;
mod removal;

#[cfg(test)]
mod tests;

use super::progress::{Cancel, Progress};
use super::{ScrubError, failed};
use crate::failpoint;
use crate::reason::Held;
use anyhow::anyhow;
use open::{DIRECTORY, FileId, Opener};
use removal::Removal;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags, RawDir, StatVfsMountFlags, Statx, StatxAttributes};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The root directory of a mount, open and locked (`flock`) until it is dropped. It stays on that mount whatever is
/// mounted, moved or unmounted at its path.
#[derive(Debug)]
pub struct MountRoot {
    dir: OwnedFd,
    path: PathBuf,
    opener: Opener,
}

/// A moment by the filesystem's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Since the epoch.
    pub seconds: i64,
    /// Within the second.
    pub nanoseconds: u32,
}

/// What a scrub left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesystemOutcome {
    /// How many directory entries were removed.
    pub entries_removed: u64,
    /// The root directory's ctime after the scrub: it changes with its attributes and with every entry made in it.
    pub ctime: Stamp,
    /// The root directory's mtime after the scrub.
    pub mtime: Stamp,
}

impl MountRoot {
    /// The directory's path, for messages only.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory is empty, by a descriptor of its own.
    ///
    /// # Errors
    ///
    /// What opening or reading the directory answers.
    pub fn is_empty(&self) -> std::io::Result<bool> {
        let dir = self.fresh()?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&dir, &mut buffer);
        while let Some(entry) = entries.next() {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the volume is as a scrub left it: empty, and the root directory not changed since.
    ///
    /// # Errors
    ///
    /// What reading the directory answers.
    pub fn is_untouched_since(&self, outcome: &FilesystemOutcome) -> std::io::Result<bool> {
        let status = open::status(&self.dir)?;
        Ok(ctime(&status) == outcome.ctime && mtime(&status) == outcome.mtime && self.is_empty()?)
    }

    /// A new open file description of the same directory, which shares no position with the others.
    fn fresh(&self) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.dir, c".", DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }
}

impl Drop for MountRoot {
    /// Closing would unlock too, but not while a child process that is being spawned still has the descriptor.
    fn drop(&mut self) {
        rustix::fs::flock(&self.dir, FlockOperation::Unlock).ok();
    }
}

impl AsFd for MountRoot {
    /// For checking the identity of what is about to be scrubbed, on the very descriptor that is used for it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Opens the mount that is at `entry`, one name directly in the discovery directory `mount_dir`, and locks it.
///
/// # Errors
///
/// `Held`: there is no mount root at that name (`NotMounted`; a symlink is none), the discovery directory cannot be
/// read (`Unreadable`), or another scrub holds the lock (`InUse`). `Failed`: `entry` is no name, or a call failed.
pub fn open_mount_root(mount_dir: &Path, entry: &OsStr) -> Result<MountRoot, ScrubError> {
    open_mount_root_by(Opener::new(), mount_dir, entry)
}

fn open_mount_root_by(opener: Opener, mount_dir: &Path, entry: &OsStr) -> Result<MountRoot, ScrubError> {
    let path = mount_dir.join(entry);
    let name = component(entry)?;
    let parent = rustix::fs::open(
        mount_dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| ScrubError::Held(Held::Unreadable(format!("{}: {error}", mount_dir.display()))))?;
    let not_mounted = |why: &str| ScrubError::Held(Held::NotMounted(format!("{} {why}", path.display())));
    let dir = opener.open(&parent, &name, DIRECTORY).map_err(|error| match error {
        Errno::NOENT => not_mounted("does not exist"),
        Errno::LOOP => not_mounted("is a symlink"),
        Errno::NOTDIR => not_mounted("is not a directory"),
        error => failed(error, || format!("cannot open {path:?}")),
    })?;
    let examine = |error| failed(error, || format!("cannot examine {path:?}"));
    let status = open::status(&dir).map_err(examine)?;
    if !is_mount_root(&parent, &dir, &status).map_err(examine)? {
        return Err(not_mounted("is a directory, but nothing is mounted on it"));
    }
    if status.stx_nlink == 0 {
        return Err(not_mounted("is a mount whose source directory was deleted"));
    }
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(MountRoot { dir, path, opener }),
        Err(Errno::WOULDBLOCK) => Err(ScrubError::Held(Held::InUse(format!(
            "another process holds the lock (flock) of {}",
            path.display()
        )))),
        Err(error) => Err(failed(error, || format!("cannot lock (flock) {path:?}"))),
    }
}

/// The entry's name, which must be one component: what is opened lies directly in the discovery directory.
fn component(entry: &OsStr) -> Result<CString, ScrubError> {
    let bytes = entry.as_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
        return Err(ScrubError::Failed(anyhow!("{entry:?} is not the name of an entry")));
    }
    CString::new(bytes).map_err(|_| ScrubError::Failed(anyhow!("{entry:?} contains a NUL byte")))
}

fn is_mount_root(parent: &OwnedFd, dir: &OwnedFd, status: &Statx) -> Result<bool, Errno> {
    // Since Linux 5.8 the kernel says so itself.
    if status.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    Ok(open::mount_id(dir, status)? != FileId::of(parent)?.mount())
}

/// Removes everything below the mount root, on this mount only, and makes that durable.
///
/// `before_first_unlink` is called once, after the mount was examined and before anything is changed; its error ends
/// the scrub with nothing touched. It decides what cannot be seen from the descriptor: the PV's policy, mounts of pods,
/// and mounts below in the own and the host's mount table. A mount below that it did not see is not entered either:
/// it ends the scrub where it is met.
///
/// # Errors
///
/// `Held`: read-only, or a mount below. `Failed`: an entry cannot be removed, or the volume is still being written to.
/// `Cancelled`. After each of them a further call goes on.
pub fn filesystem(
    root: &MountRoot,
    before_first_unlink: &mut dyn FnMut() -> Result<(), ScrubError>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<FilesystemOutcome, ScrubError> {
    let failed = |what: &'static str| move |error: Errno| failed(error, || format!("cannot {what} {:?}", root.path));
    let mount = rustix::fs::fstatvfs(root).map_err(failed("examine"))?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(ScrubError::Held(Held::ReadOnly));
    }
    let dir = root.fresh().map_err(failed("open"))?;
    let mut removal = Removal::new(dir, &root.path, &root.opener, progress, cancel)?;
    cancel.check()?;
    before_first_unlink()?;
    failpoint::hit!("scrub.filesystem.checked");

    removal.pass()?;
    while !is_empty(root)? {
        removal.pass()?;
    }
    failpoint::hit!("scrub.filesystem.emptied");
    attributes::clear_locks(root).map_err(failed(
        "clear the immutable or append-only flag (CAP_LINUX_IMMUTABLE; or use chattr -ia) of",
    ))?;
    attributes::clear_xattrs(root, &format!("{:?}", root.path))?;
    // Without this a power cut could bring the files back after the volume was published again. Of the whole
    // filesystem, because the removals below the root may be in transactions that fsync of the root does not cover.
    rustix::fs::syncfs(root).map_err(failed("write back (syncfs)"))?;
    failpoint::hit!("scrub.filesystem.synced");
    attributes::check_journal(root).map_err(failed("write back"))?;

    let status = open::status(root).map_err(failed("examine"))?;
    if !is_empty(root)? {
        return Err(removal::still_written(&root.path));
    }
    Ok(FilesystemOutcome {
        entries_removed: removal.removed(),
        ctime: ctime(&status),
        mtime: mtime(&status),
    })
}

fn is_empty(root: &MountRoot) -> Result<bool, ScrubError> {
    root.is_empty()
        .map_err(|error| ScrubError::Failed(anyhow::Error::new(error).context(format!("cannot read {:?}", root.path))))
}

fn ctime(status: &Statx) -> Stamp {
    Stamp {
        seconds: status.stx_ctime.tv_sec,
        nanoseconds: status.stx_ctime.tv_nsec,
    }
}

fn mtime(status: &Statx) -> Stamp {
    Stamp {
        seconds: status.stx_mtime.tv_sec,
        nanoseconds: status.stx_mtime.tv_nsec,
    }
}
