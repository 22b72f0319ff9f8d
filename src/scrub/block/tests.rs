#![allow(clippy::unwrap_used)]

use crate::devices::claim_exclusive;
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// A held loop device on a sparse file in memory, where files may be larger than ext4 allows.
pub(super) struct Loop {
    pub(super) file: File,
    pub(super) held: File,
    path: String,
}

impl Loop {
    /// `None` without root, and says so.
    pub(super) fn new(size_bytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: needs root for a loop device");
            return None;
        }
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        file.as_file().set_len(size_bytes).unwrap();
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let held = claim_exclusive(Path::new(&path)).unwrap().file;
        let file = file.into_file();
        Some(Self { file, held, path })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The kernel detaches it when the held descriptor, which goes after this, is closed.
        Command::new("losetup").args(["-d", &self.path]).status().ok();
    }
}
