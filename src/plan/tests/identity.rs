//! What is at a PV's path against what was published there.

use super::world::*;
use crate::cluster::Mode;
use crate::names;

#[test]
fn a_free_pv_with_other_storage_is_withdrawn_at_once() {
    for mut w in both_modes() {
        w.pv(available("vol", "a")).entry("vol", mount("b"));
        w.expect(&["delete pv-vol"], &["vol held wrong-storage"], &[]);
    }
}

#[test]
fn two_disks_that_changed_places_are_both_withdrawn() {
    let mut w = world();
    w.pv(available("vol1", "a")).pv(available("vol2", "b"));
    w.entry("vol1", mount("b")).entry("vol2", mount("a"));
    w.expect_actions(&["delete pv-vol1", "delete pv-vol2"]);
}

#[test]
fn a_bound_pv_with_other_storage_is_only_flagged() {
    for mut w in both_modes() {
        w.pv(available("vol", "a").bound()).entry("vol", mount("b"));
        w.expect(&[], &["vol bound"], &["pv-vol VolumeMismatch"]);
        assert!(w.plan().volumes[0].warning.as_ref().unwrap().contains("uuid=a"));
    }
}

#[test]
fn returning_pvs_with_other_storage_are_held_and_the_reason_names_both() {
    let [mut patch, mut classic] = both_modes();
    patch.pv(available("vol", "a").released().terminating());
    classic.pv(available("vol", "a").released());
    for mut w in [patch, classic] {
        w.entry("vol", mount("b"));
        w.expect(&[], &["vol held wrong-storage"], &["pv-vol VolumeFailedDelete"]);
        let message = &w.plan().events[0].message;
        assert!(message.contains("uuid=a") && message.contains("uuid=b"), "{message}");
        w.entry("vol", mount("a"));
        assert_eq!(w.actions(), ["scrub pv-vol (files, filesystem uuid=a)"]);
    }
}

#[test]
fn the_operator_can_accept_what_is_there_now() {
    let adopt = |pv: crate::cluster::Pv| pv.annotated(names::RESOLVE, "adopt");
    let mut w = world();
    w.entry("vol", mount("b"));
    for pv in [available("vol", "a"), available("vol", "a").bound()] {
        w.pv(adopt(pv));
        w.expect_actions(&["patch pv-vol: resolve=- volume-id=filesystem%20uuid=b"
            .replace("%20", " ")
            .as_str()]);
    }
    // Exactly that is scrubbed, and nothing that may come to the path until the scrub starts.
    w.pv(adopt(available("vol", "a").released().terminating()));
    w.expect_actions(&["scrub pv-vol (files, filesystem uuid=b)"]);
    w.pv(available("vol", "a")
        .released()
        .terminating()
        .annotated(names::RESOLVE, "yes"));
    w.expect_actions(&[]);
}

#[test]
fn the_storage_of_another_pv_cannot_be_accepted() {
    for other in [
        available("other", "b").bound(),
        available("other", "b").released().policy("Retain"),
    ] {
        for pv in [
            available("vol", "a").bound(),
            available("vol", "a").released().terminating(),
            available("vol", "a").released().terminating().legacy().with(|pv| {
                pv.node_label = Some("host1".into());
                pv.finalizers.push(names::FINALIZER.into());
            }),
            available("vol", "a").with(|pv| drop(pv.annotations.insert(names::VOLUME_ID, "nonsense".into()))),
        ] {
            let mut w = world();
            w.pv(other.clone()).pv(pv.clone().annotated(names::RESOLVE, "adopt"));
            w.entry("vol", mount("b")).entry("other", mount("b"));
            let actions: Vec<_> = w
                .actions()
                .into_iter()
                .filter(|action| *action != "delete pv-vol")
                .collect();
            assert_eq!(actions, [""; 0], "{pv:?}");
        }
    }
    // Nor is it noted on a PV of the classic program.
    let mut w = world();
    w.pv(available("other", "b").bound()).entry("other", mount("b"));
    w.pv(available("vol", "x").legacy()).entry("vol", mount("b"));
    w.expect_actions(&["delete pv-vol"]);
}

#[test]
fn an_identity_that_cannot_be_read_or_was_removed_is_not_trusted() {
    let unreadable = || mount_with("a", |m| m.id = Err("EIO".into()));
    for (pv, kind) in [
        (available("vol", "a"), unreadable()),
        (available("vol", "a").without(names::VOLUME_ID), mount("a")),
        (
            available("vol", "a").annotated(names::VOLUME_ID, "nonsense"),
            mount("a"),
        ),
        (
            available("vol", "a")
                .without(names::VOLUME_ID)
                .annotated(names::VOLUME_ID_ORIGIN, "seen-while-bound"),
            mount("a"),
        ),
    ] {
        let mut w = world();
        w.pv(pv.clone()).entry("vol", kind.clone());
        w.expect(&[], &["vol held identity-unknown"], &["pv-vol VolumeMismatch"]);
        w.pv(pv.clone().released().terminating());
        w.expect(&[], &["vol held identity-unknown"], &["pv-vol VolumeFailedDelete"]);
        w.pv(pv.clone().bound());
        w.expect(&[], &["vol bound"], &[]);
        assert!(w.plan().volumes[0].warning.is_some());
        w.mode = Mode::Classic;
        w.pv(pv.released());
        w.expect(&[], &["vol held identity-unknown"], &["pv-vol VolumeFailedDelete"]);
    }
}

#[test]
fn what_came_after_volatile_storage_went_with_a_reboot_is_scrubbed_if_it_may_have_been_used() {
    let lost = |pv: crate::cluster::Pv| pv.annotated(names::VOLUME_ID, "volatile boot=boot-1 uuid=a");
    let ram = || mount_with("b", |m| m.id = Ok(id("volatile boot=boot-2 uuid=b")));
    let mut w = world();
    w.entry("vol", ram());
    // Its claim may have been used again since the reboot.
    let scrub = "scrub pv-vol (files, volatile boot=boot-2 uuid=b)";
    w.pv(lost(available("vol", "a").released().terminating()));
    w.expect_actions(&[scrub]);
    w.pv(lost(available("vol", "a")));
    w.expect(&["delete pv-vol and let go"], &["vol available"], &[]);
    w.pv(lost(available("vol", "a").annotated(names::USED, "c1")));
    w.expect_actions(&["delete pv-vol"]);
    w.pv(lost(available("vol", "a").bound()));
    w.expect(&[], &["vol bound"], &["pv-vol VolumeLost"]);
    w.mode = Mode::Classic;
    w.pv(lost(available("vol", "a").released()));
    w.expect_actions(&[scrub]);
    // Within one boot another UUID is other storage: the old one may be mounted beneath.
    w.pv(available("vol", "a")
        .released()
        .annotated(names::VOLUME_ID, "volatile boot=boot-2 uuid=a"));
    w.expect(&[], &["vol held wrong-storage"], &["pv-vol VolumeFailedDelete"]);
}

#[test]
fn a_pv_of_the_classic_program_gets_what_it_lacks() {
    let common = format!(
        "label finalizers={},{} class-directory=/discover/fast cleaner=[\"zero\"]",
        names::PV_PROTECTION,
        names::FINALIZER
    );
    for (pv, rest) in [
        (available("vol", "a").legacy(), " volume-id=filesystem uuid=a"),
        (
            available("vol", "a").bound().legacy(),
            " used=c1 volume-id=filesystem uuid=a volume-id-origin=seen-while-bound",
        ),
        (
            // Nobody can say what was published under it.
            available("vol", "a").released().legacy(),
            " used=c1 volume-id-origin=unknown",
        ),
    ] {
        let mut w = world();
        w.pv(pv).entry("vol", mount("a"));
        w.expect_actions(&[&format!("patch pv-vol: {common}{rest}")]);
        w.mode = Mode::Classic;
        assert!(w.actions().iter().all(|action| !action.starts_with("patch")));
    }
}

#[test]
fn the_identity_of_a_classic_pv_that_cannot_be_seen_at_first_is_noted_later() {
    let mut w = world();
    w.pv(available("vol", "a").bound().legacy()).unreadable("fast");
    let actions = w.actions();
    assert!(actions[0].ends_with("used=c1 volume-id-origin=unknown"), "{actions:?}");
    let noted = available("vol", "a")
        .bound()
        .without(names::VOLUME_ID)
        .annotated(names::VOLUME_ID_ORIGIN, "unknown");
    let mut w = world();
    w.pv(noted.clone()).entry("vol", mount("a"));
    w.expect_actions(&["patch pv-vol: volume-id=filesystem uuid=a volume-id-origin=seen-while-bound"]);
    // If it is released before that, it is scrubbed as the classic program would.
    w.pv(noted.released().terminating());
    w.expect_actions(&["scrub pv-vol (files, filesystem uuid=a)"]);
}

#[test]
fn a_classic_pv_without_an_id_is_scrubbed_after_the_other_checks() {
    let [mut patch, mut classic] = both_modes();
    let legacy = available("vol", "a").released().legacy();
    patch.pv(legacy.clone().terminating().with(|pv| {
        pv.node_label = Some("host1".into());
        pv.finalizers.push(names::FINALIZER.into());
    }));
    classic.pv(legacy);
    for mut w in [patch, classic] {
        w.entry("vol", mount("a"));
        w.expect_actions(&["scrub pv-vol (files, filesystem uuid=a)"]);
        w.entry("vol", mount_with("a", |m| m.nested.push("/mnt/fast/vol/x".into())));
        w.expect_actions(&[]);
    }
}
