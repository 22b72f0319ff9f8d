//! A ConfigMap volume, written as kubelet writes it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The files of a ConfigMap in a directory: each key is a symlink through `..data`, and an edit, however many keys it
/// changes, is one rename.
///
/// The order of the steps is that of kubelet's `AtomicWriter` (pkg/volume/util).
#[derive(Debug)]
pub struct ConfigVolume {
    dir: PathBuf,
    generation: u32,
    keys: BTreeMap<String, String>,
}

impl ConfigVolume {
    /// A volume without a key at this path, which is made.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        let (generation, keys) = (0, BTreeMap::new());
        Ok(Self { dir, generation, keys })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A key's value, empty if it has none.
    pub fn get(&self, key: &str) -> &str {
        self.keys.get(key).map_or("", String::as_str)
    }

    /// Sets keys, and removes those without a value, in one edit.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn edit<'a>(&mut self, changes: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> io::Result<()> {
        let mut keys = self.keys.clone();
        for (key, value) in changes {
            match value {
                Some(value) => keys.insert(key.to_owned(), value.to_owned()),
                None => keys.remove(key),
            };
        }
        let before = self.generation_name();
        self.generation += 1;
        let now = self.generation_name();
        fs::create_dir(self.dir.join(&now))?;
        for (key, value) in &keys {
            fs::write(self.dir.join(&now).join(key), value)?;
        }
        symlink(&now, self.dir.join("..data_tmp"))?;
        fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data"))?;
        for key in keys.keys().filter(|key| !self.keys.contains_key(*key)) {
            symlink(Path::new("..data").join(key), self.dir.join(key))?;
        }
        for key in self.keys.keys().filter(|key| !keys.contains_key(*key)) {
            fs::remove_file(self.dir.join(key))?;
        }
        if self.generation > 1 {
            fs::remove_dir_all(self.dir.join(before))?;
        }
        self.keys = keys;
        Ok(())
    }

    /// Sets one key.
    ///
    /// # Errors
    /// As [`ConfigVolume::edit`].
    pub fn set(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.edit([(key, Some(value))])
    }

    fn generation_name(&self) -> String {
        format!("..2026_01_01_00_00_00.{:09}", self.generation)
    }
}
