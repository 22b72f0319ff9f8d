//! What the walk remembers of each directory on the way down, and of the names that it has read.

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

    pub(super) fn bytes(&self) -> usize {
        self.0.len()
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

/// Names of entries that are no directories, to be removed in the order of their inodes: on filesystems that hash names
/// (ext4) the order of a directory is random, and each removal would touch another block of the inode table.
#[derive(Default)]
pub(super) struct Files {
    names: Vec<u8>,
    /// The inode, and where the name begins.
    found: Vec<(u64, usize)>,
}

impl Files {
    /// As many as rm sorts at once.
    const MOST: usize = 100_000;
    /// Long names are fewer at a time.
    const MOST_BYTES: usize = 4 << 20;

    pub(super) fn push(&mut self, inode: u64, name: &CStr) {
        self.found.push((inode, self.names.len()));
        self.names.extend_from_slice(name.to_bytes_with_nul());
    }

    /// Whether it is time to remove them.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= Self::MOST || self.names.len() >= Self::MOST_BYTES
    }

    pub(super) fn clear(&mut self) {
        self.names.clear();
        self.found.clear();
    }

    /// The names in the order of their inodes.
    pub(super) fn sorted(&mut self) -> impl Iterator<Item = &CStr> {
        self.found.sort_unstable();
        let names = &self.names;
        let from = |(_, start): &(u64, usize)| names.get(*start..);
        self.found
            .iter()
            .filter_map(from)
            .filter_map(|rest| CStr::from_bytes_until_nul(rest).ok())
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
    #![allow(clippy::unwrap_used)]

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

    #[test]
    fn files_are_sorted_by_inode_and_bounded() {
        let mut files = Files::default();
        for (inode, name) in [(7, c"a"), (u64::MAX, c"b\xff"), (3, c"cc"), (7, c"d")] {
            files.push(inode, name);
        }
        assert_eq!(files.sorted().collect::<Vec<_>>(), [c"cc", c"a", c"d", c"b\xff"]);
        files.clear();
        assert_eq!(files.sorted().next(), None);
        let long = CString::new([b'x'; 255]).unwrap();
        let full = (0..).find(|at| {
            files.push(*at, &long);
            files.is_full()
        });
        assert_eq!(full, Some((4 << 20) / 256 - 1));
    }
}
