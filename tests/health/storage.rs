//! Filesystems on loop devices, and what may become of them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use testkit::mounts::{self, LoopDevice};

use crate::node::{DEADLINE, Node};

/// What the backing files are on: sparse, and in memory, so that nothing waits for the machine's disk.
const POOL_BYTES: u64 = 1 << 30;
/// The least that mkfs.xfs makes one of.
pub const DISK_BYTES: u64 = 320 << 20;

/// A loop device with a file of the node's behind it.
pub fn device(node: &Node, file: &str, bytes: u64) -> Result<LoopDevice> {
    let pool = node.path("pool");
    if !pool.exists() {
        mounts::tmpfs(&pool, POOL_BYTES)?;
    }
    LoopDevice::with_file(&pool.join(file), bytes)
}

/// Runs a program.
pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: &str, args: I) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| program.to_owned())?;
    // e2fsck says with 1 that it has mended something.
    let code = output.status.code();
    ensure!(
        code == Some(0) || (program == "e2fsck" && code == Some(1)),
        "{program}: {output:?}"
    );
    Ok(())
}

/// A filesystem, mounted at an entry. It does not stay frozen.
pub struct Filesystem {
    pub device: LoopDevice,
    path: PathBuf,
    fs_type: &'static str,
}

impl Filesystem {
    pub fn new(node: &Node, class: &str, entry: &str, fs_type: &'static str) -> Result<Self> {
        let device = device(node, &format!("{class}-{entry}.img"), DISK_BYTES)?;
        mounts::mkfs(device.path(), fs_type)?;
        let path = node.entry(class, entry);
        let filesystem = Self { device, path, fs_type };
        filesystem.mount()?;
        Ok(filesystem)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn mount(&self) -> Result<()> {
        mounts::device(self.device.path(), &self.path, self.fs_type)
    }

    pub fn unmount(&self) -> Result<()> {
        mounts::unmount(&self.path)
    }

    /// Makes it read-only, or writable again.
    pub fn remount(&self, read_only: bool) -> Result<()> {
        let flags = if read_only {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
        let none = None::<&str>;
        Ok(mount(none, &self.path, none, MsFlags::MS_REMOUNT | flags, none)?)
    }

    /// As if ext4 had found a mistake of the disk's.
    pub fn trigger_error(&self) -> Result<()> {
        let name = self.device.path().file_name().context("no name")?;
        let file = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
        std::fs::write(&file, "a test").with_context(|| file.display().to_string())
    }

    /// As if the disk had answered with errors.
    pub fn shut_down(&self) -> Result<()> {
        let path = self.path.as_os_str();
        run(
            "xfs_io",
            [OsStr::new("-x"), OsStr::new("-c"), OsStr::new("shutdown"), path],
        )
    }

    /// Mends it. It is not mounted, but who has looked at it may still have it open for a moment.
    pub fn check(&self) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        loop {
            match run("e2fsck", [OsStr::new("-fy"), self.device.path().as_os_str()]) {
                Err(error) if format!("{error:#}").contains("is in use") && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }

    /// Lets every write hang.
    pub fn freeze(&self) -> Result<()> {
        run("fsfreeze", [OsStr::new("--freeze"), self.path.as_os_str()])
    }

    /// Lets the writes go on.
    pub fn thaw(&self) -> Result<()> {
        run("fsfreeze", [OsStr::new("--unfreeze"), self.path.as_os_str()])
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        // It mostly is not frozen, and that is fine.
        let _ = self.thaw();
    }
}
