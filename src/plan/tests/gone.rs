//! PVs that ended although they were not let go, and those that stand in for them.

use super::world::*;
use crate::cluster::{Mode, Phase, Pv, Use};
use crate::memory::{ClaimState, ScrubState};
use crate::names;
use crate::plan::Action;

const SCRUB: &str = "scrub pv-vol (files, filesystem uuid=a)";
const CREATE: &str = "create stand-in /mnt/fast/vol";

fn gone(mut w: World, pv: Pv, usage: Use) -> World {
    w.gone(pv, usage).entry("vol", mount("a"));
    w
}

/// What is made for a PV that ended, as the server has it then.
fn made(w: &World) -> Pv {
    let plan = w.plan();
    let [Action::Create(pv)] = plan.actions.as_slice() else {
        panic!("{:?}", w.actions());
    };
    let mut pv = Pv::from(pv.as_ref());
    pv.uid = "uid-new".into();
    pv
}

/// A stand-in, far enough on its way for its volume to be looked at.
fn standing_in(mut w: World, pv: Pv, usage: Use) -> World {
    w.gone(pv, usage).entry("vol", mount("a"));
    let mut pv = made(&w);
    w.memory.gone.clear();
    pv.phase = Phase::Released;
    pv.deleting = w.mode == Mode::Patch;
    w.pv(pv);
    w
}

fn bound() -> Pv {
    available("vol", "a").bound()
}

#[test]
fn another_is_made_in_its_place_whatever_it_was() {
    for (pv, usage) in [
        (bound(), Use::Used),
        (bound().released(), Use::Used),
        (bound().released().policy("Retain"), Use::Used),
        (available("vol", "a").unknown(), Use::Unknown),
        (available("vol", "a").annotated(names::USED, "c1"), Use::Used),
    ] {
        for w in both_modes() {
            let mode = w.mode;
            let mut w = gone(w, pv.clone(), usage);
            w.expect(&[CREATE], &["vol held removed-by-force"], &[]);
            let new = made(&w);
            assert_eq!((new.usage(true), &new.reclaim_policy), (usage, &pv.reclaim_policy));
            assert_eq!(new.annotation(names::VOLUME_ID), pv.annotation(names::VOLUME_ID));
            assert_eq!(new.has_our_finalizer(), mode == Mode::Patch);
            let may_live = pv.phase == Phase::Bound;
            assert_eq!(new.last_claim(), pv.claim.clone().filter(|_| may_live));
            // Whatever is there now: also what is mounted late.
            w.entry("vol", crate::observed::EntryKind::PlainDirectory);
            w.expect_actions(&[CREATE]);
        }
    }
}

#[test]
fn nothing_is_made_while_its_entry_is_not_there() {
    let mut w = world();
    w.gone(bound(), Use::Used);
    w.expect(&[], &[], &[]);
    w.unreadable("fast");
    w.expect(&[], &[], &[]);
}

#[test]
fn what_stands_in_for_a_stand_in_says_the_same() {
    let w = gone(world(), bound(), Use::Used);
    let first = made(&w);
    let w = gone(world(), first.clone(), first.usage(false));
    let second = made(&w);
    assert_eq!(second.annotations, first.annotations);
    assert_eq!((second.claim, second.finalizers), (first.claim, first.finalizers));
}

#[test]
fn the_word_to_scrub_what_a_claim_will_leave_is_no_word_to_erase_what_it_has() {
    let word = |pv: Pv| {
        let w = gone(world(), pv.annotated(names::RETAINED, "scrub"), Use::Used);
        made(&w).annotations.get(names::RETAINED).cloned()
    };
    assert_eq!(word(bound()), None);
    assert_eq!(word(bound().released()).as_deref(), Some("scrub"));
}

#[test]
fn one_whose_name_is_taken_gets_the_long_name() {
    let mut w = gone(world(), bound(), Use::Used);
    w.cluster.names_taken.insert("pv-vol".into());
    let new = made(&w);
    assert_eq!(new.name.len(), 41);
    w.cluster.names_taken.insert(new.name);
    w.expect(&[], &["vol held foreign-pv"], &[]);
}

#[test]
fn it_never_comes_into_circulation() {
    let mut w = gone(world(), bound(), Use::Used);
    let new = made(&w);
    assert_eq!(new.claim_uid(), Some(names::NO_CLAIM));
    w.memory.gone.clear();
    for phase in [Phase::Pending, Phase::Released, Phase::Available] {
        let notice: &[&str] = &["pv-vol RemovedByForce"];
        let pv = Pv { phase, ..new.clone() };
        w.pv(pv.clone());
        w.expect(&["delete pv-vol"], &["vol released"], notice);
        w.pv(Pv {
            claim: None,
            ..pv.clone()
        });
        w.expect(&["delete pv-vol"], &["vol released"], notice);
        // Its finalizer first, where it was made without.
        w.pv(Pv {
            finalizers: Vec::new(),
            ..pv
        });
        w.expect_actions(&["patch pv-vol: finalizers=local-volume-provisioner/scrub"]);
    }
    // Without permission to patch it waits for kube-controller-manager to see that its claim is not there.
    w.mode = Mode::Classic;
    w.pv(new.clone());
    w.expect_actions(&[]);
    // Without a claimRef it could be bound: it makes way for another.
    w.pv(Pv {
        claim: None,
        phase: Phase::Available,
        ..new
    });
    w.expect_actions(&["delete pv-vol"]);
}

#[test]
fn one_that_was_bound_by_hand_is_a_pv_like_any_other() {
    let by_hand = |phase| {
        let mut pv = made(&gone(world(), available("vol", "a").unknown(), Use::Unknown));
        pv.claim = bound().claim;
        Pv { phase, ..pv }
    };
    for (phase, state) in [(Phase::Available, "vol available"), (Phase::Bound, "vol bound")] {
        let mut w = world();
        w.pv(by_hand(phase)).entry("vol", mount("a"));
        assert_eq!(w.states(), [state]);
        assert_eq!(by_hand(phase).usage(false), Use::Used);
    }
    // Its claim may live, when it is removed in its turn.
    let w = gone(world(), by_hand(Phase::Bound), Use::Used);
    assert_eq!(made(&w).last_claim(), bound().claim);
}

#[test]
fn one_that_is_refused_says_why_and_has_the_labels_that_others_have() {
    let mut w = gone(world(), bound(), Use::Used);
    w.config.labels_for_pv = [("team".to_owned(), "storage".to_owned())].into();
    let plan = w.plan();
    let [Action::Create(pv)] = plan.actions.as_slice() else {
        panic!("{:?}", w.actions());
    };
    assert_eq!(pv.metadata.labels.as_ref().unwrap()["team"], "storage");
    w.memory.write_failed("pv-vol", "denied by policy".into(), w.now);
    let warning = w.plan().volumes[0].warning.clone();
    assert_eq!(warning.as_deref(), Some("its PV cannot be created: denied by policy"));
}

#[test]
fn its_volume_goes_the_way_of_the_one_that_was_removed() {
    let read: &[&str] = &["read default/claim"];
    for (pv, usage, word, actions, state) in [
        (bound().released(), Use::Used, "", &[SCRUB] as &[&str], "scrubbing"),
        (
            bound().released().policy("Retain"),
            Use::Used,
            "",
            &[],
            "held retain-deleting",
        ),
        (
            bound().released().policy("Retain"),
            Use::Used,
            "scrub",
            &[SCRUB],
            "scrubbing",
        ),
        (bound().released().policy("Retain"), Use::Used, "keep", &[], "held kept"),
        (bound(), Use::Used, "", read, "held claim-may-live"),
        (bound(), Use::Used, "scrub", read, "held claim-may-live"),
        (bound().terminating(), Use::Used, "", read, "held claim-may-live"),
        // The binding may have completed unseen.
        (
            bound().with(|pv| pv.phase = Phase::Available),
            Use::Used,
            "",
            read,
            "held claim-may-live",
        ),
        (
            available("vol", "a").annotated(names::USED, "c1"),
            Use::Used,
            "",
            &[SCRUB],
            "scrubbing",
        ),
        (
            available("vol", "a").unknown(),
            Use::Unknown,
            "",
            &[],
            "held unknown-use",
        ),
        (
            available("vol", "a").unknown(),
            Use::Unknown,
            "scrub",
            &[SCRUB],
            "scrubbing",
        ),
    ] {
        for w in both_modes() {
            let mut w = standing_in(w, pv.clone(), usage);
            if !word.is_empty() {
                let told = w.cluster.pvs["pv-vol"].clone().annotated(names::RETAINED, word);
                w.pv(told);
            }
            assert_eq!(
                (w.actions(), w.states()),
                (owned(actions), vec![format!("vol {state}")])
            );
        }
    }
}

#[test]
fn a_claim_that_lives_or_cannot_be_read_holds_its_volume() {
    let present = |uid: &str| ClaimState::Present {
        uid: uid.into(),
        volume_name: "pv-vol".into(),
    };
    let unreadable = || ClaimState::Unreadable("503".into());
    let held: (&[&str], _) = (&[], "vol held claim-may-live");
    let scrubs: (&[&str], _) = (&[SCRUB], "vol scrubbing");
    for (state, word, (actions, held)) in [
        (present("c1"), "", held),
        (present("c1"), "scrub", held),
        (unreadable(), "", held),
        (unreadable(), "scrub", held),
        (ClaimState::Forbidden("403".into()), "", held),
        (ClaimState::Forbidden("403".into()), "scrub", scrubs),
        (ClaimState::Absent, "", scrubs),
        (present("c2"), "", scrubs),
    ] {
        for w in both_modes() {
            let mut w = standing_in(w, bound(), Use::Used);
            let told = w.cluster.pvs["pv-vol"].clone().annotated(names::RETAINED, word);
            w.pv(told);
            w.claim_read(4, state.clone());
            assert_eq!((w.actions(), w.states()), (owned(actions), vec![held.to_owned()]));
            w.claim_read(5, state.clone());
            w.expect_actions(&["read default/claim"]);
        }
    }
}

#[test]
fn it_goes_when_its_volume_is_clean() {
    for w in both_modes() {
        let mut w = standing_in(w, bound().released(), Use::Used);
        let pv = w.cluster.pvs["pv-vol"].clone();
        w.scrub(&pv, clean(w.now, true));
        let expected = match w.mode {
            Mode::Patch => "let go pv-vol: finalizers=",
            Mode::Classic => "delete pv-vol and let go",
        };
        w.expect_actions(&[expected]);
    }
}

#[test]
fn what_was_volatile_and_came_anew_with_a_reboot_is_scrubbed() {
    let pv = available("vol", "a").annotated(names::VOLUME_ID, "volatile boot=boot-1 uuid=a");
    let mut w = standing_in(world(), pv.released(), Use::Used);
    w.entry("vol", mount_with("b", |m| m.id = Ok(id("volatile boot=boot-2 uuid=b"))));
    w.expect_actions(&["scrub pv-vol (files, volatile boot=boot-2 uuid=b)"]);
}

#[test]
fn a_scrub_that_runs_for_the_removed_one_is_stopped() {
    let pv = bound().released();
    let mut w = gone(world(), pv.clone(), Use::Used);
    w.scrub(&pv, ScrubState::Running);
    w.expect_actions(&["abort uid-vol", CREATE]);
}

#[test]
fn a_new_pv_at_its_path_has_the_say() {
    let mut w = gone(world(), available("vol", "a").released(), Use::Used);
    w.pv(available("vol", "a").with(|pv| pv.uid = "uid-new".into()));
    w.expect(&[], &["vol available"], &[]);
}
