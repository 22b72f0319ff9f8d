//! Many volumes as plain data, for measuring what passes over them cost.

// Each binary uses what it needs.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use local_volume_provisioner::cluster::{ClaimRef, Cluster, Mode, Node, Ownership, Phase, Pv, StorageClass};
use local_volume_provisioner::config::{self, Config};
use local_volume_provisioner::identity::{IdKind, VolumeId, part};
use local_volume_provisioner::memory::Memory;
use local_volume_provisioner::names;
use local_volume_provisioner::observed::{
    DeviceFacts, Directory, DirectoryKey, Entry, EntryKind, HostView, MountFacts, Observed,
};
use local_volume_provisioner::plan::{Action, Inputs, JobSettings, Limits, Plan, plan};

/// What the volumes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// File systems of their own.
    Filesystems,
    /// Directories of one file system.
    Directories,
    /// Block devices.
    Devices,
}

pub const STORAGE: [Storage; 3] = [Storage::Filesystems, Storage::Directories, Storage::Devices];

/// A node with many volumes, and what the API server says of them.
pub struct Many {
    pub config: Config,
    pub node: Node,
    pub ownership: Ownership,
    pub observed: Observed,
    pub cluster: Cluster,
    pub memory: Memory,
    pub now: Duration,
}

impl Many {
    /// Volumes that have no PVs yet.
    pub fn new(storage: Storage, count: u32) -> Self {
        let map = b"fast:\n  hostDir: /mnt/fast\n  mountDir: /mnt/fast\n".to_vec();
        let config = config::parse("", &BTreeMap::from([("storageClassMap".to_owned(), map)])).config;
        let node = Node {
            name: "node1".into(),
            uid: "11111111-2222-3333-4444-555555555555".into(),
            labels: [(names::HOSTNAME_LABEL.to_owned(), "node1".to_owned())].into(),
            ..Default::default()
        };
        let ownership = Ownership {
            node_name: node.name.clone(),
            node_uid: node.uid.clone(),
            hostname: "node1".into(),
            node_name_only: false,
        };
        let class = StorageClass {
            reclaim_policy: "Delete".into(),
            mount_options: Vec::new(),
        };
        let cluster = Cluster {
            storage_classes: [("fast".to_owned(), class)].into(),
            node: Some(node.clone()),
            ..Cluster::default()
        };
        let mut entries: Vec<Entry> = (0..count).map(|number| entry(storage, number)).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let key = DirectoryKey::from(&config.classes["fast"]);
        let observed = Observed {
            directories: [(key, Directory::Read(entries))].into(),
            host: HostView::Seen(Vec::new()),
            boot_id: "boot".into(),
        };
        Self {
            config,
            node,
            ownership,
            observed,
            cluster,
            memory: Memory::default(),
            now: Duration::from_secs(1),
        }
    }

    /// The volumes have been published, and nobody has claimed them.
    pub fn published(storage: Storage, count: u32) -> Self {
        let mut many = Self::new(storage, count);
        for (number, action) in many.plan().actions.into_iter().enumerate() {
            let Action::Create(mut object) = action else { continue };
            object.metadata.uid = Some(format!("uid-{number}"));
            object.metadata.resource_version = Some(number.to_string());
            object.metadata.creation_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            object.status = Some(PersistentVolumeStatus {
                phase: Some("Available".into()),
                last_phase_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
                ..PersistentVolumeStatus::default()
            });
            let pv = Pv::from(&*object);
            many.cluster.pvs.insert(pv.name.clone(), pv);
        }
        many
    }

    /// All claims have been deleted at once.
    pub fn released(storage: Storage, count: u32) -> Self {
        let mut many = Self::published(storage, count);
        for (number, pv) in many.cluster.pvs.values_mut().enumerate() {
            pv.phase = Phase::Released;
            pv.deleting = true;
            let uid = format!("claim-uid-{number}");
            pv.annotations.insert(names::USED, uid.as_str().into());
            pv.claim = Some(ClaimRef {
                namespace: "default".into(),
                name: format!("claim-{number}"),
                uid,
            });
        }
        many
    }

    /// The planner alone.
    pub fn plan(&self) -> Plan {
        plan(&Inputs {
            config: &self.config,
            broken_classes: &BTreeSet::new(),
            limits: Limits {
                grace_period: Duration::from_secs(60),
                discovery_period: Duration::from_secs(10),
                scrub_concurrency: 4,
                creations: usize::MAX,
                scrub_retries: 10,
            },
            mode: Mode::Patch,
            jobs: JobSettings {
                namespace: "default",
                image: None,
                bytes_per_second: None,
            },
            node: &self.node,
            ownership: &self.ownership,
            observed: &self.observed,
            cluster: &self.cluster,
            memory: &self.memory,
            progress: &BTreeMap::new(),
            now: self.now,
        })
    }

    /// All of a pass that is no system call: what is remembered before, the plan, and what is remembered of it.
    pub fn pass(&mut self) -> Plan {
        self.memory.note(&[], &self.cluster, &self.ownership, self.now);
        let plan = self.plan();
        self.memory
            .note_observed(&plan, &self.observed, &self.cluster, self.now);
        plan
    }

    /// All calls for what a pass has planned are under way.
    pub fn publishing(mut self) -> Self {
        for action in self.plan().actions {
            let Action::Create(object) = action else { continue };
            let pv = Pv::from(&*object);
            self.memory.in_flight.insert(pv.name.clone());
            self.memory.creating.insert(pv.name.clone(), pv);
        }
        self
    }
}

fn entry(storage: Storage, number: u32) -> Entry {
    let mount = |dev: u64, subtree: String, id: VolumeId| {
        EntryKind::Mount(Box::new(MountFacts {
            dev,
            subtree: subtree.into(),
            fs_type: "ext4".into(),
            read_only: false,
            failing: None,
            deleted: false,
            capacity_bytes: 1 << 30,
            id: Ok(id),
            nested: Vec::new(),
        }))
    };
    let filesystem = |number: u32| {
        let uuid = format!("{number:08x}-2b7c-4f0e-9d5a-0123456789ab");
        VolumeId::new(IdKind::Filesystem).with(part::UUID, uuid)
    };
    let kind = match storage {
        Storage::Filesystems => mount(0x800 + u64::from(number), "/".into(), filesystem(number)),
        Storage::Directories => {
            let subtree = format!("/volumes/{number}");
            let id = filesystem(0)
                .with(part::SUBTREE, subtree.clone())
                .with(part::HANDLE, format!("1-{number:016x}"));
            mount(0x800, subtree, id)
        }
        Storage::Devices => {
            let wwn = format!("naa.5000c500{number:08x}");
            EntryKind::Device(Box::new(DeviceFacts {
                dev: 0x800 + u64::from(number),
                kernel_name: format!("sd{number}"),
                capacity_bytes: 1 << 30,
                read_only: false,
                failing: None,
                id: Ok(VolumeId::new(IdKind::Device).with(part::WWN, wwn.clone())),
                storage_keys: vec![format!("dev:8:{number}"), format!("wwn:{wwn}")],
                users: Some(Vec::new()),
                member_of: None,
            }))
        }
    };
    Entry {
        name: format!("disk{number:05}").into(),
        kind,
    }
}
