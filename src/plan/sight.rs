//! Where a PV's volume is looked for, and what a look has shown of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;

use super::Planner;
use crate::cluster::Pv;
use crate::config::Config;
use crate::observed::{Directory, DirectoryKey, Entry, EntryKind, Observed};
use crate::reason::Held;

/// The directories of the classes.
pub(super) struct ClassDirectories<'a>(pub(super) BTreeMap<&'a str, DirectoryKey>);

impl<'a> ClassDirectories<'a> {
    pub(super) fn of(config: &'a Config) -> Self {
        let place = |(name, class): (&'a String, &'a crate::config::Class)| (name.as_str(), DirectoryKey::from(class));
        Self(config.classes.iter().map(place).collect())
    }

    /// Where the volume of a PV is: in its class's directory if that is (still) the one it was published from, else where
    /// the PV says it was published from.
    pub(super) fn of_pv(&self, pv: &Pv) -> Option<DirectoryKey> {
        let host_dir = pv.host_dir()?;
        if let Some(place) = self.0.get(pv.class.as_str())
            && place.host_dir == host_dir
        {
            return Some(place.clone());
        }
        let mount_dir = pv.annotation(crate::names::CLASS_DIRECTORY)?;
        Some(DirectoryKey::new(&pv.class, host_dir, mount_dir))
    }
}

impl From<&crate::config::Class> for DirectoryKey {
    fn from(class: &crate::config::Class) -> Self {
        Self::new(&class.name, &class.host_dir, &class.mount_dir)
    }
}

/// What the observation says of a PV's volume.
pub(super) enum Sight<'a> {
    /// Nothing can be said: the directory or the entry could not be read, for this reason.
    Unseen(Held),
    /// A system call on it hangs.
    Unresponsive(&'a str),
    /// The directory was read, and the entry is not there.
    Absent,
    /// It is there, and answers with errors.
    Failing(&'a str),
    /// It is there.
    Entry(&'a Entry),
}

/// The entries of the directories that were read, by name.
pub(super) struct Entries<'a>(BTreeMap<&'a DirectoryKey, HashMap<&'a OsStr, &'a Entry>>);

impl<'a> Entries<'a> {
    pub(super) fn of(observed: &'a Observed) -> Self {
        let by_name = |(key, directory): (&'a DirectoryKey, &'a Directory)| match directory {
            Directory::Read(entries) => {
                let named = entries.iter().map(|entry| (entry.name.as_os_str(), entry));
                Some((key, named.collect()))
            }
            _ => None,
        };
        Self(observed.directories.iter().filter_map(by_name).collect())
    }

    pub(super) fn get(&self, key: &DirectoryKey, name: Option<&OsStr>) -> Option<&'a Entry> {
        self.0.get(key)?.get(name?).copied()
    }
}

impl<'a> Planner<'a> {
    pub(super) fn sight(&self, pv: &Pv) -> (Option<DirectoryKey>, Sight<'a>) {
        let Some(key) = self.class_directories.of_pv(pv) else {
            let held = if self.i.broken_classes.contains(&pv.class) {
                Held::Unreadable("its class is broken in the configuration; mend it".into())
            } else {
                Held::ClassNotConfigured
            };
            return (None, Sight::Unseen(held));
        };
        let sight = match self.i.observed.directories.get(&key) {
            None => Sight::Unseen(Held::Unreadable("its directory was not looked at yet".into())),
            Some(Directory::Unreadable(error)) => Sight::Unseen(Held::Unreadable(error.clone())),
            Some(Directory::Missing) => Sight::Absent,
            Some(Directory::Read(_)) => match self.entries.get(&key, pv.entry()) {
                None => Sight::Absent,
                Some(entry) => match &entry.kind {
                    EntryKind::Unresponsive(call) => Sight::Unresponsive(call),
                    EntryKind::Failing(what) => Sight::Failing(what),
                    EntryKind::Failed(error) => Sight::Unseen(Held::Unreadable(error.clone())),
                    _ => Sight::Entry(entry),
                },
            },
        };
        (Some(key), sight)
    }
}
