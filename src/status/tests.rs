#![allow(clippy::unwrap_used)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::cluster::Mode;
use crate::config::{self, Loaded};
use crate::http::Health;
use crate::observed::{self, DirectoryKey, HostView, Observed};
use crate::plan::{self, Notice, Severity, State};
use crate::reason::{Held, Ignored};
use crate::scrub::progress::{Progress, Unit};

fn key(class: &str) -> DirectoryKey {
    DirectoryKey::new(class, format!("/mnt/{class}"), format!("/in/{class}"))
}

fn row(entry: impl Into<OsString>, state: State, pv: Option<&str>) -> plan::Volume {
    plan::Volume {
        directory: key("fast"),
        entry: entry.into(),
        state,
        pv: pv.map(str::to_owned),
        published: pv.is_some(),
        claim: None,
        capacity: None,
        id: None,
        warning: None,
        health: plan::Health::default(),
    }
}

fn notice(message: &str) -> Notice {
    Notice {
        pv: "pv-1".into(),
        uid: "u".into(),
        claim: None,
        severity: Severity::Warning,
        reason: "VolumeMismatch",
        message: message.into(),
    }
}

const OWN: PersistentVolumes = PersistentVolumes {
    total: 3,
    with_finalizer: 2,
};

fn board() -> (Arc<Health>, Board) {
    let health = Arc::new(Health::default());
    (Arc::clone(&health), Board::new("node1", health))
}

/// The times are out of the way, after a look at their form.
fn without_times(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    if ["time", "started", "looked", "loaded", "read", "since"].contains(&name.as_str())
                        && let Value::String(text) = value
                    {
                        assert!(text.ends_with('Z') && text.len() == 20, "{name}: {text}");
                        "TIME".clone_into(text);
                    }
                    walk(value);
                }
            }
            Value::Array(list) => list.iter_mut().for_each(walk),
            _ => {}
        }
    }
    walk(&mut value);
    value
}

fn of(board: &Board) -> Value {
    without_times(serde_json::to_value(board.status()).unwrap())
}

#[test]
fn before_the_first_look_it_says_what_it_waits_for() {
    let (_, board) = board();
    assert_eq!(
        of(&board),
        json!({
            "version": 1, "program": env!("CARGO_PKG_VERSION"), "node": "node1", "time": "TIME", "started": "TIME",
            "ready": false, "waiting_for": ["the first look at the node"],
            "startup_taint": null, "mode": null, "host_mounts": null,
            "configuration": {"loaded": null, "read": null, "problems": [], "warnings": [], "classes": []},
            "directories": [], "looked": null, "volumes": [], "scrubs": [], "persistent_volumes": null, "events": [],
        })
    );
}

#[test]
fn a_known_world_is_told_completely() {
    let (health, board) = board();
    health.waits_for(Vec::new());
    let yaml = "fast:\n  hostDir: /mnt/fast\n  mountDir: /in/fast\n  volumeMode: Block\nbad: {}\n";
    let mut loaded: Loaded = config::parse_manifest(
        "map.yaml",
        &format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\ndata:\n  storageClassMap: |\n    {}",
            yaml.trim_end().replace('\n', "\n    ")
        ),
    );
    loaded.problems.truncate(1);
    board.configuration(&loaded, true);
    board.looked(&Observed {
        directories: [
            (key("fast"), observed::Directory::Read(Vec::new())),
            (key("gone"), observed::Directory::Missing),
            (key("sick"), observed::Directory::Unreadable("EIO".into())),
        ]
        .into(),
        host: HostView::Blind("no such file".into()),
        boot_id: String::new(),
    });
    let progress = Progress::new(Unit::Bytes, 1_000);
    progress.inherit(400);
    progress.add(100);
    board.scrubs([("pv-2".to_owned(), progress.clone())].into());
    let bound = plan::Volume {
        claim: Some("team/data".into()),
        capacity: Some("20Gi".into()),
        id: Some("device wwn=1".parse().unwrap()),
        warning: Some("its capacity is 10Gi now, and 20Gi was published".into()),
        ..row("disk1", State::Bound, Some("pv-1"))
    };
    let rows = vec![
        bound,
        row("disk2", State::Scrubbing(None), Some("pv-2")),
        row("disk3", State::Ignored(Ignored::InUse("swap".into())), None),
        row("disk4", State::Held(Held::Kept), Some("pv-4")),
    ];
    board.planned(rows, OWN, Mode::Patch);
    board.told(&notice("first"));
    board.told(&notice("second"));
    let status = of(&board);
    assert_eq!(status["ready"], true);
    assert_eq!(status["mode"], "Patch");
    assert_eq!(status["host_mounts"], json!({"seen": false, "reason": "no such file"}));
    assert_eq!(status["persistent_volumes"], json!({"total": 3, "with_finalizer": 2}));
    assert_eq!(status["looked"], "TIME");
    let configuration = &status["configuration"];
    assert_eq!(configuration["loaded"], "TIME");
    assert_eq!(
        configuration["classes"],
        json!([{"name": "fast", "host_dir": "/mnt/fast", "mount_dir": "/in/fast", "volume_mode": "Block"}])
    );
    let problem = &configuration["problems"][0];
    assert_eq!(
        (&problem["file"], &problem["class"]),
        (&json!("map.yaml"), &json!("bad"))
    );
    assert!(problem["line"].is_u64() && problem["key"].as_str().unwrap().starts_with("storageClassMap.bad"));
    assert_eq!(
        status["directories"],
        json!([
            {"class": "fast", "host_dir": "/mnt/fast", "mount_dir": "/in/fast", "entries": 0, "error": null},
            {"class": "gone", "host_dir": "/mnt/gone", "mount_dir": "/in/gone", "entries": null, "error": "it does not exist; make it"},
            {"class": "sick", "host_dir": "/mnt/sick", "mount_dir": "/in/sick", "entries": null, "error": "EIO"},
        ])
    );
    assert_eq!(
        status["volumes"][0],
        json!({
            "class": "fast", "directory": "/mnt/fast", "entry": "disk1", "state": "bound", "reason": null, "slug": null,
            "cause": null, "advice": null, "commands": [], "warning": "its capacity is 10Gi now, and 20Gi was published",
            "unhealthy": null, "attention": true,
            "pv": "pv-1", "published": true, "claim": "team/data", "capacity": "20Gi", "id": "device wwn=1", "since": "TIME",
        })
    );
    let some = |row: usize| {
        let row = &status["volumes"][row];
        ["state", "slug", "reason", "advice", "attention"].map(|name| row[name].clone())
    };
    assert_eq!(
        some(2),
        [
            json!("ignored"),
            json!("in-use"),
            json!("in use: swap"),
            json!("end that use"),
            json!(true)
        ]
    );
    let [state, slug, reason, advice, attention] = some(3);
    assert_eq!((state, slug), (json!("held"), json!("kept")));
    let action = Held::Kept.action().unwrap();
    assert_eq!(advice, json!(action));
    let cause = status["volumes"][3]["cause"].as_str().unwrap();
    assert_eq!(reason, json!(format!("{cause}; {action}")));
    assert_eq!((reason, attention), (json!(Held::Kept.to_string()), json!(true)));
    let scrub = &status["scrubs"][0];
    assert_eq!(
        ["pv", "unit", "done", "total", "resumed_at"].map(|name| scrub[name].clone()),
        [json!("pv-2"), json!("bytes"), json!(500), json!(1_000), json!(400)]
    );
    assert!(scrub["text"].as_str().unwrap().contains("resumed at 40 %"));
    assert_eq!(some(1)[2], scrub["text"]);
    assert_eq!(some(1)[4], false);
    let told: Vec<&Value> = status["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["message"])
        .collect();
    assert_eq!(told, ["second", "first"]);
    // Progress is read when somebody asks.
    progress.add(250);
    assert_eq!(of(&board)["scrubs"][0]["done"], 750);
    // What is said is read again.
    let status = board.status();
    let again: Status = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
    assert_eq!(again.volumes, status.volumes);
}

#[test]
fn names_from_outside_are_text_and_nothing_else() {
    let (_, board) = board();
    let names = [
        OsString::from("<img src=x onerror=alert(1)>"),
        OsString::from("quote\"' & </script>"),
        OsString::from("line\nbreak\u{1b}[2J"),
        OsString::from_vec(b"not-utf8-\xff\xfe".to_vec()),
    ];
    let rows = names
        .iter()
        .map(|name| row(name, State::Ignored(Ignored::File), None))
        .collect();
    board.planned(rows, OWN, Mode::Classic);
    let text = serde_json::to_string(&board.status()).unwrap();
    assert!(!text.chars().any(char::is_control));
    let status: Status = serde_json::from_str(&text).unwrap();
    let entries: Vec<&str> = status.volumes.iter().map(|volume| volume.entry.as_str()).collect();
    assert_eq!(
        entries,
        [
            "<img src=x onerror=alert(1)>",
            "quote\"' & </script>",
            "line\\nbreak\\u{1b}[2J",
            "not-utf8-\\xff\\xfe"
        ]
    );
}

#[test]
fn since_when_is_kept_while_state_and_reason_stay() {
    let (_, board) = board();
    let plan = |states: &[(&str, State)]| {
        let rows = states.iter().map(|(name, state)| row(*name, state.clone(), Some("pv")));
        board.planned(rows.collect(), OWN, Mode::Patch);
        board.since()
    };
    let busy = |by: &str| State::Held(Held::InUse(by.into()));
    let first = plan(&[("a", busy("pod 1")), ("b", State::Available)]);
    let next = plan(&[("a", busy("pod 2")), ("b", State::Bound)]);
    assert_eq!(next[0], first[0], "another user is no other reason");
    assert!(next[1] > first[1], "another state is");
    let last = plan(&[("a", State::Held(Held::ReadOnly)), ("b", State::Bound)]);
    assert!(last[0] > next[0], "another reason is");
    assert_eq!(last[1], next[1]);
    plan(&[("b", State::Bound)]);
    let back = plan(&[("a", State::Held(Held::ReadOnly)), ("b", State::Bound)]);
    assert!(back[0] > last[0], "what was away has come back");
}

#[test]
fn the_last_fifty_events_are_kept() {
    let (_, board) = board();
    (0..60).for_each(|number| board.told(&notice(&number.to_string())));
    let events = board.status().events;
    assert_eq!(events.len(), 50);
    assert_eq!((&*events[0].message, &*events[49].message), ("59", "10"));
}

#[test]
fn an_edit_that_changes_nothing_leaves_the_configuration_s_age() {
    let (_, board) = board();
    let mut loaded = Loaded::default();
    board.configuration(&loaded, false);
    let first = board.status().configuration;
    assert!(first.loaded.is_none() && first.read.is_some());
    board.configuration(&loaded, true);
    loaded.problems.push(config::Problem {
        file: "f".into(),
        line: None,
        key: String::new(),
        class: None,
        message: "m".into(),
    });
    board.configuration(&loaded, false);
    let now = board.status().configuration;
    assert!(now.loaded.is_some() && now.problems.len() == 1);
}

#[test]
fn names_cannot_move_the_cursor() {
    use std::os::unix::ffi::OsStrExt;
    assert_eq!(printable(OsStr::new("disk 1")), "disk 1");
    assert_eq!(printable(OsStr::new("a\x1b[2J\t")), "a\\u{1b}[2J\\t");
    assert_eq!(printable(OsStr::from_bytes(b"a\xff")), "a\\xff");
}

#[test]
fn every_reason_says_what_to_do_and_decisions_have_their_commands() {
    let commands = |state: State, published: bool| {
        let volume = plan::Volume {
            published,
            ..row("disk", state, Some("pv-1"))
        };
        let (_, board) = board();
        board.planned(vec![volume], OWN, Mode::Patch);
        let volume = board.status().volumes.remove(0);
        assert!(
            volume.advice.is_some_and(|advice| !advice.is_empty()),
            "{:?}",
            volume.reason
        );
        volume.commands
    };
    let wrong = || {
        State::Held(Held::WrongStorage {
            expected: "a".into(),
            found: "b".into(),
        })
    };
    let annotate = "kubectl annotate pv pv-1 local-volume-provisioner/";
    assert_eq!(commands(wrong(), true), [format!("{annotate}resolve=adopt")]);
    assert!(commands(wrong(), false).is_empty(), "there is no PV to annotate");
    let quarantined = Held::Quarantined {
        error: "EIO".into(),
        failures: 10,
    };
    assert_eq!(
        commands(State::Held(quarantined), true),
        [format!("{annotate}resolve=retry")]
    );
    for held in [Held::UnknownUse, Held::RetainDeleting] {
        let both = [format!("{annotate}retained=scrub"), format!("{annotate}retained=keep")];
        assert_eq!(commands(State::Held(held), true), both);
    }
    assert_eq!(
        commands(State::Held(Held::Retain), true),
        ["kubectl delete pv pv-1 --wait=false"]
    );
    for held in [Held::NestedMounts(vec!["/x".into()]), Held::InUse("pod".into())] {
        assert!(commands(State::Held(held), true).is_empty());
    }
    for state in [
        State::Ignored(Ignored::NotAMountPoint),
        State::Vanished("gone".into()),
        State::Unresponsive("stat".into()),
    ] {
        assert!(commands(state, true).is_empty());
    }
}

#[test]
fn a_scrub_that_is_not_the_process_s_own_is_a_job_s() {
    let (_, board) = board();
    board.planned(
        vec![row("disk", State::Scrubbing(None), Some("pv-1"))],
        OWN,
        Mode::Patch,
    );
    assert_eq!(board.status().volumes[0].reason.as_deref(), Some("in a cleaning Job"));
}
