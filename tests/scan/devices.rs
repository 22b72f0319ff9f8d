//! Looking at block devices.

use std::os::unix::fs::FileExt;

use local_volume_provisioner::devices::users::Surroundings;
use local_volume_provisioner::devices::{DeviceError, claim_exclusive};
use local_volume_provisioner::observed::DeviceFacts;

use super::*;
use crate::node::run;

fn device_facts(node: &Node, directory: &Path, name: &str, probe: bool) -> DeviceFacts {
    match entries(node, directory, probe).remove(OsStr::new(name)) {
        Some(EntryKind::Device(facts)) => *facts,
        other => panic!("{name}: {other:?}"),
    }
}

/// Waits until nobody uses the device. A program that another test is about to start holds our descriptors for a moment.
fn wait_until_unused(users: impl Fn() -> Vec<String>) {
    let limit = Instant::now() + Duration::from_secs(10);
    while let found = users()
        && !found.is_empty()
    {
        assert!(Instant::now() < limit, "{found:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_published_device_is_only_looked_at() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        let device = node.attach(&node.image("image", 3 << 20), &[]);
        link(&dir, "a", &device);
        let holder = claim_exclusive(&device).unwrap();
        let facts = device_facts(node, &dir, "a", false);
        assert_eq!(
            (facts.users, facts.member_of, facts.capacity_bytes, facts.read_only),
            (None, None, 3 << 20, false)
        );
        assert_eq!(facts.kernel_name, device.file_name().unwrap().to_str().unwrap());
        let facts = device_facts(node, &dir, "a", true);
        assert!(facts.users.unwrap()[0].contains("exclusively"));
        drop(holder);
        wait_until_unused(|| device_facts(node, &dir, "a", true).users.unwrap());
    });
}

#[test]
fn what_uses_a_device_is_named() {
    on_a_node(|node| {
        if !available("ext4") {
            return;
        }
        let dir = node.directory("disks");
        let (device, _) = node.formatted("image", "ext4");
        link(&dir, "a", &device);
        let users = || device_facts(node, &dir, "a", true).users.unwrap();
        wait_until_unused(users);
        drop(claim_exclusive(&device).unwrap());

        let at = node.mount(&device, "ext4", "at");
        assert!(
            users()[0].contains("is mounted at") && users()[0].contains("/at"),
            "{:?}",
            users()
        );
        assert!(matches!(claim_exclusive(&device), Err(DeviceError::Busy)));
        node.unmount(&at);

        // A loop device on it, as kubelet attaches one for a raw block volume: O_EXCL does not see it.
        let on_top = node.attach(&device, &[]);
        let around = Surroundings {
            sysfs: "/sys".into(),
            ..Surroundings::default()
        };
        let facts = claim_exclusive(&device).unwrap().facts(&around).unwrap();
        assert_eq!(
            (facts.dev, facts.users),
            (fs::metadata(&device).unwrap().rdev(), Some(Vec::new())),
            "we do not count"
        );
        let name = on_top.file_name().unwrap().to_str().unwrap();
        assert!(
            users()[0].contains(&format!("{name} is attached to it")),
            "{:?}",
            users()
        );
        link(&dir, "b", &on_top);
        let (below, above) = (
            device_facts(node, &dir, "a", false),
            device_facts(node, &dir, "b", false),
        );
        assert!(
            below.storage_keys.iter().any(|key| above.storage_keys.contains(key)),
            "{below:?} {above:?}"
        );
        node.detach(&on_top);
        wait_until_unused(users);

        run("mkswap", |command| command.arg("-q").arg(&device));
        let swapon = Command::new("swapon").arg(&device).output().unwrap();
        if swapon.status.success() {
            let named = users();
            run("swapoff", |command| command.arg(&device));
            assert!(named[0].contains("swap space"), "{named:?}");
        } else {
            println!("SKIPPED: swapon fails here, so a device that is swap was not tested");
        }
    });
}

#[test]
fn partitions_and_disks() {
    on_a_node(|node| {
        let image = node.image("image", 8 << 20);
        // An MBR with two partitions of 1 MiB: type 0x83, at sectors 2048 and 4096.
        let mut table = [0_u8; 512];
        for (slot, start) in [(446, 2048_u32), (462, 4096)] {
            table[slot + 4] = 0x83;
            table[slot + 8..slot + 12].copy_from_slice(&start.to_le_bytes());
            table[slot + 12..slot + 16].copy_from_slice(&2048_u32.to_le_bytes());
        }
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .write_all_at(&table, 0)
            .unwrap();
        let disk = node.attach(&image, &["-P"]);
        let piece = |number| PathBuf::from(format!("{}p{number}", disk.display()));
        if !piece(1).exists() {
            // A kernel without a parser for this table takes partitions that it is told of.
            run("partx", |command| command.arg("-a").arg(&disk));
        }
        let dir = node.directory("disks");
        link(&dir, "disk", &disk);
        link(&dir, "first", &piece(1));
        link(&dir, "second", &piece(2));
        let facts = |name| device_facts(node, &dir, name, true);
        let (whole, first, second) = (facts("disk"), facts("first"), facts("second"));
        let collide = |a: &DeviceFacts, b: &DeviceFacts| a.storage_keys.iter().any(|key| b.storage_keys.contains(key));
        assert!(collide(&whole, &first) && collide(&whole, &second) && !collide(&first, &second));
        assert_eq!(first.capacity_bytes, 1 << 20);
        wait_until_unused(|| facts("first").users.unwrap());
        assert_eq!(first.id.as_ref().unwrap().get(part::START), Some("2048"));
        assert_ne!(first.id, second.id);

        let held = claim_exclusive(&piece(1)).unwrap();
        assert!(
            !facts("disk").users.unwrap().is_empty(),
            "a disk whose partition is held is in use"
        );
        wait_until_unused(|| facts("second").users.unwrap());
        drop(held);
        if available("ext4") {
            run("mkfs.ext4", |command| command.args(["-q", "-F"]).arg(piece(1)));
            let at = node.mount(&piece(1), "ext4", "at");
            let users = facts("disk").users.unwrap();
            assert!(users[0].contains("p1 is mounted at"), "{users:?}");
            node.unmount(&at);
        }
    });
}

#[test]
fn members_read_only_devices_and_doubles() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        let image = node.image("image", 8 << 20);
        let device = node.attach(&image, &[]);
        link(&dir, "a", &device);
        assert_eq!(device_facts(node, &dir, "a", true).member_of, None);
        let mut label = [0_u8; 32];
        label[..8].copy_from_slice(b"LABELONE");
        label[24..].copy_from_slice(b"LVM2 001");
        File::options()
            .write(true)
            .open(&device)
            .unwrap()
            .write_all_at(&label, 512)
            .unwrap();
        assert_eq!(
            device_facts(node, &dir, "a", true).member_of.as_deref(),
            Some("an LVM2 physical volume")
        );
        assert_eq!(device_facts(node, &dir, "a", false).member_of, None, "not searched");

        let again = node.attach(&image, &["-r"]);
        link(&dir, "b", &again);
        link(&dir, "c", &device);
        let facts = ["a", "b", "c"].map(|name| device_facts(node, &dir, name, false));
        assert_eq!(facts.each_ref().map(|facts| facts.read_only), [false, true, false]);
        for other in &facts[1..] {
            assert!(
                facts[0].storage_keys.iter().any(|key| other.storage_keys.contains(key)),
                "{other:?}"
            );
        }
        let shifted = node.attach(&image, &["-o", "1048576"]);
        link(&dir, "d", &shifted);
        let shifted = device_facts(node, &dir, "d", false);
        assert!(
            !facts[0]
                .storage_keys
                .iter()
                .any(|key| shifted.storage_keys.contains(key))
        );
    });
}

#[test]
fn a_device_without_a_medium_fails_alone() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        // No driver has this number.
        mknod(
            &dir.join("a"),
            SFlag::S_IFBLK,
            Mode::S_IRUSR,
            nix::sys::stat::makedev(120, 9),
        )
        .unwrap();
        node.tmpfs("disks/b", MsFlags::empty());
        let found = entries(node, &dir, true);
        assert!(
            matches!(&found[OsStr::new("a")], EntryKind::Failed(text) if text.contains("open")),
            "{found:?}"
        );
        assert!(matches!(found[OsStr::new("b")], EntryKind::Mount(_)));
    });
}

#[test]
fn only_what_may_be_probed_is() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        for name in ["a", "b"] {
            link(&dir, name, &node.attach(&node.image(name, 1 << 20), &[]));
        }
        let observed = Scanner::new(settings(node)).scan(&[key(&dir)], &|key, name| {
            key.class == "fast" && name.as_bytes() == b"b"
        });
        let Directory::Read(entries) = &observed.directories[&key(&dir)] else {
            panic!()
        };
        let probed: Vec<bool> = entries
            .iter()
            .map(|entry| matches!(&entry.kind, EntryKind::Device(facts) if facts.users.is_some()))
            .collect();
        assert_eq!(probed, [false, true]);
    });
}
