//! The API server of the test kit behaves like the real one: the same assertions run against both, and what both said
//! (codes, reasons, kinds, events) must be the same, line by line.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};
use testkit::{api::Api, plane::Plane, raw};

const PVS: &str = "/api/v1/persistentvolumes";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const EVENTS: &str = "/api/v1/namespaces/default/events";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const OURS: &str = "example.com/scrub";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const DEADLINE: Duration = Duration::from_secs(30);

enum Backend<'a> {
    Fake(&'a Api),
    Real(&'a Plane),
}

/// A cluster under test, and what it said.
struct World<'a> {
    admin: Client,
    full: Client,
    classic: Client,
    backend: Backend<'a>,
    said: Vec<String>,
}

impl World<'_> {
    /// A request of an administrator.
    async fn admin(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        raw::call(&self.admin, method, path, "", &body).await.unwrap()
    }

    /// A request of `client` whose outcome goes into the transcript.
    async fn say(&mut self, client: &Client, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (code, answer) = raw::call(client, method, path, "", &body).await.unwrap();
        let mut line = format!("{method} {path}: {code} {}", answer["kind"].as_str().unwrap_or("-"));
        if answer["kind"] == "Status" {
            let causes: Vec<_> = answer["details"]["causes"].as_array().into_iter().flatten().collect();
            let mut fields: Vec<_> = causes
                .iter()
                .map(|c| format!("{} {}", c["reason"], c["field"]))
                .collect();
            // The real server checks labels up to four times.
            fields.dedup();
            line += &format!(" {} {fields:?}", answer["reason"]);
            // The words of validation are many; those of all else are compared.
            if code != 422 && !(code == 400 && method == "POST") {
                line += &format!(" {}", mask(answer["message"].as_str().unwrap_or_default()));
            }
        }
        self.said.push(line);
        (code, answer)
    }

    async fn create(&self, path: &str, object: Value) -> Value {
        let (code, object) = self.admin("POST", path, object).await;
        assert_eq!(code, 201, "{object}");
        object
    }

    async fn get(&self, path: &str) -> Value {
        self.admin("GET", path, Value::Null).await.1
    }

    /// Waits until the object at `path` (a Status, if it is gone) is as wanted.
    async fn wait(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let object = self.get(path).await;
            if wanted(&object) {
                return object;
            }
            assert!(tokio::time::Instant::now() < end, "{path}: not {what}: {object:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn wait_phase(&self, pv: &str, phase: &str) -> Value {
        self.wait(&format!("{PVS}/{pv}"), phase, |o| o["status"]["phase"] == phase)
            .await
    }

    async fn wait_gone(&self, path: &str) {
        self.wait(path, "gone", |o| o["code"] == 404).await;
    }

    /// Creates a claim of a class and has it bound to the only volume of that class.
    async fn bind(&self, claim: &str, class: &str, pv: &str) {
        self.wait_phase(pv, "Available").await;
        match self.backend {
            Backend::Fake(api) => {
                api.create_claim("default", claim, class);
                api.bind("default", claim, pv).unwrap();
            }
            Backend::Real(plane) => {
                plane.create_claim("default", claim, class).await.unwrap();
                plane.create_pod("default", claim, claim).await.unwrap();
            }
        }
        self.wait_phase(pv, "Bound").await;
        let path = format!("{CLAIMS}/{claim}");
        self.wait(&path, "Bound", |o| o["status"]["phase"] == "Bound").await;
    }

    async fn release(&self, claim: &str) {
        match self.backend {
            Backend::Fake(api) => api.delete_claim("default", claim).unwrap(),
            Backend::Real(plane) => {
                plane.delete_claim("default", claim).await.unwrap();
                plane.delete_pod("default", claim).await.unwrap();
            }
        }
        self.wait_gone(&format!("{CLAIMS}/{claim}")).await;
    }
}

/// Without what differs in every run.
fn mask(text: &str) -> String {
    let hide = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let uid = bare.len() == 36 && bare.matches('-').count() == 4;
        let number = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_digit());
        if uid || number { "#".to_owned() } else { word.to_owned() }
    };
    text.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}

fn pv(name: &str, class: &str) -> Value {
    let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["host1"]}]});
    json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: "local-volume-provisioner-node1"}},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Delete", "local": {"path": "/mnt/x"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}})
}

fn at(pv: &str) -> String {
    format!("{PVS}/{pv}")
}

fn patch_meta(field: &str, value: Value) -> Value {
    json!({"metadata": {field: value}})
}

async fn conflicts(w: &mut World<'_>) {
    let (full, admin) = (w.full.clone(), w.admin.clone());
    let old = w.create(PVS, pv("conflict", "none")).await;
    assert_eq!(old["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    assert_eq!(old["spec"]["volumeMode"], "Filesystem");
    let (code, _) = w.say(&full, "POST", PVS, pv("conflict", "none")).await;
    assert_eq!(code, 409);
    w.wait_phase("conflict", "Available").await;
    let version = old["metadata"]["resourceVersion"].clone();
    let stale = json!({"metadata": {"resourceVersion": version, "labels": {"a": "b"}}});
    assert_eq!(w.say(&full, "PATCH", &at("conflict"), stale).await.0, 409);
    let mut put = old.clone();
    put["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(w.say(&full, "PUT", &at("conflict"), put.clone()).await.0, 409);

    let now = w.get(&at("conflict")).await;
    put["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
    let (code, answer) = w.say(&full, "PUT", &at("conflict"), put.clone()).await;
    assert_eq!((code, &answer["metadata"]["labels"]["a"]), (200, &json!("b")));
    assert_eq!(
        answer["status"]["phase"], "Available",
        "a PUT does not touch the status"
    );
    let same = json!({"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Failed"}});
    let (_, again) = w.say(&full, "PATCH", &at("conflict"), same).await;
    assert_eq!(
        again["metadata"]["resourceVersion"], answer["metadata"]["resourceVersion"],
        "nothing changed"
    );
    let status = json!({"status": {"message": "m"}, "spec": {"storageClassName": "other"}});
    let (code, answer) = w.say(&admin, "PATCH", &format!("{PVS}/conflict/status"), status).await;
    assert_eq!((code, &answer["status"]["message"]), (200, &json!("m")));
    assert_eq!(answer["spec"]["storageClassName"], "none");
    let uid = patch_meta("uid", "0c9b0d5e-0000-4000-8000-000000000000".into());
    w.say(&full, "PATCH", &at("conflict"), uid).await;
    assert_eq!(
        w.say(&full, "PATCH", &at("conflict"), patch_meta("name", "x".into()))
            .await
            .0,
        400
    );
    put["metadata"]["uid"] = "0c9b0d5e-0000-4000-8000-000000000000".into();
    assert_eq!(w.say(&full, "PUT", &at("conflict"), put).await.0, 409);
    assert_eq!(w.say(&full, "PUT", &at("missing"), pv("missing", "none")).await.0, 404);
}

async fn preconditions(w: &mut World<'_>) {
    let full = w.full.clone();
    w.create(PVS, pv("precondition", "none")).await;
    let meta = w.wait_phase("precondition", "Available").await["metadata"].clone();
    let path = at("precondition");
    for wrong in [
        json!({"uid": "0c9b0d5e-0000-4000-8000-000000000000", "resourceVersion": meta["resourceVersion"]}),
        json!({"uid": meta["uid"], "resourceVersion": "1"}),
    ] {
        assert_eq!(
            w.say(&full, "DELETE", &path, json!({"preconditions": wrong})).await.0,
            409
        );
    }
    let right = json!({"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]});
    let dry = json!({"preconditions": right, "dryRun": ["All"]});
    assert_eq!(w.say(&full, "DELETE", &path, dry).await.0, 200);
    assert!(w.get(&path).await["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(
        w.say(&full, "DELETE", &path, json!({"preconditions": right})).await.0,
        200
    );
    w.wait_gone(&path).await;
    assert_eq!(w.say(&full, "DELETE", &path, json!({})).await.0, 404);
    assert_eq!(w.say(&full, "GET", &path, Value::Null).await.0, 404);
}

async fn finalizers(w: &mut World<'_>) {
    let full = w.full.clone();
    let mut volume = pv("final", "none");
    volume["metadata"]["finalizers"] = json!([OURS]);
    w.create(PVS, volume).await;
    w.wait_phase("final", "Available").await;
    let path = at("final");
    let (code, answer) = w.say(&full, "DELETE", &path, json!({})).await;
    assert_eq!(code, 200);
    assert!(answer["metadata"]["deletionTimestamp"].is_string());
    let only_ours = |o: &Value| o["metadata"]["finalizers"] == json!([OURS]);
    let pv = w.wait(&path, "without the protection", only_ours).await;
    let version = pv["metadata"]["resourceVersion"].clone();
    // A second DELETE changes nothing.
    assert_eq!(w.say(&full, "DELETE", &path, json!({})).await.0, 200);
    assert_eq!(w.get(&path).await["metadata"]["resourceVersion"], version);
    let more = patch_meta("finalizers", json!([OURS, "example.com/more"]));
    let (code, answer) = w.say(&full, "PATCH", &path, more).await;
    assert_eq!(code, 422, "{answer}");
    let label = patch_meta("labels", json!({"still": "possible"}));
    assert_eq!(w.say(&full, "PATCH", &path, label).await.0, 200);
    let events = {
        let query = format!("{PVS}?watch=true&resourceVersion={}", version.as_str().unwrap());
        let none = patch_meta("finalizers", Value::Null);
        assert_eq!(w.say(&full, "PATCH", &path, none).await.0, 200);
        raw::watch(&full, &query, "", 2, DEADLINE).await.unwrap()
    };
    let kinds: Vec<_> = events
        .iter()
        .map(|e| (&e["type"], &e["object"]["metadata"]["name"]))
        .collect();
    w.said.push(format!("{kinds:?}"));
    assert_eq!(events[1]["type"], "DELETED");
    assert_ne!(
        events[1]["object"]["metadata"]["resourceVersion"],
        events[0]["object"]["metadata"]["resourceVersion"]
    );
    assert_eq!(w.get(&path).await["code"], 404);
}

async fn watches(w: &mut World<'_>) {
    let full = w.full.clone();
    let version = w.get(&format!("{PVS}?limit=1")).await["metadata"]["resourceVersion"].clone();
    let query = |selector: &str| {
        let version = version.as_str().unwrap();
        format!("{PVS}?watch=true&resourceVersion={version}&labelSelector={selector}")
    };
    let mut volume = pv("watched", "none");
    volume["metadata"]["labels"] = json!({"node": "a"});
    w.create(PVS, volume).await;
    w.wait_phase("watched", "Available").await;
    w.admin("PATCH", &at("watched"), patch_meta("labels", json!({"node": "b"})))
        .await;
    w.admin("PATCH", &at("watched"), patch_meta("labels", json!({"node": "a"})))
        .await;
    w.admin("DELETE", &at("watched"), json!({})).await;
    w.wait_gone(&at("watched")).await;
    let mut saw = Vec::new();
    for selector in ["node%3Da", "node%20in%20(b,c)", "node,!x,node%20notin%20(b)"] {
        let count = if selector.contains("(b,c)") { 2 } else { 6 };
        let events = raw::watch(&full, &query(selector), "", count, DEADLINE).await.unwrap();
        for e in &events {
            let meta = &e["object"]["metadata"];
            saw.push(format!("{selector}: {} {}", e["type"], meta["labels"]["node"]));
        }
    }
    w.said.extend(saw);
    let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let events = raw::watch(&full, &query("node%3Db"), metadata, 2, DEADLINE)
        .await
        .unwrap();
    assert_eq!(events[0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(events[1]["type"], "DELETED");
    assert!(events[0]["object"].get("spec").is_none());

    // A watch ends when its time is up; one that asked for bookmarks gets one before.
    let quiet = query("node%3Dnobody") + "&allowWatchBookmarks=true&timeoutSeconds=3";
    let events = raw::watch(&full, &quiet, "", 9, DEADLINE).await.unwrap();
    assert!(events.iter().all(|e| e["type"] == "BOOKMARK"), "{events:#?}");
    // Without a version a watch begins with what is there.
    w.create(PVS, pv("present", "none")).await;
    let begin = format!("{PVS}?watch=true&fieldSelector=metadata.name%3Dpresent");
    let events = raw::watch(&full, &begin, "", 1, DEADLINE).await.unwrap();
    assert_eq!(events[0]["type"], "ADDED");
    if let Backend::Fake(_) = w.backend {
        // The streaming lists of clients. A real server has them with etcd 3.5 and later, which cannot be relied on here.
        let list = begin + "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let events = raw::watch(&full, &list, "", 2, DEADLINE).await.unwrap();
        let end = &events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
        assert_eq!((&events[0]["type"], end), (&json!("ADDED"), &json!("true")));
    }
}

async fn permissions(w: &mut World<'_>) {
    let (full, classic) = (w.full.clone(), w.classic.clone());
    let nothing = json!({"metadata": {"resourceVersion": "1"}});
    let path = format!("{PVS}/missing?dryRun=All");
    assert_eq!(w.say(&full, "PATCH", &path, nothing.clone()).await.0, 404);
    assert_eq!(w.say(&classic, "PATCH", &path, nothing).await.0, 403);
    assert_eq!(
        w.say(&full, "POST", &format!("{PVS}?dryRun=All"), pv("dry", "none"))
            .await
            .0,
        201
    );
    assert_eq!(w.say(&full, "GET", &at("dry"), Value::Null).await.0, 404);
    for (verb, group, resource) in [
        ("patch", "", "persistentvolumes"),
        ("create", "", "persistentvolumes"),
        ("watch", "", "nodes"),
        ("get", "", "nodes"),
        ("list", "batch", "jobs"),
        ("create", "", "events"),
        ("get", "", "configmaps"),
        ("watch", "storage.k8s.io", "storageclasses"),
        ("get", "", "persistentvolumeclaims"),
    ] {
        let attributes = json!({"verb": verb, "group": group, "resource": resource});
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes}});
        for (user, client) in [("full", &full), ("classic", &classic)] {
            let (code, answer) = w.say(client, "POST", REVIEWS, review.clone()).await;
            assert_eq!(code, 201);
            w.said
                .push(format!("{user} {verb} {resource}: {}", answer["status"]["allowed"]));
        }
    }
    w.say(&classic, "GET", "/api/v1/nodes", Value::Null).await;
    w.say(&classic, "GET", JOBS, Value::Null).await;
    w.say(&classic, "GET", "/api/v1/nodes/missing", Value::Null).await;
    w.say(
        &classic,
        "POST",
        "/api/v1/namespaces/default/configmaps",
        json!({"metadata": {"name": "c"}}),
    )
    .await;
}

async fn lists(w: &mut World<'_>) {
    let full = w.full.clone();
    for i in 0..5 {
        let mut volume = pv(&format!("page{i}"), "none");
        volume["metadata"]["labels"] = json!({"page": if i == 4 { "odd" } else { "even" }});
        w.create(PVS, volume).await;
    }
    let (mut names, mut sizes, mut token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let (_, list) = w
            .admin(
                "GET",
                &format!("{PVS}?labelSelector=page&limit=2&continue={token}"),
                json!({}),
            )
            .await;
        let items = list["items"].as_array().unwrap();
        sizes.push(items.len());
        names.extend(items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()));
        assert!(items.iter().all(|i| i.get("kind").is_none()));
        assert!(list["metadata"]["remainingItemCount"].is_null());
        let Some(next) = list["metadata"]["continue"].as_str() else {
            break;
        };
        token = next.replace('=', "%3D").replace('/', "%2F");
    }
    assert_eq!((sizes, names.len()), (vec![2, 2, 1], 5));
    names.dedup();
    assert_eq!(names.len(), 5);
    let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let path = format!("{PVS}?labelSelector=page%3Deven");
    let (_, list) = raw::call(&full, "GET", &path, metadata, &Value::Null).await.unwrap();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 4);
    assert!(
        items
            .iter()
            .all(|i| i.get("spec").is_none() && i["metadata"]["annotations"].is_object())
    );
    w.said.push(format!(
        "{} {} {}",
        items[0]["kind"], items[0]["apiVersion"], list["apiVersion"]
    ));
    for selector in ["page!%3Dodd,page", "!page,page", "page%20in%20(odd)", "a%20b"] {
        let path = format!("{PVS}?labelSelector={selector}");
        let (_, list) = raw::call(&full, "GET", &path, "", &Value::Null).await.unwrap();
        w.said.push(format!(
            "{selector}: {:?} {}",
            list["items"].as_array().map(Vec::len),
            list["reason"]
        ));
    }
    let one = format!("{PVS}?fieldSelector=metadata.name%3Dpage3");
    assert_eq!(w.get(&one).await["items"].as_array().map(Vec::len), Some(1));
    w.say(
        &full,
        "GET",
        &format!("{PVS}?fieldSelector=spec.local%3Dx"),
        Value::Null,
    )
    .await;
}

async fn invalid(w: &mut World<'_>) {
    let full = w.full.clone();
    for (what, change) in [
        ("/metadata/labels", json!({"a": "-3"})),
        ("/metadata/labels", json!({"a": "x".repeat(64)})),
        ("/metadata/labels", json!({"a b": "c"})),
        ("/metadata/annotations", json!({"no blanks": "x"})),
        ("/metadata/annotations", json!({"a/b/c": "x"})),
        ("/metadata/annotations", json!({"UPPER.example.com/b": "x"})),
        ("/metadata/finalizers", json!(["unqualified"])),
        ("/metadata/name", json!("Not_A_Name")),
        ("/spec/nodeAffinity", Value::Null),
        ("/spec/accessModes", json!([])),
        ("/spec/capacity", json!({})),
        ("/spec/local", Value::Null),
        ("/spec/local", json!({"path": ""})),
    ] {
        let mut bad = pv("invalid", "none");
        let (parent, field) = what.rsplit_once('/').unwrap();
        bad.pointer_mut(parent).unwrap()[field] = change.clone();
        let (code, answer) = w.say(&full, "POST", PVS, bad).await;
        w.said.push(format!("{what} {change}: {code}"));
        assert!(
            code == 422 || answer["metadata"]["name"] == "invalid",
            "{what} {change}: {answer}"
        );
        w.admin("DELETE", &at("invalid"), json!({})).await;
        w.wait_gone(&at("invalid")).await;
    }
    w.create(PVS, pv("fixed", "none")).await;
    for change in [
        json!({"spec": {"local": {"path": "/mnt/other"}}}),
        json!({"spec": {"volumeMode": "Block"}}),
        json!({"spec": {"capacity": {"storage": "2Gi"}}}),
        json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}),
        json!({"metadata": {"labels": {"a": "no blanks"}}}),
        json!({"metadata": {"annotations": {"a": "any thing"}}}),
        json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["host2"]}]}]}}}}),
    ] {
        w.say(&full, "PATCH", &at("fixed"), change).await;
    }
    for (name, about) in [("e1", json!({})), ("e2", json!({"namespace": "other"}))] {
        let event = json!({"metadata": {"name": name}, "reason": "R", "message": "m", "type": "Warning",
            "involvedObject": about, "source": {"component": "a-component-name-of-more-than-sixty-three-characters-\
            is-fine-here-1234567890"}});
        w.say(&full, "POST", EVENTS, event).await;
    }
    w.say(&full, "PATCH", &format!("{EVENTS}/e1"), json!({"count": 2}))
        .await;
    let elsewhere = json!({"metadata": {"name": "e3", "namespace": "other"}, "involvedObject": {}});
    w.say(&full, "POST", EVENTS, elsewhere).await;
    let kind = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
    assert_eq!(w.say(&full, "POST", PVS, kind).await.0, 400);
}

async fn life_cycle(w: &mut World<'_>) {
    let full = w.full.clone();
    let mut volume = pv("life", "life");
    volume["metadata"]["finalizers"] = json!([OURS]);
    w.create(PVS, volume).await;
    w.bind("life", "life", "life").await;
    let bound = w.get(&at("life")).await;
    let claim = w.get(&format!("{CLAIMS}/life")).await;
    assert_eq!(bound["spec"]["claimRef"]["uid"], claim["metadata"]["uid"]);
    assert_eq!(
        bound["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"],
        "yes"
    );
    assert_eq!(claim["spec"]["volumeName"], "life");
    assert!(bound["status"]["lastPhaseTransitionTime"].is_string());
    let mut keys: Vec<_> = claim["metadata"]["annotations"].as_object().unwrap().keys().collect();
    keys.retain(|k| k.starts_with("pv."));
    w.said.push(format!("{keys:?} {}", claim["metadata"]["finalizers"]));
    // Deleted while bound: Terminating, and Bound as long as the claim lives.
    assert_eq!(w.say(&full, "DELETE", &at("life"), json!({})).await.0, 200);
    assert_eq!(w.get(&at("life")).await["status"]["phase"], "Bound");
    w.release("life").await;
    let only_ours = |o: &Value| o["metadata"]["finalizers"] == json!([OURS]);
    let released = w
        .wait(&at("life"), "Terminating with our finalizer alone", only_ours)
        .await;
    assert_eq!(released["status"]["phase"], "Released");
    // Its claimRef cleared, it is Available, but still going.
    w.say(&full, "PATCH", &at("life"), json!({"spec": {"claimRef": null}}))
        .await;
    w.wait_phase("life", "Available").await;
    w.say(&full, "PATCH", &at("life"), patch_meta("finalizers", Value::Null))
        .await;
    assert_eq!(w.get(&at("life")).await["code"], 404);
    // A Lost claim binds again to a volume of the same name: here, the claim outlives its volume.
    w.create(PVS, pv("lost", "lost")).await;
    w.bind("lost", "lost", "lost").await;
    let claim = format!("{CLAIMS}/lost");
    w.say(&full, "DELETE", &at("lost"), json!({})).await;
    w.say(&full, "PATCH", &at("lost"), patch_meta("finalizers", Value::Null))
        .await;
    w.wait(&claim, "Lost", |o| o["status"]["phase"] == "Lost").await;
    w.create(PVS, pv("lost", "lost")).await;
    w.wait_phase("lost", "Bound").await;
    w.wait(&claim, "Bound", |o| o["status"]["phase"] == "Bound").await;
    w.release("lost").await;
    w.wait_phase("lost", "Released").await;
}

async fn reclaim(w: &mut World<'_>) {
    let full = w.full.clone();
    for (name, policy, provisioned, phase) in [
        ("keep", "Retain", true, "Released"),
        ("ours", "Delete", true, "Released"),
        ("nobodys", "Delete", false, "Failed"),
        ("recycle", "Recycle", true, "Failed"),
    ] {
        let mut volume = pv(name, name);
        volume["spec"]["persistentVolumeReclaimPolicy"] = policy.into();
        if !provisioned {
            volume["metadata"].as_object_mut().unwrap().remove("annotations");
        }
        w.create(PVS, volume).await;
        w.bind(name, name, name).await;
        w.release(name).await;
        let pv = w.wait_phase(name, phase).await;
        assert_eq!(pv["spec"]["claimRef"]["name"], name, "the claimRef stays");
    }
    // Released and cleared by hand: Available at once, with the mark of the controller still there.
    w.say(&full, "PATCH", &at("ours"), json!({"spec": {"claimRef": null}}))
        .await;
    let pv = w.wait_phase("ours", "Available").await;
    w.said.push(format!(
        "{}",
        pv["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"]
    ));
    w.bind("ours", "ours", "ours").await;
    // Without any finalizer but the protection a deleted volume vanishes with its claim.
    w.say(&full, "DELETE", &at("ours"), json!({})).await;
    w.release("ours").await;
    w.wait_gone(&at("ours")).await;
}

async fn jobs(w: &mut World<'_>) {
    let full = w.full.clone();
    let job = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"suspend": true, "template": {"spec": {"restartPolicy": "OnFailure",
            "containers": [{"name": "cleaner", "image": "i"}]}}}})
    };
    assert_eq!(w.say(&full, "POST", JOBS, job("cleanup")).await.0, 201);
    assert_eq!(w.say(&full, "POST", JOBS, job("cleanup")).await.0, 409);
    let path = format!("{JOBS}/cleanup");
    let template = json!({"spec": {"template": {"spec": {"restartPolicy": "Never"}}}});
    assert_eq!(w.say(&full, "PATCH", &path, template).await.0, 422);
    assert_eq!(
        w.say(&full, "PATCH", &path, json!({"spec": {"backoffLimit": 9}}))
            .await
            .0,
        200
    );
    let foreground = json!({"propagationPolicy": "Foreground"});
    let (_, answer) = w.say(&full, "DELETE", &path, foreground).await;
    w.said.push(format!("{}", answer["metadata"]["finalizers"]));
    w.wait_gone(&path).await;
    assert_eq!(w.say(&full, "POST", JOBS, job("second")).await.0, 201);
    w.say(
        &full,
        "DELETE",
        &format!("{JOBS}/second"),
        json!({"propagationPolicy": "Background"}),
    )
    .await;
    w.wait_gone(&format!("{JOBS}/second")).await;

    let maps = "/api/v1/namespaces/default/configmaps";
    let admin = w.admin.clone();
    w.create(maps, json!({"metadata": {"name": "map"}, "data": {"a": "b"}}))
        .await;
    let (_, answer) = w.say(&admin, "DELETE", &format!("{maps}/map"), json!({})).await;
    assert_eq!(answer["details"]["name"], "map");
    w.say(&admin, "DELETE", &format!("{EVENTS}/e1"), json!({})).await;
    w.say(&admin, "DELETE", "/api/v1/nodes/node1", json!({})).await;
    w.say(
        &admin,
        "DELETE",
        "/apis/storage.k8s.io/v1/storageclasses/keep",
        json!({}),
    )
    .await;
}

async fn all(mut w: World<'_>) -> Vec<String> {
    conflicts(&mut w).await;
    preconditions(&mut w).await;
    finalizers(&mut w).await;
    watches(&mut w).await;
    permissions(&mut w).await;
    lists(&mut w).await;
    invalid(&mut w).await;
    life_cycle(&mut w).await;
    reclaim(&mut w).await;
    jobs(&mut w).await;
    w.said
}

const CLASSES: [&str; 6] = ["life", "lost", "keep", "ours", "nobodys", "recycle"];

async fn fake() -> Vec<String> {
    let api = Api::new();
    let _controllers = api.run_controllers();
    api.create_node("node1", "host1");
    for class in CLASSES {
        api.create_storage_class(class, "Delete");
    }
    let [admin, full, classic] = ["admin", "full", "classic"].map(|user| api.client(user));
    all(World {
        admin,
        full,
        classic,
        backend: Backend::Fake(&api),
        said: Vec::new(),
    })
    .await
}

async fn real(plane: &Plane) -> Vec<String> {
    plane.create_node("node1", "host1").await.unwrap();
    for class in CLASSES {
        plane.create_storage_class(class, "Delete").await.unwrap();
    }
    let admin = plane.client().await.unwrap();
    let full = plane.client_of("full").await.unwrap();
    let classic = plane.client_of("classic").await.unwrap();
    all(World {
        admin,
        full,
        classic,
        backend: Backend::Real(plane),
        said: Vec::new(),
    })
    .await
}

fn block_on<T>(paused: bool, future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .start_paused(paused)
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn the_server_in_the_process_keeps_the_rules_under_paused_time() {
    let said = block_on(true, fake());
    assert!(said.len() > 80, "{}", said.len());
}

#[test]
fn the_server_in_the_process_says_what_a_real_one_says() {
    if let Err(missing) = Plane::available() {
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let plane = Plane::start().unwrap();
    let real = block_on(false, real(&plane));
    let fake = block_on(true, fake());
    let differences: Vec<_> = real
        .iter()
        .zip(&fake)
        .filter(|(r, f)| r != f)
        .map(|(r, f)| format!("real: {r}\nfake: {f}\n"))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(real.len(), fake.len());
}
