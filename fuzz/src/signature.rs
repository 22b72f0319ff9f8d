//! Signatures of members. The input describes a device in lines: `size=BYTES`, and `OFFSET=BYTES` for what is written
//! where, counted from the end where it is negative. All else is zero.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use local_volume_provisioner::devices::signature::{ReadAt, member_of};

use crate::text::fields;

const MIB: u64 = 1 << 20;

/// Far more than the labels of all kinds together.
const MOST_READ: u64 = 2 * MIB;

pub(crate) fn target(data: &[u8]) {
    let disk = Disk::described(data);
    let found = disk.member_of();
    appended(&disk, found);
    middle(&disk, found);
    wiped(&disk);
    errors(&disk);
}

/// With zeros behind it, only what is at the start can be found, and that was there before. (A pool of ZFS is not told
/// on a device that is too small for its four labels.)
fn appended(disk: &Disk, found: Option<&'static str>) {
    let mut larger = disk.clone();
    larger.size = match disk.size.checked_add(3 * MIB) {
        Some(size) => size / MIB * MIB,
        None => return,
    };
    match larger.member_of() {
        None => {}
        Some(name) if name.contains("firmware") => panic!("{name} is at the end, where there are zeros"),
        Some(name) if name.contains("ZFS") => assert!(found.is_some() || disk.size < MIB, "{name}"),
        Some(name) => assert_eq!(found, Some(name)),
    }
    if let Some(name) = found.filter(|name| name.contains("LVM")) {
        assert_eq!(larger.member_of(), Some(name));
    }
}

/// What is in the middle of a device says nothing: it is a user's data.
fn middle(disk: &Disk, found: Option<&'static str>) {
    let mut noisy = disk.clone();
    let from = MIB;
    if let Some(last) = disk.size.checked_sub(MIB + 4096).filter(|last| *last >= from) {
        for offset in [from, last] {
            for magic in [
                &b"LABELONE"[..],
                &0x00ba_b10c_u64.to_le_bytes(),
                &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0],
            ] {
                noisy.write(offset, magic);
                assert_eq!(noisy.member_of(), found, "{magic:x?} at {offset}");
            }
        }
    }
}

/// Zeros in the first and the last MiB remove every signature.
fn wiped(disk: &Disk) {
    let mut wiped = disk.clone();
    let end = disk.size.saturating_sub(MIB);
    wiped.bytes.retain(|offset, _| (MIB..end).contains(offset));
    assert_eq!(wiped.member_of(), None);
}

/// A read that fails is an error, whichever it is, and never "no member".
fn errors(disk: &Disk) {
    let whole = disk.member_of();
    let reads = disk.reads.get();
    for broken in 0..reads {
        disk.restart();
        disk.fail_at.set(Some(broken));
        let result = member_of(disk, disk.size);
        assert!(
            result.is_err(),
            "read {broken} of {reads} failed, and the answer is {result:?}"
        );
        disk.fail_at.set(None);
    }
    assert_eq!(disk.member_of(), whole);
}

/// A device that panics where somebody reads what is not there.
#[derive(Clone)]
struct Disk {
    size: u64,
    bytes: BTreeMap<u64, u8>,
    reads: Cell<usize>,
    read: Cell<u64>,
    fail_at: Cell<Option<usize>>,
}

impl Disk {
    fn described(data: &[u8]) -> Self {
        let mut disk = Self {
            size: 8 * MIB,
            bytes: BTreeMap::new(),
            reads: Cell::new(0),
            read: Cell::new(0),
            fail_at: Cell::new(None),
        };
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok();
        if let Some(size) = fields(data, b'=').find_map(|(name, value)| number(&value).filter(|_| name == "size")) {
            disk.size = size;
        }
        for (name, value) in fields(data, b'=') {
            let offset = match (name.parse::<u64>(), name.strip_prefix('-').map(str::parse::<u64>)) {
                (Ok(offset), _) => Some(offset),
                (_, Some(Ok(back))) => disk.size.checked_sub(back),
                _ => None,
            };
            if let Some(offset) = offset {
                disk.write(offset, &value);
            }
        }
        disk
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let inside = (offset..self.size).zip(bytes.iter().copied());
        self.bytes.extend(inside);
    }

    fn restart(&self) {
        self.reads.set(0);
        self.read.set(0);
    }

    fn member_of(&self) -> Option<&'static str> {
        self.restart();
        match member_of(self, self.size) {
            Ok(found) => found,
            Err(error) => panic!("no read failed, and yet: {error}"),
        }
    }
}

impl ReadAt for Disk {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let number = self.reads.get();
        self.reads.set(number + 1);
        if self.fail_at.get() == Some(number) {
            return Err(io::Error::other("a bad sector"));
        }
        let length = buffer.len() as u64;
        self.read.set(self.read.get() + length);
        assert!(self.read.get() <= MOST_READ, "more than {MOST_READ} bytes were read");
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let Some(end) = end else {
            panic!("{length} bytes at {offset} are not all inside of {} bytes", self.size);
        };
        buffer.fill(0);
        for (at, byte) in self.bytes.range(offset..end) {
            if let Some(place) = usize::try_from(at - offset).ok().and_then(|at| buffer.get_mut(at)) {
                *place = *byte;
            }
        }
        Ok(())
    }
}
