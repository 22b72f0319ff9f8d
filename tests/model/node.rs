//! Disks with ids and contents, mounted on the entries of one discovery directory, and pods that have them mounted.

use std::collections::{BTreeMap, BTreeSet};

use local_volume_provisioner::identity::VolumeId;
use local_volume_provisioner::names;
use local_volume_provisioner::observed::{
    Directory, DirectoryKey, Entry, EntryKind, HostView, MountFacts, Observed, PodMount,
};

use super::api::Api;

#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// UIDs of the claims that have written here since it was empty.
    pub contents: BTreeSet<String>,
    /// An operator has given its contents away, or lost track of it: what a tenant finds here is no fault of ours.
    pub excused: bool,
}

pub struct Pod {
    pub pv: String,
    pub disk: usize,
    pub claim: String,
}

pub struct Node {
    pub disks: Vec<Disk>,
    pub slots: BTreeMap<String, Option<usize>>,
    pub pods: Vec<Pod>,
    pub readable: bool,
}

impl Node {
    pub fn id(&self, disk: usize) -> VolumeId {
        format!("filesystem uuid=disk{disk}").parse().unwrap()
    }

    pub fn mounted(&self, slot: &str) -> Option<usize> {
        self.slots.get(slot).copied().flatten()
    }

    /// A scrub: what it destroys must be nobody's.
    pub fn empty(&mut self, disk: usize, api: &Api) {
        let contents = std::mem::take(&mut self.disks[disk].contents);
        for claim in api.claims.values() {
            // A lost claim may have been bound anew, to a volume on another disk.
            let here = self.id(disk).to_string();
            let bound = api
                .pvs
                .get(&claim.volume)
                .and_then(|pv| pv.metadata.annotations.as_ref()?.get(names::VOLUME_ID))
                .is_some_and(|noted| *noted == here);
            assert!(
                !contents.contains(&claim.uid) || (!bound && self.disks[disk].excused),
                "a scrub destroys what living claim {} has written to disk {disk}",
                claim.uid
            );
        }
        self.disks[disk].excused = false;
    }

    pub fn observe(&self, key: &DirectoryKey) -> Observed {
        let entries = self.slots.iter().map(|(slot, disk)| Entry {
            name: slot.into(),
            kind: match disk {
                None => EntryKind::PlainDirectory,
                Some(disk) => EntryKind::Mount(Box::new(MountFacts {
                    dev: 100 + *disk as u64,
                    subtree: "/".into(),
                    fs_type: "ext4".into(),
                    read_only: false,
                    failing: None,
                    deleted: false,
                    capacity_bytes: 5 << 30,
                    id: Ok(self.id(*disk)),
                    nested: Vec::new(),
                })),
            },
        });
        let directory = if self.readable {
            Directory::Read(entries.collect())
        } else {
            Directory::Unreadable("EIO".into())
        };
        let pods = self.pods.iter().map(|pod| PodMount {
            pod_uid: "pod".into(),
            pv: pod.pv.clone(),
            dev: 100 + pod.disk as u64,
            subtree: "/".into(),
        });
        Observed {
            directories: [(key.clone(), directory)].into(),
            host: HostView::Seen(pods.collect()),
            boot_id: "boot".into(),
        }
    }
}
