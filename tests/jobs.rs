//! Cleaning Jobs on a real control plane: its Job controller and garbage collector, and a kubelet that the tests play.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "jobs/kubelet.rs"]
mod kubelet;
#[path = "support/plane_node.rs"]
mod node;
#[path = "jobs/permissions.rs"]
mod permissions;

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kubelet::{ALL_VERBS, is_zero};
use node::{Node, http_get, http_until, in_every_world};
use serde_json::json;
use testkit::mounts;

/// How many Jobs were counted as failed.
async fn failures(address: std::net::SocketAddr) -> Result<String> {
    let (_, metrics) = http_get(address, "/metrics").await?;
    let name = "local_volume_provisioner_persistentvolume_delete_failed_total{mode=\"Block\",type=\"job\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.unwrap_or("0").to_owned())
}

/// A node whose devices are scrubbed by Jobs.
async fn with_jobs(node: &Node) -> Result<()> {
    kubelet::may(node, ALL_VERBS).await?;
    node.configure("useJobForCleaning", "yes")
}

#[test]
fn a_device_is_cleaned_by_a_job_and_published_again() {
    in_every_world("cleaned_by_a_job", async |node: Rc<Node>| {
        with_jobs(&node).await?;
        let (device, pv) = kubelet::device(&node).await?;
        node.release("a").await?;
        let job = kubelet::job(&node, &pv, None).await?;
        let spec = json!(job.spec);
        ensure!(spec["activeDeadlineSeconds"] == 3 * 3600, "{spec}");
        ensure!(spec["template"]["spec"]["restartPolicy"] == "OnFailure", "{spec}");
        kubelet::starts(&node, &pv, &job).await?;
        ensure!(
            node.published().await?["disk1"].uid() == pv.uid(),
            "let go before it was clean"
        );
        ensure!(kubelet::run(&job)? == 0);
        kubelet::succeeds(&node, &job).await?;
        node.again("disk1", &pv).await?;
        ensure!(is_zero(device.path())?);
        kubelet::until(&node, &pv, "the Job is deleted", |job| job.is_none()).await?;
        Ok(())
    });
}

#[test]
fn a_restart_loses_no_job() {
    in_every_world("restart_beside_a_job", async |node: Rc<Node>| {
        with_jobs(&node).await?;
        let (_device, pv) = kubelet::device(&node).await?;
        node.release("a").await?;
        let job = kubelet::job(&node, &pv, None).await?;
        node.stop().await?;
        node.start().await?;
        node.several_passes().await;
        kubelet::starts(&node, &pv, &job).await?;
        node.stop().await?;
        node.start().await?;
        node.several_passes().await;
        let now = kubelet::jobs(&node).get(&job.name_any()).await?;
        ensure!(now.uid() == job.uid() && now.metadata.deletion_timestamp.is_none());
        ensure!(node.published().await?["disk1"].uid() == pv.uid());
        // It succeeds while nobody looks, and before the PV was let go.
        node.stop().await?;
        ensure!(kubelet::run(&job)? == 0);
        kubelet::succeeds(&node, &job).await?;
        let complete = |job: Option<&k8s_openapi::api::batch::v1::Job>| {
            job.and_then(|job| job.status.as_ref()?.completion_time.as_ref())
                .is_some()
        };
        kubelet::until(&node, &pv, "Complete", complete).await?;
        node.start().await?;
        node.again("disk1", &pv).await?;
        kubelet::until(&node, &pv, "the Job is deleted", |job| job.is_none()).await?;
        Ok(())
    });
}

#[test]
fn a_hold_that_a_job_finds_is_no_failure() {
    in_every_world("hold_in_a_job", async |node: Rc<Node>| {
        with_jobs(&node).await?;
        // One failure would be the last.
        node.set(|settings| settings.limits.scrub_retries = 1);
        let address = node.listen()?;
        let (device, pv) = kubelet::device(&node).await?;
        node.release("a").await?;
        let job = kubelet::job(&node, &pv, None).await?;
        kubelet::starts(&node, &pv, &job).await?;
        // Somebody mounts it before the Job gets to it.
        mounts::mkfs(device.path(), "ext4")?;
        let elsewhere = node.path("elsewhere");
        std::fs::create_dir(&elsewhere)?;
        mounts::device(device.path(), &elsewhere, "ext4")?;
        std::fs::write(elsewhere.join("precious"), "not yours")?;
        let code = kubelet::run(&job)?;
        ensure!(code == 75, "exit code {code}");
        kubelet::fails(&node, &job, code).await?;
        node.event(&pv, "VolumeFailedDelete", "still in use").await?;
        kubelet::until(&node, &pv, "the Job is deleted", |job| job.is_none()).await?;
        node.several_passes().await;
        ensure!(
            kubelet::jobs(&node).get_opt(&job.name_any()).await?.is_none(),
            "another Job, although the device is in use"
        );
        http_until(address, "/metrics", |_, metrics| {
            metrics.contains("volumes_held{reason=\"in-use\"} 1")
        })
        .await?;
        ensure!(failures(address).await? == "0", "it was counted");
        ensure!(std::fs::read(elsewhere.join("precious"))? == b"not yours");
        mounts::unmount(&elsewhere)?;
        let next = kubelet::job(&node, &pv, Some(&job)).await?;
        ensure!(kubelet::run(&next)? == 0);
        kubelet::succeeds(&node, &next).await?;
        node.again("disk1", &pv).await?;
        ensure!(is_zero(device.path())?);
        Ok(())
    });
}

#[test]
fn a_job_that_fails_is_counted_and_tried_again_until_the_volume_is_quarantined() {
    in_every_world("failing_jobs", async |node: Rc<Node>| {
        with_jobs(&node).await?;
        node.set(|settings| settings.limits.scrub_retries = 2);
        let address = node.listen()?;
        let (_device, pv) = kubelet::device(&node).await?;
        node.release("a").await?;
        let first = kubelet::job(&node, &pv, None).await?;
        kubelet::starts(&node, &pv, &first).await?;
        kubelet::fails(&node, &first, 1).await?;
        node.event(
            &pv,
            "VolumeFailedDelete",
            "its scrub failed, and is tried again: Job cleanup-",
        )
        .await?;
        let second = kubelet::job(&node, &pv, Some(&first)).await?;
        ensure!(failures(address).await? == "1");
        kubelet::starts(&node, &pv, &second).await?;
        kubelet::fails(&node, &second, 1).await?;
        node.event(
            &pv,
            "VolumeFailedDelete",
            "quarantined, because its scrub failed 2 times",
        )
        .await?;
        ensure!(failures(address).await? == "2");
        ensure!(node.published().await?["disk1"].uid() == pv.uid());
        node.patch(
            &pv,
            json!({"metadata": {"annotations": {"local-volume-provisioner/resolve": "retry"}}}),
        )
        .await?;
        let third = kubelet::job(&node, &pv, Some(&second)).await?;
        ensure!(kubelet::run(&third)? == 0);
        kubelet::succeeds(&node, &third).await?;
        node.again("disk1", &pv).await?;
        Ok(())
    });
}

#[test]
fn a_job_that_never_starts_is_told_and_not_counted() {
    in_every_world("job_pending", async |node: Rc<Node>| {
        with_jobs(&node).await?;
        node.set(|settings| settings.limits.scrub_retries = 1);
        let address = node.listen()?;
        let (_device, pv) = kubelet::device(&node).await?;
        node.release("a").await?;
        let job = kubelet::job(&node, &pv, None).await?;
        node.event(&pv, "VolumeFailedDelete", "has not started; ").await?;
        http_until(address, "/metrics", |_, metrics| {
            metrics.contains("volumes_held{reason=\"job-pending\"} 1")
        })
        .await?;
        // Its deadline comes.
        let soon = json!({"spec": {"activeDeadlineSeconds": 1}});
        kubelet::jobs(&node)
            .patch(&job.name_any(), &PatchParams::default(), &Patch::Merge(soon))
            .await?;
        kubelet::bury_pending(&node, &job).await?;
        node.event(
            &pv,
            "VolumeFailedDelete",
            "never started, and was ended by its deadline",
        )
        .await?;
        let next = kubelet::job(&node, &pv, Some(&job)).await?;
        ensure!(failures(address).await? == "0", "it was counted");
        kubelet::starts(&node, &pv, &next).await?;
        http_until(address, "/metrics", |_, metrics| {
            !metrics.contains("volumes_held{reason=\"job-pending\"} 1")
        })
        .await?;
        ensure!(kubelet::run(&next)? == 0);
        kubelet::succeeds(&node, &next).await?;
        node.again("disk1", &pv).await?;
        Ok(())
    });
}

#[test]
fn a_job_without_labels_is_not_overlooked() {
    in_every_world("unlabelled_job", async |node: Rc<Node>| {
        kubelet::may(&node, ALL_VERBS).await?;
        let (device, pv) = kubelet::device(&node).await?;
        // It does not end by itself: it is suspended.
        let made = async |name: &str, labels: serde_json::Value| {
            let pod = json!({"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "none"}]});
            let job = json!({"metadata": {"name": name, "labels": labels}, "spec": {"suspend": true, "template": {"spec": pod}}});
            let job = serde_json::from_value(job)?;
            kubelet::jobs(&node).create(&Default::default(), &job).await?;
            anyhow::Ok(())
        };
        let end = async |name: &str| {
            kubelet::jobs(&node)
                .delete(name, &kube::api::DeleteParams::background())
                .await?;
            anyhow::Ok(())
        };
        let name = kubelet::job_name(&pv);
        made(&name, json!({})).await?;
        node.release("a").await?;
        node.event(&pv, "VolumeFailedDelete", "at work on it").await?;
        node.several_passes().await;
        ensure!(!is_zero(device.path())?, "scrubbed beside a Job");
        ensure!(
            kubelet::jobs(&node).get_opt(&name).await?.is_some(),
            "not ours to delete"
        );
        end(&name).await?;
        let second = node.again("disk1", &pv).await?;

        // Nor is one that says it is for another node.
        let class = second.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
        let second = node.claim_of_mode("b", &class.context("a class")?, "Block").await?;
        std::fs::write(device.path(), vec![0xaa; 1 << 20])?;
        let elsewhere = json!({"pv": second.name_any(), "kubernetes.io/hostname": "elsewhere"});
        made(&name, elsewhere).await?;
        node.release("b").await?;
        node.event(&second, "VolumeFailedDelete", "at work on it").await?;
        node.several_passes().await;
        ensure!(!is_zero(device.path())?, "scrubbed beside a Job of another label");
        end(&name).await?;
        let second = node.again("disk1", &second).await?;

        // Nobody publishes beside one, also not after a start, and not if its label is taken away.
        node.stop().await?;
        node.delete(&second).await?;
        if node.patches() {
            node.patch(&second, json!({"metadata": {"finalizers": null}})).await?;
        }
        node.until("disk1", "gone", |pv| pv.is_none()).await?;
        made(&name, json!({"pv": second.name_any(), "pvuuid": "another"})).await?;
        node.start().await?;
        node.several_passes().await;
        ensure!(node.published().await?.is_empty(), "published beside a Job");
        let unlabelled = json!({"metadata": {"labels": null}});
        kubelet::jobs(&node)
            .patch(&name, &PatchParams::default(), &Patch::Merge(unlabelled))
            .await?;
        node.several_passes().await;
        ensure!(
            node.published().await?.is_empty(),
            "published beside a Job that lost its label"
        );
        node.stop().await?;
        node.start().await?;
        node.several_passes().await;
        ensure!(node.published().await?.is_empty(), "published beside an unlabelled Job");
        end(&name).await?;
        node.available("disk1").await.context("after the end of the Job")?;
        Ok(())
    });
}
