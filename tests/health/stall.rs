//! A disk that hangs in the middle of a scrub.

use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use kube::ResourceExt;

use crate::node::{Node, in_every_world, names};
use crate::storage::Filesystem;
use crate::{events, metric};

#[test]
fn a_scrub_that_hangs_is_told_of_and_keeps_nobody_waiting() {
    in_every_world("a_scrub_that_hangs", async |node: Rc<Node>| {
        let address = node.listen()?;
        node.set(|settings| {
            settings.limits.scrub_concurrency = 1;
            settings.scrub.stall_timeout = Duration::from_secs(1);
        });
        let class = node.class("Delete", "").await?;
        let disk = Filesystem::new(&node, &class, "disk1", "ext4")?;
        node.start().await?;
        let hung = node.available("disk1").await?;
        node.claim("a", &class).await?;
        std::fs::write(disk.path().join("secret"), "secret")?;
        let other = node.tmpfs(&class, "disk2")?;
        let second = node.available("disk2").await?;
        node.claim("b", &class).await?;
        std::fs::write(other.join("secret"), "secret")?;

        disk.freeze()?;
        node.release("a").await?;
        node.event(&hung, "VolumeFailedDelete", "its scrub has done nothing for 1 s")
            .await?;
        metric(address, "volumes_unhealthy{reason=\"unresponsive\"} 1").await?;
        metric(address, "proctable_running 1").await?;
        // The only slot is free for another disk.
        node.release("b").await?;
        node.again("disk2", &second).await?;
        ensure!(names(&other).is_empty());
        node.several_passes().await;
        metric(address, "proctable_running 1").await?;
        ensure!(names(disk.path()).contains(&"secret".to_owned()));

        disk.thaw()?;
        node.again("disk1", &hung).await?;
        ensure!(!names(disk.path()).contains(&"secret".to_owned()));
        metric(address, "volumes_unhealthy{reason=\"unresponsive\"} 0").await?;
        let told = events(&node, &hung.uid().unwrap(), "VolumeFailedDelete").await?;
        let stalls = told
            .iter()
            .filter(|event| event.message.as_ref().is_some_and(|m| m.contains("nothing for")));
        ensure!(stalls.count() == 1, "{told:#?}");
        Ok(())
    });
}
