//! `scrub`, and the classic scripts as links to the binary, on real loop devices and mounts.
#![allow(clippy::unwrap_used)]

#[path = "scrub/support.rs"]
mod support;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use local_volume_provisioner::{devices, scan};
use support::{Loop, in_namespace, mount_tmpfs, run};

const MIB: usize = 1 << 20;
const SIZE: usize = 16 * MIB;

/// The binary by its own name or another, without the environment of whoever runs the tests.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for variable in [
        "LOCAL_PV_BLKDEVICE",
        "LOCAL_PV_FILESYSTEM",
        "LOCAL_PV_VOLUME_ID",
        "LOCAL_PV_SCRUB_BANDWIDTH",
        "RUST_LOG",
    ] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

fn scrub(arguments: &[&str]) -> Command {
    let mut command = command(Path::new(env!("CARGO_BIN_EXE_local-volume-provisioner")));
    command.arg("scrub").args(arguments);
    command
}

/// The binary by the name of a classic script.
fn script(dir: &Path, name: &str) -> Command {
    let path = dir.join(name);
    if !path.exists() {
        symlink(env!("CARGO_BIN_EXE_local-volume-provisioner"), &path).unwrap();
    }
    command(&path)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

#[track_caller]
fn fails(command: &mut Command, text: &str) {
    ends_with(1, command, text);
}

/// It left the volume alone for now, which has an exit code of its own.
#[track_caller]
fn is_held(command: &mut Command, text: &str) {
    ends_with(75, command, text);
}

#[track_caller]
fn ends_with(code: i32, command: &mut Command, text: &str) {
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(text), "{text:?} is not in {said:?}");
}

/// A device full of a tenant's data.
fn soiled(dir: &Path) -> (PathBuf, Loop) {
    let file = dir.join("disk");
    std::fs::write(&file, vec![0xaa; SIZE]).unwrap();
    let device = Loop::on(&file, &[]);
    (file, device)
}

fn is_full_of(file: &Path, byte: u8) -> bool {
    std::fs::read(file).unwrap().iter().all(|found| *found == byte)
}

#[test]
fn every_method_wipes_the_device_that_is_named() {
    in_namespace(|dir| {
        for arguments in [&["zero"][..], &["discard"], &["shred", "1"], &["shred 1"]] {
            let (file, device) = soiled(dir);
            let said = succeeds(scrub(arguments).arg("--device").arg(&device.path));
            assert!(is_full_of(&file, 0), "{arguments:?}");
            assert!(said.contains("scrubbed"), "{said}");
            std::fs::remove_file(file).unwrap();
        }
        let (file, device) = soiled(dir);
        succeeds(scrub(&["quick"]).env("LOCAL_PV_BLKDEVICE", &device.path));
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!((bytes[0], bytes[SIZE - 1], bytes[7 * MIB]), (0, 0, 0xaa));
    });
}

#[test]
fn the_scripts_are_the_methods() {
    in_namespace(|dir| {
        for (name, arguments) in [
            ("shred.sh", &["1"][..]),
            ("shred.sh", &[]),
            ("dd_zero.sh", &[]),
            ("dd_zero.sh", &["2"]),
            ("blkdiscard.sh", &[]),
        ] {
            let (file, device) = soiled(dir);
            succeeds(
                script(dir, name)
                    .args(arguments)
                    .env("LOCAL_PV_BLKDEVICE", &device.path),
            );
            assert!(is_full_of(&file, 0), "{name}");
            std::fs::remove_file(file).unwrap();
        }
        let (file, device) = soiled(dir);
        succeeds(script(dir, "quick_reset.sh").env("LOCAL_PV_BLKDEVICE", &device.path));
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!((bytes[0], bytes[SIZE - 1], bytes[7 * MIB]), (0, 0, 0xaa));
    });
}

#[test]
fn what_cannot_be_scrubbed_is_said_with_the_usage() {
    in_namespace(|dir| {
        let file = dir.join("plain");
        std::fs::write(&file, "data").unwrap();
        for name in ["quick_reset.sh", "shred.sh", "dd_zero.sh", "blkdiscard.sh"] {
            let usage = format!("usage: LOCAL_PV_BLKDEVICE=PATH {name}");
            fails(&mut script(dir, name), "LOCAL_PV_BLKDEVICE is not set");
            fails(&mut script(dir, name), &usage);
            fails(script(dir, name).env("LOCAL_PV_BLKDEVICE", ""), "is not set");
            fails(
                script(dir, name).env("LOCAL_PV_BLKDEVICE", &file),
                "is not a block device",
            );
            fails(script(dir, name).env("LOCAL_PV_BLKDEVICE", "/no/such"), &usage);
            fails(script(dir, name).arg("--help"), &usage);
        }
        fails(&mut script(dir, "fsclean.sh"), "LOCAL_PV_FILESYSTEM is not set");
        fails(&mut scrub(&["zero"]), "LOCAL_PV_BLKDEVICE is not set");
        fails(&mut scrub(&["fsclean"]), "LOCAL_PV_FILESYSTEM is not set");
        fails(scrub(&["zero", "--device"]).arg(&file), "is not a block device");
        is_held(&mut scrub(&["zero", "--device", "/no/such"]), "cannot look at /no/such");
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
        let (file, device) = soiled(dir);
        for (arguments, text) in [
            (&["polish"][..], "polish is no method"),
            (&["shred", "0"], "number of passes"),
            (&["zero", "2"], "takes no argument"),
        ] {
            fails(scrub(arguments).env("LOCAL_PV_BLKDEVICE", &device.path), text);
        }
        fails(
            script(dir, "shred.sh").arg("x").env("LOCAL_PV_BLKDEVICE", &device.path),
            "number of passes",
        );
        assert!(is_full_of(&file, 0xaa));
    });
}

#[test]
fn other_storage_than_is_expected_is_not_touched() {
    in_namespace(|dir| {
        let (file, device) = soiled(dir);
        let settings = scan::ScanSettings::default();
        let around = scan::surroundings(&settings, &scan::Tables::new(&settings));
        let held = devices::claim_exclusive(&device.path).unwrap();
        let id = held.facts(&around).unwrap().id.unwrap().to_string();
        drop(held);
        is_held(
            scrub(&["zero", "--volume-id", "device wwn=0x5000"])
                .arg("--device")
                .arg(&device.path),
            "other storage",
        );
        fails(
            script(dir, "shred.sh")
                .env("LOCAL_PV_BLKDEVICE", &device.path)
                .env("LOCAL_PV_VOLUME_ID", "device wwn=0x5000"),
            "expected device wwn=0x5000",
        );
        fails(
            scrub(&["zero"])
                .env("LOCAL_PV_BLKDEVICE", &device.path)
                .env("LOCAL_PV_VOLUME_ID", "nonsense"),
            "not a volume id",
        );
        assert!(is_full_of(&file, 0xaa));
        succeeds(
            script(dir, "dd_zero.sh")
                .env("LOCAL_PV_BLKDEVICE", &device.path)
                .env("LOCAL_PV_VOLUME_ID", &id),
        );
        assert!(is_full_of(&file, 0));
    });
}

#[test]
fn a_device_in_use_is_not_touched() {
    in_namespace(|dir| {
        let device = Loop::new(&dir.join("disk"), 32 << 20, &[]);
        let mounted = dir.join("mounted");
        device.mount_ext4(&mounted, &[]);
        std::fs::write(mounted.join("precious"), "not yours").unwrap();
        is_held(scrub(&["zero", "--device"]).arg(&device.path), "still in use");
        fails(
            script(dir, "dd_zero.sh").env("LOCAL_PV_BLKDEVICE", &device.path),
            "still in use",
        );
        assert_eq!(std::fs::read(mounted.join("precious")).unwrap(), b"not yours");
        nix::mount::umount(&mounted).unwrap();
        // As kubelet does for a raw block volume: O_EXCL does not see this.
        let above = Loop::on(&device.path, &[]);
        is_held(scrub(&["zero", "--device"]).arg(&device.path), "still in use");
        drop(above);
        succeeds(scrub(&["zero", "--device"]).arg(&device.path));
    });
}

#[test]
fn a_mounted_filesystem_is_emptied() {
    in_namespace(|dir| {
        let volume = dir.join("volume");
        mount_tmpfs(&volume);
        let soil = || {
            std::fs::create_dir_all(volume.join(".hidden/deep")).unwrap();
            std::fs::write(volume.join(".hidden/deep/file"), "secret").unwrap();
            std::fs::write(volume.join("file"), "secret").unwrap();
        };
        let count = || std::fs::read_dir(&volume).unwrap().count();
        soil();
        fails(
            script(dir, "fsclean.sh")
                .env("LOCAL_PV_FILESYSTEM", &volume)
                .env("LOCAL_PV_VOLUME_ID", "filesystem uuid=1"),
            "other storage",
        );
        let below = volume.join(".hidden/mount");
        mount_tmpfs(&below);
        fails(
            script(dir, "fsclean.sh").env("LOCAL_PV_FILESYSTEM", &volume),
            "mounted below",
        );
        nix::mount::umount(&below).unwrap();
        let pod = dir.join("kubelet/pods/9e1f/volumes/kubernetes.io~local-volume/pv-1");
        std::fs::create_dir_all(&pod).unwrap();
        run("mount", [Path::new("--bind"), &volume, &pod]);
        is_held(
            scrub(&["fsclean", "--host-mountinfo", "/proc/self/mountinfo", "--device"]).arg(&volume),
            "pod 9e1f has it mounted",
        );
        nix::mount::umount(&pod).unwrap();
        assert_eq!(count(), 2);
        succeeds(script(dir, "fsclean.sh").env("LOCAL_PV_FILESYSTEM", &volume));
        assert_eq!(count(), 0);
        soil();
        succeeds(scrub(&["fsclean", "--device"]).arg(&volume));
        assert_eq!(count(), 0);
        // A plain directory is nobody's volume.
        let plain = dir.join("plain");
        std::fs::create_dir(&plain).unwrap();
        std::fs::write(plain.join("file"), "not yours").unwrap();
        fails(
            script(dir, "fsclean.sh").env("LOCAL_PV_FILESYSTEM", &plain),
            "what was published is not there",
        );
        assert!(plain.join("file").exists());
    });
}

#[test]
fn sigterm_stops_it_in_the_middle() {
    in_namespace(|dir| {
        let (file, device) = soiled(dir);
        let mut child = scrub(&["zero", "--scrub-bandwidth", "1Mi", "--device"])
            .arg(&device.path)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        // Once there is progress to be told of, something has been wiped.
        let progress = log
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains("% of 16 MiB"));
        assert!(progress.is_some(), "it ended at once");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let rest: Vec<String> = log.map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert!(rest.iter().any(|line| line.contains("stopped by a signal")), "{rest:?}");
        let mut ends = [0; 2];
        let backing = File::open(&file).unwrap();
        backing.read_exact_at(&mut ends[..1], 0).unwrap();
        backing.read_exact_at(&mut ends[1..], SIZE as u64 - 1).unwrap();
        assert_eq!(ends, [0, 0xaa]);
    });
}

#[test]
fn a_job_keeps_to_the_bandwidth_that_it_is_told() {
    in_namespace(|dir| {
        let (file, device) = soiled(dir);
        let on_device = |command: &mut Command, rate: &str| {
            command
                .env("LOCAL_PV_BLKDEVICE", &device.path)
                .env("LOCAL_PV_SCRUB_BANDWIDTH", rate);
        };
        let (mut method, mut script) = (scrub(&["zero"]), script(dir, "dd_zero.sh"));
        for command in [&mut method, &mut script] {
            on_device(command, "much");
            fails(command, "LOCAL_PV_SCRUB_BANDWIDTH: \"much\"");
            assert!(is_full_of(&file, 0xaa));
        }
        for command in [&mut method, &mut script] {
            on_device(command, "16777216");
            let began = Instant::now();
            succeeds(command);
            assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        }
        // Who says it on the command line means that.
        let mut command = scrub(&["zero", "--scrub-bandwidth", "1Gi"]);
        on_device(&mut command, "1");
        succeeds(&mut command);
        assert!(is_full_of(&file, 0));
    });
}

#[test]
fn a_terminal_shows_a_bar() {
    in_namespace(|dir| {
        let (file, device) = soiled(dir);
        let output = dir.join("terminal");
        let line = format!(
            "{} scrub zero --scrub-bandwidth 16Mi --device {}",
            env!("CARGO_BIN_EXE_local-volume-provisioner"),
            device.path.display()
        );
        run("script", ["-qec", &line, output.to_str().unwrap()]);
        let shown = String::from_utf8_lossy(&std::fs::read(&output).unwrap()).into_owned();
        assert!(shown.contains("of 16.00 MiB") && shown.contains("MiB/s"), "{shown:?}");
        assert!(is_full_of(&file, 0));
    });
}
