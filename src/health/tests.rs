#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;

use nix::sys::stat::makedev;

use super::*;

/// /sys as it was seen on real machines, as far as it is read here.
struct Sys(tempfile::TempDir);

impl Sys {
    fn new() -> Self {
        let sys = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(sys.0.path().join("dev/block")).unwrap();
        sys
    }

    /// A device with this number, and its directory below /sys/devices.
    fn device(&self, number: &str, dir: &str) -> &Self {
        fs::create_dir_all(self.0.path().join("devices").join(dir)).unwrap();
        symlink(
            Path::new("../../devices").join(dir),
            self.0.path().join("dev/block").join(number),
        )
        .unwrap();
        self
    }

    fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn filesystem(&self, mountinfo: &str, uuid: Option<&str>) -> Option<String> {
        let mount = crate::mounts::parse(mountinfo.as_bytes()).pop().unwrap();
        filesystem(self.0.path(), &mount, uuid)
    }

    fn disk(&self, major: u64, minor: u64) -> Option<String> {
        device(self.0.path(), makedev(major, minor))
    }
}

const EXT4: &str = "67 45 8:1 / /mnt/a rw,relatime - ext4 /dev/sda1 rw";

#[test]
fn ext4_notes_its_errors() {
    let sys = Sys::new();
    sys.device("8:1", "pci0/host0/sda/sda1")
        .file("fs/ext4/sda1/errors_count", "0\n");
    sys.file("fs/ext4/sda1/first_error_time", "0\n");
    assert_eq!(sys.filesystem(EXT4, None), None);
    sys.file("fs/ext4/sda1/errors_count", "1\n");
    sys.file("fs/ext4/sda1/first_error_time", "1795221754\n");
    let first = sys.filesystem(EXT4, None).unwrap();
    assert!(
        first.contains("ext4") && first.contains("since 2026-11-21T00:42:34Z"),
        "{first}"
    );
    sys.file("fs/ext4/sda1/errors_count", "4711\n");
    assert_eq!(
        sys.filesystem(EXT4, None).as_ref(),
        Some(&first),
        "one more error is nothing new"
    );
    // The last one may be older than the boot.
    let boot = boot_seconds();
    assert!(boot > 1_500_000_000, "{boot}");
    for (last, fails) in [(boot - 1, false), (boot + 1, true)] {
        sys.file("fs/ext4/sda1/last_error_time", &format!("{last}\n"));
        assert_eq!(sys.filesystem(EXT4, None), fails.then(|| first.clone()));
    }
    // The errors are those of one device.
    assert_eq!(sys.filesystem(&EXT4.replace("8:1", "8:2"), None), None);
}

#[test]
fn what_has_given_up_says_so_in_the_mount_table() {
    let sys = Sys::new();
    for option in ["emergency_ro", "shutdown"] {
        let line = format!("{EXT4},errors=remount-ro,{option}");
        let what = sys.filesystem(&line, None).unwrap();
        assert!(what.contains("given up"), "{what}");
    }
    // An option of the mount, or a part of another, is none of it.
    assert_eq!(sys.filesystem(&EXT4.replace("relatime", "shutdown"), None), None);
    assert_eq!(sys.filesystem(&format!("{EXT4},noshutdown"), None), None);
}

#[test]
fn btrfs_counts_for_each_device() {
    let sys = Sys::new();
    let line = "70 45 0:43 / /mnt/b rw - btrfs /dev/sdb rw,subvol=/";
    let stats = |write: u32, corruption: u32| {
        format!("write_errs {write}\nread_errs 0\nflush_errs 0\ncorruption_errs {corruption}\ngeneration_errs 0\n")
    };
    sys.file("fs/btrfs/u1/devinfo/1/error_stats", &stats(0, 0));
    sys.file("fs/btrfs/u1/devinfo/2/error_stats", &stats(0, 0));
    assert_eq!(sys.filesystem(line, Some("u1")), None);
    sys.file("fs/btrfs/u1/devinfo/2/error_stats", &stats(3, 1));
    let what = sys.filesystem(line, Some("u1")).unwrap();
    assert!(what.contains("counted corruption_errs, write_errs ("), "{what}");
    sys.file("fs/btrfs/u1/devinfo/1/error_stats", &stats(1, 0));
    assert_eq!(sys.filesystem(line, Some("u1")), Some(what));
    assert_eq!(sys.filesystem(line, Some("u2")), None);
    assert_eq!(sys.filesystem(line, None), None);
    // A device that is missing shows no stats yet.
    sys.file("fs/btrfs/u3/devinfo/1/error_stats", "invalid\n");
    assert_eq!(sys.filesystem(line, Some("u3")), None);
}

#[test]
fn disks_that_the_kernel_has_given_up() {
    for (state, fails) in [
        ("running", false),
        ("blocked", false),
        ("quiesce", false),
        ("live", false),
        ("resetting", false),
        ("offline", true),
        ("transport-offline", true),
        ("dead", true),
    ] {
        let sys = Sys::new();
        sys.device("8:0", "pci0/host0/block/sda")
            .device("8:1", "pci0/host0/block/sda/sda1");
        sys.file("devices/pci0/host0/block/sda/device/state", &format!("{state}\n"));
        for number in [0, 1] {
            let said = sys.disk(8, number);
            assert_eq!(said.is_some(), fails, "{state}: {said:?}");
            assert!(said.is_none_or(|said| said.contains(state)));
        }
        // So it is of the filesystem on it, of whatever type.
        let xfs = "68 45 8:1 / /mnt/x rw - xfs /dev/sda1 rw";
        assert_eq!(sys.filesystem(xfs, None).is_some(), fails, "{state}");
    }
    // Neither a virtual disk nor one that is gone has a state.
    let sys = Sys::new();
    sys.device("253:0", "virtual/block/dm-0");
    assert_eq!((sys.disk(253, 0), sys.disk(8, 16)), (None, None));
}
