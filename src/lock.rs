//! One writer per discovery directory: an flock(2) on its descriptor, held for the life of the process.
//!
//! The lock belongs to the directory's inode, not to its path, so one directory that is served under two paths is
//! locked once, and two processes that reach it through different mounts exclude each other.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::{Mode, major, minor};

use crate::sys;

/// Why a discovery directory is not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error("another provisioner{} works on {}; stop it: two at once would undo each other's work", of_process(*pid), directory.display())]
    HeldByAnother {
        /// The directory.
        directory: PathBuf,
        /// Its process, where /proc/locks tells one of this PID namespace.
        pid: Option<u32>,
    },
    /// The directory could not be opened or locked.
    #[error("cannot lock {}: {call}: {errno}", directory.display())]
    Failed {
        /// The directory.
        directory: PathBuf,
        /// The system call.
        call: &'static str,
        /// Its error; ENOENT if the directory does not exist (yet).
        errno: Errno,
    },
}

fn of_process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

/// The locks that are held. Dropping it gives them up.
#[derive(Debug, Default)]
pub struct Locks {
    /// By device and inode number.
    held: HashMap<(u64, u64), Flock<OwnedFd>>,
}

impl Locks {
    /// Makes sure that the lock on this directory is held. Opens the directory, so a dead filesystem blocks it.
    ///
    /// # Errors
    /// [`LockError::HeldByAnother`], or what the directory cannot be locked by.
    pub fn acquire(&mut self, directory: &Path) -> Result<(), LockError> {
        let failed = |call| {
            let directory = directory.to_path_buf();
            move |errno| LockError::Failed {
                directory,
                call,
                errno,
            }
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(directory, flags, Mode::empty()).map_err(failed("open"))?;
        let status = sys::status(fd.as_fd()).map_err(failed("statx"))?;
        let inode = (status.dev, status.inode);
        if self.held.contains_key(&inode) {
            return Ok(());
        }
        match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                self.held.insert(inode, lock);
                Ok(())
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
                Err(LockError::HeldByAnother {
                    directory: directory.to_path_buf(),
                    pid: holder(&locks, inode),
                })
            }
            Err((_, errno)) => Err(failed("flock")(errno)),
        }
    }
}

/// The process that holds an flock on a file, by /proc/locks (proc_locks(5)):
/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`, where the device numbers are hexadecimal. A process of another PID
/// namespace is shown as 0, one that waits has an arrow before the kind.
fn holder(locks: &str, (dev, inode): (u64, u64)) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(dev), minor(dev));
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields.as_slice() {
            [_, "FLOCK", _, _, pid, at, ..] if *at == file => {
                pid.parse().ok().filter(|pid| *pid != 0)
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = Locks::default();
        first.acquire(directory.path()).unwrap();
        // An flock belongs to the open file, so a second one in this process is as good as another process.
        let error = Locks::default().acquire(directory.path()).unwrap_err();
        let LockError::HeldByAnother {
            directory: named,
            pid,
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(named, directory.path());
        assert!(pid.is_none_or(|pid| pid == std::process::id()), "{pid:?}");
        assert!(
            error
                .to_string()
                .contains(&directory.path().display().to_string()),
            "{error}"
        );
        drop(first);
        Locks::default().acquire(directory.path()).unwrap();
    }

    #[test]
    fn one_inode_is_locked_once() {
        let directory = tempfile::tempdir().unwrap();
        let alias = tempfile::tempdir().unwrap();
        let link = alias.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        let mut locks = Locks::default();
        locks.acquire(directory.path()).unwrap();
        locks.acquire(directory.path()).unwrap();
        locks.acquire(&link).unwrap();
        assert_eq!(locks.held.len(), 1);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let error = Locks::default()
            .acquire(Path::new("/nowhere/at/all"))
            .unwrap_err();
        assert!(
            matches!(
                error,
                LockError::Failed {
                    errno: Errno::ENOENT,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Locks::default().acquire(file.path()).unwrap_err();
        assert!(
            matches!(
                error,
                LockError::Failed {
                    errno: Errno::ENOTDIR,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn the_holder_is_found_in_proc_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 12 08:01:77 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 13 fe:10a:78 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 14 fe:10a:78 0 EOF\n\
            4: FLOCK  ADVISORY  WRITE 0 08:01:79 0 EOF\n";
        let at =
            |major, minor, inode| holder(locks, (nix::sys::stat::makedev(major, minor), inode));
        assert_eq!(at(8, 1, 77), Some(12));
        assert_eq!(at(254, 0x10a, 78), Some(14));
        assert_eq!(at(8, 1, 79), None);
        assert_eq!(at(8, 2, 77), None);
    }
}
