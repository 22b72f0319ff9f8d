//! The walk that removes a tree: iterative, with a bounded number of descriptors and bounded memory, whatever the
//! tenant left behind.
//!
//! Names are read in batches. Of each batch everything is unlinked, except directories that are not empty: their names
//! are kept and descended into one by one. So a directory of a million files needs a few MiB, and the parent is read on
//! where it was left. The deepest [`OPEN_LEVELS`] directories stay open; those above are closed and
//! opened again through `..` on the way up, which counts only if it is the same inode on the same mount. Beyond
//! [`REMEMBERED_LEVELS`] the topmost are forgotten, and the walk begins again at the root once it comes up to there.

use super::attributes::{self, Unlocked};
use super::level::{Files, Level, Names};
use super::open::{DIRECTORY, FileId, Opener};
use crate::failpoint;
use crate::reason::Held;
use crate::scrub::progress::{Cancel, Progress};
use crate::scrub::{ScrubError, failed};
use anyhow::anyhow;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Far below the usual limit of 1024 descriptors per process, which four parallel scrubs share with the daemon.
const OPEN_LEVELS: usize = 32;

/// With names of up to 255 bytes this is about 1 MiB. A tree that is deeper costs one more descent per this many levels.
const REMEMBERED_LEVELS: usize = 4096;

/// As rm and find use; the names of directories that a batch keeps take hardly more.
const BUFFER_BYTES: usize = 32 * 1024;

/// How often a directory is read again because it was not empty after all: new files by a process that still runs, or
/// a filesystem that skips entries when others are removed.
const MAX_PASSES: u32 = 16;

/// How much may be found in all those further passes. Against a writer that is quicker than the removal each pass would
/// take longer than the one before.
const MAX_FOUND_AGAIN: u64 = 100_000;

/// What became of one entry.
enum Entry {
    Removed,
    /// A directory with something in it.
    Occupied,
    /// It went, or became something else, while it was looked at: the next pass sees what it is.
    Changed,
}

/// The state of one walk.
pub(super) struct Removal<'a> {
    path: &'a Path,
    opener: &'a Opener,
    progress: &'a Progress,
    cancel: &'a Cancel,
    buffer: Vec<MaybeUninit<u8>>,
    files: Files,
    root: Level,
    levels: VecDeque<Level>,
    /// The topmost levels were forgotten, so the first of `levels` is not a child of the root.
    forgotten: bool,
    /// Complete passes so far.
    passes: u32,
    removed: Cell<u64>,
    found_again: Cell<u64>,
}

impl<'a> Removal<'a> {
    /// A walk that begins at `root`, a descriptor of its own on the directory at `path` (for messages).
    pub(super) fn new(
        root: OwnedFd,
        path: &'a Path,
        opener: &'a Opener,
        progress: &'a Progress,
        cancel: &'a Cancel,
    ) -> Result<Self, ScrubError> {
        let id = FileId::of(&root).map_err(|error| failed(error, || format!("cannot examine {path:?}")))?;
        Ok(Self {
            path,
            opener,
            progress,
            cancel,
            buffer: vec![MaybeUninit::uninit(); BUFFER_BYTES],
            files: Files::default(),
            root: Level::new(CString::default(), id, root),
            levels: VecDeque::new(),
            forgotten: false,
            passes: 0,
            removed: Cell::new(0),
            found_again: Cell::new(0),
        })
    }

    /// How many entries were removed.
    pub(super) fn removed(&self) -> u64 {
        self.removed.get()
    }

    /// One pass over the tree. Afterwards the root is empty unless something else wrote to it meanwhile; fails if that
    /// goes on for too long.
    pub(super) fn pass(&mut self) -> Result<(), ScrubError> {
        if self.passes >= MAX_PASSES {
            return Err(still_written(self.path));
        }
        self.restart()?;
        loop {
            self.cancel.check()?;
            if self.found_again.get() > MAX_FOUND_AGAIN {
                return Err(still_written(&self.display(None)));
            }
            if let Some(name) = self.current_mut().pending.pop() {
                self.descend(name)?;
            } else if !self.read_batch()? && !self.ascend()? {
                self.passes += 1;
                return Ok(());
            }
        }
    }

    fn restart(&mut self) -> Result<(), ScrubError> {
        self.levels.clear();
        self.forgotten = false;
        self.root.rewind().map_err(|error| self.failed("read", None, error))
    }

    fn current(&self) -> &Level {
        self.levels.back().unwrap_or(&self.root)
    }

    fn current_mut(&mut self) -> &mut Level {
        self.levels.back_mut().unwrap_or(&mut self.root)
    }

    /// Removes what the next batch of the current directory's names gives; false at its end.
    fn read_batch(&mut self) -> Result<bool, ScrubError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut files = std::mem::take(&mut self.files);
        files.clear();
        let mut batch = Batch::default();
        let result = self.remove_batch(self.current(), &mut buffer, &mut files, &mut batch);
        (self.buffer, self.files) = (buffer, files);
        let current = self.current_mut();
        current.batch_offset = batch.offset;
        current.pending = batch.occupied;
        result.map_err(|(name, error)| error.into_scrub_error(self, name.as_deref()))
    }

    fn remove_batch(
        &self,
        level: &Level,
        buffer: &mut [MaybeUninit<u8>],
        files: &mut Files,
        batch: &mut Batch,
    ) -> Result<bool, (Option<CString>, Obstacle)> {
        let dir = level.dir().map_err(|error| (None, Obstacle::Read(error)))?;
        batch.offset = rustix::fs::tell(dir).map_err(|error| (None, Obstacle::Read(error)))?;
        let mut entries = RawDir::new(dir, buffer);
        let mut found = false;
        let mut read = Ok(());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory itself was removed by somebody else.
                Err(Errno::NOENT) => break,
                // What was found before goes all the same.
                Err(error) => {
                    read = Err((None, Obstacle::Read(error)));
                    break;
                }
            };
            let name = entry.file_name();
            match entry.file_type() {
                _ if name == c"." || name == c".." => {}
                kind @ (FileType::Directory | FileType::Unknown) => self.remove_of(dir, name, kind, batch)?,
                _ => files.push(entry.ino(), name),
            }
            found = true;
            if entries.is_buffer_empty() && (files.is_full() || batch.occupied.bytes() >= BUFFER_BYTES) {
                break;
            }
        }
        for name in files.sorted() {
            self.remove_of(dir, name, FileType::RegularFile, batch)?;
        }
        read.map(|()| found)
    }

    /// Removes an entry of a batch.
    fn remove_of(
        &self,
        dir: &OwnedFd,
        name: &CStr,
        kind: FileType,
        batch: &mut Batch,
    ) -> Result<(), (Option<CString>, Obstacle)> {
        self.cancel.check().map_err(|_| (None, Obstacle::Cancelled))?;
        match self.remove(dir, name, kind) {
            Ok(Entry::Removed) => self.count(),
            Ok(Entry::Occupied) => batch.occupied.push(name),
            Ok(Entry::Changed) => {}
            Err(obstacle) => return Err((Some(name.to_owned()), obstacle)),
        }
        Ok(())
    }

    fn count(&self) {
        self.removed.set(self.removed.get() + 1);
        self.progress.add(1);
        failpoint::hit!("scrub.filesystem.entry");
        if self.passes > 0 || self.current().passes > 0 {
            self.found_again.set(self.found_again.get() + 1);
        }
    }

    /// Removes one entry, whatever it is, unless it is a directory with something in it.
    fn remove(&self, dir: &OwnedFd, name: &CStr, kind: FileType) -> Result<Entry, Obstacle> {
        let directory = kind == FileType::Directory;
        let mut result = remove_as(dir, name, directory);
        if let Err(Errno::PERM | Errno::ACCESS) = result {
            let unlocked = self.unlock(dir, name)?;
            result = remove_as(dir, name, directory);
            if let Some(unlocked) = unlocked {
                unlocked.restore_if_linked();
            }
        }
        result.map_err(|error| match error {
            Errno::BUSY if self.is_mount_point(dir, name) => Obstacle::Mount,
            error => Obstacle::Remove(error),
        })
    }

    /// Clears the flags that forbid the removal of an entry, on it and on its directory.
    fn unlock(&self, dir: &OwnedFd, name: &CStr) -> Result<Option<Unlocked>, Obstacle> {
        attributes::clear_locks(dir).map_err(Obstacle::Unlock)?;
        let opened = match self.opener.open_on_mount(dir, name, OFlags::PATH, self.root.id.mount()) {
            Ok(opened) => opened,
            Err(Errno::XDEV) => return Err(Obstacle::Mount),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(Obstacle::Unlock(error)),
        };
        let is_directory =
            rustix::fs::fstat(&opened).is_ok_and(|status| FileType::from_raw_mode(status.st_mode).is_dir());
        if is_directory {
            let child = match self.opener.open_on_mount(dir, name, DIRECTORY, self.root.id.mount()) {
                Ok(child) => child,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(error) => return Err(Obstacle::Unlock(error)),
            };
            attributes::clear_locks(&child).map_err(Obstacle::Unlock)?;
            return Ok(None);
        }
        let Some(file) = attributes::reopen_regular(&opened).map_err(Obstacle::Unlock)? else {
            return Ok(None);
        };
        attributes::unlock(file).map_err(Obstacle::Unlock)
    }

    fn is_mount_point(&self, dir: &OwnedFd, name: &CStr) -> bool {
        let opened = self.opener.open_on_mount(dir, name, OFlags::PATH, self.root.id.mount());
        matches!(opened, Err(Errno::XDEV))
    }

    fn descend(&mut self, name: CString) -> Result<(), ScrubError> {
        let mount = self.root.id.mount();
        let opened = self
            .current()
            .dir()
            .and_then(|dir| self.opener.open_on_mount(dir, &name, DIRECTORY, mount));
        let child = match opened {
            Ok(child) => child,
            // It went, or something else stands in its place: the next pass looks again.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(Errno::XDEV) => return Err(Obstacle::Mount.into_scrub_error(self, Some(&name))),
            Err(error) => return Err(self.failed("open", Some(&name), error)),
        };
        let id = FileId::of(&child).map_err(|error| self.failed("examine", Some(&name), error))?;
        self.levels.push_back(Level::new(name, id, child));
        if let Some(above) = self.levels.len().checked_sub(OPEN_LEVELS + 1) {
            self.levels[above].close();
        }
        if self.levels.len() > REMEMBERED_LEVELS {
            self.levels.pop_front();
            self.forgotten = true;
        }
        Ok(())
    }

    /// Goes up after the current directory's end was reached, and removes it; false if it was the root.
    fn ascend(&mut self) -> Result<bool, ScrubError> {
        let Some(mut child) = self.levels.pop_back() else {
            return Ok(false);
        };
        if self.levels.is_empty() && self.forgotten {
            self.restart()?;
            return Ok(true);
        }
        if !self.reopen_parent(&child)? {
            // It was moved elsewhere meanwhile. What it holds now is found by the next pass, if it is still below.
            self.levels.clear();
            return Ok(false);
        }
        let dir = self.current().dir().map_err(|error| self.failed("read", None, error))?;
        match self.remove(dir, &child.name, FileType::Directory) {
            Ok(Entry::Removed) => self.count(),
            Ok(Entry::Occupied) if self.is_same(dir, &child) => {
                child.passes += 1;
                if child.passes > MAX_PASSES {
                    self.levels.push_back(child);
                    return Err(still_written(&self.display(None)));
                }
                let rewound = child.rewind();
                self.levels.push_back(child);
                rewound.map_err(|error| self.failed("read", None, error))?;
            }
            Ok(_) => {}
            Err(obstacle) => return Err(obstacle.into_scrub_error(self, Some(&child.name))),
        }
        Ok(true)
    }

    /// Whether the entry is still the directory that was emptied.
    fn is_same(&self, dir: &OwnedFd, child: &Level) -> bool {
        let opened = self
            .opener
            .open_on_mount(dir, &child.name, OFlags::PATH, self.root.id.mount());
        opened.and_then(FileId::of).is_ok_and(|id| id == child.id)
    }

    /// Opens the parent of `child` again where it was closed; false if `..` leads elsewhere than the way down did.
    fn reopen_parent(&mut self, child: &Level) -> Result<bool, ScrubError> {
        let mount = self.root.id.mount();
        let Some(parent) = self.levels.back_mut().filter(|parent| parent.dir.is_none()) else {
            return Ok(true);
        };
        let opened = child.dir().and_then(|dir| self.opener.open_parent(dir, mount));
        let result = match opened.and_then(|dir| Ok((FileId::of(&dir)?, dir))) {
            Ok((id, dir)) if id == parent.id => {
                let sought = rustix::fs::seek(&dir, SeekFrom::Start(parent.batch_offset));
                parent.dir = Some(dir);
                sought.map(|_| true)
            }
            Ok(_) | Err(Errno::XDEV | Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        };
        result.map_err(|error| self.failed("open again", None, error))
    }

    /// The path of the current directory, or of an entry in it, for messages.
    fn display(&self, name: Option<&CStr>) -> PathBuf {
        let mut path = self.path.to_owned();
        if self.forgotten {
            path.push("…");
        }
        // A path of 10,000 components helps nobody.
        const SHOWN: usize = 16;
        let skipped = self.levels.len().saturating_sub(SHOWN);
        if skipped > 0 && !self.forgotten {
            path.push("…");
        }
        path.extend(
            self.levels
                .iter()
                .skip(skipped)
                .map(|level| OsStr::from_bytes(level.name.to_bytes())),
        );
        path.extend(name.map(|name| OsStr::from_bytes(name.to_bytes())));
        path
    }

    fn failed(&self, verb: &str, name: Option<&CStr>, error: Errno) -> ScrubError {
        failed(error, || format!("cannot {verb} {:?}", self.display(name)))
    }
}

/// The failure of a directory that does not become empty.
pub(super) fn still_written(path: &Path) -> ScrubError {
    ScrubError::Failed(anyhow!(
        "{path:?} is still being written to: there are new files whenever it was emptied; find the process that makes them"
    ))
}

/// What one read of a directory left.
#[derive(Default)]
struct Batch {
    offset: u64,
    occupied: Names,
}

/// Why an entry could not be removed.
enum Obstacle {
    /// Something is mounted there.
    Mount,
    Cancelled,
    Read(Errno),
    Remove(Errno),
    Unlock(Errno),
}

impl Obstacle {
    fn into_scrub_error(self, walk: &Removal<'_>, name: Option<&CStr>) -> ScrubError {
        match self {
            Self::Mount => ScrubError::Held(Held::NestedMounts(vec![walk.display(name).display().to_string()])),
            Self::Cancelled => ScrubError::Cancelled,
            Self::Read(error) => walk.failed("read", name, error),
            Self::Remove(error) => walk.failed("remove", name, error),
            Self::Unlock(error) => walk.failed(
                "clear the immutable or append-only flag (CAP_LINUX_IMMUTABLE; or use chattr -ia) of",
                name,
                error,
            ),
        }
    }
}

/// unlink or rmdir, the likelier one first.
fn remove_as(dir: impl AsFd, name: &CStr, directory: bool) -> Result<Entry, Errno> {
    let unlink = || match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) => Ok(Some(Entry::Removed)),
        Err(Errno::ISDIR) => Ok(None),
        Err(Errno::NOENT) => Ok(Some(Entry::Changed)),
        Err(error) => Err(error),
    };
    let rmdir = || match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(Some(Entry::Removed)),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Some(Entry::Occupied)),
        Err(Errno::NOTDIR) => Ok(None),
        Err(Errno::NOENT) => Ok(Some(Entry::Changed)),
        Err(error) => Err(error),
    };
    let entry = if directory {
        match rmdir()? {
            Some(entry) => Some(entry),
            None => unlink()?,
        }
    } else {
        match unlink()? {
            Some(entry) => Some(entry),
            None => rmdir()?,
        }
    };
    Ok(entry.unwrap_or(Entry::Changed))
}
