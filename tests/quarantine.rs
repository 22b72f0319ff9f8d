//! A volume whose scrub fails and fails, and the operator's word that ends its quarantine. On a real control plane, with
//! and without permission to patch.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "support/plane_node.rs"]
mod node;

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use local_volume_provisioner::names;
use node::{Node, in_every_world};
use serde_json::json;
use testkit::mounts;

/// Longer than the pause after the second failure in a row.
const PAUSE: Duration = Duration::from_secs(3);

/// How often the cleaner was run; what it writes is what counts.
fn tries(node: &Node) -> usize {
    std::fs::read(node.path("tries")).map_or(0, |tries| tries.len())
}

async fn until_tried(node: &Node, times: usize) -> Result<()> {
    let end = tokio::time::Instant::now() + node::DEADLINE;
    while tries(node) < times {
        ensure!(tokio::time::Instant::now() < end, "only {} tries", tries(node));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Lets enough time pass for another try.
async fn ensure_not_tried(node: &Node) -> Result<()> {
    let before = tries(node);
    tokio::time::sleep(PAUSE).await;
    ensure!(tries(node) == before, "tried again in quarantine");
    Ok(())
}

async fn resolve(node: &Node, pv: &PersistentVolume, word: Option<&str>) -> Result<()> {
    node.patch(pv, json!({"metadata": {"annotations": {(names::RESOLVE): word}}}))
        .await?;
    Ok(())
}

#[test]
fn a_volume_whose_scrub_keeps_failing_waits_for_the_operators_word() {
    in_every_world("quarantine", async |node: Rc<Node>| {
        let (tried, flag) = (node.path("tries"), node.path("now-it-works"));
        let script = format!(
            "printf x >> {}; test -e {} || {{ echo 'out of order' >&2; exit 3; }}",
            tried.display(),
            flag.display()
        );
        let command = json!(["sh", "-c", script]);
        let extra = format!("  volumeMode: Block\n  blockCleanerCommand: {command}\n");
        let class = node.class("Delete", &extra).await?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
        std::os::unix::fs::symlink(device.path(), node.entry(&class, "disk1"))?;
        node.set(|settings| settings.limits.scrub_retries = 2);
        node.start().await?;
        let pv = node.available("disk1").await?;
        node.claim_of_mode("a", &class, "Block").await?;
        node.release("a").await?;
        let event = node
            .event(&pv, "VolumeFailedDelete", "its scrub failed 2 times")
            .await?;
        let message = event.message.unwrap_or_default();
        ensure!(message.contains("its last line was: out of order"), "{message}");
        ensure!(message.contains("resolve=retry"), "{message}");
        ensure_not_tried(&node).await?;
        ensure!(tries(&node) == 2);

        // In vain: where patching is permitted the word is taken back, and counts for as many tries again.
        resolve(&node, &pv, Some("retry")).await?;
        if node.patches() {
            let taken =
                |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| !pv.annotations().contains_key(names::RESOLVE));
            node.until("disk1", "the word is taken", taken).await?;
            until_tried(&node, 4).await?;
        } else {
            until_tried(&node, 4).await?;
            ensure!(
                node.published().await?["disk1"]
                    .annotations()
                    .contains_key(names::RESOLVE)
            );
            resolve(&node, &pv, None).await?;
            node.event(&pv, "VolumeFailedDelete", "its scrub failed 4 times")
                .await?;
        }
        ensure_not_tried(&node).await?;
        ensure!(tries(&node) == 4 && node.published().await?["disk1"].uid() == pv.uid());

        // Another process begins to count anew.
        node.stop().await?;
        node.start().await?;
        until_tried(&node, 6).await?;
        ensure_not_tried(&node).await?;

        // The cause is mended.
        std::fs::write(flag, "")?;
        ensure_not_tried(&node).await?;
        resolve(&node, &pv, Some("retry")).await?;
        let again = node.again("disk1", &pv).await?;
        ensure!(tries(&node) == 7, "{}", tries(&node));
        ensure!(!again.annotations().contains_key(names::RESOLVE));
        Ok(())
    });
}
