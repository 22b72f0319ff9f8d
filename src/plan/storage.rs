//! Which storage is spoken for: no two PVs for one filesystem subtree or one device.

use std::path::{Path, PathBuf};

use crate::cluster::{Owner, Pv};
use crate::identity::{Comparison, VolumeId};
use crate::names::VOLUME_ID;
use crate::observed::{Directory, EntryKind};

use super::volume::adopted;
use super::{Inputs, Sight};

/// The storage that published volumes, and volumes about to be published, stand on.
pub(super) struct Index {
    subtrees: Vec<(u64, PathBuf, String)>,
    devices: Vec<(String, String)>,
    /// What PVs say that they were published from, wherever that storage is today.
    noted: Vec<(VolumeId, PathBuf, String)>,
}

impl Index {
    /// Of everything that has a PV, or had one that ended without being let go.
    pub(super) fn of_published(i: &Inputs<'_>) -> Self {
        let mut index = Self {
            subtrees: Vec::new(),
            devices: Vec::new(),
            noted: Vec::new(),
        };
        let gone = i.memory.gone.values().map(|gone| &gone.pv);
        let creating = i.memory.creating.values();
        for pv in i.cluster.pvs.values().chain(gone).chain(creating) {
            let Some(path) = &pv.path else { continue };
            if let Some(id) = pv.annotation(VOLUME_ID).and_then(|text| text.parse().ok()) {
                index.noted.push((id, path.clone(), format!("PV {}", pv.name)));
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
            let Some(Directory::Read(entries)) = i.observed.directories.get(&key) else {
                continue;
            };
            if let Some(entry) = entries.iter().find(|entry| Some(entry.name.as_os_str()) == pv.entry()) {
                index.add(&entry.kind, &path.display().to_string());
            }
        }
        index
    }

    /// Takes an entry's storage for `owner`.
    pub(super) fn add(&mut self, kind: &EntryKind, owner: &str) {
        match kind {
            EntryKind::Mount(mount) => self.subtrees.push((mount.dev, mount.subtree.clone(), owner.to_owned())),
            EntryKind::Device(device) => {
                self.devices
                    .extend(device.storage_keys.iter().map(|key| (key.clone(), owner.to_owned())));
            }
            _ => {}
        }
    }

    /// Who has this entry's storage already. `path` is the entry's own path on the node.
    pub(super) fn owner(&self, kind: &EntryKind, path: &Path) -> Option<String> {
        let own = path.display().to_string();
        let (id, found) = match kind {
            EntryKind::Mount(mount) => {
                let overlaps = |other: &Path| other.starts_with(&mount.subtree) || mount.subtree.starts_with(other);
                let key = device_key(mount.dev);
                let mut subtrees = self.subtrees.iter().filter(|(.., owner)| *owner != own);
                let same = subtrees.find(|(dev, subtree, _)| *dev == mount.dev && overlaps(subtree));
                let on_device = || self.devices.iter().find(|(of, owner)| *of == key && *owner != own);
                let owner = same.map(|(.., owner)| owner);
                (mount.id.as_ref().ok(), owner.or_else(|| Some(&on_device()?.1)).cloned())
            }
            EntryKind::Device(device) => {
                let mut devices = self.devices.iter().filter(|(_, owner)| *owner != own);
                let same = devices.find(|(key, _)| device.storage_keys.contains(key));
                let holds = |dev: u64| device.storage_keys.contains(&device_key(dev));
                let mounted = || {
                    self.subtrees
                        .iter()
                        .find(|(dev, _, owner)| holds(*dev) && *owner != own)
                };
                let owner = same.map(|(_, owner)| owner);
                (device.id.as_ref().ok(), owner.or_else(|| Some(&mounted()?.2)).cloned())
            }
            _ => return None,
        };
        found.or_else(|| self.noted_elsewhere(id?, path))
    }

    /// The PV of another path that says that it was published from this storage, or from a part of it.
    fn noted_elsewhere(&self, id: &VolumeId, path: &Path) -> Option<String> {
        self.noted
            .iter()
            .find(|(noted, at, _)| at != path && noted.overlaps(id))
            .map(|(_, _, pv)| pv.clone())
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
