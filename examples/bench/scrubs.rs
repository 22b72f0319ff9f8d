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

/// Files in one directory.
const FILES: usize = 1_000;

pub(crate) fn measure(binary: &Binary, dir: &Path, scale: &Scale, report: &mut Report) -> Result<()> {
    let tree = dir.join("tree");
    mounts::tmpfs(&tree, 4 << 30)?;
    let name = format!("removal of {} empty files, tmpfs", scale.files);
    fill(&tree, scale.files)?;
    let took = run(Command::new(&binary.path)
        .args(["scrub", "fsclean", "--device"])
        .arg(&tree))?;
    report.add(0, &name, "s", took);
    ensure!(std::fs::read_dir(&tree)?.next().is_none(), "the scrub left something");
    fill(&tree, scale.files)?;
    let took = run(Command::new("sh").args(["-c", "rm -rf \"$0\"/*"]).arg(&tree))?;
    report.floor(&name, "s", took, "rm -rf");
    mounts::unmount(&tree)?;

    let disk = LoopDevice::with_file(&dir.join("disk"), scale.device_bytes)?;
    let megabytes = scale.device_bytes >> 20;
    let dd = || {
        let to = format!("of={}", disk.path().display());
        let count = format!("count={}", megabytes / 4);
        run(Command::new("dd").args(["if=/dev/zero", "bs=4M", "oflag=direct", "conv=fsync", &count, &to]))
    };
    let discard = || run(Command::new("blkdiscard").arg("-z").arg(disk.path()));
    let scrub = |method: &str| {
        run(Command::new(&binary.path)
            .args(["scrub", method, "--device"])
            .arg(disk.path()))
    };
    // All blocks of the backing file are there first, for everybody.
    dd()?;
    let name = format!("zero of {megabytes} MiB, loop device on tmpfs");
    report.floor(&name, "s", dd()?, "dd bs=4M oflag=direct");
    report.add(0, &name, "s", scrub("zero")?);
    dd()?;
    let name = format!("discard of {megabytes} MiB, loop device on tmpfs");
    report.floor(&name, "s", discard()?, "blkdiscard -z");
    dd()?;
    report.add(0, &name, "s", scrub("discard")?);
    std::fs::remove_file(disk.file())?;
    Ok(())
}

fn fill(tree: &Path, files: usize) -> Result<()> {
    for number in 0..files {
        let directory = tree.join((number / FILES).to_string());
        if number % FILES == 0 {
            create_dir_all(&directory)?;
        }
        File::create(directory.join(number.to_string()))?;
    }
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
