//! Scrubs in Jobs.

use super::world::*;
use crate::cluster::{JobProgress, Jobs, Mode};
use crate::names;
use crate::plan::{FailureCause, JobDevice};
use crate::reason::Held;

const MAKE: &str = "create Job cleanup-pv-disk";

/// A released device of a class that uses Jobs, in both modes; and what lets its PV go.
fn worlds() -> [(World, &'static str); 2] {
    both_modes().map(|mut w| {
        let pv = available_in("raw", "disk", "device wwn=a").released();
        let pv = if w.mode == Mode::Patch { pv.terminating() } else { pv };
        let let_go = if w.mode == Mode::Patch {
            "let go pv-disk: finalizers="
        } else {
            "delete pv-disk and let go"
        };
        w.config.use_job_for_cleaning = true;
        w.pv(pv).entry_of("raw", "disk", disk_with("a", |d| d.users = None));
        (w, let_go)
    })
}

#[test]
fn a_device_is_scrubbed_by_a_job_that_is_waited_for() {
    for (mut w, let_go) in worlds() {
        w.expect(&[MAKE], &["disk scrubbing"], &["pv-disk VolumeDelete"]);
        w.job("pv-disk", job("pv-disk", "uid-disk", JobProgress::AtWork));
        w.expect(&[], &["disk scrubbing"], &[]);
        w.job("pv-disk", job("pv-disk", "uid-disk", JobProgress::Succeeded));
        assert!(
            w.actions().iter().any(|action| action.starts_with(let_go)),
            "{:?}",
            w.actions()
        );
        w.job(
            "pv-disk",
            job("pv-disk", "uid-disk", JobProgress::Failed("no medium".into())),
        );
        w.expect_actions(&["delete Job cleanup-pv-disk"]);
    }
}

#[test]
fn the_job_of_another_release_never_counts() {
    for (mut w, _) in worlds() {
        // Of an earlier PV of the name.
        w.job("pv-disk", job("pv-disk", "former", JobProgress::Succeeded));
        w.expect(
            &["delete Job cleanup-pv-disk"],
            &["disk held job-running"],
            &["pv-disk VolumeFailedDelete"],
        );
        w.job("pv-disk", job("pv-disk", "former", JobProgress::AtWork));
        w.expect_actions(&["delete Job cleanup-pv-disk"]);
        // Of this PV, from before it was bound once more.
        let mut earlier = job("pv-disk", "uid-disk", JobProgress::Succeeded);
        earlier.claim_uid = Some("another".into());
        w.job("pv-disk", earlier);
        w.expect_actions(&["delete Job cleanup-pv-disk"]);
        // On its way out: its name is still taken.
        let mut leaving = job("pv-disk", "uid-disk", JobProgress::Succeeded);
        leaving.deleting = true;
        w.job("pv-disk", leaving);
        w.expect(&[], &["disk held job-running"], &["pv-disk VolumeFailedDelete"]);
    }
}

#[test]
fn a_job_is_only_made_where_it_can_be_read_and_run() {
    for (mut w, _) in worlds() {
        w.job_image = None;
        w.expect(&[], &["disk held cleaner-unavailable"], &["pv-disk VolumeFailedDelete"]);
        w.job_image = Some("image");
        w.cluster.jobs = Jobs::Unreadable {
            verb: "list",
            left: std::collections::BTreeMap::new(),
        };
        w.expect(&[], &["disk held cleaner-unavailable"], &["pv-disk VolumeFailedDelete"]);
    }
}

#[test]
fn a_lost_permission_names_the_verb_and_forgets_no_job_at_work() {
    for (mut w, _) in worlds() {
        let left = [("pv-disk".to_owned(), job("pv-disk", "uid-disk", JobProgress::AtWork))];
        w.cluster.jobs = Jobs::Unreadable {
            verb: "watch",
            left: left.into(),
        };
        let held = w.plan().volumes[0].state.reason().unwrap();
        assert!(
            held.contains("verb watch on jobs in namespace storage is not granted"),
            "{held}"
        );
        w.config.use_job_for_cleaning = false;
        w.expect(&[], &["disk held job-running"], &["pv-disk VolumeFailedDelete"]);
    }
}

/// What a failed Job is deleted with.
fn causes(w: &World) -> Vec<FailureCause> {
    let cause = |action: crate::plan::Action| match action {
        crate::plan::Action::DeleteJob { cause, .. } => cause.map(|cause| *cause),
        _ => None,
    };
    w.plan().actions.into_iter().filter_map(cause).collect()
}

#[test]
fn a_job_that_failed_by_a_hold_has_not_failed() {
    for (mut w, _) in worlds() {
        w.job(
            "pv-disk",
            job("pv-disk", "uid-disk", JobProgress::Failed("exit".into())),
        );
        let device = JobDevice {
            path: "/discover/raw/disk".into(),
            expected: Some(id("device wwn=a")),
        };
        assert_eq!(causes(&w), [FailureCause::Device(device)]);
        w.pod("pv-disk", 0, "/");
        assert!(matches!(&causes(&w)[..], [FailureCause::Held(Held::InUse(_))]));
        w.expect(
            &["delete Job cleanup-pv-disk"],
            &["disk held in-use"],
            &["pv-disk VolumeFailedDelete"],
        );
    }
}

#[test]
fn a_job_that_does_not_start_is_told_and_waited_for() {
    for (mut w, _) in worlds() {
        let mut waiting = job("pv-disk", "uid-disk", JobProgress::AtWork);
        waiting.started = false;
        w.job("pv-disk", waiting.clone());
        w.memory.note_jobs(&w.cluster.jobs, w.now);
        w.expect(&[], &["disk scrubbing"], &[]);
        assert_eq!(w.plan().wake_at, Some(w.now + w.limits.grace_period));
        w.now += w.limits.grace_period;
        w.memory.note_jobs(&w.cluster.jobs, w.now);
        w.expect(&[], &["disk held job-pending"], &["pv-disk VolumeFailedDelete"]);
        // Its deadline is no failure of the scrub.
        waiting.progress = JobProgress::Failed("Job was active longer than specified deadline".into());
        waiting.timed_out = true;
        w.job("pv-disk", waiting.clone());
        assert!(matches!(
            &causes(&w)[..],
            [FailureCause::Held(Held::JobPending { timed_out: true, .. })]
        ));
        waiting.started = true;
        w.job("pv-disk", waiting);
        assert!(matches!(&causes(&w)[..], [FailureCause::Device(_)]));
    }
}

#[test]
fn what_held_the_last_job_is_told_until_the_next_is_made() {
    for (mut w, _) in worlds() {
        let pv = w.cluster.pvs["pv-disk"].clone();
        w.memory
            .hold_back(&pv.uid, pv.claim_uid(), Held::InUse("pod".into()), w.now);
        w.expect(&[], &["disk held in-use"], &["pv-disk VolumeFailedDelete"]);
        w.now += secs(1);
        w.expect(&[MAKE], &["disk held in-use"], &["pv-disk VolumeFailedDelete"]);
        w.job("pv-disk", job("pv-disk", "uid-disk", JobProgress::AtWork));
        w.expect(&[], &["disk scrubbing"], &["pv-disk VolumeFailedDelete"]);
    }
}

#[test]
fn a_foreign_job_is_waited_for_and_never_deleted() {
    for (mut w, _) in worlds() {
        let mut foreign = job("pv-disk", "", JobProgress::AtWork);
        foreign.labelled = false;
        w.job("pv-disk", foreign.clone());
        w.expect(&[], &["disk held job-running"], &["pv-disk VolumeFailedDelete"]);
        w.config.use_job_for_cleaning = false;
        w.expect(&[], &["disk held job-running"], &["pv-disk VolumeFailedDelete"]);
    }
}

#[test]
fn a_job_is_not_made_for_other_storage() {
    for (mut w, _) in worlds() {
        w.entry_of("raw", "disk", disk_with("b", |d| d.users = None));
        w.expect(&[], &["disk held wrong-storage"], &["pv-disk VolumeFailedDelete"]);
    }
}

#[test]
fn a_job_on_a_volume_in_circulation_is_ended_and_a_foreign_one_is_not() {
    for mut w in both_modes() {
        let pv = available_in("raw", "disk", "device wwn=a").annotated(names::USED, "c");
        w.pv(pv).entry_of("raw", "disk", disk_with("a", |d| d.users = None));
        w.job("pv-disk", job("pv-disk", "uid-disk", JobProgress::AtWork));
        assert_eq!(w.actions(), ["delete Job cleanup-pv-disk"]);
        let mut other_node = job("pv-disk", "uid-disk", JobProgress::AtWork);
        other_node.hostname = Some("host2".into());
        w.job("pv-disk", other_node);
        assert_eq!(w.actions(), Vec::<String>::new());
    }
}
