//! The object, field by field.

use std::rc::Rc;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use local_volume_provisioner::names;
use serde_json::{Value, json};
use testkit::mounts;

use crate::node::{MODES, Node, in_worlds, phase};

/// Changes the test's Node.
pub async fn patch_node(node: &Node, patch: Value) -> Result<NodeObject> {
    let nodes: Api<NodeObject> = Api::all(node.admin.clone());
    Ok(nodes
        .patch(&node.name, &PatchParams::default(), &Patch::Merge(patch))
        .await?)
}

/// A PV without what the server adds to it.
fn written(pv: &k8s_openapi::api::core::v1::PersistentVolume) -> Result<Value> {
    let mut value = serde_json::to_value(pv)?;
    value.as_object_mut().unwrap().remove("status");
    let meta = value["metadata"].as_object_mut().unwrap();
    for key in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        meta.remove(key);
    }
    Ok(value)
}

#[test]
fn every_field_is_as_configured() {
    in_worlds("every_field", &MODES, async |node: Rc<Node>| {
        let labels = json!({"zone": "z1", "rack": "r1", "team": "from-the-node", "not-copied": "x"});
        let object = patch_node(&node, json!({"metadata": {"labels": labels}})).await?;
        node.configure("nodeLabelsForPV", "- zone\n- team\n- absent\n")?;
        node.configure("labelsForPV", "team: storage\nlevel: 3\non-premises: yes\n")?;
        node.configure("setPVOwnerRef", "yes\n")?;
        let class = node.free_class_name()?;
        let storage_class: StorageClass = serde_json::from_value(json!({"metadata": {"name": class},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Retain", "mountOptions": ["noatime", "discard"]}))?;
        let classes: Api<StorageClass> = Api::all(node.admin.clone());
        classes.create(&PostParams::default(), &storage_class).await?;
        std::fs::create_dir(node.path(&class))?;
        let extra = "  fsType: xfs\n  accessMode: ReadWriteOncePod\n  selector:\n  - matchExpressions:\n    - key: rack\n      operator: In\n      values: [r1, r2]\n";
        node.configure_class(&class, extra)?;
        node.tmpfs_of(&class, "disk1", (10 << 30) + (1 << 20))?;
        node.start().await?;
        let pv = node.available("disk1").await?;

        let uid = object.uid().unwrap();
        let directory = node.path(&class).display().to_string();
        let id = pv.annotations()[names::VOLUME_ID].clone();
        ensure!(
            id.parse::<local_volume_provisioner::identity::VolumeId>().is_ok(),
            "{id}"
        );
        let mut finalizers = vec!["kubernetes.io/pv-protection"];
        if node.patches() {
            finalizers.insert(0, names::FINALIZER);
        }
        let expected = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": names::classic_pv_name("disk1", &node.name, &class),
                "labels": {"zone": "z1", "team": "storage", "level": "3", "on-premises": "true",
                    "local-volume-provisioner/node": node.hostname()},
                "annotations": {
                    "pv.kubernetes.io/provisioned-by": format!("local-volume-provisioner-{}-{uid}", node.name),
                    "local-volume-provisioner/volume-id": id,
                    "local-volume-provisioner/class-directory": directory,
                    "local-volume-provisioner/cleaner": "[\"zero\"]",
                },
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": uid}],
                "finalizers": finalizers,
            },
            "spec": {
                "capacity": {"storage": "10Gi"},
                "local": {"path": format!("{directory}/disk1"), "fsType": "xfs"},
                "accessModes": ["ReadWriteOncePod"],
                "volumeMode": "Filesystem",
                "storageClassName": class,
                "persistentVolumeReclaimPolicy": "Retain",
                "mountOptions": ["noatime", "discard"],
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node.hostname()]}]},
                    {"matchExpressions": [{"key": "rack", "operator": "In", "values": ["r1", "r2"]}]},
                ]}},
            },
        });
        let mut found = written(&pv)?;
        found["metadata"]["finalizers"]
            .as_array_mut()
            .unwrap()
            .sort_by_key(|finalizer| finalizer != names::FINALIZER);
        ensure!(found == expected, "{found:#}\nis not {expected:#}");
        Ok(())
    });
}

#[test]
fn defaults_leave_optional_fields_out() {
    in_worlds("defaults", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "  volumeMode: Block\n").await?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 48 << 20)?;
        std::os::unix::fs::symlink(device.path(), node.entry(&class, "disk1"))?;
        node.start().await?;
        let pv = written(&node.available("disk1").await?)?;
        ensure!(pv["spec"]["volumeMode"] == "Block" && pv["spec"]["capacity"]["storage"] == "48Mi");
        ensure!(
            pv["spec"]["local"] == json!({"path": node.entry(&class, "disk1")}),
            "{pv:#}"
        );
        ensure!(pv["spec"]["accessModes"] == json!(["ReadWriteOnce"]));
        ensure!(pv["spec"]["persistentVolumeReclaimPolicy"] == "Delete");
        ensure!(pv["spec"]["mountOptions"].is_null() && pv["metadata"]["ownerReferences"].is_null());
        ensure!(
            pv["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
                .as_array()
                .unwrap()
                .len()
                == 1
        );
        Ok(())
    });
}

#[test]
fn capacity_is_rounded_down_as_the_classic_program_does() {
    in_worlds("capacity", &MODES[..1], async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let table = [
            ("a", (10 << 30) + 8192, "10Gi"),
            ("b", (10_000 << 20) - 4096, "9999Mi"),
            ("c", 100 << 10, "100Ki"),
            ("d", (11 << 30) - 4096, "10Gi"),
            ("e", (10 << 20) + 4096, "10Mi"),
            ("f", (10 << 20) - 4096, "10236Ki"),
        ];
        for (entry, bytes, _) in table {
            node.tmpfs_of(&class, entry, bytes)?;
        }
        node.start().await?;
        let published = node.exactly(&["a", "b", "c", "d", "e", "f"]).await?;
        for (entry, bytes, expected) in table {
            let capacity = &published[entry].spec.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0;
            ensure!(
                capacity == expected,
                "{entry}, {bytes} bytes: {capacity}, not {expected}"
            );
        }
        Ok(())
    });
}

#[test]
fn the_provisioner_can_be_named_without_the_uid_of_its_node() {
    in_worlds("node_name_only", &MODES, async |node: Rc<Node>| {
        let by = async |entry: &str| {
            let pv = node.available(entry).await?;
            anyhow::Ok(pv.annotations()[names::PROVISIONED_BY].clone())
        };
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        node.start().await?;
        let with_uid = by("disk1").await?;
        ensure!(with_uid.len() > 36 && with_uid.starts_with(&format!("local-volume-provisioner-{}-", node.name)));
        let first = node.available("disk1").await?;
        // Edits take effect without a restart, and what was published before stays ours.
        node.configure("useNodeNameOnly", "true")?;
        node.several_passes().await;
        let disk = node.tmpfs(&class, "disk2")?;
        ensure!(by("disk2").await? == format!("local-volume-provisioner-{}", node.name));
        let second = node.available("disk2").await?;
        for (claim, pv) in [("a", &first), ("b", &second)] {
            let bound = node.claim(claim, &class).await?;
            ensure!([first.uid(), second.uid()].contains(&bound.uid()), "{pv:?}");
        }
        std::fs::write(disk.join("file"), "secret")?;
        node.release("a").await?;
        node.release("b").await?;
        node.again("disk1", &first).await?;
        node.again("disk2", &second).await?;
        ensure!(crate::node::names(&disk).is_empty());
        ensure!(node.published().await?.values().all(|pv| phase(pv) == "Available"));
        Ok(())
    });
}
