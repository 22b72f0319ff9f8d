//! Wiping a block device with zeros, through a descriptor that holds it exclusively.
//!
//! The device is wiped in chunks, so that it can be stopped and reported on: one call over a whole device cannot be
//! killed before Linux 6.11. The methods are tried in the order of [`Method`].

mod verify;

#[cfg(test)]
mod tests;

pub use verify::verify;

use super::progress::{Cancel, Progress};
use super::{ScrubError, failed};
use crate::reason::Held;
use crate::sys;
use anyhow::{Context, anyhow};
use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

const MIB: u64 = 1024 * 1024;

/// For O_DIRECT: at least the logical block and the memory alignment of every driver.
const PAGE_BYTES: usize = 4096;

/// A way to make a range of a device read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// fallocate(FALLOC_FL_PUNCH_HOLE): guaranteed zeros by the device's own command, thin storage stays thin.
    PunchHole,
    /// BLKZEROOUT: as above without giving blocks back; the kernel writes zeros where the device has no command.
    ZeroOut,
    /// O_DIRECT writes from here, for devices whose commands fail.
    DirectWrite,
}

/// What to do after a method failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fallback {
    /// The device does not know the method: the rest is done with this one.
    ForGood(Method),
    /// The device failed on this range: only the range is done with this one.
    ForThisRange(Method),
}

impl Method {
    fn next(self) -> Option<Self> {
        match self {
            Self::PunchHole => Some(Self::ZeroOut),
            Self::ZeroOut => Some(Self::DirectWrite),
            Self::DirectWrite => None,
        }
    }

    fn after(self, error: &io::Error) -> Option<Fallback> {
        let next = self.next()?;
        match Errno::from_io_error(error)? {
            // ENODEV is what kernels without fallocate on block devices answer, EINVAL what some drivers do.
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::NOTTY | Errno::INVAL => {
                Some(Fallback::ForGood(next))
            }
            // EREMOTEIO: the target refused the command.
            Errno::IO | Errno::REMOTEIO => Some(Fallback::ForThisRange(next)),
            _ => None,
        }
    }

    /// How much one call covers: what may pass before the scrub looks at [`Cancel`] again.
    fn chunk_bytes(self) -> u64 {
        match self {
            Self::PunchHole | Self::ZeroOut => 64 * MIB,
            Self::DirectWrite => 4 * MIB,
        }
    }
}

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

/// Zeroes a device of `size_bytes` and verifies by samples that the zeros reached the medium.
///
/// `device` comes from [`open_device`]. `before_first_write` is called once, after the checks on the descriptor and
/// right before the first write; its error ends the scrub with nothing touched.
///
/// # Errors
///
/// `Held`: the device is read-only. `Failed`: it has another size, cannot be written, or does not read as zeros.
/// `Cancelled`.
pub fn zero(
    device: &File,
    size_bytes: u64,
    before_first_write: &mut dyn FnMut() -> Result<(), ScrubError>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<(), ScrubError> {
    if sys::block_read_only(device.as_fd()).context("cannot ask whether the device is read-only (BLKROGET)")? {
        return Err(ScrubError::Held(Held::ReadOnly));
    }
    let found = sys::block_bytes(device.as_fd()).context("cannot read the size of the device (BLKGETSIZE64)")?;
    if found != size_bytes || found == 0 {
        return Err(ScrubError::Failed(anyhow!(
            "the device has {found} bytes, not {size_bytes}"
        )));
    }
    cancel.check()?;
    before_first_write()?;
    progress.set_total(size_bytes);
    zero_range(device, 0..size_bytes, progress, cancel)?;
    verify(device, size_bytes)
}

/// Zeroes the bytes of `range` and flushes the device; nothing is checked before and nothing verified after.
///
/// The start must be a multiple of the logical block. Of the end whole blocks are wiped: a part of a block at the end of
/// a device (a 512-byte rest of a device with blocks of 4 KiB) can be neither written nor read through that device.
///
/// # Errors
///
/// `Failed`: misaligned, or the device cannot be written. `Cancelled`: the range is done up to some chunk, not flushed.
pub fn zero_range(device: &File, range: Range<u64>, progress: &Progress, cancel: &Cancel) -> Result<(), ScrubError> {
    let block_bytes = logical_block_bytes(device)?;
    if !range.start.is_multiple_of(block_bytes) {
        return Err(ScrubError::Failed(anyhow!(
            "offset {} is not a multiple of the logical block ({block_bytes} bytes)",
            range.start
        )));
    }
    let whole_blocks = range.start..(range.end - range.end % block_bytes).max(range.start);
    let mut zeros = None;
    wipe(whole_blocks.clone(), progress, cancel, &mut |method, chunk| {
        apply(method, device, chunk, &mut zeros)
    })?;
    progress.add(range.end.saturating_sub(whole_blocks.end));
    rustix::fs::fsync(device).map_err(|error| failed(error, || "cannot flush the device (fsync)".to_owned()))
}

/// Steps through the range in chunks that end at multiples of the chunk size, falling back as the methods fail.
fn wipe(
    range: Range<u64>,
    progress: &Progress,
    cancel: &Cancel,
    attempt: &mut dyn FnMut(Method, &Range<u64>) -> io::Result<()>,
) -> Result<(), ScrubError> {
    let mut at = range.start;
    let mut settled = Method::PunchHole;
    let mut detour: Option<(Method, u64)> = None;
    while at < range.end {
        cancel.check()?;
        let method = match detour {
            Some((method, until)) if at < until => method,
            _ => settled,
        };
        let chunk = at..(at - at % method.chunk_bytes())
            .saturating_add(method.chunk_bytes())
            .min(range.end);
        let error = match attempt(method, &chunk) {
            Ok(()) => {
                progress.add(chunk.end - chunk.start);
                at = chunk.end;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        match method.after(&error) {
            Some(Fallback::ForGood(next)) if method == settled => settled = next,
            Some(Fallback::ForGood(next) | Fallback::ForThisRange(next)) => {
                let until = detour.map_or(chunk.end, |(_, until)| until.max(chunk.end));
                detour = Some((next, until));
            }
            None => {
                let what = format!("cannot write zeros at offset {} ({method:?})", chunk.start);
                return Err(ScrubError::Failed(anyhow::Error::new(error).context(what)));
            }
        }
        tracing::debug!(?method, offset = chunk.start, %error, "falling back to another method of wiping");
    }
    Ok(())
}

fn apply(method: Method, device: &File, range: &Range<u64>, zeros: &mut Option<AlignedBuffer>) -> io::Result<()> {
    match method {
        Method::PunchHole => {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(
                device,
                mode,
                range.start,
                range.end - range.start,
            )?)
        }
        Method::ZeroOut => sys::zero_out(device.as_fd(), range).map_err(Into::into),
        Method::DirectWrite => {
            let _direct = Direct::set(device)?;
            #[allow(clippy::cast_possible_truncation)] // 4 MiB
            let zeros = zeros.get_or_insert_with(|| AlignedBuffer::new(Method::DirectWrite.chunk_bytes() as usize));
            write_zeros(device, range, zeros.bytes())
        }
    }
}

fn write_zeros(device: &File, range: &Range<u64>, zeros: &[u8]) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(zeros.len());
        match rustix::io::pwrite(device, &zeros[..length], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => at += written as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn logical_block_bytes(device: &File) -> Result<u64, ScrubError> {
    let bytes = rustix::fs::ioctl_blksszget(device)
        .map_err(|error| failed(error, || "cannot read the logical block size (BLKSSZGET)".to_owned()))?;
    Ok(u64::from(bytes).max(1))
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
