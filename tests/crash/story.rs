//! The life of a volume, in which the daemon is killed: published, bound, written to, released, recycled.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job as JobObject;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::node::{DEADLINE, Node, phase};
use crate::process::Daemon;
use crate::volume::{Guard, POOL_BYTES, Storage, Volume, directory};

pub const FINALIZER: &str = "local-volume-provisioner/scrub";
const LABEL: &str = "local-volume-provisioner/node";
const RESOLVE: &str = "local-volume-provisioner/resolve";
const MIB: u64 = 1 << 20;

/// What happens to the volume besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// Nothing; it is a directory.
    Files,
    /// Nothing; it is a device.
    Device,
    /// It is a device that a foreign command wipes.
    Command,
    /// It is a device that is wiped in a Job.
    Job,
    /// It is withdrawn while it is free, and comes back.
    Withdraw,
    /// It grows while it is free.
    Capacity,
    /// Its label is taken away while it is bound.
    Edit,
    /// Its finalizers are taken away while it is bound.
    Strip,
    /// Another directory is mounted in its place while it is bound, and the operator accepts that.
    Adopt,
    /// Its PV is removed by force while it is bound. What was not noted on it is forgotten with the process: the volume
    /// is published again, and its claim, which is Lost, is bound to it again. (That another claim may be quicker is one
    /// of the hazards in docs/operations.md.)
    Force,
}

/// When the process that is to be killed is started.
#[derive(Debug, Clone, Copy)]
pub enum Armed {
    AtStart,
    /// After another has published the volume.
    WhileFree,
    WhileBound,
    /// None runs while the volume is released.
    AfterRelease,
}

#[derive(Debug)]
pub struct Case {
    pub point: &'static str,
    pub history: History,
    pub armed: Armed,
    pub kills: u32,
}

impl Case {
    fn arms(&self) -> Vec<String> {
        (0..self.kills).map(|_| format!("{}=kill", self.point)).collect()
    }
}

pub async fn story(node: Rc<Node>, case: &Case) -> Result<()> {
    let volume = volume(&node, case.history).await?;
    let kept = Volume::directory(&node, &node.class("Delete", "").await?, "kept")?;
    let guard = Guard::over(&volume);
    let _jobs = (case.history == History::Job).then(|| AbortOnDrop(kubelet(&node, &volume)));
    let at_start = if matches!(case.armed, Armed::AtStart) {
        case.arms()
    } else {
        Vec::new()
    };
    let daemon = Daemon::start(&node, at_start)?;
    let ended = go(&node, case, &volume, &kept, &daemon).await;
    ended.with_context(|| format!("the daemon's log:\n{}", daemon.log()))?;
    guard.check()?;
    daemon.stop().await?;
    node.clear().await
}

async fn go(node: &Rc<Node>, case: &Case, volume: &Volume, kept: &Volume, daemon: &Daemon) -> Result<()> {
    node.available("kept").await?;
    if matches!(case.armed, Armed::WhileFree) {
        // Not by the one that is to be killed: it would be killed where a PV is made anew.
        for entry in ["kept", volume.entry.as_str()] {
            node.surely_unused(entry).await?;
        }
        daemon.stop().await?;
        let then = daemon.log();
        daemon.again(case.arms())?;
        // It has seen the volume before that changes.
        daemon.logged_after(&then, "state=\"available\"").await?;
    }
    let free = node.available(&volume.entry).await?;
    while_free(node, case.history, volume, &free).await?;
    let (bound, kept_pv) = tokio::join!(
        node.claim_of_mode("a", &volume.class, volume.mode()),
        node.claim("kept", &kept.class)
    );
    let (bound, kept_pv) = (bound?, kept_pv?);
    volume.soil()?;
    kept.soil()?;
    marked(node, &volume.entry).await?;
    marked(node, "kept").await?;
    let bound = while_bound(node, case.history, volume, bound, daemon).await?;
    volume.intact()?;
    if matches!(case.armed, Armed::WhileBound | Armed::AfterRelease) {
        daemon.stop().await?;
    }
    if matches!(case.armed, Armed::WhileBound) {
        daemon.again(case.arms())?;
    }
    node.release("a").await?;
    if matches!(case.armed, Armed::AfterRelease) {
        let released = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| phase(pv) == "Released");
        node.until(&volume.entry, "Released", released).await?;
        volume.intact()?;
        daemon.again(case.arms())?;
    }
    node.again(&volume.entry, &bound).await?;
    daemon.killed_times(case.kills).await?;
    node.available(&volume.entry).await?;
    ensure!(volume.left()?.is_empty(), "published with {:?}", volume.left()?);
    let pvs = volume.pvs().await?;
    ensure!(pvs.len() == 1, "{} PVs for one volume", pvs.len());
    kept.intact()?;
    let still = kept.pvs().await?;
    ensure!(
        still.len() == 1 && still[0].uid() == kept_pv.uid() && phase(&still[0]) == "Bound",
        "the other volume's PV: {still:?}"
    );
    ensure!(daemon.killed() == case.kills, "killed {} times", daemon.killed());
    daemon.check()
}

/// The volume of a history.
async fn volume(node: &Rc<Node>, history: History) -> Result<Rc<Volume>> {
    let block = "  volumeMode: Block\n";
    match history {
        History::Device => Volume::device(node, &node.class("Delete", block).await?, "disk1", 136 * MIB),
        History::Command => {
            let script = "dd if=/dev/zero of=$LOCAL_PV_BLKDEVICE bs=1M count=16 conv=fsync,notrunc 2>&1";
            let extra = format!("{block}  blockCleanerCommand: {}\n", json!(["sh", "-c", script]));
            Volume::device(node, &node.class("Delete", &extra).await?, "disk1", 16 * MIB)
        }
        History::Job => {
            node.configure("useJobForCleaning", "yes")?;
            Volume::device(node, &node.class("Delete", block).await?, "disk1", 16 * MIB)
        }
        _ => Volume::directory(node, &node.class("Delete", "").await?, "disk1"),
    }
}

async fn while_free(node: &Node, history: History, volume: &Volume, free: &PersistentVolume) -> Result<()> {
    match history {
        History::Withdraw => {
            volume.unmount()?;
            node.until(&volume.entry, "withdrawn", |pv| pv.is_none()).await?;
            volume.mount()?;
            node.again(&volume.entry, free).await?;
        }
        History::Capacity => {
            let status = std::process::Command::new("mount")
                .args(["-o", &format!("remount,size={}", POOL_BYTES + 128 * MIB)])
                .arg(node.path("pool"))
                .status()?;
            ensure!(status.success());
            for entry in ["kept", volume.entry.as_str()] {
                node.until(entry, "640Mi", |pv| {
                    let capacity = pv.and_then(|pv| pv.spec.as_ref()?.capacity.as_ref()?.get("storage"));
                    capacity.is_some_and(|quantity| quantity.0 == "640Mi")
                })
                .await?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Waits until the PV of a bound volume says that it was used, where it may be made to say so.
async fn marked(node: &Node, entry: &str) -> Result<()> {
    if node.patches() {
        node.until(entry, "marked as used", |pv| {
            pv.is_some_and(|pv| pv.annotations().contains_key("local-volume-provisioner/used"))
        })
        .await?;
    }
    Ok(())
}

async fn while_bound(
    node: &Node,
    history: History,
    volume: &Volume,
    bound: PersistentVolume,
    daemon: &Daemon,
) -> Result<PersistentVolume> {
    let pv = &bound;
    let entry = &volume.entry;
    match history {
        History::Edit => {
            node.patch(pv, json!({"metadata": {"labels": {LABEL: null}}})).await?;
            node.until(entry, "labelled again", |pv| {
                pv.is_some_and(|pv| pv.labels().contains_key(LABEL))
            })
            .await?;
        }
        History::Strip => {
            node.patch(pv, json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}}))
                .await?;
            node.until(entry, "the finalizer is back", |pv| {
                pv.is_some_and(|pv| pv.finalizers().contains(&FINALIZER.to_owned()))
            })
            .await?;
        }
        History::Adopt => {
            let Storage::Directory(source) = &volume.storage else {
                anyhow::bail!("it is no directory")
            };
            volume.unmount()?;
            *source.borrow_mut() = directory(node)?;
            volume.mount()?;
            volume.soil()?;
            node.patch(pv, json!({"metadata": {"annotations": {RESOLVE: "adopt"}}}))
                .await?;
            node.until(entry, "adopted", |pv| {
                pv.is_some_and(|pv| !pv.annotations().contains_key(RESOLVE))
            })
            .await?;
        }
        History::Force => {
            node.delete(pv).await?;
            node.patch(pv, json!({"metadata": {"finalizers": null}})).await?;
            daemon.killed_times(1).await?;
            let stands_in = |now: Option<&PersistentVolume>| {
                now.is_some_and(|now| now.annotations().contains_key("local-volume-provisioner/stand-in"))
            };
            let now = node.until(entry, "a PV stands in for it", stands_in).await?;
            return now.context("no PV");
        }
        _ => {}
    }
    Ok(bound)
}

/// Does what the pod of a cleaning Job does, as often as there is one.
fn kubelet(node: &Rc<Node>, volume: &Rc<Volume>) -> tokio::task::JoinHandle<()> {
    let (node, volume) = (Rc::clone(node), Rc::clone(volume));
    tokio::task::spawn_local(async move {
        let end = tokio::time::Instant::now() + DEADLINE * 3;
        while tokio::time::Instant::now() < end {
            // It fails where an object went meanwhile: the next look says what there is.
            let _ = run_job(&node, &volume).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
}

async fn run_job(node: &Node, volume: &Volume) -> Result<()> {
    let jobs: Api<JobObject> = Api::namespaced(node.admin.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(node.admin.clone(), "default");
    for job in jobs.list(&ListParams::default().labels("pv")).await? {
        let device = job.annotations().get("device").map(Path::new);
        if device != Some(&volume.path()) {
            continue;
        }
        let of_job = ListParams::default().labels(&format!("job-name={}", job.name_any()));
        for pod in pods.list(&of_job).await? {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            if phase == Some("Succeeded") {
                continue;
            }
            volume.zero()?;
            let status = json!({"status": {"phase": "Succeeded"}});
            pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status))
                .await?;
        }
    }
    Ok(())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
