//! The identity of real filesystems and loop devices.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use local_volume_provisioner::identity::{Comparison, IdKind, VolumeId, part, read};
use local_volume_provisioner::{mounts, sys};
use nix::mount::{MsFlags, mount};

#[path = "support/node.rs"]
mod node;
use node::{Node, OWN_MOUNTINFO, available, on_a_node, run};

fn try_filesystem(path: &Path) -> anyhow::Result<VolumeId> {
    let root = File::open(path).unwrap();
    let table = mounts::parse(&fs::read(OWN_MOUNTINFO).unwrap());
    let mount = mounts::by_id(&table, sys::mount_id(root.as_fd()).unwrap()).unwrap();
    read::filesystem(root.as_fd(), mount, "boot", Path::new("/sys"))
}

fn filesystem(path: &Path) -> VolumeId {
    try_filesystem(path).unwrap()
}

fn device(path: &Path) -> VolumeId {
    let file = File::open(path).unwrap();
    let rdev = file.metadata().unwrap().rdev();
    read::device(file.as_fd(), rdev, Path::new("/sys"), "boot").unwrap()
}

/// The same id as it would be noted by another run of the machine.
fn after_reboot(id: &VolumeId) -> VolumeId {
    id.clone().with(part::BOOT, "another")
}

#[test]
fn a_filesystem_has_the_uuid_that_it_was_made_with() {
    on_a_node(|node| {
        for fs_type in ["ext4", "xfs", "btrfs"] {
            if !available(fs_type) {
                continue;
            }
            let (device, uuid) = node.formatted(fs_type, fs_type);
            let path = node.mount(&device, fs_type, format!("at-{fs_type}"));
            let id = filesystem(&path);
            assert_eq!(id.kind, IdKind::Filesystem);
            assert_eq!(id.get(part::UUID), Some(uuid.as_str()), "{fs_type}: {id}");
            assert_eq!(id.get(part::SUBTREE), None, "{fs_type}: {id}");
            node.unmount(&path);
            let elsewhere = node.mount(&device, fs_type, format!("elsewhere-{fs_type}"));
            assert_eq!(
                after_reboot(&id).compare(&filesystem(&elsewhere)),
                Comparison::Same,
                "{fs_type}"
            );
            node.unmount(&elsewhere);
        }
    });
}

#[test]
fn every_way_to_ask_for_a_uuid_gives_the_same_one() {
    on_a_node(|node| {
        type Way = fn(BorrowedFd<'_>) -> nix::Result<sys::Uuid>;
        let ways: [(&str, Way); 3] = [
            ("ext4", sys::ext4_uuid),
            ("xfs", sys::xfs_uuid),
            ("btrfs", sys::btrfs_uuid),
        ];
        for (fs_type, way) in ways {
            if available(fs_type) {
                let (device, uuid) = node.formatted(fs_type, fs_type);
                let bytes = u128::from_str_radix(&uuid.replace('-', ""), 16).unwrap().to_be_bytes();
                let path = node.mount(&device, fs_type, format!("at-{fs_type}"));
                assert_eq!(way(File::open(&path).unwrap().as_fd()), Ok(bytes), "{fs_type}");
                node.unmount(&path);
            }
        }
    });
}

#[test]
fn an_old_kernels_fsid_of_ext4_is_that_of_the_uuid() {
    on_a_node(|node| {
        if !available("ext4") {
            return;
        }
        let path = node.mount(&node.formatted("ext4", "ext4").0, "ext4", "at");
        let fsid = sys::filesystem_status(File::open(&path).unwrap().as_fd()).unwrap().fsid;
        let noted = VolumeId::new(IdKind::Filesystem).with(part::FSID, format!("{fsid:016x}"));
        assert_eq!(noted.compare(&filesystem(&path)), Comparison::Same);
        let other = VolumeId::new(IdKind::Filesystem).with(part::FSID, format!("{:016x}", fsid ^ 1));
        assert_eq!(other.compare(&filesystem(&path)), Comparison::Different);
        node.unmount(&path);
    });
}

/// Binds `source`, notes its id, deletes it and makes it again at the same path.
fn made_again(node: &Node, source: &Path, name: &str) -> (VolumeId, VolumeId) {
    fs::create_dir(source).unwrap();
    let at = node.bind(source, name);
    let noted = filesystem(&at);
    assert_eq!(noted.compare(&filesystem(&at)), Comparison::Same, "{noted}");
    node.unmount(&at);
    let at = node.bind(source, name);
    assert_eq!(
        after_reboot(&noted).compare(&filesystem(&at)),
        Comparison::Same,
        "a bind mount made again"
    );
    node.unmount(&at);
    fs::remove_dir(source).unwrap();
    fs::create_dir(source).unwrap();
    node.bind(source, name);
    let now = filesystem(&at);
    node.unmount(&at);
    (noted, now)
}

#[test]
fn a_directory_that_was_made_again_is_another_volume() {
    on_a_node(|node| {
        for fs_type in ["ext4", "xfs", "btrfs"] {
            if !available(fs_type) {
                continue;
            }
            let disk = node.mount(&node.formatted(fs_type, fs_type).0, fs_type, format!("disk-{fs_type}"));
            let (noted, now) = made_again(node, &disk.join("a b"), &format!("bound-{fs_type}"));
            assert_eq!(noted.get(part::SUBTREE), Some("/a b"));
            assert_eq!(noted.compare(&now), Comparison::Different, "{fs_type}: {noted} / {now}");
            let without_handle = |id: &VolumeId| {
                let mut id = id.clone();
                std::sync::Arc::make_mut(&mut id.parts).remove(part::HANDLE).unwrap();
                id
            };
            assert_eq!(
                without_handle(&noted).compare(&now),
                Comparison::Different,
                "{fs_type}: by birth time"
            );
            node.unmount(&disk);
        }
    });
}

#[test]
fn two_directories_of_one_filesystem_are_two_volumes() {
    on_a_node(|node| {
        if !available("ext4") {
            return;
        }
        let disk = node.mount(&node.formatted("ext4", "ext4").0, "ext4", "disk");
        let whole = filesystem(&disk);
        let [first, second] = ["first", "second"].map(|name| {
            fs::create_dir(disk.join(name)).unwrap();
            filesystem(&node.bind(&disk.join(name), format!("at-{name}")))
        });
        for (noted, now) in [(&first, &second), (&first, &whole), (&whole, &first)] {
            assert_eq!(noted.compare(now), Comparison::Different, "{noted} / {now}");
        }
    });
}

#[test]
fn a_subtree_may_have_any_name() {
    on_a_node(|node| {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"\xff\n %=");
        let source = node.directory(name);
        let id = filesystem(&node.bind(&source, "at"));
        assert_eq!(id.get(part::SUBTREE), Some("bytes:2fff0a20253d"));
        assert_eq!(id.to_string().parse(), Ok(id));
    });
}

#[test]
fn tmpfs_is_new_with_every_mount_and_lost_with_a_reboot() {
    on_a_node(|node| {
        let at = node.tmpfs("at", MsFlags::empty());
        let noted = filesystem(&at);
        assert_eq!(noted.kind, IdKind::Volatile);
        assert_eq!(noted.compare(&filesystem(&at)), Comparison::Same);
        node.unmount(&at);
        let now = filesystem(&node.tmpfs("at", MsFlags::empty()));
        assert_eq!(noted.compare(&now), Comparison::Different);
        assert_eq!(noted.compare(&after_reboot(&now)), Comparison::LostWithReboot);
        assert!(noted.lost_with_reboot("another") && !noted.lost_with_reboot("boot"));
    });
}

#[test]
fn what_tells_no_uuid_is_refused() {
    on_a_node(|node| {
        let proc = node.directory("proc");
        mount(Some("proc"), &proc, Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
        let error = format!("{:#}", try_filesystem(&proc).unwrap_err());
        assert!(error.contains("type proc") && error.contains("UUID"), "{error}");
        if available("overlay") {
            let layers: Vec<_> = ["lower", "upper", "work"]
                .iter()
                .map(|name| node.directory(name))
                .collect();
            let at = node.directory("overlay");
            let options = |extra: &str| {
                format!(
                    "lowerdir={},upperdir={},workdir={}{extra}",
                    layers[0].display(),
                    layers[1].display(),
                    layers[2].display()
                )
            };
            mount(
                Some("o"),
                &at,
                Some("overlay"),
                MsFlags::empty(),
                Some(options("").as_str()),
            )
            .unwrap();
            // Kernels before 6.6 give an overlay no UUID.
            match try_filesystem(&at) {
                Ok(id) => assert!(id.get(part::UUID).is_some(), "{id}"),
                Err(error) => assert!(format!("{error:#}").contains("type overlay"), "{error:#}"),
            }
        }
    });
}

#[test]
fn a_loop_device_is_its_backing_file() {
    on_a_node(|node| {
        let image = node.image("a image", 1 << 20);
        let first = node.attach(&image, &[]);
        let noted = device(&first);
        let inode = fs::metadata(&image).unwrap().ino().to_string();
        assert_eq!(noted.get(part::LOOP_INODE), Some(inode.as_str()));
        assert_eq!(noted.get(part::LOOP_PATH), image.to_str());
        assert_eq!(noted.compare(&device(&first)), Comparison::Same);
        node.detach(&first);

        let again = device(&node.attach(&image, &[]));
        if noted.get(part::DISKSEQ).is_some() {
            assert_eq!(noted.compare(&again), Comparison::Different, "another attachment");
        }
        assert_eq!(after_reboot(&noted).compare(&again), Comparison::Same);
        let shifted = device(&node.attach(&image, &["-o", "4096"]));
        assert_eq!(after_reboot(&noted).compare(&shifted), Comparison::Different);
        let other = device(&node.attach(&node.image("other", 1 << 20), &[]));
        assert_eq!(after_reboot(&noted).compare(&other), Comparison::Different);
    });
}

#[test]
fn a_whole_disk_is_not_its_filesystem() {
    on_a_node(|node| {
        if !available("ext4") {
            return;
        }
        let (disk, uuid) = node.formatted("ext4", "ext4");
        let id = device(&disk);
        let at = node.mount(&disk, "ext4", "at");
        assert_eq!(id.compare(&filesystem(&at)), Comparison::Different);
        assert_eq!(
            device(&disk).compare(&id),
            Comparison::Same,
            "mounting it changes nothing"
        );
        node.unmount(&at);
        run("mkfs.ext4", |command| command.args(["-q", "-F"]).arg(&disk));
        assert_eq!(
            device(&disk).compare(&id),
            Comparison::Same,
            "the device is the same whatever is on it"
        );
        let at = node.mount(&disk, "ext4", "at");
        assert_ne!(filesystem(&at).get(part::UUID), Some(uuid.as_str()));
        node.unmount(&at);
    });
}
