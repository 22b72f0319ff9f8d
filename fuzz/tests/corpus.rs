//! Every input of the corpus, with a limit on its time and on the memory of all.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuzz::{TARGETS, Target};

/// Milliseconds are usual; a machine with other work to do may take longer.
const LONGEST: Duration = Duration::from_secs(20);

/// What expands without a limit takes gigabytes.
const MOST_KIB: u64 = 512 << 10;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|err| panic!("{}: {err}", dir.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The most memory that this process ever had.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Tries one input, and says what it breaks.
fn attempt(target: Target, file: &Path) -> Result<(), String> {
    let input = fs::read(file).unwrap();
    let began = Instant::now();
    // What it panics with is printed by then.
    catch_unwind(|| target(&input)).map_err(|_| "breaks a property".to_owned())?;
    if began.elapsed() > LONGEST {
        return Err(format!("took {:?}", began.elapsed()));
    }
    if peak_kib() > MOST_KIB {
        return Err(format!("took {} KiB", peak_kib()));
    }
    Ok(())
}

#[test]
fn every_input_keeps_what_its_target_states() {
    let mut broken = Vec::new();
    for (name, target) in TARGETS {
        let files = files(&corpus().join(name));
        assert!(files.len() >= 5, "{name} has no corpus");
        for file in files {
            println!("{}", file.display());
            if let Err(why) = attempt(*target, &file) {
                broken.push(format!("{}: {why}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_directory_of_the_corpus_has_its_target() {
    let mut names: Vec<_> = files(&corpus())
        .iter()
        .map(|dir| dir.file_name().unwrap().to_owned())
        .collect();
    names.retain(|name| name.to_str().is_none_or(|name| !name.ends_with(".dict")));
    let targets: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, targets);
}
