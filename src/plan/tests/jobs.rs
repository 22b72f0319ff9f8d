//! Scrubs in Jobs.

use super::world::*;
use crate::cluster::{JobProgress, Jobs, Mode};
use crate::names;

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
        w.cluster.jobs = Jobs::Unreadable;
        w.expect(&[], &["disk held cleaner-unavailable"], &["pv-disk VolumeFailedDelete"]);
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
