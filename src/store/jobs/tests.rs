#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn store() -> Store {
    let mut store = Store::default();
    let node = json!({"metadata": {"name": "node1", "uid": "n", "labels": {"kubernetes.io/hostname": "host1"}}});
    store.node(&serde_json::from_value(node).unwrap());
    store
}

/// A Job `cleanup-pv1` of this UID and version; what its status says.
fn job(uid: &str, version: u64, status: Value) -> Job {
    labelled(json!({"pv": "pv1", "pvuuid": "u"}), uid, version, status)
}

fn labelled(labels: Value, uid: &str, version: u64, status: Value) -> Job {
    let pod = json!({"nodeSelector": {"kubernetes.io/hostname": "host1"}, "containers": []});
    let job = json!({"metadata": {"name": "cleanup-pv1", "uid": uid, "resourceVersion": version.to_string(), "labels": labels},
        "spec": {"template": {"spec": pod}}, "status": status});
    serde_json::from_value(job).unwrap()
}

fn complete() -> Value {
    json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]})
}

fn known(store: &Store) -> Option<(&str, bool)> {
    let job = store.cluster().jobs.of("pv1")?;
    Some((job.uid.as_str(), job.progress == JobProgress::AtWork))
}

#[test]
fn a_job_that_leaves_the_watch_counts_until_it_is_read_by_name() {
    let mut store = store();
    store.jobs([job("a", 1, json!({"active": 1}))].iter());
    store.jobs([].iter());
    assert_eq!(known(&store), Some(("a", true)), "absence is not absence");
    assert_eq!(
        store.doubtful_jobs().clone(),
        [("cleanup-pv1".into(), "a".into())].into()
    );
    // It has merely lost its label.
    let unlabelled = labelled(json!({"pvuuid": "u"}), "a", 2, json!({"active": 1}));
    store.job_read_by_name("cleanup-pv1", "a", Some(&unlabelled));
    assert!(store.doubtful_jobs().is_empty());
    store.jobs([].iter());
    assert_eq!(known(&store), Some(("a", true)));
    assert!(store.doubtful_jobs().is_empty(), "the watch never shows it");
    assert_eq!(store.unwatched_jobs(), [("cleanup-pv1".into(), "a".into())]);
    store.job_read_by_name("cleanup-pv1", "a", None);
    assert_eq!(known(&store), None);
}

#[test]
fn a_job_that_we_have_deleted_stays_so_while_the_watch_lags() {
    let mut store = store();
    let failed = json!({"failed": 3, "conditions": [{"type": "Failed", "status": "True"}]});
    store.jobs([job("a", 1, failed.clone())].iter());
    store.job_going("a");
    store.jobs([job("a", 1, failed.clone())].iter());
    assert!(store.cluster().jobs.of("pv1").unwrap().deleting);
    store.job_gone("a");
    assert_eq!(known(&store), None);
    // Another one of its name is not it.
    store.jobs([job("b", 3, failed)].iter());
    assert!(!store.cluster().jobs.of("pv1").unwrap().deleting);
}

#[test]
fn a_job_that_ended_or_was_deleted_is_not_looked_for() {
    let mut deleted = job("a", 1, json!({"active": 1}));
    deleted.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    let mut elsewhere = job("a", 1, json!({"active": 1}));
    let pod = elsewhere.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    pod.node_selector = Some([("kubernetes.io/hostname".into(), "host2".into())].into());
    for over in [deleted, job("a", 1, complete()), elsewhere] {
        let mut store = store();
        store.jobs([over].iter());
        store.jobs([].iter());
        assert_eq!(known(&store), None);
        assert!(store.doubtful_jobs().is_empty());
    }
}

#[test]
fn of_two_for_one_pv_the_one_at_work_counts() {
    let mut store = store();
    store.jobs([].iter());
    store.job_found(&labelled(json!({}), "x", 1, json!({"active": 1})));
    let mut ended = job("a", 2, complete());
    ended.metadata.name = Some("another".into());
    store.jobs([ended].iter());
    assert_eq!(known(&store), Some(("x", true)));
    store.job_read_by_name("cleanup-pv1", "x", None);
    assert_eq!(known(&store), None);
}

#[test]
fn what_is_newer_counts() {
    let mut store = store();
    store.jobs([].iter());
    // Our own, before the watch shows it; a list that was read before drops it from nothing.
    store.job_found(&job("a", 5, json!({})));
    store.jobs([].iter());
    assert_eq!(known(&store), Some(("a", true)));
    store.jobs([job("a", 7, complete())].iter());
    store.job_found(&job("a", 6, json!({"active": 1})));
    assert_eq!(known(&store), Some(("a", false)), "a late answer");
    // The reading for one Job says nothing of the next.
    store.job_found(&job("b", 9, json!({"active": 1})));
    store.job_read_by_name("cleanup-pv1", "a", None);
    assert_eq!(known(&store), Some(("b", true)));
}

#[test]
fn that_a_container_has_run_is_not_forgotten() {
    let mut store = store();
    let started = |store: &Store| store.cluster().jobs.of("pv1").unwrap().started;
    store.jobs([job("a", 1, json!({"active": 1, "ready": 0}))].iter());
    assert!(!started(&store));
    store.jobs([job("a", 2, json!({"active": 1, "ready": 1}))].iter());
    assert!(started(&store));
    // It waits to be started again.
    store.jobs([job("a", 3, json!({"active": 1, "ready": 0}))].iter());
    assert!(started(&store));
    let late = json!({"failed": 1, "conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]});
    store.jobs([job("b", 4, late)].iter());
    assert!(!started(&store), "another Job, whose pod was ended before it began");
    assert!(store.cluster().jobs.of("pv1").unwrap().timed_out);
}

#[test]
fn a_foreign_job_matters_while_it_is_at_work_on_this_node() {
    let mut store = store();
    store.jobs([].iter());
    store.job_found(&labelled(json!({}), "x", 1, json!({"active": 1})));
    assert_eq!(known(&store), Some(("x", true)));
    store.job_found(&labelled(json!({}), "x", 2, complete()));
    assert_eq!(known(&store), None);
    let mut elsewhere = labelled(json!({}), "y", 3, json!({"active": 1}));
    let pod = elsewhere.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    pod.node_selector = Some([("kubernetes.io/hostname".into(), "host2".into())].into());
    store.job_found(&elsewhere);
    assert_eq!(known(&store), None);
}

#[test]
fn jobs_at_work_outlive_the_permission_to_read_them() {
    let mut store = store();
    store.jobs([job("a", 1, json!({"active": 1}))].iter());
    store.jobs_unreadable("watch");
    assert_eq!(store.cluster().jobs.at_work("pv1"), Some("cleanup-pv1"));
    assert_eq!(store.cluster().jobs.of("pv1"), None);
    // With the permission it is seen that it has ended.
    store.jobs([job("a", 2, complete())].iter());
    assert_eq!(store.cluster().jobs.at_work("pv1"), None);
    store.jobs_unreadable("list");
    assert_eq!(store.cluster().jobs.at_work("pv1"), None);
}

#[test]
fn a_job_that_names_another_node_is_read_by_name_until_it_has_ended() {
    let mut store = store();
    store.jobs([].iter());
    // Made by hand: it runs here, and its label says otherwise.
    let labels = json!({"pv": "pv1", "kubernetes.io/hostname": "node2"});
    store.job_found(&labelled(labels.clone(), "x", 1, json!({"active": 1})));
    store.jobs([].iter());
    assert_eq!(known(&store), Some(("x", true)), "the watch never shows it");
    assert!(store.doubtful_jobs().is_empty());
    assert_eq!(store.unwatched_jobs(), [("cleanup-pv1".into(), "x".into())]);
    store.job_read_by_name("cleanup-pv1", "x", Some(&labelled(labels, "x", 2, complete())));
    assert_eq!(known(&store), Some(("x", false)));
    // One that names this node is shown.
    let labels = json!({"pv": "pv1", "kubernetes.io/hostname": "node1"});
    store.job_found(&labelled(labels, "y", 3, json!({"active": 1})));
    assert!(store.unwatched_jobs().is_empty());
    // Tied to no node, and ended: nobody reads it any more.
    let mut nowhere = labelled(
        json!({"pv": "pv1", "kubernetes.io/hostname": "node2"}),
        "z",
        4,
        json!({"active": 1}),
    );
    nowhere
        .spec
        .as_mut()
        .unwrap()
        .template
        .spec
        .as_mut()
        .unwrap()
        .node_selector = None;
    let mut store = self::store();
    store.jobs([].iter());
    store.job_found(&nowhere);
    assert_eq!(known(&store), Some(("z", true)), "it may run anywhere");
    nowhere.status = serde_json::from_value(complete()).unwrap();
    store.job_read_by_name("cleanup-pv1", "z", Some(&nowhere));
    assert_eq!(known(&store), None);
}
