//! Giving all blocks back to the device, and zeros after that: a discard promises nothing about what is read later.

use super::course::Course;
use super::{MIB, Reached, chunk, flush, verify, whole_blocks, zero};
use crate::scrub::ScrubError;
use crate::scrub::limits::Steering;
use crate::sys;
use nix::errno::Errno;
use rustix::fd::AsFd;
use std::fs::File;
use std::ops::Range;

/// One call: what may pass before the scrub looks at its wish to stop again.
const CHUNK_BYTES: u64 = 64 * MIB;

/// Discards and zeroes the whole device, and verifies the zeros.
pub(super) fn whole(course: &Course<'_>) -> Result<(), ScrubError> {
    // As both steps cover everything, both count.
    course.steering.progress.set_total(course.size_bytes.saturating_mul(2));
    if let Some(range) = course.rest_of(1) {
        discard(course.device, range, course.steering, &mut |at| course.reached(1, at))?;
    }
    zero::pass(course, 2)?;
    verify(course.device, course.size_bytes)
}

/// Discards what the device lets be discarded. An error is none of the scrub: the zeros are what counts.
fn discard(
    device: &File,
    range: Range<u64>,
    steering: &Steering<'_>,
    reached: &mut Reached<'_>,
) -> Result<(), ScrubError> {
    let blocks = whole_blocks(device, &range)?;
    let mut at = blocks.start;
    while at < blocks.end {
        steering.cancel.check()?;
        let chunk = chunk(at, steering.step_bytes(CHUNK_BYTES), blocks.end);
        match sys::discard(device.as_fd(), &chunk) {
            Ok(()) => {}
            Err(Errno::EINTR) => continue,
            // The device refused this range (EREMOTEIO: its target did); others may go.
            Err(error @ (Errno::EIO | Errno::EREMOTEIO)) => {
                tracing::debug!(offset = chunk.start, %error, "a range could not be discarded");
            }
            Err(error) => {
                tracing::debug!(%error, "the device does not discard; it is zeroed only");
                break;
            }
        }
        at = chunk.end;
        steering.done(chunk.end - chunk.start)?;
        reached(at)?;
    }
    steering.progress.add(range.end - at);
    flush(device)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::tests::Loop;
    use super::*;
    use crate::scrub::progress::{Cancel, Progress, Unit};
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn the_range_is_given_back_and_nothing_else_beyond_16_tib() {
        let size = 17 * 1024 * 1024 * MIB + 512;
        let Some(device) = Loop::new(size) else { return };
        let start = size - 100 * MIB - 512;
        let kept = [start - MIB, start % (1 << 32), start % (1 << 44)];
        for at in kept.into_iter().chain([start, size - MIB]) {
            device.file.write_all_at(&[0xaa; 1 << 20], at).unwrap();
        }
        let blocks = || device.file.metadata().unwrap().blocks();
        let before = blocks();
        let (progress, cancel) = (Progress::new(Unit::Bytes, 0), Cancel::new());
        discard(
            &device.held,
            start..size,
            &Steering::new(&progress, &cancel, None),
            &mut |_| Ok(()),
        )
        .unwrap();
        assert!(blocks() < before, "nothing was given back");
        for at in kept {
            let mut bytes = vec![0; 1 << 20];
            device.file.read_exact_at(&mut bytes, at).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0xaa), "{at}");
        }
        assert_eq!(progress.snapshot().done, size - start);
    }
}
