//! What holds for every plan, whatever it is made from.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::world::*;
use crate::cluster::{Mode, Owner, Phase, Pv, Use};
use crate::identity::Comparison;
use crate::memory::{ClaimState, ScrubState};
use crate::names;
use crate::observed::{Directory, EntryKind, HostView};
use crate::plan::{Action, State};
use crate::reason::Held;

const SLOTS: [&str; 4] = ["vol0", "vol1", "vol2", "vol3"];
const DISKS: [&str; 4] = ["a", "b", "c", "d"];

fn any_kind() -> impl Strategy<Value = EntryKind> {
    let disk_name = prop::sample::select(&DISKS[..]);
    (disk_name, 0..14_u8).prop_map(|(uuid, what)| match what {
        0 => EntryKind::PlainDirectory,
        1 => EntryKind::Failed("EIO".into()),
        2 => EntryKind::Unresponsive("open".into()),
        3 => mount_with(uuid, |m| m.nested.push("/nested".into())),
        4 => mount_with(uuid, |m| m.read_only = true),
        5 => mount_with(uuid, |m| m.id = Err("EIO".into())),
        6 => disk(uuid),
        7 => mount_with(uuid, |m| m.failing = Some("errors".into())),
        8 => EntryKind::Failing("EIO".into()),
        _ => mount(uuid),
    })
}

fn any_pv() -> impl Strategy<Value = Pv> {
    let slot = prop::sample::select(&SLOTS[..]);
    let uuid = prop::sample::select(&DISKS[..]);
    let policy = prop::sample::select(&["Delete", "Delete", "Delete", "Retain", "Recycle"][..]);
    let flags = prop::collection::vec(prop::bool::weighted(0.2), 10);
    (slot, uuid, policy, 0..6_u8, any::<bool>(), flags).prop_map(|(slot, uuid, policy, life, terminating, flags)| {
        let mut pv = match life {
            0 => available(slot, uuid),
            1 => available(slot, uuid).unknown(),
            2 => available(slot, uuid).bound(),
            3 => available(slot, uuid).bound().with(|pv| pv.phase = Phase::Available),
            _ => available(slot, uuid).released(),
        }
        .policy(policy);
        if terminating {
            pv = pv.terminating();
        }
        type Change = fn(Pv) -> Pv;
        let changes: [(bool, Change); 8] = [
            (flags[0], |pv| pv.legacy()),
            (flags[1], |pv| pv.annotated(names::RESOLVE, "adopt")),
            (flags[2], |pv| pv.annotated(names::RETAINED, "scrub")),
            (flags[3], |pv| pv.annotated(names::RETAINED, "keep")),
            (flags[4] && flags[5], |pv| pv.without(names::PROVISIONED_BY)),
            (flags[6], |pv| pv.without(names::USED)),
            (flags[7], |pv| pv.with(|pv| pv.node_label = None)),
            (flags[8], |pv| {
                pv.with(|pv| pv.finalizers.push(names::PV_PROTECTION.into()))
            }),
        ];
        for (applies, change) in changes {
            if applies {
                pv = change(pv);
            }
        }
        pv
    })
}

#[derive(Debug, Clone)]
struct Rest {
    classic: bool,
    blind: bool,
    unreadable: bool,
    jobs: Vec<&'static str>,
    pods: Vec<(&'static str, &'static str)>,
    gone: Vec<Pv>,
    scrubs: Vec<(&'static str, u8)>,
    in_flight: Vec<&'static str>,
    claim: u8,
}

fn any_rest() -> impl Strategy<Value = Rest> {
    let few = |size| prop::collection::vec(prop::sample::select(&SLOTS[..]), 0..size);
    let disk_name = || prop::sample::select(&DISKS[..]);
    (
        (
            any::<bool>(),
            prop::bool::weighted(0.2),
            prop::bool::weighted(0.1),
            0..4_u8,
        ),
        few(2),
        prop::collection::vec((prop::sample::select(&SLOTS[..]), disk_name()), 0..2),
        prop::collection::vec(any_pv(), 0..3),
        prop::collection::vec((prop::sample::select(&SLOTS[..]), 0..5_u8), 0..4),
        few(2),
    )
        .prop_map(
            |((classic, blind, unreadable, claim), jobs, pods, gone, scrubs, in_flight)| Rest {
                classic,
                blind,
                unreadable,
                jobs,
                pods,
                gone,
                scrubs,
                in_flight,
                claim,
            },
        )
}

fn build(entries: &[(&str, EntryKind)], pvs: &[Pv], rest: &Rest) -> World {
    let mut w = world();
    w.mode = if rest.classic { Mode::Classic } else { Mode::Patch };
    for (slot, kind) in entries {
        w.entry(slot, kind.clone());
    }
    for pv in pvs {
        w.pv(pv.clone());
    }
    for gone in &rest.gone {
        let gone = gone.clone().with(|pv| pv.uid = format!("{}-gone", pv.uid));
        let usage = gone.usage(false);
        if usage != Use::Unused {
            w.gone(gone, usage);
        }
    }
    for (slot, state) in &rest.scrubs {
        let Some(pv) = w.cluster.pvs.get(&format!("pv-{slot}")).cloned() else {
            continue;
        };
        let state = match state {
            0 => running(),
            1 => clean(w.now - secs(1), false),
            2 => ScrubState::Failed {
                due: w.now + secs(1),
                error: "EIO".into(),
            },
            3 => ScrubState::HeldBack {
                due: w.now,
                held: Held::ReadOnly,
            },
            _ => clean(w.now - secs(1), true),
        };
        w.scrub(&pv, state);
    }
    for slot in &rest.jobs {
        let name = format!("pv-{slot}");
        let uid = w
            .cluster
            .pvs
            .get(&name)
            .map_or("former".to_owned(), |pv| pv.uid.clone());
        w.job(&name, job(&name, &uid, crate::cluster::JobProgress::AtWork));
    }
    for (slot, uuid) in &rest.pods {
        w.pod(&format!("pv-{slot}"), dev(uuid), "/");
    }
    for slot in &rest.in_flight {
        w.memory.in_flight.insert(format!("pv-{slot}"));
    }
    match rest.claim {
        0 => drop(w.claim_read(1, ClaimState::Absent)),
        1 => drop(w.claim_read(1, ClaimState::Unreadable("403".into()))),
        _ => {}
    }
    if rest.blind {
        w.blind();
    }
    if rest.unreadable {
        w.unreadable("fast");
    }
    w
}

fn drop(_: &mut World) {}

fn entry<'w>(w: &'w World, slot: &str) -> Option<&'w EntryKind> {
    match &w.observed.directories[&key("fast")] {
        Directory::Read(entries) => entries.iter().find(|entry| entry.name == slot).map(|entry| &entry.kind),
        _ => None,
    }
}

fn check_create(w: &World, path: &str) {
    let at = std::path::Path::new(path);
    let known: Vec<&Pv> = w
        .cluster
        .pvs
        .values()
        .chain(w.memory.gone.values().map(|gone| &gone.pv))
        .collect();
    assert!(
        known.iter().all(|pv| pv.path.as_deref() != Some(at)),
        "{path} is occupied or held"
    );
    let slot = at.file_name().unwrap().to_str().unwrap();
    let kind = entry(w, slot).unwrap();
    let EntryKind::Mount(mount) = kind else { return };
    assert!(!mount.read_only);
    let seen = mount.id.as_ref().unwrap();
    for pv in known {
        let noted = pv.annotation(names::VOLUME_ID).map(id);
        assert!(
            noted.is_none_or(|noted| noted.compare(seen) != Comparison::Same),
            "{path} is {}",
            pv.name
        );
        let shown = entry(w, pv.entry().unwrap().to_str().unwrap());
        assert!(
            !matches!(shown, Some(EntryKind::Mount(other)) if other.dev == mount.dev),
            "{path} is {}",
            pv.name
        );
    }
}

/// It stands for a PV that is gone, keeps what that one said, and nothing can be bound to it.
fn check_stand_in(w: &World, made: &k8s_openapi::api::core::v1::PersistentVolume) {
    let pv = Pv::from(made);
    let gone = &w.memory.gone[pv.path.as_ref().unwrap()];
    assert!(!w.cluster.pvs.contains_key(&pv.name) && !w.cluster.pvs.values().any(|other| other.path == pv.path));
    for key in [names::VOLUME_ID, names::CLEANER, names::CLASS_DIRECTORY] {
        assert_eq!(pv.annotation(key), gone.pv.annotation(key), "{key}");
    }
    assert_eq!(pv.reclaim_policy, gone.pv.reclaim_policy);
    assert_eq!(pv.usage(true), gone.usage);
    assert_eq!(pv.claim_uid(), Some(names::NO_CLAIM));
    assert_eq!(pv.has_our_finalizer(), w.mode == Mode::Patch);
    assert_eq!(w.ownership.of(&pv), Owner::Ours);
}

fn check_scrub(w: &World, order: &crate::plan::ScrubOrder) {
    let name = &order.pv.name;
    let live = w.cluster.pvs.get(name).filter(|pv| pv.uid == order.pv.uid);
    let pv = live.unwrap();
    let told = pv.annotation(names::RETAINED) == Some("scrub");
    match w.mode {
        Mode::Classic => assert!(
            pv.phase == Phase::Released && (pv.reclaim_policy == "Delete" || (told && pv.is_stand_in())),
            "{pv:?}"
        ),
        Mode::Patch => {
            assert!(pv.deleting && pv.has_our_finalizer() && !pv.is_protected() && pv.phase != Phase::Bound);
            assert!(
                told || (pv.reclaim_policy == "Delete" && pv.usage(false) == Use::Used),
                "{pv:?}"
            );
        }
    }
    assert!(w.cluster.jobs.at_work(name).is_none());
    let kind = entry(w, order.entry.to_str().unwrap()).unwrap();
    if let EntryKind::Mount(mount) = kind {
        assert!(!mount.read_only && mount.nested.is_empty());
        if let HostView::Seen(pods) = &w.observed.host {
            assert!(pods.iter().all(|pod| pod.pv != *name && pod.dev != mount.dev));
        }
        let noted = pv.annotation(names::VOLUME_ID);
        let adopted = pv.annotation(names::RESOLVE) == Some("adopt");
        if let (Some(noted), false) = (noted, adopted) {
            assert_eq!(id(noted).compare(mount.id.as_ref().unwrap()), Comparison::Same);
            assert_eq!(order.expected, Some(id(noted)));
        }
    }
    let scrub = w.memory.scrubs.get(&order.pv.uid);
    assert!(!matches!(scrub.map(|scrub| &scrub.state), Some(ScrubState::Running)));
}

fn check_let_go(w: &World, name: &str) {
    let pv = &w.cluster.pvs[name];
    let scrub = w.memory.scrubs.get(&pv.uid);
    let clean = scrub.is_some_and(|scrub| matches!(scrub.state, ScrubState::Clean { settled: true, .. }));
    let kept = pv.annotation(names::RETAINED) == Some("keep");
    assert!(clean || pv.usage(false) == Use::Unused || kept, "{pv:?}");
    assert!(pv.phase != Phase::Bound);
}

fn check(w: &World) {
    let plan = w.plan();
    let again = w.plan();
    assert_eq!(
        (&plan.actions, &plan.events, plan.wake_at),
        (&again.actions, &again.events, again.wake_at)
    );
    let words = |plan: &crate::plan::Plan| {
        plan.volumes
            .iter()
            .map(|volume| volume.state.word())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        words(&plan),
        words(&again),
        "same inputs, same plan (but for the progress of scrubs)"
    );
    let mut touched = BTreeSet::new();
    let mut scrubs = 0;
    for action in &plan.actions {
        let pv = match action {
            Action::Create(pv) if Pv::from(pv.as_ref()).is_stand_in() => {
                check_stand_in(w, pv);
                pv.metadata.name.clone().unwrap()
            }
            Action::Create(pv) => {
                check_create(w, &pv.spec.as_ref().unwrap().local.as_ref().unwrap().path);
                pv.metadata.name.clone().unwrap()
            }
            Action::Patch { pv, lets_go, .. } | Action::Delete { pv, lets_go, .. } => {
                if *lets_go {
                    check_let_go(w, &pv.name);
                }
                let found = &w.cluster.pvs[&pv.name];
                assert_ne!(w.ownership.of(found), Owner::Foreign);
                assert!(!matches!(action, Action::Delete { .. }) || found.phase != Phase::Bound);
                pv.name.clone()
            }
            Action::Scrub(order) => {
                scrubs += 1;
                check_scrub(w, order);
                order.pv.name.clone()
            }
            Action::AbortScrub { .. } | Action::ReadClaim(_) => continue,
            Action::CreateJob(_) => panic!("no class uses Jobs"),
            Action::DeleteJob { pv, .. } => pv.clone(),
        };
        assert!(!w.memory.in_flight.contains(&pv));
        assert!(touched.insert(pv), "two actions for one PV: {:?}", w.actions());
    }
    let running = w
        .memory
        .scrubs
        .values()
        .filter(|scrub| matches!(scrub.state, ScrubState::Running))
        .count();
    assert!(scrubs == 0 || scrubs + running <= w.limits.scrub_concurrency);
    for volume in plan.volumes.iter().filter(|volume| volume.published) {
        let pv = &w.cluster.pvs[volume.pv.as_ref().unwrap()];
        let stuck = matches!(&volume.state, State::Held(held) if !matches!(held, Held::Resting(_) | Held::Kept | Held::ClaimMayLive(_)));
        if stuck && pv.phase == Phase::Released && pv.reclaim_policy == "Delete" {
            assert!(
                plan.events.iter().any(|notice| notice.pv == pv.name),
                "{:?}: {pv:?}",
                volume.state
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_keeps_the_promises(
        kinds in prop::collection::vec(any_kind(), SLOTS.len()),
        pvs in prop::collection::vec(any_pv(), 0..4),
        rest in any_rest(),
    ) {
        let entries: Vec<_> = SLOTS.into_iter().zip(kinds).collect();
        check(&build(&entries, &pvs, &rest));
    }
}
