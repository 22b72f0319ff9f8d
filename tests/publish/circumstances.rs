//! What must be there besides the volume: StorageClass, Node, configuration, no Job at work.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};
use local_volume_provisioner::names;
use serde_json::json;

use crate::node::{MODES, Node, http_until, in_worlds};
use crate::objects::patch_node;

#[test]
fn without_its_storage_class_nothing_is_published() {
    in_worlds("storage_class", &MODES, async |node: Rc<Node>| {
        let class = node.free_class_name()?;
        std::fs::create_dir(node.path(&class))?;
        node.configure_class(&class, "")?;
        node.tmpfs(&class, "disk1")?;
        let other = node.class("Delete", "").await?;
        node.tmpfs(&other, "disk2")?;
        node.start().await?;
        node.available("disk2").await?;
        node.several_passes().await;
        node.exactly(&["disk2"]).await?;
        node.plane.create_storage_class(&class, "Delete").await?;
        node.exactly(&["disk1", "disk2"]).await?;
        Ok(())
    });
}

#[test]
fn a_node_without_the_hostname_label_is_waited_for() {
    in_worlds("hostname_label", &MODES, async |node: Rc<Node>| {
        patch_node(&node, json!({"metadata": {"labels": {"kubernetes.io/hostname": null}}})).await?;
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        let address = node.listen()?;
        node.start().await?;
        http_until(address, "/readyz", |code, body| {
            code == 503 && body.contains("the label kubernetes.io/hostname")
        })
        .await?;
        ensure!(node.published().await?.is_empty());
        patch_node(
            &node,
            json!({"metadata": {"labels": {"kubernetes.io/hostname": node.hostname()}}}),
        )
        .await?;
        http_until(address, "/readyz", |code, _| code == 200).await?;
        let pv = node.available("disk1").await?;
        // The watch shows what becomes of it.
        node.claim("a", &class).await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.release("a").await?;
        node.again("disk1", &pv).await?;
        ensure!(crate::node::names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn a_class_that_is_removed_is_withdrawn() {
    in_worlds("class_removed", &MODES, async |node: Rc<Node>| {
        let kept = node.class("Delete", "").await?;
        node.tmpfs(&kept, "disk1")?;
        let gone = node.class("Delete", "").await?;
        node.tmpfs(&gone, "disk2")?;
        let used = node.tmpfs(&gone, "disk3")?;
        node.start().await?;
        let first = node.exactly(&["disk1", "disk2", "disk3"]).await?;
        let bound = node.claim("a", &gone).await?;
        let path = bound.spec.as_ref().unwrap().local.as_ref().unwrap().path.clone();
        let (bound_entry, free_entry) = match Path::new(&path) == used.as_path() {
            true => ("disk3", "disk2"),
            false => ("disk2", "disk3"),
        };
        std::fs::write(Path::new(&path).join("file"), "secret")?;
        node.configure("storageClassMap", &node.settings_of(&kept, ""))?;
        node.until(free_entry, "withdrawn", |pv| pv.is_none()).await?;
        let now = node.published().await?;
        ensure!(
            now["disk1"].uid() == first["disk1"].uid(),
            "the other class was disturbed"
        );
        ensure!(now[bound_entry].uid() == bound.uid(), "a bound PV was withdrawn");
        // It was published with its directory on it, so it is scrubbed without its class, and then it is gone.
        node.release("a").await?;
        node.until(bound_entry, "scrubbed and gone", |pv| pv.is_none()).await?;
        ensure!(crate::node::names(Path::new(&path)).is_empty());
        Ok(())
    });
}

#[test]
fn a_broken_edit_costs_nothing_that_worked() {
    in_worlds("broken_edit", &MODES, async |node: Rc<Node>| {
        node.configure("labelsForPV", "team: storage\n")?;
        let first = node.class("Delete", "").await?;
        node.tmpfs(&first, "disk1")?;
        let second = node.class("Delete", "").await?;
        node.tmpfs(&second, "disk2")?;
        let address = node.listen()?;
        node.start().await?;
        let published = node.exactly(&["disk1", "disk2"]).await?;
        // One class is broken, one is new; a label is none any more.
        let third = node.free_class_name()?;
        node.plane.create_storage_class(&third, "Delete").await?;
        std::fs::create_dir(node.path(&third))?;
        node.tmpfs(&third, "disk3")?;
        let broken = format!("{second}:\n  hostDir: relative\n  mountDir: [1]\n");
        let map = node.settings_of(&first, "") + &broken + &node.settings_of(&third, "");
        node.edit([
            ("storageClassMap", Some(map.as_str())),
            ("labelsForPV", Some("team: \"not a label value!\"\n")),
        ])?;
        node.tmpfs(&second, "disk4")?;
        let later = node.exactly(&["disk1", "disk2", "disk3", "disk4"]).await?;
        ensure!(published.iter().all(|(entry, pv)| later[entry].uid() == pv.uid()));
        for entry in ["disk3", "disk4"] {
            let team = later[entry].labels().get("team");
            ensure!(team.is_some_and(|team| team == "storage"), "{entry}: {team:?}");
        }
        let problems = |body: &str| {
            body.lines()
                .any(|line| line.starts_with("local_volume_provisioner_config_problems ") && !line.ends_with(" 0"))
        };
        http_until(address, "/metrics", |_, body| problems(body)).await?;
        http_until(address, "/readyz", |code, _| code == 200).await?;
        // No YAML at all, and then nothing at all.
        node.configure("storageClassMap", "a: [\n")?;
        node.several_passes().await;
        std::fs::remove_dir_all(node.path("config"))?;
        node.several_passes().await;
        node.tmpfs(&first, "disk5")?;
        let last = node.exactly(&["disk1", "disk2", "disk3", "disk4", "disk5"]).await?;
        ensure!(later.iter().all(|(entry, pv)| last[entry].uid() == pv.uid()));
        Ok(())
    });
}

/// A Job that does not end by itself: it is suspended.
async fn cleaning_job(node: &Node, pv: &str) -> Result<Job> {
    let jobs: Api<Job> = Api::namespaced(node.admin.clone(), "default");
    let template =
        json!({"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "cleaner", "image": "none"}]}});
    let job = json!({"metadata": {"name": format!("cleanup-{pv}"), "labels": {"pv": pv, "pvuuid": "another"}},
        "spec": {"suspend": true, "template": template}});
    Ok(jobs
        .create(&PostParams::default(), &serde_json::from_value(job)?)
        .await?)
}

#[test]
fn a_cleaning_job_at_work_is_waited_for() {
    // Jobs cannot be read with the classic permissions.
    in_worlds("job_at_work", &MODES[..1], async |node: Rc<Node>| {
        let jobs: Api<Job> = Api::namespaced(node.admin.clone(), "default");
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        node.tmpfs(&class, "disk2")?;
        let name = names::classic_pv_name("disk1", &node.name, &class);
        cleaning_job(&node, &name).await?;
        node.start().await?;
        node.available("disk2").await?;
        node.several_passes().await;
        node.exactly(&["disk2"]).await?;
        jobs.delete(&format!("cleanup-{name}"), &DeleteParams::background())
            .await?;
        let pv = node.available("disk1").await?;
        let elsewhere = node.published().await?["disk2"].clone();
        let (first, second) = (node.claim("a", &class).await?, node.claim("b", &class).await?);
        let claim = if first.uid() == pv.uid() { "a" } else { "b" };
        ensure!([first.uid(), second.uid()].contains(&elsewhere.uid()));
        std::fs::write(disk.join("file"), "secret")?;
        cleaning_job(&node, &name).await?;
        node.release(claim).await?;
        node.event(&pv, "VolumeFailedDelete", "Job").await?;
        node.several_passes().await;
        ensure!(crate::node::names(&disk) == ["file"], "scrubbed beside the Job");
        jobs.delete(&format!("cleanup-{name}"), &DeleteParams::background())
            .await?;
        node.again("disk1", &pv).await?;
        ensure!(crate::node::names(&disk).is_empty());
        Ok(())
    });
}
