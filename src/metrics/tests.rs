#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;
use crate::cluster::{ClaimRef, Phase, Pv};
use crate::config::Class;
use crate::observed::DirectoryKey;
use crate::plan::{State, Volume};
use crate::reason::{Held, Ignored};
use crate::scrub::progress::Progress;

fn ownership() -> Ownership {
    Ownership {
        node_name: "node1".into(),
        node_uid: "u".into(),
        hostname: "host1".into(),
        node_name_only: false,
    }
}

fn row(entry: &str, state: State, pv: Option<&str>) -> Volume {
    Volume {
        directory: DirectoryKey::new("raw", "/mnt/raw", "/discover/raw"),
        entry: entry.into(),
        state,
        pv: pv.map(str::to_owned),
        published: pv.is_some(),
        claim: None,
        capacity: Some("10Gi".into()),
        id: None,
        warning: None,
        health: crate::plan::Health::Good,
    }
}

fn config() -> Config {
    let class = Class {
        name: "raw".into(),
        host_dir: "/mnt/raw".into(),
        mount_dir: "/discover/raw".into(),
        volume_mode: VolumeMode::Block,
        access_mode: "ReadWriteOnce".into(),
        fs_type: None,
        name_pattern: crate::name_pattern::NamePattern::default(),
        block_cleaner_command: None,
        selector: Vec::new(),
    };
    Config {
        classes: [("raw".to_owned(), class)].into(),
        ..Config::default()
    }
}

/// What a pass with these rows, and with these PVs, leaves.
fn pass(metrics: &Metrics, volumes: Vec<Volume>, cluster: &Cluster) -> String {
    let plan = Plan {
        volumes,
        ..Plan::default()
    };
    let mut memory = Memory::default();
    memory.note(&[], cluster, &ownership(), Duration::ZERO);
    metrics.pass(&plan, &config(), cluster, &ownership(), &memory);
    metrics.text()
}

#[track_caller]
fn has(text: &str, line: &str) {
    let line = format!("local_volume_provisioner_{line}\n");
    assert!(text.contains(&line), "{line}\n{text}");
}

#[test]
fn type_lines_carry_the_full_name() {
    let metrics = Metrics::new().unwrap();
    metrics.api_call("create", Duration::from_millis(3), false);
    let text = metrics.text();
    assert!(
        text.contains("# TYPE local_volume_provisioner_apiserver_requests_total counter\n"),
        "{text}"
    );
    has(&text, "apiserver_requests_total{method=\"create\"} 1");
    has(&text, "persistentvolume_capacity_bytes{mode=\"Block\"} 0");
}

#[test]
fn a_running_scrub_shows_how_far_it_is_and_is_forgotten_when_it_ends() {
    let metrics = Metrics::new().unwrap();
    let progress = Progress::new(Unit::Bytes, 100);
    progress.add(40);
    let volume = row("disk", State::Scrubbing(Some(progress.snapshot())), Some("pv1"));
    let text = pass(&metrics, vec![volume], &Cluster::default());
    has(&text, "scrub_done{persistentvolume=\"pv1\",unit=\"bytes\"} 40");
    has(&text, "scrub_size{persistentvolume=\"pv1\",unit=\"bytes\"} 100");
    assert!(!pass(&metrics, Vec::new(), &Cluster::default()).contains("pv1"));
}

#[test]
fn volumes_are_counted_by_what_they_are() {
    let metrics = Metrics::new().unwrap();
    let lost = Volume {
        claim: Some("team/data".into()),
        ..row("c", State::Vanished("gone".into()), Some("pv3"))
    };
    let warned = Volume {
        warning: Some("something".into()),
        health: crate::plan::Health::Bad(crate::reason::Ailment::Failing),
        ..row("d", State::Bound, Some("pv4"))
    };
    let rows = vec![
        row("a", State::Ignored(Ignored::File), None),
        row("b", State::Vanished("gone".into()), Some("pv2")),
        lost,
        warned,
        row("e", State::Held(Held::Kept), Some("pv5")),
    ];
    let text = pass(&metrics, rows, &Cluster::default());
    for line in [
        "volumes_ignored{reason=\"file\"} 1",
        "volumes_held{reason=\"kept\"} 1",
        "volumes{state=\"vanished\",storage_class=\"raw\"} 2",
        "volumes_vanished_bound 1",
        "volumes_with_warning 1",
        "volumes_unhealthy{reason=\"failing\"} 1",
        "volumes_unhealthy{reason=\"read-only\"} 0",
    ] {
        has(&text, line);
    }
    let text = pass(&metrics, Vec::new(), &Cluster::default());
    for line in [
        "volumes{state=\"vanished\",storage_class=\"raw\"} 0",
        "volumes_vanished_bound 0",
        "volumes_with_warning 0",
    ] {
        has(&text, line);
    }
    for gone in ["volumes_held{", "volumes_ignored{"] {
        assert!(!text.contains(gone), "{text}");
    }
}

#[test]
fn every_state_has_its_series() {
    let progress = Progress::new(Unit::Bytes, 1).snapshot();
    let states = [
        State::Ignored(Ignored::File),
        State::Available,
        State::Bound,
        State::Released,
        State::Scrubbing(Some(progress)),
        State::Held(Held::Kept),
        State::Unresponsive(String::new()),
        State::Vanished(String::new()),
    ];
    assert_eq!(states.map(|state| state.word()), State::WORDS);
}

/// A PV as the API has it after its claim went.
fn released(name: &str) -> Pv {
    Pv {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        path: Some("/mnt/raw/disk".into()),
        hostnames: vec!["host1".into()],
        capacity: "10Gi".into(),
        mode: VolumeMode::Block,
        phase: Phase::Released,
        claim: Some(ClaimRef {
            namespace: "team".into(),
            name: "data".into(),
            uid: "claim".into(),
        }),
        annotations: [(crate::names::PROVISIONED_BY, "local-volume-provisioner-node1-u".into())]
            .into_iter()
            .collect(),
        ..Pv::from(&k8s_openapi::api::core::v1::PersistentVolume::default())
    }
}

fn with(pv: Pv) -> Cluster {
    Cluster {
        pvs: [(pv.name.clone(), pv)].into(),
        ..Cluster::default()
    }
}

#[test]
fn a_release_is_timed_until_the_next_pv_and_its_storage_never_misses() {
    let metrics = Metrics::new().unwrap();
    let capacity = "persistentvolume_capacity_bytes{mode=\"Block\"} 10737418240";
    let mut bound = released("pv1");
    bound.phase = Phase::Bound;
    let text = pass(&metrics, vec![row("disk", State::Bound, Some("pv1"))], &with(bound));
    has(&text, capacity);
    has(&text, "oldest_release_timestamp_seconds 0");
    let text = pass(
        &metrics,
        vec![row("disk", State::Released, Some("pv1"))],
        &with(released("pv1")),
    );
    has(&text, capacity);
    let since = |text: &str| -> f64 {
        let name = "local_volume_provisioner_oldest_release_timestamp_seconds ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().parse().unwrap()
    };
    let first = since(&text);
    assert!((first - releases::now().as_secs_f64()).abs() < 60.0, "{first}");
    // It is gone, and the next is about to be made.
    let between = Volume {
        published: false,
        ..row("disk", State::Available, Some("pv1"))
    };
    let text = pass(&metrics, vec![between.clone()], &Cluster::default());
    has(&text, capacity);
    assert!((since(&text) - first).abs() < 1e-9, "{text}");
    has(&text, "released_to_available_seconds_count 0");
    metrics.created("/mnt/raw/disk".as_ref(), VolumeMode::Block, Duration::from_millis(2));
    has(&metrics.text(), "released_to_available_seconds_count 1");
    // A new volume was not released.
    metrics.created("/mnt/raw/disk".as_ref(), VolumeMode::Block, Duration::from_millis(2));
    has(&metrics.text(), "released_to_available_seconds_count 1");
    let text = pass(&metrics, vec![between], &Cluster::default());
    has(&text, "oldest_release_timestamp_seconds 0");
    has(&text, "persistentvolume_capacity_bytes{mode=\"Block\"} 0");
}

#[test]
fn the_watch_may_show_the_next_pv_before_its_creation_is_answered() {
    let metrics = Metrics::new().unwrap();
    let rows = |state| vec![row("disk", state, Some("pv1"))];
    pass(&metrics, rows(State::Released), &with(released("pv1")));
    let mut next = released("pv1");
    (next.uid, next.phase, next.claim) = ("another".into(), Phase::Available, None);
    let text = pass(&metrics, rows(State::Available), &with(next));
    has(&text, "released_to_available_seconds_count 1");
    metrics.created("/mnt/raw/disk".as_ref(), VolumeMode::Block, Duration::ZERO);
    has(&metrics.text(), "released_to_available_seconds_count 1");
    // The same PV in circulation again was handed on by hand.
    pass(&metrics, rows(State::Released), &with(released("pv1")));
    let mut cleared = released("pv1");
    (cleared.phase, cleared.claim) = (Phase::Available, None);
    let text = pass(&metrics, rows(State::Available), &with(cleared));
    has(&text, "released_to_available_seconds_count 1");
    has(&text, "oldest_release_timestamp_seconds 0");
}

#[test]
fn what_is_kept_or_gone_waits_for_nothing() {
    let metrics = Metrics::new().unwrap();
    let text = pass(
        &metrics,
        vec![row("disk", State::Held(Held::Retain), Some("pv1"))],
        &with(released("pv1")),
    );
    has(&text, "oldest_release_timestamp_seconds 0");
    let held = || vec![row("disk", State::Held(Held::InUse("pod".into())), Some("pv1"))];
    let text = pass(&metrics, held(), &with(released("pv1")));
    assert!(!text.contains("oldest_release_timestamp_seconds 0\n"), "{text}");
    // Its volume was removed, and nothing will be published.
    let text = pass(&metrics, Vec::new(), &Cluster::default());
    has(&text, "oldest_release_timestamp_seconds 0");
    metrics.created("/mnt/raw/disk".as_ref(), VolumeMode::Block, Duration::ZERO);
    has(&metrics.text(), "released_to_available_seconds_count 0");
}

#[test]
fn a_thousand_volumes_have_as_many_series_as_ten() {
    let series = |count: usize| {
        let metrics = Metrics::new().unwrap();
        let rows = (0..count)
            .map(|number| row(&format!("disk{number}"), State::Bound, Some(&format!("pv{number}"))))
            .collect();
        let text = pass(&metrics, rows, &Cluster::default());
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    assert_eq!(series(1_000), series(10));
}

#[test]
fn the_configuration_s_last_good_reading_stays_known() {
    let metrics = Metrics::new().unwrap();
    has(&metrics.text(), "config_last_reload_success_timestamp_seconds 0");
    let time = |text: &str| {
        let found = text
            .lines()
            .find(|line| line.starts_with("local_volume_provisioner_config_last_reload_success_timestamp_seconds "));
        found.unwrap().to_owned()
    };
    metrics.config_problems(0);
    let good = metrics.text();
    has(&good, "config_last_reload_successful 1");
    assert!(!time(&good).ends_with(" 0"), "{good}");
    metrics.config_problems(2);
    let bad = metrics.text();
    has(&bad, "config_last_reload_successful 0");
    has(&bad, "config_problems 2");
    assert_eq!(time(&bad), time(&good));
}

#[test]
fn what_is_listed_is_what_is_served() {
    let metrics = Metrics::new().unwrap();
    metrics.woken(Cause::MountTable);
    metrics.event(false);
    metrics.scrub_counter(Unit::Entries).inc_by(5);
    metrics.scrub_ended(Duration::from_secs(2));
    metrics.watch_restarts().with_label_values(&["nodes"]).inc();
    metrics.pass_ended(Duration::from_millis(3));
    metrics.ready(true);
    let text = metrics.text();
    for line in [
        "wakes_total{cause=\"mount-table\"} 1",
        "wakes_total{cause=\"timer\"} 0",
        "events_total{result=\"dropped\"} 1",
        "scrubbed_entries_total 5",
        "scrub_seconds_total 2",
        "watch_restarts_total{resource=\"nodes\"} 1",
        "pass_duration_seconds_count 1",
        "ready 1",
        concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        has(&text, line);
    }
    let listed: BTreeSet<&str> = metrics.descriptions().iter().map(|it| it.name.as_str()).collect();
    assert_eq!(listed.len(), metrics.descriptions().len());
    let served = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for name in served.filter_map(|line| line.split(' ').next()) {
        assert!(listed.contains(name), "{name}");
    }
    assert!(listed.contains("process_resident_memory_bytes"));
    assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
}
