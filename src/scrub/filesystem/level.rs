//! What the walk remembers of each directory on the way down.

use super::open::FileId;
use rustix::fd::OwnedFd;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::ffi::{CStr, CString};

/// One directory on the way down.
pub(super) struct Level {
    /// In its parent; empty for the root.
    pub(super) name: CString,
    pub(super) id: FileId,
    pub(super) dir: Option<OwnedFd>,
    /// Where the directory was read when the pending names were found.
    pub(super) batch_offset: u64,
    /// Directories of the last batch that were not empty.
    pub(super) pending: Names,
    pub(super) passes: u32,
}

/// A stack of names in one allocation.
#[derive(Default)]
pub(super) struct Names(Vec<u8>);

impl Names {
    pub(super) fn push(&mut self, name: &CStr) {
        self.0.extend_from_slice(name.to_bytes_with_nul());
    }

    pub(super) fn pop(&mut self) -> Option<CString> {
        let end = self.0.len().checked_sub(1)?;
        let start = self.0[..end]
            .iter()
            .rposition(|byte| *byte == 0)
            .map_or(0, |nul| nul + 1);
        let name = CString::new(&self.0[start..end]).ok();
        self.0.truncate(start);
        name
    }
}

impl Level {
    pub(super) fn new(name: CString, id: FileId, dir: OwnedFd) -> Self {
        Self {
            name,
            id,
            dir: Some(dir),
            batch_offset: 0,
            pending: Names::default(),
            passes: 0,
        }
    }

    pub(super) fn dir(&self) -> Result<&OwnedFd, Errno> {
        self.dir.as_ref().ok_or(Errno::BADF)
    }

    pub(super) fn rewind(&mut self) -> Result<(), Errno> {
        self.pending = Names::default();
        self.batch_offset = 0;
        rustix::fs::seek(self.dir()?, SeekFrom::Start(0)).map(drop)
    }

    /// Gives the descriptor and the pending names back; they are read again from the start of the batch.
    pub(super) fn close(&mut self) {
        self.dir = None;
        self.pending = Names::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_last_first_and_whole() {
        let mut names = Names::default();
        for name in [c"a", c"b\xff\n", c"ccc"] {
            names.push(name);
        }
        assert_eq!(names.pop().as_deref(), Some(c"ccc"));
        names.push(c"d");
        assert_eq!(names.pop().as_deref(), Some(c"d"));
        assert_eq!(names.pop().as_deref(), Some(c"b\xff\n"));
        assert_eq!(names.pop().as_deref(), Some(c"a"));
        assert_eq!(names.pop(), None);
    }
}
