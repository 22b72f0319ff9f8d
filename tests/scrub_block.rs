//! Wiping real loop devices.
#![allow(clippy::unwrap_used)]

#[path = "scrub/methods.rs"]
mod methods;
#[path = "scrub/resume.rs"]
mod resume;
#[path = "scrub/support.rs"]
mod support;

use local_volume_provisioner::config::Cleaner;
use local_volume_provisioner::devices::ExclusiveDevice;
use local_volume_provisioner::reason::Held;
use local_volume_provisioner::scan::{ScanSettings, Tables};
use local_volume_provisioner::scrub::ScrubError;
use local_volume_provisioner::scrub::block::{verify, wipe, zero_range};
use local_volume_provisioner::scrub::limits::Steering;
use local_volume_provisioner::scrub::progress::{Cancel, Progress, Unit};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Loop, in_namespace};

fn claim(device: &Path) -> Result<ExclusiveDevice, ScrubError> {
    let scan = ScanSettings {
        own_mountinfo: "/proc/thread-self/mountinfo".into(), // The namespace is the thread's.
        ..ScanSettings::default()
    };
    local_volume_provisioner::recycle::claim(device, &scan, &Tables::new(&scan))
}

const MIB: u64 = 1024 * 1024;

fn progress() -> Progress {
    Progress::new(Unit::Bytes, 0)
}

fn zero(
    device: &File,
    size_bytes: u64,
    before: &mut dyn FnMut() -> Result<(), ScrubError>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<(), ScrubError> {
    wipe(
        &Cleaner::Zero,
        device,
        size_bytes,
        before,
        &Steering::new(progress, cancel, None),
    )
}

/// A new descriptor, without the write error that the old one remembers.
fn open_again(held: File, path: &Path) -> File {
    drop(held);
    claim(path).unwrap().file
}

fn fill(file: &Path, byte: u8, size_bytes: u64) {
    let file = File::create(file).unwrap();
    let buffer = vec![byte; 1 << 20];
    let mut at = 0;
    while at < size_bytes {
        let length = (size_bytes - at).min(MIB);
        file.write_all_at(&buffer[..usize::try_from(length).unwrap()], at)
            .unwrap();
        at += length;
    }
}

/// The first offset in the file whose byte is not this.
fn first_other(file: &Path, byte: u8, range: std::ops::Range<u64>) -> Option<u64> {
    let file = File::open(file).unwrap();
    let (mut buffer, expected) = (vec![0; 1 << 20], vec![byte; 1 << 20]);
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from((range.end - at).min(MIB)).unwrap();
        file.read_exact_at(&mut buffer[..length], at).unwrap();
        if buffer[..length] == expected[..length] {
            at += length as u64;
            continue;
        }
        if let Some(index) = buffer[..length].iter().position(|found| *found != byte) {
            return Some(at + index as u64);
        }
        at += length as u64;
    }
    None
}

#[test]
fn every_byte_of_a_device_becomes_zero() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 200 * MIB + 3 * 512);
        fill(&file, 0xaa, size);
        let device = Loop::on(&file, &[]);
        let link = dir.join("link");
        symlink(&device.path, &link).unwrap();
        let held = claim(&link).unwrap().file;
        let (progress, mut calls) = (progress(), 0);
        zero(
            &held,
            size,
            &mut || {
                calls += 1;
                Ok(())
            },
            &progress,
            &Cancel::new(),
        )
        .unwrap();
        assert_eq!(calls, 1);
        let snapshot = progress.snapshot();
        assert_eq!((snapshot.done, snapshot.total), (size, Some(size)));
        assert_eq!(first_other(&file, 0, 0..size), None);
    });
}

/// Its last 512 bytes are beyond what the device can address: nobody wrote them through it, and nobody can.
#[test]
fn a_device_that_ends_within_a_block_is_wiped_as_far_as_it_can_be_written() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 10 * MIB + 512);
        fill(&file, 0xaa, size);
        let device = Loop::on(&file, &["--sector-size", "4096"]);
        let held = claim(&device.path).unwrap().file;
        held.write_all_at(&[1; 512], size - 512)
            .and_then(|()| held.sync_all())
            .unwrap_err();
        let held = open_again(held, &device.path);
        let progress = progress();
        zero(&held, size, &mut || Ok(()), &progress, &Cancel::new()).unwrap();
        assert_eq!(progress.snapshot().done, size);
        assert_eq!(first_other(&file, 0, 0..10 * MIB), None);
    });
}

#[test]
fn nothing_is_written_when_the_caller_refuses_or_the_size_is_another() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 4 * MIB);
        fill(&file, 0xaa, size);
        let device = Loop::on(&file, &[]);
        let held = claim(&device.path).unwrap().file;
        let refused = zero(
            &held,
            size,
            &mut || Err(ScrubError::Held(Held::Retain)),
            &progress(),
            &Cancel::new(),
        )
        .unwrap_err();
        assert!(matches!(refused, ScrubError::Held(Held::Retain)));
        let mut called = false;
        let wrong = zero(
            &held,
            size - 512,
            &mut || {
                called = true;
                Ok(())
            },
            &progress(),
            &Cancel::new(),
        )
        .unwrap_err();
        assert!(matches!(wrong, ScrubError::Failed(_)), "{wrong}");
        let cancel = Cancel::new();
        cancel.cancel();
        let cancelled = zero(
            &held,
            size,
            &mut || {
                called = true;
                Ok(())
            },
            &progress(),
            &cancel,
        )
        .unwrap_err();
        assert!(matches!(cancelled, ScrubError::Cancelled));
        assert!(!called);
        assert_eq!(first_other(&file, 0xaa, 0..size), None);
    });
}

#[test]
fn only_the_range_is_wiped() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 150 * MIB);
        fill(&file, 0xaa, size);
        let device = Loop::on(&file, &[]);
        let held = claim(&device.path).unwrap().file;
        let (start, end) = (MIB + 512, 130 * MIB + 1024);
        let progress = progress();
        let cancel = Cancel::new();
        let steering = Steering::new(&progress, &cancel, None);
        zero_range(&held, start..end, &steering).unwrap();
        assert_eq!(progress.snapshot().done, end - start);
        assert_eq!(first_other(&file, 0xaa, 0..start), None);
        assert_eq!(first_other(&file, 0, start..end), None);
        assert_eq!(first_other(&file, 0xaa, end..size), None);
        let misaligned = zero_range(&held, 100..1024, &steering).unwrap_err();
        assert!(misaligned.to_string().contains("logical block"), "{misaligned}");
    });
}

#[test]
fn offsets_beyond_16_tib_are_right() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 17 * 1024 * 1024 * MIB + 512);
        let device = Loop::new(&file, size, &[]);
        let start = size - 100 * MIB - 512;
        // Where the range begins, and where it would begin if its offset lost bits.
        let backing = File::options().write(true).open(&file).unwrap();
        for at in [start - MIB, start, start % (1 << 32), start % (1 << 44), size - MIB] {
            backing.write_all_at(&[0xaa; 1 << 20], at).unwrap();
        }
        let held = claim(&device.path).unwrap().file;
        let unclean = verify(&held, size).unwrap_err();
        assert!(
            unclean.to_string().contains("did not reach the medium at offset"),
            "{unclean}"
        );
        let (progress, cancel) = (progress(), Cancel::new());
        zero_range(&held, start..size, &Steering::new(&progress, &cancel, None)).unwrap();
        assert_eq!(first_other(&file, 0, start..size), None);
        for kept in [start - MIB, start % (1 << 32), start % (1 << 44)] {
            assert_eq!(first_other(&file, 0xaa, kept..kept + MIB), None, "{kept}");
        }
    });
}

#[test]
fn a_device_that_does_not_read_as_zeros_is_a_failure() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 64 * MIB + 512);
        let device = Loop::new(&file, size, &[]);
        let held = claim(&device.path).unwrap().file;
        verify(&held, size).unwrap();
        for at in [0, MIB - 1, 8193 * 1024 + 56, size - MIB, size - 1] {
            held.write_all_at(&[1], at).unwrap();
            held.sync_all().unwrap();
            let error = verify(&held, size).unwrap_err();
            assert!(error.to_string().ends_with(&format!("at offset {at}")), "{error}");
            held.write_all_at(&[0], at).unwrap();
        }
        held.sync_all().unwrap();
        verify(&held, size).unwrap();
    });
}

#[test]
fn a_cancelled_wipe_stops_and_can_be_done_again() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 300 * MIB);
        fill(&file, 0xaa, size);
        let device = Loop::on(&file, &[]);
        let held = claim(&device.path).unwrap().file;
        let (progress, cancel) = (progress(), Cancel::new());
        let ended = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while progress.snapshot().done == 0 && !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                cancel.cancel();
            });
            let result = zero(&held, size, &mut || Ok(()), &progress, &cancel);
            ended.store(true, Ordering::Relaxed);
            result
        });
        // The wish came while a chunk was written; a quick device may have been done by then.
        if let Err(error) = result {
            assert!(matches!(error, ScrubError::Cancelled), "{error}");
            let done = progress.snapshot().done;
            assert!(done > 0 && done < size);
            held.sync_all().unwrap();
            assert_eq!(first_other(&file, 0, 0..done), None);
            assert_eq!(first_other(&file, 0xaa, done..size), None);
        }
        zero(
            &held,
            size,
            &mut || Ok(()),
            &Progress::new(Unit::Bytes, 0),
            &Cancel::new(),
        )
        .unwrap();
        assert_eq!(first_other(&file, 0, 0..size), None);
    });
}

#[test]
fn a_mounted_or_held_device_is_held_until_it_is_free() {
    in_namespace(|dir| {
        let device = Loop::new(&dir.join("disk"), 32 * MIB, &[]);
        let mounted = dir.join("mounted");
        device.mount_ext4(&mounted, &[]);
        match claim(&device.path) {
            Err(ScrubError::Held(Held::InUse(user))) => assert!(user.contains(&*mounted.to_string_lossy()), "{user}"),
            other => panic!("{other:?}"),
        }
        nix::mount::umount(&mounted).unwrap();
        let first = claim(&device.path).unwrap().file;
        assert!(matches!(claim(&device.path), Err(ScrubError::Held(Held::InUse(_)))));
        drop(first);
        claim(&device.path).unwrap();
    });
}

#[test]
fn a_read_only_device_is_held() {
    in_namespace(|dir| {
        let file = dir.join("disk");
        fill(&file, 0xaa, MIB);
        let device = Loop::on(&file, &["-r"]);
        match claim(&device.path) {
            Err(error) => assert!(matches!(error, ScrubError::Held(Held::ReadOnly)), "{error}"),
            Ok(held) => {
                let error = zero(&held.file, MIB, &mut || Ok(()), &progress(), &Cancel::new()).unwrap_err();
                assert!(matches!(error, ScrubError::Held(Held::ReadOnly)), "{error}");
            }
        }
        assert_eq!(first_other(&file, 0xaa, 0..MIB), None);
    });
}

/// Makes a device read-only, and writable again when dropped: the flag stays with the number of a loop device.
struct SetReadOnly<'a>(&'a Path);

impl<'a> SetReadOnly<'a> {
    fn new(device: &'a Path) -> Self {
        let guard = Self(device);
        support::run("blockdev", [OsStr::new("--setro"), device.as_os_str()]);
        guard
    }
}

impl Drop for SetReadOnly<'_> {
    fn drop(&mut self) {
        std::process::Command::new("blockdev")
            .arg("--setrw")
            .arg(self.0)
            .status()
            .ok();
    }
}

#[test]
fn a_device_that_became_read_only_is_held() {
    in_namespace(|dir| {
        let device = Loop::new(&dir.join("disk"), MIB, &[]);
        let held = claim(&device.path).unwrap().file;
        let _read_only = SetReadOnly::new(&device.path);
        let error = zero(&held, MIB, &mut || Ok(()), &progress(), &Cancel::new()).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::ReadOnly)), "{error}");
    });
}

#[test]
fn what_is_no_block_device_is_held_unopened() {
    in_namespace(|dir| {
        let fifo = dir.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let file = dir.join("file");
        fill(&file, 0xaa, 512);
        let dangling = dir.join("dangling");
        symlink("nowhere", &dangling).unwrap();
        for path in [
            fifo,
            file,
            dangling,
            dir.join("missing"),
            dir.to_owned(),
            "/dev/null".into(),
        ] {
            let error = claim(&path).unwrap_err();
            assert!(
                matches!(error, ScrubError::Held(Held::NotMounted(_))),
                "{}: {error}",
                path.display()
            );
        }
    });
}
