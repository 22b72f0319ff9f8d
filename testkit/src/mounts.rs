//! Mounts that nobody else sees, and that go away by themselves.
//!
//! A thread that calls [`private_namespace`] takes every thread that it spawns *afterwards* along: a test of code with
//! many threads does `std::thread::spawn(|| { private_namespace()?; … a tokio runtime … })`. `/proc/self/mountinfo` is
//! the main thread's, though: such a test reads `/proc/thread-self/mountinfo`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{getgid, getuid},
};

/// Moves the calling thread into a mount namespace of its own, whose changes reach nobody else. What is mounted there
/// is unmounted when its last thread ends.
///
/// # Errors
/// Without CAP_SYS_ADMIN. (A user namespace, which would give it, cannot be entered by a process with threads.)
pub fn private_namespace() -> Result<()> {
    // CLONE_FS: threads share their working directory, and such a thread cannot change its mount namespace.
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS): needs root")?;
    make_private()
}

/// Moves the whole process into a private mount namespace: as root into that alone, else with a user namespace in which
/// the user is root. To be called first thing in main, before there is any thread.
///
/// # Errors
/// Where the kernel or its security module does not permit user namespaces.
pub fn enter_private_namespace() -> Result<()> {
    if getuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
        return make_private();
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .context("unshare(CLONE_NEWUSER): unprivileged user namespaces are not permitted here; run as root")?;
    // Before gid_map: user_namespaces(7) wants setgroups denied first.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        fs::write(&path, text).with_context(|| format!("write {path}"))?;
    }
    make_private()
}

fn make_private() -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make / private")
}

/// Mounts a tmpfs of this size on `path`, which is made if it is missing. `size` is in bytes.
///
/// # Errors
/// Those of mkdir(2) and mount(2).
pub fn tmpfs(path: &Path, size: u64) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    let options = format!("size={size}");
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .with_context(|| format!("mount a tmpfs on {}", path.display()))
}

/// Bind-mounts `source` on `target`, which is made (as a directory, or as an empty file) if it is missing.
///
/// # Errors
/// Those of mkdir(2), open(2) and mount(2).
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    if !target.exists() {
        if source.is_dir() {
            fs::create_dir_all(target)
        } else {
            File::create(target).map(drop)
        }
        .with_context(|| format!("create {}", target.display()))?;
    }
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} on {}", source.display(), target.display()))
}

/// Mounts a block device with a file system of this type (`ext4`, `xfs`, …) on `path`, which is made if it is missing.
///
/// # Errors
/// Those of mkdir(2) and mount(2).
pub fn device(source: &Path, path: &Path, fs_type: &str) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    mount(Some(source), path, Some(fs_type), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount {} on {}", source.display(), path.display()))
}

/// Unmounts the top mount on `path`, at once for all who look (`umount -l`).
///
/// # Errors
/// Those of umount(2).
pub fn unmount(path: &Path) -> Result<()> {
    umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", path.display()))
}

/// Makes a file system of this type on a device, quietly and by force.
///
/// # Errors
/// If there is no `mkfs.<type>`, or with what it says.
pub fn mkfs(device: &Path, fs_type: &str) -> Result<()> {
    let force = if fs_type.starts_with("ext") { "-F" } else { "-f" };
    let args = [OsStr::new("-q"), OsStr::new(force), device.as_os_str()];
    output(&format!("mkfs.{fs_type}"), args).map(drop)
}

/// A loop device, detached when dropped (by the kernel when its last user is gone).
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
}

impl LoopDevice {
    /// Attaches a loop device to a new sparse file of this size in bytes (an existing file is kept if it is as large).
    ///
    /// # Errors
    /// If the file cannot be made or losetup fails: it needs root, and /dev/loop-control.
    pub fn with_file(file: &Path, size: u64) -> Result<LoopDevice> {
        let made = File::options().create(true).truncate(false).write(true).open(file);
        made.and_then(|f| {
            if f.metadata()?.len() == size {
                Ok(())
            } else {
                f.set_len(size)
            }
        })
        .with_context(|| format!("create {}", file.display()))?;
        let args = [OsStr::new("--find"), OsStr::new("--show"), file.as_os_str()];
        let path = PathBuf::from(output("losetup", args)?.trim());
        Ok(LoopDevice {
            path,
            file: file.to_owned(),
        })
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The backing file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = output("losetup", [OsStr::new("--detach"), self.path.as_os_str()]) {
            eprintln!("{error:#}");
        }
    }
}

fn output<const N: usize>(program: &str, args: [&OsStr; N]) -> Result<String> {
    let result = Command::new(program).args(args).output();
    let result = result.with_context(|| format!("run {program}"))?;
    if !result.status.success() {
        let stderr = String::from_utf8_lossy(&result.stderr);
        bail!("{program} {args:?}: {}: {}", result.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mounts_stay_in_their_thread() {
        if !getuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (t, b, d) = (dir.path().join("t"), dir.path().join("b"), dir.path().join("d"));
        let image = dir.path().join("disk.img");
        let mounted = t.clone();
        std::thread::spawn(move || {
            private_namespace().unwrap();
            let here = |p: &Path| {
                let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                table.contains(&format!(" {} ", p.display()))
            };
            tmpfs(&t, 1 << 20).unwrap();
            fs::write(t.join("file"), "x").unwrap();
            bind(&t, &b).unwrap();
            assert!(b.join("file").exists());
            let disk = LoopDevice::with_file(&image, 16 << 20).unwrap();
            mkfs(disk.path(), "ext4").unwrap();
            device(disk.path(), &d, "ext4").unwrap();
            assert!(here(&t) && here(&b) && here(&d));
            assert!(d.join("lost+found").is_dir());
            let everybody = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!everybody.contains(dir.path().to_str().unwrap()));
            unmount(&d).unwrap();
            assert!(!here(&d));
            let loops = || output("losetup", [OsStr::new("-j"), image.as_os_str()]).unwrap();
            assert!(loops().contains(disk.path().to_str().unwrap()));
            drop(disk);
            assert_eq!(loops(), "");
        })
        .join()
        .unwrap();
        assert!(mounted.is_dir() && !mounted.join("file").exists());
    }
}
