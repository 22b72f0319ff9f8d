//! The demo does what it says, for root and for everybody else, and says so where it cannot.
//!
//! `cargo test` builds the examples; with `--test demo` they have to be built before (`cargo build --example demo`).
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The exit code of a demo that cannot mount anything.
const CANNOT_RUN_HERE: i32 = 77;
const NOBODY: u32 = 65534;

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/demo");
    assert!(
        program.exists(),
        "{} is missing: cargo build --example demo",
        program.display()
    );
    program
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Runs it with its temporary files in `directory`, and prints what it says, for who reads about a failure.
fn run(mut command: Command, directory: &Path) -> (Output, String, String) {
    let output = command
        .env("TMPDIR", directory)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    println!("{out}{err}{}", output.status);
    (output, out, err)
}

/// The logs in a directory.
fn logs(directory: &Path) -> Vec<String> {
    let files = std::fs::read_dir(directory).unwrap();
    files
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect()
}

/// Asserts that the whole life cycle was shown, in order.
fn assert_played(out: &str) {
    let mut rest = out;
    for line in [
        "Available    disk-1",
        "Available    disk-2",
        "Bound        disk-1",
        ".token",
        "db/orders.dat",
        "Released ",
        "Terminating ",
        "Scrubbed ",
        "Available    clean",
        "disk-1   (nothing left)",
        "outside  untouched",
        "Available    disk-3",
        "Bound        disk-2",
        "Held         event VolumeFailedDelete",
        "nfs/precious.dat",
        "tenant.dat",
        "Available    clean",
        "done: ",
    ] {
        let Some(at) = rest.find(line) else {
            panic!("{line:?} is missing, or before what it should follow")
        };
        rest = &rest[at + line.len()..];
    }
    let words = out.split_whitespace().collect::<Vec<_>>().join(" ");
    // Broken into two lines.
    assert!(words.contains("mounted below it: | /") && words.contains("unmount that first"));
}

/// Asserts that it fits a narrow terminal, and that no terminal is taken for granted.
fn assert_readable(out: &str) {
    assert!(!out.contains('\x1b'), "colours without a terminal");
    let timed: Vec<&str> = out
        .lines()
        .filter(|line| line.ends_with(" ms") && line.starts_with("    "))
        .collect();
    assert!(timed.len() >= 10, "{timed:?}");
    for line in &timed {
        assert_eq!(
            line.len(),
            timed[0].len(),
            "the times are not below each other: {line:?}"
        );
    }
    for line in out.lines().filter(|line| !line.contains("-demo-")) {
        assert!(line.chars().count() < 80, "wider than 80 columns: {line:?}");
    }
}

#[test]
fn it_plays_the_life_cycle() {
    let directory = tempfile::tempdir().unwrap();
    let (output, out, err) = run(Command::new(program()), directory.path());
    if output.status.code() == Some(CANNOT_RUN_HERE) {
        println!("SKIPPED: the demo: {err}");
        return;
    }
    assert!(output.status.success());
    assert_played(&out);
    assert_readable(&out);
    let logs = logs(directory.path());
    assert!(logs.len() == 1 && logs[0].contains("scrub ended"), "{logs:?}");
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("/disks/disk-1"), "its mounts are seen by others");
}

#[test]
fn it_needs_no_root() {
    if !is_root() {
        println!("SKIPPED: the demo as another user: needs root to become nobody");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // By its descriptor, for nobody may have no way to where it was built.
    let file = File::open(program()).unwrap();
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    command.uid(NOBODY).gid(NOBODY);
    let (output, out, err) = run(command, directory.path());
    if output.status.code() == Some(CANNOT_RUN_HERE) {
        assert!(err.contains("run it as root"), "{err}");
        println!("SKIPPED: the demo as another user: {err}");
        return;
    }
    assert!(output.status.success());
    assert_played(&out);
}

#[test]
fn its_log_can_be_shown() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.arg("--verbose");
    let (output, _, err) = run(command, directory.path());
    if output.status.code() == Some(CANNOT_RUN_HERE) {
        println!("SKIPPED: the demo with --verbose: {err}");
        return;
    }
    assert!(output.status.success());
    assert!(err.contains("scrub ended"));
    assert_eq!(logs(directory.path()), [""; 0]);
}

#[test]
fn where_it_cannot_mount_it_says_what_to_do() {
    let setpriv = Command::new("setpriv").arg("--version").output();
    if !is_root() || setpriv.is_err() {
        println!("SKIPPED: the demo without CAP_SYS_ADMIN: needs root and setpriv");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin"]).arg(program());
    let (output, out, err) = run(command, directory.path());
    assert_eq!(output.status.code(), Some(CANNOT_RUN_HERE));
    assert!(out.is_empty() && err.contains("CAP_SYS_ADMIN") && err.contains("--privileged"));
    assert_eq!(logs(directory.path()), [""; 0], "a log of nothing stays behind");
}
