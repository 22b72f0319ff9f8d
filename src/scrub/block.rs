//! Wiping a block device, through a descriptor that holds it exclusively.
//!
//! The device is wiped in chunks, so that it can be stopped and reported on: one call over a whole device cannot be
//! killed before Linux 6.11.

mod course;
mod discard;
mod quick;
mod shred;
#[cfg(test)]
mod tests;
mod verify;
mod zero;

pub use course::{Marks, is_wiped_before};
pub use verify::verify;
pub use zero::zero_range;

use super::checkpoint::Position;
use super::limits::Steering;
use super::{ScrubError, failed};
use crate::config::Cleaner;
use crate::failpoint;
use crate::reason::Held;
use crate::sys;
use anyhow::{Context, anyhow};
use course::Course;
use rustix::fd::AsFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;

const MIB: u64 = 1024 * 1024;

/// For O_DIRECT: at least the logical block and the memory alignment of every driver.
const PAGE_BYTES: usize = 4096;

/// Wipes a device of `size_bytes` by a native method and verifies by samples that the wipe reached the medium. All
/// methods leave zeros, `quick` only where signatures may be: what else was on the device stays readable after that.
///
/// `device` comes from [`crate::devices::claim_exclusive`]. `before_first_write` is called once, after the checks on the
/// descriptor and right before the first write; its error ends the scrub with nothing touched.
///
/// # Errors
///
/// `Held`: the device is read-only, or `cleaner` is none for a device (`CleanerUnavailable`). `Failed`: it has another
/// size, cannot be written, or does not read as zeros. `Cancelled`.
pub fn wipe(
    cleaner: &Cleaner,
    device: &File,
    size_bytes: u64,
    before_first_write: &mut dyn FnMut() -> Result<(), ScrubError>,
    steering: &Steering<'_>,
) -> Result<(), ScrubError> {
    let mut start = || before_first_write().map(|()| Position::START);
    wipe_from(cleaner, device, size_bytes, &mut start, None, steering)
}

/// As [`wipe`], from the place that `before_first_write` answers: what lies before it was wiped by an interrupted wipe
/// by the same method, which [`is_wiped_before`] has looked at. `marks` is told how far the wipe is.
///
/// # Errors
///
/// As [`wipe`].
pub fn wipe_from(
    cleaner: &Cleaner,
    device: &File,
    size_bytes: u64,
    before_first_write: &mut dyn FnMut() -> Result<Position, ScrubError>,
    marks: Option<Marks<'_>>,
    steering: &Steering<'_>,
) -> Result<(), ScrubError> {
    if matches!(cleaner, Cleaner::Fsclean | Cleaner::Command(_)) {
        return Err(ScrubError::Held(Held::CleanerUnavailable(format!(
            "{cleaner} does not wipe block devices; use zero, discard, shred or quick"
        ))));
    }
    if sys::block_read_only(device.as_fd()).context("cannot ask whether the device is read-only (BLKROGET)")? {
        return Err(ScrubError::Held(Held::ReadOnly));
    }
    let found = sys::block_bytes(device.as_fd()).context("cannot read the size of the device (BLKGETSIZE64)")?;
    if found != size_bytes || found == 0 {
        return Err(ScrubError::Failed(anyhow!(
            "the device has {found} bytes, not {size_bytes}"
        )));
    }
    steering.cancel.check()?;
    let from = before_first_write()?;
    failpoint::hit!("scrub.block.checked");
    steering.progress.inherit(from.done_bytes(size_bytes));
    let course = Course::new(device, size_bytes, from, marks, steering);
    match cleaner {
        Cleaner::Discard => discard::whole(&course),
        Cleaner::Shred { passes } => shred::whole(&course, *passes),
        Cleaner::Quick => quick::signatures(device, size_bytes, steering),
        // The others were refused.
        Cleaner::Zero | Cleaner::Fsclean | Cleaner::Command(_) => zero::whole(&course),
    }?;
    failpoint::hit!("scrub.block.verified");
    Ok(())
}

/// Is told where a pass is: everything before was done.
type Reached<'a> = dyn FnMut(u64) -> Result<(), ScrubError> + 'a;

fn logical_block_bytes(device: &File) -> Result<u64, ScrubError> {
    let bytes = rustix::fs::ioctl_blksszget(device)
        .map_err(|error| failed(error, || "cannot read the logical block size (BLKSSZGET)".to_owned()))?;
    Ok(u64::from(bytes).max(1))
}

/// Of a range whose start is a multiple of the logical block, the whole blocks: a part of a block at the end of a device
/// (a 512-byte rest of a device with blocks of 4 KiB) can be neither written nor read through that device.
fn whole_blocks(device: &File, range: &Range<u64>) -> Result<Range<u64>, ScrubError> {
    let block_bytes = logical_block_bytes(device)?;
    if !range.start.is_multiple_of(block_bytes) {
        return Err(ScrubError::Failed(anyhow!(
            "offset {} is not a multiple of the logical block ({block_bytes} bytes)",
            range.start
        )));
    }
    Ok(range.start..(range.end - range.end % block_bytes).max(range.start))
}

/// The chunk that begins at `at`: it ends at a multiple of the chunk size, a power of two, or at the end.
fn chunk(at: u64, chunk_bytes: u64, end: u64) -> Range<u64> {
    at..(at - at % chunk_bytes).saturating_add(chunk_bytes).min(end)
}

fn flush(device: &File) -> Result<(), ScrubError> {
    rustix::fs::fsync(device).map_err(|error| failed(error, || "cannot flush the device (fsync)".to_owned()))
}

/// Writes these bytes, over and over, on a range.
fn write_range(device: &File, range: &Range<u64>, bytes: &[u8]) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(bytes.len());
        match rustix::io::pwrite(device, &bytes[..length], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => at += written as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// O_DIRECT on a descriptor, for as long as this lives. On the descriptor itself, because a second one could be of
/// another device.
struct Direct<'a> {
    device: &'a File,
    flags: OFlags,
}

impl<'a> Direct<'a> {
    fn set(device: &'a File) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(device)?;
        rustix::fs::fcntl_setfl(device, flags | OFlags::DIRECT)?;
        Ok(Self { device, flags })
    }
}

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::fcntl_setfl(self.device.as_fd(), self.flags) {
            tracing::debug!(%error, "could not reset O_DIRECT");
        }
    }
}

/// Bytes at an address that O_DIRECT takes, all zero at first.
struct AlignedBuffer {
    storage: Vec<u8>,
    range: Range<usize>,
}

impl AlignedBuffer {
    fn new(length: usize) -> Self {
        let storage = vec![0; length + PAGE_BYTES];
        let start = storage.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Self {
            storage,
            range: start..start + length,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.storage[self.range.clone()]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.range.clone()]
    }
}
