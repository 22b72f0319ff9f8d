//! Storage that fails, becomes read-only, hangs or goes: what is withdrawn, and who is told.

use super::world::*;
use crate::cluster::Pv;
use crate::names;
use crate::observed::EntryKind;
use crate::plan::{Health, Notice, Severity};
use crate::reason::Ailment;

const ABNORMAL: &str = "pv-vol VolumeConditionAbnormal";

/// What a volume may show, and the hold that follows from it.
fn defects() -> Vec<(&'static str, EntryKind)> {
    let failing = || Some("errors".to_owned());
    vec![
        ("read-only", mount_with("a", |m| m.read_only = true)),
        ("failing", mount_with("a", |m| m.failing = failing())),
        (
            "failing",
            mount_with("a", |m| (m.failing, m.read_only) = (failing(), true)),
        ),
        ("failing", EntryKind::Failing("EIO".into())),
    ]
}

fn world_with(pv: Pv, kind: EntryKind) -> World {
    let mut w = world();
    w.pv(pv).entry("vol", kind);
    w
}

/// What is remembered of this pass.
fn next_pass(w: &mut World) {
    let plan = w.plan();
    w.memory.note_observed(&plan, &w.observed, &w.cluster, w.now);
}

#[test]
fn a_free_unused_volume_with_a_defect_is_withdrawn_after_the_grace_period() {
    for (slug, kind) in defects() {
        for mut w in both_modes() {
            w.pv(available("vol", "a")).entry("vol", kind.clone());
            let held = format!("vol held {slug}");
            w.expect(&[], &[&held], &[]);
            next_pass(&mut w);
            let began = w.now;
            w.now = began + secs(59);
            w.expect(&[], &[&held], &[]);
            assert_eq!(w.plan().wake_at, Some(began + secs(60)));
            next_pass(&mut w);
            w.now = began + secs(60);
            w.expect_actions(&["delete pv-vol and let go"]);
            // What has no PV is not published, and is as soon as it is healthy.
            w.cluster.pvs.clear();
            w.expect(&[], &[&held], &[]);
            assert!(matches!(w.plan().volumes[0].health, Health::Bad(ailment) if ailment.slug() == slug));
            w.entry("vol", mount("a"));
            w.expect_actions(&["create /mnt/fast/vol"]);
        }
    }
    for disk in [
        disk_with("a", |d| d.failing = Some("offline".into())),
        disk_with("a", |d| d.read_only = true),
    ] {
        let mut w = world();
        w.pv(available_in("raw", "disk", "device wwn=a"))
            .entry_of("raw", "disk", disk);
        w.memory.missing_since.insert("uid-disk".into(), secs(0));
        w.expect_actions(&["delete pv-disk and let go"]);
        w.cluster.pvs.clear();
        w.expect_actions(&[]);
    }
}

#[test]
fn a_defect_that_ends_in_time_withdraws_nothing() {
    for (_, kind) in defects() {
        let mut w = world_with(available("vol", "a"), kind.clone());
        next_pass(&mut w);
        w.entry("vol", mount("a"));
        next_pass(&mut w);
        w.now += secs(3600);
        w.entry("vol", kind);
        w.expect_actions(&[]);
        assert_eq!(w.plan().wake_at, Some(w.now + secs(60)), "the grace period starts anew");
    }
}

#[test]
fn nothing_but_a_free_unused_pv_is_ever_withdrawn_for_a_defect() {
    let reserved = available("vol", "a").with(|pv| pv.claim = Some(claim("")));
    let being_bound = available("vol", "a")
        .with(|pv| pv.claim = Some(claim("c1")))
        .annotated(names::USED, "c1");
    for (_, kind) in defects() {
        for pv in [
            available("vol", "a").bound(),
            available("vol", "a").unknown(),
            available("vol", "a").annotated(names::USED, "c1"),
            reserved.clone(),
            being_bound.clone(),
        ] {
            for mut w in both_modes() {
                w.pv(pv.clone()).entry("vol", kind.clone());
                w.memory.missing_since.insert("uid-vol".into(), secs(0));
                w.expect_actions(&[]);
                assert!(w.notices().contains(&ABNORMAL.to_owned()), "{pv:?}: {:?}", w.notices());
                assert!(w.plan().volumes[0].health.ailment().is_some());
            }
        }
    }
}

#[test]
fn other_storage_is_withdrawn_at_once_whatever_its_condition() {
    for (_, kind) in defects().into_iter().take(3) {
        let w = world_with(available("vol", "b"), kind);
        w.expect(&["delete pv-vol"], &["vol held wrong-storage"], &[]);
    }
}

#[test]
fn who_has_the_claim_is_told_once_and_again_when_it_is_over() {
    let abnormal = "VolumeConditionAbnormal";
    let mut cases: Vec<(&str, Ailment, EntryKind)> = Vec::new();
    for (slug, kind) in defects() {
        let ailment = Ailment::ALL.into_iter().find(|ailment| ailment.slug() == slug);
        cases.push((abnormal, ailment.unwrap(), kind));
    }
    cases.push((abnormal, Ailment::Unresponsive, EntryKind::Unresponsive("open".into())));
    cases.push(("VolumeVanished", Ailment::Vanished, EntryKind::PlainDirectory));
    for (reason, ailment, kind) in cases {
        for mut w in both_modes() {
            w.pv(available("vol", "a").bound()).entry("vol", kind.clone());
            let plan = w.plan();
            let told: Vec<_> = plan
                .events
                .iter()
                .map(|n| (n.reason, n.severity, n.claim.clone()))
                .collect();
            let warning = Severity::Warning;
            assert_eq!(told, [(reason, warning, None), (reason, warning, Some(claim("c1")))]);
            assert_eq!(plan.volumes[0].health, Health::Bad(ailment));
            assert_eq!(plan.actions, []);
            next_pass(&mut w);
            assert_eq!(w.plan().events, plan.events, "the same cause is the same notice");
            // Not to be seen is not healthy.
            w.entry("vol", EntryKind::Failed("EACCES".into()));
            assert_eq!(w.notices(), [""; 0]);
            next_pass(&mut w);
            w.entry("vol", mount("a"));
            let plan = w.plan();
            let normal = |n: &Notice| n.reason == "VolumeConditionNormal" && n.severity == Severity::Normal;
            assert!(
                plan.events.len() == 2 && plan.events.iter().all(normal),
                "{:?}",
                plan.events
            );
            assert_eq!(plan.volumes[0].health, Health::Good);
            next_pass(&mut w);
            w.expect(&[], &["vol bound"], &[]);
        }
    }
}

#[test]
fn a_pv_that_is_deleted_while_it_is_bound_tells_of_its_condition() {
    let kind = mount_with("a", |m| m.failing = Some("errors".into()));
    let pv = available("vol", "a").bound().with(|pv| pv.deleting = true);
    world_with(pv, kind).expect(
        &[],
        &["vol bound"],
        &[ABNORMAL, "default/claim VolumeConditionAbnormal"],
    );
}

#[test]
fn what_is_to_be_scrubbed_waits_for_its_storage() {
    for (slug, kind) in defects() {
        let held = format!("vol held {slug}");
        for pv in [
            available("vol", "a").released().terminating(),
            available("vol", "a")
                .unknown()
                .terminating()
                .annotated(names::RETAINED, "scrub"),
        ] {
            let mut w = world_with(pv, kind.clone());
            w.expect(&[], &[&held], &["pv-vol VolumeFailedDelete"]);
            next_pass(&mut w);
            assert!(w.memory.missing_since.is_empty(), "nothing is withdrawn that was used");
            w.entry("vol", mount("a"));
            w.expect_actions(&["scrub pv-vol (files, filesystem uuid=a)"]);
        }
        let mut classic = world_with(available("vol", "a").released(), kind.clone());
        classic.mode = crate::cluster::Mode::Classic;
        classic.expect(&[], &[&held], &["pv-vol VolumeFailedDelete"]);
    }
    let mut w = world();
    w.pv(available_in("raw", "disk", "device wwn=a").released().terminating())
        .entry_of("raw", "disk", disk_with("a", |d| d.failing = Some("offline".into())));
    w.expect(&[], &["disk held failing"], &["pv-disk VolumeFailedDelete"]);
    w.config.use_job_for_cleaning = true;
    w.expect(&[], &["disk held failing"], &["pv-disk VolumeFailedDelete"]);
}
