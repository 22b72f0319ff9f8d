//! Real mounts and loop devices that go away with the test, also when it panics.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a test in a mount namespace of its own, in a directory that is an empty tmpfs. Without root, says so.
pub(crate) fn in_namespace(test: impl FnOnce(&Path) + Send + 'static) {
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
        mount_tmpfs(&dir);
        let _unmounted = Unmounted(&dir);
        test(&dir);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Unmounts what is mounted below a directory when it is dropped. The mounts would go with the namespace, but a loop
/// device that is mounted beside its own backing file may then keep both.
struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        let below: Vec<&Path> = points.filter(|point| point.starts_with(self.0)).collect();
        for point in below.iter().rev() {
            nix::mount::umount2(*point, nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }
}

/// Mounts an empty tmpfs on a directory, which is made.
pub(crate) fn mount_tmpfs(at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("nr_inodes=0")).unwrap();
}

/// Binds a directory or a file on another.
#[allow(dead_code)]
pub(crate) fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// A loop device that this process made; detached when dropped, or, if it is mounted then, once it is not any more.
pub(crate) struct Loop {
    pub(crate) path: PathBuf,
}

impl Loop {
    /// A loop device on a new sparse file of this size.
    pub(crate) fn new(file: &Path, size_bytes: u64, options: &[&str]) -> Self {
        File::create(file).unwrap().set_len(size_bytes).unwrap();
        Self::on(file, options)
    }

    /// A loop device on a file.
    pub(crate) fn on(file: &Path, options: &[&str]) -> Self {
        let mut command = Command::new("losetup");
        command.args(["-f", "--show"]).args(options).arg(file);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self {
            path: PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()),
        }
    }

    /// Leaves the detaching to the kernel, as soon as it is unmounted; so nothing is left even when the test is killed.
    #[allow(dead_code)]
    pub(crate) fn detach_when_unmounted(self) {}

    /// Makes an ext4 filesystem on it and mounts that on a directory, which is made.
    pub(crate) fn mount_ext4(&self, at: &Path, options: &[&str]) {
        run(
            "mkfs.ext4",
            [OsStr::new("-q"), OsStr::new("-F")]
                .into_iter()
                .chain(options.iter().map(OsStr::new))
                .chain([self.path.as_os_str()]),
        );
        std::fs::create_dir_all(at).unwrap();
        mount(Some(&self.path), at, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("-d").arg(&self.path).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("could not detach {}", self.path.display());
        }
    }
}

/// Runs a program that must succeed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
