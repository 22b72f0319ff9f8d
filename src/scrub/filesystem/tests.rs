//! The same work without openat2, as on old kernels and under old seccomp profiles.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::scrub::progress::Unit;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;

/// In a mount namespace of its own, with an empty tmpfs at `<directory>/volume`.
fn with_volume(test: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: needs root for a mount namespace");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_owned();
    let thread = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS) {
            println!("SKIPPED: cannot make a mount namespace: {error}");
            return;
        }
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        mount_tmpfs(&dir.join("volume"));
        test(&dir);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn mount_tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn scrub(dir: &Path) -> Result<FilesystemOutcome, ScrubError> {
    let root = open_mount_root_by(Opener::component_wise(), dir, OsStr::new("volume"))?;
    filesystem(&root, &mut || Ok(()), &Progress::new(Unit::Entries, 0), &Cancel::new())
}

#[test]
fn a_deep_tree_goes_one_component_at_a_time() {
    with_volume(|dir| {
        let mut path = dir.join("volume");
        for index in 0..200 {
            fs::write(path.join("file"), "x").unwrap();
            path.push(format!("d{index}"));
            fs::create_dir(&path).unwrap();
        }
        assert_eq!(scrub(dir).unwrap().entries_removed, 400);
        assert_eq!(fs::read_dir(dir.join("volume")).unwrap().count(), 0);
    });
}

#[test]
fn mounts_and_links_are_told_apart_one_component_at_a_time() {
    with_volume(|dir| {
        let outside = dir.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "precious").unwrap();
        let below = dir.join("volume/a/b");
        fs::create_dir_all(&below).unwrap();
        mount(Some(&outside), &below, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let error = scrub(dir).unwrap_err();
        assert!(matches!(error, ScrubError::Held(Held::NestedMounts(_))), "{error}");
        nix::mount::umount(&below).unwrap();
        std::os::unix::fs::symlink(&outside, dir.join("volume/link")).unwrap();
        scrub(dir).unwrap();
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "precious");
        for name in ["outside", "link", "missing"] {
            if name == "link" {
                std::os::unix::fs::symlink("volume", dir.join(name)).unwrap();
            }
            let error = open_mount_root_by(Opener::component_wise(), dir, OsStr::new(name)).unwrap_err();
            assert!(
                matches!(error, ScrubError::Held(Held::NotMounted(_))),
                "{name}: {error}"
            );
        }
    });
}

#[test]
fn a_mount_root_is_told_by_its_mount_id_where_the_kernel_does_not_say() {
    with_volume(|dir| {
        let parent = rustix::fs::open(dir, DIRECTORY, Mode::empty()).unwrap();
        fs::create_dir(dir.join("directory")).unwrap();
        for (name, expected) in [("volume", true), ("directory", false)] {
            let found = rustix::fs::open(dir.join(name), DIRECTORY, Mode::empty()).unwrap();
            let mut status = open::status(&found).unwrap();
            assert_eq!(is_mount_root(&parent, &found, &status).unwrap(), expected);
            status.stx_attributes_mask.remove(StatxAttributes::MOUNT_ROOT);
            status.stx_mask = 0;
            assert_eq!(is_mount_root(&parent, &found, &status).unwrap(), expected);
        }
    });
}

#[test]
fn a_journal_that_was_given_up_is_noticed_where_syncfs_says_nothing() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: needs root for mounts and loop devices");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_owned();
    let test = move || {
        use testkit::mounts;
        mounts::private_namespace().unwrap();
        let (small, volume) = (dir.join("small"), dir.join("volume"));
        // A disk that takes no more writes than it has got.
        mounts::tmpfs(&small, 16 << 20).unwrap();
        let disk = mounts::LoopDevice::with_file(&small.join("disk"), 64 << 20).unwrap();
        let mut mkfs = std::process::Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-E", "lazy_journal_init=1"]).arg(disk.path());
        assert!(mkfs.status().unwrap().success());
        mounts::device(disk.path(), &volume, "ext4").unwrap();
        drop(disk); // Once it is unmounted.
        let root = open_mount_root(&dir, OsStr::new("volume")).unwrap();
        attributes::check_journal(&root).unwrap();
        assert!(std::fs::write(small.join("filler"), vec![1; 16 << 20]).is_err());
        for index in 0..1_000 {
            std::fs::write(volume.join(index.to_string()), "").ok();
        }
        rustix::fs::syncfs(&root).unwrap_err();
        println!("now syncfs says {:?}", rustix::fs::syncfs(&root)); // Ok(()), on Linux 6.18.
        let error = attributes::check_journal(&root).unwrap_err();
        assert!(matches!(error, Errno::ROFS | Errno::IO), "{error}");
    };
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}
