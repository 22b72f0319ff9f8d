//! A block device as /sys shows it.
//!
//! The root of /sys is an argument, so that a captured tree serves as well as the real one.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::sys::stat::{major, makedev, minor};

/// A block device: a disk, or a partition of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Root of /sys, without symlinks.
    sysfs: PathBuf,
    /// The device's own directory.
    dir: PathBuf,
    /// The directory of the disk that it is, or is a partition of.
    disk: PathBuf,
    /// Device number.
    pub rdev: u64,
    /// Number of the partition; `None` if this is a whole disk.
    pub partition: Option<u32>,
}

/// A piece of identity that a disk has of its own, apart from partitions: the name of the part (as in
/// [`crate::identity::part`]) and its value.
pub type DiskKey = (&'static str, String);

impl Block {
    /// Looks up a device by its number.
    ///
    /// # Errors
    /// ENOENT if /sys does not know it.
    pub fn find(sysfs: &Path, rdev: u64) -> io::Result<Self> {
        let sysfs = fs::canonicalize(sysfs)?;
        let dir = fs::canonicalize(sysfs.join(format!("dev/block/{}:{}", major(rdev), minor(rdev))))?;
        let number = read(&dir.join("partition")).and_then(|text| text.parse().ok());
        let disk = match (number, dir.parent()) {
            (Some(_), Some(parent)) => parent.to_path_buf(),
            _ => dir.clone(),
        };
        Ok(Self {
            sysfs,
            dir,
            disk,
            rdev,
            partition: number,
        })
    }

    /// The kernel's name of the device, such as `sda1`.
    #[must_use]
    pub fn name(&self) -> String {
        name_of(&self.dir)
    }

    /// The kernel's name of the disk, such as `sda`.
    #[must_use]
    pub fn disk_name(&self) -> String {
        name_of(&self.disk)
    }

    /// An attribute of the device itself, trimmed; `None` if it is missing, unreadable or empty.
    #[must_use]
    pub fn attribute(&self, path: &str) -> Option<String> {
        read(&self.dir.join(path))
    }

    /// An attribute of the disk.
    #[must_use]
    pub fn disk_attribute(&self, path: &str) -> Option<String> {
        read(&self.disk.join(path))
    }

    /// The path of a file in the disk's directory.
    pub(crate) fn disk_file(&self, path: &str) -> PathBuf {
        self.disk.join(path)
    }

    /// Whether the disk is a loop device that something is attached to.
    #[must_use]
    pub fn is_loop(&self) -> bool {
        self.disk.join("loop").is_dir()
    }

    /// Size in bytes; /sys counts in 512 bytes whatever the device's blocks are.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        self.attribute("size")?.parse::<u64>().ok()?.checked_mul(512)
    }

    /// First byte of a partition, in sectors of 512 bytes.
    #[must_use]
    pub fn start_sector(&self) -> Option<u64> {
        self.attribute("start")?.parse().ok()
    }

    /// UUID of a partition in the partition table, on kernels that show it.
    #[must_use]
    pub fn partition_uuid(&self) -> Option<String> {
        let uevent = self.attribute("uevent")?;
        uevent
            .lines()
            .find_map(|line| line.strip_prefix("PARTUUID="))
            .map(|uuid| uuid.trim().to_ascii_lowercase())
    }

    /// The partitions, if this is a whole disk.
    #[must_use]
    pub fn partitions(&self) -> Vec<Self> {
        if self.partition.is_some() {
            return Vec::new();
        }
        let mut found: Vec<Self> = children(&self.dir)
            .into_iter()
            .filter_map(|name| {
                let dir = self.dir.join(name);
                let number = read(&dir.join("partition"))?.parse().ok()?;
                let rdev = device_number(&dir)?;
                Some(Self {
                    sysfs: self.sysfs.clone(),
                    dir,
                    disk: self.disk.clone(),
                    rdev,
                    partition: Some(number),
                })
            })
            .collect();
        found.sort_by_key(|block| block.partition);
        found
    }

    /// Device number of the disk that this is a partition of.
    #[must_use]
    pub fn disk_rdev(&self) -> Option<u64> {
        if self.partition.is_some() {
            device_number(&self.disk)
        } else {
            Some(self.rdev)
        }
    }

    /// The kernel's names of the devices that are made of this one (device mapper, md, bcache).
    #[must_use]
    pub fn holders(&self) -> Vec<String> {
        let mut names: Vec<String> = children(&self.dir.join("holders"))
            .into_iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// A RAM disk, whose contents end with the machine's run.
    #[must_use]
    pub fn is_ram(&self) -> bool {
        let name = self.disk_name();
        ["ram", "zram"].iter().any(|prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
        })
    }

    /// The number that the manufacturer gave the disk: its WWN, EUI, NGUID or UUID, else its serial number.
    ///
    /// SCSI shows it in `device/wwid`, NVMe in `wwid` of the namespace; NVMe makes one up of vendor, serial number and
    /// namespace where a disk has none or is known to lie. virtio, NVMe and MMC have a serial number.
    #[must_use]
    pub fn hardware_key(&self) -> Option<DiskKey> {
        use crate::identity::part::{SERIAL, WWN};
        let wwn = ["wwid", "device/wwid", "nguid", "eui", "uuid"]
            .iter()
            .find_map(|name| self.disk_attribute(name).filter(|text| !blank(text)));
        if let Some(wwn) = wwn {
            return Some((WWN, squeeze(&wwn)));
        }
        let serial = ["serial", "device/serial"]
            .iter()
            .find_map(|name| self.disk_attribute(name).filter(|text| !blank(text)));
        let serial = serial.or_else(|| self.unit_serial_number())?;
        // Namespaces of one NVMe controller share its serial number.
        let namespace = self
            .disk_attribute("nsid")
            .map(|nsid| format!(".{nsid}"))
            .unwrap_or_default();
        Some((SERIAL, squeeze(&serial) + &namespace))
    }

    /// The serial number of a SCSI disk: page 0x80 of its vital product data, which has a header of 4 bytes.
    fn unit_serial_number(&self) -> Option<String> {
        let page = fs::read(self.disk.join("device/vpd_pg80")).ok()?;
        let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
        let text = String::from_utf8_lossy(page.get(4..4 + length)?)
            .trim_matches(['\0', ' '])
            .to_owned();
        (!blank(&text)).then_some(text)
    }

    /// Where a disk is attached, for hardware that has no number of its own: its path below /sys/devices without the
    /// parts that are numbered in the order of discovery.
    #[must_use]
    pub fn attachment(&self) -> Option<String> {
        let device = fs::canonicalize(self.disk.join("device")).ok()?;
        let below = device.strip_prefix(&self.sysfs).ok()?;
        let mut place = String::new();
        for component in below.components() {
            let Component::Normal(part) = component else {
                return None;
            };
            let part = part.to_str()?;
            if let Some(stable) = stable_component(part) {
                place.push('/');
                place.push_str(stable);
            }
        }
        Some(place)
    }
}

/// A component of a path below /sys/devices without what depends on the order of discovery; `None` if nothing is left.
fn stable_component(part: &str) -> Option<&str> {
    let numbered = |prefix: &str| {
        part.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    if ["virtio", "host", "target", "ata"]
        .iter()
        .any(|prefix| numbered(prefix))
    {
        return None;
    }
    // A SCSI address is host:channel:target:lun; a PCI one has three fields.
    match part.split_once(':') {
        Some((_, rest)) if part.split(':').count() == 4 => Some(rest),
        _ => Some(part),
    }
}

/// Nothing but zeros, hyphens, blanks and what is no character (erased memory is all ones) is what a disk shows that was
/// given no number.
fn blank(text: &str) -> bool {
    text.chars()
        .all(|c| matches!(c, '0' | '-' | char::REPLACEMENT_CHARACTER) || c.is_whitespace())
}

/// Runs of blanks, with which SCSI pads its fields, become one underscore, as udev writes them.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join("_")
}

/// The kernel writes a slash in a device's name as an exclamation mark.
fn name_of(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().replace('!', "/")
}

fn read(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes)
        .trim_matches(['\0', '\n', ' ', '\t'])
        .to_owned();
    (!text.is_empty()).then_some(text)
}

/// A path that /sys shows: as it is but for the newline at its end.
pub(crate) fn read_path(path: &Path) -> Option<PathBuf> {
    let mut bytes = fs::read(path).ok()?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    (!bytes.is_empty()).then(|| PathBuf::from(OsString::from_vec(bytes)))
}

fn device_number(dir: &Path) -> Option<u64> {
    let text = read(&dir.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn children(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect()
}

/// The loop devices that something is attached to, by name, with the path that the kernel shows for it.
#[must_use]
pub fn attached_loops(sysfs: &Path) -> Vec<(String, PathBuf)> {
    let block = sysfs.join("block");
    let mut found: Vec<(String, PathBuf)> = children(&block)
        .into_iter()
        .filter(|name| name.as_bytes().starts_with(b"loop"))
        .filter_map(|name| {
            let backing = read_path(&block.join(&name).join("loop/backing_file"))?;
            Some((name.to_string_lossy().into_owned(), backing))
        })
        .collect();
    found.sort();
    found
}
