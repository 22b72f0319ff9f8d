//! Entries without a PV: which of them become one.

use std::ffi::OsStr;
use std::path::Path;

use crate::capacity;
use crate::config::{Class, VolumeMode};
use crate::memory::{GonePv, ScrubState};
use crate::names;
use crate::observed::{Directory, Entry, EntryKind, HostView};
use crate::pv;
use crate::reason::{Held, Ignored};

use super::condition::defect;
use super::storage::seen_id;
use super::{Action, Health, Planner, State, Volume};

impl<'a> Planner<'a> {
    /// Judges every entry of a class's directory that no PV stands for.
    pub(super) fn class(&mut self, class: &'a Class) {
        let Some(key) = self.class_directories.0.get(class.name.as_str()).cloned() else {
            return;
        };
        let observed = self.i.observed;
        let Some(Directory::Read(entries)) = observed.directories.get(&key) else {
            return;
        };
        for entry in entries {
            let path = key.host_dir.join(&entry.name);
            let occupant = self.occupied.get(path.as_path()).copied();
            if occupant
                .as_ref()
                .is_some_and(|occupant| occupant.class == class.name && !occupant.foreign)
            {
                continue; // The PV's own row says it all.
            }
            let mut volume = Volume {
                directory: key.clone(),
                entry: entry.name.clone(),
                state: State::Available,
                pv: None,
                published: false,
                claim: None,
                capacity: facts_capacity(&entry.kind),
                id: seen_id(&entry.kind).cloned(),
                warning: None,
                health: Health::Unknown,
            };
            if let Some(occupant) = occupant {
                volume.state = if occupant.foreign {
                    State::Held(Held::ForeignPv(occupant.pv.to_owned()))
                } else {
                    State::Ignored(Ignored::Duplicate(format!(
                        "PV {} of class {}",
                        occupant.pv, occupant.class
                    )))
                };
            } else {
                self.unpublished(class, entry, &path, &mut volume);
            }
            volume.health = Health::of_unpublished(&volume.state);
            self.plan.volumes.push(volume);
        }
    }

    fn unpublished(&mut self, class: &'a Class, entry: &'a Entry, path: &Path, volume: &mut Volume) {
        // Whatever a former tenant has made of it: it is to be scrubbed, not judged as a new volume.
        if let Some(gone) = self.i.memory.gone.get(path) {
            self.gone(gone, path, volume);
            return;
        }
        let name = match judge(class, entry) {
            Ok(name) => name,
            Err(state) => {
                volume.state = state;
                return;
            }
        };
        let pv_name = self.pv_name(name, path, &class.name);
        volume.pv = Some(pv_name.clone());
        if let Some(state) = self.unpublishable(class, entry, path, &pv_name) {
            volume.state = state;
            return;
        }
        self.storage
            .add(&entry.kind, path.to_string_lossy().into_owned().into());
        self.names.insert(pv_name.clone().into());
        volume.warning = self.uncreatable(&pv_name);
        // The others have their turn when some are made.
        if self.creations == 0 || !self.can_act(&pv_name) {
            return;
        }
        self.creations -= 1;
        let object = pv::build(&pv::Publication {
            name: &pv_name,
            class,
            storage_class: self.i.cluster.storage_classes.get(&class.name),
            path,
            kind: &entry.kind,
            config: self.i.config,
            node: self.i.node,
            ownership: self.i.ownership,
            mode: self.i.mode,
        });
        self.act(&pv_name, Action::Create(Box::new(object)));
    }

    /// Why the PV of an entry could not be created at the last try.
    fn uncreatable(&self, pv_name: &str) -> Option<String> {
        let retry = self.i.memory.retries.get(pv_name)?;
        Some(format!("its PV cannot be created: {}", retry.error))
    }

    /// The classic name, or the longer one if that is taken by a PV of another path, node or class.
    fn pv_name(&self, entry: &str, path: &Path, class: &str) -> String {
        let node = &self.i.node.name;
        let classic = names::classic_pv_name(entry, node, class);
        if self.names.contains(classic.as_str()) || self.i.cluster.names_taken.contains(&classic) {
            names::long_pv_name(path, node, class)
        } else {
            classic
        }
    }

    /// Why a qualifying entry is not published now.
    fn unpublishable(&self, class: &Class, entry: &Entry, path: &Path, pv_name: &str) -> Option<State> {
        let Some(storage_class) = self.i.cluster.storage_classes.get(&class.name) else {
            return Some(State::Held(Held::StorageClassMissing));
        };
        if !matches!(storage_class.reclaim_policy.as_str(), "Delete" | "Retain") {
            return Some(State::Held(Held::UnsupportedPolicy(
                storage_class.reclaim_policy.clone(),
            )));
        }
        if let Some(owner) = self.storage.owner(&entry.kind, path) {
            return Some(State::Ignored(Ignored::Duplicate(owner)));
        }
        let mut creating = self.creating.get(path).into_iter().flatten();
        if let Some(other) = creating.find(|other| **other != pv_name) {
            return Some(State::Ignored(Ignored::Duplicate(format!("PV {other}"))));
        }
        if self.names.contains(pv_name) || self.i.cluster.names_taken.contains(pv_name) {
            return Some(State::Held(Held::ForeignPv(pv_name.to_owned())));
        }
        if let Some(job) = self.i.cluster.jobs.at_work(pv_name) {
            return Some(State::Held(Held::JobRunning(job.to_owned())));
        }
        self.pod_mount(pv_name, &entry.kind)
            .map(|user| State::Ignored(Ignored::InUse(user)))
    }

    /// The pod that has this PV's volume mounted, as far as the host's mount table is seen.
    pub(super) fn pod_mount(&self, pv_name: &str, kind: &EntryKind) -> Option<String> {
        let HostView::Seen(mounts) = &self.i.observed.host else {
            return None;
        };
        let same_storage = |dev: u64, subtree: &Path| match kind {
            // Also a subPath of it, and a mount that contains it.
            EntryKind::Mount(mount) => {
                mount.dev == dev && (subtree.starts_with(&mount.subtree) || mount.subtree.starts_with(subtree))
            }
            EntryKind::Device(device) => device.dev == dev,
            _ => false,
        };
        mounts
            .iter()
            .find(|mount| mount.pv == pv_name || same_storage(mount.dev, &mount.subtree))
            .map(|mount| format!("pod {} has it mounted (as PV {})", mount.pod_uid, mount.pv))
    }

    /// A volume whose PV ended although it was not let go. After a restart nothing is known of it but what is in the API:
    /// so a PV is made that stands in for the one that ended, and the volume goes its way under that.
    fn gone(&mut self, gone: &GonePv, path: &Path, volume: &mut Volume) {
        if let Some(scrub) = self.i.memory.scrubs.get(&gone.pv.uid)
            && matches!(scrub.state, ScrubState::Running)
        {
            self.plan.actions.push(Action::AbortScrub {
                uid: gone.pv.uid.clone(),
                why: "its PV was removed".into(),
            });
        }
        let is_taken = |name: &str| self.names.contains(name) || self.i.cluster.names_taken.contains(name);
        let name = match gone.pv.name.clone() {
            name if is_taken(&name) => names::long_pv_name(path, &self.i.node.name, &gone.pv.class),
            name => name,
        };
        volume.pv = Some(name.clone());
        if is_taken(&name) {
            volume.state = State::Held(Held::ForeignPv(name));
            return;
        }
        volume.state = State::Held(Held::RemovedByForce);
        volume.warning = self.uncreatable(&name);
        self.names.insert(name.clone().into());
        let object = pv::stand_in(&pv::StandIn {
            name: &name,
            gone,
            config: self.i.config,
            node: self.i.node,
            ownership: self.i.ownership,
            mode: self.i.mode,
        });
        self.act(&name, Action::Create(Box::new(object)));
    }
}

/// Whether an entry qualifies as a volume of its class, by what it is; its name if so.
fn judge<'e>(class: &Class, entry: &'e Entry) -> Result<&'e str, State> {
    let ignored = |reason| Err(State::Ignored(reason));
    let Some(name) = utf8(&entry.name) else {
        return ignored(Ignored::NotUtf8);
    };
    if !class.name_pattern.matches(name) {
        return ignored(Ignored::NamePattern(class.name_pattern.to_string()));
    }
    match &entry.kind {
        EntryKind::File => ignored(Ignored::File),
        EntryKind::PlainDirectory => ignored(Ignored::NotAMountPoint),
        EntryKind::Fifo => ignored(Ignored::Fifo),
        EntryKind::Socket => ignored(Ignored::Socket),
        EntryKind::CharacterDevice => ignored(Ignored::CharacterDevice),
        EntryKind::DanglingSymlink => ignored(Ignored::DanglingSymlink),
        EntryKind::SymlinkToDirectory => ignored(Ignored::SymlinkToDirectory),
        EntryKind::SymlinkToOther => ignored(Ignored::SymlinkToOther),
        EntryKind::Failed(error) => ignored(Ignored::Failed(error.clone())),
        EntryKind::Failing(what) => Err(State::Held(Held::Failing(what.clone()))),
        EntryKind::Unresponsive(call) => Err(State::Unresponsive(call.clone())),
        EntryKind::Mount(mount) => {
            if class.volume_mode == VolumeMode::Block {
                return ignored(Ignored::FilesystemInBlockClass);
            }
            if mount.deleted {
                return ignored(Ignored::SourceDeleted);
            }
            if let Some(held) = defect(&entry.kind) {
                return Err(State::Held(held));
            }
            if let Err(error) = &mount.id {
                return Err(State::Held(Held::IdentityUnknown(error.clone())));
            }
            if capacity::round(mount.capacity_bytes) == 0 {
                ignored(Ignored::NoCapacity)
            } else {
                Ok(name)
            }
        }
        EntryKind::Device(device) => {
            if let Some(held) = defect(&entry.kind) {
                return Err(State::Held(held));
            }
            if let Some(set) = &device.member_of {
                return ignored(Ignored::MemberOf(set.clone()));
            }
            match &device.users {
                None => return ignored(Ignored::InUse("not examined yet".into())),
                Some(users) if !users.is_empty() => return ignored(Ignored::InUse(users.join(", "))),
                Some(_) => {}
            }
            if let Err(error) = &device.id {
                return Err(State::Held(Held::IdentityUnknown(error.clone())));
            }
            if device.capacity_bytes == 0 {
                ignored(Ignored::NoCapacity)
            } else {
                Ok(name)
            }
        }
    }
}

fn utf8(name: &OsStr) -> Option<&str> {
    name.to_str()
}

pub(super) fn facts_capacity(kind: &EntryKind) -> Option<String> {
    let bytes = match kind {
        EntryKind::Mount(mount) => mount.capacity_bytes,
        EntryKind::Device(device) => device.capacity_bytes,
        _ => return None,
    };
    Some(capacity::quantity(capacity::round(bytes)))
}
