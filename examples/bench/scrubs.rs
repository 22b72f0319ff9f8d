//! Scrubs beside the tools that anybody would use.

use std::fs::{File, create_dir_all};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testkit::mounts::{self, LoopDevice};

use crate::Scale;
use crate::program::Binary;
use crate::report::Report;

/// Files in a directory of the tree.
const FILES: usize = 1_000;

/// Each is measured so often, by turns with its floor; the median counts.
const ROUNDS: usize = 3;

pub(crate) fn measure(binary: &Binary, dir: &Path, scale: &Scale, report: &mut Report) -> Result<()> {
    files(binary, dir, scale, report)?;
    devices(binary, dir, scale, report)
}

/// The removal of files: many directories, and all in one, whose order of names is not that of its inodes.
fn files(binary: &Binary, dir: &Path, scale: &Scale, report: &mut Report) -> Result<()> {
    let tree = dir.join("tree");
    let removal = |name: &str, per_directory: usize, report: &mut Report| {
        let name = format!("removal of {} empty files, {name}", scale.files);
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..2 * ROUNDS {
            fill(&tree, scale.files, per_directory)?;
            let ours = round % 2 == 0;
            let took = if ours {
                run(Command::new(&binary.path)
                    .args(["scrub", "fsclean", "--device"])
                    .arg(&tree))?
            } else {
                // A scrub is on the disk when it ends.
                run(Command::new("sh")
                    .args(["-c", "rm -rf \"$0\"/*; sync -f \"$0\""])
                    .arg(&tree))?
            };
            times[usize::from(!ours)].push(took);
            ensure!(std::fs::read_dir(&tree)?.next().is_none(), "something was left");
        }
        let [ours, floor] = times;
        report.add(0, &name, "s", median(ours));
        report.floor(&name, "s", median(floor), "rm -rf and sync");
        anyhow::Ok(())
    };
    mounts::tmpfs(&tree, 4 << 30)?;
    removal("tmpfs", FILES, report)?;
    mounts::unmount(&tree)?;

    let bytes = (64 << 20) + scale.files as u64 * 4096;
    let disk = LoopDevice::with_file(&dir.join("ext4"), bytes)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-N", &(scale.files * 2).to_string()])
        .arg(disk.path()))?;
    mounts::device(disk.path(), &tree, "ext4")?;
    std::fs::remove_dir(tree.join("lost+found"))?;
    removal("ext4", FILES, report)?;
    removal("ext4, in one directory", usize::MAX, report)?;
    mounts::unmount(&tree)?;
    drop(disk);
    Ok(std::fs::remove_file(dir.join("ext4"))?)
}

fn devices(binary: &Binary, dir: &Path, scale: &Scale, report: &mut Report) -> Result<()> {
    let disk = LoopDevice::with_file(&dir.join("disk"), scale.device_bytes)?;
    let device = disk.path().display().to_string();
    let megabytes = scale.device_bytes >> 20;
    let shell = |line: &str| run(Command::new("sh").args(["-c", line]));
    let scrub = |method: &str| run(Command::new(&binary.path).args(["scrub", method, "--device", &device]));
    let dd = format!(
        "dd if=/dev/zero of={device} bs=4M oflag=direct conv=fsync count={} status=none",
        megabytes / 4
    );
    let rows = [
        ("zero", format!("blkdiscard -z {device}"), "blkdiscard -z"),
        ("zero", dd.clone(), "dd bs=4M oflag=direct"),
        // A discard promises nothing about what is read later.
        (
            "discard",
            format!("blkdiscard {device}; blkdiscard -z {device}"),
            "blkdiscard; blkdiscard -z",
        ),
        (
            "shred 1",
            format!("shred -n 1 {device}; {dd}"),
            "shred -n 1; dd oflag=direct",
        ),
    ];
    for (method, floor, what) in rows {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            // All blocks of the backing file are there first, for everybody.
            shell(&dd)?;
            times[0].push(match method.split_once(' ') {
                None => scrub(method)?,
                Some((method, passes)) => {
                    run(Command::new(&binary.path).args(["scrub", method, passes, "--device", &device]))?
                }
            });
            shell(&dd)?;
            times[1].push(shell(&floor)?);
        }
        let name = format!("{method} of {megabytes} MiB, loop device on tmpfs, beside {what}");
        let [ours, floor] = times;
        report.add(0, &name, "s", median(ours));
        report.floor(&name, "s", median(floor), what);
    }
    std::fs::remove_file(disk.file())?;
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn fill(tree: &Path, files: usize, per_directory: usize) -> Result<()> {
    for number in 0..files {
        let directory = tree.join((number / per_directory).to_string());
        if number % per_directory == 0 {
            create_dir_all(&directory)?;
        }
        File::create(directory.join(number.to_string()))?;
    }
    // What is still to be written is not the removal's.
    nix::unistd::sync();
    Ok(())
}

/// Seconds that a command takes, which must end well.
fn run(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let took = began.elapsed().as_secs_f64();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {error}", output.status);
    Ok(took)
}
