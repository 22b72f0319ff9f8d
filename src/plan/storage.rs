//! Which storage is spoken for: no two PVs for one filesystem subtree or one device.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};

use crate::cluster::{Owner, Pv};
use crate::identity::{Comparison, ParseVolumeIdError, VolumeId};
use crate::names::VOLUME_ID;
use crate::observed::EntryKind;

use super::volume::adopted;
use super::{ClassDirectories, Entries, Inputs, Sight};

/// The storage that published volumes, and volumes about to be published, stand on. Who has it is known by number, in
/// the order in which they came: of several the first is named.
#[derive(Default)]
pub(super) struct Index<'a> {
    owners: Vec<Cow<'a, str>>,
    /// Mounted subtrees, by the device number of their filesystem.
    mounts: Places,
    /// Devices, by each of their keys.
    devices: HashMap<&'a str, Vec<usize>>,
    /// What PVs say that they were published from, wherever that storage is today.
    noted: Vec<Noted<'a>>,
    /// Numbers of the above, by the hash of each key of the id. Others that share a hash are told apart by the id.
    noted_by_key: Places,
    hasher: RandomState,
}

struct Noted<'a> {
    id: VolumeId,
    path: &'a Path,
    pv: &'a str,
}

/// Numbers by filesystem and directory in it.
#[derive(Default)]
struct Places(BTreeSet<(u64, PathBuf, usize)>);

impl Places {
    fn add(&mut self, filesystem: u64, place: &Path, number: usize) {
        self.0.insert((filesystem, place.to_owned(), number));
    }

    /// Of a directory, of those that it is in, and of those in it.
    fn related(&self, filesystem: u64, place: &Path) -> impl Iterator<Item = usize> {
        let at = move |place: &Path, number| (filesystem, place.to_owned(), number);
        let above = place.ancestors().skip(1);
        let above = above.flat_map(move |above| self.0.range(at(above, 0)..=at(above, usize::MAX)));
        // Paths order by component: what lies below a directory follows it.
        let from_here = self.0.range(at(place, 0)..);
        let below = from_here.take_while(move |(other, below, _)| *other == filesystem && below.starts_with(place));
        above.chain(below).map(|(_, _, number)| *number)
    }

    /// Of all directories of a filesystem.
    fn all(&self, filesystem: u64) -> impl Iterator<Item = usize> {
        let from_here = self.0.range((filesystem, PathBuf::new(), 0)..);
        let of_it = from_here.take_while(move |(other, _, _)| *other == filesystem);
        of_it.map(|(_, _, number)| *number)
    }
}

impl<'a> Index<'a> {
    /// Of everything that has a PV, or had one that ended without being let go.
    pub(super) fn of_published(
        i: &Inputs<'a>,
        entries: &Entries<'a>,
        class_directories: &ClassDirectories<'_>,
    ) -> Self {
        let mut index = Self::default();
        let gone = i.memory.gone.values().map(|gone| &gone.pv);
        let creating = i.memory.creating.values();
        for pv in i.cluster.pvs.values().chain(gone).chain(creating) {
            let Some(path) = &pv.path else { continue };
            // Of a foreign PV nothing but its path tells where it is.
            let key = match i.ownership.of(pv) {
                Owner::Foreign => {
                    let mut known = class_directories.0.values();
                    known
                        .find(|place| Some(place.host_dir.as_path()) == pv.host_dir())
                        .cloned()
                }
                _ => class_directories.of_pv(pv),
            };
            let entry = key.and_then(|key| entries.get(&key, pv.entry()));
            if let Some(Ok(id)) = noted_id(pv, entry.and_then(|entry| seen_id(&entry.kind))) {
                index.note(id, path, &pv.name);
            }
            if let Some(entry) = entry {
                index.add(&entry.kind, path.to_string_lossy());
            }
        }
        index
    }

    fn note(&mut self, id: VolumeId, path: &'a Path, pv: &'a str) {
        for key in id.keys() {
            let hash = self.hasher.hash_one(key);
            self.noted_by_key.add(hash, id.subtree(), self.noted.len());
        }
        self.noted.push(Noted { id, path, pv });
    }

    /// Takes an entry's storage for `owner`.
    pub(super) fn add(&mut self, kind: &'a EntryKind, owner: Cow<'a, str>) {
        let number = self.owners.len();
        match kind {
            EntryKind::Mount(mount) => self.mounts.add(mount.dev, &mount.subtree, number),
            EntryKind::Device(device) => {
                for key in &device.storage_keys {
                    self.devices.entry(key).or_default().push(number);
                }
            }
            _ => return,
        }
        self.owners.push(owner);
    }

    /// Who has this entry's storage already. `path` is the entry's own path on the node.
    pub(super) fn owner(&self, kind: &EntryKind, path: &Path) -> Option<String> {
        let own = path.to_string_lossy();
        let first = |numbers: &mut dyn Iterator<Item = usize>| {
            let others = numbers.filter(|number| self.owners[*number] != own);
            others.min().map(|number| self.owners[number].clone().into_owned())
        };
        let devices = |key: &str| self.devices.get(key).into_iter().flatten().copied();
        let (id, found) = match kind {
            EntryKind::Mount(mount) => {
                let mut same = self.mounts.related(mount.dev, &mount.subtree);
                let found = first(&mut same).or_else(|| first(&mut devices(&device_key(mount.dev))));
                (mount.id.as_ref().ok(), found)
            }
            EntryKind::Device(device) => {
                let keys = || device.storage_keys.iter().map(String::as_str);
                let numbers = || keys().filter_map(device_of_key);
                let mut mounted = numbers().flat_map(|dev| self.mounts.all(dev));
                let found = first(&mut keys().flat_map(devices)).or_else(|| first(&mut mounted));
                (device.id.as_ref().ok(), found)
            }
            _ => return None,
        };
        found.or_else(|| self.noted_elsewhere(id?, path))
    }

    /// The PV of another path that says that it was published from this storage, or from a part of it.
    fn noted_elsewhere(&self, id: &VolumeId, path: &Path) -> Option<String> {
        let hashes = id.keys().map(|key| self.hasher.hash_one(key));
        hashes
            .flat_map(|hash| self.noted_by_key.related(hash, id.subtree()))
            .filter(|number| self.noted[*number].path != path && self.noted[*number].id.overlaps(id))
            .min()
            .map(|number| format!("PV {}", self.noted[number].pv))
    }
}

/// The key under which a device number is among [`crate::observed::DeviceFacts::storage_keys`].
fn device_key(dev: u64) -> String {
    use nix::sys::stat::{major, minor};
    format!("dev:{}:{}", major(dev), minor(dev))
}

/// The device number that such a key says.
fn device_of_key(key: &str) -> Option<u64> {
    let (major, minor) = key.strip_prefix("dev:")?.split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// What identifies an entry's storage, if it could be read.
pub(super) fn seen_id(kind: &EntryKind) -> Option<&VolumeId> {
    match kind {
        EntryKind::Mount(mount) => mount.id.as_ref().ok(),
        EntryKind::Device(device) => device.id.as_ref().ok(),
        _ => None,
    }
}

/// What a PV says of its storage; mostly it is what is seen there.
fn noted_id(pv: &Pv, seen: Option<&VolumeId>) -> Option<Result<VolumeId, ParseVolumeIdError>> {
    let text = pv.annotation(VOLUME_ID)?;
    let same = seen.filter(|seen| seen.is_written(text));
    Some(same.map_or_else(|| text.parse(), |seen| Ok(seen.clone())))
}

/// How what is at a PV's path relates to what was published there.
pub(super) enum Match {
    /// The right storage, or a PV of the classic program, which notes none.
    Right,
    /// Other storage.
    Wrong { expected: String, found: String },
    /// It went with a reboot.
    LostWithReboot,
    /// Its identity cannot be read, or what was noted cannot.
    Unknown(String),
}

impl super::Planner<'_> {
    /// Compares what is at a PV's path with what was published there, or what the operator has accepted instead.
    /// Nothing makes the storage of another PV the right one.
    pub(super) fn matches(&self, pv: &Pv, kind: &EntryKind) -> Match {
        let found = match self.noted_match(pv, kind) {
            Match::Wrong { .. } | Match::Unknown(_) if adopted(pv) => Match::Right,
            found => found,
        };
        if let (Match::Right, Some(id), Some(path)) = (&found, seen_id(kind), &pv.path)
            && let Some(owner) = self.storage.noted_elsewhere(id, path)
        {
            return Match::Wrong {
                expected: pv.annotation(VOLUME_ID).unwrap_or("storage of its own").to_owned(),
                found: format!("{id}, the storage of {owner}"),
            };
        }
        found
    }

    fn noted_match(&self, pv: &Pv, kind: &EntryKind) -> Match {
        let seen = match kind {
            EntryKind::Mount(mount) => &mount.id,
            EntryKind::Device(device) => &device.id,
            _ => return Match::Right,
        };
        let Some(noted) = noted_id(pv, seen.as_ref().ok()) else {
            let legacy = pv.annotation(crate::names::CLASS_DIRECTORY).is_none()
                || pv.annotation(crate::names::VOLUME_ID_ORIGIN) == Some("unknown");
            return if legacy {
                Match::Right
            } else {
                Match::Unknown("the PV's annotation local-volume-provisioner/volume-id was removed; put it back, or accept what is there with local-volume-provisioner/resolve=adopt".into())
            };
        };
        let noted = match noted {
            Ok(id) => id,
            Err(error) => {
                let text = pv.annotation(VOLUME_ID).unwrap_or_default();
                return Match::Unknown(format!(
                    "the PV's annotation local-volume-provisioner/volume-id is {text:?}: {error}"
                ));
            }
        };
        let seen = match seen {
            Ok(id) => id,
            Err(error) => return Match::Unknown(error.clone()),
        };
        match noted.compare(seen) {
            Comparison::Same => Match::Right,
            Comparison::Different => Match::Wrong {
                expected: noted.to_string(),
                found: seen.to_string(),
            },
            Comparison::LostWithReboot => Match::LostWithReboot,
        }
    }
}

/// Why an entry that should be a PV's volume is none, in the words of the hold.
pub(super) fn not_a_volume(sight: &Sight<'_>, mode: crate::config::VolumeMode) -> Option<String> {
    use crate::config::VolumeMode;
    let Sight::Entry(entry) = sight else {
        return Some("the entry is gone".into());
    };
    match (&entry.kind, mode) {
        (EntryKind::Device(_), _) => None,
        (EntryKind::Mount(_), VolumeMode::Block) => {
            Some("a mounted filesystem is where a block device was published".into())
        }
        (EntryKind::Mount(mount), VolumeMode::Filesystem) => mount
            .deleted
            .then(|| "the directory behind the mount was deleted".into()),
        (EntryKind::PlainDirectory, _) => Some("nothing is mounted on the directory".into()),
        _ => Some("neither a mount point nor a block device is there now".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn related_are_a_directory_what_it_is_in_and_what_is_in_it() {
        let mut places = Places::default();
        for (number, place) in ["/", "/a", "/a/b", "/a/b/c", "/a-b", "/ab", "/a/bc", "/a"]
            .into_iter()
            .enumerate()
        {
            places.add(7, Path::new(place), number);
            // Of other filesystems, before and after it.
            places.add(6, Path::new(place), 100 + number);
            places.add(8, Path::new(place), 200 + number);
        }
        let related = |place: &str| {
            let mut numbers: Vec<usize> = places.related(7, Path::new(place)).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(related("/"), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(related("/a"), [0, 1, 2, 3, 6, 7]);
        assert_eq!(related("/a/b"), [0, 1, 2, 3, 7]);
        assert_eq!(related("/a/x"), [0, 1, 7]);
        assert_eq!(related("/x"), [0]);
    }
}
