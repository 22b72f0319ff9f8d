//! Volumes whose scrub fails and fails.

use super::recycling::{SCRUB, both_returning};
use super::world::*;
use crate::cluster::{Mode, Pv};
use crate::config::VolumeMode;
use crate::memory::ScrubState;
use crate::names;

/// The scrub has failed so many times in a row, and is due again.
fn failed(w: &mut World, pv: &Pv, failures: u32) {
    let state = ScrubState::Failed {
        due: w.now,
        error: "EIO".into(),
    };
    w.scrub(pv, state);
    w.memory.scrubs.get_mut(&pv.uid).unwrap().failures = failures;
}

#[test]
fn a_scrub_is_not_tried_again_after_that_many_failures() {
    for (mut w, pv) in both_returning() {
        w.limits.scrub_retries = 3;
        for failures in 1..3 {
            failed(&mut w, &pv, failures);
            w.expect_actions(&[SCRUB]);
        }
        for failures in [3, 4, 1000] {
            failed(&mut w, &pv, failures);
            w.now += secs(1_000_000);
            w.expect(&[], &["vol held quarantined"], &["pv-vol VolumeFailedDelete"]);
            let plan = w.plan();
            assert_eq!(plan.wake_at, None, "there is nothing to wait for");
            let said = format!("its scrub failed {failures} times: EIO");
            assert!(plan.events[0].message.contains(&said), "{}", plan.events[0].message);
            assert!(plan.events[0].message.contains("resolve=retry"));
        }
        // At once, even if another try was due later.
        w.memory.scrubs.get_mut(&pv.uid).unwrap().state = ScrubState::Failed {
            due: w.now + secs(5),
            error: "EIO".into(),
        };
        assert_eq!(w.states(), ["vol held quarantined"]);
    }
}

#[test]
fn the_operators_word_ends_a_quarantine() {
    for (mut w, pv) in both_returning() {
        for word in ["adopt", "RETRY", ""] {
            w.pv(pv.clone().annotated(names::RESOLVE, word));
            failed(&mut w, &pv, 10);
            assert_eq!(w.states(), ["vol held quarantined"], "{word}");
            assert_eq!(w.actions(), [""; 0], "{word}");
        }
        w.pv(pv.clone().annotated(names::RESOLVE, "retry"));
        match w.mode {
            // First it is taken back, and that is when the failures are forgotten.
            Mode::Patch => w.expect(
                &["patch pv-vol: resolve=-"],
                &["vol held quarantined"],
                &["pv-vol VolumeFailedDelete"],
            ),
            Mode::Classic => {
                w.expect_actions(&[SCRUB]);
                // As long as the word stands, at the pace of any failed scrub.
                failed(&mut w, &pv, 11);
                w.expect_actions(&[SCRUB]);
                let due = w.now + secs(3);
                let state = ScrubState::Failed {
                    due,
                    error: "EIO".into(),
                };
                w.memory.scrubs.get_mut(&pv.uid).unwrap().state = state;
                w.expect(&[], &["vol held scrub-failed"], &["pv-vol VolumeFailedDelete"]);
                assert_eq!(w.plan().wake_at, Some(due));
                w.pv(pv.clone());
                assert_eq!(w.states(), ["vol held quarantined"]);
            }
        }
        // It is no leave to scrub what may not be scrubbed.
        w.pv(pv.clone().annotated(names::RESOLVE, "retry"));
        w.memory.scrubs.clear();
        w.entry("vol", mount("other"));
        assert_eq!(
            (w.actions(), w.states()),
            (Vec::new(), owned(&["vol held wrong-storage"]))
        );
    }
}

#[test]
fn a_word_that_is_there_already_is_kept_until_it_is_needed() {
    for (mut w, pv) in both_returning() {
        w.pv(pv.clone().annotated(names::RESOLVE, "retry"));
        w.expect_actions(&[SCRUB]);
        failed(&mut w, &pv, 9);
        w.expect_actions(&[SCRUB]);
    }
}

#[test]
fn one_volume_in_quarantine_is_one_volume() {
    for (mut w, pv) in both_returning() {
        failed(&mut w, &pv, 10);
        w.limits.scrub_concurrency = 1;
        w.entry("vol2", mount("b"));
        w.pv(if w.mode == Mode::Patch {
            available("vol2", "b").released().terminating()
        } else {
            available("vol2", "b").released()
        });
        w.expect_actions(&["scrub pv-vol2 (files, filesystem uuid=b)"]);
    }
}

#[test]
fn a_device_whose_jobs_failed_is_quarantined_too() {
    for (mut w, _) in both_returning() {
        w.config.use_job_for_cleaning = true;
        w.class("raw", VolumeMode::Block);
        let mut pv = available_in("raw", "disk", "device wwn=a").released();
        if w.mode == Mode::Patch {
            pv = pv.terminating();
        }
        w.pv(pv.clone()).entry_of("raw", "disk", disk("a"));
        failed(&mut w, &pv, 10);
        let states = w.states();
        assert!(states.contains(&"disk held quarantined".to_owned()), "{states:?}");
        assert!(
            !w.actions().iter().any(|action| action.contains("Job")),
            "{:?}",
            w.actions()
        );
        w.pv(pv.clone().annotated(names::RESOLVE, "retry"));
        let wanted = match w.mode {
            Mode::Patch => "patch pv-disk: resolve=-",
            Mode::Classic => "create Job cleanup-pv-disk",
        };
        assert!(w.actions().contains(&wanted.to_owned()), "{:?}", w.actions());
    }
}
