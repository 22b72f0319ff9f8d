//! A user whose permissions for Jobs the test decides, and a kubelet for the pods of cleaning Jobs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::mounts::LoopDevice;
use tokio::time::{Duration, Instant, sleep};

use crate::node::{DEADLINE, Node};

pub const ALL_VERBS: &[&str] = &["list", "watch", "create", "delete"];

fn rules(node: &Node, verbs: &[&str]) -> Value {
    let mut volumes = vec!["get", "list", "watch", "create", "delete"];
    let mut nodes = vec!["get"];
    if node.patches() {
        volumes.push("patch");
        nodes.extend(["list", "watch"]);
    }
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let mut rules = vec![
        rule("", "persistentvolumes", &volumes),
        rule("", "persistentvolumeclaims", &["get"]),
        rule("storage.k8s.io", "storageclasses", &["get", "list", "watch"]),
        rule("", "nodes", &nodes),
        rule("", "events", &["create", "update", "patch", "watch"]),
    ];
    if !verbs.is_empty() {
        rules.push(rule("batch", "jobs", verbs));
    }
    json!(rules)
}

/// The daemon runs as a user who may do this with Jobs, and in all else what the world's user may.
pub async fn may(node: &Node, verbs: &[&str]) -> Result<()> {
    let user = format!("jobs-{}", node.name);
    if node.user.borrow().is_none() {
        node.plane.user(&user, &[]).await?;
        *node.user.borrow_mut() = Some(user.clone());
    }
    let roles: Api<ClusterRole> = Api::all(node.admin.clone());
    let patch = json!({"rules": rules(node, verbs)});
    roles
        .patch(
            &format!("testkit-{user}"),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
    Ok(())
}

/// A bound device of a class, and its PV. The claim is `a`.
pub async fn device(node: &Node) -> Result<(LoopDevice, PersistentVolume)> {
    let class = node.class("Delete", "  volumeMode: Block\n").await?;
    let device = LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
    std::os::unix::fs::symlink(device.path(), node.entry(&class, "disk1"))?;
    node.start().await?;
    node.available("disk1").await?;
    let pv = node.claim_of_mode("a", &class, "Block").await?;
    std::fs::write(device.path(), vec![0xaa; 1 << 20])?;
    Ok((device, pv))
}

pub fn is_zero(device: &Path) -> Result<bool> {
    Ok(std::fs::read(device)?.iter().all(|byte| *byte == 0))
}

pub fn jobs(node: &Node) -> Api<Job> {
    Api::namespaced(node.admin.clone(), "default")
}

pub fn job_name(pv: &PersistentVolume) -> String {
    format!("cleanup-{}", pv.name_any())
}

/// Waits for something about the PV's Job (`None`: there is none).
pub async fn until(
    node: &Node,
    pv: &PersistentVolume,
    what: &str,
    holds: impl Fn(Option<&Job>) -> bool,
) -> Result<Option<Job>> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = jobs(node).get_opt(&job_name(pv)).await?;
        if holds(found.as_ref()) {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("not within {DEADLINE:?}: {what}; the Job is {}", json!(found));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a Job of another UID than this one.
pub async fn job(node: &Node, pv: &PersistentVolume, former: Option<&Job>) -> Result<Job> {
    let other = |job: Option<&Job>| {
        job.is_some_and(|job| {
            job.metadata.deletion_timestamp.is_none() && job.uid() != former.and_then(ResourceExt::uid)
        })
    };
    until(node, pv, "a Job", other).await?.context("no Job")
}

/// The pod of a Job, once the scheduler has given it its node.
async fn pod(node: &Node, job: &Job) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(node.admin.clone(), "default");
    let selector = format!("batch.kubernetes.io/controller-uid={}", job.uid().unwrap_or_default());
    let end = Instant::now() + DEADLINE;
    loop {
        let found = pods.list(&ListParams::default().labels(&selector)).await?;
        let scheduled = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        if let Some(pod) = found.items.into_iter().find(scheduled) {
            return Ok(pod);
        }
        ensure!(Instant::now() < end, "Job {} has no scheduled pod", job.name_any());
        sleep(Duration::from_millis(20)).await;
    }
}

async fn report(node: &Node, pod: &Pod, phase: &str, restarts: u32, state: Value) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(node.admin.clone(), "default");
    let running = state.get("running").is_some();
    let container = json!({"name": "cleaner", "image": "none", "imageID": "none", "ready": running, "started": running,
        "restartCount": restarts, "state": state});
    let ready = json!({"type": "Ready", "status": if running { "True" } else { "False" }});
    let status = json!({"status": {"phase": phase, "conditions": [ready], "containerStatuses": [container]}});
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// The container has started; the Job's status says so.
pub async fn starts(node: &Node, pv: &PersistentVolume, job: &Job) -> Result<()> {
    let pod = pod(node, job).await?;
    report(node, &pod, "Running", 0, json!({"running": {}})).await?;
    let ready = |job: Option<&Job>| {
        job.and_then(|job| job.status.as_ref()?.ready)
            .is_some_and(|ready| ready > 0)
    };
    until(node, pv, "its pod is counted as ready", ready).await?;
    Ok(())
}

/// Runs what the container of the Job runs: the exit code.
pub fn run(job: &Job) -> Result<i32> {
    let spec = json!(job.spec)["template"]["spec"]["containers"][0].clone();
    let words: Vec<&str> = spec["command"]
        .as_array()
        .context("no command")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    ensure!(words[0] == "/local-volume-provisioner", "{words:?}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_local-volume-provisioner"));
    command.args(&words[1..]);
    for variable in spec["env"].as_array().context("no env")? {
        command.env(
            variable["name"].as_str().context("no name")?,
            variable["value"].as_str().unwrap_or_default(),
        );
    }
    command.status()?.code().context("killed")
}

/// The container has ended well.
pub async fn succeeds(node: &Node, job: &Job) -> Result<()> {
    let pod = pod(node, job).await?;
    report(node, &pod, "Succeeded", 0, json!({"terminated": {"exitCode": 0}})).await
}

/// The container has ended with this code, again and again.
pub async fn fails(node: &Node, job: &Job, code: i32) -> Result<()> {
    let pod = pod(node, job).await?;
    let state = json!({"terminated": {"exitCode": code}});
    report(node, &pod, "Running", 2, state).await?;
    bury(node, job, &pod).await
}

/// Ends the pod when that is asked for.
pub async fn bury(node: &Node, job: &Job, pod: &Pod) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(node.admin.clone(), "default");
    let end = Instant::now() + DEADLINE;
    loop {
        match pods.get_opt(&pod.name_any()).await? {
            None => return Ok(()),
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
                let now = DeleteParams::default().grace_period(0);
                match pods.delete(&pod.name_any(), &now).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
            Some(_) => {}
        }
        ensure!(Instant::now() < end, "the pod of Job {} is not deleted", job.name_any());
        sleep(Duration::from_millis(20)).await;
    }
}

/// As [`bury`], of a pod that never began.
pub async fn bury_pending(node: &Node, job: &Job) -> Result<()> {
    let pod = pod(node, job).await?;
    bury(node, job, &pod).await
}
