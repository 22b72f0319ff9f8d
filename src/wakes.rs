//! What says "look again": changes of the mount table, and inotify events of the directories.
//!
//! No decision is taken from an event's contents, so a lost or doubled one costs time, never correctness.

mod wake;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{debug, warn};

pub use wake::{Cause, Wake};

/// inotify watches of the discovery directories and of the configuration.
pub struct Directories {
    watcher: Option<RecommendedWatcher>,
    /// By device and inode: another directory may come to the same path, or be mounted over it.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    config_changed: Arc<AtomicBool>,
}

impl Directories {
    /// Starts watching. Without inotify (its limits are the machine's) the safety timer finds what changes.
    #[must_use]
    pub fn new(wake: Arc<Wake>, config_dir: &Path) -> Self {
        // True at first: the configuration is to be read.
        let config_changed = Arc::new(AtomicBool::new(true));
        let (flag, config) = (Arc::clone(&config_changed), config_dir.to_owned());
        let handler = move |event: notify::Result<notify::Event>| {
            let mut cause = Cause::Directory;
            match event {
                // Our own looks open the directories.
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
                Ok(event) => {
                    if event.paths.is_empty() || event.paths.iter().any(|path| path.starts_with(&config)) {
                        flag.store(true, Ordering::Release);
                        cause = Cause::Configuration;
                    }
                }
                Err(error) => {
                    debug!(%error, "inotify");
                    flag.store(true, Ordering::Release);
                }
            }
            wake.wake(cause);
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| warn!(%error, "inotify is not available; changes are found by the safety timer (--discovery-period)"))
            .ok();
        let mut directories = Self {
            watcher,
            watched: BTreeMap::new(),
            config_changed,
        };
        directories.follow(std::iter::once(config_dir));
        directories
    }

    /// Whether the configuration may have changed since this was last asked.
    #[must_use]
    pub fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::AcqRel)
    }

    /// Watches the configuration directory as it is now: before it is read, so that no change is missed between. Another
    /// one at its path (made anew, or mounted over it) is a change.
    pub fn follow_config(&mut self, directory: &Path) {
        let before = self.watched.get(directory).copied();
        self.forget_missing(&BTreeSet::from([directory]));
        self.follow(std::iter::once(directory));
        if self.watched.get(directory).copied() != before {
            self.config_changed.store(true, Ordering::Release);
        }
    }

    /// Watches these directories too; one that is not there yet by its parent. Says whether changes of all of them are
    /// announced from now on. Blocks as long as the path does.
    pub fn follow<'a>(&mut self, directories: impl Iterator<Item = &'a Path>) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let mut all = true;
        for directory in directories {
            let target = if directory.is_dir() {
                Some(directory)
            } else {
                directory.parent().filter(|parent| parent.is_dir())
            };
            let Some((target, inode)) = target.and_then(|target| Some((target, inode(target)?))) else {
                all = false;
                continue;
            };
            if self.watched.contains_key(target) {
                continue;
            }
            match watcher.watch(target, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(target.to_owned(), inode);
                }
                Err(error) => {
                    all = false;
                    debug!(path = %target.display(), %error, "cannot be watched by inotify");
                }
            }
        }
        all
    }

    /// Forgets watches whose directory is gone or another one, so that one of the same name is watched anew.
    pub fn forget_missing(&mut self, among: &BTreeSet<&Path>) {
        let other = |(path, known): &(&PathBuf, &(u64, u64))| inode(path) != Some(**known);
        // What does not answer is not asked; a parent stands for directories that are not there yet.
        let asked = |path: &PathBuf| {
            among
                .iter()
                .any(|wanted| *wanted == path || wanted.parent() == Some(path))
        };
        let missing: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(path, _)| asked(path))
            .filter(other)
            .map(|(path, _)| path.clone())
            .collect();
        for path in missing {
            self.watched.remove(&path);
            if let Some(watcher) = &mut self.watcher {
                // It fails where the kernel has dropped the watch already.
                let _ = watcher.unwatch(&path);
            }
        }
    }
}

fn inode(directory: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(directory).ok().filter(std::fs::Metadata::is_dir)?;
    Some((metadata.dev(), metadata.ino()))
}

/// Wakes for every change of the mount tables, until it is dropped. The kernel reports a change as an exceptional
/// condition on the open file (proc(5), /proc/pid/mountinfo).
pub struct MountTables {
    /// Closing it ends the thread.
    _stop: OwnedFd,
}

impl MountTables {
    /// Starts watching. A table that is not there is left to the safety timer.
    ///
    /// # Errors
    /// No thread or pipe can be made.
    pub fn watch(paths: &[PathBuf], wake: Arc<Wake>) -> std::io::Result<Self> {
        let (stopped, stop) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let paths = paths.to_vec();
        std::thread::Builder::new()
            .name("mount-tables".into())
            .stack_size(64 << 10)
            .spawn(move || {
                // Opened here: the thread's own table is that of the mount namespace it was started in.
                let tables: Vec<File> = paths.iter().filter_map(|path| File::open(path).ok()).collect();
                wake_until(&tables, &stopped, &wake);
            })?;
        Ok(Self { _stop: stop })
    }
}

fn wake_until(tables: &[File], stopped: &OwnedFd, wake: &Wake) {
    let changed = PollFlags::POLLPRI | PollFlags::POLLERR;
    loop {
        let mut polled: Vec<PollFd<'_>> = tables.iter().map(|table| PollFd::new(table.as_fd(), changed)).collect();
        polled.push(PollFd::new(stopped.as_fd(), PollFlags::empty()));
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => {
                warn!(%error, "mount tables cannot be polled; changes are found by the safety timer (--discovery-period)");
                return;
            }
        }
        let happened = |polled: &PollFd<'_>| polled.revents().is_some_and(|events| !events.is_empty());
        if polled.last().is_some_and(happened) {
            return;
        }
        wake.wake(Cause::MountTable);
    }
}
