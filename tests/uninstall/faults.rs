//! An API server that refuses, fails and is quicker.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::api::{Api, Fault};

use super::names::FINALIZER;
use super::program::{Ended, Server, ended, program};

const DEADLINE: Duration = Duration::from_secs(40);

/// A server with the PVs `a`, `b` and `c` of three nodes.
fn server() -> Server {
    let server = Server::start();
    for name in ["a", "b", "c"] {
        let pv = json!({
            "metadata": {"name": name, "finalizers": [FINALIZER]},
            "spec": {"capacity": {"storage": "1Mi"}, "local": {"path": "/mnt/fast/a"}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "fast", "persistentVolumeReclaimPolicy": "Delete",
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]}]}}},
        });
        server.api.create("persistentvolumes", "", pv);
    }
    server
}

fn start(server: &Server, args: &[&str]) -> Child {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = server.kubeconfig(dir.path(), "full");
    let mut command = program();
    command.arg("uninstall").arg("--kubeconfig").arg(&kubeconfig).args(args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait("it has asked", || server.api.count("list", "persistentvolumes") > 0);
    child
}

fn uninstall(server: &Server) -> Ended {
    ended(start(server, &[]).wait_with_output().unwrap())
}

fn wait(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn carries_it(server: &Server, name: &str) -> bool {
    let pv = server.api.get_pv(name).unwrap();
    pv["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|all| all.contains(&json!(FINALIZER)))
}

fn annotate(api: &Api, name: &str, key: &str) {
    let key = key.to_owned();
    api.edit("persistentvolumes", "", name, |pv| {
        pv["metadata"]["annotations"] = json!({key: "x"});
    });
}

/// `b` is being deleted, and held data.
fn soil(server: &Server) {
    annotate(&server.api, "b", super::names::USED);
    server.api.delete("persistentvolumes", "", "b").unwrap();
}

#[test]
fn a_pv_that_changes_meanwhile_is_looked_at_again() {
    let server = server();
    let race = |api: &Api| annotate(api, "b", "example.com/somebody");
    server.api.inject(Fault::run(race).verb("patch").named("b"));
    // And one that goes.
    let ends = |api: &Api| api.remove("persistentvolumes", "", "c");
    server.api.inject(Fault::run(ends).verb("patch").named("c"));
    let ended = uninstall(&server);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    for name in ["b", "c"] {
        assert!(
            ended.out.contains(&format!("PV {name} has changed meanwhile")),
            "{}",
            ended.out
        );
    }
    let b = server.api.get_pv("b").unwrap();
    assert!(!carries_it(&server, "b"));
    assert_eq!(
        b["metadata"]["annotations"]["example.com/somebody"], "x",
        "overwritten: {b}"
    );
    assert!(server.api.get_pv("c").is_none());
}

#[test]
fn a_pv_that_became_dirty_meanwhile_is_left() {
    let server = server();
    let race = |api: &Api| {
        annotate(api, "b", super::names::USED);
        api.delete("persistentvolumes", "", "b").unwrap();
    };
    server.api.inject(Fault::run(race).verb("patch").named("b"));
    let ended = uninstall(&server);
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    assert!(ended.err.contains("still to be scrubbed"), "{}", ended.err);
    assert!(carries_it(&server, "b"));
    assert!(!carries_it(&server, "c"));
}

#[test]
fn one_pv_that_may_not_be_changed_does_not_stop_the_others() {
    let server = server();
    server
        .api
        .inject(Fault::status(403).verb("patch").named("a").times(usize::MAX));
    server.api.inject(Fault::status(500).verb("patch").named("b"));
    let ended = uninstall(&server);
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    assert!(
        ended.err.contains("cannot take the finalizer off PV a: not permitted"),
        "{}",
        ended.err
    );
    assert!(carries_it(&server, "a"));
    for name in ["b", "c"] {
        assert!(!carries_it(&server, name));
    }
    assert!(!ended.out.contains("any more"), "{}", ended.out);
}

#[test]
fn who_waits_watches_and_outlives_an_outage() {
    let server = server();
    soil(&server);
    let child = start(&server, &["--wait", "--timeout=1m"]);
    wait("it watches", || server.api.count("watch", "persistentvolumes") > 0);
    server.api.clear_requests();
    server.api.inject(Fault::status(503).verb("list").times(2));
    server.api.inject(Fault::status(503).verb("watch").times(1));
    server.api.cut_watches("persistentvolumes");
    wait("it asks again", || {
        server.api.count("list", "persistentvolumes") + server.api.count("watch", "persistentvolumes") > 2
    });
    server.api.remove("persistentvolumes", "", "b");
    let ended = ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
}
