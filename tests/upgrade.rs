//! Moving over from the classic program while volumes are in every state, and a Node object that was made anew: nothing
//! is published twice, no data is lost or shown to anybody. On a real control plane, with and without permission to patch.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "support/plane_node.rs"]
mod node;

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node as NodeObject, PersistentVolume};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};
use local_volume_provisioner::names;
use node::{MODES, Node, in_every_world, in_worlds, phase};
use serde_json::json;

/// A PV as the classic program makes it.
async fn classic_pv(node: &Node, class: &str, entry: &str, node_uid: &str) -> Result<PersistentVolume> {
    let by = format!("local-volume-provisioner-{}-{node_uid}", node.name);
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node.hostname()]}]}]}});
    let pv = json!({
        "metadata": {
            "name": names::classic_pv_name(entry, &node.name, class),
            "annotations": {"pv.kubernetes.io/provisioned-by": by},
        },
        "spec": {
            "capacity": {"storage": "16Mi"},
            "local": {"path": node.entry(class, entry)},
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Filesystem",
            "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Delete",
            "nodeAffinity": affinity,
        },
    });
    let pv: PersistentVolume = serde_json::from_value(pv)?;
    let create = async || Ok(node.pvs().create(&PostParams::default(), &pv).await?);
    node.create_unused(entry, create).await
}

async fn node_uid(node: &Node) -> Result<String> {
    let nodes: Api<NodeObject> = Api::all(node.admin.clone());
    nodes.get(&node.name).await?.uid().context("the Node has no UID")
}

/// Waits until the PV bears what only we write, which takes the permission to patch.
async fn adopted(node: &Node, entry: &str) -> Result<()> {
    if !node.patches() {
        return Ok(());
    }
    let ours = |pv: &PersistentVolume| {
        pv.labels().get(names::NODE_LABEL) == Some(&node.hostname())
            && pv.finalizers().contains(&names::FINALIZER.to_owned())
            && pv.annotations().contains_key(names::VOLUME_ID)
            && pv.annotations().contains_key(names::CLASS_DIRECTORY)
    };
    node.until(entry, "adopted", |pv| pv.is_some_and(ours)).await?;
    Ok(())
}

#[test]
fn a_free_volume_is_adopted() {
    in_worlds("free", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        let uid = node_uid(&node).await?;
        let before = classic_pv(&node, &class, "disk1", &uid).await?;
        node.tmpfs(&class, "disk2")?;
        node.start().await?;
        node.available("disk2").await?;
        adopted(&node, "disk1").await?;
        node.several_passes().await;
        let now = node.exactly(&["disk1", "disk2"]).await?;
        ensure!(now["disk1"].uid() == before.uid(), "published anew");
        if !node.patches() {
            ensure!(
                now["disk1"].resource_version() == before.resource_version(),
                "touched without need"
            );
        }
        let origin = now["disk1"].annotations().get(names::VOLUME_ID_ORIGIN);
        ensure!(origin.is_none(), "nobody had it, so its id is certain: {origin:?}");
        node.claim("a", &class).await?;
        node.claim("b", &class).await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.release("a").await?;
        node.release("b").await?;
        node.again("disk1", &before).await?;
        ensure!(node::names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn a_bound_volume_is_adopted_with_its_data() {
    in_every_world("bound", async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        let uid = node_uid(&node).await?;
        classic_pv(&node, &class, "disk1", &uid).await?;
        let bound = node.claim("a", &class).await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.start().await?;
        adopted(&node, "disk1").await?;
        node.several_passes().await;
        let now = node.published().await?;
        ensure!(now.len() == 1 && now["disk1"].uid() == bound.uid() && phase(&now["disk1"]) == "Bound");
        ensure!(node::names(&disk) == ["file"], "scrubbed under its tenant");
        if node.patches() {
            let claim = bound.spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid.clone();
            let marks = now["disk1"].annotations();
            ensure!(marks.get(names::USED) == claim.as_ref(), "{marks:?}");
            ensure!(marks[names::VOLUME_ID_ORIGIN] == "seen-while-bound", "{marks:?}");
        }
        node.release("a").await?;
        let again = node.again("disk1", &bound).await?;
        ensure!(again.name_any() == bound.name_any() && node::names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn a_released_volume_is_scrubbed_and_published_again() {
    in_every_world("released", async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        let uid = node_uid(&node).await?;
        let before = classic_pv(&node, &class, "disk1", &uid).await?;
        node.claim("a", &class).await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.release("a").await?;
        let released = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| phase(pv) == "Released");
        node.until("disk1", "Released", released).await?;
        node.start().await?;
        let again = node.again("disk1", &before).await?;
        ensure!(again.name_any() == before.name_any() && node::names(&disk).is_empty());
        ensure!(node.published().await?.len() == 1);
        Ok(())
    });
}

#[test]
fn a_volume_that_is_not_mounted_at_the_upgrade_keeps_its_pv() {
    in_worlds("not_mounted", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        std::fs::create_dir(node.entry(&class, "disk1"))?;
        let uid = node_uid(&node).await?;
        classic_pv(&node, &class, "disk1", &uid).await?;
        let bound = node.claim("a", &class).await?;
        node.start().await?;
        node.event(&bound, "VolumeVanished", "a claim is bound to it").await?;
        node.several_passes().await;
        ensure!(node.published().await?["disk1"].uid() == bound.uid());
        Ok(())
    });
}

/// The Node object is deleted and made again, as when a machine is reinstalled under its name.
async fn renew_node_object(node: &Node) -> Result<()> {
    let nodes: Api<NodeObject> = Api::all(node.admin.clone());
    let former = node_uid(node).await?;
    nodes.delete(&node.name, &DeleteParams::default()).await?;
    node.plane.create_node(&node.name, &node.hostname()).await?;
    ensure!(node_uid(node).await? != former);
    Ok(())
}

#[test]
fn volumes_of_the_former_node_object_are_adopted_or_held() {
    in_worlds("former_node", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disks = [node.tmpfs(&class, "disk1")?, node.tmpfs(&class, "disk2")?];
        node.start().await?;
        let before = node.exactly(&["disk1", "disk2"]).await?;
        let bound = node.claim("a", &class).await?;
        for disk in &disks {
            std::fs::write(disk.join("file"), "secret")?;
        }
        node.stop().await?;
        renew_node_object(&node).await?;
        node.start().await?;
        // Its first pass has ended when it has published this.
        node.tmpfs(&class, "disk3")?;
        node.available("disk3").await?;
        let by = format!("local-volume-provisioner-{}-{}", node.name, node_uid(&node).await?);
        let renamed =
            |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| pv.annotations()[names::PROVISIONED_BY] == by);
        if node.patches() {
            node.until("disk1", "adopted", renamed).await?;
            node.until("disk2", "adopted", renamed).await?;
        }
        node.several_passes().await;
        let now = node.published().await?;
        ensure!(now.len() == 3, "{:?}", now.keys());
        ensure!(
            ["disk1", "disk2"]
                .iter()
                .all(|entry| now[*entry].uid() == before[*entry].uid())
        );
        ensure!(disks.iter().all(|disk| node::names(disk) == ["file"]), "scrubbed");
        let entry = if bound.uid() == before["disk1"].uid() {
            "disk1"
        } else {
            "disk2"
        };
        node.release("a").await?;
        if node.patches() {
            node.again(entry, &bound).await?;
            ensure!(node::names(&node.entry(&class, entry)).is_empty());
        } else {
            node.several_passes().await;
            let now = node.published().await?;
            ensure!(now.len() == 3 && now[entry].uid() == bound.uid(), "it is held");
            ensure!(node::names(&node.entry(&class, entry)) == ["file"]);
            node.delete(&bound).await?;
            node.again(entry, &bound).await?;
            ensure!(
                node::names(&node.entry(&class, entry)).is_empty(),
                "published with somebody's data"
            );
        }
        Ok(())
    });
}

#[test]
fn a_former_node_s_pv_without_an_id_is_held() {
    in_worlds("former_node_without_id", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        std::fs::write(disk.join("file"), "secret")?;
        let former = "0f7d1f9e-2b63-4f5a-9d0c-1c2d3e4f5a6b";
        let before = classic_pv(&node, &class, "disk1", former).await?;
        node.tmpfs(&class, "disk2")?;
        node.start().await?;
        node.available("disk2").await?;
        node.several_passes().await;
        let now = node.published().await?;
        ensure!(now.len() == 2 && now["disk1"].uid() == before.uid(), "{:?}", now.keys());
        ensure!(now["disk1"].resource_version() == before.resource_version(), "touched");
        ensure!(node::names(&disk) == ["file"]);
        node.event(&before, "ForeignPersistentVolume", "another UID").await?;
        // The event says what ends it.
        node.delete(&before).await?;
        node.again("disk1", &before).await?;
        Ok(())
    });
}

#[test]
fn volumes_of_the_former_hostname_label_are_held_until_it_is_back() {
    in_worlds("former_hostname", &MODES, async |node: Rc<Node>| {
        let label = async |value: &str| {
            let nodes: Api<NodeObject> = Api::all(node.admin.clone());
            let patch = json!({"metadata": {"labels": {"kubernetes.io/hostname": value}}});
            let patch = kube::api::Patch::Merge(patch);
            nodes
                .patch(&node.name, &kube::api::PatchParams::default(), &patch)
                .await
        };
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        node.start().await?;
        node.available("disk1").await?;
        let bound = node.claim("a", &class).await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.stop().await?;
        label("renamed").await?;
        node.start().await?;
        node.tmpfs(&class, "disk2")?;
        node.available("disk2").await?;
        node.several_passes().await;
        let now = node.published().await?;
        ensure!(now.len() == 2 && now["disk1"].uid() == bound.uid(), "{:?}", now.keys());
        node.stop().await?;
        label(&node.hostname()).await?;
        node.start().await?;
        node.release("a").await?;
        node.again("disk1", &bound).await?;
        ensure!(node::names(&disk).is_empty());
        Ok(())
    });
}
