//! Leaving: `uninstall` by the real program, while a daemon runs and while none does, on a real control plane; and what
//! becomes of volumes where it was not run.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "support/plane_node.rs"]
mod node;
#[allow(dead_code)]
#[path = "cli/program.rs"]
mod program;

#[path = "uninstall/faults.rs"]
mod faults;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use local_volume_provisioner::names;
use node::{MODES, Node, WORLDS, World, in_worlds, phase};
use program::Ended;
use serde_json::json;
use testkit::mounts;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// Where the daemon may patch.
const FULL: [World; 2] = [WORLDS[0], WORLDS[1]];

/// Runs a test in these worlds, one after the other, each with a cluster without any other PV: `uninstall` is for all of
/// them.
fn alone<F: AsyncFn(Rc<Node>) -> Result<()> + Send + Sync + Copy + 'static>(name: &str, worlds: &[World], test: F) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for world in worlds {
        in_worlds(name, &[*world], async move |node: Rc<Node>| {
            remove_all(&node).await?;
            test(node).await
        });
    }
}

async fn remove_all(node: &Node) -> Result<()> {
    let end = tokio::time::Instant::now() + node::DEADLINE;
    loop {
        let left = node.pvs().list(&ListParams::default()).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < end, "these stay: {left:?}");
        for pv in left {
            let name = pv.name_any();
            let strip = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            node.pvs().delete(&name, &DeleteParams::default()).await.ok();
            node.pvs().patch(&name, &PatchParams::default(), &strip).await.ok();
        }
    }
}

/// `uninstall`, as this user.
fn command(node: &Node, user: &str, args: &[&str]) -> Result<Command> {
    let mut command = Command::from(program::program());
    command.arg("uninstall").arg("--kubeconfig");
    command.arg(node.plane.kubeconfig_of(user)?).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

async fn uninstall(node: &Node, args: &[&str]) -> Result<Ended> {
    let output = command(node, "full", args)?.output().await?;
    Ok(program::ended(output))
}

/// It ended well, and nothing carries the finalizer.
fn ensure_done(ended: &Ended) -> Result<()> {
    let said = "no PersistentVolume carries the finalizer local-volume-provisioner/scrub any more";
    ensure!(
        ended.code == Some(0) && ended.out.contains(said) && ended.err.is_empty(),
        "{} {}",
        ended.out,
        ended.err
    );
    Ok(())
}

/// UID and resourceVersion of every PV of the cluster, by name.
async fn versions(node: &Node) -> Result<BTreeMap<String, (Option<String>, Option<String>)>> {
    let all = node.pvs().list(&ListParams::default()).await?.items;
    let version = |pv: &PersistentVolume| (pv.name_any(), (pv.uid(), pv.resource_version()));
    Ok(all.iter().map(version).collect())
}

fn is_ours(pv: &PersistentVolume) -> bool {
    pv.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER)
}

fn is_leaving(pv: &PersistentVolume) -> bool {
    pv.annotations().contains_key(names::LEAVING)
}

/// A PV that no daemon here looks after: of another node, or of another program.
async fn other_pv(node: &Node, name: &str, finalizer: &str) -> Result<PersistentVolume> {
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["elsewhere"]}]}]}});
    let pv = json!({
        "metadata": {"name": format!("{}-{name}", node.name), "finalizers": [finalizer]},
        "spec": {"capacity": {"storage": "1Mi"}, "local": {"path": "/mnt/x"}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "elsewhere", "persistentVolumeReclaimPolicy": "Delete", "nodeAffinity": affinity},
    });
    let pv = serde_json::from_value(pv)?;
    let made = node.pvs().create(&PostParams::default(), &pv).await?;
    node.until_named(&made, "Available", |pv| phase(pv) == "Available")
        .await
}

impl Node {
    /// Waits until a condition on a PV holds, wherever its path is.
    async fn until_named(
        &self,
        pv: &PersistentVolume,
        what: &str,
        holds: impl Fn(&PersistentVolume) -> bool,
    ) -> Result<PersistentVolume> {
        let end = tokio::time::Instant::now() + node::DEADLINE;
        loop {
            let now = self.pvs().get(&pv.name_any()).await?;
            if holds(&now) {
                return Ok(now);
            }
            ensure!(tokio::time::Instant::now() < end, "not {what}: {now:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn until_released(&self, entry: &str) -> Result<PersistentVolume> {
        let released = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| phase(pv) == "Released");
        self.until(entry, "Released", released).await?.context("no PV")
    }

    /// Waits until nothing but our finalizer keeps a PV.
    async fn kept_by_us(&self, entry: &str) -> Result<PersistentVolume> {
        let is_it = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| pv.finalizers() == [names::FINALIZER]);
        let kept = self.until(entry, "kept by our finalizer alone", is_it).await?;
        kept.context("no PV")
    }

    /// Mounts something below a volume, which holds its scrub.
    fn hold(&self, disk: &Path) -> Result<PathBuf> {
        let below = disk.join("below");
        mounts::tmpfs(&below, 1 << 20)?;
        Ok(below)
    }
}

#[test]
fn live_pvs_stay_without_the_finalizer_and_do_not_get_it_back() {
    alone("live", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        node.start().await?;
        node.available("disk1").await?;
        node.claim("a", &class).await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.tmpfs(&class, "disk2")?;
        node.available("disk2").await?;
        let elsewhere = other_pv(&node, "elsewhere", names::FINALIZER).await?;
        let foreign = other_pv(&node, "foreign", "example.com/mine").await?;
        node.several_passes().await;
        let before = versions(&node).await?;

        let dry = uninstall(&node, &["--dry-run"]).await?;
        let count = if node.patches() { 3 } else { 1 };
        let would = format!("would be taken off {count} PersistentVolumes");
        ensure!(dry.code == Some(0) && dry.out.contains(&would), "{}", dry.out);
        ensure!(dry.out.contains("nothing was changed"), "{}", dry.out);
        ensure!(versions(&node).await? == before, "a dry run changed something");

        let refused = program::ended(command(&node, "classic", &[])?.output().await?);
        let why = format!(
            "cannot take the finalizer off PV {}: not permitted",
            elsewhere.name_any()
        );
        ensure!(
            refused.code == Some(1) && refused.err.contains(&why),
            "{}{}",
            refused.out,
            refused.err
        );
        ensure!(versions(&node).await? == before);

        ensure_done(&uninstall(&node, &[]).await?)?;
        node.several_passes().await;
        let now = node.published().await?;
        for (entry, state) in [("disk1", "Bound"), ("disk2", "Available")] {
            let pv = &now[entry];
            ensure!(pv.uid() == before[&pv.name_any()].0 && phase(pv) == state, "{pv:?}");
            ensure!(!is_ours(pv) && is_leaving(pv) == node.patches(), "{pv:?}");
            ensure!(pv.metadata.deletion_timestamp.is_none());
        }
        ensure!(node::names(&disk) == ["file"]);
        let elsewhere = node.pvs().get(&elsewhere.name_any()).await?;
        ensure!(!is_ours(&elsewhere) && is_leaving(&elsewhere), "of every node");
        let foreign_now = node.pvs().get(&foreign.name_any()).await?;
        ensure!(
            foreign_now.resource_version() == foreign.resource_version(),
            "not ours: {foreign_now:?}"
        );

        let before = versions(&node).await?;
        ensure_done(&uninstall(&node, &[]).await?)?;
        ensure!(versions(&node).await? == before, "twice is not as once");
        Ok(())
    });
}

#[test]
fn a_leaving_volume_is_scrubbed_before_its_pv_is_deleted() {
    alone("leaving", &WORLDS, async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        ensure_done(&uninstall(&node, &[]).await?)?;
        std::fs::write(disk.join("file"), "secret")?;
        let below = node.hold(&disk)?;
        node.release("a").await?;
        node.until_released("disk1").await?;
        node.event(&pv, "VolumeFailedDelete", "mounted below it").await?;
        node.several_passes().await;
        let now = node.published().await?.remove("disk1").context("the PV is gone")?;
        ensure!(
            now.uid() == pv.uid() && now.metadata.deletion_timestamp.is_none() && !is_ours(&now),
            "deleted before its volume was scrubbed: {now:?}"
        );
        ensure!(node::names(&disk) == ["below", "file"]);
        mounts::unmount(&below)?;
        let again = node.again("disk1", &pv).await?;
        ensure!(node::names(&disk).is_empty());
        // The daemon that still runs makes PVs as ever. What it has made since is let go by another run.
        ensure!(is_ours(&again) == node.patches() && !is_leaving(&again));
        ensure_done(&uninstall(&node, &[]).await?)?;
        ensure!(!is_ours(&node.published().await?["disk1"]));
        Ok(())
    });
}

#[test]
fn a_leaving_pv_that_is_deleted_by_hand_is_stood_in_for_without_the_finalizer() {
    alone("leaving_deleted", &FULL, async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        ensure_done(&uninstall(&node, &[]).await?)?;
        std::fs::write(disk.join("file"), "secret")?;
        let below = node.hold(&disk)?;
        node.delete(&pv).await?;
        node.release("a").await?;
        let stands_in = |found: Option<&PersistentVolume>| {
            found.is_some_and(|found| found.annotations().contains_key(names::STAND_IN) && phase(found) == "Released")
        };
        let stand_in = node.until("disk1", "a PV stands in for it", stands_in).await?.unwrap();
        ensure!(!is_ours(&stand_in) && is_leaving(&stand_in), "{stand_in:?}");
        node.event(&stand_in, "VolumeFailedDelete", "mounted below it").await?;
        ensure!(node::names(&disk) == ["below", "file"]);
        mounts::unmount(&below)?;
        node.again("disk1", &stand_in).await?;
        ensure!(node::names(&disk).is_empty());
        Ok(())
    });
}

/// A class with `disk1`, which holds data and whose PV is being deleted, as a daemon has left it that ended then, and
/// with these free disks.
async fn left_dirty(node: &Node, free: &[&str]) -> Result<(PathBuf, PersistentVolume)> {
    let (class, disk, pv) = node.tenant("Delete").await?;
    std::fs::write(disk.join("file"), "secret")?;
    let used = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| pv.annotations().contains_key(names::USED));
    node.until("disk1", "marked", used).await?;
    for entry in free {
        node.tmpfs(&class, entry)?;
        node.surely_unused(entry).await?;
    }
    node.stop().await?;
    node.release("a").await?;
    node.until_released("disk1").await?;
    node.delete(&pv).await?;
    Ok((disk, node.kept_by_us("disk1").await?))
}

/// It ended without success, and said so of this PV: where it is, and whose data it holds.
fn ensure_listed(node: &Node, disk: &Path, pv: &PersistentVolume, ended: &Ended) -> Result<()> {
    let claim = format!("default/{}-a", node.name);
    let row = ended.err.lines().find(|line| line.contains(&pv.name_any()));
    let row = row.with_context(|| format!("not listed: {}{}", ended.out, ended.err))?;
    for word in [&node.hostname(), disk.to_str().unwrap(), &claim] {
        ensure!(row.contains(word), "no {word} in {row:?}");
    }
    ensure!(ended.code == Some(1), "{:?}: {}", ended.code, ended.err);
    Ok(())
}

#[test]
fn without_a_daemon_what_is_dirty_is_listed_and_left() {
    alone("without_daemon", &FULL[..1], async |node: Rc<Node>| {
        let (disk, dirty) = left_dirty(&node, &["disk2", "disk3"]).await?;
        let unused = node.published().await?.remove("disk3").context("no PV")?;
        node.delete(&unused).await?;
        node.kept_by_us("disk3").await?;
        let before = versions(&node).await?;
        let listed = |ended: &Ended| ensure_listed(&node, &disk, &dirty, ended);

        let dry = uninstall(&node, &["--dry-run"]).await?;
        listed(&dry)?;
        ensure!(
            dry.out.contains("would be taken off 2 PersistentVolumes"),
            "{}",
            dry.out
        );
        ensure!(versions(&node).await? == before, "a dry run changed something");

        let first = uninstall(&node, &[]).await?;
        listed(&first)?;
        ensure!(first.out.contains("taken off 2 PersistentVolumes"), "{}", first.out);
        let now = node.published().await?;
        ensure!(now.keys().eq(["disk1", "disk2"]), "the unused one stays: {now:?}");
        ensure!(!is_ours(&now["disk2"]) && is_leaving(&now["disk2"]));
        ensure!(
            now["disk1"].resource_version() == dirty.resource_version() && node::names(&disk) == ["file"],
            "what is dirty was touched"
        );

        let before = versions(&node).await?;
        let second = uninstall(&node, &[]).await?;
        listed(&second)?;
        ensure!(
            second.out.is_empty() && versions(&node).await? == before,
            "twice is not as once"
        );

        let began = std::time::Instant::now();
        let waited = uninstall(&node, &["--wait", "--timeout=1s"]).await?;
        listed(&waited)?;
        ensure!(
            waited.err.contains("not scrubbed within --timeout 1s"),
            "{}",
            waited.err
        );
        ensure!((1..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        ensure!(versions(&node).await? == before);

        let would = uninstall(&node, &["--dirty=release", "--dry-run"]).await?;
        ensure!(
            would.code == Some(0) && would.out.contains("would be taken off 1 "),
            "{}",
            would.out
        );
        ensure!(versions(&node).await? == before, "a dry run changed something");
        ensure_done(&uninstall(&node, &["--dirty=release"]).await?)?;
        ensure!(node.published().await?.keys().eq(["disk2"]));
        Ok(())
    });
}

#[test]
fn who_waits_is_done_when_the_daemon_has_scrubbed() {
    alone("wait", &FULL, async |node: Rc<Node>| {
        let (disk, dirty) = left_dirty(&node, &[]).await?;
        let mut waits = command(&node, "full", &["--wait", "--timeout=1m"])?.spawn()?;
        let mut lines = BufReader::new(waits.stderr.take().context("no standard error")?).lines();
        let mut told = Vec::new();
        while !told
            .last()
            .is_some_and(|line: &String| line.contains(&dirty.name_any()))
        {
            let line = tokio::time::timeout(node::DEADLINE, lines.next_line()).await??;
            told.push(line.with_context(|| format!("it has ended: {told:?}"))?);
        }
        ensure!(told[0] == "still to be scrubbed:", "{told:?}");
        ensure!(waits.try_wait()?.is_none(), "it does not wait");
        node.start().await?;
        let output = tokio::time::timeout(node::DEADLINE, waits.wait_with_output()).await??;
        let ended = program::ended(output);
        ensure_done(&ended)?;
        ensure!(lines.next_line().await?.is_none());
        ensure!(node::names(&disk).is_empty(), "not scrubbed");
        node.again("disk1", &dirty).await?;
        Ok(())
    });
}

#[test]
fn what_is_said_to_be_clean_is_scrubbed_all_the_same_where_a_daemon_runs() {
    alone("release", &FULL, async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        let below = node.hold(&disk)?;
        node.delete(&pv).await?;
        // Its claim lives, and writes.
        let refused = uninstall(&node, &["--dirty=release"]).await?;
        ensure_listed(&node, &disk, &pv, &refused)?;
        ensure!(refused.err.contains("still bound"), "{}", refused.err);
        ensure!(is_ours(&node.published().await?["disk1"]));
        node.release("a").await?;
        node.event(&pv, "VolumeFailedDelete", "mounted below it").await?;
        ensure_done(&uninstall(&node, &["--dirty=release"]).await?)?;
        let stands_in = |found: Option<&PersistentVolume>| {
            found.is_some_and(|found| found.uid() != pv.uid() && phase(found) == "Released")
        };
        let stand_in = node.until("disk1", "a PV stands in for it", stands_in).await?.unwrap();
        ensure!(!is_ours(&stand_in) && is_leaving(&stand_in), "{stand_in:?}");
        node.several_passes().await;
        ensure!(node::names(&disk) == ["below", "file"]);
        ensure!(node.published().await?["disk1"].uid() == stand_in.uid());
        mounts::unmount(&below)?;
        node.again("disk1", &stand_in).await?;
        ensure!(node::names(&disk).is_empty(), "published with somebody's data");
        Ok(())
    });
}

#[test]
fn going_back_without_it_costs_availability_and_never_safety() {
    alone("going_back", &FULL, async |node: Rc<Node>| {
        let (disk, dirty) = left_dirty(&node, &[]).await?;
        // The classic program cleans first, and cannot publish the volume while its PV is there.
        std::fs::remove_file(disk.join("file"))?;
        let mut anew = dirty.clone();
        anew.metadata = kube::api::ObjectMeta {
            name: dirty.metadata.name.clone(),
            ..Default::default()
        };
        anew.status = None;
        if let Some(spec) = &mut anew.spec {
            spec.claim_ref = None;
        }
        let made = node.pvs().create(&PostParams::default(), &anew).await;
        ensure!(
            matches!(&made, Err(kube::Error::Api(status)) if status.reason == "AlreadyExists"),
            "{made:?}"
        );
        // Nobody is given the volume.
        let claims =
            kube::Api::<k8s_openapi::api::core::v1::PersistentVolumeClaim>::namespaced(node.admin.clone(), "default");
        let class = dirty.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
        let claim = json!({"metadata": {"name": format!("{}-next", node.name)}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": class, "volumeName": dirty.name_any(), "resources": {"requests": {"storage": "1Mi"}}}});
        let claim = claims
            .create(&PostParams::default(), &serde_json::from_value(claim)?)
            .await?;
        std::fs::write(disk.join("file"), "of nobody")?;
        node.several_passes().await;
        let now = node.published().await?.remove("disk1").context("the PV is gone")?;
        ensure!(now.resource_version() == dirty.resource_version(), "{now:?}");
        let phase_of = |claim: &k8s_openapi::api::core::v1::PersistentVolumeClaim| claim.status.clone()?.phase;
        let claim = claims.get(&claim.name_any()).await?;
        ensure!(phase_of(&claim).as_deref() != Some("Bound"), "{claim:?}");
        claims.delete(&claim.name_any(), &DeleteParams::default()).await?;
        // Forward again.
        node.start().await?;
        node.again("disk1", &dirty).await?;
        ensure!(node::names(&disk).is_empty());
        Ok(())
    });
}
