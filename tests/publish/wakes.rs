//! How soon: nothing waits for the safety timer, which is longer than any of these tests may take.

use std::os::unix::fs::symlink;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::mounts;
use tokio::time::Instant;

use crate::node::{MODES, Node, in_worlds};

/// For a machine that is busy with other tests; it takes a few milliseconds.
const AT_ONCE: Duration = Duration::from_secs(10);

async fn published_at_once(node: &Node, entry: &str, began: Instant) -> Result<()> {
    node.until(entry, "published", |pv| pv.is_some()).await?;
    ensure!(began.elapsed() < AT_ONCE, "{entry} took {:?}", began.elapsed());
    Ok(())
}

fn without_timer(node: &Node) {
    node.set(|settings| settings.limits.discovery_period = Duration::from_secs(600));
}

#[test]
fn mounts_and_links_are_seen_at_once() {
    in_worlds("seen_at_once", &MODES, async |node: Rc<Node>| {
        without_timer(&node);
        let class = node.class("Delete", "").await?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
        node.tmpfs(&class, "disk0")?;
        node.start().await?;
        node.available("disk0").await?;
        let began = Instant::now();
        node.tmpfs(&class, "disk1")?;
        published_at_once(&node, "disk1", began).await?;
        let began = Instant::now();
        symlink(device.path(), node.entry(&class, "disk2"))?;
        published_at_once(&node, "disk2", began).await?;
        Ok(())
    });
}

#[test]
fn directories_that_appear_are_seen_at_once() {
    in_worlds("directories", &MODES, async |node: Rc<Node>| {
        without_timer(&node);
        let class = node.class("Delete", "").await?;
        std::fs::remove_dir(node.path(&class))?;
        let devices: Vec<_> = (0..3)
            .map(|number| mounts::LoopDevice::with_file(&node.path(format!("backing{number}.img")), 16 << 20))
            .collect::<Result<_>>()?;
        let other = node.class("Delete", "").await?;
        node.tmpfs(&other, "disk0")?;
        node.start().await?;
        node.available("disk0").await?;
        let began = Instant::now();
        std::fs::create_dir(node.path(&class))?;
        symlink(devices[0].path(), node.entry(&class, "disk1"))?;
        published_at_once(&node, "disk1", began).await?;
        // Another directory of the same name: the watch of the former one says nothing about it.
        std::fs::rename(node.path(&class), node.path("former"))?;
        std::fs::create_dir(node.path(&class))?;
        symlink(devices[1].path(), node.entry(&class, "disk2"))?;
        node.available("disk2").await?;
        let began = Instant::now();
        symlink(devices[2].path(), node.entry(&class, "disk3"))?;
        published_at_once(&node, "disk3", began).await?;
        Ok(())
    });
}

#[test]
fn a_mount_over_a_discovery_directory_is_followed() {
    in_worlds("mount_over", &MODES[..1], async |node: Rc<Node>| {
        without_timer(&node);
        let class = node.class("Delete", "").await?;
        let other = node.class("Delete", "").await?;
        node.tmpfs(&other, "disk0")?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
        node.start().await?;
        node.available("disk0").await?;
        mounts::tmpfs(&node.path(&class), 1 << 20)?;
        node.tmpfs(&class, "disk1")?;
        node.available("disk1").await?;
        let began = Instant::now();
        symlink(device.path(), node.entry(&class, "disk2"))?;
        published_at_once(&node, "disk2", began).await?;
        Ok(())
    });
}

#[test]
fn objects_that_appear_are_seen_at_once() {
    in_worlds("objects", &MODES, async |node: Rc<Node>| {
        without_timer(&node);
        let other = node.class("Delete", "").await?;
        node.tmpfs(&other, "disk0")?;
        let class = node.free_class_name()?;
        std::fs::create_dir(node.path(&class))?;
        node.configure_class(&class, "")?;
        node.tmpfs(&class, "disk1")?;
        node.start().await?;
        node.available("disk0").await?;
        let began = Instant::now();
        node.plane.create_storage_class(&class, "Delete").await?;
        published_at_once(&node, "disk1", began).await?;
        Ok(())
    });
}

#[test]
fn edits_of_the_configuration_take_effect_at_once() {
    in_worlds("edits", &MODES, async |node: Rc<Node>| {
        without_timer(&node);
        let classes = [
            node.class("Delete", "").await?,
            node.class("Delete", "").await?,
            node.class("Delete", "").await?,
        ];
        for (class, entry) in classes.iter().zip(["disk0", "disk1", "disk2"]) {
            node.tmpfs(class, entry)?;
        }
        let configure = |count: usize| {
            let classes = classes[..count].iter();
            let map: String = classes.map(|class| node.settings_of(class, "")).collect();
            node.configure("storageClassMap", &map)
        };
        configure(1)?;
        node.start().await?;
        node.available("disk0").await?;
        let began = Instant::now();
        configure(2)?;
        published_at_once(&node, "disk1", began).await?;
        let began = Instant::now();
        configure(3)?;
        published_at_once(&node, "disk2", began).await?;
        Ok(())
    });
}
