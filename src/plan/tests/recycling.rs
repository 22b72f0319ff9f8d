//! Released and terminating PVs: every row of the ledger.

use super::world::*;
use crate::cluster::{JobProgress, Mode, Phase, Pv};
use crate::memory::{ClaimState, ScrubState};
use crate::names;
use crate::observed::{Directory, EntryKind};
use crate::plan::Health;
use crate::reason::{Ailment, Held};
use crate::scrub::progress::{Progress, Snapshot, Unit};

/// A PV on its way back, whose next step is the scrub.
fn returning(mode: Mode, entry: &str, uuid: &str) -> Pv {
    let pv = available(entry, uuid).released();
    match mode {
        Mode::Patch => pv.terminating(),
        Mode::Classic => pv,
    }
}

pub(super) fn both_returning() -> Vec<(World, Pv)> {
    let world = |mut w: World| {
        let pv = returning(w.mode, "vol", "a");
        w.pv(pv.clone()).entry("vol", mount("a"));
        (w, pv)
    };
    both_modes().map(world).into()
}

pub(super) const SCRUB: &str = "scrub pv-vol (files, filesystem uuid=a)";

#[test]
fn released_is_deleted_first_where_patching_is_permitted_and_scrubbed_first_where_not() {
    let [mut patch, mut classic] = both_modes();
    for w in [&mut patch, &mut classic] {
        w.pv(available("vol", "a").released()).entry("vol", mount("a"));
    }
    patch.expect(&["delete pv-vol"], &["vol released"], &[]);
    classic.expect(&[SCRUB], &["vol scrubbing"], &[]);
}

#[test]
fn the_finalizer_and_the_mark_come_before_the_delete() {
    let mut w = world();
    w.entry("vol", mount("a"));
    w.pv(available("vol", "a").released().with(|pv| pv.finalizers.clear()));
    w.expect_actions(&["patch pv-vol: finalizers=local-volume-provisioner/scrub"]);
    w.pv(available("vol", "a").released().without(names::USED));
    w.expect_actions(&["patch pv-vol: used=c1"]);
}

#[test]
fn released_with_another_policy_is_left_alone() {
    for mut w in both_modes() {
        w.entry("vol", mount("a"));
        w.pv(available("vol", "a").released().policy("Retain"));
        w.expect(&[], &["vol held retain"], &[]);
        w.pv(available("vol", "a").released().policy("Recycle"));
        w.expect(
            &[],
            &["vol held unsupported-policy"],
            &["pv-vol VolumeUnsupportedReclaimPolicy"],
        );
        assert_eq!(
            w.plan().events[0].message,
            "Volume has unsupported PersistentVolumeReclaimPolicy: Recycle"
        );
    }
    // What is written on it is still kept true: it may be deleted by hand any time.
    let mut w = world();
    w.pv(available("vol", "a").released().policy("Retain").without(names::USED));
    w.expect_actions(&["patch pv-vol: used=c1"]);
}

/// Every row for a terminating PV: use, policy, the operator's word, what happens.
#[test]
fn terminating_by_use_and_policy_and_word() {
    let unused = || available("vol", "a").terminating();
    let unknown = || unused().unknown();
    let used = || returning(Mode::Patch, "vol", "a");
    let let_go: &[&str] = &["let go pv-vol: finalizers="];
    let scrub: &[&str] = &[SCRUB];
    let failed: &[&str] = &["pv-vol VolumeFailedDelete"];
    for (pv, policy, word, actions, state, notices) in [
        (unused(), "Delete", "", let_go, "released", &[] as &[&str]),
        (unused(), "Retain", "", let_go, "released", &[]),
        (unknown(), "Delete", "", &[], "held unknown-use", failed),
        (unknown(), "Retain", "", &[], "held unknown-use", failed),
        (unknown(), "Delete", "scrub", scrub, "scrubbing", &[]),
        (unknown(), "Delete", "keep", &[], "held kept", &[]),
        (used(), "Delete", "", scrub, "scrubbing", &[]),
        (used(), "Delete", "keep", &[], "held kept", &[]),
        (used(), "Retain", "", &[], "held retain-deleting", failed),
        (used(), "Retain", "perhaps", &[], "held retain-deleting", failed),
        (used(), "Retain", "scrub", scrub, "scrubbing", &[]),
        (used(), "Retain", "keep", &[], "held kept", &[]),
        (used(), "Recycle", "", &[], "held unsupported-policy", failed),
        (used(), "Recycle", "scrub", scrub, "scrubbing", &[]),
    ] {
        let mut w = world();
        let pv = match word {
            "" => pv,
            word => pv.annotated(names::RETAINED, word),
        };
        w.pv(pv.policy(policy)).entry("vol", mount("a"));
        w.expect(actions, &[&format!("vol {state}")], notices);
    }
}

#[test]
fn watching_since_creation_tells_unused_from_unknown() {
    let mut w = world();
    w.pv(available("vol", "a").terminating().unknown())
        .entry("vol", mount("a"));
    w.expect_actions(&[]);
    w.memory.watched_since_creation.insert("uid-vol".into());
    w.expect_actions(&["let go pv-vol: finalizers="]);
    // Unless this process saw it in use: somebody removed what said so.
    w.pv(available("vol", "a").terminating().with(|pv| pv.seen_used = true));
    w.expect_actions(&[SCRUB]);
}

#[test]
fn a_terminating_pv_is_labelled_so_that_the_watch_shows_it() {
    let mut w = world();
    for pv in [
        available("vol", "a"),
        available("vol", "a").bound(),
        available("vol", "a").released(),
    ] {
        w.pv(pv.terminating().with(|pv| pv.node_label = None))
            .entry("vol", mount("a"));
        w.expect_actions(&["patch pv-vol: label"]);
    }
}

#[test]
fn letting_go_removes_our_finalizer_only() {
    let mut w = world();
    let pv = available("vol", "a")
        .terminating()
        .with(|pv| pv.finalizers.push("example.com/x".into()));
    w.pv(pv).entry("vol", mount("a"));
    w.expect_actions(&["let go pv-vol: finalizers=example.com/x"]);
}

#[test]
fn terminating_waits_while_the_api_uses_it() {
    let protected = |pv: Pv| {
        pv.terminating()
            .with(|pv| pv.finalizers.push(names::PV_PROTECTION.into()))
    };
    let mut w = world();
    w.entry("vol", mount("a"));
    w.pv(protected(available("vol", "a").bound()));
    w.expect(&[], &["vol bound"], &[]);
    w.pv(available("vol", "a").bound().terminating());
    w.expect(&[], &["vol bound"], &[]);
    for pv in [
        available("vol", "a").released(),
        available("vol", "a"),
        available("vol", "a").unknown(),
    ] {
        w.pv(protected(pv));
        w.expect(&[], &["vol released"], &[]);
    }
}

#[test]
fn a_terminating_pv_without_our_finalizer_is_not_ours_to_finish() {
    for mut w in both_modes() {
        w.entry("vol", mount("a"));
        let foreign = available("vol", "a")
            .released()
            .terminating()
            .with(|pv| pv.finalizers = vec!["example.com/x".into()]);
        w.pv(foreign);
        w.expect(&[], &["vol held foreign-finalizer"], &["pv-vol VolumeFailedDelete"]);
    }
}

#[test]
fn our_finalizer_cannot_be_removed_without_permission() {
    let mut w = world();
    w.mode = Mode::Classic;
    w.pv(available("vol", "a").released().terminating())
        .entry("vol", mount("a"));
    w.expect(&[], &["vol held not-permitted"], &["pv-vol VolumeFailedDelete"]);
}

#[test]
fn the_end_of_a_scrub_lets_the_pv_go() {
    let [(mut patch, pv), (mut classic, released)] = <[_; 2]>::try_from(both_returning()).ok().unwrap();
    patch.scrub(&pv, clean(secs(999), true));
    patch.expect(&["let go pv-vol: finalizers="], &["vol released"], &[]);
    classic.scrub(&released, clean(secs(999), true));
    classic.expect(&["delete pv-vol and let go"], &["vol released"], &[]);
    for w in [&mut patch, &mut classic] {
        // Not while a pod has it: what it writes would be the next tenant's.
        w.pod("pv-vol", 0, "/");
        w.expect(&[], &["vol held in-use"], &["pv-vol VolumeFailedDelete"]);
    }
}

/// What may hold a volume before its scrub, each on its own.
#[test]
fn a_scrub_waits_for_everything_that_can_be_observed() {
    let holds: [(&str, Happens); 16] = [
        ("job-running", |w| {
            done(w.job("pv-vol", job("pv-vol", "uid-vol", JobProgress::AtWork)));
        }),
        ("in-use", |w| done(w.pod("pv-vol", 0, "/"))),
        ("in-use", |w| done(w.pod("another", dev("a"), "/"))),
        ("in-use", |w| done(w.pod("another", dev("a"), "/sub/path"))),
        ("wrong-storage", |w| done(w.entry("vol", mount("b")))),
        ("identity-unknown", |w| {
            done(w.entry("vol", mount_with("a", |m| m.id = Err("EIO".into()))));
        }),
        ("read-only", |w| {
            done(w.entry("vol", mount_with("a", |m| m.read_only = true)))
        }),
        ("nested-mounts", |w| {
            done(w.entry("vol", mount_with("a", |m| m.nested.push("/x".into()))));
        }),
        ("not-mounted", |w| done(w.entry("vol", EntryKind::PlainDirectory))),
        ("not-mounted", |w| done(w.entry("vol", EntryKind::File))),
        ("not-mounted", |w| {
            done(w.entry("vol", mount_with("a", |m| m.deleted = true)))
        }),
        ("not-mounted", |w| {
            w.observed.directories.insert(key("fast"), Directory::Read(vec![]));
        }),
        ("not-mounted", |w| {
            w.observed.directories.insert(key("fast"), Directory::Missing);
        }),
        ("unreadable", |w| done(w.unreadable("fast"))),
        ("unreadable", |w| done(w.entry("vol", EntryKind::Failed("EIO".into())))),
        ("class-not-configured", |w| {
            w.config.classes.remove("fast");
            let pv = w.cluster.pvs["pv-vol"].clone().without(names::CLASS_DIRECTORY);
            w.pv(pv);
        }),
    ];
    for (slug, happens) in holds {
        for (mut w, pv) in both_returning() {
            happens(&mut w);
            assert_eq!(w.actions(), [""; 0], "{slug}");
            let states = w.states();
            assert!(states.contains(&format!("vol held {slug}")), "{slug}: {states:?}");
            assert_eq!(w.notices(), ["pv-vol VolumeFailedDelete"], "{slug}");
            // Nor does an old attempt change that.
            let due = ScrubState::Failed {
                due: w.now,
                error: "EIO".into(),
            };
            w.scrub(&pv, due);
            assert_eq!(w.actions(), [""; 0], "{slug}");
        }
    }
    for (mut w, _) in both_returning() {
        w.entry("vol", EntryKind::Unresponsive("open".into()));
        w.expect(&[], &["vol unresponsive"], &["pv-vol VolumeFailedDelete"]);
    }
}

#[test]
fn a_volume_is_scrubbed_after_its_class_went() {
    for (mut w, _) in both_returning() {
        w.config.classes.remove("fast");
        w.expect_actions(&[SCRUB]);
    }
}

/// Of a PV of the classic program, which does not say where it was published from.
#[test]
fn a_scrub_that_has_begun_ends_well_without_its_class() {
    for (mut w, pv) in both_returning() {
        w.config.classes.remove("fast");
        let pv = pv.without(names::CLASS_DIRECTORY);
        w.pv(pv.clone());
        w.expect(&[], &["vol held class-not-configured"], &["pv-vol VolumeFailedDelete"]);
        w.scrub(&pv, running());
        w.expect(&[], &["vol scrubbing"], &[]);
        w.scrub(&pv, clean(secs(999), true));
        assert_eq!(w.states(), ["vol released"]);
        assert!(
            w.actions().iter().any(|action| action.contains("let go")),
            "{:?}",
            w.actions()
        );
        w.pod("pv-vol", 0, "/");
        w.expect_actions(&[]);
        w.entry("vol", EntryKind::Failing("EIO".into()));
        w.expect_actions(&[]);
    }
}

#[test]
fn a_device_is_scrubbed_by_the_cleaner_that_it_was_published_with() {
    for (noted, command, by) in [
        (Some(r#"["zero"]"#), None, Ok("zero")),
        (Some(r#"["/scripts/dd_zero.sh"]"#), Some("shred 3"), Ok("zero")),
        (None, None, Ok("zero")),
        (None, Some("/scripts/dd_zero.sh"), Ok("zero")),
        (None, Some("shred 3"), Ok("shred")),
        (Some(r#"["/scripts/quick_reset.sh"]"#), None, Ok("quick")),
        (Some(r#"["/usr/bin/wipe"]"#), None, Ok("command")),
        (Some("zero"), None, Err("cleaner-unavailable")),
        (Some(r#"["shred", "x"]"#), None, Err("cleaner-unavailable")),
    ] {
        for mut w in both_modes() {
            let pv = available_in("raw", "disk", "device wwn=a").released();
            let pv = if w.mode == Mode::Patch { pv.terminating() } else { pv };
            let pv = match noted {
                Some(noted) => pv.annotated(names::CLEANER, noted),
                None => pv.without(names::CLEANER),
            };
            w.pv(pv).entry_of("raw", "disk", disk_with("a", |d| d.users = None));
            let class = w.config.classes.get_mut("raw").unwrap();
            class.block_cleaner_command = command.map(|command| vec![command.to_owned()]);
            match by {
                Ok(word) => {
                    let scrub = format!("scrub pv-disk ({word}, device wwn=a)");
                    w.expect(&[&scrub], &["disk scrubbing"], &["pv-disk VolumeDelete"]);
                }
                Err(slug) => w.expect(&[], &[&format!("disk held {slug}")], &["pv-disk VolumeFailedDelete"]),
            }
        }
    }
    let zero = "scrub pv-disk (zero, device wwn=a)";
    // A device in a Filesystem class is scrubbed as a device, and a read-only one not at all.
    for mut w in both_modes() {
        let pv = returning(w.mode, "disk", "a").annotated(names::VOLUME_ID, "device wwn=a");
        w.pv(pv).entry("disk", disk("a"));
        w.expect(&[zero], &["disk scrubbing"], &[]);
        w.entry("disk", disk_with("a", |d| d.read_only = true));
        w.expect(&[], &["disk held read-only"], &["pv-disk VolumeFailedDelete"]);
    }
}

#[test]
fn failed_and_held_back_scrubs_wait_until_they_are_due() {
    for (mut w, pv) in both_returning() {
        let due = w.now + secs(3);
        let failed = ScrubState::Failed {
            due,
            error: "EIO".into(),
        };
        let held_back = ScrubState::HeldBack {
            due,
            held: Held::ReadOnly,
        };
        for (state, slug) in [(failed, "scrub-failed"), (held_back, "read-only")] {
            w.now = due - secs(3);
            w.scrub(&pv, state);
            w.expect(&[], &[&format!("vol held {slug}")], &["pv-vol VolumeFailedDelete"]);
            assert_eq!(w.plan().wake_at, Some(due));
            w.now = due;
            w.expect_actions(&[SCRUB]);
        }
    }
}

#[test]
fn a_running_scrub_goes_on_and_is_aborted_when_its_pv_changes() {
    for (mut w, pv) in both_returning() {
        w.scrub(&pv, running());
        w.expect(&[], &["vol scrubbing"], &[]);
        w.pv(pv.clone().with(|pv| pv.claim = Some(claim("c2"))));
        w.expect_actions(&["abort uid-vol"]);
        w.pv(pv.clone().with(|pv| pv.claim = None));
        assert!(w.actions().contains(&"abort uid-vol".to_owned()), "{:?}", w.actions());
        w.pv(pv.clone().policy("Retain"));
        w.expect_actions(&["abort uid-vol"]);
        w.pv(pv.policy("Retain").annotated(names::RETAINED, "scrub"));
        let aborted: &[&str] = &[];
        w.expect_actions(aborted);
    }
    // Given back by hand, and bound again.
    let mut w = world();
    w.mode = Mode::Classic;
    w.entry("vol", mount("a"));
    w.scrub(&available("vol", "a").released(), running());
    w.pv(available("vol", "a"));
    w.expect_actions(&["abort uid-vol"]);
    w.pv(available("vol", "a").bound());
    w.expect_actions(&["abort uid-vol"]);
}

#[test]
fn only_so_many_scrubs_run_at_once() {
    for mut w in both_modes() {
        w.limits.scrub_concurrency = 2;
        for entry in ["vol1", "vol2", "vol3"] {
            w.pv(returning(w.mode, entry, entry)).entry(entry, mount(entry));
        }
        assert_eq!(w.actions().len(), 2);
        assert_eq!(w.states(), ["vol1 scrubbing", "vol2 scrubbing", "vol3 released"]);
        let first = returning(w.mode, "vol1", "vol1");
        w.scrub(&first, running());
        w.expect_actions(&["scrub pv-vol2 (files, filesystem uuid=vol2)"]);
    }
}

#[test]
fn on_a_blind_node_a_filesystem_rests_before_and_after_its_scrub() {
    for (mut w, pv) in both_returning() {
        w.blind();
        w.expect(&[], &["vol held resting"], &[]);
        assert_eq!(w.plan().wake_at, Some(w.now + secs(10)), "not seen released before");
        w.memory.released_since.insert("uid-vol".into(), w.now - secs(9));
        w.expect_actions(&[]);
        assert_eq!(w.plan().wake_at, Some(w.now + secs(1)));
        w.memory.released_since.insert("uid-vol".into(), w.now - secs(10));
        w.expect_actions(&[SCRUB]);

        w.scrub(&pv, clean(w.now - secs(9), false));
        w.expect(&[], &["vol held resting"], &[]);
        assert_eq!(w.plan().wake_at, Some(w.now + secs(1)));
        w.scrub(&pv, clean(w.now - secs(10), false));
        w.expect_actions(&[SCRUB]);
        w.scrub(&pv, clean(w.now - secs(10), true));
        assert!(w.actions()[0].contains("pv-vol"), "untouched since: it goes");
        assert!(!w.actions()[0].starts_with("scrub"));
    }
}

#[test]
fn a_device_need_not_rest() {
    for mut w in both_modes() {
        w.blind();
        let pv = available_in("raw", "disk", "device wwn=a").released();
        w.pv(if w.mode == Mode::Patch { pv.terminating() } else { pv });
        w.entry_of("raw", "disk", disk("a"));
        w.expect_actions(&["scrub pv-disk (zero, device wwn=a)"]);
    }
}

#[test]
fn a_bind_that_cannot_complete_is_waited_out() {
    let pv = available("vol", "a")
        .bound()
        .with(|pv| pv.phase = Phase::Available)
        .terminating();
    let world = || {
        let mut w = world();
        w.pv(pv.clone()).entry("vol", mount("a"));
        w
    };
    let present = |uid: &str, volume: &str| ClaimState::Present {
        uid: uid.into(),
        volume_name: volume.into(),
    };
    let held: &[&str] = &["vol held claim-may-live"];
    world().expect(&["read default/claim"], held, &[]);
    for (ago, state, goes_on) in [
        (0, ClaimState::Absent, true),
        (4, present("c1", ""), true),
        (4, present("c1", "pv-other"), true),
        (4, present("c2", "pv-vol"), true),
        (4, present("c1", "pv-vol"), false),
        (4, ClaimState::Unreadable("403".into()), false),
    ] {
        let mut w = world();
        w.claim_read(ago, state.clone());
        if goes_on {
            assert_eq!(w.actions(), [SCRUB], "{state:?}");
        } else {
            w.expect(&[], held, &[]);
            assert_eq!(w.plan().wake_at, Some(w.now + secs(1)), "{state:?}");
        }
    }
    let mut w = world();
    w.claim_read(5, present("c1", "pv-vol"));
    w.expect(&["read default/claim"], held, &[]);
    // A pod that has it mounted is waited for, too.
    let mut w = world();
    w.claim_read(0, ClaimState::Absent).pod("pv-vol", 0, "/");
    w.expect_actions(&[]);
}

#[test]
fn kept_data_lets_its_pv_go_only_once_it_was_taken_out() {
    let kept = available("vol", "a")
        .released()
        .terminating()
        .policy("Retain")
        .annotated(names::RETAINED, "keep");
    let let_go: &[&str] = &["let go pv-vol: finalizers="];
    let still: &[&str] = &[];
    let cases: [(&str, &[&str], Happens); 9] = [
        ("there", still, |w| done(w.entry("vol", mount("a")))),
        ("other storage there", still, |w| done(w.entry("vol", mount("b")))),
        ("hangs", still, |w| {
            done(w.entry("vol", EntryKind::Unresponsive("open".into())))
        }),
        ("unreadable", still, |w| done(w.unreadable("fast"))),
        ("directory missing", still, |w| {
            w.observed.directories.insert(key("fast"), Directory::Missing);
        }),
        ("renamed", still, |w| done(w.entry("vol2", mount("a")))),
        // As after a reboot, when the mount or the disk is late.
        ("unmounted", still, |w| done(w.entry("vol", EntryKind::PlainDirectory))),
        ("removed a moment ago", still, |w| {
            w.memory.missing_since.insert("uid-vol".into(), w.now - secs(59));
        }),
        ("removed", let_go, |w| {
            w.memory.missing_since.insert("uid-vol".into(), w.now - secs(60));
        }),
    ];
    for (what, actions, happens) in cases {
        let mut w = world();
        w.pv(kept.clone());
        happens(&mut w);
        assert_eq!(w.actions(), actions, "{what}");
    }
}

#[test]
fn a_refused_write_is_tried_again_when_it_is_due() {
    let mut w = world();
    w.pv(available("vol", "a").released()).entry("vol", mount("a"));
    w.memory.write_failed("pv-vol", "503".into(), w.now);
    w.expect(&[], &["vol released"], &[]);
    assert_eq!(w.plan().wake_at, Some(w.now + std::time::Duration::from_millis(100)));
    w.now += secs(1);
    w.expect_actions(&["delete pv-vol"]);
    w.memory.in_flight.insert("pv-vol".into());
    w.expect_actions(&[]);
}

#[test]
fn a_scrub_that_hangs_keeps_no_slot_and_is_never_begun_twice() {
    let mut w = world();
    w.limits.scrub_concurrency = 1;
    let hung = available("hung", "a").released().terminating();
    w.pv(hung.clone())
        .pv(available("vol", "b").released().terminating())
        .entry("hung", mount("a"))
        .entry("vol", mount("b"))
        .scrub(&hung, running());
    let timeout = secs(600);
    let progress = Progress::with_stall_timeout(Unit::Entries, timeout).snapshot();
    w.progress.insert(hung.uid.clone(), progress.clone());
    w.expect(&[], &["hung scrubbing", "vol released"], &[]);
    let stalled = Snapshot {
        stalled: Some(timeout),
        ..progress.clone()
    };
    w.progress.insert(hung.uid.clone(), stalled);
    w.expect(
        &["scrub pv-vol (files, filesystem uuid=b)"],
        &["hung unresponsive", "vol scrubbing"],
        &["pv-hung VolumeFailedDelete"],
    );
    assert_eq!(w.plan().volumes[0].health, Health::Bad(Ailment::Unresponsive));
    // It is stopped all the same, when it comes back, if its claim is another.
    w.pv(hung.clone().with(|pv| pv.claim = Some(claim("c2"))));
    assert!(w.actions().contains(&"abort uid-hung".to_owned()), "{:?}", w.actions());
    // It has come back, and both run.
    w.pv(hung);
    w.progress.insert("uid-hung".into(), progress);
    let other = w.cluster.pvs["pv-vol"].clone();
    w.scrub(&other, running());
    w.expect(&[], &["hung scrubbing", "vol scrubbing"], &[]);
}
