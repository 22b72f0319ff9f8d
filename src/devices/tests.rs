#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::stat::makedev;

use super::*;
use crate::identity::{IdKind, VolumeId, read};
use crate::mounts::Table;
use std::sync::Arc;
use users::{AttachedLoop, parse_swaps};

/// A tree of /sys: device directories with their attributes, and the index by device number.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, content) in files {
            tree.add(path, content);
        }
        tree
    }

    fn add(&self, path: &str, content: &str) {
        let file = self.0.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, content).unwrap();
        if let Some(dir) = path.strip_suffix("/dev") {
            let index = self.0.path().join("dev/block");
            fs::create_dir_all(&index).unwrap();
            symlink(self.0.path().join(dir), index.join(content.trim())).unwrap();
        }
    }

    fn link(&self, path: &str, target: &str) {
        let link = self.0.path().join(path);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(self.0.path().join(target), link).unwrap();
    }

    fn block(&self, rdev: u64) -> Block {
        Block::find(self.0.path(), rdev).unwrap()
    }

    fn id(&self, rdev: u64) -> Result<VolumeId, String> {
        read::device_of(&self.block(rdev), None, "b").map_err(|error| format!("{error:#}"))
    }

    fn id_text(&self, rdev: u64) -> String {
        self.id(rdev).unwrap().to_string()
    }
}

const SCSI: &str = "devices/pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0";

/// A SATA disk with two partitions.
fn sata() -> Tree {
    let disk = format!("{SCSI}/block/sda");
    let tree = Tree::new(&[]);
    for (path, content) in [
        ("dev", "8:0\n"),
        ("size", "1000215216\n"),
        ("diskseq", "4\n"),
        ("sda1/dev", "8:1\n"),
        ("sda1/partition", "1\n"),
        ("sda1/start", "2048\n"),
        ("sda1/size", "204800\n"),
        (
            "sda1/uevent",
            "MAJOR=8\nMINOR=1\nDEVNAME=sda1\nDEVTYPE=partition\nPARTN=1\nPARTUUID=6A1B-01\n",
        ),
        ("sda2/dev", "8:2\n"),
        ("sda2/partition", "2\n"),
        ("sda2/start", "206848\n"),
        ("sda2/uevent", "MAJOR=8\nMINOR=2\nPARTN=2\n"),
    ] {
        tree.add(&format!("{disk}/{path}"), content);
    }
    tree.add(&format!("{SCSI}/wwid"), "naa.5002538e40a1b2c3\n");
    tree.link(&format!("{disk}/device"), SCSI);
    tree
}

#[test]
fn a_scsi_disk_has_its_wwn() {
    let tree = sata();
    assert_eq!(
        tree.id_text(makedev(8, 0)),
        "device boot=b diskseq=4 wwn=naa.5002538e40a1b2c3"
    );
    let block = tree.block(makedev(8, 0));
    assert_eq!(
        (block.name().as_str(), block.partition, block.size_bytes()),
        ("sda", None, Some(512_110_190_592))
    );
}

#[test]
fn a_partition_has_its_disks_and_its_own() {
    let tree = sata();
    assert_eq!(
        tree.id_text(makedev(8, 1)),
        "device boot=b diskseq=4 partition=1 partuuid=6a1b-01 start=2048 wwn=naa.5002538e40a1b2c3"
    );
    assert_eq!(
        tree.id_text(makedev(8, 2)),
        "device boot=b diskseq=4 partition=2 start=206848 wwn=naa.5002538e40a1b2c3"
    );
    let block = tree.block(makedev(8, 1));
    assert_eq!((block.name().as_str(), block.disk_name().as_str()), ("sda1", "sda"));
    assert_eq!(block.disk_rdev(), Some(makedev(8, 0)));
}

#[test]
fn a_disk_collides_with_its_partitions_and_they_not_with_each_other() {
    let tree = sata();
    let keys = |minor| read::storage_keys(&tree.block(makedev(8, minor)), None);
    let (disk, first, second) = (keys(0), keys(1), keys(2));
    let collide = |a: &[String], b: &[String]| a.iter().any(|key| b.contains(key));
    assert!(collide(&disk, &first) && collide(&disk, &second));
    assert!(!collide(&first, &second), "{first:?} {second:?}");
    assert!(
        disk.contains(&"wwn:naa.5002538e40a1b2c3".to_owned()),
        "another path to the disk collides"
    );
    assert!(first.contains(&"wwn:naa.5002538e40a1b2c3#2048".to_owned()));
    assert!(first.contains(&"dev:8:1".to_owned()));
}

#[test]
fn an_nvme_namespace() {
    let disk = "devices/pci0000:00/0000:00:1d.0/nvme/nvme0/nvme0n1";
    let tree = Tree::new(&[
        (&format!("{disk}/dev"), "259:0\n"),
        (&format!("{disk}/wwid"), "eui.0025385b71b0a1c2\n"),
    ]);
    assert_eq!(tree.id_text(makedev(259, 0)), "device boot=b wwn=eui.0025385b71b0a1c2");
    // One of a controller that tells no more than its serial number: its namespaces differ by their numbers.
    let tree = Tree::new(&[
        (&format!("{disk}/dev"), "259:0\n"),
        (&format!("{disk}/nguid"), "00000000-0000-0000-0000-000000000000\n"),
        (&format!("{disk}/nsid"), "2\n"),
        (
            "devices/pci0000:00/0000:00:1d.0/nvme/nvme0/serial",
            "S4EV NX0M  12   \n",
        ),
    ]);
    tree.link(&format!("{disk}/device"), "devices/pci0000:00/0000:00:1d.0/nvme/nvme0");
    assert_eq!(tree.id_text(makedev(259, 0)), "device boot=b serial=S4EV_NX0M_12.2");
}

#[test]
fn a_virtio_disk_with_and_without_a_serial_number() {
    let device = "devices/pci0000:00/0000:00:05.0/virtio2";
    let disk = format!("{device}/block/vdb");
    let tree = Tree::new(&[(&format!("{disk}/dev"), "254:16\n"), (&format!("{disk}/serial"), "\n")]);
    tree.link(&format!("{disk}/device"), device);
    assert_eq!(
        tree.id_text(makedev(254, 16)),
        "device boot=b bus=/devices/pci0000:00/0000:00:05.0"
    );
    for unwritten in [&b"\xff\xff\xff\xff"[..], "\u{a0}\u{2003}".as_bytes(), b"\x0b0"] {
        fs::write(tree.0.path().join(&disk).join("serial"), unwritten).unwrap();
        assert_eq!(
            tree.id_text(makedev(254, 16)),
            "device boot=b bus=/devices/pci0000:00/0000:00:05.0",
            "{unwritten:?} tells no disk from another one"
        );
    }
    tree.add(&format!("{disk}/serial"), "vol-0123456789\n");
    assert_eq!(tree.id_text(makedev(254, 16)), "device boot=b serial=vol-0123456789");
}

#[test]
fn a_scsi_disk_without_a_wwn() {
    let tree = sata();
    fs::remove_file(tree.0.path().join(SCSI).join("wwid")).unwrap();
    assert_eq!(
        tree.id_text(makedev(8, 0)),
        "device boot=b bus=/devices/pci0000:00/0000:00:1f.2/0:0:0 diskseq=4"
    );
    tree.add(&format!("{SCSI}/vpd_pg80"), "\0\x00\0\x09  WD-1234 and more");
    assert_eq!(tree.id_text(makedev(8, 0)), "device boot=b diskseq=4 serial=WD-1234");
    // Vendors pad the fields of a T10 identifier with blanks.
    tree.add(&format!("{SCSI}/wwid"), "t10.ATA     QEMU HARDDISK   QM00001 \n");
    assert_eq!(
        tree.id_text(makedev(8, 0)),
        "device boot=b diskseq=4 wwn=t10.ATA_QEMU_HARDDISK_QM00001"
    );
}

#[test]
fn device_mapper_and_md_have_a_uuid_or_are_refused() {
    let disk = "devices/virtual/block/dm-3";
    let tree = Tree::new(&[
        (&format!("{disk}/dev"), "253:3\n"),
        (&format!("{disk}/dm/name"), "vg-lv\n"),
    ]);
    let error = tree.id(makedev(253, 3)).unwrap_err();
    assert!(error.contains("dm-3") && error.contains("no UUID"), "{error}");
    tree.add(&format!("{disk}/dm/uuid"), "LVM-abcdef\n");
    assert_eq!(tree.id_text(makedev(253, 3)), "device boot=b dm=LVM-abcdef");

    let disk = "devices/virtual/block/md127";
    let tree = Tree::new(&[
        (&format!("{disk}/dev"), "9:127\n"),
        (&format!("{disk}/md/metadata_version"), "1.2\n"),
    ]);
    assert!(tree.id(makedev(9, 127)).unwrap_err().contains("md127"));
    tree.add(&format!("{disk}/md/uuid"), "3aaa0122-29827cfa\n");
    assert_eq!(tree.id_text(makedev(9, 127)), "device boot=b md=3aaa0122-29827cfa");
}

#[test]
fn ram_disks_are_volatile_and_what_has_nothing_is_refused() {
    let tree = Tree::new(&[
        ("devices/virtual/block/zram0/dev", "253:0\n"),
        ("devices/virtual/block/nbd0/dev", "43:0\n"),
    ]);
    let id = tree.id(makedev(253, 0)).unwrap();
    assert_eq!(
        (id.kind, id.to_string().as_str()),
        (IdKind::Volatile, "volatile boot=b ram=zram0")
    );
    let error = tree.id(makedev(43, 0)).unwrap_err();
    assert!(error.contains("nbd0") && error.contains("neither a WWN"), "{error}");
    assert!(Block::find(tree.0.path(), makedev(1, 1)).is_err());
}

fn status(rdev: u64, inode: u64, offset_bytes: u64) -> sys::LoopStatus {
    sys::LoopStatus {
        dev: makedev(8, 1),
        inode,
        rdev,
        offset_bytes,
        limit_bytes: 0,
        file_name: b"x".to_vec(),
    }
}

#[test]
fn a_loop_device_is_its_backing_file() {
    let disk = "devices/virtual/block/loop7";
    let tree = Tree::new(&[
        (&format!("{disk}/dev"), "7:7\n"),
        (&format!("{disk}/loop/backing_file"), "/disks/a b.img (deleted)\n"),
        (&format!("{disk}/diskseq"), "21\n"),
    ]);
    let block = tree.block(makedev(7, 7));
    assert!(block.is_loop());
    let id = |status: &sys::LoopStatus| read::device_of(&block, Some(status), "b").unwrap().to_string();
    assert_eq!(
        id(&status(0, 55, 512)),
        "device boot=b diskseq=21 loop-device=8:1 loop-inode=55 loop-offset=512 loop-path=/disks/a%20b.img"
    );
    assert_eq!(
        id(&status(makedev(8, 16), 55, 0)),
        "device boot=b diskseq=21 loop-device=8:16 loop-inode=device loop-offset=0",
        "the path of a device's node says nothing"
    );
    let keys = |status: &sys::LoopStatus| read::storage_keys(&block, Some(status));
    assert_eq!(keys(&status(0, 55, 512)), ["dev:7:7", "loop:8:1:55:512"]);
    assert_ne!(keys(&status(0, 55, 0)), keys(&status(0, 55, 512)));
    assert!(
        keys(&status(makedev(8, 16), 55, 0)).contains(&"dev:8:16".to_owned()),
        "collides with what it sits on"
    );
}

#[test]
fn users_are_named() {
    let tree = sata();
    tree.add(&format!("{SCSI}/block/sda/sda2/holders/dm-0/uevent"), "");
    let mounts = b"1 0 8:1 / /boot rw - ext4 /dev/sda1 rw\n2 0 8:17 / /other rw - ext4 /dev/sdb1 rw\n";
    let attached = |name: &str, path: &str, rdev| AttachedLoop {
        name: name.into(),
        backing: path.into(),
        rdev,
    };
    let around = Surroundings {
        mounts: vec![Arc::new(Table::new(mounts.to_vec()))],
        loops: vec![
            attached("loop1", "/dev/sda", Some(makedev(8, 0))),
            attached("loop2", "/images/a.img", Some(0)),
            attached("loop3", "/kubelet/plugins/x/volumeDevices/pv/uid", None),
            attached("loop4", "/images/b.img", None),
        ],
        swaps: vec!["/dev/nonexistent".into(), "/dev/sda2".into()],
        ..Surroundings::default()
    };
    let unknown = "loop3, attached to \"/kubelet/plugins/x/volumeDevices/pv/uid\", may sit on it and cannot be asked";
    let whole = "loop1 is attached to it as \"/dev/sda\"";
    let users = |minor| users::of(&tree.block(makedev(8, minor)), &around);
    assert_eq!(
        users(0),
        [
            "sda1 is mounted at \"/boot\"",
            "sda2 is part of dm-0",
            "sda2 is swap space",
            whole,
            unknown
        ]
    );
    assert_eq!(users(1), ["sda1 is mounted at \"/boot\"", whole, unknown]);
    assert_eq!(users(2), ["sda2 is part of dm-0", "sda2 is swap space", whole, unknown]);
}

#[test]
fn swaps_are_parsed() {
    let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda2                               partition\t4194300\t0\t-2\n/a\\040b   file\t1\t0\t-3\n";
    assert_eq!(parse_swaps(text), [Path::new("/dev/sda2"), Path::new("/a b")]);
    assert!(parse_swaps(b"").is_empty());
}

#[test]
fn what_is_no_block_device_is_never_opened() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR).unwrap();
    // Opening the FIFO would block for ever, or with O_NONBLOCK succeed.
    assert!(matches!(claim_exclusive(&fifo), Err(DeviceError::NotABlockDevice)));
    assert!(matches!(
        claim_exclusive(Path::new("/dev/null")),
        Err(DeviceError::NotABlockDevice)
    ));
    assert!(matches!(
        claim_exclusive(&directory.path().join("none")),
        Err(DeviceError::System { .. })
    ));
}
