#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn pv(name: &str, uid: &str, version: u64, change: impl FnOnce(&mut serde_json::Value)) -> core::PersistentVolume {
    let mut pv = json!({
        "metadata": {
            "name": name, "uid": uid, "resourceVersion": version.to_string(),
            "annotations": {"pv.kubernetes.io/provisioned-by": "local-volume-provisioner-node1"},
        },
        "spec": {
            "local": {"path": format!("/mnt/fast/{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["host1"]},
            ]}]}},
        },
        "status": {"phase": "Available"},
    });
    change(&mut pv);
    serde_json::from_value(pv).unwrap()
}

fn plain(name: &str, uid: &str, version: u64) -> core::PersistentVolume {
    pv(name, uid, version, |_| {})
}

fn store() -> Store {
    let mut store = Store::default();
    let node = json!({"metadata": {"name": "node1", "uid": "n", "labels": {"kubernetes.io/hostname": "host1"}}});
    store.node(&serde_json::from_value(node).unwrap());
    store
}

fn versions(store: &Store) -> Vec<(&str, &str)> {
    let pvs = store.cluster().pvs.values();
    pvs.map(|pv| (pv.name.as_str(), pv.resource_version.as_str())).collect()
}

#[test]
fn only_what_concerns_this_node_is_kept() {
    let mut store = store();
    store.pv_changed(&plain("a", "1", 1));
    store.pv_changed(&pv("elsewhere", "2", 2, |pv| {
        pv["spec"]["nodeAffinity"] = json!(null);
        pv["metadata"]["annotations"] = json!({});
    }));
    store.pv_changed(&pv("foreign", "3", 3, |pv| pv["metadata"]["annotations"] = json!({})));
    assert_eq!(versions(&store), [("a", "1"), ("foreign", "3")]);
}

#[test]
fn what_is_older_than_what_is_known_changes_nothing() {
    let mut store = store();
    store.pv_changed(&plain("a", "1", 9));
    store.pv_changed(&plain("a", "1", 8));
    assert_eq!(versions(&store), [("a", "9")]);
    // Nor does a reading that the watch has overtaken.
    store.doubt("a");
    store.read_by_name("a", Some(&plain("a", "1", 8)));
    assert_eq!(versions(&store), [("a", "9")]);
    assert!(store.doubtful().is_empty());
    store.pv_changed(&plain("a", "1", 10));
    assert_eq!(versions(&store), [("a", "10")]);
}

#[test]
fn absence_from_a_list_or_a_watch_is_a_doubt_until_the_pv_was_read() {
    let mut store = store();
    for name in ["a", "b", "c"] {
        store.pv_changed(&plain(name, name, 1));
    }
    store.pvs_restart();
    store.pv_listed(&plain("a", "a", 2));
    store.pvs_complete();
    assert_eq!(store.gaps(), 2, "what happened meanwhile was not seen");
    assert_eq!(versions(&store), [("a", "2"), ("b", "1"), ("c", "1")]);
    assert_eq!(store.doubtful().iter().collect::<Vec<_>>(), ["b", "c"]);
    assert!(store.take_endings().is_empty());
    store.read_by_name("b", Some(&plain("b", "b", 3)));
    store.read_by_name("c", None);
    assert_eq!(versions(&store), [("a", "2"), ("b", "3")]);
    let endings = store.take_endings();
    assert_eq!(endings.iter().map(|pv| pv.name.as_str()).collect::<Vec<_>>(), ["c"]);
    assert!(store.take_endings().is_empty(), "once");

    store.pv_left_watch(&plain("a", "a", 4));
    assert_eq!(
        store.doubtful().iter().collect::<Vec<_>>(),
        ["a"],
        "its label may be gone"
    );
    store.pv_left_watch(&pv("b", "b", 4, |pv| {
        pv["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    }));
    assert_eq!(versions(&store), [("a", "2")]);
    assert_eq!(store.take_endings().len(), 1);
}

#[test]
fn a_watch_that_lags_does_not_bring_back_what_has_ended() {
    let mut store = store();
    store.pv_changed(&plain("a", "1", 1));
    store.pv_gone("a", "another");
    assert_eq!(versions(&store).len(), 1, "another UID is another PV");
    store.pv_gone("a", "1");
    store.pv_changed(&plain("a", "1", 2));
    assert!(versions(&store).is_empty());
    store.pv_changed(&plain("a", "2", 3));
    assert_eq!(versions(&store), [("a", "3")]);
}

#[test]
fn a_reading_of_what_has_ended_meanwhile_is_doubted() {
    let mut store = store();
    store.pv_changed(&plain("a", "1", 1));
    store.pv_gone("a", "1");
    store.read_by_name("a", Some(&plain("a", "1", 1)));
    assert!(store.doubtful().contains("a"), "it may have begun before the end");
    store.read_by_name("a", None);
    assert!(versions(&store).is_empty() && store.doubtful().is_empty());
}

#[test]
fn a_pv_that_was_made_anew_ends_the_former_one() {
    let mut store = store();
    store.pv_changed(&plain("a", "1", 1));
    store.pv_changed(&plain("a", "2", 2));
    let endings = store.take_endings();
    assert_eq!(endings.iter().map(|pv| pv.uid.as_str()).collect::<Vec<_>>(), ["1"]);
}

#[test]
fn a_name_of_another_nodes_pv_is_taken_until_it_was_read_to_be_free() {
    let mut store = store();
    let other = pv("a", "1", 1, |pv| {
        pv["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": "local-volume-provisioner-node2"});
        pv["spec"]["nodeAffinity"] = json!(null);
    });
    store.doubt("a");
    store.read_by_name("a", Some(&other));
    assert!(store.cluster().names_taken.contains("a"));
    store.read_by_name("a", None);
    assert!(store.cluster().names_taken.is_empty());
    store.read_by_name("a", Some(&other));
    store.pv_changed(&plain("a", "2", 2));
    assert!(store.cluster().names_taken.is_empty());
}

#[test]
fn what_was_seen_in_use_stays_used_whatever_is_removed_from_it() {
    let mut store = store();
    let created = |pv: &mut serde_json::Value| {
        let time = json!("2025-01-01T00:00:00Z");
        pv["metadata"]["creationTimestamp"] = time.clone();
        pv["status"]["lastPhaseTransitionTime"] = time;
    };
    store.pv_changed(&pv("a", "1", 1, created));
    assert_eq!(store.cluster().pvs["a"].usage(true), Use::Unused);
    store.pv_changed(&pv("a", "1", 2, |pv| {
        created(pv);
        pv["spec"]["claimRef"] = json!({"namespace": "n", "name": "c", "uid": "u"});
    }));
    for version in 3..5 {
        store.pv_changed(&pv("a", "1", version, created));
        assert_eq!(store.cluster().pvs["a"].usage(true), Use::Used);
    }
    store.pv_changed(&pv("a", "2", 5, created));
    assert_eq!(store.cluster().pvs["a"].usage(true), Use::Unused, "another PV");
}

#[test]
fn decisions_wait_until_everything_was_listed() {
    let mut store = store();
    assert_eq!(store.waiting_for().len(), 4);
    store.pvs_restart();
    assert_eq!(store.waiting_for().len(), 4);
    store.pvs_complete();
    store.former_listed();
    store.classes(&BTreeMap::new());
    store.jobs([].into_iter());
    assert!(store.waiting_for().is_empty());
    assert_eq!(Store::default().waiting_for().len(), 5);
}
