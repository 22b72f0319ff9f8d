//! Random data, several times, and zeros at the end.

use super::course::Course;
use super::{AlignedBuffer, Direct, MIB, Reached, chunk, flush, verify, whole_blocks, write_range, zero};
use crate::scrub::limits::Steering;
use crate::scrub::{ScrubError, failed};
use crate::sys;
use anyhow::Context;
use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;

/// Large enough for the throughput of disks and SSDs, small enough to be stopped soon.
const CHUNK_BYTES: u64 = 4 * MIB;

/// Overwrites the whole device with random data `passes` times, then with zeros, and verifies the zeros.
pub(super) fn whole(course: &Course<'_>, passes: u32) -> Result<(), ScrubError> {
    let total = course.size_bytes.saturating_mul(u64::from(passes).saturating_add(1));
    course.steering.progress.set_total(total);
    for pass in 1..=passes {
        if let Some(range) = course.rest_of(pass) {
            let mut reached = |at| course.reached(pass, at);
            overwrite(course.device, range, pass, course.steering, &mut reached)?;
        }
    }
    zero::pass(course, passes.saturating_add(1))?;
    verify(course.device, course.size_bytes)
}

/// One pass. Past the page cache: what is only there would be overwritten by the next pass before it was ever written.
fn overwrite(
    device: &File,
    range: Range<u64>,
    pass: u32,
    steering: &Steering<'_>,
    reached: &mut Reached<'_>,
) -> Result<(), ScrubError> {
    let seed = sys::random_seed().context("no random data (getrandom)")?;
    let mut random = ChaCha8Rng::from_seed(seed);
    #[allow(clippy::cast_possible_truncation)] // 4 MiB
    let mut buffer = AlignedBuffer::new(steering.step_bytes(CHUNK_BYTES) as usize);
    let blocks = whole_blocks(device, &range)?;
    {
        let _direct = Direct::set(device).context("cannot write past the page cache (O_DIRECT)")?;
        let mut at = blocks.start;
        while at < blocks.end {
            steering.cancel.check()?;
            let chunk = chunk(at, buffer.bytes().len() as u64, blocks.end);
            random.fill_bytes(buffer.bytes_mut());
            write_range(device, &chunk, buffer.bytes()).map_err(|error| cannot_write(&error, pass, chunk.start))?;
            at = chunk.end;
            steering.done(chunk.end - chunk.start)?;
            reached(at)?;
        }
    }
    steering.progress.add(range.end - blocks.end);
    flush(device)
}

fn cannot_write(error: &io::Error, pass: u32, offset: u64) -> ScrubError {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    failed(errno, || {
        format!("cannot write random data at offset {offset} (pass {pass})")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::tests::Loop;
    use super::*;
    use crate::scrub::progress::{Cancel, Progress, Unit};
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_pass_covers_its_range_with_what_nobody_can_guess_beyond_16_tib() {
        let size = 17 * 1024 * 1024 * MIB + 512;
        let Some(device) = Loop::new(size) else { return };
        let start = size - 9 * MIB - 512;
        for at in [start - MIB, start, start % (1 << 32), start % (1 << 44)] {
            device.file.write_all_at(&[0xaa; 4096], at).unwrap();
        }
        let (progress, cancel) = (Progress::new(Unit::Bytes, 0), Cancel::new());
        let read = |at, length| {
            let mut bytes = vec![0; length];
            device.file.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        let mut former = Vec::new();
        for pass in 1..=2 {
            overwrite(
                &device.held,
                start..size,
                pass,
                &Steering::new(&progress, &cancel, None),
                &mut |_| Ok(()),
            )
            .unwrap();
            let bytes = read(start, 9 << 20 | 512);
            for block in bytes.chunks(512) {
                let mut seen = [false; 256];
                block.iter().for_each(|byte| seen[usize::from(*byte)] = true);
                // 512 random bytes have some 221 values; 150 are out of reach of anything regular.
                assert!(seen.iter().filter(|seen| **seen).count() > 150);
            }
            assert_ne!(bytes, former);
            assert_ne!(bytes[..4 << 20], bytes[4 << 20..8 << 20], "the chunks are alike");
            former = bytes;
        }
        for kept in [start - MIB, start % (1 << 32), start % (1 << 44)] {
            assert_eq!(read(kept, 4096), [0xaa; 4096], "{kept}");
        }
        assert_eq!(progress.snapshot().done, 2 * (size - start));
    }
}
