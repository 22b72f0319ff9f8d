//! Zeros, by the best way that a device has: the methods are tried in the order of [`Method`].

#[cfg(test)]
mod tests;

use super::course::Course;
use super::{AlignedBuffer, Direct, MIB, Reached, chunk, flush, verify, whole_blocks, write_range};
use crate::scrub::ScrubError;
use crate::scrub::limits::Steering;
use crate::sys;
use rustix::fd::AsFd;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;

/// A way to make a range of a device read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
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

/// Zeroes the whole device and verifies it.
pub(super) fn whole(course: &Course<'_>) -> Result<(), ScrubError> {
    course.steering.progress.set_total(course.size_bytes);
    pass(course, 1)?;
    verify(course.device, course.size_bytes)
}

/// Zeroes what is left of a pass over the whole device.
pub(super) fn pass(course: &Course<'_>, number: u32) -> Result<(), ScrubError> {
    let Some(range) = course.rest_of(number) else {
        return Ok(());
    };
    let mut reached = |at| course.reached(number, at);
    zero_unflushed(course.device, range, course.steering, &mut reached)?;
    flush(course.device)
}

/// Zeroes the bytes of `range` and flushes the device; nothing is checked before and nothing verified after.
///
/// The start must be a multiple of the logical block. Of the end whole blocks are wiped: a part of a block at the end of
/// a device (a 512-byte rest of a device with blocks of 4 KiB) can be neither written nor read through that device.
///
/// # Errors
///
/// `Failed`: misaligned, or the device cannot be written. `Cancelled`: the range is done up to some chunk, not flushed.
pub fn zero_range(device: &File, range: Range<u64>, steering: &Steering<'_>) -> Result<(), ScrubError> {
    zero_unflushed(device, range, steering, &mut |_| Ok(()))?;
    flush(device)
}

/// As [`zero_range`], without flushing.
pub(super) fn zero_unflushed(
    device: &File,
    range: Range<u64>,
    steering: &Steering<'_>,
    reached: &mut Reached<'_>,
) -> Result<(), ScrubError> {
    let blocks = whole_blocks(device, &range)?;
    let mut zeros = None;
    let mut attempt = |method: Method, chunk: &Range<u64>| apply(method, device, chunk, &mut zeros);
    step_through(blocks.clone(), steering, &mut attempt, reached)?;
    steering.progress.add(range.end.saturating_sub(blocks.end));
    Ok(())
}

/// Steps through the range in chunks that end at multiples of the chunk size, falling back as the methods fail.
fn step_through(
    range: Range<u64>,
    steering: &Steering<'_>,
    attempt: &mut dyn FnMut(Method, &Range<u64>) -> io::Result<()>,
    reached: &mut Reached<'_>,
) -> Result<(), ScrubError> {
    let mut at = range.start;
    let mut settled = Method::PunchHole;
    let mut detour: Option<(Method, u64)> = None;
    while at < range.end {
        steering.cancel.check()?;
        let method = match detour {
            Some((method, until)) if at < until => method,
            _ => settled,
        };
        let chunk = chunk(at, steering.step_bytes(method.chunk_bytes()), range.end);
        let error = match attempt(method, &chunk) {
            Ok(()) => {
                at = chunk.end;
                steering.done(chunk.end - chunk.start)?;
                reached(at)?;
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
            write_range(device, range, zeros.bytes())
        }
    }
}
