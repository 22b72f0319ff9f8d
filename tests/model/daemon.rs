//! The daemon's loop with the real planner, store and memory, but with calls and scrubs that end when the test says.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as CoreNode, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;
use local_volume_provisioner::cluster::{Mode, Pv};
use local_volume_provisioner::config::Config;
use local_volume_provisioner::identity::Comparison;
use local_volume_provisioner::memory::{
    ClaimReading, ClaimState, Memory, Scrub, ScrubState, api_backoff, scrub_backoff,
};
use local_volume_provisioner::names;
use local_volume_provisioner::observed::Observed;
use local_volume_provisioner::plan::{Action, Inputs, JobSettings, Limits, Plan, PvRef, ScrubOrder, plan};
use local_volume_provisioner::reason::Held;
use local_volume_provisioner::store::Store;

use super::api::{Api, Refused, Seen};
use super::node::Node;

/// A call of the API: planned, or answered and not settled yet.
enum Call {
    Planned(Action),
    Read(String),
    Answered(Box<Answer>),
}

type Answer = dyn FnOnce(&mut Daemon);

/// What the test does to a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// It does not arrive.
    Lost,
    /// It arrives, and its answer does not.
    LostAnswer,
}

pub struct Daemon {
    pub store: Store,
    pub memory: Memory,
    pub mode: Mode,
    config: Config,
    gaps: u64,
    pub now: Duration,
    calls: Vec<Call>,
    pub scrubs: Vec<(ScrubOrder, bool)>,
    pub last: Plan,
}

impl Daemon {
    pub fn start(api: &mut Api, config: &Config, mode: Mode, now: Duration) -> Self {
        let mut store = Store::default();
        let node = serde_json::json!({"metadata": {
            "name": "node1", "uid": "11111111-2222-3333-4444-555555555555", "labels": {"kubernetes.io/hostname": "host1"},
        }});
        store.node(&serde_json::from_value::<CoreNode>(node).unwrap());
        let class = StorageClass {
            reclaim_policy: Some("Delete".into()),
            ..StorageClass::default()
        };
        store.classes(&BTreeMap::from([("fast".to_owned(), class)]));
        store.jobs([].into_iter());
        store.former_listed();
        let mut daemon = Self {
            store,
            memory: Memory::default(),
            mode,
            config: config.clone(),
            gaps: 0,
            now,
            calls: Vec::new(),
            scrubs: Vec::new(),
            last: Plan::default(),
        };
        daemon.relist(api);
        for pv in api.pvs.values().filter(|pv| !is_watched(mode, pv)) {
            daemon.store.read_by_name(&pv.metadata.name.clone().unwrap(), Some(pv));
        }
        daemon
    }

    /// The watch starts over.
    pub fn relist(&mut self, api: &mut Api) {
        api.watch.clear();
        self.store.pvs_restart();
        for pv in api.pvs.values().filter(|pv| is_watched(self.mode, pv)) {
            self.store.pv_listed(pv);
        }
        self.store.pvs_complete();
    }

    /// The watch shows what happened next.
    pub fn watch(&mut self, api: &mut Api) -> bool {
        let Some(seen) = api.watch.pop_front() else {
            return false;
        };
        match seen {
            Seen::Changed(pv) if is_watched(self.mode, &pv) => self.store.pv_changed(&pv),
            Seen::Changed(pv) | Seen::Gone(pv) => self.store.pv_left_watch(&pv),
        }
        true
    }

    /// One look, and calls that begin.
    pub fn pass(&mut self, observed: &Observed) {
        for name in self.store.doubtful().clone() {
            let waits = self.memory.retries.get(&name).is_some_and(|retry| retry.due > self.now);
            if !waits && self.memory.in_flight.insert(name.clone()) {
                self.calls.push(Call::Read(name));
            }
        }
        if self.store.gaps() != self.gaps {
            self.gaps = self.store.gaps();
            self.memory.watched_since_creation.clear();
        }
        let ownership = self.store.ownership().unwrap().clone();
        let node = self.store.cluster().node.clone().unwrap();
        let endings = self.store.take_endings();
        self.memory.note(&endings, self.store.cluster(), &ownership, self.now);
        let inputs = Inputs {
            config: &self.config,
            broken_classes: &std::collections::BTreeSet::new(),
            limits: Limits {
                grace_period: Duration::from_secs(60),
                discovery_period: Duration::from_secs(10),
                scrub_concurrency: 2,
                creations: usize::MAX,
                scrub_retries: u32::MAX,
            },
            mode: self.mode,
            jobs: JobSettings {
                namespace: "default",
                image: None,
                bytes_per_second: None,
            },
            node: &node,
            ownership: &ownership,
            observed,
            cluster: self.store.cluster(),
            memory: &self.memory,
            progress: &BTreeMap::new(),
            now: self.now,
        };
        let plan = plan(&inputs);
        self.memory
            .note_observed(&plan, observed, self.store.cluster(), self.now);
        self.last = plan.clone();
        for action in plan.actions {
            self.begin(action);
        }
    }

    fn begin(&mut self, action: Action) {
        let key = match &action {
            Action::Create(pv) => pv.metadata.name.clone().unwrap(),
            Action::Patch { pv, .. } | Action::Delete { pv, .. } => pv.name.clone(),
            Action::ReadClaim(claim) => format!("claim {claim}"),
            Action::CreateJob(_) | Action::DeleteJob { .. } => unreachable!("no class uses Jobs"),
            Action::AbortScrub { uid, .. } => {
                self.scrubs
                    .iter_mut()
                    .filter(|(order, _)| order.pv.uid == *uid)
                    .for_each(|scrub| scrub.1 = true);
                return;
            }
            Action::Scrub(order) => {
                let former = self.memory.scrubs.get(&order.pv.uid);
                let scrub = Scrub {
                    claim_uid: order.claim_uid.clone(),
                    failures: former.map_or(0, |scrub| scrub.failures),
                    held_back: former.map_or(0, |scrub| scrub.held_back),
                    last_hold: None,
                    state: ScrubState::Running,
                };
                self.memory.scrubs.insert(order.pv.uid.clone(), scrub);
                self.scrubs.push((order.as_ref().clone(), false));
                return;
            }
        };
        if let Action::Create(pv) = &action {
            self.memory.creating.insert(key.clone(), pv.as_ref().into());
        }
        self.memory.in_flight.insert(key);
        self.calls.push(Call::Planned(action));
    }

    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// A call takes its next step: it arrives, or its answer does.
    pub fn advance(&mut self, which: usize, api: &mut Api, fault: Fault) {
        match self.calls.swap_remove(which) {
            Call::Answered(settle) => settle(self),
            Call::Planned(action) => {
                let answer = arrive(action, api, fault, self.store.gaps());
                self.calls.push(Call::Answered(answer));
            }
            Call::Read(name) => {
                let found = api.pvs.get(&name).cloned();
                self.calls.push(Call::Answered(Box::new(move |daemon| {
                    daemon.memory.in_flight.remove(&name);
                    if fault == Fault::None {
                        daemon.memory.creating.remove(&name);
                        daemon.store.read_by_name(&name, found.as_ref());
                    } else {
                        daemon.failed(&name);
                    }
                })));
            }
        }
    }

    fn failed(&mut self, name: &str) {
        self.memory.write_failed(name, "503".into(), self.now);
    }

    fn refused(&mut self, name: &str, refused: Option<Refused>) {
        match refused {
            Some(_) => self.store.doubt(name),
            None => self.failed(name),
        }
    }

    /// A scrub ends: it checks what the real one checks, and empties what is at the path now.
    pub fn end_scrub(&mut self, which: usize, api: &Api, node: &mut Node, fails: bool) {
        let (order, aborted) = self.scrubs.swap_remove(which);
        let uid = order.pv.uid.clone();
        let result = if aborted {
            self.memory.scrubs.remove(&uid);
            return;
        } else if fails {
            Err(None)
        } else {
            scrub(&order, self.mode, api, node).map_err(Some)
        };
        let now = self.now;
        let Some(scrub) = self.memory.scrubs.get_mut(&uid) else {
            return;
        };
        match result {
            Ok(()) => {
                (scrub.failures, scrub.held_back) = (0, 0);
                scrub.state = ScrubState::Clean {
                    at: now,
                    stamp: None,
                    settled: true,
                };
            }
            Err(Some(held)) => {
                scrub.held_back += 1;
                let due = now + api_backoff(scrub.held_back);
                scrub.state = ScrubState::HeldBack { due, held };
            }
            Err(None) => {
                scrub.failures += 1;
                scrub.state = ScrubState::Failed {
                    due: now + scrub_backoff(scrub.failures),
                    error: "EIO".into(),
                };
            }
        }
    }
}

/// Whether the watch shows a PV: by label where PVs can be labelled.
fn is_watched(mode: Mode, pv: &PersistentVolume) -> bool {
    let labels = pv.metadata.labels.as_ref();
    mode == Mode::Classic || labels.is_some_and(|labels| labels.contains_key(names::NODE_LABEL))
}

/// The server gets a call; what comes back settles it.
fn arrive(action: Action, api: &mut Api, fault: Fault, gaps: u64) -> Box<Answer> {
    if fault == Fault::Lost {
        return Box::new(move |daemon| {
            let key = match &action {
                Action::Create(pv) => pv.metadata.name.clone().unwrap(),
                Action::Patch { pv, .. } | Action::Delete { pv, .. } => pv.name.clone(),
                Action::ReadClaim(claim) => format!("claim {claim}"),
                Action::CreateJob(_) | Action::DeleteJob { .. } => unreachable!("no class uses Jobs"),
                _ => return,
            };
            daemon.memory.in_flight.remove(&key);
            daemon.failed(&key);
            if matches!(action, Action::Create(_)) {
                daemon.store.doubt(&key);
            }
        });
    }
    let lost = fault == Fault::LostAnswer;
    match action {
        Action::Create(pv) => {
            let result = api.create(&pv);
            let name = pv.metadata.name.clone().unwrap();
            Box::new(move |daemon| {
                daemon.memory.in_flight.remove(&name);
                match result {
                    _ if lost => {
                        daemon.failed(&name);
                        daemon.store.doubt(&name);
                    }
                    Ok(made) => {
                        daemon.memory.creating.remove(&name);
                        daemon.memory.retries.remove(&name);
                        daemon
                            .memory
                            .watched_since_creation
                            .insert(made.metadata.uid.clone().unwrap());
                        daemon.store.pv_made(&made, gaps);
                    }
                    Err(refused) => daemon.refused(&name, Some(refused)),
                }
            })
        }
        Action::Patch { pv, patch, lets_go, .. } => {
            let result = api.patch(&pv, &patch).map(Some);
            written(pv, lets_go, result, lost)
        }
        Action::Delete { pv, lets_go, .. } => {
            let result = api.delete(&pv);
            written(pv, lets_go, result, lost)
        }
        Action::ReadClaim(claim) => {
            let state = match api.claims.get(&claim.name) {
                _ if lost => ClaimState::Unreadable("503".into()),
                None => ClaimState::Absent,
                Some(found) => ClaimState::Present {
                    uid: found.uid.clone(),
                    volume_name: found.volume.clone(),
                },
            };
            Box::new(move |daemon| {
                daemon.memory.in_flight.remove(&format!("claim {claim}"));
                let reading = ClaimReading { at: daemon.now, state };
                daemon.memory.claims.insert(claim, reading);
            })
        }
        _ => unreachable!("no call"),
    }
}

fn written(pv: PvRef, lets_go: bool, result: Result<Option<PersistentVolume>, Refused>, lost: bool) -> Box<Answer> {
    Box::new(move |daemon| {
        daemon.memory.in_flight.remove(&pv.name);
        match result {
            _ if lost => daemon.failed(&pv.name),
            Ok(rest) => {
                daemon.memory.retries.remove(&pv.name);
                if lets_go {
                    daemon.memory.let_go.insert(pv.uid.clone(), daemon.now);
                }
                let ended = |rest: &PersistentVolume| {
                    rest.metadata.deletion_timestamp.is_some()
                        && rest.metadata.finalizers.as_ref().is_none_or(Vec::is_empty)
                };
                match rest.filter(|rest| !ended(rest)) {
                    Some(rest) => daemon.store.pv_changed(&rest),
                    None => daemon.store.pv_gone(&pv.name, &pv.uid),
                }
            }
            Err(refused) => daemon.refused(&pv.name, Some(refused)),
        }
    })
}

fn scrub(order: &ScrubOrder, mode: Mode, api: &Api, node: &mut Node) -> Result<(), Held> {
    let slot = order.entry.to_str().unwrap();
    let Some(disk) = node.mounted(slot) else {
        return Err(Held::NotMounted(String::new()));
    };
    let found = node.id(disk);
    if let Some(expected) = &order.expected
        && expected.compare(&found) != Comparison::Same
    {
        return Err(Held::WrongStorage {
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }
    if node.pods.iter().any(|pod| pod.disk == disk || pod.pv == order.pv.name) {
        return Err(Held::InUse(String::new()));
    }
    let pv = api.pvs.get(&order.pv.name).map(Pv::from);
    let returning = match &pv {
        None => false,
        Some(pv) => {
            let told = (mode == Mode::Patch || pv.is_stand_in()) && pv.annotation(names::RETAINED) == Some("scrub");
            pv.uid == order.pv.uid
                && pv.claim_uid() == order.claim_uid.as_deref()
                && (pv.reclaim_policy == "Delete" || told)
                && match mode {
                    Mode::Patch => {
                        pv.deleting && pv.phase != local_volume_provisioner::cluster::Phase::Bound && !pv.is_protected()
                    }
                    Mode::Classic => pv.phase == local_volume_provisioner::cluster::Phase::Released,
                }
        }
    };
    if !returning {
        return Err(Held::InUse("its PV has changed".into()));
    }
    node.empty(disk, api);
    Ok(())
}
