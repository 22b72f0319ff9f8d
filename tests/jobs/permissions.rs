//! Permissions for Jobs that come and go.

use std::rc::Rc;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, ResourceQuota};
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::kubelet::{self, ALL_VERBS, is_zero};
use crate::node::{Node, WORLDS, in_every_world, in_worlds};

/// The Job is made, runs and succeeds, and the volume is back.
async fn recycled(node: &Node, device: &std::path::Path, pv: &PersistentVolume) -> Result<()> {
    let job = kubelet::job(node, pv, None).await?;
    ensure!(kubelet::run(&job)? == 0);
    kubelet::succeeds(node, &job).await?;
    node.again("disk1", pv).await?;
    ensure!(is_zero(device)?);
    Ok(())
}

#[test]
fn a_permission_that_is_missing_is_named_and_its_grant_is_enough() {
    in_every_world("missing_permissions", async |node: Rc<Node>| {
        kubelet::may(&node, &[]).await?;
        node.configure("useJobForCleaning", "yes")?;
        let (device, pv) = kubelet::device(&node).await?;
        node.release("a").await?;
        node.event(
            &pv,
            "VolumeFailedDelete",
            "the verb list on jobs in namespace default is not granted",
        )
        .await?;
        kubelet::may(&node, &["list"]).await?;
        node.event(
            &pv,
            "VolumeFailedDelete",
            "the verb watch on jobs in namespace default is not granted",
        )
        .await?;
        kubelet::may(&node, &["list", "watch"]).await?;
        node.event(
            &pv,
            "VolumeFailedDelete",
            "grant the verb create on jobs in namespace default",
        )
        .await?;
        ensure!(!is_zero(device.path())?);
        kubelet::may(&node, ALL_VERBS).await?;
        recycled(&node, device.path(), &pv).await
    });
}

#[test]
fn jobs_can_be_turned_on_after_the_role_was_granted() {
    in_every_world("turned_on", async |node: Rc<Node>| {
        kubelet::may(&node, &[]).await?;
        let (device, pv) = kubelet::device(&node).await?;
        kubelet::may(&node, ALL_VERBS).await?;
        node.configure("useJobForCleaning", "yes")?;
        node.several_passes().await;
        node.release("a").await?;
        recycled(&node, device.path(), &pv).await
    });
}

#[test]
fn a_failed_job_that_may_not_be_deleted_is_told() {
    in_every_world("no_delete", async |node: Rc<Node>| {
        kubelet::may(&node, &["list", "watch", "create"]).await?;
        node.configure("useJobForCleaning", "yes")?;
        let (device, pv) = kubelet::device(&node).await?;
        node.release("a").await?;
        let job = kubelet::job(&node, &pv, None).await?;
        kubelet::starts(&node, &pv, &job).await?;
        kubelet::fails(&node, &job, 1).await?;
        node.event(
            &pv,
            "VolumeFailedDelete",
            "grant the verb delete on jobs in namespace default",
        )
        .await?;
        kubelet::may(&node, ALL_VERBS).await?;
        kubelet::until(&node, &pv, "the Job is deleted", |found| {
            found.is_none_or(|found| found.metadata.uid != job.metadata.uid)
        })
        .await?;
        recycled(&node, device.path(), &pv).await
    });
}

#[test]
fn a_quota_is_no_missing_permission() {
    in_worlds("quota", &[WORLDS[0]], async |node: Rc<Node>| {
        let namespace = format!("full-{}", node.name);
        let namespaces: Api<Namespace> = Api::all(node.admin.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        let quotas: Api<ResourceQuota> = Api::namespaced(node.admin.clone(), &namespace);
        let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}});
        quotas
            .create(&PostParams::default(), &serde_json::from_value(quota)?)
            .await?;
        kubelet::may(&node, ALL_VERBS).await?;
        node.set(|settings| settings.namespace.clone_from(&namespace));
        node.configure("useJobForCleaning", "yes")?;
        let (_device, pv) = kubelet::device(&node).await?;
        node.release("a").await?;
        let refused = node.event(&pv, "VolumeFailedDelete", "exceeded quota").await?;
        let message = refused.message.unwrap_or_default();
        ensure!(message.contains("raise the ResourceQuota"), "{message}");
        Ok(())
    });
}
