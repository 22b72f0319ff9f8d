#![allow(clippy::unwrap_used)]

use super::*;
use crate::names;
use k8s_openapi::api::core::v1::PersistentVolume;

const NOW: Duration = Duration::from_secs(1000);

fn ownership() -> Ownership {
    Ownership {
        node_name: "node1".into(),
        node_uid: "n".into(),
        hostname: "host1".into(),
        node_name_only: true,
    }
}

/// A Released PV of ours.
fn released() -> Pv {
    Pv {
        name: "pv".into(),
        uid: "uid".into(),
        annotations: [(names::PROVISIONED_BY, "local-volume-provisioner-node1".into())]
            .into_iter()
            .collect(),
        path: Some("/mnt/fast/vol".into()),
        hostnames: vec!["host1".into()],
        claim: Some(ClaimRef {
            namespace: "default".into(),
            name: "claim".into(),
            uid: "c1".into(),
        }),
        phase: Phase::Released,
        reclaim_policy: "Delete".into(),
        ..Pv::from(&PersistentVolume::default())
    }
}

fn unused() -> Pv {
    Pv {
        claim: None,
        phase: Phase::Available,
        ..released()
    }
}

fn cluster(pvs: &[Pv]) -> Cluster {
    Cluster {
        pvs: pvs.iter().map(|pv| (pv.name.clone(), pv.clone())).collect(),
        ..Cluster::default()
    }
}

fn scrub(claim: &str, state: ScrubState) -> Scrub {
    Scrub {
        claim_uid: Some(claim.into()),
        failures: 0,
        held_back: 0,
        last_hold: None,
        state,
    }
}

fn clean(settled: bool) -> ScrubState {
    ScrubState::Clean {
        at: NOW,
        stamp: None,
        settled,
    }
}

fn running() -> ScrubState {
    ScrubState::Running
}

fn after_the_end(mut memory: Memory, pv: &Pv) -> Memory {
    memory.note(std::slice::from_ref(pv), &cluster(&[]), &ownership(), NOW);
    memory
}

fn remembered(memory: &Memory) -> Option<Use> {
    memory.gone.values().next().map(|gone| gone.usage)
}

#[test]
fn backoff_doubles_up_to_its_bound() {
    assert_eq!(api_backoff(1), Duration::from_millis(100));
    assert_eq!(api_backoff(3), Duration::from_millis(400));
    assert_eq!(api_backoff(50), Duration::from_secs(10));
    assert_eq!(scrub_backoff(1), Duration::from_secs(1));
    assert_eq!(scrub_backoff(9), Duration::from_secs(256));
    assert_eq!(scrub_backoff(10), Duration::from_secs(300));
}

#[test]
fn failed_writes_in_a_row_wait_longer() {
    let mut memory = Memory::default();
    assert_eq!(memory.write_failed("pv", "503".into(), NOW), 1);
    assert_eq!(memory.write_failed("pv", "503".into(), NOW), 2);
    assert_eq!(memory.retries["pv"].due, NOW + Duration::from_millis(200));
}

#[test]
fn a_retry_whose_time_has_come_is_not_waited_for() {
    let mut memory = Memory::default();
    memory.write_failed("pv", "503".into(), NOW);
    memory.write_failed("other", "503".into(), NOW + Duration::from_secs(1));
    let after = |millis| NOW + Duration::from_millis(millis);
    assert_eq!(memory.next_retry(NOW), Some(after(100)));
    assert_eq!(
        memory.next_retry(after(100)),
        Some(after(1100)),
        "no pass after pass meanwhile"
    );
    assert_eq!(memory.next_retry(after(1100)), None);
}

#[test]
fn a_pv_that_ended_by_itself_is_remembered_unless_it_was_never_used() {
    assert_eq!(
        remembered(&after_the_end(Memory::default(), &released())),
        Some(Use::Used)
    );
    assert_eq!(
        remembered(&after_the_end(Memory::default(), &unused())),
        Some(Use::Unknown)
    );
    let mut watched = Memory::default();
    watched.watched_since_creation.insert("uid".into());
    assert_eq!(remembered(&after_the_end(watched.clone(), &unused())), None);
    let seen_used = Pv {
        seen_used: true,
        ..unused()
    };
    assert_eq!(remembered(&after_the_end(watched, &seen_used)), Some(Use::Used));
}

#[test]
fn what_a_pv_of_another_program_left_is_unknown() {
    let foreign = Pv {
        annotations: Default::default(),
        ..released()
    };
    assert_eq!(
        remembered(&after_the_end(Memory::default(), &foreign)),
        Some(Use::Unknown)
    );
}

#[test]
fn a_pv_that_we_let_go_is_forgotten() {
    let mut memory = Memory::default();
    memory.let_go.insert("uid".into(), NOW);
    assert_eq!(remembered(&after_the_end(memory, &released())), None);
}

/// The end may be seen before the answer to the write that let it go, or the operator was quicker.
#[test]
fn a_scrub_of_the_last_release_counts_when_its_pv_ends() {
    let ended_with = |scrub| {
        let mut memory = Memory::default();
        memory.scrubs.insert("uid".into(), scrub);
        remembered(&after_the_end(memory, &released()))
    };
    assert_eq!(ended_with(scrub("c1", clean(true))), None);
    assert_eq!(ended_with(scrub("c1", clean(false))), Some(Use::Used));
    assert_eq!(ended_with(scrub("c0", clean(true))), Some(Use::Used));
    assert_eq!(ended_with(scrub("c1", running())), Some(Use::Used));

    let mut memory = Memory::default();
    memory.scrubs.insert("uid".into(), scrub("c1", running()));
    let mut memory = after_the_end(memory, &released());
    assert_eq!(memory.scrubs.len(), 1, "it goes on");
    memory.scrubs.insert("uid".into(), scrub("c1", clean(true)));
    memory.note(&[], &cluster(&[]), &ownership(), NOW);
    assert_eq!(remembered(&memory), None, "and has ended well");
    assert!(memory.scrubs.is_empty());
}

#[test]
fn a_scrub_counts_only_for_its_release() {
    let still_there = |pv: Pv, scrub: Scrub| {
        let mut memory = Memory::default();
        memory.scrubs.insert("uid".into(), scrub);
        memory.note(&[], &cluster(&[pv]), &ownership(), NOW);
        !memory.scrubs.is_empty()
    };
    let bound = Pv {
        phase: Phase::Bound,
        ..released()
    };
    assert!(still_there(released(), scrub("c1", clean(true))));
    assert!(!still_there(released(), scrub("c0", clean(true))));
    assert!(!still_there(bound.clone(), scrub("c1", clean(true))));
    assert!(still_there(bound, scrub("c1", running())), "the planner aborts it");
}

#[test]
fn the_rest_after_a_release_begins_with_the_release() {
    let bound = Pv {
        phase: Phase::Bound,
        deleting: true,
        ..released()
    };
    let mut memory = Memory::default();
    memory.note(&[], &cluster(&[bound]), &ownership(), NOW);
    assert!(memory.released_since.is_empty(), "being deleted while it is bound");
    let later = NOW + Duration::from_secs(5);
    for now in [later, later + Duration::from_secs(5)] {
        memory.note(&[], &cluster(&[released()]), &ownership(), now);
        assert_eq!(memory.released_since["uid"], later);
    }
    memory.note(&[], &cluster(&[unused()]), &ownership(), later);
    assert!(memory.released_since.is_empty());
}

#[test]
fn notes_do_not_pile_up() {
    let mut memory = Memory::default();
    memory.let_go.insert("uid".into(), NOW);
    memory.watched_since_creation.insert("uid".into());
    memory.missing_since.insert("uid".into(), NOW);
    memory.released_since.insert("uid".into(), NOW);
    memory.write_failed("pv", "503".into(), NOW);
    let claim = released().claim.unwrap();
    let reading = ClaimReading {
        at: NOW,
        state: ClaimState::Absent,
    };
    memory.claims.insert(claim, reading);
    memory.note(&[], &cluster(&[]), &ownership(), NOW + FORGET * 2);
    let left = (
        memory.let_go.len(),
        memory.watched_since_creation.len(),
        memory.missing_since.len(),
        memory.released_since.len(),
        memory.retries.len(),
        memory.claims.len(),
    );
    assert_eq!(left, (0, 0, 0, 0, 0, 0));
}

#[test]
fn that_a_claim_was_absent_says_nothing_about_a_later_one_of_its_name() {
    let mut memory = Memory::default();
    let claim = released().claim.unwrap();
    let reading = ClaimReading {
        at: NOW,
        state: ClaimState::Absent,
    };
    memory.claims.insert(claim.clone(), reading.clone());
    assert_eq!(memory.claim(&claim), Some(&reading));
    let later = ClaimRef {
        uid: "c2".into(),
        ..claim
    };
    assert_eq!(memory.claim(&later), None);
}

#[test]
fn a_pv_that_ended_is_remembered_until_another_stands_in_for_it() {
    let mut memory = after_the_end(Memory::default(), &released());
    let path = released().path;
    let new = Pv {
        uid: "new".into(),
        ..unused()
    };
    memory.note(&[], &cluster(std::slice::from_ref(&new)), &ownership(), NOW);
    assert_eq!(remembered(&memory), Some(Use::Used), "any other PV says nothing of it");
    let mut stand_in = new;
    stand_in.annotations.insert(names::STAND_IN, "used".into());
    let elsewhere = Pv {
        path: Some("/mnt/fast/other".into()),
        ..stand_in.clone()
    };
    memory.note(&[], &cluster(&[elsewhere]), &ownership(), NOW);
    assert_eq!(remembered(&memory), Some(Use::Used));
    stand_in.path = path;
    memory.note(&[], &cluster(&[stand_in]), &ownership(), NOW);
    assert_eq!(remembered(&memory), None);
}
