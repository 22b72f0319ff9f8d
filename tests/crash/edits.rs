//! Edits by hand and changes of mounts while a volume is in each of its phases. A phase is held by a fail point.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node as NodeObject, PersistentVolume};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use crate::node::{self, Node, WORLDS, World, phase};
use crate::process::{AT_A_TIME, Daemon, beside_each_other};
use crate::volume::{Guard, Storage, Volume, directory};

const MIB: u64 = 1 << 20;
/// What the provisioner has written on a PV.
const OURS: &str = "local-volume-provisioner/";

/// When the edit is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum During {
    /// The PV is Available.
    Free,
    /// The PV is Bound.
    Bound,
    /// The PV is Released and the daemon is held here.
    Held(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit {
    /// `kubectl delete pv`.
    Delete,
    /// And its finalizers are stripped.
    DeleteByForce,
    /// Our label is taken away, and comes back later.
    Label,
    /// Our annotations are taken away, and come back later.
    Annotations,
    /// The finalizers are taken away from a PV that lives.
    Finalizers,
    /// claimRef is taken away.
    ClearClaim,
    /// claimRef names another claim.
    ChangeClaim,
    /// The volume is unmounted, and mounted again later.
    Unmount,
    /// Other storage comes to its place, and goes again later.
    Swap,
    /// The Node object is made anew.
    NewNode,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    during: During,
    edit: Edit,
    device: bool,
}

use Edit::{Annotations, ChangeClaim, ClearClaim, Delete, DeleteByForce, Finalizers, Label, NewNode, Swap, Unmount};

/// The phases of the return of a directory, in their order.
const OF_DIRECTORIES: [&str; 7] = [
    "scrub.begin",
    "scrub.filesystem.checked",
    "scrub.filesystem.entry",
    "scrub.filesystem.emptied",
    "scrub.filesystem.synced",
    "settle.scrubbed",
    "create.before",
];
/// And of a device.
const OF_DEVICES: [&str; 4] = ["scrub.begin", "scrub.block.checked", "scrub.block.chunk", "scrub.end"];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |device: bool, during: During, edits: &[Edit]| {
        cases.extend(edits.iter().map(|&edit| Case { during, edit, device }));
    };
    add(
        false,
        During::Free,
        &[
            Delete,
            DeleteByForce,
            Label,
            Annotations,
            Finalizers,
            Unmount,
            Swap,
            NewNode,
        ],
    );
    add(
        false,
        During::Bound,
        &[DeleteByForce, Annotations, Unmount, Swap, NewNode],
    );
    add(
        false,
        During::Held("delete.before"),
        &[Delete, DeleteByForce, Label, Annotations, ChangeClaim, Swap],
    );
    for point in OF_DIRECTORIES.into_iter().filter(|point| *point != "create.before") {
        let edits = [
            Delete,
            DeleteByForce,
            Label,
            Annotations,
            ClearClaim,
            ChangeClaim,
            Unmount,
            Swap,
            NewNode,
        ];
        add(false, During::Held(point), &edits);
    }
    // The PV is gone by then.
    add(false, During::Held("create.before"), &[Unmount, Swap, NewNode]);
    for point in OF_DEVICES {
        add(true, During::Held(point), &[DeleteByForce, ChangeClaim, Unmount, Swap]);
    }
    cases
}

#[test]
fn edits_in_every_phase_are_survived() {
    let name = "edits_in_every_phase_are_survived";
    let Some(plane) = node::plane_for(name) else { return };
    let only = std::env::var("CRASH_EDIT").unwrap_or_default();
    let mut jobs = Vec::new();
    for case in cases() {
        // How a PV is deleted, and the phases of a scrub, differ with the mode; the view of the host changes neither.
        // Both are there, in turn.
        let blind = jobs.len() % 4 < 2;
        for world in WORLDS.into_iter().filter(|world| world.sees_pods != blind) {
            if format!("{case:?}").contains(&only) {
                jobs.push((case, world));
            }
        }
    }
    let began = std::time::Instant::now();
    let all = jobs.len();
    let failed = beside_each_other(
        AT_A_TIME,
        jobs,
        |(case, world)| node::run(plane, *world, async |node| story(node, *case).await),
        |(case, world): &(Case, World)| format!("{case:?} in {world:?}"),
    );
    println!("{all} edits in {:?}", began.elapsed());
    assert!(failed.is_empty(), "{} of {all}:\n{}", failed.len(), failed.join("\n\n"));
}

async fn story(node: Rc<Node>, case: Case) -> Result<()> {
    let volume = if case.device {
        Volume::device(
            &node,
            &node.class("Delete", "  volumeMode: Block\n").await?,
            "disk1",
            136 * MIB,
        )?
    } else {
        Volume::directory(&node, &node.class("Delete", "").await?, "disk1")?
    };
    let guard = Guard::over(&volume);
    // The first PV is made without being held.
    let arms = match case.during {
        During::Held("create.before") => "create.before@2=pause".to_owned(),
        During::Held(point) => format!("{point}=pause"),
        _ => String::new(),
    };
    let daemon = Daemon::start(&node, [arms])?;
    let ended = go(&node, case, &volume, &daemon).await;
    ended.with_context(|| format!("the daemon's log:\n{}", daemon.log()))?;
    // Without our finalizer there is nothing to hold it by: clearing claimRef is how data is handed on.
    if case.edit != ClearClaim || node.patches() {
        guard.check()?;
    }
    daemon.stop().await?;
    node.clear().await
}

async fn go(node: &Rc<Node>, case: Case, volume: &Rc<Volume>, daemon: &Daemon) -> Result<()> {
    let free = node.available(&volume.entry).await?;
    if case.during == During::Free {
        let done = Done::edit(node, case.edit, volume, &free).await?;
        node.several_passes().await;
        done.undo().await?;
        settled(node, volume).await?;
    }
    let bound = node.claim_of_mode("a", &volume.class, volume.mode()).await?;
    volume.soil()?;
    if case.during == During::Bound {
        // What it has noted on the PV by now is what it knows of it later.
        node.until(&volume.entry, "marked", |pv| {
            pv.is_some_and(|pv| !node.patches() || pv.annotations().contains_key(&format!("{OURS}used")))
        })
        .await?;
        let done = Done::edit(node, case.edit, volume, &bound).await?;
        node.several_passes().await;
        volume.intact()?;
        done.undo().await?;
    }
    volume.intact()?;
    node.release("a").await?;
    if let During::Held(point) = case.during {
        let held = daemon.held(point).await?;
        // As it is now, where it still is.
        let now = volume.pvs().await?.pop().unwrap_or_else(|| bound.clone());
        let done = Done::edit(node, case.edit, volume, &now).await?;
        drop(held);
        node.several_passes().await;
        done.untouched()?;
        done.undo().await?;
    }
    settled(node, volume).await?;
    if case.edit == ClearClaim && !node.patches() {
        return handed_on(volume, &bound).await;
    }
    ensure!(volume.left()?.is_empty(), "published with {:?}", volume.left()?);
    let pvs = volume.pvs().await?;
    ensure!(
        pvs.len() == 1 && pvs[0].uid() != bound.uid(),
        "{} PVs for one volume, {:?}",
        pvs.len(),
        pvs[0].uid()
    );
    daemon.check()
}

/// The PV is free with what was on it, as its editor wants it; or the scrub was quicker.
async fn handed_on(volume: &Volume, bound: &PersistentVolume) -> Result<()> {
    let pvs = volume.pvs().await?;
    ensure!(pvs.len() == 1, "{} PVs for one volume", pvs.len());
    ensure!(
        pvs[0].uid() == bound.uid() || volume.left()?.is_empty(),
        "a new PV with {:?}",
        volume.left()?
    );
    Ok(())
}

/// Waits until the volume's PV is free, and stands for the storage that is there.
async fn settled(node: &Node, volume: &Volume) -> Result<()> {
    node.available(&volume.entry).await?;
    node.several_passes().await;
    node.available(&volume.entry).await?;
    Ok(())
}

/// An edit that was made, and how it ends.
struct Done<'a> {
    node: &'a Rc<Node>,
    edit: Edit,
    volume: &'a Rc<Volume>,
    pv: PersistentVolume,
    /// What has taken the volume's place.
    other: Option<Rc<Volume>>,
}

impl<'a> Done<'a> {
    async fn edit(node: &'a Rc<Node>, edit: Edit, volume: &'a Rc<Volume>, pv: &PersistentVolume) -> Result<Self> {
        let mut other = None;
        // What is gone by now cannot be edited; a change that the server refuses is none.
        let patch = async |patch: Value| drop(node.patch(pv, patch).await);
        match edit {
            Delete => drop(node.delete(pv).await),
            DeleteByForce => {
                drop(node.delete(pv).await);
                patch(json!({"metadata": {"finalizers": null}})).await;
            }
            Label => patch(json!({"metadata": {"labels": {format!("{OURS}node"): null}}})).await,
            Annotations => {
                let all = pv.annotations().keys().filter(|key| key.starts_with(OURS));
                let none: serde_json::Map<_, _> = all.map(|key| (key.clone(), Value::Null)).collect();
                patch(json!({"metadata": {"annotations": none}})).await;
            }
            Finalizers => patch(json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}})).await,
            ClearClaim => patch(json!({"spec": {"claimRef": null}})).await,
            ChangeClaim => patch(json!({"spec": {"claimRef": {"uid": "0e0e0e0e-0000-4000-8000-000000000000"}}})).await,
            Unmount => volume.unmount()?,
            Swap => {
                volume.unmount()?;
                other = Some(precious(node, volume)?);
            }
            NewNode => {
                let nodes: Api<NodeObject> = Api::all(node.admin.clone());
                nodes
                    .delete(&node.name, &DeleteParams::default().grace_period(0))
                    .await?;
                node.plane.create_node(&node.name, &node.hostname()).await?;
            }
        }
        Ok(Self {
            node,
            edit,
            volume,
            pv: pv.clone(),
            other,
        })
    }

    /// What has taken the volume's place is as it was.
    fn untouched(&self) -> Result<()> {
        match &self.other {
            Some(other) => other.intact().context("other storage was scrubbed"),
            None => Ok(()),
        }
    }

    async fn undo(self) -> Result<()> {
        let patch = async |patch: Value| drop(self.node.patch(&self.pv, patch).await);
        match self.edit {
            Label => patch(json!({"metadata": {"labels": self.pv.labels()}})).await,
            Annotations => patch(json!({"metadata": {"annotations": self.pv.annotations()}})).await,
            Unmount => self.volume.mount()?,
            Swap => {
                if let Some(other) = &self.other {
                    other.unmount()?;
                }
                self.volume.mount()?;
            }
            // Without permission to take it over it is for the operator to say.
            NewNode if !self.node.patches() => {
                let now = self.volume.pvs().await?.pop();
                if let Some(now) = now.filter(|now| phase(now) != "Bound") {
                    drop(self.node.delete(&now).await);
                }
            }
            _ => {}
        }
        self.untouched()
    }
}

/// Other storage of the same size in the place of a volume, with somebody's data on it.
fn precious(node: &Rc<Node>, volume: &Volume) -> Result<Rc<Volume>> {
    let other = match volume.storage {
        Storage::Directory(_) => {
            let source = directory(node)?;
            Volume::of(node, &volume.class, &volume.entry, Storage::Directory(source.into()))
        }
        Storage::Device(_) => {
            let other = Volume::device_of(node, &format!("{}-other.img", volume.class), 136 * MIB)?;
            Volume::of(node, &volume.class, &volume.entry, Storage::Device(other))
        }
    };
    other.soil()?;
    other.mount()?;
    Ok(other)
}
