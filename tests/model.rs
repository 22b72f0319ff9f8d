//! Random histories of operators, tenants, controllers and crashes against the real planner, store and memory.
//!
//! The node and the API server are small models in memory. After every step: what a claim could be bound to holds
//! nobody's data, no two PVs stand for one disk, and nothing but its tenant or a rightful scrub has changed a disk. In
//! the end the operator puts everything right, and everything must come back.

#![allow(unreachable_pub, clippy::unwrap_used)]

#[path = "model/api.rs"]
mod api;
#[path = "model/daemon.rs"]
mod daemon;
#[path = "model/node.rs"]
mod node;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use local_volume_provisioner::cluster::{Mode, Use};
use local_volume_provisioner::config::{self, Config};
use local_volume_provisioner::names;
use local_volume_provisioner::observed::DirectoryKey;
use local_volume_provisioner::plan::State;
use local_volume_provisioner::reason::Held;
use proptest::prelude::*;

use api::{Api, annotation, claim_ref, is_terminating, phase};
use daemon::{Daemon, Fault};
use node::{Disk, Node, Pod};

const DISKS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    // The operator.
    Mount(usize, usize),
    Unmount(usize),
    Swap(usize, usize),
    Readable(bool),
    DeletePv(usize),
    StripFinalizers(usize),
    /// `kubectl delete --now` and the finalizers stripped.
    ForceDelete(usize),
    StripLabel(usize),
    StripAnnotations(usize, usize),
    ClearClaimRef(usize),
    Adopt(usize),
    Retained(usize, bool),
    Policy(usize, bool),
    // Tenants.
    Bind(usize),
    StartPod(usize),
    EndPod(usize),
    DeleteClaim(usize),
    /// A claim is bound, and its pod writes.
    Use(usize),
    /// All pods end and all claims go.
    Release,
    // The machinery.
    Controllers,
    Watch(usize),
    Relist,
    Pass,
    Call(usize, Fault),
    EndScrub(usize, bool),
    Tick(u64),
    Crash,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![6 => Just(Fault::None), 1 => Just(Fault::Lost), 1 => Just(Fault::LostAnswer)];
    let one = || 0..DISKS;
    prop_oneof![
        2 => (one(), one()).prop_map(|(slot, disk)| Step::Mount(slot, disk)),
        1 => one().prop_map(Step::Unmount),
        1 => (one(), one()).prop_map(|(a, b)| Step::Swap(a, b)),
        1 => any::<bool>().prop_map(Step::Readable),
        2 => one().prop_map(Step::DeletePv),
        1 => one().prop_map(Step::StripFinalizers),
        3 => one().prop_map(Step::ForceDelete),
        1 => one().prop_map(Step::StripLabel),
        1 => (one(), one()).prop_map(|(pv, what)| Step::StripAnnotations(pv, what)),
        1 => one().prop_map(Step::ClearClaimRef),
        1 => one().prop_map(Step::Adopt),
        1 => (one(), any::<bool>()).prop_map(|(pv, keep)| Step::Retained(pv, keep)),
        1 => (one(), any::<bool>()).prop_map(|(pv, retain)| Step::Policy(pv, retain)),
        6 => one().prop_map(Step::Bind),
        6 => one().prop_map(Step::StartPod),
        4 => one().prop_map(Step::EndPod),
        6 => one().prop_map(Step::DeleteClaim),
        8 => one().prop_map(Step::Use),
        4 => Just(Step::Release),
        4 => Just(Step::Controllers),
        6 => (1..4_usize).prop_map(Step::Watch),
        1 => Just(Step::Relist),
        8 => Just(Step::Pass),
        8 => (one(), fault).prop_map(|(call, fault)| Step::Call(call, fault)),
        4 => (one(), prop::bool::weighted(0.2)).prop_map(|(scrub, fails)| Step::EndScrub(scrub, fails)),
        2 => (1..70_u64).prop_map(Step::Tick),
        1 => Just(Step::Crash),
        8 => Just(Step::Settle),
    ]
}

struct World {
    config: Config,
    key: DirectoryKey,
    api: Api,
    node: Node,
    daemon: Daemon,
    mode: Mode,
    claims: u32,
}

fn slot(number: usize) -> String {
    format!("vol{number}")
}

fn slot_of(pv: &PersistentVolume) -> String {
    let path = &pv.spec.as_ref().unwrap().local.as_ref().unwrap().path;
    path.rsplit('/').next().unwrap().to_owned()
}

/// The disk that a PV says it was published from.
fn noted(pv: &PersistentVolume) -> Option<usize> {
    annotation(pv, names::VOLUME_ID)?.rsplit("disk").next()?.parse().ok()
}

impl World {
    fn new(mode: Mode) -> Self {
        let classes = "fast: {hostDir: /mnt/fast, mountDir: /discover/fast}";
        let keys = BTreeMap::from([("storageClassMap".to_owned(), classes.into())]);
        let config = config::parse("", &keys).config;
        let key = DirectoryKey::from(&config.classes["fast"]);
        let mut api = Api::default();
        let node = Node {
            disks: vec![Disk::default(); DISKS],
            slots: (0..DISKS).map(|number| (slot(number), Some(number))).collect(),
            pods: Vec::new(),
            readable: true,
        };
        let daemon = Daemon::start(&mut api, &config, mode, Duration::from_secs(1));
        let mut world = Self {
            config,
            key,
            api,
            node,
            daemon,
            mode,
            claims: 0,
        };
        world.settle();
        world
    }

    fn pv(&self, number: usize) -> Option<PersistentVolume> {
        let count = self.api.pvs.len();
        self.api.pvs.values().nth(number % count.max(1)).cloned()
    }

    fn excuse(&mut self, disk: Option<usize>) {
        if let Some(disk) = disk
            && !self.node.disks[disk].contents.is_empty()
        {
            self.node.disks[disk].excused = true;
        }
    }

    /// What nobody can know: the PV ended, and the daemon was not there to see it, or not what happened before.
    fn excuse_untracked(&mut self, crash: bool) {
        for disk in 0..DISKS {
            let in_api = self.api.pvs.values().any(|pv| noted(pv) == Some(disk));
            let memory = &self.daemon.memory;
            let id = self.node.id(disk).to_string();
            let is_it = |pv: &local_volume_provisioner::cluster::Pv| pv.annotation(names::VOLUME_ID) == Some(&id);
            let remembered = memory.gone.values().any(|gone| is_it(&gone.pv))
                || self
                    .daemon
                    .store
                    .cluster()
                    .pvs
                    .values()
                    .any(|pv| is_it(pv) && pv.usage(true) == Use::Used);
            if !in_api && (crash || !remembered) {
                self.excuse(Some(disk));
            }
        }
    }

    fn run(&mut self, step: &Step) {
        let before = self.api.pvs.clone();
        self.take(step);
        for (name, was) in before {
            let is = self.api.pvs.get(&name).filter(|is| is.metadata.uid == was.metadata.uid);
            let unseen = self.mode == Mode::Patch
                && was
                    .metadata
                    .labels
                    .as_ref()
                    .is_none_or(|labels| !labels.contains_key(names::NODE_LABEL));
            let lost = match is {
                None => unseen || annotation(&was, names::RESOLVE).is_some(),
                Some(is) => noted(is) != noted(&was),
            };
            if lost {
                self.excuse(noted(&was));
            }
        }
        self.check();
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Mount(to, disk) => {
                let mounted = self.node.slots.values().any(|there| *there == Some(disk));
                if !mounted && self.node.mounted(&slot(to)).is_none() {
                    self.node.slots.insert(slot(to), Some(disk));
                }
            }
            Step::Unmount(from) => drop(self.node.slots.insert(slot(from), None)),
            Step::Swap(a, b) => {
                let (at_a, at_b) = (self.node.mounted(&slot(a)), self.node.mounted(&slot(b)));
                self.node.slots.insert(slot(a), at_b);
                self.node.slots.insert(slot(b), at_a);
            }
            Step::Readable(readable) => self.node.readable = readable,
            Step::Bind(number) | Step::DeleteClaim(number) | Step::StartPod(number) | Step::EndPod(number) => {
                self.tenant(step, number);
            }
            Step::Use(number) => {
                let pods = self.node.pods.len();
                self.tenant(&Step::Bind(number), number);
                self.api.reconcile();
                self.tenant(&Step::StartPod(number), number);
                self.tenant(&Step::EndPod(pods), pods);
            }
            Step::Release => {
                self.node.pods.clear();
                self.api.claims.clear();
                self.api.reconcile();
            }
            Step::Controllers => self.api.reconcile(),
            Step::Watch(count) => {
                for _ in 0..count {
                    self.daemon.watch(&mut self.api);
                }
            }
            Step::Relist => {
                self.excuse_untracked(false);
                self.daemon.relist(&mut self.api);
            }
            Step::Pass => self.pass(),
            Step::Call(call, fault) if call < self.daemon.calls() => self.daemon.advance(call, &mut self.api, fault),
            Step::EndScrub(scrub, fails) if scrub < self.daemon.scrubs.len() => {
                self.daemon.end_scrub(scrub, &self.api, &mut self.node, fails);
            }
            Step::Call(..) | Step::EndScrub(..) => {}
            Step::Tick(seconds) => self.tick(seconds),
            Step::Crash => {
                self.excuse_untracked(true);
                self.daemon = Daemon::start(&mut self.api, &self.config, self.mode, Duration::from_secs(1));
            }
            Step::Settle => self.settle(),
            ref by_hand => self.by_hand(by_hand),
        }
    }

    fn by_hand(&mut self, step: &Step) {
        let (Step::DeletePv(number)
        | Step::StripFinalizers(number)
        | Step::ForceDelete(number)
        | Step::StripLabel(number)
        | Step::StripAnnotations(number, _)
        | Step::ClearClaimRef(number)
        | Step::Adopt(number)
        | Step::Retained(number, _)
        | Step::Policy(number, _)) = *step
        else {
            return;
        };
        let Some(pv) = self.pv(number) else { return };
        let name = pv.metadata.name.clone().unwrap();
        let annotate = |pv: &mut PersistentVolume, key: &str, value: &str| {
            let annotations = pv.metadata.annotations.get_or_insert_default();
            annotations.insert(key.into(), value.into());
        };
        match *step {
            Step::DeletePv(_) => self.api.delete_by_hand(&name),
            Step::ForceDelete(_) => {
                self.api.delete_by_hand(&name);
                self.api.edit(&name, |pv| pv.metadata.finalizers = None);
            }
            Step::StripFinalizers(_) => self.api.edit(&name, |pv| pv.metadata.finalizers = None),
            Step::StripLabel(_) => self.api.edit(&name, |pv| pv.metadata.labels = None),
            Step::StripAnnotations(_, what) => {
                let keys: &[&str] = match what {
                    0 => &[names::USED, names::BOUND_BY_CONTROLLER],
                    _ => &[names::PROVISIONED_BY],
                };
                self.api.edit(&name, |pv| {
                    let annotations = pv.metadata.annotations.get_or_insert_default();
                    keys.iter().for_each(|key| drop(annotations.remove(*key)));
                });
            }
            Step::ClearClaimRef(_) if phase(&pv) == "Released" => {
                self.excuse(noted(&pv));
                self.api.edit(&name, |pv| pv.spec.as_mut().unwrap().claim_ref = None);
            }
            Step::Adopt(_) => {
                // Whatever was published, the operator does not ask for it any more.
                if let Some(disk) = noted(&pv) {
                    self.node.disks[disk].excused = true;
                }
                self.api.edit(&name, |pv| annotate(pv, names::RESOLVE, "adopt"));
            }
            Step::Retained(_, keep) => {
                if keep {
                    self.excuse(noted(&pv));
                }
                let word = if keep { "keep" } else { "scrub" };
                self.api.edit(&name, |pv| annotate(pv, names::RETAINED, word));
            }
            Step::Policy(_, retain) => {
                let policy = if retain { "Retain" } else { "Delete" };
                self.api.edit(&name, |pv| {
                    pv.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some(policy.into());
                });
            }
            _ => {}
        }
    }

    fn tenant(&mut self, step: &Step, number: usize) {
        match step {
            Step::Bind(_) => {
                let Some(pv) = self.pv(number) else { return };
                if phase(&pv) == "Available" && !is_terminating(&pv) && claim_ref(&pv).is_none() {
                    self.claims += 1;
                    self.api.seconds += 3;
                    // Like a StatefulSet, claims take the names of former ones.
                    let name = format!("claim-{}", self.claims % 4);
                    if !self.api.claims.contains_key(&name) {
                        let uid = format!("c{}", self.claims);
                        self.api.prebind(pv.metadata.name.as_ref().unwrap(), &name, &uid);
                    }
                }
            }
            Step::DeleteClaim(_) => {
                let name = self.api.claims.keys().nth(number).cloned();
                name.and_then(|name| self.api.claims.remove(&name));
            }
            Step::StartPod(_) => {
                let Some(pv) = self.pv(number) else { return };
                let disk = self
                    .node
                    .mounted(&slot_of(&pv))
                    .filter(|disk| noted(&pv) == Some(*disk));
                let claim = claim_ref(&pv).and_then(|reference| reference.uid.clone());
                if let (Some(disk), Some(claim), "Bound") = (disk, claim, phase(&pv)) {
                    let found = &mut self.node.disks[disk];
                    let others = found.contents.iter().any(|writer| *writer != claim);
                    assert!(!others || found.excused, "{claim} finds {found:?}");
                    found.contents.insert(claim.clone());
                    let pv = pv.metadata.name.unwrap();
                    self.node.pods.push(Pod { pv, disk, claim });
                }
            }
            _ if number < self.node.pods.len() => {
                // The last it does is to write.
                let pod = self.node.pods.remove(number);
                self.node.disks[pod.disk].contents.insert(pod.claim);
            }
            _ => {}
        }
    }

    fn tick(&mut self, seconds: u64) {
        self.daemon.now += Duration::from_secs(seconds);
        self.api.seconds += i64::try_from(seconds).unwrap();
    }

    fn pass(&mut self) {
        self.daemon.pass(&self.node.observe(&self.key));
    }

    /// Everything that is under way ends, for a second.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.api.reconcile();
            while self.daemon.watch(&mut self.api) {}
            self.pass();
            while self.daemon.calls() > 0 {
                self.daemon.advance(0, &mut self.api, Fault::None);
            }
            while !self.daemon.scrubs.is_empty() {
                self.daemon.end_scrub(0, &self.api, &mut self.node, false);
            }
            self.check();
        }
        self.check_one_pv_for_each_disk();
        self.tick(1);
    }

    /// Where disks change places while a PV is being made there are two for a moment: the wrong one is withdrawn by the
    /// next pass.
    fn check_one_pv_for_each_disk(&self) {
        let mut standing = BTreeMap::new();
        for (name, pv) in self.api.pvs.iter().filter(|(_, pv)| !is_terminating(pv)) {
            if let Some(other) = noted(pv).and_then(|disk| standing.insert(disk, name)) {
                panic!("{other} and {name} stand for one disk");
            }
        }
    }

    fn check(&self) {
        for (name, pv) in &self.api.pvs {
            let Some(disk) = noted(pv) else { continue };
            let can_be_bound =
                matches!(phase(pv), "Available" | "Pending") && !is_terminating(pv) && claim_ref(pv).is_none();
            let found = &self.node.disks[disk];
            assert!(
                !can_be_bound || found.contents.is_empty() || found.excused,
                "{name} can be bound, and disk {disk} holds {:?}",
                found.contents
            );
        }
    }

    /// The operator and the tenants put everything right.
    fn put_right(&mut self) {
        self.settle();
        self.node.pods.clear();
        self.node.readable = true;
        self.api.claims.clear();
        for name in self.api.pvs.keys().cloned().collect::<Vec<_>>() {
            let by = local_volume_provisioner::store::Store::ownership(&self.daemon.store)
                .unwrap()
                .provisioned_by();
            self.api.edit(&name, |pv| {
                pv.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Delete".into());
                let annotations = pv.metadata.annotations.get_or_insert_default();
                annotations.insert(names::RETAINED.into(), "scrub".into());
                annotations.insert(names::PROVISIONED_BY.into(), by);
            });
        }
        let mut homes: BTreeMap<String, Option<usize>> = (0..DISKS).map(|number| (slot(number), None)).collect();
        for pv in self.api.pvs.values() {
            homes.insert(slot_of(pv), noted(pv));
        }
        for (path, gone) in &self.daemon.memory.gone {
            let slot = path.file_name().unwrap().to_str().unwrap().to_owned();
            let disk = gone
                .pv
                .annotation(names::VOLUME_ID)
                .and_then(|id| id.rsplit("disk").next()?.parse().ok());
            if homes[&slot].is_none() && !homes.values().any(|other| *other == disk) {
                homes.insert(slot, disk);
            }
        }
        for disk in 0..DISKS {
            if !homes.values().any(|home| *home == Some(disk)) {
                *homes.values_mut().find(|home| home.is_none()).unwrap() = Some(disk);
            }
        }
        self.node.slots = homes;
    }

    /// What the operator does where a hold asks for it.
    fn follow_advice(&mut self) {
        self.api.reconcile();
        for (name, pv) in self.api.pvs.clone() {
            if phase(&pv) == "Failed" {
                self.api.delete_by_hand(&name);
            }
        }
        let asked = |state: &State| {
            matches!(
                state,
                State::Held(Held::RetainDeleting | Held::UnknownUse | Held::Kept | Held::ClaimMayLive(_))
            )
        };
        for volume in self.daemon.last.volumes.clone() {
            if let (Some(name), true) = (volume.pv, asked(&volume.state)) {
                self.api.edit(&name, |pv| {
                    let annotations = pv.metadata.annotations.get_or_insert_default();
                    annotations.insert(names::RETAINED.into(), "scrub".into());
                });
            }
        }
    }

    fn all_are_back(&self) -> bool {
        self.node.slots.iter().all(|(slot, disk)| {
            self.api.pvs.values().any(|pv| {
                slot_of(pv) == *slot
                    && noted(pv) == *disk
                    && phase(pv) == "Available"
                    && !is_terminating(pv)
                    && claim_ref(pv).is_none()
            })
        })
    }
}

fn history(mode: Mode, steps: &[Step]) {
    let mut world = World::new(mode);
    assert!(world.all_are_back(), "three disks are published");
    for step in steps {
        world.run(step);
    }
    world.put_right();
    for round in 0..20 {
        if round > 2 && world.all_are_back() {
            break;
        }
        world.settle();
        world.follow_advice();
        world.tick(301);
    }
    let states: Vec<_> = world
        .daemon
        .last
        .volumes
        .iter()
        .map(|volume| (&volume.entry, &volume.pv, &volume.state))
        .collect();
    assert!(world.all_are_back(), "{states:?}\n{:?}", world.node.slots);
    assert!(
        world
            .node
            .disks
            .iter()
            .all(|disk| disk.contents.is_empty() || disk.excused)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4 * ProptestConfig::default().cases, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_leaks_or_loses_with_patch(steps in prop::collection::vec(step(), 1..60)) {
        history(Mode::Patch, &steps);
    }

    #[test]
    fn no_history_leaks_or_loses_in_classic_mode(steps in prop::collection::vec(step(), 1..60)) {
        history(Mode::Classic, &steps);
    }
}

/// Histories that once went wrong.
#[test]
fn a_disk_that_moves_while_its_pv_is_being_made_gets_one_pv() {
    let steps = [
        Step::StripFinalizers(0),
        Step::Swap(1, 2),
        Step::Unmount(2),
        Step::Settle,
        Step::DeletePv(0),
        Step::Watch(1),
        Step::Pass,
        Step::Swap(1, 2),
        Step::Pass,
        Step::Readable(false),
    ];
    for mode in [Mode::Classic, Mode::Patch] {
        history(mode, &steps);
    }
}
