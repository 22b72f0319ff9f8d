//! Faults, races, histories and controllers of the server in the process, under paused time.
#![allow(clippy::unwrap_used)]

use std::{pin::pin, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Error,
    api::{DeleteParams, Preconditions},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use testkit::{
    api::{Api, Fault, Permissions},
    raw,
};
use tokio::time::{Instant, timeout};

const PVS: &str = "/api/v1/persistentvolumes";
const DEADLINE: Duration = Duration::from_secs(600);

fn pv(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "c", "hostPath": {"path": "/x"}}})
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(Error::Api(status)) => status.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn faults_hit_what_they_match_and_are_used_up() {
    let api = Api::new();
    let client = api.client("full");
    let pvs = kube::Api::<PersistentVolume>::all(client.clone());
    api.create("persistentvolumes", "", pv("a"));
    api.inject(Fault::status(503).verb("get").resource("persistentvolumes").times(2));
    api.inject(Fault::status(500).named("b"));
    assert_eq!(code(pvs.get("a").await), 503);
    assert!(pvs.list(&Default::default()).await.is_ok(), "another verb");
    assert_eq!(code(pvs.get("a").await), 503);
    assert!(pvs.get("a").await.is_ok());
    let b = serde_json::from_value(pv("b")).unwrap();
    assert_eq!(
        code(pvs.create(&Default::default(), &b).await),
        500,
        "the name is in the body"
    );
    assert!(api.get_pv("b").is_none());
    let log: Vec<_> = api.requests().iter().map(|r| (r.verb.clone(), r.status)).collect();
    let expected = [("get", 503), ("list", 200), ("get", 503), ("get", 200), ("create", 500)];
    assert_eq!(log, expected.map(|(verb, status)| (verb.to_owned(), Some(status))));
    assert_eq!(
        (api.count("get", "persistentvolumes"), api.requests()[4].is_write()),
        (3, true)
    );

    api.inject(Fault::throttle(Duration::from_secs(7)));
    let (code, status) = raw::call(&client, "GET", PVS, "", &Value::Null).await.unwrap();
    assert_eq!((code, &status["details"]["retryAfterSeconds"]), (429, &json!(7)));
}

#[tokio::test(start_paused = true)]
async fn connections_hang_break_and_lose_answers() {
    let api = Api::new();
    let pvs = kube::Api::<PersistentVolume>::all(api.client("full"));
    let create = async |name: &str| {
        let object = serde_json::from_value(pv(name)).unwrap();
        pvs.create(&Default::default(), &object).await
    };
    api.inject(Fault::hang());
    assert!(timeout(Duration::from_secs(99), create("hung")).await.is_err());
    api.inject(Fault::disconnect());
    assert!(matches!(create("disconnected").await, Err(Error::Service(_))));
    api.inject(Fault::lose_reply());
    assert!(matches!(create("unanswered").await, Err(Error::Service(_))));
    let there = ["hung", "disconnected", "unanswered"].map(|name| api.get_pv(name).is_some());
    assert_eq!(there, [false, false, true]);
    api.inject(Fault::delay(Duration::from_secs(5)));
    let start = Instant::now();
    create("late").await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 5);
    let statuses: Vec<_> = api.requests().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [None, None, Some(201), Some(201)]);
}

#[tokio::test(start_paused = true)]
async fn a_race_is_lost_on_demand() {
    let api = Api::new();
    api.create_storage_class("c", "Delete");
    api.create_claim("ns", "claim", "c");
    api.create("persistentvolumes", "", pv("a"));
    api.reconcile();
    let pvs = kube::Api::<PersistentVolume>::all(api.client("classic"));
    let seen = pvs.get("a").await.unwrap().metadata;
    let preconditions = Preconditions {
        uid: seen.uid,
        resource_version: seen.resource_version,
    };
    api.inject(Fault::run(|api| api.bind("ns", "claim", "a").unwrap()).verb("delete"));
    let params = DeleteParams::default().preconditions(preconditions);
    assert_eq!(code(pvs.delete("a", &params).await), 409);
    assert_eq!(api.get_pv("a").unwrap()["status"]["phase"], "Bound");
}

#[tokio::test(start_paused = true)]
async fn watches_survive_cuts_and_lost_history() {
    let api = Api::new();
    let pvs = kube::Api::<PersistentVolume>::all(api.client("classic"));
    let mut events = pin!(watcher(pvs, watcher::Config::default()).default_backoff());
    let mut next_applied = async || loop {
        let event = timeout(DEADLINE, events.next()).await.unwrap().unwrap();
        if let Ok(watcher::Event::Apply(o) | watcher::Event::InitApply(o)) = event {
            return o.metadata.name.unwrap();
        }
    };
    api.create("persistentvolumes", "", pv("a"));
    assert_eq!(next_applied().await, "a");
    api.create("persistentvolumes", "", pv("b"));
    assert_eq!(next_applied().await, "b");
    api.cut_watches("persistentvolumes");
    api.create("persistentvolumes", "", pv("c"));
    assert_eq!(next_applied().await, "c", "no event is lost or repeated by a cut");
    assert_eq!(api.count("list", "persistentvolumes"), 1);
    api.expire_history();
    let again = [next_applied().await, next_applied().await, next_applied().await];
    assert_eq!(
        (again.concat().as_str(), api.count("list", "persistentvolumes")),
        ("abc", 2)
    );

    api.set_history_window(1);
    api.create("persistentvolumes", "", pv("d"));
    api.create("persistentvolumes", "", pv("e"));
    let client = api.client("classic");
    for (back, kind) in [(1, "ADDED"), (2, "ERROR")] {
        let e = api.get_pv("e").unwrap();
        let version: u64 = e["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        let path = format!("{PVS}?watch=true&resourceVersion={}", version - back);
        let events = raw::watch(&client, &path, "", 1, DEADLINE).await.unwrap();
        assert_eq!(events[0]["type"], kind, "{events:?}");
        assert!(kind == "ADDED" || events[0]["object"]["code"] == 410);
    }
}

#[tokio::test(start_paused = true)]
async fn permissions_change_at_any_time() {
    let api = Api::new();
    let pvs = kube::Api::<PersistentVolume>::all(api.client("someone"));
    assert_eq!(code(pvs.list(&Default::default()).await), 403);
    api.set_permissions("someone", Permissions::full());
    assert!(pvs.list(&Default::default()).await.is_ok());
    api.set_permissions("someone", Permissions::full().deny(&["list"], &["persistentvolumes"]));
    assert_eq!(code(pvs.list(&Default::default()).await), 403);
}

#[tokio::test(start_paused = true)]
async fn a_terminating_volume_is_never_bound() {
    let api = Api::new();
    let _controllers = api.run_controllers();
    api.create_claim("ns", "claim", "c");
    let mut volume = pv("a");
    volume["metadata"]["finalizers"] = json!(["example.com/f"]);
    api.create("persistentvolumes", "", volume);
    let phase = |api: &Api| api.get_pv("a").unwrap()["status"]["phase"].clone();
    let available = |api: &Api| (phase(api) == "Available").then_some(());
    api.wait_for("available", DEADLINE, available).await.unwrap();
    api.delete("persistentvolumes", "", "a").unwrap();
    assert!(
        api.bind("ns", "claim", "a")
            .unwrap_err()
            .to_string()
            .contains("Terminating")
    );
    // Not even if the scheduler was already on its way.
    api.prebind("ns", "claim", "a");
    api.reconcile();
    assert_eq!(phase(&api), "Available");
    assert_eq!(
        api.get("persistentvolumeclaims", "ns", "claim").unwrap()["status"]["phase"],
        "Pending"
    );
    // The claim goes: the volume counts as Released.
    api.delete_claim("ns", "claim").unwrap();
    assert!(api.get("persistentvolumeclaims", "ns", "claim").is_none());
    assert_eq!(phase(&api), "Released");
    let error = api.wait_for("pigs fly", DEADLINE, |_| None::<()>).await.unwrap_err();
    assert!(error.to_string().contains("pigs fly"));
}
