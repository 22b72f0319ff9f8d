//! A node of a test's own: a mount namespace with an empty tree in it, and loop devices that go with the test.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

/// Where the mount table of a thread with a namespace of its own is.
pub(crate) const OWN_MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// The tree that a test works in.
pub(crate) struct Node {
    /// A tmpfs that nobody else sees.
    pub(crate) root: PathBuf,
    /// Loop devices that were attached, to be detached with the test.
    loops: Mutex<Vec<PathBuf>>,
}

/// Runs a test on a thread in a mount namespace of its own, with everything in it gone afterwards.
pub(crate) fn on_a_node(test: impl FnOnce(&Node) + Send + 'static) {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path().to_path_buf();
    let thread = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS) {
            println!(
                "SKIPPED: no mount namespace of its own ({errno}), so nothing that mounts was tested; run as root"
            );
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
        mount(Some("node"), &root, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        // Dropped in a panic, too.
        test(&Node {
            root,
            loops: Mutex::default(),
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Node {
    /// A path in the tree.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a directory.
    pub(crate) fn directory(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Mounts a tmpfs on a directory, which is made.
    pub(crate) fn tmpfs(&self, name: impl AsRef<Path>, flags: MsFlags) -> PathBuf {
        let path = self.directory(name);
        mount(Some("t"), &path, Some("tmpfs"), flags, Some("size=1m")).unwrap();
        path
    }

    /// Mounts what is at `source` at a directory, which is made.
    pub(crate) fn bind(&self, source: &Path, name: impl AsRef<Path>) -> PathBuf {
        let path = self.directory(name);
        mount(Some(source), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        path
    }

    /// Mounts a filesystem on a device at a directory, which is made.
    pub(crate) fn mount(&self, device: &Path, fs_type: &str, name: impl AsRef<Path>) -> PathBuf {
        let path = self.directory(name);
        retry_while_busy(|| mount(Some(device), &path, Some(fs_type), MsFlags::empty(), None::<&str>));
        path
    }

    /// Unmounts.
    pub(crate) fn unmount(&self, path: &Path) {
        retry_while_busy(|| umount(path));
    }

    /// A sparse file.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    /// Attaches a file or device, with the options of losetup(8), and waits for the node of the loop device.
    pub(crate) fn attach(&self, backing: &Path, options: &[&str]) -> PathBuf {
        let output = run("losetup", |command| {
            command.args(options).args(["-f", "--show"]).arg(backing)
        });
        let device = PathBuf::from(output.trim());
        assert!(fs::metadata(&device).unwrap().file_type().is_block_device());
        self.loops.lock().unwrap().push(device.clone());
        device
    }

    /// Detaches one that [`attach`](Self::attach) made.
    pub(crate) fn detach(&self, device: &Path) {
        let mut loops = self.loops.lock().unwrap();
        let position = loops.iter().position(|of_ours| of_ours == device).unwrap();
        loops.remove(position);
        run("losetup", |command| command.arg("-d").arg(device));
    }

    /// A loop device with a filesystem of this type, and its UUID. Each has another: kernel and tools mind if two
    /// filesystems that exist at once have the same.
    pub(crate) fn formatted(&self, name: &str, fs_type: &str) -> (PathBuf, String) {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")
            .unwrap()
            .trim()
            .to_owned();
        let bytes = if fs_type == "ext4" { 16 << 20 } else { 320 << 20 };
        let image = self.image(name, bytes);
        let uuid_of_xfs = format!("uuid={uuid}");
        match fs_type {
            "xfs" => run("mkfs.xfs", |command| {
                command.args(["-q", "-m", &uuid_of_xfs]).arg(&image)
            }),
            "btrfs" => run("mkfs.btrfs", |command| command.args(["-q", "-U", &uuid]).arg(&image)),
            _ => run("mkfs.ext4", |command| {
                command.args(["-q", "-F", "-U", &uuid]).arg(&image)
            }),
        };
        (self.attach(&image, &[]), uuid)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What is mounted goes with the namespace; a loop device in use is detached with its last user.
        while umount(&self.root).is_ok() {}
        for device in self.loops.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            let detached = Command::new("losetup").arg("-d").arg(&device).status();
            assert!(
                detached.is_ok_and(|status| status.success()) || std::thread::panicking(),
                "{device:?} stays attached"
            );
        }
    }
}

/// A program that another test is about to start holds our descriptors for a moment, so what is busy is tried again.
fn retry_while_busy(call: impl Fn() -> nix::Result<()>) {
    let limit = Instant::now() + Duration::from_secs(10);
    while let Err(errno) = call() {
        assert!(errno == Errno::EBUSY && Instant::now() < limit, "{errno}");
        std::thread::yield_now();
    }
}

/// Runs a program to success and returns what it printed.
pub(crate) fn run(program: impl AsRef<OsStr>, arguments: impl FnOnce(&mut Command) -> &mut Command) -> String {
    let mut command = Command::new(program);
    let output = arguments(&mut command).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the kernel has this type of filesystem and the tools to make one; says so if not.
pub(crate) fn available(fs_type: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    let in_kernel = known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(fs_type));
    let has_tool = || Command::new(format!("mkfs.{fs_type}")).arg("-V").output().is_ok();
    let made_without_tool = matches!(fs_type, "overlay" | "autofs");
    let available = in_kernel && (made_without_tool || has_tool());
    if !available {
        println!("SKIPPED: no {fs_type} in this kernel or no mkfs.{fs_type}, so it was not tested");
    }
    available
}
