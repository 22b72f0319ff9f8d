//! A ConfigMap volume: files that are symlinks through `..data`, which kubelet swaps atomically on an edit.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::settings::{Lines, Origin, Setting, build};
use super::{Loaded, Problem};

/// A ConfigMap holds at most 1 MiB; whatever is larger is not a setting.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// How often a directory that is swapped while it is read is read again. Kubelet writes once per edit.
const MAX_READS: usize = 5;

/// Loads the files of a directory, symlinks followed. Sub-directories and what begins with `..` are no keys.
///
/// What cannot be read is a [`Problem`] like any other; if it is the directory itself, its key is empty.
pub fn load_directory(dir: &Path) -> Loaded {
    let mut read = read(dir);
    for _ in 1..MAX_READS {
        // Files of two generations of the ConfigMap must not be mixed, nor taken for missing because one was removed.
        if read.generation == generation(dir) {
            break;
        }
        read = self::read(dir);
    }
    if let Some(problem) = read.fatal {
        return Loaded {
            problems: vec![problem],
            ..Loaded::default()
        };
    }
    let settings = read.keys.into_iter().map(|(key, value)| Setting {
        origin: Origin {
            file: dir.join(&key).display().to_string(),
            lines: Lines::After(0),
        },
        key,
        value,
    });
    let mut loaded = build(&dir.display().to_string(), settings.collect(), read.problems);
    loaded.warnings.extend(read.warnings);
    loaded
}

#[derive(Default)]
struct Contents {
    generation: Option<PathBuf>,
    keys: BTreeMap<String, Vec<u8>>,
    fatal: Option<Problem>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// The target of `..data`, different for each edit; none in an ordinary directory.
fn generation(dir: &Path) -> Option<PathBuf> {
    fs::read_link(dir.join("..data")).ok()
}

fn read(dir: &Path) -> Contents {
    let mut contents = Contents {
        generation: generation(dir),
        ..Contents::default()
    };
    let entries = match names(dir) {
        Ok(entries) => entries,
        Err(err) => {
            let hint = if err.kind() == io::ErrorKind::NotFound {
                ": mount the provisioner's ConfigMap there, or name its directory with --config-dir"
            } else {
                ""
            };
            let message = format!("cannot read the configuration directory: {err}{hint}");
            contents.fatal = Some(problem(dir, "", message));
            return contents;
        }
    };
    // Kubelet swaps `..data` first, and then makes and removes the links to its files one by one: what counts is in it.
    let data = contents.generation.as_ref().map(|generation| dir.join(generation));
    let in_data = data.as_deref().map_or_else(|| Ok(Vec::new()), names);
    let in_data = match in_data {
        Ok(names) => names,
        Err(err) => {
            contents.fatal = Some(problem(&dir.join("..data"), "", format!("cannot read it: {err}")));
            return contents;
        }
    };
    for name in &entries {
        let path = dir.join(name);
        match fs::read_link(&path) {
            Ok(target) if target.starts_with("..data") => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => {} // Removed since it was listed.
            _ => contents.take(&path, name, &path),
        }
    }
    for name in &in_data {
        let path = data.as_deref().unwrap_or(dir).join(name);
        contents.take(&dir.join(name), name, &path);
    }
    contents
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect()
}

impl Contents {
    /// Takes in the file at `path`, which is shown as `shown`.
    fn take(&mut self, shown: &Path, name: &OsStr, path: &Path) {
        let Some(key) = name.to_str() else {
            let message = "the name is not UTF-8, so it is no key".to_owned();
            self.warnings.push(problem(shown, "", message));
            return;
        };
        if key.starts_with("..") {
            return;
        }
        match read_file(path) {
            Ok(Some(value)) => {
                self.keys.insert(key.to_owned(), value);
            }
            Ok(None) => {}
            Err(err) => self
                .problems
                .push(problem(shown, key, format!("cannot read it: {err}"))),
        }
    }
}

/// The contents of a regular file, or none of a directory.
fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Ok(None);
    }
    // A FIFO must not even be opened.
    if !kind.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut value = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut value)?;
    if value.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "it is larger than {} MiB",
            MAX_FILE_BYTES >> 20
        )));
    }
    Ok(Some(value))
}

fn problem(path: &Path, key: &str, message: String) -> Problem {
    Problem {
        file: path.display().to_string(),
        line: None,
        key: key.to_owned(),
        class: None,
        message,
    }
}
