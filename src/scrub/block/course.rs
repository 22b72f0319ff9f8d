//! The passes of a wipe over its device: where each begins, and noting how far it is.

use super::{flush, verify};
use crate::config::Cleaner;
use crate::scrub::ScrubError;
use crate::scrub::checkpoint::{ALIGN_BYTES, Cadence, Position, passes};
use crate::scrub::limits::Steering;
use std::cell::Cell;
use std::fs::File;
use std::ops::Range;
use std::time::Instant;

/// Who is told, and how often, how far a wipe is.
pub struct Marks<'a> {
    /// How often.
    pub cadence: Cadence,
    /// Is told a place when everything before it was flushed. It must not wait for anything.
    pub note: &'a dyn Fn(Position),
}

/// Whether the part of a device that a resumed wipe would skip looks like it: flushes what may still be in the page cache,
/// and reads samples of all of it, the last 64 MiB whole. What a pass of random data has written cannot be told from a
/// tenant's data; the zeros that come over it are written from the start.
///
/// # Errors
///
/// `Failed`: it is not wiped, or cannot be read.
pub fn is_wiped_before(device: &File, cleaner: &Cleaner, position: Position) -> Result<(), ScrubError> {
    if passes(cleaner) != Some(position.pass) || position.offset == 0 {
        return Ok(());
    }
    flush(device)?;
    verify::skipped(device, position.offset)
}

/// A wipe on its way.
pub(super) struct Course<'a> {
    pub(super) device: &'a File,
    pub(super) size_bytes: u64,
    pub(super) steering: &'a Steering<'a>,
    from: Position,
    marks: Option<Marks<'a>>,
    /// When the last mark was made, and how much was done then.
    marked: Cell<(Instant, u64)>,
}

impl<'a> Course<'a> {
    pub(super) fn new(
        device: &'a File,
        size_bytes: u64,
        from: Position,
        marks: Option<Marks<'a>>,
        steering: &'a Steering<'a>,
    ) -> Self {
        Self {
            device,
            size_bytes,
            steering,
            from,
            marks,
            marked: Cell::new((Instant::now(), from.done_bytes(size_bytes))),
        }
    }

    /// What is left of a pass to do; `None` if an interrupted wipe had done all of it.
    pub(super) fn rest_of(&self, pass: u32) -> Option<Range<u64>> {
        match pass.cmp(&self.from.pass) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal => Some(self.from.offset..self.size_bytes),
            std::cmp::Ordering::Greater => Some(0..self.size_bytes),
        }
    }

    /// A pass has done everything before `offset`. Now and then that is flushed and noted.
    pub(super) fn reached(&self, pass: u32, offset: u64) -> Result<(), ScrubError> {
        let Some(marks) = &self.marks else { return Ok(()) };
        let position = Position { pass, offset };
        let done = position.done_bytes(self.size_bytes);
        let (at, before) = self.marked.get();
        let due = at.elapsed() >= marks.cadence.period && done.saturating_sub(before) >= marks.cadence.bytes;
        if !due || offset >= self.size_bytes || !offset.is_multiple_of(ALIGN_BYTES) {
            return Ok(());
        }
        flush(self.device)?;
        (marks.note)(position);
        self.marked.set((Instant::now(), done));
        Ok(())
    }
}
