//! A mount table at one moment, with what is asked of it again and again, and reading it anew only when it has changed.
//!
//! The kernel tells an open mountinfo file by poll(2) whether a mount came, went, moved or changed its options since it
//! was last asked (proc(5), /proc/pid/mountinfo). An answer of "no" is as good as reading it: a table of a thousand
//! mounts takes the kernel milliseconds to write. What it does not tell of: a filesystem that turns read-only as a whole
//! (who wants to know asks the mount itself), and that a directory which is mounted elsewhere, or one above it, was
//! renamed or deleted, which changes where a mount sits in its filesystem. Only the root of a filesystem has no name to
//! change: for the mounts of anything else the table is read [anew](Source::anew).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::{Mount, Nesting, parse_counting, pod_mounts};
use crate::observed::PodMount;

/// A mount table at one moment.
#[derive(Debug, Default)]
pub struct Table {
    text: Vec<u8>,
    mounts: Vec<Mount>,
    skipped: usize,
    by_id: HashMap<u64, usize>,
    nesting: OnceLock<Nesting>,
    pods: OnceLock<Vec<PodMount>>,
}

impl Table {
    /// Parses the text of a mountinfo file.
    #[must_use]
    pub fn new(text: Vec<u8>) -> Self {
        let (mounts, skipped) = parse_counting(&text);
        let by_id = mounts.iter().enumerate();
        let by_id = by_id.map(|(index, mount)| (mount.mount_id, index)).collect();
        Self {
            text,
            mounts,
            skipped,
            by_id,
            ..Self::default()
        }
    }

    /// Its mounts, in its order.
    #[must_use]
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// How many of its lines were not understood.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The mount with this id.
    #[must_use]
    pub fn get(&self, mount_id: u64) -> Option<&Mount> {
        self.mounts.get(*self.by_id.get(&mount_id)?)
    }

    /// Where its mounts sit inside of filesystems.
    pub fn nesting(&self) -> &Nesting {
        self.nesting.get_or_init(|| Nesting::new(&self.mounts))
    }

    /// What pods have mounted of local volumes; see [`pod_mounts`].
    pub fn pods(&self) -> &[PodMount] {
        self.pods.get_or_init(|| pod_mounts(&self.mounts))
    }
}

/// A table as it is now.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The table.
    pub table: Arc<Table>,
    /// Counts the times that it may have changed. Of two readings with the same number, no mount has come or gone
    /// between: a mount id means the same mount in both, which equal texts do not prove. `None` where nobody tells.
    pub changes: Option<u64>,
}

/// A mountinfo file, read again when it has changed.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Open if it is a file of /proc, which tells of changes.
    file: Option<File>,
    table: Option<Arc<Table>>,
    changes: u64,
}

impl Source {
    /// The table of this file, which is read when it is first asked for.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            state: Mutex::default(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has left it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table as it is now.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn now(&self) -> io::Result<Reading> {
        let mut state = self.state();
        if state.has_changed() {
            state.read(&self.path)?;
        }
        state.reading()
    }

    /// As [`now`](Self::now), read whatever the kernel says of changes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn anew(&self) -> io::Result<Reading> {
        let mut state = self.state();
        state.has_changed(); // Counts a change.
        state.read(&self.path)?;
        state.reading()
    }
}

impl State {
    /// Asks the kernel, which answers once for each change.
    fn has_changed(&mut self) -> bool {
        let Some(file) = &self.file else { return true };
        let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        let answered = poll(&mut polled, PollTimeout::ZERO).is_ok();
        let [polled] = polled;
        // POLLERR comes unasked, and so does POLLNVAL.
        let same = answered && polled.revents().is_some_and(|events| events.is_empty());
        self.changes += u64::from(!same);
        !same || self.table.is_none()
    }

    fn read(&mut self, path: &Path) -> io::Result<()> {
        let former = self.table.take(); // Nothing is known if this fails.
        if self.file.is_none() {
            let file = File::open(path)?;
            let of_proc = fstatfs(&file).is_ok_and(|status| status.filesystem_type() == PROC_SUPER_MAGIC);
            self.file = of_proc.then_some(file);
        }
        let mut text = Vec::with_capacity(former.as_ref().map_or(0, |former| former.text.len() + 256));
        match &mut self.file {
            Some(file) => {
                let read = file.rewind().and_then(|()| file.read_to_end(&mut text));
                if let Err(error) = read {
                    self.file = None;
                    return Err(error);
                }
            }
            // Another file may have come to its path.
            None => text = fs::read(path)?,
        }
        let same = former.filter(|former| former.text == text);
        self.table = Some(same.unwrap_or_else(|| Arc::new(Table::new(text))));
        Ok(())
    }

    fn reading(&self) -> io::Result<Reading> {
        let table = self.table.clone().ok_or(io::ErrorKind::NotFound)?;
        Ok(Reading {
            table,
            changes: self.file.is_some().then_some(self.changes),
        })
    }
}
