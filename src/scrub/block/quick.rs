//! Wiping signatures only: what tools recognise a filesystem, a volume manager or a partition table by.
//!
//! The data between them stays on the device and can be read by whoever gets it next. It is there for those who
//! configured `/scripts/quick_reset.sh` and know it.

use super::{MIB, PAGE_BYTES, flush, logical_block_bytes, verify, zero};
use crate::devices::signature;
use crate::scrub::ScrubError;
use crate::scrub::limits::Steering;
use anyhow::{Context, anyhow};
use std::fs::File;
use std::ops::Range;

const KIB: u64 = 1024;

/// At both ends: partition tables (MBR, GPT), the first superblock of every filesystem, LVM labels with the start of
/// their metadata, md, firmware RAID (Promise looks up to 1.6 MiB from the end), the ZFS labels, swap, LUKS1 and the
/// first and second header of LUKS2 (the second lies up to 4 MiB in).
const EDGE_BYTES: u64 = 5 * MIB;

/// Superblock copies elsewhere: btrfs (the third is at 1 PiB), UDF anchors and VMFS are within the edges.
const BTRFS_MIRRORS: [u64; 3] = [64 * MIB, 256 * 1024 * MIB, 1 << 50];

/// Ceph's BlueStore keeps copies of its label here.
const BLUESTORE_LABELS: [u64; 4] = [1 << 30, 10 << 30, 100 << 30, 1000 << 30];

const COPY_BYTES: u64 = 64 * KIB;

/// Wipes the signatures and verifies that they are gone.
pub(super) fn signatures(device: &File, size_bytes: u64, steering: &Steering<'_>) -> Result<(), ScrubError> {
    let block_bytes = logical_block_bytes(device)?;
    let places = places(size_bytes, block_bytes.max(PAGE_BYTES as u64));
    let total: u64 = places.iter().map(|place| place.end - place.start).sum();
    steering.progress.set_total(total);
    for place in &places {
        zero::zero_unflushed(device, place.clone(), steering, &mut |_| Ok(()))?;
    }
    flush(device)?;
    verify::all_zero(device, &places, block_bytes)?;
    let left = signature::member_of(device, size_bytes).context("cannot look for signatures")?;
    match left {
        None => Ok(()),
        Some(member) => Err(ScrubError::Failed(anyhow!(
            "it still carries the signature of {member}"
        ))),
    }
}

/// What to wipe of a device of this size: aligned to `align` but for its end, in order, without overlaps.
fn places(size_bytes: u64, align: u64) -> Vec<Range<u64>> {
    let copies = BTRFS_MIRRORS
        .into_iter()
        .chain(BLUESTORE_LABELS)
        .chain(ext_backups(size_bytes));
    let mut places: Vec<Range<u64>> = copies
        .filter(|start| *start < size_bytes)
        .map(|start| start..start.saturating_add(COPY_BYTES))
        .chain([0..EDGE_BYTES, size_bytes.saturating_sub(EDGE_BYTES)..size_bytes])
        .map(|place| {
            let end = place.end.next_multiple_of(align).min(size_bytes);
            place.start - place.start % align..end
        })
        .collect();
    places.sort_by_key(|place| place.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(places.len());
    for place in places {
        match merged.last_mut() {
            Some(last) if place.start <= last.end => last.end = last.end.max(place.end),
            _ => merged.push(place),
        }
    }
    merged
}

/// Where ext2, ext3 and ext4 keep copies of the superblock: at the start of the block groups 1 and those that are a
/// power of 3, 5 or 7, for each usual size of blocks. A group has as many blocks as a block has bits.
fn ext_backups(size_bytes: u64) -> impl Iterator<Item = u64> {
    [KIB, 2 * KIB, 4 * KIB].into_iter().flat_map(move |block_bytes| {
        let group_bytes = block_bytes * 8 * block_bytes;
        // With blocks of 1 KiB the first one is the boot block, and groups are counted from the second.
        let first = if block_bytes == KIB { KIB } else { 0 };
        [3_u64, 5, 7].into_iter().flat_map(move |base| {
            std::iter::successors(Some(1_u64), move |group| group.checked_mul(base))
                .map_while(move |group| group.checked_mul(group_bytes)?.checked_add(first))
                .take_while(move |offset| *offset < size_bytes)
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn covers(places: &[Range<u64>], offset: u64) -> bool {
        places.iter().any(|place| place.contains(&offset))
    }

    #[test]
    fn the_places_are_aligned_ordered_and_apart() {
        for size in [512, 4096, MIB + 512, 10 * MIB, 100 * MIB + 512 * 3, 17 << 40] {
            let places = places(size, 4096);
            assert_eq!(places[0].start, 0, "{size}");
            assert_eq!(places.last().unwrap().end, size);
            for place in &places {
                assert!(place.start < place.end && place.start % 4096 == 0);
                assert!(place.end % 4096 == 0 || place.end == size, "{place:?}");
            }
            for pair in places.windows(2) {
                assert!(pair[0].end < pair[1].start, "{pair:?}");
            }
        }
    }

    #[test]
    fn the_backups_that_mkfs_prints_are_covered() {
        let places = places(200 << 30, 4096);
        for block in [
            32_768_u64, 98_304, 163_840, 229_376, 294_912, 819_200, 884_736, 1_605_632, 2_654_208, 4_096_000,
        ] {
            assert!(covers(&places, block * 4096), "{block} of 4 KiB");
        }
        for block in [8193_u64, 24_577, 40_961, 57_345, 73_729, 204_801, 221_185] {
            assert!(covers(&places, block * 1024), "{block} of 1 KiB");
        }
        for offset in [64 * MIB, 1 << 30, 100 << 30, 4 * MIB, (200 << 30) - 1, 63 * 512] {
            assert!(covers(&places, offset), "{offset}");
        }
        let wiped: u64 = places.iter().map(|place| place.end - place.start).sum();
        assert!(wiped < 20 * MIB, "{wiped} is not quick");
    }
}
