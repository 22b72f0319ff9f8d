//! PVs that ended although they were not let go.

use super::world::*;
use crate::cluster::{JobProgress, Phase, Pv, Use};
use crate::memory::{ClaimState, ScrubState};
use crate::names;

const SCRUB: &str = "scrub of gone pv-vol (files, filesystem uuid=a)";

fn gone(mut w: World, pv: Pv, usage: Use) -> World {
    w.gone(pv, usage).entry("vol", mount("a"));
    w
}

#[test]
fn by_what_was_last_seen_of_it() {
    let bound = || available("vol", "a").bound();
    let prebound = || bound().with(|pv| pv.phase = Phase::Available);
    let read: &[&str] = &["read default/claim"];
    for (pv, usage, actions, state) in [
        (bound().released(), Use::Used, &[SCRUB] as &[&str], "vol scrubbing"),
        (
            bound().released().policy("Retain"),
            Use::Used,
            &[],
            "vol held retain-gone",
        ),
        (bound(), Use::Used, read, "vol held claim-may-live"),
        (bound().terminating(), Use::Used, read, "vol held claim-may-live"),
        // The binding may have completed unseen.
        (prebound(), Use::Used, read, "vol held claim-may-live"),
        (
            available("vol", "a").annotated(names::USED, "c1"),
            Use::Used,
            &[SCRUB],
            "vol scrubbing",
        ),
        (
            available("vol", "a").unknown(),
            Use::Unknown,
            &[],
            "vol held unknown-use",
        ),
        (
            available("vol", "a").unknown().policy("Retain"),
            Use::Unknown,
            &[],
            "vol held unknown-use",
        ),
    ] {
        for w in both_modes() {
            gone(w, pv.clone(), usage).expect(actions, &[state], &[]);
        }
    }
}

#[test]
fn a_claim_that_lives_or_cannot_be_read_holds_its_volume() {
    let present = |uid: &str| ClaimState::Present {
        uid: uid.into(),
        volume_name: "pv-vol".into(),
    };
    for (state, policy, actions, held) in [
        (present("c1"), "Delete", &[] as &[&str], "vol held claim-may-live"),
        (
            ClaimState::Unreadable("403".into()),
            "Delete",
            &[],
            "vol held claim-may-live",
        ),
        (ClaimState::Absent, "Delete", &[SCRUB], "vol scrubbing"),
        (present("c2"), "Delete", &[SCRUB], "vol scrubbing"),
        (ClaimState::Absent, "Retain", &[], "vol held retain-gone"),
    ] {
        for w in both_modes() {
            let mut w = gone(w, available("vol", "a").bound().policy(policy), Use::Used);
            w.claim_read(4, state.clone());
            w.expect(actions, &[held], &[]);
            w.claim_read(5, state.clone());
            w.expect_actions(&["read default/claim"]);
        }
    }
}

#[test]
fn its_volume_is_scrubbed_only_if_nothing_speaks_against_it() {
    let holds: [(&str, Happens); 5] = [
        ("wrong-storage", |w| done(w.entry("vol", mount("b")))),
        ("nested-mounts", |w| {
            done(w.entry("vol", mount_with("a", |m| m.nested.push("/x".into()))))
        }),
        ("in-use", |w| done(w.pod("pv-vol", 0, "/"))),
        ("job-running", |w| {
            done(w.job("pv-vol", job("pv-vol", "uid-vol", JobProgress::AtWork)));
        }),
        ("resting", |w| done(w.blind())),
    ];
    for (slug, happens) in holds {
        let mut w = gone(world(), available("vol", "a").released(), Use::Used);
        happens(&mut w);
        w.expect(&[], &[&format!("vol held {slug}")], &[]);
    }
}

#[test]
fn a_scrub_that_runs_or_failed_counts() {
    let pv = available("vol", "a").released();
    let mut w = gone(world(), pv.clone(), Use::Used);
    w.scrub(&pv, running());
    w.expect(&[], &["vol scrubbing"], &[]);
    let due = w.now + secs(3);
    w.scrub(
        &pv,
        ScrubState::Failed {
            due,
            error: "EIO".into(),
        },
    );
    w.expect(&[], &["vol held scrub-failed"], &[]);
    assert_eq!(w.plan().wake_at, Some(due));
    w.now = due;
    w.expect_actions(&[SCRUB]);
}

#[test]
fn a_new_pv_at_its_path_has_the_say() {
    let mut w = gone(world(), available("vol", "a").released(), Use::Used);
    w.pv(available("vol", "a").with(|pv| pv.uid = "uid-new".into()));
    w.expect(&[], &["vol available"], &[]);
}
