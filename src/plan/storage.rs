//! Which storage is spoken for: no two PVs for one filesystem subtree or one device.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use crate::cluster::{Owner, Pv};
use crate::identity::{Comparison, VolumeId};
use crate::names::VOLUME_ID;
use crate::observed::EntryKind;

use super::volume::adopted;
use super::{Entries, Inputs, Sight};

/// The storage that published volumes, and volumes about to be published, stand on. Who has it is known by number, in
/// the order in which they came: of several the first is named.
#[derive(Default)]
pub(super) struct Index {
    owners: Vec<String>,
    /// Mounted subtrees, by the key of their filesystem's device number.
    mounts: HashMap<String, Places>,
    /// Devices, by each of their keys.
    devices: HashMap<String, Vec<usize>>,
    /// What PVs say that they were published from, wherever that storage is today.
    noted: Vec<Noted>,
    /// Numbers of the above, by each key of the id.
    noted_by_key: HashMap<String, Places>,
}

struct Noted {
    id: VolumeId,
    path: PathBuf,
    pv: String,
}

/// Numbers by directory.
#[derive(Default)]
struct Places(BTreeMap<PathBuf, Vec<usize>>);

impl Places {
    fn add(&mut self, place: &Path, number: usize) {
        self.0.entry(place.to_owned()).or_default().push(number);
    }

    /// Of a directory, of those that it is in, and of those in it.
    fn related<'p>(&'p self, place: &'p Path) -> impl Iterator<Item = usize> + 'p {
        let above = place.ancestors().skip(1).filter_map(|above| self.0.get(above));
        // Paths order by component: what lies below a directory follows it.
        let from_here = self.0.range::<Path, _>((Bound::Included(place), Bound::Unbounded));
        let below = from_here.take_while(move |(other, _)| other.starts_with(place));
        above.chain(below.map(|(_, numbers)| numbers)).flatten().copied()
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        self.0.values().flatten().copied()
    }
}

impl Index {
    /// Of everything that has a PV, or had one that ended without being let go.
    pub(super) fn of_published(i: &Inputs<'_>, entries: &Entries<'_>) -> Self {
        let mut index = Self::default();
        let gone = i.memory.gone.values().map(|gone| &gone.pv);
        let creating = i.memory.creating.values();
        for pv in i.cluster.pvs.values().chain(gone).chain(creating) {
            let Some(path) = &pv.path else { continue };
            if let Some(id) = pv.annotation(VOLUME_ID).and_then(|text| text.parse().ok()) {
                index.note(id, path, &pv.name);
            }
            // Of a foreign PV nothing but its path tells where it is.
            let mut classes = i.config.classes.values();
            let key = match i.ownership.of(pv) {
                Owner::Foreign => classes
                    .find(|class| Some(class.host_dir.as_path()) == pv.host_dir())
                    .map(crate::observed::DirectoryKey::from),
                _ => super::directory_of(i.config, pv),
            };
            let Some(key) = key else { continue };
            if let Some(entry) = entries.get(&key, pv.entry()) {
                index.add(&entry.kind, &path.display().to_string());
            }
        }
        index
    }

    fn note(&mut self, id: VolumeId, path: &Path, pv: &str) {
        for key in id.keys() {
            let places = self.noted_by_key.entry(key).or_default();
            places.add(id.subtree(), self.noted.len());
        }
        self.noted.push(Noted {
            id,
            path: path.to_owned(),
            pv: format!("PV {pv}"),
        });
    }

    /// Takes an entry's storage for `owner`.
    pub(super) fn add(&mut self, kind: &EntryKind, owner: &str) {
        let number = self.owners.len();
        match kind {
            EntryKind::Mount(mount) => {
                let places = self.mounts.entry(device_key(mount.dev)).or_default();
                places.add(&mount.subtree, number);
            }
            EntryKind::Device(device) => {
                for key in &device.storage_keys {
                    self.devices.entry(key.clone()).or_default().push(number);
                }
            }
            _ => return,
        }
        self.owners.push(owner.to_owned());
    }

    /// Who has this entry's storage already. `path` is the entry's own path on the node.
    pub(super) fn owner(&self, kind: &EntryKind, path: &Path) -> Option<String> {
        let own = path.display().to_string();
        let first = |numbers: &mut dyn Iterator<Item = usize>| {
            let others = numbers.filter(|number| self.owners[*number] != own);
            others.min().map(|number| self.owners[number].clone())
        };
        let devices = |key: &String| self.devices.get(key).into_iter().flatten().copied();
        let (id, found) = match kind {
            EntryKind::Mount(mount) => {
                let key = device_key(mount.dev);
                let mut same = self
                    .mounts
                    .get(&key)
                    .into_iter()
                    .flat_map(|places| places.related(&mount.subtree));
                let found = first(&mut same).or_else(|| first(&mut devices(&key)));
                (mount.id.as_ref().ok(), found)
            }
            EntryKind::Device(device) => {
                let keys = &device.storage_keys;
                let mounted = || keys.iter().filter_map(|key| self.mounts.get(key)).flat_map(Places::all);
                let found = first(&mut keys.iter().flat_map(devices)).or_else(|| first(&mut mounted()));
                (device.id.as_ref().ok(), found)
            }
            _ => return None,
        };
        found.or_else(|| self.noted_elsewhere(id?, path))
    }

    /// The PV of another path that says that it was published from this storage, or from a part of it.
    fn noted_elsewhere(&self, id: &VolumeId, path: &Path) -> Option<String> {
        let keys = id.keys();
        keys.iter()
            .filter_map(|key| self.noted_by_key.get(key))
            .flat_map(|places| places.related(id.subtree()))
            .filter(|number| self.noted[*number].path != path && self.noted[*number].id.overlaps(id))
            .min()
            .map(|number| self.noted[number].pv.clone())
    }
}

/// The key under which a device number is among [`crate::observed::DeviceFacts::storage_keys`].
fn device_key(dev: u64) -> String {
    use nix::sys::stat::{major, minor};
    format!("dev:{}:{}", major(dev), minor(dev))
}

/// What identifies an entry's storage, if it could be read.
pub(super) fn seen_id(kind: &EntryKind) -> Option<&VolumeId> {
    match kind {
        EntryKind::Mount(mount) => mount.id.as_ref().ok(),
        EntryKind::Device(device) => device.id.as_ref().ok(),
        _ => None,
    }
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
        let Some(noted) = pv.annotation(VOLUME_ID) else {
            let legacy = pv.annotation(crate::names::CLASS_DIRECTORY).is_none()
                || pv.annotation(crate::names::VOLUME_ID_ORIGIN) == Some("unknown");
            return if legacy {
                Match::Right
            } else {
                Match::Unknown("the PV's annotation local-volume-provisioner/volume-id was removed; put it back, or accept what is there with local-volume-provisioner/resolve=adopt".into())
            };
        };
        let noted: VolumeId = match noted.parse() {
            Ok(id) => id,
            Err(error) => {
                return Match::Unknown(format!(
                    "the PV's annotation local-volume-provisioner/volume-id is {noted:?}: {error}"
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
            places.add(Path::new(place), number);
        }
        let related = |place: &str| {
            let mut numbers: Vec<usize> = places.related(Path::new(place)).collect();
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
