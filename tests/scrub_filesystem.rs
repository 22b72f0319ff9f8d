//! Scrubbing real filesystems.
#![allow(clippy::unwrap_used)]

#[path = "scrub/support.rs"]
mod support;

use local_volume_provisioner::reason::Held;
use local_volume_provisioner::scrub::ScrubError;
use local_volume_provisioner::scrub::filesystem::{FilesystemOutcome, filesystem, open_mount_root};
use local_volume_provisioner::scrub::progress::{Cancel, Progress, Unit};
use nix::mount::{MsFlags, mount};
use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags, RenameFlags, XattrFlags};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Loop, bind, in_namespace, mount_tmpfs};

/// Runs a test twice: with the volume `<discovery>/volume` on a tmpfs, and on an ext4 of 1 GiB.
fn on_each_filesystem(test: impl Fn(&Path, &Path) + Send + Sync + Copy + 'static) {
    in_namespace(move |dir| {
        mount_tmpfs(&dir.join("volume"));
        test(dir, &dir.join("volume"));
    });
    in_namespace(move |dir| {
        let disk = Loop::new(&dir.join("disk"), 1 << 30, &[]);
        disk.mount_ext4(&dir.join("volume"), &["-i", "4096"]);
        disk.detach_when_unmounted();
        test(dir, &dir.join("volume"));
    });
}

fn scrub_with(
    dir: &Path,
    before: &mut dyn FnMut() -> Result<(), ScrubError>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<FilesystemOutcome, ScrubError> {
    let root = open_mount_root(dir, OsStr::new("volume"))?;
    filesystem(&root, before, progress, cancel)
}

fn scrub(dir: &Path) -> Result<FilesystemOutcome, ScrubError> {
    scrub_with(dir, &mut || Ok(()), &Progress::new(Unit::Entries, 0), &Cancel::new())
}

/// Sets a flag when it is dropped, so that a failed assertion ends the threads beside the test too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect()
}

fn assert_empty(volume: &Path) {
    assert_eq!(names(volume), Vec::<std::ffi::OsString>::new());
}

fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap()
}

/// A chain of directories, each in the other; after every `every` of them some files and full directories beside it.
fn chain(top: &Path, depth: usize, every: usize) -> u64 {
    let mut dir = open_dir(top);
    let mut made = 0;
    for level in 0..depth {
        if level % every == every - 1 {
            for side in ["0", "a", "x", "z"] {
                rustix::fs::mkdirat(&dir, side, Mode::RWXU).unwrap();
                let inside = format!("{side}/file");
                rustix::fs::openat(&dir, inside, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
                made += 2;
            }
        }
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        made += 1;
    }
    made
}

#[test]
fn whatever_is_in_a_volume_goes_and_is_counted() {
    on_each_filesystem(|dir, volume| {
        let lost_and_found = names(volume).len() as u64;
        fs::write(volume.join(".hidden"), "x").unwrap();
        fs::create_dir_all(volume.join("..strange/.../ ")).unwrap();
        for byte in (1..=255_u8).filter(|byte| !matches!(byte, b'/' | b'.')) {
            fs::write(volume.join(OsStr::from_bytes(&[byte])), "x").unwrap();
            fs::create_dir(volume.join(OsStr::from_bytes(&[byte, b'd']))).unwrap();
        }
        fs::write(volume.join("n".repeat(255)), "x").unwrap();
        let locked = volume.join("locked");
        fs::create_dir(&locked).unwrap();
        fs::write(locked.join("inside"), "x").unwrap();
        rustix::fs::chmod(&locked, Mode::empty()).unwrap();
        nix::unistd::mkfifo(&volume.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        UnixListener::bind(volume.join("socket")).unwrap();
        for (name, kind) in [
            ("character", FileType::CharacterDevice),
            ("block", FileType::BlockDevice),
        ] {
            // Numbers that no driver has: opening one would fail with ENXIO.
            let device = rustix::fs::makedev(4_000, 1);
            rustix::fs::mknodat(CWD, volume.join(name), kind, Mode::RUSR, device).unwrap();
        }
        symlink("nowhere", volume.join("dangling")).unwrap();
        let held_open = File::create(volume.join("open")).unwrap();
        let progress = Progress::new(Unit::Entries, 0);
        let outcome = scrub_with(dir, &mut || Ok(()), &progress, &Cancel::new()).unwrap();
        assert_empty(volume);
        let made = 1 + 3 + 2 * 253 + 1 + 2 + 2 + 2 + 2 + lost_and_found;
        assert_eq!(outcome.entries_removed, made);
        assert_eq!(progress.snapshot().done, made);
        drop(held_open);
        assert_eq!(scrub(dir).unwrap().entries_removed, 0);
    });
}

#[test]
fn depth_is_not_limited_by_descriptors_or_the_stack() {
    on_each_filesystem(|dir, volume| {
        // The usual limit is 1024; this one leaves room for the tests beside.
        let limit = ["--pid", &std::process::id().to_string(), "--nofile=512:4096"].map(str::to_owned);
        support::run("prlimit", limit);
        fs::create_dir(volume.join("chain")).unwrap();
        let lost_and_found = names(volume).len() as u64 - 1;
        let made = 1 + chain(&volume.join("chain"), 10_000, 100) + lost_and_found;
        assert_eq!(scrub(dir).unwrap().entries_removed, made);
        assert_empty(volume);
    });
}

#[test]
fn full_directories_that_were_closed_meanwhile_are_read_on() {
    on_each_filesystem(|dir, volume| {
        let mut made = names(volume).len() as u64;
        // More names than one read gives, each deeper than the levels that stay open.
        for index in 0..1_500 {
            let top = volume.join(format!("a-name-that-takes-some-room-{index:06}"));
            fs::create_dir(&top).unwrap();
            made += 1 + chain(&top, 35, 34);
        }
        assert_eq!(scrub(dir).unwrap().entries_removed, made);
        assert_empty(volume);
    });
}

/// The resident memory of this process, in kB: what there is now, or the most that there ever was.
fn resident_kb(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_number_of_files_in_a_directory_costs_no_memory() {
    const ALONE: &str = "LVP_TEST_ALONE";
    // Only a process of its own can tell: what other tests use at the same time would count.
    if std::env::var_os(ALONE).is_none() {
        let test = "the_number_of_files_in_a_directory_costs_no_memory";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command
            .args(["--exact", test, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    on_each_filesystem(|dir, volume| {
        let type_of = rustix::fs::statfs(volume).unwrap().f_type;
        // linux/magic.h: of tmpfs. The ext4 has room for so many inodes.
        let count = if type_of == 0x0102_1994 { 1_000_000 } else { 100_000 };
        let wide = volume.join("wide");
        fs::create_dir(&wide).unwrap();
        let at = open_dir(&wide);
        for index in 0..count {
            rustix::fs::mknodat(&at, index.to_string(), FileType::RegularFile, Mode::RUSR, 0).unwrap();
        }
        let before = resident_kb("VmRSS");
        fs::write("/proc/self/clear_refs", "5").unwrap(); // The peak is counted from now on: proc_pid_clear_refs(5).
        assert!(scrub(dir).unwrap().entries_removed > count);
        let grown = resident_kb("VmHWM").saturating_sub(before);
        assert!(grown < 4 << 10, "{grown} kB for {count} files");
        assert_empty(volume);
    });
}

#[test]
fn what_links_lead_to_is_untouched() {
    on_each_filesystem(|dir, volume| {
        // A part of the filesystem is the volume: the other part is outside, and hard links lead there.
        let (inside, outside) = (volume.join("inside"), volume.join("outside"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "precious").unwrap();
        fs::create_dir(outside.join("directory")).unwrap();
        fs::write(outside.join("directory/file"), "precious").unwrap();
        fs::hard_link(outside.join("file"), inside.join("hard")).unwrap();
        symlink(outside.join("file"), inside.join("to-file")).unwrap();
        symlink(&outside, inside.join("to-directory")).unwrap();
        symlink("../outside/directory", inside.join("relative")).unwrap();
        let bound = dir.join("bound");
        fs::create_dir(&bound).unwrap();
        bind(&inside, &bound);
        let root = open_mount_root(dir, OsStr::new("bound")).unwrap();
        let outcome = filesystem(&root, &mut || Ok(()), &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap();
        assert_eq!(outcome.entries_removed, 4);
        assert_empty(&inside);
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "precious");
        assert_eq!(fs::read_to_string(outside.join("directory/file")).unwrap(), "precious");
    });
}

/// Sets flags until it is dropped, so that a failing test leaves nothing that cannot be removed.
fn set_flags(path: &Path, flags: IFlags) {
    let file = File::open(path).unwrap();
    let old = rustix::fs::ioctl_getflags(&file).unwrap();
    rustix::fs::ioctl_setflags(&file, old | flags).unwrap();
}

fn flags(path: &Path) -> IFlags {
    rustix::fs::ioctl_getflags(File::open(path).unwrap()).unwrap()
}

#[test]
fn immutable_and_append_only_files_and_directories_go() {
    on_each_filesystem(|dir, volume| {
        for (name, flag) in [("immutable", IFlags::IMMUTABLE), ("append", IFlags::APPEND)] {
            let directory = volume.join(name);
            fs::create_dir_all(directory.join("empty")).unwrap();
            fs::create_dir_all(directory.join("full/er")).unwrap();
            for file in ["file", "full/file"] {
                fs::write(directory.join(file), "x").unwrap();
            }
            symlink("x", directory.join("link")).unwrap();
            for path in ["file", "full/file", "empty", "full/er", "full", ""] {
                set_flags(&directory.join(path), flag);
            }
        }
        fs::create_dir(volume.join("free")).unwrap();
        fs::write(volume.join("free/immutable"), "x").unwrap();
        set_flags(&volume.join("free/immutable"), IFlags::IMMUTABLE);
        set_flags(volume, IFlags::APPEND);
        scrub(dir).unwrap();
        assert_empty(volume);
        assert!(!flags(volume).contains(IFlags::APPEND));
        set_flags(volume, IFlags::IMMUTABLE);
        scrub(dir).unwrap();
        assert!(!flags(volume).contains(IFlags::IMMUTABLE));
    });
}

#[test]
fn an_immutable_file_that_lives_on_outside_keeps_its_flag() {
    on_each_filesystem(|dir, volume| {
        let (inside, outside) = (volume.join("inside"), volume.join("outside"));
        fs::create_dir(&inside).unwrap();
        fs::write(&outside, "precious").unwrap();
        fs::hard_link(&outside, inside.join("hard")).unwrap();
        set_flags(&outside, IFlags::IMMUTABLE);
        let bound = dir.join("bound");
        fs::create_dir(&bound).unwrap();
        bind(&inside, &bound);
        let root = open_mount_root(dir, OsStr::new("bound")).unwrap();
        filesystem(&root, &mut || Ok(()), &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap();
        assert_empty(&inside);
        assert!(flags(&outside).contains(IFlags::IMMUTABLE));
    });
}

/// Makes four volumes' worth of trouble in turn: what is mounted below, and what must survive.
fn nested_mounts(dir: &Path, volume: &Path) -> Vec<(std::path::PathBuf, std::path::PathBuf)> {
    let outside = dir.join("outside");
    fs::create_dir_all(outside.join("directory")).unwrap();
    fs::write(outside.join("directory/file"), "precious").unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    set_flags(&outside.join("file"), IFlags::IMMUTABLE);
    let below = volume.join("a/b");
    fs::create_dir_all(below.join("directory")).unwrap();
    fs::create_dir_all(below.join("tmpfs")).unwrap();
    fs::create_dir_all(below.join("same")).unwrap();
    fs::create_dir_all(volume.join("source")).unwrap();
    fs::write(volume.join("source/file"), "precious").unwrap();
    fs::write(below.join("file"), "").unwrap();
    set_flags(&below.join("file"), IFlags::IMMUTABLE);
    vec![
        (outside.join("directory"), below.join("directory")),
        (outside.join("file"), below.join("file")),
        (volume.join("source"), below.join("same")),
    ]
}

#[test]
fn a_mount_below_holds_the_scrub_and_is_never_entered() {
    on_each_filesystem(|dir, volume| {
        for index in 0..3 {
            let (from, to) = nested_mounts(dir, volume).swap_remove(index);
            bind(&from, &to);
            let own = from.starts_with(volume);
            let error = scrub(dir).unwrap_err();
            let ScrubError::Held(Held::NestedMounts(paths)) = &error else {
                panic!("{error}");
            };
            assert_eq!(*paths, [to.display().to_string()]);
            if own {
                // What is below its other name was in the volume, and may be gone.
            } else if from.is_dir() {
                assert!(from.join("file").exists());
            } else {
                assert_eq!(fs::read_to_string(&from).unwrap(), "precious");
                assert!(flags(&from).contains(IFlags::IMMUTABLE));
            }
            nix::mount::umount(&to).unwrap();
            scrub(dir).unwrap();
            assert_empty(volume);
            let from = dir.join("outside/file");
            let file = File::open(&from).unwrap();
            rustix::fs::ioctl_setflags(&file, IFlags::empty()).unwrap();
        }
        fs::create_dir_all(volume.join("a/tmpfs")).unwrap();
        mount_tmpfs(&volume.join("a/tmpfs"));
        fs::write(volume.join("a/tmpfs/file"), "precious").unwrap();
        let error = scrub(dir).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::NestedMounts(_))), "{error}");
        assert_eq!(fs::read_to_string(volume.join("a/tmpfs/file")).unwrap(), "precious");
    });
}

#[test]
fn a_bind_of_the_volume_in_itself_is_not_entered() {
    in_namespace(|dir| {
        let volume = dir.join("volume");
        mount_tmpfs(&volume);
        // Only a part is the volume; another part of the same filesystem, with the same st_dev, is mounted in it.
        fs::create_dir_all(volume.join("part/point")).unwrap();
        fs::create_dir(volume.join("other")).unwrap();
        fs::write(volume.join("other/file"), "precious").unwrap();
        let bound = dir.join("bound");
        fs::create_dir(&bound).unwrap();
        bind(&volume.join("part"), &bound);
        bind(&volume.join("other"), &bound.join("point"));
        let root = open_mount_root(dir, OsStr::new("bound")).unwrap();
        let error = filesystem(&root, &mut || Ok(()), &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::NestedMounts(_))), "{error}");
        assert_eq!(fs::read_to_string(volume.join("other/file")).unwrap(), "precious");
    });
}

#[test]
fn nothing_is_touched_when_the_caller_refuses() {
    on_each_filesystem(|dir, volume| {
        fs::write(volume.join("file"), "x").unwrap();
        rustix::fs::setxattr(volume, "user.note", b"x", XattrFlags::empty()).unwrap();
        let before = names(volume);
        let mut calls = 0;
        let mut refuse = || {
            calls += 1;
            Err(ScrubError::Held(Held::NestedMounts(vec!["/somewhere".into()])))
        };
        let error = scrub_with(dir, &mut refuse, &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::NestedMounts(_))));
        assert_eq!(calls, 1);
        assert_eq!(names(volume), before);
        assert_eq!(
            rustix::fs::getxattr(volume, "user.note", &mut [0_u8; 8][..]).unwrap(),
            1
        );
    });
}

#[test]
fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
    on_each_filesystem(|dir, volume| {
        let outside = dir.join("outside");
        fs::create_dir_all(outside.join("directory")).unwrap();
        for name in ["file", "directory/file"] {
            fs::write(outside.join(name), "precious").unwrap();
        }
        let ended = AtomicBool::new(false);
        let swaps = AtomicU64::new(0);
        let deadline = Instant::now() + Duration::from_secs(2);
        std::thread::scope(|scope| {
            let _ends = Ends(&ended);
            scope.spawn(|| {
                let root = open_dir(volume);
                while !ended.load(Ordering::Relaxed) {
                    rustix::fs::mkdirat(&root, "victim", Mode::RWXU).ok();
                    rustix::fs::mkdirat(&root, "victim/directory", Mode::RWXU).ok();
                    rustix::fs::openat(
                        &root,
                        "victim/file",
                        OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW,
                        Mode::RUSR,
                    )
                    .ok();
                    rustix::fs::symlinkat(&outside, &root, "link").ok();
                    for _ in 0..50 {
                        if rustix::fs::renameat_with(&root, "victim", &root, "link", RenameFlags::EXCHANGE).is_err() {
                            break;
                        }
                        swaps.fetch_add(1, Ordering::Relaxed);
                    }
                    for name in ["victim", "link"] {
                        rustix::fs::unlinkat(&root, name, AtFlags::empty()).ok();
                    }
                }
            });
            while Instant::now() < deadline {
                if let Err(error) = scrub(dir) {
                    assert!(error.to_string().contains("still being written to"), "{error:?}");
                }
            }
        });
        assert!(swaps.load(Ordering::Relaxed) > 100);
        // The race thread itself may make victim/file through a swapped link, but that is there already.
        for name in ["file", "directory/file"] {
            assert_eq!(fs::read_to_string(outside.join(name)).unwrap(), "precious");
        }
        scrub(dir).unwrap();
        assert_empty(volume);
    });
}

#[test]
fn a_volume_that_is_written_to_ends_in_a_failure_or_empty() {
    on_each_filesystem(|dir, volume| {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _ends = Ends(&ended);
            for thread in 0..2 {
                let ended = &ended;
                scope.spawn(move || {
                    let mut index = 0_u64;
                    while !ended.load(Ordering::Relaxed) {
                        let directory = volume.join(format!("{thread}-{}", index % 3));
                        fs::create_dir(&directory).ok();
                        File::create(directory.join(index.to_string())).ok();
                        File::create(volume.join(format!("{thread}-file-{index}"))).ok();
                        // A writer that is quicker than the scrub would fill the memory.
                        index = (index + 1) % 5_000;
                    }
                });
            }
            for _ in 0..3 {
                if let Err(error) = scrub(dir) {
                    assert!(matches!(error, ScrubError::Failed(_)), "{error}");
                    assert!(error.to_string().contains("still being written to"), "{error}");
                }
            }
        });
        scrub(dir).unwrap();
        assert_empty(volume);
    });
}

#[test]
fn a_cancelled_scrub_stops_and_the_next_one_finishes() {
    on_each_filesystem(|dir, volume| {
        for directory in 0..20 {
            let directory = volume.join(directory.to_string());
            fs::create_dir(&directory).unwrap();
            for file in 0..1_000 {
                File::create(directory.join(file.to_string())).unwrap();
            }
        }
        let (progress, cancel) = (Progress::new(Unit::Entries, 0), Cancel::new());
        let ended = AtomicBool::new(false);
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                while progress.snapshot().done < 100 && !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                cancel.cancel();
            });
            let _ends = Ends(&ended);
            scrub_with(dir, &mut || Ok(()), &progress, &cancel).unwrap_err()
        });
        assert!(matches!(error, ScrubError::Cancelled), "{error}");
        let done = progress.snapshot().done;
        assert!((100..20_000).contains(&done), "{done}");
        assert!(!names(volume).is_empty());
        let rest = scrub(dir).unwrap().entries_removed;
        assert!(done + rest >= 20_020, "{done} + {rest}");
        assert_empty(volume);
    });
}

#[test]
fn a_full_disk_is_scrubbed() {
    in_namespace(|dir| {
        let disk = Loop::new(&dir.join("disk"), 16 << 20, &[]);
        let volume = dir.join("volume");
        disk.mount_ext4(&volume, &["-m", "0"]);
        disk.detach_when_unmounted();
        let file = File::create(volume.join("large")).unwrap();
        let mut at = 0;
        for size in [1 << 20, 4096, 1] {
            while file.write_all_at(&vec![1; size], at).is_ok() {
                at += size as u64;
            }
        }
        let mut index = 0;
        while symlink("x".repeat(1_000), volume.join(format!("{index:0200}"))).is_ok() {
            index += 1;
        }
        fs::write(volume.join("more"), vec![1; 8192]).unwrap_err();
        scrub(dir).unwrap();
        assert_empty(&volume);
    });
}

#[test]
fn a_read_only_volume_is_held() {
    on_each_filesystem(|dir, volume| {
        fs::write(volume.join("file"), "x").unwrap();
        let remount = |flags| {
            mount(
                None::<&str>,
                volume,
                None::<&str>,
                MsFlags::MS_REMOUNT | flags,
                None::<&str>,
            )
            .unwrap()
        };
        // The mount only, then the filesystem.
        for flags in [MsFlags::MS_BIND | MsFlags::MS_RDONLY, MsFlags::MS_RDONLY] {
            remount(flags);
            let mut called = false;
            let mut before = || {
                called = true;
                Ok(())
            };
            let error = scrub_with(dir, &mut before, &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap_err();
            assert!(matches!(error, ScrubError::Held(Held::ReadOnly)), "{error}");
            assert!(!called);
            assert!(volume.join("file").exists());
            remount(flags - MsFlags::MS_RDONLY);
        }
        // After the examination.
        let mut before = || {
            remount(MsFlags::MS_RDONLY);
            Ok(())
        };
        let error = scrub_with(dir, &mut before, &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::ReadOnly)), "{error}");
    });
}

#[test]
fn a_volume_that_becomes_read_only_under_the_scrub_fails_and_is_finished_later() {
    on_each_filesystem(|dir, volume| {
        for directory in 0..100 {
            let directory = volume.join(directory.to_string());
            fs::create_dir(&directory).unwrap();
            let at = open_dir(&directory);
            for file in 0..1_000 {
                rustix::fs::mknodat(&at, file.to_string(), FileType::RegularFile, Mode::RUSR, 0).unwrap();
            }
        }
        // Of the mount only: that of an ext4 would be written back first, which takes longer than the scrub.
        let remount = |flags| {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
            mount(None::<&str>, volume, None::<&str>, flags, None::<&str>)
        };
        let progress = Progress::new(Unit::Entries, 0);
        let ended = AtomicBool::new(false);
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                while progress.snapshot().done < 100 && !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                // EBUSY while something is just being removed.
                while remount(MsFlags::MS_RDONLY).is_err() && !ended.load(Ordering::Relaxed) {}
            });
            let _ends = Ends(&ended);
            scrub_with(dir, &mut || Ok(()), &progress, &Cancel::new()).unwrap_err()
        });
        assert!(matches!(error, ScrubError::Held(Held::ReadOnly)), "{error}");
        let done = progress.snapshot().done;
        assert!((100..100_000).contains(&done), "{done}");
        assert!(!names(volume).is_empty());
        let error = scrub(dir).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::ReadOnly)), "{error}");
        remount(MsFlags::empty()).unwrap();
        let rest = scrub(dir).unwrap().entries_removed;
        assert!(done + rest >= 100_100, "{done} + {rest}");
        assert_empty(volume);
    });
}

/// Two scrubs of a volume whose disk loses its medium under the first; nothing if that was not half done in time.
fn scrubs_without_a_medium(dir: &Path) -> Option<Vec<Result<FilesystemOutcome, ScrubError>>> {
    let (file, volume) = (dir.join("disk"), dir.join("volume"));
    fs::create_dir(dir).unwrap();
    let disk = Loop::new(&file, 64 << 20, &[]);
    disk.mount_ext4(&volume, &[]);
    for directory in 0..1_000 {
        let directory = volume.join(directory.to_string());
        fs::create_dir(&directory).unwrap();
        for index in 0..10 {
            File::create(directory.join(index.to_string())).unwrap();
        }
    }
    // Mounted anew, for what is in memory is found there.
    nix::mount::umount(&volume).unwrap();
    mount(Some(&disk.path), &volume, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    disk.detach_when_unmounted();
    let root = open_mount_root(dir, OsStr::new("volume")).unwrap();
    let progress = Arc::new(Progress::new(Unit::Entries, 0));
    let seen = Arc::clone(&progress);
    let (tell, told) = std::sync::mpsc::channel();
    // Not of a scope: should it hang, the test must not.
    std::thread::spawn(move || {
        let scrub = |_| filesystem(&root, &mut || Ok(()), &progress, &Cancel::new());
        let results = [1, 2].map(scrub).into();
        drop(root);
        tell.send(results).ok();
    });
    let end = Instant::now() + Duration::from_secs(60);
    while seen.snapshot().done < 100 {
        assert!(Instant::now() < end, "it does not begin");
        std::hint::spin_loop();
    }
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(64 << 10)
        .unwrap();
    let in_time = seen.snapshot().done < 5_500;
    let results = told.recv_timeout(Duration::from_secs(60)).expect("it hangs");
    nix::mount::umount(&volume).unwrap();
    in_time.then_some(results)
}

#[test]
fn a_disk_that_loses_its_medium_fails_the_scrub() {
    in_namespace(|dir| {
        let mut attempts = (0..20).map(|attempt| dir.join(attempt.to_string()));
        let results = attempts.find_map(|dir| scrubs_without_a_medium(&dir));
        for result in results.expect("no scrub was slow enough") {
            let error = match result.unwrap_err() {
                ScrubError::Failed(error) => format!("{error:#}"),
                other => panic!("{other}"),
            };
            println!("{error}");
            assert!(error.starts_with("cannot ") && error.contains("/volume"), "{error}");
        }
    });
}

/// A scrub of a volume on a disk that takes no more writes than it has got, and another: what is removed is removed in
/// memory only.
fn scrubs_of_a_full_disk(dir: &Path) -> [Result<FilesystemOutcome, ScrubError>; 2] {
    let (small, volume) = (dir.join("small"), dir.join("volume"));
    fs::create_dir_all(&small).unwrap();
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=16m")).unwrap();
    let disk = Loop::new(&small.join("disk"), 64 << 20, &[]);
    disk.mount_ext4(&volume, &["-E", "lazy_journal_init=1,lazy_itable_init=1"]);
    disk.detach_when_unmounted();
    for index in 0..1_000 {
        fs::write(volume.join(index.to_string()), "precious").unwrap();
    }
    rustix::fs::syncfs(open_dir(&volume)).unwrap();
    let filler = File::create(small.join("filler")).unwrap();
    let mut at = 0;
    for size in [1 << 20, 4096] {
        while filler.write_all_at(&vec![1; size], at).is_ok() {
            at += size as u64;
        }
    }
    [scrub(dir), scrub(dir)]
}

#[test]
fn what_does_not_reach_the_disk_is_no_success() {
    in_namespace(|dir| {
        // The journal may be given up at any moment: by the scrub's own writing back, or by the kernel's before it.
        for round in 0..8 {
            for result in scrubs_of_a_full_disk(&dir.join(round.to_string())) {
                let error = result.unwrap_err();
                println!("{error}");
                let expected = match &error {
                    ScrubError::Held(held) => *held == Held::ReadOnly,
                    ScrubError::Failed(error) => error.to_string().starts_with("cannot "),
                    ScrubError::Cancelled => false,
                };
                assert!(expected, "{error}");
            }
        }
    });
}

#[test]
fn what_is_no_mount_is_held() {
    in_namespace(|dir| {
        fs::create_dir_all(dir.join("directory")).unwrap();
        fs::write(dir.join("directory/file"), "precious").unwrap();
        mount_tmpfs(&dir.join("elsewhere/volume"));
        symlink("elsewhere/volume", dir.join("link")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(dir.join("source")).unwrap();
        fs::create_dir(dir.join("deleted")).unwrap();
        bind(&dir.join("source"), &dir.join("deleted"));
        fs::remove_dir(dir.join("source")).unwrap();
        for name in ["directory", "link", "dangling", "file", "fifo", "missing", "deleted"] {
            let error = open_mount_root(dir, OsStr::new(name)).unwrap_err();
            assert!(
                matches!(error, ScrubError::Held(Held::NotMounted(_))),
                "{name}: {error}"
            );
        }
        for name in ["", ".", "..", "elsewhere/volume", "../x", "a\0b"] {
            let error = open_mount_root(dir, OsStr::new(name)).unwrap_err();
            assert!(matches!(error, ScrubError::Failed(_)), "{name:?}: {error}");
        }
        let error = open_mount_root(&dir.join("missing"), OsStr::new("volume")).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::Unreadable(_))), "{error}");
    });
}

#[test]
fn the_descriptor_stays_on_the_mount_that_was_opened() {
    in_namespace(|dir| {
        let volume = dir.join("volume");
        mount_tmpfs(&volume);
        fs::write(volume.join("old"), "x").unwrap();
        let root = open_mount_root(dir, OsStr::new("volume")).unwrap();
        mount_tmpfs(&volume);
        fs::write(volume.join("new"), "precious").unwrap();
        let outcome = filesystem(&root, &mut || Ok(()), &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap();
        assert_eq!(outcome.entries_removed, 1);
        assert_eq!(names(&volume), ["new"]);
    });
}

#[test]
fn two_scrubs_of_one_volume_exclude_each_other() {
    on_each_filesystem(|dir, _| {
        let first = open_mount_root(dir, OsStr::new("volume")).unwrap();
        let error = open_mount_root(dir, OsStr::new("volume")).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::InUse(_))), "{error}");
        filesystem(&first, &mut || Ok(()), &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap();
        assert!(open_mount_root(dir, OsStr::new("volume")).is_err());
        drop(first);
        open_mount_root(dir, OsStr::new("volume")).unwrap();
    });
}

#[test]
fn attributes_of_the_root_are_no_hiding_place() {
    on_each_filesystem(|dir, volume| {
        let owner = fs::metadata(volume).unwrap();
        // An access ACL (version 2) with a named user; see acl(5) and linux/posix_acl_xattr.h.
        let mut acl = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in [
            (1_u16, 7_u16, u32::MAX),
            (2, 7, 1234),
            (4, 5, u32::MAX),
            (16, 7, u32::MAX),
            (32, 5, u32::MAX),
        ] {
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            rustix::fs::setxattr(volume, name, &acl, XattrFlags::empty()).unwrap();
        }
        for name in ["user.secret", "user.", "trusted.kept"] {
            match rustix::fs::setxattr(volume, name, b"precious", XattrFlags::empty()) {
                Err(error) if name == "user." => println!("{name:?} is refused: {error}"),
                result => result.unwrap(),
            }
        }
        scrub(dir).unwrap();
        let mut list = [0_u8; 1024];
        let length = rustix::fs::listxattr(volume, &mut list[..]).unwrap();
        assert_eq!(String::from_utf8_lossy(&list[..length]), "trusted.kept\0");
        let after = fs::metadata(volume).unwrap();
        assert_eq!((after.uid(), after.gid()), (owner.uid(), owner.gid()));
    });
}

#[test]
fn a_volume_that_is_touched_after_the_scrub_is_seen() {
    on_each_filesystem(|dir, volume| {
        fs::write(volume.join("file"), "x").unwrap();
        let root = open_mount_root(dir, OsStr::new("volume")).unwrap();
        let outcome = filesystem(&root, &mut || Ok(()), &Progress::new(Unit::Entries, 0), &Cancel::new()).unwrap();
        assert!(root.is_empty().unwrap());
        assert!(root.is_untouched_since(&outcome).unwrap());
        // The filesystem's clock ticks every few milliseconds.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            fs::write(volume.join("again"), "x").unwrap();
            assert!(!root.is_untouched_since(&outcome).unwrap());
            fs::remove_file(volume.join("again")).unwrap();
            if !root.is_untouched_since(&outcome).unwrap() {
                break;
            }
            assert!(Instant::now() < deadline, "making and removing a file left no trace");
        }
    });
}
