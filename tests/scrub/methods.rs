//! What each native method leaves on a real device.

use super::support::{Loop, in_namespace, run};
use super::{MIB, claim, fill, first_other};
use local_volume_provisioner::config::Cleaner;
use local_volume_provisioner::reason::Held;
use local_volume_provisioner::scrub::ScrubError;
use local_volume_provisioner::scrub::block::wipe;
use local_volume_provisioner::scrub::limits::Steering;
use local_volume_provisioner::scrub::progress::{Cancel, Progress, Snapshot, Unit};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn wiped(cleaner: &Cleaner, device: &Path, size_bytes: u64) -> Snapshot {
    let held = claim(device).unwrap().file;
    let (progress, cancel) = (Progress::new(Unit::Bytes, 0), Cancel::new());
    let steering = Steering::new(&progress, &cancel, None);
    let mut calls = 0;
    let mut before = || {
        calls += 1;
        Ok(())
    };
    wipe(cleaner, &held, size_bytes, &mut before, &steering).unwrap();
    assert_eq!(calls, 1);
    progress.snapshot()
}

#[test]
fn every_method_that_promises_it_leaves_zeros() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 70 * MIB + 3 * 512);
        for (cleaner, times) in [
            (Cleaner::Zero, 1),
            (Cleaner::Discard, 2),
            (Cleaner::Shred { passes: 1 }, 2),
            (Cleaner::Shred { passes: 3 }, 4),
        ] {
            fill(&file, 0xaa, size);
            let device = Loop::on(&file, &[]);
            let snapshot = wiped(&cleaner, &device.path, size);
            assert_eq!(
                (snapshot.done, snapshot.total),
                (times * size, Some(times * size)),
                "{cleaner}"
            );
            assert_eq!(first_other(&file, 0, 0..size), None, "{cleaner}");
        }
    });
}

/// ramfs has no fallocate, so a loop device on it knows neither discarding nor punching.
#[test]
fn a_device_that_cannot_discard_is_zeroed_all_the_same() {
    in_namespace(|dir| {
        let ram = dir.join("ram");
        std::fs::create_dir(&ram).unwrap();
        run("mount", ["-t", "ramfs", "none", ram.to_str().unwrap()]);
        let (file, size) = (ram.join("disk"), 9 * MIB + 512);
        fill(&file, 0xaa, size);
        let device = Loop::on(&file, &[]);
        let snapshot = wiped(&Cleaner::Discard, &device.path, size);
        assert_eq!(Some(snapshot.done), snapshot.total);
        assert_eq!(first_other(&file, 0, 0..size), None);
    });
}

#[test]
fn a_shred_overwrites_with_random_data_first_and_can_be_stopped() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 64 * MIB);
        fill(&file, 0xaa, size);
        let device = Loop::on(&file, &[]);
        let held = claim(&device.path).unwrap().file;
        let (progress, cancel) = (Progress::new(Unit::Bytes, 0), Cancel::new());
        let done = std::thread::scope(|scope| {
            // So slow that it is stopped in the first pass.
            let steering = Steering::new(&progress, &cancel, NonZeroU64::new(16 * MIB));
            let watcher = progress.clone();
            let canceller = cancel.clone();
            scope.spawn(move || {
                let end = Instant::now() + Duration::from_secs(30);
                while watcher.snapshot().done < 2 * MIB && Instant::now() < end {
                    std::thread::yield_now();
                }
                canceller.cancel();
            });
            let error = wipe(&Cleaner::Shred { passes: 1 }, &held, size, &mut || Ok(()), &steering).unwrap_err();
            assert!(matches!(error, ScrubError::Cancelled), "{error}");
            progress.snapshot().done
        });
        assert!((2 * MIB..size).contains(&done), "{done}");
        let mut bytes = vec![0; 1 << 20];
        File::open(&file).unwrap().read_exact_at(&mut bytes, MIB).unwrap();
        let mut counts = [0_u32; 256];
        bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        assert!(
            counts.iter().all(|count| (3500..4700).contains(count)),
            "not random: {counts:?}"
        );
        assert_eq!(first_other(&file, 0xaa, done..size), None);
    });
}

#[test]
fn a_bandwidth_is_kept() {
    in_namespace(|dir| {
        let size = 16 * MIB;
        let device = Loop::new(&dir.join("disk"), size, &[]);
        let held = claim(&device.path).unwrap().file;
        let (progress, cancel) = (Progress::new(Unit::Bytes, 0), Cancel::new());
        let steering = Steering::new(&progress, &cancel, NonZeroU64::new(20 * MIB));
        let began = Instant::now();
        wipe(&Cleaner::Zero, &held, size, &mut || Ok(()), &steering).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(795), "{:?}", began.elapsed());
    });
}

/// What libblkid recognises on a device, in the words of `blkid -p`.
fn recognised(device: &Path) -> Option<String> {
    let output = Command::new("blkid").arg("-p").arg(device).output().unwrap();
    match output.status.code() {
        Some(0) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Some(2) => None, // Nothing was found.
        _ => panic!("{output:?}"),
    }
}

#[test]
fn a_quick_wipe_removes_what_tools_recognise_and_leaves_the_rest() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 400 * MIB + 512);
        let device = Loop::new(&file, size, &[]);
        let path = device.path.to_str().unwrap();
        // A DOS table with one partition, of 100 MiB from 1 MiB on.
        let mut table = [0_u8; 66];
        table[4] = 0x83;
        table[8..12].copy_from_slice(&2048_u32.to_le_bytes());
        table[12..16].copy_from_slice(&204_800_u32.to_le_bytes());
        table[64..].copy_from_slice(&[0x55, 0xaa]);
        let table_file = dir.join("table");
        std::fs::write(&table_file, table).unwrap();
        let script = format!(
            "dd status=none conv=notrunc bs=1 seek=446 if={} of={path}",
            table_file.display()
        );
        let makers: [&[&str]; 5] = [
            &["mkfs.ext4", "-q", "-F", path],
            &["mkfs.xfs", "-q", "-f", path],
            &["mkfs.btrfs", "-q", "-f", path],
            &["mkswap", "-q", path],
            &["sh", "-c", &script],
        ];
        for maker in makers {
            run(maker[0], &maker[1..]);
            let before = recognised(&device.path);
            assert!(before.is_some(), "{maker:?} left nothing to be recognised");
            // Nothing known lies here: it must be left, or this is not what it says.
            let backing = File::options().write(true).open(&file).unwrap();
            backing.write_all_at(&[0xaa; 4096], 20 * MIB).unwrap();
            let snapshot = wiped(&Cleaner::Quick, &device.path, size);
            assert_eq!(Some(snapshot.done), snapshot.total);
            assert!(snapshot.done < 20 * MIB, "{} is not quick", snapshot.done);
            assert_eq!(recognised(&device.path), None, "{maker:?}");
            assert_eq!(first_other(&file, 0xaa, 20 * MIB..20 * MIB + 4096), None);
        }
        // Nor is a filesystem found by the copies of its superblock.
        run("mkfs.ext4", ["-q", "-F", "-b", "1024", path]);
        let copies = || {
            let blocks = ["8193", "24577", "40961", "57345", "73729", "204801", "221185"];
            let found = blocks.into_iter().filter(|block| {
                let superblock = format!("superblock={block}");
                let arguments = ["-h", "-o", &superblock, "-o", "blocksize=1024", path];
                let output = Command::new("dumpe2fs").args(arguments).output().unwrap();
                output.status.success()
            });
            found.count()
        };
        assert_eq!(copies(), 7);
        wiped(&Cleaner::Quick, &device.path, size);
        assert_eq!(copies(), 0);
    });
}

#[test]
fn a_quick_wipe_finds_the_end_of_a_huge_device() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 17 * 1024 * 1024 * MIB + 512);
        let device = Loop::new(&file, size, &[]);
        let backing = File::options().read(true).write(true).open(&file).unwrap();
        let end = size - MIB - 512;
        let kept = [end % (1 << 32), end % (1 << 44), size - 30 * MIB];
        for at in kept.into_iter().chain([end, 0]) {
            backing.write_all_at(&[0xaa; 4096], at).unwrap();
        }
        wiped(&Cleaner::Quick, &device.path, size);
        for gone in [0, end] {
            assert_eq!(first_other(&file, 0, gone..gone + 4096), None, "{gone}");
        }
        for at in kept {
            assert_eq!(first_other(&file, 0xaa, at..at + 4096), None, "{at}");
        }
    });
}

#[test]
fn what_is_no_method_for_devices_touches_nothing() {
    in_namespace(|dir| {
        let file = dir.join("disk");
        fill(&file, 0xaa, MIB);
        let device = Loop::on(&file, &[]);
        let held = claim(&device.path).unwrap().file;
        let (progress, cancel) = (Progress::new(Unit::Bytes, 0), Cancel::new());
        for cleaner in [Cleaner::Fsclean, Cleaner::Command(vec!["true".into()])] {
            let steering = Steering::new(&progress, &cancel, None);
            let mut called = false;
            let mut before = || {
                called = true;
                Ok(())
            };
            let error = wipe(&cleaner, &held, MIB, &mut before, &steering).unwrap_err();
            assert!(
                matches!(error, ScrubError::Held(Held::CleanerUnavailable(_))),
                "{error}"
            );
            assert!(!called);
        }
        assert_eq!(first_other(&file, 0xaa, 0..MIB), None);
    });
}
