//! What identifies the storage itself, whatever it is called today.
//!
//! A [`VolumeId`] is kept on the PV as the annotation `local-volume-provisioner/volume-id` and compared before a
//! volume is published again, before it is scrubbed, and while it is bound. Mount ids are never part of it.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use litemap::LiteMap;

pub mod read;
#[cfg(test)]
mod tests;

/// What kind of storage an id describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdKind {
    /// A filesystem that outlives a reboot.
    Filesystem,
    /// A filesystem (tmpfs) or device (a RAM disk) that does not: after a reboot the old storage does not exist any
    /// more.
    Volatile,
    /// A block device.
    Device,
}

impl IdKind {
    fn word(self) -> &'static str {
        match self {
            Self::Filesystem => "filesystem",
            Self::Volatile => "volatile",
            Self::Device => "device",
        }
    }
}

/// The names of the parts of an id.
pub mod part {
    /// The kernel's boot id at the time of reading.
    pub const BOOT: &str = "boot";
    /// UUID of the filesystem, with hyphens.
    pub const UUID: &str = "uuid";
    /// `f_fsid` of statfs(2), only for the types of filesystem where it derives from what is stored in it.
    pub const FSID: &str = "fsid";
    /// The mounted directory of the filesystem, for a bind mount or a btrfs subvolume.
    pub const SUBTREE: &str = "subtree";
    /// The directory's file handle (name_to_handle_at(2)), type and bytes in hexadecimal.
    pub const HANDLE: &str = "handle";
    /// The directory's inode number.
    pub const INODE: &str = "inode";
    /// When the directory was made, in nanoseconds since 1970.
    pub const BTIME: &str = "btime";
    /// Device number of a volatile filesystem that does not tell its UUID.
    pub const DEVICE: &str = "device";
    /// The disk's WWN, EUI, NGUID or NVMe UUID.
    pub const WWN: &str = "wwn";
    /// The disk's serial number, where it has no WWN.
    pub const SERIAL: &str = "serial";
    /// Where the disk is attached, where it has neither WWN nor serial number.
    pub const BUS: &str = "bus";
    /// Number of a partition.
    pub const PARTITION: &str = "partition";
    /// First sector of a partition, in units of 512 bytes.
    pub const START: &str = "start";
    /// The partition's UUID in the partition table.
    pub const PARTUUID: &str = "partuuid";
    /// UUID of a device mapper device.
    pub const DM: &str = "dm";
    /// UUID of an md array.
    pub const MD: &str = "md";
    /// Inode number of a loop device's backing file (or device node).
    pub const LOOP_INODE: &str = "loop-inode";
    /// Device number of the filesystem that the backing file is in.
    pub const LOOP_DEVICE: &str = "loop-device";
    /// The backing file's path.
    pub const LOOP_PATH: &str = "loop-path";
    /// Where in the backing file the loop device begins, in bytes.
    pub const LOOP_OFFSET: &str = "loop-offset";
    /// The kernel's sequence number of this attachment of the disk.
    pub const DISKSEQ: &str = "diskseq";
    /// The kernel's name of a RAM disk.
    pub const RAM: &str = "ram";
}

/// The identity of a filesystem (or a subtree of one) or of a block device.
///
/// Written as `kind key=value key=value …` with the keys sorted and the values percent-encoded where needed, so that
/// an operator can read it and two ids can be compared by eye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeId {
    /// What kind of storage.
    pub kind: IdKind,
    /// What identifies it, such as `uuid`, `subtree`, `handle`, `wwn`, `diskseq`, `boot`; see [`part`]. Looks, plans and
    /// rows have the same ids, of all volumes.
    pub parts: Arc<LiteMap<Cow<'static, str>, Box<str>>>,
}

/// A part of an id that identifies by itself; see [`VolumeId::keys`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// `f_fsid` of a filesystem, or what ext4 would make of its UUID.
    Fsid(u64),
    /// The name and the value of another [`part`].
    Part(&'static str, &'a str),
}

/// How the storage that is there now relates to the one that was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same storage.
    Same,
    /// Other storage.
    Different,
    /// The noted storage was volatile and went with a reboot: there is nothing to scrub, and this is a new volume.
    LostWithReboot,
}

impl VolumeId {
    /// An id without parts, to be filled with [`with`](Self::with).
    #[must_use]
    pub fn new(kind: IdKind) -> Self {
        Self {
            kind,
            parts: Arc::default(),
        }
    }

    /// The id with one more part.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Box<str>>) -> Self {
        Arc::make_mut(&mut self.parts).insert(Cow::Borrowed(key), value.into());
        self
    }

    /// One part, if the id has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.parts.get(key).map(Box::as_ref)
    }

    /// Whether `text` is this id as it is written. Cheaper than to read or to write one.
    #[must_use]
    pub fn is_written(&self, text: &str) -> bool {
        use fmt::Write as _;
        struct Expected<'a>(&'a str);
        impl fmt::Write for Expected<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
                Ok(())
            }
        }
        let mut expected = Expected(text);
        write!(expected, "{self}").is_ok() && expected.0.is_empty()
    }

    /// Whether this storage was volatile and belongs to another run of the machine than `boot_id`: then it does not
    /// exist any more, whatever is at its path now, and even if nothing is.
    #[must_use]
    pub fn lost_with_reboot(&self, boot_id: &str) -> bool {
        // A boot id that could not be read says nothing.
        let known = |boot: &str| !boot.is_empty();
        self.kind == IdKind::Volatile
            && known(boot_id)
            && self.get(part::BOOT).is_some_and(|boot| known(boot) && boot != boot_id)
    }

    /// Compares what was noted (`self`) with what is there `now`.
    ///
    /// Every part that was noted must be there and equal, and no part may have come that says that this is only a piece
    /// of something or something else altogether; these differ from the rule:
    ///
    /// * `boot` is not compared, it says which of the other parts can be.
    /// * `diskseq` counts attachments since the machine started: compared if both ids are of the same boot and the device
    ///   does not tell by itself which it is (`wwn`, `serial`, `dm`, `md`).
    /// * `handle` says more than `inode` and `btime`: these are compared only where one of the ids has no handle.
    /// * `fsid` is derived from the UUID on ext4: an id noted on a kernel that does not tell the UUID is compared with
    ///   one that has it by deriving it.
    /// * `partuuid` is shown by some kernels only: compared where both have it.
    /// * `loop-device` may be numbered otherwise after a reboot: then an equal `loop-path` will do. Within one boot the
    ///   path is not compared, as it depends on who asks.
    /// * `wwn` and `serial` may be known now and not have been before.
    ///
    /// An id of which nothing could be compared is different.
    #[must_use]
    pub fn compare(&self, now: &Self) -> Comparison {
        if now.get(part::BOOT).is_some_and(|boot| self.lost_with_reboot(boot)) {
            return Comparison::LostWithReboot;
        }
        let pair = Pair { noted: self, now };
        if self.kind == now.kind && pair.same() {
            Comparison::Same
        } else {
            Comparison::Different
        }
    }

    /// Keys of which storage that [`overlaps`](Self::overlaps) has at least one in common, for looking it up among many:
    /// each is a part that identifies by itself, and that two ids must agree on.
    pub fn keys(&self) -> impl Iterator<Item = Key<'_>> {
        use part::{BUS, DM, FSID, HANDLE, LOOP_INODE, MD, PARTUUID, RAM, SERIAL, UUID, WWN};
        let part = |name: &&'static str| Some(Key::Part(name, self.get(name)?));
        // Ids with a UUID or an fsid agree on that, whatever else they share.
        let of_uuid = self.get(UUID).and_then(fsid_of_uuid);
        let of_text = || u64::from_str_radix(self.get(FSID)?, 16).ok();
        let fsid = if self.get(UUID).is_some() { of_uuid } else { of_text() };
        let filesystem = fsid.map(Key::Fsid).or_else(|| part(&UUID)).or_else(|| part(&FSID));
        let others: &[&'static str] = match filesystem {
            Some(_) => &[],
            None => &[BUS, DM, HANDLE, LOOP_INODE, MD, PARTUUID, RAM, SERIAL, WWN],
        };
        filesystem.into_iter().chain(others.iter().filter_map(part))
    }

    /// The directory of its filesystem; `/` if it is all of it, or a device. Storage that overlaps is in the same one, or
    /// one of the two is in the other.
    #[must_use]
    pub fn subtree(&self) -> &Path {
        Path::new(self.get(part::SUBTREE).unwrap_or("/"))
    }

    /// Whether this storage and that one have something in common: they are the same, or one is a subtree of the other's
    /// filesystem, or a partition of the other's disk. Who is given one of them sees (part of) the other.
    #[must_use]
    pub fn overlaps(&self, now: &Self) -> bool {
        if self.compare(now) == Comparison::Same {
            return true;
        }
        let without = |id: &Self, keys: &[&str]| Self {
            kind: id.kind,
            parts: {
                let rest = id.parts.iter().filter(|(key, _)| !keys.contains(&key.as_ref()));
                Arc::new(rest.map(|(k, v)| (k.clone(), v.clone())).collect())
            },
        };
        let same_but_for = |keys: &[&str]| without(self, keys).compare(&without(now, keys)) == Comparison::Same;
        let (one, other) = (self.subtree(), now.subtree());
        match self.kind {
            IdKind::Filesystem | IdKind::Volatile => {
                one != other
                    && (one.starts_with(other) || other.starts_with(one))
                    && same_but_for(&[part::SUBTREE, part::HANDLE, part::INODE, part::BTIME])
            }
            IdKind::Device => {
                self.get(part::PARTITION).is_some() != now.get(part::PARTITION).is_some()
                    && same_but_for(&[part::PARTITION, part::START, part::PARTUUID])
            }
        }
    }
}

/// Two ids of one kind under comparison.
struct Pair<'a> {
    noted: &'a VolumeId,
    now: &'a VolumeId,
}

impl Pair<'_> {
    fn same(&self) -> bool {
        self.noted
            .parts
            .keys()
            .chain(self.now.parts.keys())
            .all(|key| self.agree(key))
            && self.identified()
    }

    /// Whether at least one of the parts that identify by themselves is in both.
    fn identified(&self) -> bool {
        use part::{BUS, DM, FSID, HANDLE, LOOP_INODE, MD, PARTUUID, RAM, SERIAL, UUID, WWN};
        let strong = [BUS, DM, FSID, HANDLE, LOOP_INODE, MD, PARTUUID, RAM, SERIAL, UUID, WWN];
        strong.iter().any(|key| self.both(key).is_some()) || self.fsid_by_uuid() == Some(true)
    }

    fn both(&self, key: &str) -> Option<(&str, &str)> {
        Some((self.noted.get(key)?, self.now.get(key)?))
    }

    fn equal(&self, key: &str) -> bool {
        self.noted.get(key) == self.now.get(key)
    }

    fn equal_if_both(&self, key: &str) -> bool {
        self.both(key).is_none_or(|(noted, now)| noted == now)
    }

    fn same_boot(&self) -> bool {
        self.both(part::BOOT)
            .is_some_and(|(noted, now)| noted == now && !now.is_empty())
    }

    /// Whether the device tells by itself which it is: a disk that was unplugged and plugged in again is the same.
    fn hardware_agrees(&self) -> bool {
        let told = [part::WWN, part::SERIAL, part::DM, part::MD];
        told.iter()
            .any(|key| self.both(key).is_some_and(|(noted, now)| noted == now))
    }

    fn agree(&self, key: &str) -> bool {
        match key {
            part::BOOT => true,
            part::DISKSEQ => !self.same_boot() || self.hardware_agrees() || self.equal_if_both(key),
            part::UUID | part::FSID => self.fsid_by_uuid().unwrap_or_else(|| self.equal(key)),
            part::HANDLE => self.equal_if_both(key) && self.same_directory_known(),
            part::INODE | part::BTIME => self.both(part::HANDLE).is_some() || self.equal(key),
            part::PARTUUID => self.equal_if_both(key),
            part::LOOP_DEVICE => {
                self.equal(key)
                    || (!self.same_boot() && self.both(part::LOOP_PATH).is_some_and(|(noted, now)| noted == now))
            }
            part::LOOP_PATH => true,
            part::WWN | part::SERIAL => self.noted.get(key).is_none() || self.equal(key),
            _ => self.equal(key),
        }
    }

    /// A handle on one side only needs the inode number and the birth time on both.
    fn same_directory_known(&self) -> bool {
        self.both(part::HANDLE).is_some() || (self.both(part::INODE).is_some() && self.both(part::BTIME).is_some())
    }

    /// Where exactly one of the ids has the UUID and the other the fsid: whether they belong together.
    fn fsid_by_uuid(&self) -> Option<bool> {
        let fits = |with_uuid: &VolumeId, with_fsid: &VolumeId| {
            let uuid = with_uuid.get(part::UUID)?;
            let fsid = with_fsid
                .get(part::FSID)
                .filter(|_| with_fsid.get(part::UUID).is_none())?;
            Some(fsid_of_uuid(uuid).is_some_and(|of_uuid| fsid_text(of_uuid) == fsid))
        };
        fits(self.now, self.noted).or_else(|| fits(self.noted, self.now))
    }
}

/// `f_fsid` as ext4 derives it from the UUID: both halves as little-endian numbers, combined by exclusive or (the
/// kernel's uuid_to_fsid).
fn fsid_of_uuid(uuid: &str) -> Option<u64> {
    let digits = || uuid.chars().filter(|&character| character != '-');
    let number = digits().try_fold(0_u128, |sum, digit| Some(sum << 4 | u128::from(digit.to_digit(16)?)))?;
    if digits().count() != 32 {
        return None;
    }
    let bytes = number.to_be_bytes();
    let (low, high) = bytes.split_at(8);
    let half = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
    Some(half(low) ^ half(high))
}

/// The fsid as it stands in an id.
fn fsid_text(fsid: u64) -> String {
    format!("{fsid:016x}")
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.word())?;
        for (key, value) in self.parts.iter() {
            f.write_str(" ")?;
            encode(f, key, b'=')?;
            f.write_str("=")?;
            encode(f, value, b'%')?;
        }
        Ok(())
    }
}

/// Writes `text` with everything but visible ASCII percent-encoded, and `%` and `also`, too.
fn encode(f: &mut fmt::Formatter<'_>, text: &str, also: u8) -> fmt::Result {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'%' && byte != also;
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| !plain(byte)) {
        let (before, after) = rest.split_at(at);
        f.write_str(before)?;
        let character = after.chars().next().map_or(0, char::len_utf8);
        let (encoded, after) = after.split_at(character);
        encoded.bytes().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
        rest = after;
    }
    f.write_str(rest)
}

/// A text that is no volume id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a volume id, {reason}: {text:?}; it reads like `filesystem uuid=…` or `device wwn=…`")]
pub struct ParseVolumeIdError {
    text: String,
    reason: &'static str,
}

impl FromStr for VolumeId {
    type Err = ParseVolumeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| ParseVolumeIdError {
            text: text.to_owned(),
            reason,
        };
        let mut words = text.split_ascii_whitespace();
        let kind = match words.next() {
            Some("filesystem") => IdKind::Filesystem,
            Some("volatile") => IdKind::Volatile,
            Some("device") => IdKind::Device,
            _ => return Err(fail("its first word is not filesystem, volatile or device")),
        };
        let mut parts = LiteMap::new();
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| fail("a word lacks the ="))?;
            let key = decode(key)
                .filter(|key| !key.is_empty())
                .ok_or_else(|| fail("a key is malformed"))?;
            let value = decode(value).ok_or_else(|| fail("a value is malformed"))?;
            if parts.insert(Cow::Owned(key), value.into()).is_some() {
                return Err(fail("a key comes twice"));
            }
        }
        let parts = Arc::new(parts);
        Ok(Self { kind, parts })
    }
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            out.push(digit(bytes.next()?)? << 4 | digit(bytes.next()?)?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}
