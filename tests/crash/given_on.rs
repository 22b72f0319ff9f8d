//! A volume that is bound again by hand while it is on its way back.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::json;

use crate::node::{self, Node, WORLDS, World};
use crate::process::{AT_A_TIME, Daemon, beside_each_other};
use crate::volume::Volume;

#[test]
fn what_is_given_on_during_its_return_is_its_new_tenants() {
    let name = "what_is_given_on_during_its_return_is_its_new_tenants";
    let Some(plane) = node::plane_for(name) else { return };
    let mut jobs = Vec::new();
    for world in WORLDS {
        // A PV that is being deleted, as it is during a scrub where it may carry our finalizer, cannot be bound.
        let all = [
            "delete.before",
            "scrub.ordered",
            "scrub.begin",
            "scrub.filesystem.checked",
            "settle.scrubbed",
        ];
        let points = if world.user == "full" { &all[..1] } else { &all };
        jobs.extend(points.iter().map(|point| (*point, world)));
    }
    let failed = beside_each_other(
        AT_A_TIME,
        jobs,
        |(point, world)| node::run(plane, *world, async |node| given_on(node, point).await),
        |(point, world): &(&str, World)| format!("{point} in {world:?}"),
    );
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

/// claimRef is cleared and another claim bound, while a scrub or a deletion is under way that was decided on before.
async fn given_on(node: Rc<Node>, point: &'static str) -> Result<()> {
    let volume = Volume::directory(&node, &node.class("Delete", "").await?, "disk1")?;
    // It is ordered by a plan that knows nothing of the edit yet: only the last look at the PV can tell.
    const PAST_THE_LOOK: &str = "scrub.filesystem.checked";
    let late = if point == "scrub.ordered" { PAST_THE_LOOK } else { point };
    let daemon = Daemon::start(&node, [format!("{point}=pause,{late}=pause")])?;
    let ended = async {
        node.available(&volume.entry).await?;
        let bound = node.claim("a", &volume.class).await?;
        volume.soil()?;
        node.release("a").await?;
        let held = daemon.held(point).await?;
        node.patch(&bound, json!({"spec": {"claimRef": null}})).await?;
        let given = node.claim("b", &volume.class).await?;
        ensure!(given.uid() == bound.uid(), "it is another PV");
        volume.soil()?;
        if point == PAST_THE_LOOK {
            // Past the last look at the PV it is the watch that stops it.
            daemon.logged("scrub aborted").await?;
        }
        drop(held);
        node.several_passes().await;
        volume.intact()?;
        if late != point {
            ensure!(!node.path("held").join(late).exists(), "the PV was not read again");
            daemon.stop().await?;
            daemon.again([])?;
        }
        let pvs = volume.pvs().await?;
        ensure!(
            pvs.len() == 1 && pvs[0].uid() == given.uid() && pvs[0].metadata.deletion_timestamp.is_none(),
            "its PV was deleted: {pvs:?}"
        );
        node.release("b").await?;
        node.again(&volume.entry, &given).await?;
        ensure!(volume.left()?.is_empty(), "published with {:?}", volume.left()?);
        anyhow::Ok(())
    };
    let ended = ended.await;
    ended.with_context(|| format!("the daemon's log:\n{}", daemon.log()))?;
    daemon.stop().await?;
    node.clear().await
}
