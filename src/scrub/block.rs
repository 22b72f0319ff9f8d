//! Wiping a block device, through a descriptor that holds it exclusively.
//!
//! The device is wiped in chunks, so that it can be stopped and reported on: one call over a whole device cannot be
//! killed before Linux 6.11.

mod discard;
mod quick;
mod shred;
#[cfg(test)]
mod tests;
mod verify;
mod zero;

pub use verify::verify;
pub use zero::zero_range;

use super::limits::Steering;
use super::{ScrubError, failed};
use crate::config::Cleaner;
use crate::failpoint;
use crate::reason::Held;
use crate::sys;
use anyhow::{Context, anyhow};
use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

const MIB: u64 = 1024 * 1024;

/// For O_DIRECT: at least the logical block and the memory alignment of every driver.
const PAGE_BYTES: usize = 4096;

/// Opens a block device for a scrub: read-write, and exclusively until it is closed (`O_EXCL`).
///
/// A symlink is followed: the caller checks the identity on the descriptor. What is no block device is not opened.
///
/// # Errors
///
/// `Held`: there is no block device (`NotMounted`), it is mounted or held exclusively (`InUse`), or it is read-only.
/// `Failed`: it cannot be opened.
pub fn open_device(path: &Path) -> Result<File, ScrubError> {
    let not_there = |why: &str| ScrubError::Held(Held::NotMounted(format!("{} {why}", path.display())));
    let cannot_open = |error| failed(error, || format!("cannot open {path:?}"));
    // Opening a FIFO or a character device has effects; this does not open them, and stays on what it found.
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => not_there("does not exist, or is a symlink to something that does not"),
        error => cannot_open(error),
    })?;
    let status = rustix::fs::fstat(&found).map_err(cannot_open)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::BlockDevice {
        return Err(not_there("is not a block device"));
    }
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    match rustix::fs::open(link, flags, Mode::empty()) {
        Ok(device) => Ok(File::from(device)),
        Err(Errno::BUSY) => Err(ScrubError::Held(Held::InUse(format!(
            "{} is mounted or held exclusively",
            path.display()
        )))),
        Err(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => Err(not_there("has no device behind it")),
        // EACCES is what a read-only device answers, but a filesystem mounted with nodev does so too.
        Err(Errno::ACCESS | Errno::PERM) if sysfs_says_read_only(status.st_rdev) => {
            Err(ScrubError::Held(Held::ReadOnly))
        }
        Err(error) => Err(cannot_open(error)),
    }
}

fn sysfs_says_read_only(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).is_ok_and(|text| text.trim() == "1")
}

/// Wipes a device of `size_bytes` by a native method and verifies by samples that the wipe reached the medium. All
/// methods leave zeros, `quick` only where signatures may be: what else was on the device stays readable after that.
///
/// `device` comes from [`open_device`] or [`crate::devices::claim_exclusive`]. `before_first_write` is called once,
/// after the checks on the descriptor and right before the first write; its error ends the scrub with nothing touched.
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
    let method: &dyn Fn() -> Result<(), ScrubError> = match cleaner {
        Cleaner::Zero => &|| zero::whole(device, size_bytes, steering),
        Cleaner::Discard => &|| discard::whole(device, size_bytes, steering),
        Cleaner::Shred { passes } => &|| shred::whole(device, size_bytes, *passes, steering),
        Cleaner::Quick => &|| quick::signatures(device, size_bytes, steering),
        Cleaner::Fsclean | Cleaner::Command(_) => {
            return Err(ScrubError::Held(Held::CleanerUnavailable(format!(
                "{cleaner} does not wipe block devices; use zero, discard, shred or quick"
            ))));
        }
    };
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
    before_first_write()?;
    failpoint::hit!("scrub.block.checked");
    method()?;
    failpoint::hit!("scrub.block.verified");
    Ok(())
}

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
