//! Free and bound PVs: kept true, withdrawn when their volume is gone, and never changed under a claim.

use super::world::*;
use crate::cluster::{ClaimRef, Mode, Phase};
use crate::config::VolumeMode;
use crate::name_pattern::NamePattern;
use crate::names;
use crate::observed::{Directory, EntryKind};
use crate::plan::Health;
use crate::reason::Ailment;

#[test]
fn a_free_pv_of_an_unchanged_volume_is_left_alone() {
    for mut w in both_modes() {
        w.pv(available("vol", "a")).entry("vol", mount("a"));
        w.expect(&[], &["vol available"], &[]);
        assert_eq!(w.plan().wake_at, None, "an idle node costs nothing");
    }
}

#[test]
fn the_capacity_of_a_free_pv_follows_its_device() {
    for bytes in [6 << 30, 4 << 30] {
        let [mut patch, mut classic] = both_modes();
        for w in [&mut patch, &mut classic] {
            w.pv(available("vol", "a"))
                .entry("vol", mount_with("a", |m| m.capacity_bytes = bytes));
        }
        let now = if bytes == 6 << 30 { "6Gi" } else { "4Gi" };
        patch.expect_actions(&[&format!("patch pv-vol: capacity={now}")]);
        classic.expect_actions(&["delete pv-vol and let go"]);
    }
    // Written otherwise, but the same.
    let mut w = world();
    w.pv(available("vol", "a").with(|pv| pv.capacity = "5120Mi".into()))
        .entry("vol", mount("a"));
    w.expect_actions(&[]);
    // Not where it may have been used, and not to nothing.
    for (pv, bytes) in [
        (available("vol", "a").unknown(), 6 << 30),
        (available("vol", "a").annotated(names::USED, "c1"), 6 << 30),
        (available("vol", "a"), 0),
    ] {
        for mut w in both_modes() {
            w.pv(pv.clone())
                .entry("vol", mount_with("a", |m| m.capacity_bytes = bytes));
            w.expect_actions(&[]);
        }
    }
}

#[test]
fn the_capacity_of_a_bound_pv_is_only_told() {
    for mut w in both_modes() {
        w.pv(available("vol", "a").bound())
            .entry("vol", mount_with("a", |m| m.capacity_bytes = 6 << 30));
        w.expect(&[], &["vol bound"], &["pv-vol CapacityChanged"]);
        let health = Health::Bad(Ailment::CapacityChanged);
        assert_eq!(w.plan().volumes[0].health, health);
        // It is as it should be again: there is nothing to tell of its condition.
        let plan = w.plan();
        w.memory.note_observed(&plan, &w.observed, &w.cluster, w.now);
        w.entry("vol", mount("a"));
        w.expect(&[], &["vol bound"], &[]);
    }
}

#[test]
fn an_unused_pv_whose_volume_is_missing_is_withdrawn_after_the_grace_period() {
    let missing: [(&str, Happens); 13] = [
        ("no entry", |_| {}),
        ("unmounted", |w| done(w.entry("vol", EntryKind::PlainDirectory))),
        ("source deleted", |w| {
            done(w.entry("vol", mount_with("a", |m| m.deleted = true)))
        }),
        ("a file", |w| done(w.entry("vol", EntryKind::File))),
        ("no directory", |w| {
            w.observed.directories.insert(key("fast"), Directory::Missing);
        }),
        ("another name pattern", |w| {
            w.entry("vol", mount("a"));
            w.fast().name_pattern = NamePattern::parse("ssd*").unwrap();
        }),
        ("class removed", |w| {
            w.entry("vol", mount("a"));
            w.config.classes.remove("fast");
        }),
        ("another hostDir", |w| {
            w.entry("vol", mount("a"));
            w.fast().host_dir = "/mnt/other".into();
        }),
        ("class removed, directory unknown", |w| {
            w.entry("vol", mount("a"));
            w.config.classes.remove("fast");
            w.pv(available("vol", "a").without(names::CLASS_DIRECTORY));
        }),
        ("class removed, directory unreadable", |w| {
            w.unreadable("fast");
            w.config.classes.remove("fast");
        }),
        ("class removed, entry hangs", |w| {
            w.entry("vol", EntryKind::Unresponsive("open".into()));
            w.config.classes.remove("fast");
        }),
        ("another volumeMode", |w| {
            w.entry("vol", mount("a"));
            w.fast().volume_mode = crate::config::VolumeMode::Block;
        }),
        ("dangling", |w| done(w.entry("vol", EntryKind::DanglingSymlink))),
    ];
    for (what, happens) in missing {
        for mut w in both_modes() {
            w.pv(available("vol", "a"));
            happens(&mut w);
            let row = w.plan().volumes.into_iter().find(|volume| volume.pv.is_some()).unwrap();
            assert_eq!(row.state.word(), "vanished", "{what}");
            assert_eq!(w.actions(), [""; 0], "{what}: at once");
            assert_eq!(w.plan().wake_at, Some(w.now + secs(60)), "{what}");
            w.memory.missing_since.insert("uid-vol".into(), w.now - secs(59));
            assert_eq!(w.actions(), [""; 0], "{what}: after 59 s");
            assert_eq!(w.plan().wake_at, Some(w.now + secs(1)), "{what}");
            w.memory.missing_since.insert("uid-vol".into(), w.now - secs(60));
            assert_eq!(w.actions(), ["delete pv-vol and let go"], "{what}: after 60 s");
        }
    }
}

#[test]
fn a_pv_whose_volume_is_missing_is_kept_if_it_has_or_may_have_a_claim_or_was_used() {
    let reserved = |uid: &str| {
        let claim = claim(uid);
        available("vol", "a").with(|pv| pv.claim = Some(claim))
    };
    for pv in [
        available("vol", "a").bound(),
        available("vol", "a").unknown(),
        available("vol", "a").annotated(names::USED, "c1"),
        available("vol", "a").annotated(names::BOUND_BY_CONTROLLER, "yes"),
        available("vol", "a").with(|pv| pv.seen_used = true),
        reserved("c1").annotated(names::USED, "c1"),
        reserved(""),
    ] {
        for mut w in both_modes() {
            w.pv(pv.clone());
            w.memory.missing_since.insert("uid-vol".into(), secs(0));
            assert_eq!(w.actions(), [""; 0], "{pv:?}");
            assert_eq!(w.states(), ["vol vanished"], "{pv:?}");
            assert!(w.notices().contains(&"pv-vol VolumeVanished".to_owned()), "{pv:?}");
        }
    }
}

#[test]
fn what_cannot_be_seen_is_not_missing() {
    for (what, happens) in [
        ("unreadable", (|w| done(w.unreadable("fast"))) as Happens),
        ("not looked at", |w| w.observed.directories.clear()),
        ("entry failed", |w| {
            done(w.entry("vol", EntryKind::Failed("EIO".into())))
        }),
        ("entry hangs", |w| {
            done(w.entry("vol", EntryKind::Unresponsive("open".into())))
        }),
    ] {
        for pv in [available("vol", "a"), available("vol", "a").bound()] {
            let mut w = world();
            w.pv(pv);
            happens(&mut w);
            w.memory.missing_since.insert("uid-vol".into(), secs(0));
            assert_eq!(w.actions(), [""; 0], "{what}");
            assert_ne!(w.states(), ["vol vanished"], "{what}");
        }
    }
    let mut w = world();
    w.pv(available("vol", "a"))
        .entry("vol", EntryKind::Unresponsive("open".into()));
    w.expect(&[], &["vol unresponsive"], &[]);
}

#[test]
fn a_free_pv_of_a_class_that_came_back_elsewhere_is_looked_for_where_it_was_published() {
    let mut w = world();
    w.fast().mount_dir = "/elsewhere".into();
    w.observed.directories.insert(
        crate::observed::DirectoryKey::new("fast", "/mnt/fast", "/elsewhere"),
        Directory::Read(vec![]),
    );
    w.pv(available("vol", "a"));
    assert_eq!(w.states(), ["vol vanished"], "the class says where its hostDir is seen");
    let keys = crate::plan::directories(&w.config, &w.cluster);
    assert_eq!(keys.len(), 2, "{keys:?}");
    w.config.classes.remove("fast");
    let keys = crate::plan::directories(&w.config, &w.cluster);
    assert!(keys.contains(&key("fast")), "{keys:?}");
}

#[test]
fn labels_finalizers_and_marks_are_kept_where_patching_is_permitted() {
    let finalizers = format!("finalizers={},{}", names::PV_PROTECTION, names::FINALIZER);
    let bare = |pv: crate::cluster::Pv| pv.with(|pv| pv.finalizers.retain(|f| f != names::FINALIZER));
    for (pv, patch) in [
        (
            available("vol", "a").with(|pv| pv.node_label = None),
            "label".to_owned(),
        ),
        (
            available("vol", "a").with(|pv| pv.node_label = Some("other".into())),
            "label".to_owned(),
        ),
        (bare(available("vol", "a")), finalizers.clone()),
        (bare(available("vol", "a").bound()), finalizers.clone()),
        (available("vol", "a").bound().without(names::USED), "used=c1".to_owned()),
        (
            // The scheduler's half of a binding counts.
            available("vol", "a")
                .bound()
                .without(names::USED)
                .with(|pv| pv.phase = Phase::Available),
            "used=c1".to_owned(),
        ),
    ] {
        let mut w = world();
        w.pv(pv).entry("vol", mount("a"));
        w.expect_actions(&[&format!("patch pv-vol: {patch}")]);
        w.mode = Mode::Classic;
        w.expect_actions(&[]);
    }
}

#[test]
fn the_mark_names_the_first_claim() {
    let mut w = world();
    let pv = available("vol", "a").bound().annotated(names::USED, "c0");
    w.pv(pv).entry("vol", mount("a"));
    w.expect_actions(&[]);
}

#[test]
fn a_claim_ref_that_was_cleared_by_hand_is_told() {
    for mut w in both_modes() {
        w.pv(available("vol", "a").annotated(names::USED, "c1"))
            .entry("vol", mount("a"));
        w.expect(&[], &["vol available"], &["pv-vol ReusedWithoutScrub"]);
    }
    let mut w = world();
    w.pv(available("vol", "a").with(|pv| pv.seen_used = true))
        .entry("vol", mount("a"));
    assert_eq!(w.notices(), ["pv-vol ReusedWithoutScrub"]);
}

#[test]
fn a_pv_that_is_reserved_by_name_is_left_to_its_claim() {
    let mut w = world();
    let reserved = available("vol", "a").with(|pv| {
        pv.claim = Some(ClaimRef {
            uid: String::new(),
            ..claim("")
        });
    });
    w.pv(reserved.clone()).entry("vol", mount("a"));
    w.expect(&[], &["vol available"], &[]);
    // Not with somebody else's storage.
    w.entry("vol", mount("b"));
    w.expect(&["delete pv-vol"], &["vol held wrong-storage"], &[]);
    // With a UID the binding is under way: a PV that is deleted then strands pod and claim.
    w.pv(reserved
        .with(|pv| pv.claim = Some(claim("c1")))
        .annotated(names::USED, "c1"));
    w.expect(&[], &["vol available"], &["pv-vol VolumeMismatch"]);
}

#[test]
fn a_failed_pv_waits_for_the_operator() {
    for mut w in both_modes() {
        w.pv(available("vol", "a").bound().with(|pv| pv.phase = Phase::Failed))
            .entry("vol", mount("a"));
        w.expect(&[], &["vol held phase-failed"], &["pv-vol VolumeFailedDelete"]);
    }
}

#[test]
fn a_missing_volume_that_comes_back_is_available_again() {
    let mut w = world();
    w.pv(available("vol", "a"));
    w.memory.missing_since.insert("uid-vol".into(), secs(0));
    w.entry("vol", mount("a"));
    w.expect(&[], &["vol available"], &[]);
    let plan = w.plan();
    w.memory.note_observed(&plan, &w.observed, &w.cluster, w.now);
    assert!(w.memory.missing_since.is_empty(), "the grace period starts anew");
}

#[test]
fn an_entry_of_a_new_class_with_the_same_directory_waits_for_the_old_pv() {
    let mut w = world();
    let class = w.config.classes.remove("fast").unwrap();
    w.class("slow", VolumeMode::Filesystem).host_dir = class.host_dir.clone();
    w.config.classes.get_mut("slow").unwrap().mount_dir = class.mount_dir;
    let slow = crate::observed::DirectoryKey::new("slow", "/mnt/fast", "/discover/fast");
    w.entry("vol", mount("a"));
    let entries = w.observed.directories[&key("fast")].clone();
    w.observed.directories.insert(slow, entries);
    w.pv(available("vol", "a"));
    w.memory.missing_since.insert("uid-vol".into(), secs(0));
    w.expect_actions(&["delete pv-vol and let go"]);
    w.cluster.pvs.clear();
    w.expect_actions(&["create /mnt/fast/vol"]);
}
