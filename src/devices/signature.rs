//! The signatures of devices that are a part of something larger.
//!
//! Such a device may look idle (its array is not assembled, its pool not imported) and still hold somebody's data. What
//! is searched is what the tools themselves write: LVM2 physical volumes, members of ZFS pools, of Linux md arrays and
//! of firmware RAID sets.

use std::io;
use std::os::unix::fs::FileExt;

/// What a device that is read from byte offsets looks like; a file is one.
pub trait ReadAt {
    /// Fills the buffer from this offset in bytes.
    ///
    /// # Errors
    /// That of the read, and UnexpectedEof.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

const SECTOR: u64 = 512;

/// What the device of this size is a member of, in words such as `an LVM2 physical volume`.
///
/// # Errors
/// That of reading it.
pub fn member_of(device: &impl ReadAt, size_bytes: u64) -> io::Result<Option<&'static str>> {
    type Check = fn(&Window<'_>) -> io::Result<bool>;
    let checks: [(Check, &'static str); 5] = [
        (lvm, "an LVM2 physical volume"),
        (md, "a Linux RAID member"),
        (imsm, "an Intel firmware RAID member"),
        (ddf, "a DDF firmware RAID member"),
        (zfs, "a ZFS pool member"),
    ];
    let window = Window { device, size_bytes };
    for (check, name) in checks {
        if check(&window)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A device and its size, behind which nothing is read.
struct Window<'a> {
    device: &'a dyn ReadAt,
    size_bytes: u64,
}

impl Window<'_> {
    /// These bytes, or none if they are not all inside of the device.
    fn bytes(&self, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        if offset
            .checked_add(length as u64)
            .is_none_or(|end| end > self.size_bytes)
        {
            return Ok(None);
        }
        let mut buffer = vec![0; length];
        self.device.read_exact_at(&mut buffer, offset)?;
        Ok(Some(buffer))
    }

    fn starts_with(&self, offset: u64, magics: &[&[u8]]) -> io::Result<bool> {
        let length = magics.iter().map(|magic| magic.len()).max().unwrap_or(0);
        let found = self.bytes(offset, length)?;
        Ok(found.is_some_and(|bytes| magics.iter().any(|magic| bytes.starts_with(magic))))
    }

    fn before_end(&self, distance: u64) -> Option<u64> {
        self.size_bytes.checked_sub(distance)
    }
}

/// The label is in one of the first four sectors: "LABELONE", its number, a checksum, an offset, "LVM2 001".
fn lvm(window: &Window<'_>) -> io::Result<bool> {
    for sector in 0..4 {
        let label = window.bytes(sector * SECTOR, 32)?;
        if label.is_some_and(|label| label.starts_with(b"LABELONE") && label.ends_with(b"LVM2 001"))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

const MD_MAGIC: u32 = 0xa92b_4efc;

/// Version 0.90 in the last whole 64 KiB but one, in the byte order of its machine; 1.0 near the end, 1.1 at the start,
/// 1.2 behind 4 KiB.
fn md(window: &Window<'_>) -> io::Result<bool> {
    const RESERVED: u64 = 64 << 10;
    let old = (window.size_bytes & !(RESERVED - 1)).checked_sub(RESERVED);
    if let Some(offset) = old
        && window.starts_with(offset, &[&MD_MAGIC.to_le_bytes(), &MD_MAGIC.to_be_bytes()])?
    {
        return Ok(true);
    }
    let at_end = (window.size_bytes / SECTOR)
        .checked_sub(16)
        .map(|sector| (sector & !7) * SECTOR);
    let mut magic = MD_MAGIC.to_le_bytes().to_vec();
    magic.extend_from_slice(&1_u32.to_le_bytes());
    for offset in at_end.into_iter().chain([0, 4096]) {
        if window.starts_with(offset, &[&magic])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The anchor of Intel's metadata is in the last sector but one.
fn imsm(window: &Window<'_>) -> io::Result<bool> {
    match window.before_end(2 * SECTOR) {
        Some(offset) => window.starts_with(offset, &[b"Intel Raid ISM Cfg Sig. "]),
        None => Ok(false),
    }
}

/// The anchor of the SNIA disk data format is in the last sector, or 257 sectors before where some firmware puts it.
fn ddf(window: &Window<'_>) -> io::Result<bool> {
    const MAGIC: [u8; 4] = 0xde11_de11_u32.to_be_bytes();
    for distance in [SECTOR, 257 * SECTOR] {
        if let Some(offset) = window.before_end(distance)
            && window.starts_with(offset, &[&MAGIC])?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A pool has four labels of 256 KiB, two at each end; the second half of each is a ring of uberblocks.
fn zfs(window: &Window<'_>) -> io::Result<bool> {
    const LABEL: u64 = 256 << 10;
    const RING: u64 = 128 << 10;
    const RING_BYTES: usize = 128 << 10;
    /// The smallest uberblock; they are aligned to their size.
    const UBERBLOCK: usize = 1 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    /// Every write of the pool writes one to each label. As few as libblkid asks for, so that wipefs sees what is seen
    /// here.
    const ENOUGH: usize = 4;
    let end = window.size_bytes & !(LABEL - 1);
    if end < 4 * LABEL {
        return Ok(false);
    }
    let mut found = 0;
    for label in [0, LABEL, end - 2 * LABEL, end - LABEL] {
        let Some(ring) = window.bytes(label + RING, RING_BYTES)? else {
            continue;
        };
        found += ring
            .chunks_exact(UBERBLOCK)
            .filter(|slot| {
                slot.starts_with(&MAGIC.to_le_bytes()) || slot.starts_with(&MAGIC.to_be_bytes())
            })
            .count();
        if found >= ENOUGH {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SIZE: usize = (8 << 20) + 5 * 512;

    impl ReadAt for Vec<u8> {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let from = usize::try_from(offset).unwrap();
            let bytes = self
                .get(from..from + buffer.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        }
    }

    fn disk(writes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        for (offset, data) in writes {
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
        bytes
    }

    fn found(writes: &[(usize, &[u8])]) -> Option<&'static str> {
        member_of(&disk(writes), SIZE as u64).unwrap()
    }

    #[test]
    fn lvm_labels_in_the_first_four_sectors() {
        for sector in 0..4 {
            assert_eq!(
                found(&[
                    (sector * 512, b"LABELONE"),
                    (sector * 512 + 24, b"LVM2 001")
                ]),
                Some("an LVM2 physical volume")
            );
        }
        assert_eq!(
            found(&[(4 * 512, b"LABELONE"), (4 * 512 + 24, b"LVM2 001")]),
            None
        );
        assert_eq!(found(&[(512, b"LABELONE")]), None);
    }

    #[test]
    fn md_superblocks_of_every_version() {
        let member = Some("a Linux RAID member");
        let little = &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0];
        let big = &[0xa9, 0x2b, 0x4e, 0xfc];
        let old = (SIZE & !0xffff) - 0x10000;
        let one_zero = ((SIZE / 512 - 16) & !7) * 512;
        for offset in [0, 4096, one_zero, old] {
            assert_eq!(found(&[(offset, little)]), member, "at {offset}");
        }
        assert_eq!(found(&[(old, big)]), member);
        assert_eq!(found(&[(0, big)]), None, "version 1 is little-endian");
        assert_eq!(found(&[(8192, little)]), None);
        assert_eq!(
            found(&[(4096, &little[..4])]),
            None,
            "of another major version"
        );
    }

    #[test]
    fn firmware_raid_at_the_end() {
        assert_eq!(
            found(&[(SIZE - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00")]),
            Some("an Intel firmware RAID member")
        );
        assert_eq!(
            found(&[(SIZE - 512, &[0xde, 0x11, 0xde, 0x11])]),
            Some("a DDF firmware RAID member")
        );
        assert_eq!(
            found(&[(SIZE - 257 * 512, &[0xde, 0x11, 0xde, 0x11])]),
            Some("a DDF firmware RAID member")
        );
    }

    #[test]
    fn zfs_by_four_uberblocks() {
        let magic = 0x00ba_b10c_u64.to_le_bytes();
        let ring = |label: usize, slot: usize| label + (128 << 10) + slot * 1024;
        let end = SIZE & !((256 << 10) - 1);
        let labels = [0, 256 << 10, end - (512 << 10), end - (256 << 10)];
        let one_each: Vec<(usize, &[u8])> = labels
            .iter()
            .map(|label| (ring(*label, 7), &magic[..]))
            .collect();
        assert_eq!(found(&one_each), Some("a ZFS pool member"));
        assert_eq!(found(&one_each[..3]), None);
        let swapped = 0x00ba_b10c_u64.to_be_bytes();
        let last: Vec<(usize, &[u8])> = (0..4)
            .map(|slot| (ring(labels[3], slot * 4), &swapped[..]))
            .collect();
        assert_eq!(found(&last), Some("a ZFS pool member"));
    }

    #[test]
    fn nothing_on_blank_and_on_tiny_devices() {
        assert_eq!(found(&[]), None);
        for size in [0, 1, 511, 512, 4096, 70_000, 1 << 20] {
            assert_eq!(
                member_of(&vec![0; size], size as u64).unwrap(),
                None,
                "{size}"
            );
        }
    }

    #[test]
    fn a_read_error_is_not_absence() {
        assert!(member_of(&vec![0; 100], 1 << 20).is_err());
    }
}
