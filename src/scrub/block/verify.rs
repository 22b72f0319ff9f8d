//! Reading a wiped device back, past the page cache: a device can acknowledge a wipe and not do it.

use super::{AlignedBuffer, Direct, MIB, PAGE_BYTES, logical_block_bytes};
use crate::failpoint;
use crate::scrub::{ScrubError, failed};
use anyhow::{Context, anyhow};
use rustix::io::Errno;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;

/// At the start and at the end of the device lie the signatures and tables of nearly everything: partitions, RAID, LVM,
/// LUKS, swap, ZFS labels, the first superblock of all filesystems.
const EDGE_BYTES: u64 = MIB;

/// At these offsets lie copies of superblocks, by which a tool such as fsck finds a filesystem again: btrfs, and ext4
/// with blocks of 4 KiB and of 1 KiB.
const COPIES: [u64; 8] = [
    64 * MIB,
    256 * 1024 * MIB,
    128 * MIB,
    3 * 128 * MIB,
    5 * 128 * MIB,
    7 * 128 * MIB,
    8193 * 1024,
    24577 * 1024,
];

/// So that a wipe that missed one part in sixteen is seen in all but one of sixty cases, in some ten milliseconds on
/// an SSD and half a second on a disk.
const SPREAD_SAMPLES: u64 = 64;

const SAMPLE_BYTES: u64 = 64 * 1024;

/// Of what a resumed wipe skips: two or three seconds on a disk.
const SKIPPED_SAMPLES: u64 = 256;

/// The last part of what a resumed wipe skips is read whole: what a disk had acknowledged and not yet written when the
/// power failed lies here.
const LAST_BYTES: u64 = 64 * MIB;

/// Reads samples of a wiped device of `size_bytes` with O_DIRECT: its first and last MiB, where known superblock copies
/// lie, and 64 spread evenly with a random offset each.
///
/// # Errors
///
/// `Failed`: a sample is not all zeros, or cannot be read.
pub fn verify(device: &File, size_bytes: u64) -> Result<(), ScrubError> {
    failpoint::hit!("scrub.block.wiped");
    read_samples(device, size_bytes, SPREAD_SAMPLES, 0)
}

/// As [`verify`], of what lies before `end`: more samples, and the last 64 MiB whole.
pub(super) fn skipped(device: &File, end: u64) -> Result<(), ScrubError> {
    read_samples(device, end, SKIPPED_SAMPLES, LAST_BYTES)
}

/// Reads the edges, the copies, `spread` samples, and the last bytes of what lies before `size_bytes`.
fn read_samples(device: &File, size_bytes: u64, spread: u64, last_bytes: u64) -> Result<(), ScrubError> {
    let block_bytes = logical_block_bytes(device)?;
    let whole_blocks = size_bytes - size_bytes % block_bytes;
    let random = RandomState::new();
    let mut jitter = |index| {
        let mut hasher = random.build_hasher();
        hasher.write_u64(index);
        hasher.finish()
    };
    // As large as any device asks for, and a multiple of the logical block.
    let align = block_bytes.max(PAGE_BYTES as u64);
    let mut samples = samples(whole_blocks, align, spread, &mut jitter);
    let last = whole_blocks.saturating_sub(last_bytes);
    samples.push(last - last % align..whole_blocks);
    all_zero(device, &samples, block_bytes)
}

/// Reads these ranges, which begin at multiples of the logical block, with O_DIRECT.
pub(super) fn all_zero(device: &File, ranges: &[Range<u64>], block_bytes: u64) -> Result<(), ScrubError> {
    #[allow(clippy::cast_possible_truncation)] // 1 MiB
    let mut buffer = AlignedBuffer::new(EDGE_BYTES as usize);
    let _direct = Direct::set(device).context("cannot read past the page cache (O_DIRECT)")?;
    for range in ranges {
        check(device, &(range.start..range.end - range.end % block_bytes), &mut buffer)?;
    }
    Ok(())
}

fn check(device: &File, sample: &Range<u64>, buffer: &mut AlignedBuffer) -> Result<(), ScrubError> {
    let mut at = sample.start;
    while at < sample.end {
        let length = usize::try_from(sample.end - at).unwrap_or(usize::MAX);
        let bytes = buffer.bytes_mut();
        let length = length.min(bytes.len());
        let read = match rustix::io::pread(device, &mut bytes[..length], at) {
            Ok(0) => {
                return Err(ScrubError::Failed(anyhow!("the device ends at offset {at} already")));
            }
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(failed(error, || format!("cannot read back at offset {at}"))),
        };
        if let Some(index) = bytes[..read].iter().position(|byte| *byte != 0) {
            let offset = at + index as u64;
            return Err(ScrubError::Failed(anyhow!(
                "the wipe did not reach the medium at offset {offset}"
            )));
        }
        at += read as u64;
    }
    Ok(())
}

/// What to read of a device whose size is a multiple of its logical block; every sample begins at a multiple of `align`
/// and ends there or at the end of the device. They may overlap.
fn samples(size_bytes: u64, align: u64, spread: u64, jitter: &mut dyn FnMut(u64) -> u64) -> Vec<Range<u64>> {
    let sample = |start: u64, length: u64| {
        let start = start - start % align;
        start..start.saturating_add(length.next_multiple_of(align)).min(size_bytes)
    };
    let mut samples = vec![
        sample(0, EDGE_BYTES),
        sample(size_bytes.saturating_sub(EDGE_BYTES), EDGE_BYTES + align),
    ];
    samples.extend(COPIES.iter().map(|offset| sample(*offset, SAMPLE_BYTES)));
    let stratum = size_bytes / spread;
    samples.extend((0..spread).map(|index| {
        let room = stratum.saturating_sub(SAMPLE_BYTES);
        sample(
            index * stratum + jitter(index).checked_rem(room).unwrap_or(0),
            SAMPLE_BYTES,
        )
    }));
    samples.retain(|sample| sample.start < sample.end);
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_the_copies_and_every_stratum_are_read() {
        let size = 1024 * 1024 * MIB + 512 * 3;
        let samples = samples(size, 4096, 64, &mut |index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let covers = |range: Range<u64>| {
            samples
                .iter()
                .any(|sample| sample.start <= range.start && sample.end >= range.end)
        };
        assert!(covers(0..MIB));
        assert!(covers(size - MIB..size));
        for copy in COPIES {
            assert!(covers(copy..copy + 4096), "{copy}");
        }
        let stratum = size / 64;
        for index in 0..64 {
            let inside = |sample: &&Range<u64>| {
                sample.start + 4096 >= index * stratum && sample.end <= (index + 1) * stratum + 4096
            };
            assert!(samples.iter().any(|sample| inside(&sample)), "stratum {index}");
        }
        for sample in &samples {
            assert_eq!(sample.start % 4096, 0);
            assert!(sample.end % 4096 == 0 || sample.end == size, "{sample:?}");
        }
    }

    #[test]
    fn a_tiny_device_is_read_whole() {
        for size in [512, 4096, 65_536, MIB + 512] {
            let samples = samples(size, 4096, 64, &mut |_| u64::MAX);
            assert!(samples.iter().all(|sample| sample.end <= size));
            assert_eq!(samples[0], 0..size.min(MIB));
            assert!(samples.iter().any(|sample| sample.end == size));
        }
    }
}
