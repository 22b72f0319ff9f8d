//! The startup taint: removed when the provisioner is ready, by an update that loses nothing.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Event, Node as NodeObject};
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use testkit::plane::{BUILT_IN, Rule};

use crate::node::{DEADLINE, MODES, Node, http_until, in_worlds};
use crate::objects::patch_node;

const KEY: &str = "sig-storage-local-static-provisioner/agent-not-ready";

/// The daemon's user: as the classic chart has it, or with all that our own manifests and the optional one give.
async fn permitted(node: &Node) -> Result<()> {
    let more: &[Rule<'_>] = if node.patches() {
        &[
            (&[""], &["nodes"], &["get", "list", "watch", "update"]),
            (&[""], &["persistentvolumes"], &["patch"]),
            (&["batch"], &["jobs"], &["*"]),
        ]
    } else {
        &[(&[""], &["nodes"], &["get", "update"])]
    };
    let user = format!("{}-taint", node.name);
    node.plane.user(&user, &[BUILT_IN, more].concat()).await?;
    *node.user.borrow_mut() = Some(user);
    Ok(())
}

fn configured(node: &Node) -> Result<()> {
    node.edit([
        ("removeNodeNotReadyTaint", Some("true")),
        ("provisionerNotReadyNodeTaintKey", Some(KEY)),
    ])
}

async fn taint(node: &Node) -> Result<()> {
    let taints = json!([
        {"key": KEY, "effect": "NoSchedule"},
        {"key": "example.com/other", "effect": "PreferNoSchedule", "value": "x"},
        {"key": KEY, "effect": "NoExecute", "value": "y"},
    ]);
    patch_node(node, json!({"spec": {"taints": taints}})).await?;
    Ok(())
}

async fn object(node: &Node) -> Result<NodeObject> {
    Ok(Api::all(node.admin.clone()).get(&node.name).await?)
}

fn keys(object: &NodeObject) -> Vec<String> {
    let taints = object.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.map(|taint| taint.key.clone()).collect()
}

async fn untainted(node: &Node) -> Result<NodeObject> {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        let now = object(node).await?;
        if !keys(&now).contains(&KEY.to_owned()) {
            return Ok(now);
        }
        ensure!(tokio::time::Instant::now() < end, "the taint stays: {:?}", keys(&now));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A ready daemon of a tainted node with one volume, which waits for so many: its class, and the address of its status.
async fn ready(node: &Node, volumes: usize) -> Result<(String, SocketAddr)> {
    configured(node)?;
    let class = node.class("Delete", "").await?;
    node.tmpfs(&class, "disk1")?;
    taint(node).await?;
    node.set(|settings| settings.ready_volumes = [(class.clone(), volumes)].into());
    let address = node.listen()?;
    let status = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    node.set(|settings| settings.status_address = Some(status));
    node.start().await?;
    node.available("disk1").await?;
    http_until(address, "/readyz", |code, _| code == 200).await?;
    Ok((class, status))
}

#[test]
fn the_startup_taint_goes_when_every_directory_was_read_and_nothing_else_does() {
    in_worlds("startup_taint", &MODES, async |node: Rc<Node>| {
        permitted(&node).await?;
        configured(&node)?;
        let class = node.class("Delete", "").await?;
        std::fs::remove_dir(node.path(&class))?;
        taint(&node).await?;
        let change = json!({"metadata": {"annotations": {"example.com/a": "b"}}, "spec": {"unschedulable": true}});
        patch_node(&node, change).await?;
        let before = serde_json::to_value(object(&node).await?)?;
        let address = node.listen()?;
        node.start().await?;
        http_until(address, "/readyz", |code, body| code == 503 && body.contains(&class)).await?;
        node.several_passes().await;
        ensure!(keys(&object(&node).await?).len() == 3, "removed before it was ready");
        std::fs::create_dir(node.path(&class))?;
        let after = serde_json::to_value(untainted(&node).await?)?;
        http_until(address, "/ready", |code, _| code == 200).await?;
        let without = |mut value: Value| {
            for key in ["resourceVersion", "managedFields"] {
                value["metadata"].as_object_mut().unwrap().remove(key);
            }
            let taints = value["spec"]["taints"].as_array_mut().unwrap();
            taints.retain(|taint| taint["key"] != KEY);
            value
        };
        ensure!(without(after.clone()) == without(before), "{after:#}");
        ensure!(after["spec"]["taints"].as_array().unwrap().len() == 1);
        if node.patches() {
            // The Node object was made anew, as far as anybody can see.
            taint(&node).await?;
            untainted(&node).await?;
        }
        Ok(())
    });
}

#[test]
fn without_being_asked_no_taint_is_removed() {
    in_worlds("no_startup_taint", &MODES, async |node: Rc<Node>| {
        permitted(&node).await?;
        node.configure("provisionerNotReadyNodeTaintKey", KEY)?;
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        taint(&node).await?;
        node.start().await?;
        node.available("disk1").await?;
        node.several_passes().await;
        ensure!(keys(&object(&node).await?).len() == 3);
        // Asked for by an edit, it goes at once.
        configured(&node)?;
        untainted(&node).await?;
        Ok(())
    });
}

#[test]
fn it_stays_until_so_many_volumes_are_published() {
    in_worlds("ready_volumes", &MODES, async |node: Rc<Node>| {
        permitted(&node).await?;
        let (class, status) = ready(&node, 2).await?;
        http_until(status, "/status", |_, body| body.contains("of which there are 1")).await?;
        ensure!(keys(&object(&node).await?).len() == 3);
        node.tmpfs(&class, "disk2")?;
        untainted(&node).await?;
        Ok(())
    });
}

#[test]
fn where_it_may_not_be_removed_that_is_said_once() {
    in_worlds("taint_refused", &MODES, async |node: Rc<Node>| {
        let (class, status) = ready(&node, 1).await?;
        http_until(status, "/status", |_, body| body.contains("grant update on nodes")).await?;
        let events: Api<Event> = Api::namespaced(node.admin.clone(), "default");
        let about = format!("involvedObject.kind=Node,involvedObject.name={}", node.name);
        let told = async || -> Result<usize> {
            let all = events.list(&ListParams::default().fields(&about)).await?.items;
            let stays = |event: &&Event| event.reason.as_deref() == Some("StartupTaintStays");
            Ok(all.iter().filter(stays).count())
        };
        let end = tokio::time::Instant::now() + DEADLINE;
        while told().await? == 0 {
            ensure!(tokio::time::Instant::now() < end, "no event");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Whatever happens meanwhile.
        node.tmpfs(&class, "disk2")?;
        node.available("disk2").await?;
        node.several_passes().await;
        ensure!(told().await? == 1, "told {} times", told().await?);
        ensure!(keys(&object(&node).await?).len() == 3);
        Ok(())
    });
}

/// The kubelet, and others, write to the Node all the time: the update carries the resourceVersion that was read.
#[test]
fn what_others_write_to_the_node_meanwhile_is_not_lost() {
    in_worlds("taint_conflicts", &MODES, async |node: Rc<Node>| {
        permitted(&node).await?;
        configured(&node)?;
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        taint(&node).await?;
        node.start().await?;
        let end = tokio::time::Instant::now() + DEADLINE;
        for number in 0.. {
            let key = format!("example.com/n{number}");
            patch_node(&node, json!({"metadata": {"annotations": {key: "1"}}})).await?;
            ensure!(tokio::time::Instant::now() < end, "the taint stays");
            let now = object(&node).await?;
            if !keys(&now).contains(&KEY.to_owned()) {
                let annotations = now.metadata.annotations.unwrap_or_default();
                let kept = (0..=number).filter(|n| annotations.contains_key(&format!("example.com/n{n}")));
                ensure!(kept.count() == number + 1, "an annotation was lost: {annotations:?}");
                return Ok(());
            }
        }
        Ok(())
    });
}
