//! The identity of a device by what /sys shows of it. The input is `file=contents` lines: the files of the disk's
//! directory, with `1/` before them those of its partition, and `at=` for where the disk is attached.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use local_volume_provisioner::devices::sysfs::Block;
use local_volume_provisioner::identity::{Comparison, IdKind, VolumeId, read};
use nix::sys::stat::makedev;

use crate::text::{assert_one_line, fields};
use crate::words;

/// What is read of a disk. A loop device has to be asked itself, so it is none of these.
const FILES: &[&str] = &[
    "wwid",
    "device/wwid",
    "nguid",
    "eui",
    "uuid",
    "serial",
    "device/serial",
    "device/vpd_pg80",
    "nsid",
    "diskseq",
    "dm/uuid",
    "md/uuid",
    "size",
    "1/partition",
    "1/start",
    "1/uevent",
    "1/dev",
    "1/size",
];

const NAMES: &[&str] = &["sda", "nvme0n1", "ram0", "zram12", "dm-3", "md127", "cciss!c0d0"];

const PLACES: &[&str] = &[
    "pci0000:00/0000:00:05.0/virtio2",
    "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0",
    "platform/vmbus",
];

const BOOT: &str = "11111111-2222-3333-4444-555555555555";

pub(crate) fn target(data: &[u8]) {
    // In memory, where that is possible.
    let Ok(sysfs) = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()) else {
        return;
    };
    describe(sysfs.path(), data).unwrap_or_else(|error| panic!("writing {:?}: {error}", sysfs.path()));
    for minor in [0, 1] {
        device(sysfs.path(), makedev(8, minor));
    }
}

/// Writes the directory of one disk, and of one partition if the input has files of it.
fn describe(sysfs: &Path, data: &[u8]) -> std::io::Result<()> {
    let chosen = |name: &str, from: &[&'static str]| {
        let wanted = fields(data, b'=').find_map(|(field, value)| (field == name).then_some(value));
        let place = from
            .iter()
            .position(|known| Some(known.as_bytes()) == wanted.as_deref());
        from[place.unwrap_or(0)]
    };
    let device = sysfs.join("devices").join(chosen("at", PLACES));
    let name = chosen("name", NAMES);
    let disk = device.join("block").join(name);
    fs::create_dir_all(&disk)?;
    symlink(&device, disk.join("device"))?;
    for (file, contents) in fields(data, b'=').filter(|(file, _)| FILES.contains(file)) {
        let path = match file.strip_prefix("1/") {
            Some(file) => disk.join(format!("{name}1")).join(file),
            None => disk.join(file),
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, contents)?;
    }
    let numbers = sysfs.join("dev/block");
    fs::create_dir_all(&numbers)?;
    symlink(&disk, numbers.join("8:0"))?;
    symlink(disk.join(format!("{name}1")), numbers.join("8:1"))
}

fn device(sysfs: &Path, rdev: u64) {
    let Ok(block) = Block::find(sysfs, rdev) else {
        return;
    };
    if let Some((_, value)) = block.hardware_key() {
        assert!(!value.is_empty() && !value.contains(char::is_whitespace), "{value:?}");
    }
    for partition in block.partitions() {
        assert_eq!(partition.disk_name(), block.name());
    }
    let now = match identify(sysfs, rdev, BOOT) {
        Ok(id) => id,
        Err(error) => return assert_one_line(&error),
    };
    words::identity(&now);
    assert_eq!(now.get("partition").is_some(), block.partition.is_some());
    assert_eq!(now.compare(&now), Comparison::Same, "{now}");
    assert_eq!(identify(sysfs, rdev, BOOT).as_ref(), Ok(&now), "read twice");
    let later = identify(sysfs, rdev, "another boot").unwrap_or_else(|error| panic!("{error}, of {now}"));
    let expected = match now.kind {
        IdKind::Volatile => Comparison::LostWithReboot,
        _ => Comparison::Same,
    };
    assert_eq!(now.compare(&later), expected, "{now} after a reboot");
}

fn identify(sysfs: &Path, rdev: u64, boot_id: &str) -> Result<VolumeId, String> {
    // Only a loop device is asked through its descriptor.
    let nothing = File::open("/dev/null").map_err(|error| error.to_string())?;
    read::device(nothing.as_fd(), rdev, sysfs, boot_id).map_err(|error| format!("{error:#}"))
}
