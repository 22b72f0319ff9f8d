//! Entries without a PV: which become one, under which name, and which do not.

use std::os::unix::ffi::OsStringExt;

use super::world::*;
use crate::cluster::{JobProgress, Mode, Phase};
use crate::config::VolumeMode;
use crate::name_pattern::NamePattern;
use crate::names;
use crate::observed::{Directory, Entry, EntryKind};
use crate::plan::{Action, State};

#[test]
fn every_qualifying_entry_is_published_and_every_other_says_why_not() {
    for (kind, state) in [
        (mount("a"), "vol available"),
        (disk("a"), "vol available"),
        (EntryKind::File, "vol ignored file"),
        (EntryKind::PlainDirectory, "vol ignored not-a-mount-point"),
        (EntryKind::Fifo, "vol ignored fifo"),
        (EntryKind::Socket, "vol ignored socket"),
        (EntryKind::CharacterDevice, "vol ignored character-device"),
        (EntryKind::DanglingSymlink, "vol ignored dangling-symlink"),
        (EntryKind::SymlinkToDirectory, "vol ignored symlink-to-directory"),
        (EntryKind::SymlinkToOther, "vol ignored symlink-to-other"),
        (EntryKind::Failed("EIO".into()), "vol ignored failed"),
        (EntryKind::Unresponsive("statfs".into()), "vol unresponsive"),
        (mount_with("a", |m| m.deleted = true), "vol ignored source-deleted"),
        (mount_with("a", |m| m.read_only = true), "vol held read-only"),
        (mount_with("a", |m| m.capacity_bytes = 0), "vol ignored no-capacity"),
        (
            mount_with("a", |m| m.id = Err("ENOTTY".into())),
            "vol held identity-unknown",
        ),
        (disk_with("a", |d| d.read_only = true), "vol held read-only"),
        (disk_with("a", |d| d.capacity_bytes = 0), "vol ignored no-capacity"),
        (
            disk_with("a", |d| d.users = Some(vec!["swap".into()])),
            "vol ignored in-use",
        ),
        (disk_with("a", |d| d.users = None), "vol ignored in-use"),
        (
            disk_with("a", |d| d.member_of = Some("LVM2".into())),
            "vol ignored member-of",
        ),
        (
            disk_with("a", |d| d.id = Err("EIO".into())),
            "vol held identity-unknown",
        ),
    ] {
        let mut w = world();
        w.entry("vol", kind);
        let actions: &[&str] = if state == "vol available" {
            &["create /mnt/fast/vol"]
        } else {
            &[]
        };
        w.expect(actions, &[state], &[]);
    }
}

#[test]
fn a_block_class_takes_devices_only() {
    let mut w = world();
    w.entry_of("raw", "disk", disk("a")).entry_of("raw", "fs", mount("b"));
    w.expect(
        &["create /mnt/raw/disk"],
        &["disk available", "fs ignored filesystem-in-block-class"],
        &[],
    );
}

#[test]
fn names_that_do_not_match_or_are_not_utf8_are_ignored() {
    let mut w = world();
    w.fast().name_pattern = NamePattern::parse("ssd*").unwrap();
    w.entry("ssd1", mount("a")).entry("hdd1", mount("b"));
    w.expect_actions(&["create /mnt/fast/ssd1"]);
    assert_eq!(w.states(), ["hdd1 ignored name-pattern", "ssd1 available"]);

    let mut w = world();
    let entry = Entry {
        name: std::ffi::OsString::from_vec(vec![b'a', 0xff]),
        kind: mount("a"),
    };
    w.observed.directories.insert(key("fast"), Directory::Read(vec![entry]));
    w.expect(&[], &["a\u{fffd} ignored not-utf8"], &[]);
}

#[test]
fn the_storage_class_must_exist_and_have_a_policy_that_is_supported() {
    let mut w = world();
    w.entry("vol", mount("a"));
    w.cluster.storage_classes.get_mut("fast").unwrap().reclaim_policy = "Retain".into();
    w.expect_actions(&["create /mnt/fast/vol"]);
    w.cluster.storage_classes.get_mut("fast").unwrap().reclaim_policy = "Recycle".into();
    w.expect(&[], &["vol held unsupported-policy"], &[]);
    w.cluster.storage_classes.remove("fast");
    w.expect(&[], &["vol held storage-class-missing"], &[]);
}

#[test]
fn the_finalizer_is_part_of_the_create_only_where_patching_is_permitted() {
    for (mut w, finalizers) in both_modes()
        .into_iter()
        .zip([Some(vec![names::FINALIZER.to_owned()]), None])
    {
        w.entry("vol", mount("a"));
        let plan = w.plan();
        let [Action::Create(pv)] = plan.actions.as_slice() else {
            panic!("{plan:?}")
        };
        assert_eq!(pv.metadata.finalizers, finalizers, "{:?}", w.mode);
        let annotations = pv.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[names::VOLUME_ID], "filesystem uuid=a");
        assert_eq!(annotations[names::CLASS_DIRECTORY], "/discover/fast");
    }
}

#[test]
fn the_second_entry_of_one_storage_is_ignored() {
    let on_a = |subtree: &str, uuid: &str| {
        let subtree = subtree.into();
        mount_with(uuid, |m| (m.dev, m.subtree) = (dev("a"), subtree))
    };
    for (first, second, duplicate) in [
        (on_a("/x", "1"), on_a("/x", "2"), true),
        (on_a("/x", "1"), on_a("/x/y", "2"), true),
        (on_a("/x/y", "1"), on_a("/x", "2"), true),
        (on_a("/", "1"), on_a("/x", "2"), true),
        (on_a("/x", "1"), on_a("/xy", "2"), false),
        (mount("1"), mount_with("2", |m| m.subtree = "/".into()), false),
        (
            disk("1"),
            disk_with("2", |d| d.storage_keys = vec!["wwn:1".into()]),
            true,
        ),
        (disk("1"), disk("2"), false),
        // A filesystem, and the device that it is on.
        (
            mount_with("1", |m| m.dev = 8 << 8 | 17),
            disk_with("2", |d| d.storage_keys = vec!["dev:8:16".into(), "dev:8:17".into()]),
            true,
        ),
        (
            disk_with("1", |d| d.storage_keys = vec!["dev:8:17".into()]),
            mount_with("2", |m| m.dev = 8 << 8 | 17),
            true,
        ),
        (
            disk_with("1", |d| d.storage_keys = vec!["dev:8:16".into()]),
            mount_with("2", |m| m.dev = 8 << 8 | 17),
            false,
        ),
    ] {
        let mut w = world();
        w.entry("vol1", first.clone()).entry("vol2", second.clone());
        let actions = w.actions();
        let expected: &[&str] = if duplicate {
            &["create /mnt/fast/vol1"]
        } else {
            &["create /mnt/fast/vol1", "create /mnt/fast/vol2"]
        };
        assert_eq!(actions, expected, "{first:?} {second:?}");
        if duplicate {
            assert_eq!(w.states(), ["vol1 available", "vol2 ignored duplicate"]);
        }
    }
}

#[test]
fn storage_that_a_pv_stands_for_is_not_published_again() {
    // Seen at the PV's path, under another identity.
    let mut w = world();
    w.pv(available("vol2", "a")).entry("vol2", mount("a"));
    w.entry("vol1", mount_with("b", |m| m.dev = dev("a")));
    w.expect(&[], &["vol1 ignored duplicate", "vol2 available"], &[]);
    // Noted on a PV whose path shows something else, or nothing, now.
    let mut w = world();
    w.pv(available("vol2", "a").bound()).entry("vol1", mount("a"));
    w.expect(
        &[],
        &["vol1 ignored duplicate", "vol2 vanished"],
        &["pv-vol2 VolumeVanished", "default/claim VolumeVanished"],
    );
    // Noted on a PV that is gone.
    let mut w = world();
    w.gone(available("vol2", "a").released(), crate::cluster::Use::Used);
    w.entry("vol1", mount("a"));
    w.expect(&[], &["vol1 ignored duplicate"], &[]);
    // Under a PV of another program.
    let mut w = world();
    w.pv(available("vol2", "b").without(names::PROVISIONED_BY).legacy());
    w.entry("vol1", mount("a")).entry("vol2", mount("a"));
    w.expect(
        &[],
        &["vol1 ignored duplicate", "vol2 held foreign-pv"],
        &["pv-vol2 ForeignPersistentVolume"],
    );
    // The same storage in a directory of another class.
    let mut w = world();
    w.class("slow", VolumeMode::Filesystem);
    w.entry("vol", mount("a")).entry_of("slow", "vol", mount("a"));
    w.expect_actions(&["create /mnt/fast/vol"]);
}

#[test]
fn a_path_that_a_pv_of_another_class_stands_for_is_not_published() {
    let mut w = world();
    let other = available("vol", "a").with(|pv| pv.class = "renamed".into());
    w.pv(other).entry("vol", mount("a"));
    assert_eq!(w.states(), ["vol ignored duplicate", "vol vanished"]);
    w.expect_actions(&[]);
}

#[test]
fn a_name_that_is_taken_gives_way_to_the_longer_one_and_then_to_none() {
    let classic = names::classic_pv_name("vol", "node1", "fast");
    let long = names::long_pv_name("/mnt/fast/vol".as_ref(), "node1", "fast");
    let created = |w: &World| match w.plan().actions.as_slice() {
        [Action::Create(pv)] => pv.metadata.name.clone(),
        _ => None,
    };
    let mut w = world();
    w.entry("vol", mount("a"));
    assert_eq!(created(&w), Some(classic.clone()));
    w.cluster.names_taken.insert(classic.clone());
    assert_eq!(created(&w), Some(long.clone()));
    w.cluster.names_taken.insert(long);
    w.expect(&[], &["vol held foreign-pv"], &[]);

    let mut w = world();
    w.entry("vol", mount("a")).entry("other", mount("b"));
    w.pv(available("other", "b").with(|pv| pv.name = classic));
    w.expect_actions(&["create /mnt/fast/vol"]);
    assert!(created(&w).unwrap().len() > 40);
}

#[test]
fn two_new_entries_never_get_one_name() {
    // "ab" in class "c" and "a" in class "bc" would be: FNV-1a over "ab"+"node1"+"c". The node's name is between, so
    // make it repeat.
    let mut w = world();
    w.node.name = "xx".into();
    w.class("xc", VolumeMode::Filesystem);
    w.class("c", VolumeMode::Filesystem);
    w.entry_of("c", "ax", mount("a")).entry_of("xc", "a", mount("b"));
    let names: Vec<_> = w
        .plan()
        .actions
        .into_iter()
        .map(|action| match action {
            Action::Create(pv) => pv.metadata.name.unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        names,
        [
            names::classic_pv_name("ax", "xx", "c"),
            names::long_pv_name("/mnt/xc/a".as_ref(), "xx", "xc")
        ]
    );
    assert_eq!(
        names[0],
        names::classic_pv_name("a", "xx", "xc"),
        "or this shows nothing"
    );
}

#[test]
fn what_a_job_or_a_pod_still_works_on_is_not_published() {
    let mut w = world();
    w.entry("vol", mount("a"));
    let name = names::classic_pv_name("vol", "node1", "fast");
    w.job(&name, job(&name, "former", JobProgress::AtWork));
    w.expect(&[], &["vol held job-running"], &[]);

    for (pv, on, subtree, in_use) in [
        (name.as_str(), "z", "/", true),
        ("another", "a", "/", true),
        ("another", "a", "/sub/path", true),
        ("another", "b", "/", false),
    ] {
        let mut w = world();
        w.entry("vol", mount("a")).pod(pv, dev(on), subtree);
        let state = if in_use { "vol ignored in-use" } else { "vol available" };
        assert_eq!(w.states(), [state], "{pv} {on} {subtree}");
    }
    let mut w = world();
    w.entry("vol", mount_with("a", |m| m.subtree = "/one".into()));
    w.pod("another", dev("a"), "/two");
    w.expect_actions(&["create /mnt/fast/vol"]);
    let mut w = world();
    w.entry_of("raw", "disk", disk("a")).pod("another", dev("a"), "/");
    w.expect(&[], &["disk ignored in-use"], &[]);
}

#[test]
fn a_pv_of_another_program_in_our_directory_is_left_alone() {
    for mut w in both_modes() {
        let foreign = available("vol", "a").without(names::PROVISIONED_BY);
        for phase in [Phase::Available, Phase::Bound, Phase::Released, Phase::Failed] {
            w.pv(foreign.clone().with(|pv| pv.phase = phase))
                .entry("vol", mount("a"));
            w.expect(&[], &["vol held foreign-pv"], &["pv-vol ForeignPersistentVolume"]);
        }
        w.pv(foreign.with(|pv| pv.path = Some("/somewhere/vol".into())));
        assert_eq!(w.notices(), [""; 0]);
    }
}

#[test]
fn a_pv_of_the_former_node_object_is_adopted_only_if_it_is_provably_the_same_storage() {
    let by = "local-volume-provisioner-node1-00000000-2222-3333-4444-555555555555";
    let former = || available("vol", "a").annotated(names::PROVISIONED_BY, by);
    let mut w = world();
    w.pv(former()).entry("vol", mount("a"));
    w.expect_actions(&[&format!(
        "patch pv-vol: provisioned-by=local-volume-provisioner-node1-{NODE_UID}"
    )]);
    for (pv, kind) in [
        (former(), mount("b")),
        (former(), EntryKind::PlainDirectory),
        (former().legacy(), mount("a")),
    ] {
        let mut w = world();
        w.pv(pv).entry("vol", kind);
        w.expect_actions(&[]);
    }
    w.mode = Mode::Classic;
    w.expect(&[], &["vol held foreign-pv"], &["pv-vol ForeignPersistentVolume"]);
}

#[test]
fn storage_whose_pv_may_have_been_made_is_spoken_for() {
    let mut w = world();
    let making = available("elsewhere", "a");
    w.memory.creating.insert(making.name.clone(), making);
    w.entry("vol", mount("a"));
    w.expect(&[], &["vol ignored duplicate"], &[]);
    w.memory.creating.clear();
    // Under another name, for the same path, as another class would make it.
    let making = available("vol", "a");
    w.memory.creating.insert(making.name.clone(), making);
    w.expect(&[], &["vol ignored duplicate"], &[]);
    w.memory.creating.clear();
    w.expect_actions(&["create /mnt/fast/vol"]);
}

#[test]
fn nothing_is_planned_for_what_is_under_way_or_waits_for_its_retry() {
    let name = names::classic_pv_name("vol", "node1", "fast");
    let mut w = world();
    w.entry("vol", mount("a"));
    w.memory.in_flight.insert(name.clone());
    w.expect(&[], &["vol available"], &[]);
    w.memory.in_flight.clear();
    w.memory.write_failed(&name, "503".into(), w.now);
    w.expect_actions(&[]);
    assert_eq!(w.plan().wake_at, Some(w.now + std::time::Duration::from_millis(100)));
    w.now += std::time::Duration::from_millis(100);
    w.expect_actions(&["create /mnt/fast/vol"]);
}

#[test]
fn an_unreadable_directory_says_nothing_about_its_entries() {
    let mut w = world();
    w.pv(available("vol", "a")).unreadable("fast");
    w.memory.missing_since.insert("uid-vol".into(), secs(0));
    w.expect(&[], &["vol available"], &[]);
    assert!(matches!(w.plan().volumes[0].state, State::Available));
    assert!(w.plan().volumes[0].warning.is_some());
}

#[test]
fn of_many_new_volumes_some_have_their_turn_after_others() {
    let mut w = world();
    w.limits.creations = 3;
    for (entry, uuid) in [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")] {
        w.entry(entry, mount(uuid));
    }
    w.expect_actions(&["create /mnt/fast/a", "create /mnt/fast/b", "create /mnt/fast/c"]);
    assert_eq!(w.states().len(), 5, "each has its row");
    // One is on its way, and one is not due again yet: only the former takes a turn.
    let name = |entry| names::classic_pv_name(entry, "node1", "fast");
    let making = available("a", "1").with(|pv| pv.name = name("a"));
    w.memory.creating.insert(making.name.clone(), making);
    w.memory.in_flight.insert(name("a"));
    w.memory.write_failed(&name("b"), "503".into(), w.now);
    w.expect_actions(&["create /mnt/fast/c", "create /mnt/fast/d"]);
    // Those that are refused, and are read before they are tried again, take none.
    w.memory.in_flight.clear();
    w.expect_actions(&["create /mnt/fast/a", "create /mnt/fast/c", "create /mnt/fast/d"]);
}
