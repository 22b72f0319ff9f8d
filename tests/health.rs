//! Storage that fails, changes its size, or hangs, as real filesystems and loop devices do it, on a real control plane.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "health/capacity.rs"]
mod capacity;
#[path = "support/plane_node.rs"]
mod node;
#[path = "health/stall.rs"]
mod stall;
#[path = "health/storage.rs"]
mod storage;

use std::rc::Rc;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use node::{DEADLINE, MODES, Node, http_until, in_every_world, in_worlds, names, phase};
use storage::Filesystem;

/// Events of a reason about the object with this UID.
pub async fn events(node: &Node, uid: &str, reason: &str) -> Result<Vec<Event>> {
    let api: Api<Event> = Api::namespaced(node.admin.clone(), "default");
    let all = api.list(&ListParams::default()).await?.items.into_iter();
    let about = |event: &Event| event.involved_object.uid.as_deref() == Some(uid);
    Ok(all
        .filter(|event| about(event) && event.reason.as_deref() == Some(reason))
        .collect())
}

/// Waits for an event of a reason about the object with this UID.
pub async fn event_about(node: &Node, uid: &str, reason: &str, text: &str) -> Result<Event> {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        let found = events(node, uid, reason).await?;
        let says = |event: &&Event| event.message.as_ref().is_some_and(|message| message.contains(text));
        if let Some(event) = found.iter().find(says) {
            return Ok(event.clone());
        }
        ensure!(
            tokio::time::Instant::now() < end,
            "no event {reason} with {text:?} about {uid}: {found:?}"
        );
        tokio::time::sleep(node.poll.get()).await;
    }
}

async fn metric(address: std::net::SocketAddr, line: &str) -> Result<()> {
    let line = format!("local_volume_provisioner_{line}\n");
    http_until(address, "/metrics", |_, body| body.contains(&line)).await?;
    Ok(())
}

fn claim_uid(pv: &k8s_openapi::api::core::v1::PersistentVolume) -> String {
    let claim = pv.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    claim.and_then(|claim| claim.uid.clone()).unwrap_or_default()
}

#[test]
fn a_free_volume_that_fails_is_withdrawn_until_it_is_mended() {
    in_worlds("a_free_volume_that_fails", &MODES, async |node: Rc<Node>| {
        let address = node.listen()?;
        let class = node.class("Delete", "").await?;
        let disk = Filesystem::new(&node, &class, "disk1", "ext4")?;
        let other = node.tmpfs(&class, "disk2")?;
        node.start().await?;
        let published = node.exactly(&["disk1", "disk2"]).await?;
        metric(address, "volumes_unhealthy{reason=\"failing\"} 0").await?;

        disk.trigger_error()?;
        node.exactly(&["disk2"]).await?;
        metric(address, "volumes_unhealthy{reason=\"failing\"} 1").await?;
        metric(address, "volumes_held{reason=\"failing\"} 1").await?;
        disk.unmount()?;
        disk.mount()?;
        node.several_passes().await;
        node.exactly(&["disk2"]).await?; // The errors are in its superblock.
        disk.unmount()?;
        disk.check()?;
        disk.mount()?;
        let mended = node.exactly(&["disk1", "disk2"]).await?;
        ensure!(
            mended["disk2"].uid() == published["disk2"].uid(),
            "the other is left alone"
        );
        metric(address, "volumes_unhealthy{reason=\"failing\"} 0").await?;

        disk.remount(true)?;
        node.exactly(&["disk2"]).await?;
        metric(address, "volumes_held{reason=\"read-only\"} 1").await?;
        disk.remount(false)?;
        node.exactly(&["disk1", "disk2"]).await?;
        drop(other);
        Ok(())
    });
}

#[test]
fn an_xfs_that_has_shut_down_is_withdrawn_until_it_is_mounted_again() {
    in_worlds("an_xfs_that_has_shut_down", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = Filesystem::new(&node, &class, "disk1", "xfs")?;
        node.start().await?;
        let first = node.available("disk1").await?;
        disk.shut_down()?;
        node.exactly(&[]).await?;
        disk.unmount()?;
        disk.mount()?;
        let second = node.again("disk1", &first).await?;
        // A bound one is only told of.
        let bound = node.claim("a", &class).await?;
        disk.shut_down()?;
        for uid in [bound.uid().unwrap(), claim_uid(&bound)] {
            event_about(&node, &uid, "VolumeConditionAbnormal", "EIO").await?;
        }
        node.several_passes().await;
        ensure!(node.published().await?["disk1"].uid() == second.uid());
        Ok(())
    });
}

#[test]
fn who_has_the_claim_is_told_once_of_errors_and_of_their_end() {
    in_worlds("who_has_the_claim_is_told", &MODES, async |node: Rc<Node>| {
        let address = node.listen()?;
        let class = node.class("Delete", "").await?;
        let disk = Filesystem::new(&node, &class, "disk1", "ext4")?;
        node.start().await?;
        node.available("disk1").await?;
        let bound = node.claim("a", &class).await?;
        std::fs::write(disk.path().join("file"), "precious")?;
        let uids = [bound.uid().unwrap(), claim_uid(&bound)];

        disk.trigger_error()?;
        for uid in &uids {
            event_about(&node, uid, "VolumeConditionAbnormal", "ext4 has recorded errors").await?;
        }
        metric(address, "volumes_unhealthy{reason=\"failing\"} 1").await?;
        disk.trigger_error()?;
        node.several_passes().await;
        // Neither more errors nor a restart are news.
        node.stop().await?;
        node.start().await?;
        metric(address, "volumes_unhealthy{reason=\"failing\"} 1").await?;
        node.several_passes().await;
        for uid in &uids {
            let told = events(&node, uid, "VolumeConditionAbnormal").await?;
            ensure!(told.len() == 1 && told[0].count == Some(1), "{told:#?}");
        }

        disk.unmount()?;
        for uid in &uids {
            event_about(&node, uid, "VolumeVanished", "a claim is bound").await?;
        }
        metric(address, "volumes_unhealthy{reason=\"vanished\"} 1").await?;
        disk.check()?;
        disk.mount()?;
        for uid in &uids {
            event_about(&node, uid, "VolumeConditionNormal", "no errors any more").await?;
        }
        // The same again is the same event.
        disk.unmount()?;
        for uid in &uids {
            let end = tokio::time::Instant::now() + DEADLINE;
            while events(&node, uid, "VolumeVanished").await?[0].count != Some(2) {
                ensure!(tokio::time::Instant::now() < end, "it is not repeated");
                tokio::time::sleep(node.poll.get()).await;
            }
            ensure!(events(&node, uid, "VolumeVanished").await?.len() == 1);
        }
        disk.mount()?;
        ensure!(std::fs::read(disk.path().join("file"))? == b"precious");
        ensure!(node.published().await?["disk1"].uid() == bound.uid());
        Ok(())
    });
}

#[test]
fn a_released_volume_on_a_failing_filesystem_is_scrubbed_when_it_is_mended() {
    in_every_world("a_released_volume_on_a_failing_filesystem", async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = Filesystem::new(&node, &class, "disk1", "ext4")?;
        node.start().await?;
        let first = node.available("disk1").await?;
        node.claim("a", &class).await?;
        std::fs::write(disk.path().join("secret"), "secret")?;
        disk.trigger_error()?;
        event_about(&node, &first.uid().unwrap(), "VolumeConditionAbnormal", "ext4").await?;
        node.release("a").await?;
        node.event(&first, "VolumeFailedDelete", "its storage fails").await?;
        node.several_passes().await;
        ensure!(names(disk.path()).contains(&"secret".to_owned()), "scrubbed");
        let held = node.published().await?.remove("disk1").unwrap();
        ensure!(held.uid() == first.uid() && phase(&held) != "Available");
        disk.unmount()?;
        disk.check()?;
        disk.mount()?;
        node.again("disk1", &first).await?;
        ensure!(
            names(disk.path()).iter().all(|name| name == "lost+found"),
            "{:?}",
            names(disk.path())
        );
        Ok(())
    });
}
