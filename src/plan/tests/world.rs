//! A node and its cluster in a few words, and a plan in a few words.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::cluster::{
    ClaimRef, CleaningJob, Cluster, JobProgress, Jobs, Mode, Node, Ownership, Phase, Pv, StorageClass, Use,
};
use crate::config::{Class, Config, VolumeMode};
use crate::identity::VolumeId;
use crate::memory::{ClaimReading, ClaimState, GonePv, Memory, Scrub, ScrubState};
use crate::name_pattern::NamePattern;
use crate::names;
use crate::observed::{
    DeviceFacts, Directory, DirectoryKey, Entry, EntryKind, HostView, MountFacts, Observed, PodMount,
};
use crate::plan::{Action, Inputs, JobSettings, Limits, Plan, PvPatch, ScrubKind, State, plan};
use crate::scrub::progress::Snapshot;

pub(super) const NODE_UID: &str = "11111111-2222-3333-4444-555555555555";
pub(super) const BOOT: &str = "boot-2";

/// Something that happens to a world.
pub(super) type Happens = fn(&mut World);

pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Everything that a plan is made from: the classes `fast` (Filesystem) and `raw` (Block) in `/mnt/<class>`, empty and
/// read; the node is `node1`, sees pods' mounts, and has been watched for 1000 s.
pub(super) struct World {
    pub(super) config: Config,
    pub(super) broken_classes: std::collections::BTreeSet<String>,
    pub(super) limits: Limits,
    pub(super) mode: Mode,
    pub(super) node: Node,
    pub(super) ownership: Ownership,
    pub(super) observed: Observed,
    pub(super) cluster: Cluster,
    pub(super) memory: Memory,
    pub(super) progress: BTreeMap<String, Snapshot>,
    pub(super) job_image: Option<&'static str>,
    pub(super) now: Duration,
}

pub(super) fn world() -> World {
    let node = Node {
        name: "node1".into(),
        uid: NODE_UID.into(),
        labels: [(names::HOSTNAME_LABEL.to_owned(), "host1".to_owned())].into(),
        ..Default::default()
    };
    let mut world = World {
        config: Config::default(),
        broken_classes: std::collections::BTreeSet::new(),
        limits: Limits {
            grace_period: secs(60),
            discovery_period: secs(10),
            scrub_concurrency: 4,
            creations: usize::MAX,
            scrub_retries: 10,
        },
        mode: Mode::Patch,
        ownership: Ownership {
            node_name: node.name.clone(),
            node_uid: node.uid.clone(),
            hostname: "host1".into(),
            node_name_only: false,
        },
        observed: Observed {
            directories: BTreeMap::new(),
            host: HostView::Seen(Vec::new()),
            boot_id: BOOT.into(),
        },
        cluster: Cluster {
            node: Some(node.clone()),
            ..Default::default()
        },
        node,
        memory: Memory::default(),
        progress: BTreeMap::new(),
        job_image: Some("image"),
        now: secs(1000),
    };
    world.class("fast", VolumeMode::Filesystem);
    world.class("raw", VolumeMode::Block);
    world
}

pub(super) fn both_modes() -> [World; 2] {
    let mut classic = world();
    classic.mode = Mode::Classic;
    [world(), classic]
}

pub(super) fn key(class: &str) -> DirectoryKey {
    DirectoryKey::new(class, format!("/mnt/{class}"), format!("/discover/{class}"))
}

impl World {
    pub(super) fn class(&mut self, name: &str, volume_mode: VolumeMode) -> &mut Class {
        self.cluster.storage_classes.insert(
            name.into(),
            StorageClass {
                reclaim_policy: "Delete".into(),
                mount_options: Vec::new(),
            },
        );
        self.observed.directories.insert(key(name), Directory::Read(Vec::new()));
        self.config.classes.entry(name.into()).or_insert(Class {
            name: name.into(),
            host_dir: key(name).host_dir.clone(),
            mount_dir: key(name).mount_dir.clone(),
            volume_mode,
            access_mode: "ReadWriteOnce".into(),
            fs_type: None,
            name_pattern: NamePattern::default(),
            block_cleaner_command: None,
            selector: Vec::new(),
        })
    }

    pub(super) fn fast(&mut self) -> &mut Class {
        self.config.classes.get_mut("fast").unwrap()
    }

    /// Puts an entry into the directory of class `fast`.
    pub(super) fn entry(&mut self, name: &str, kind: EntryKind) -> &mut Self {
        self.entry_of("fast", name, kind)
    }

    pub(super) fn entry_of(&mut self, class: &str, name: &str, kind: EntryKind) -> &mut Self {
        let Some(Directory::Read(entries)) = self.observed.directories.get_mut(&key(class)) else {
            panic!("{class} is not readable");
        };
        entries.retain(|entry| entry.name != name);
        entries.push(Entry {
            name: name.into(),
            kind,
        });
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }

    pub(super) fn unreadable(&mut self, class: &str) -> &mut Self {
        let unreadable = Directory::Unreadable("EIO".into());
        self.observed.directories.insert(key(class), unreadable);
        self
    }

    pub(super) fn pv(&mut self, pv: Pv) -> &mut Self {
        self.cluster.pvs.insert(pv.name.clone(), pv);
        self
    }

    /// A pod has the volume of this PV mounted.
    pub(super) fn pod(&mut self, pv: &str, dev: u64, subtree: &str) -> &mut Self {
        let mount = PodMount {
            pod_uid: "pod1".into(),
            pv: pv.into(),
            dev,
            subtree: subtree.into(),
        };
        match &mut self.observed.host {
            HostView::Seen(mounts) => mounts.push(mount),
            host => *host = HostView::Seen(vec![mount]),
        }
        self
    }

    pub(super) fn blind(&mut self) -> &mut Self {
        self.observed.host = HostView::Blind("not mounted".into());
        self
    }

    /// This process remembers that the PV ended without being let go.
    pub(super) fn gone(&mut self, pv: Pv, usage: Use) -> &mut Self {
        self.memory.gone.insert(pv.path.clone().unwrap(), GonePv { pv, usage });
        self
    }

    pub(super) fn scrub(&mut self, pv: &Pv, state: ScrubState) -> &mut Self {
        let scrub = Scrub {
            claim_uid: pv.claim_uid().map(str::to_owned),
            failures: u32::from(matches!(state, ScrubState::Failed { .. })),
            held_back: 0,
            last_hold: None,
            state,
        };
        self.memory.scrubs.insert(pv.uid.clone(), scrub);
        self
    }

    /// The claim `default/claim` was read `ago` seconds ago.
    pub(super) fn claim_read(&mut self, ago: u64, state: ClaimState) -> &mut Self {
        let reading = ClaimReading {
            at: self.now - secs(ago),
            state,
        };
        self.memory.claims.insert(claim("c1"), reading);
        self
    }

    pub(super) fn inputs(&self) -> Inputs<'_> {
        Inputs {
            config: &self.config,
            broken_classes: &self.broken_classes,
            limits: self.limits,
            mode: self.mode,
            jobs: JobSettings {
                namespace: "storage",
                image: self.job_image,
                bytes_per_second: None,
            },
            node: &self.node,
            ownership: &self.ownership,
            observed: &self.observed,
            cluster: &self.cluster,
            memory: &self.memory,
            progress: &self.progress,
            now: self.now,
        }
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&self.inputs())
    }

    /// The planned actions, in words.
    pub(super) fn actions(&self) -> Vec<String> {
        self.plan().actions.iter().map(in_words).collect()
    }

    /// `<entry> <state> [<reason>]`, one for each row.
    pub(super) fn states(&self) -> Vec<String> {
        self.plan().volumes.iter().map(state_in_words).collect()
    }

    /// `<PV or claim> <reason of the event>`, one for each notice.
    pub(super) fn notices(&self) -> Vec<String> {
        let plan = self.plan();
        plan.events
            .iter()
            .map(|notice| {
                let claim = notice.claim.as_ref().map(ToString::to_string);
                format!("{} {}", claim.unwrap_or_else(|| notice.pv.clone()), notice.reason)
            })
            .collect()
    }

    /// Asserts everything about a plan.
    #[track_caller]
    pub(super) fn expect(&self, actions: &[&str], states: &[&str], notices: &[&str]) {
        assert_eq!(
            (self.actions(), self.states(), self.notices()),
            (owned(actions), owned(states), owned(notices)),
            "(actions, states, notices)"
        );
    }

    #[track_caller]
    pub(super) fn expect_actions(&self, actions: &[&str]) {
        assert_eq!(self.actions(), owned(actions), "{:?}", self.states());
    }
}

pub(super) fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn in_words(action: &Action) -> String {
    match action {
        Action::Create(pv) => {
            let local = pv.spec.as_ref().and_then(|spec| spec.local.as_ref());
            let stand_in = Pv::from(pv.as_ref()).is_stand_in();
            let what = if stand_in { "stand-in " } else { "" };
            format!("create {what}{}", local.unwrap().path)
        }
        Action::Patch { pv, patch, lets_go, .. } => {
            let verb = if *lets_go { "let go" } else { "patch" };
            format!("{verb} {}:{}", pv.name, patch_in_words(patch))
        }
        Action::Delete { pv, lets_go, .. } => {
            format!("delete {}{}", pv.name, if *lets_go { " and let go" } else { "" })
        }
        Action::Scrub(order) => {
            let kind = match &order.kind {
                ScrubKind::Filesystem => "files",
                device => device.word(),
            };
            let expected = order.expected.as_ref().map_or("any".into(), ToString::to_string);
            format!("scrub {} ({kind}, {expected})", order.pv.name)
        }
        Action::AbortScrub { uid, .. } => format!("abort {uid}"),
        Action::ReadClaim(claim) => format!("read {claim}"),
        Action::CreateJob(order) => format!("create Job {}", order.job.metadata.name.as_deref().unwrap_or_default()),
        Action::DeleteJob { job, .. } => format!("delete Job {}", job.name),
    }
}

fn patch_in_words(patch: &PvPatch) -> String {
    let mut words = String::new();
    if patch.node_label.is_some() {
        words += " label";
    }
    if let Some(finalizers) = &patch.finalizers {
        words += &format!(" finalizers={}", finalizers.join(","));
    }
    if let Some(capacity) = &patch.capacity {
        words += &format!(" capacity={capacity}");
    }
    for (key, value) in &patch.annotations {
        let key = key.rsplit('/').next().unwrap_or_default();
        words += &format!(" {key}={}", value.as_deref().unwrap_or("-"));
    }
    words
}

fn state_in_words(volume: &crate::plan::Volume) -> String {
    let slug = match &volume.state {
        State::Held(held) => held.slug(),
        State::Ignored(ignored) => ignored.slug(),
        _ => "",
    };
    format!("{} {} {slug}", volume.entry.to_string_lossy(), volume.state.word())
        .trim()
        .to_owned()
}

pub(super) fn id(text: &str) -> VolumeId {
    text.parse().unwrap()
}

/// A filesystem of 5 GiB with this UUID, on a device of its own.
pub(super) fn mount(uuid: &str) -> EntryKind {
    mount_with(uuid, |_| {})
}

pub(super) fn mount_with(uuid: &str, change: impl FnOnce(&mut MountFacts)) -> EntryKind {
    let mut facts = MountFacts {
        dev: dev(uuid),
        subtree: PathBuf::from("/"),
        fs_type: "ext4".into(),
        read_only: false,
        failing: None,
        deleted: false,
        capacity_bytes: 5 << 30,
        id: Ok(id(&format!("filesystem uuid={uuid}"))),
        nested: Vec::new(),
    };
    change(&mut facts);
    EntryKind::Mount(Box::new(facts))
}

/// A device number for a name.
pub(super) fn dev(name: &str) -> u64 {
    // 8:16, 8:17, ...: what a kernel could show.
    name.bytes().fold(16, |sum, byte| sum + u64::from(byte)) | 8 << 8
}

/// A disk of 5 GiB with this WWN, examined and used by nothing.
pub(super) fn disk(wwn: &str) -> EntryKind {
    disk_with(wwn, |_| {})
}

pub(super) fn disk_with(wwn: &str, change: impl FnOnce(&mut DeviceFacts)) -> EntryKind {
    let mut facts = DeviceFacts {
        dev: dev(wwn),
        kernel_name: format!("sd{wwn}"),
        capacity_bytes: 5 << 30,
        read_only: false,
        failing: None,
        id: Ok(id(&format!("device wwn={wwn}"))),
        storage_keys: vec![format!("wwn:{wwn}")],
        users: Some(Vec::new()),
        member_of: None,
    };
    change(&mut facts);
    EntryKind::Device(Box::new(facts))
}

pub(super) fn claim(uid: &str) -> ClaimRef {
    ClaimRef {
        namespace: "default".into(),
        name: "claim".into(),
        uid: uid.into(),
    }
}

/// An Available PV of class `fast` as this program makes it, for the filesystem with this UUID: `pv-<entry>`, UID
/// `uid-<entry>`, never bound.
pub(super) fn available(entry: &str, uuid: &str) -> Pv {
    available_in("fast", entry, &format!("filesystem uuid={uuid}"))
}

pub(super) fn available_in(class: &str, entry: &str, id: &str) -> Pv {
    let created: Timestamp = "2025-01-01T00:00:00Z".parse().unwrap();
    let annotations = [
        (
            names::PROVISIONED_BY,
            format!("local-volume-provisioner-node1-{NODE_UID}"),
        ),
        (names::VOLUME_ID, id.to_owned()),
        (names::CLEANER, r#"["zero"]"#.to_owned()),
        (names::CLASS_DIRECTORY, key(class).mount_dir.display().to_string()),
    ];
    Pv {
        name: format!("pv-{entry}"),
        uid: format!("uid-{entry}"),
        resource_version: "7".into(),
        created: Some(created),
        deleting: false,
        finalizers: vec![names::PV_PROTECTION.into(), names::FINALIZER.into()],
        node_label: Some("host1".into()),
        annotations: annotations
            .into_iter()
            .map(|(key, value)| (key, value.into()))
            .collect(),
        class: class.into(),
        path: Some(Path::new("/mnt").join(class).join(entry)),
        hostnames: vec!["host1".into()],
        capacity: "5Gi".into(),
        mode: if class == "raw" {
            VolumeMode::Block
        } else {
            VolumeMode::Filesystem
        },
        reclaim_policy: "Delete".into(),
        claim: None,
        phase: Phase::Available,
        phase_since: Some(created),
        ..Pv::from(&k8s_openapi::api::core::v1::PersistentVolume::default())
    }
}

/// Changes to a PV, to be chained.
pub(super) trait Changed {
    fn with(self, change: impl FnOnce(&mut Pv)) -> Pv;
    fn annotated(self, key: &'static str, value: &str) -> Pv;
    fn without(self, key: &str) -> Pv;
    /// Bound to `default/claim` with UID c1, and marked.
    fn bound(self) -> Pv;
    /// The claim was deleted.
    fn released(self) -> Pv;
    /// Being deleted; nothing protects it any more.
    fn terminating(self) -> Pv;
    /// Nothing tells whether it was ever bound.
    fn unknown(self) -> Pv;
    /// As the classic program made it.
    fn legacy(self) -> Pv;
    fn policy(self, policy: &str) -> Pv;
}

impl Changed for Pv {
    fn with(mut self, change: impl FnOnce(&mut Pv)) -> Pv {
        change(&mut self);
        self
    }

    fn annotated(self, key: &'static str, value: &str) -> Pv {
        self.with(|pv| drop(pv.annotations.insert(key, value.into())))
    }

    fn without(self, key: &str) -> Pv {
        self.with(|pv| drop(pv.annotations.remove(key)))
    }

    fn bound(self) -> Pv {
        self.annotated(names::USED, "c1").with(|pv| {
            pv.claim = Some(claim("c1"));
            pv.phase = Phase::Bound;
            pv.phase_since = Some("2025-01-02T00:00:00Z".parse().unwrap());
        })
    }

    fn released(self) -> Pv {
        self.bound().with(|pv| pv.phase = Phase::Released)
    }

    fn terminating(self) -> Pv {
        self.with(|pv| {
            pv.deleting = true;
            pv.finalizers.retain(|finalizer| finalizer != names::PV_PROTECTION);
        })
    }

    fn unknown(self) -> Pv {
        self.with(|pv| pv.phase_since = Some("2025-01-02T00:00:00Z".parse().unwrap()))
    }

    fn legacy(self) -> Pv {
        let ours = [names::VOLUME_ID, names::CLEANER, names::CLASS_DIRECTORY, names::USED];
        self.with(|pv| {
            pv.annotations.retain(|key, _| !ours.contains(key));
            pv.finalizers.retain(|finalizer| finalizer != names::FINALIZER);
            pv.node_label = None;
        })
    }

    fn policy(self, policy: &str) -> Pv {
        self.with(|pv| pv.reclaim_policy = policy.to_owned())
    }
}

pub(super) fn running() -> ScrubState {
    ScrubState::Running
}

pub(super) fn clean(at: Duration, settled: bool) -> ScrubState {
    ScrubState::Clean {
        at,
        stamp: None,
        settled,
    }
}

/// A cleaning Job of a PV's UID on this node.
pub(super) fn job(pv: &str, pv_uid: &str, progress: JobProgress) -> CleaningJob {
    CleaningJob {
        name: format!("cleanup-{pv}"),
        uid: format!("uid-of-cleanup-{pv}"),
        resource_version: "1".into(),
        pv_uid: pv_uid.into(),
        claim_uid: None,
        hostname: Some("host1".into()),
        deleting: false,
        labelled: true,
        node_name: Some("node1".into()),
        created: None,
        started: true,
        timed_out: false,
        progress,
        took: None,
    }
}

impl World {
    /// There is this cleaning Job.
    pub(super) fn job(&mut self, pv: &str, job: CleaningJob) -> &mut Self {
        if let Jobs::Read(jobs) = &mut self.cluster.jobs {
            jobs.insert(pv.into(), job);
        }
        self
    }
}

/// Ends a chain of changes in a table.
pub(super) fn done(_: &mut World) {}
