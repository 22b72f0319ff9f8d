//! The files themselves: emptied, removed, replaced, mounted over. The safety timer takes longer than these tests may.

use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use kube::ResourceExt;
use testkit::config_volume::ConfigVolume;
use testkit::mounts;

use crate::node::{GRACE, MODES, Node, http_get, http_until, in_worlds};

fn without_timer(node: &Node) {
    node.set(|settings| settings.limits.discovery_period = Duration::from_secs(600));
}

fn problems(body: &str) -> bool {
    let line = |line: &str| line.starts_with("local_volume_provisioner_config_problems ") && !line.ends_with(" 0");
    body.lines().any(line)
}

#[test]
fn a_map_that_was_emptied_keeps_all_classes_until_none_is_written() {
    in_worlds("emptied", &MODES, async |node: Rc<Node>| {
        without_timer(&node);
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        node.configure("labelsForPV", "team: storage\n")?;
        let address = node.listen()?;
        node.start().await?;
        let mut pv = node.available("disk1").await?;
        let map = node.settings_of(&class, "");
        let edits: [[(&str, Option<&str>); 2]; 5] = [
            [("storageClassMap", Some("")), ("labelsForPV", Some("team: storage\n"))],
            [
                ("storageClassMap", Some("# fast:\n")),
                ("labelsForPV", Some("team: storage\n")),
            ],
            [
                ("storageClassMap", Some("null")),
                ("labelsForPV", Some("team: storage\n")),
            ],
            [("storageClassMap", None), ("labelsForPV", Some("team: storage\n"))],
            [("storageClassMap", None), ("labelsForPV", None)],
        ];
        for (round, edit) in edits.into_iter().enumerate() {
            node.edit(edit)?;
            http_until(address, "/metrics", |_, body| problems(body)).await?;
            ensure!(http_get(address, "/readyz").await?.0 == 200);
            // It serves as ever: longer than the grace period takes.
            let claim = format!("c{round}");
            node.claim(&claim, &class).await?;
            std::fs::write(disk.join("file"), "secret")?;
            tokio::time::sleep(GRACE).await;
            node.release(&claim).await?;
            pv = node.again("disk1", &pv).await?;
            ensure!(pv.labels().get("team").is_some_and(|team| team == "storage"));
            node.edit([
                ("storageClassMap", Some(map.as_str())),
                ("labelsForPV", Some("team: storage\n")),
            ])?;
            http_until(address, "/metrics", |_, body| !problems(body)).await?;
        }
        node.configure("storageClassMap", "{}")?;
        node.until("disk1", "withdrawn", |pv| pv.is_none()).await?;
        Ok(())
    });
}

#[test]
fn at_the_start_a_blank_map_is_waited_out_and_an_empty_one_is_ready() {
    in_worlds("blank_start", &MODES, async |node: Rc<Node>| {
        without_timer(&node);
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        node.start().await?;
        let pv = node.surely_unused("disk1").await?;
        node.stop().await?;
        node.configure("storageClassMap", "")?;
        let address = node.listen()?;
        node.start().await?;
        http_until(address, "/readyz", |code, body| {
            code == 503 && body.contains("it is blank")
        })
        .await?;
        tokio::time::sleep(GRACE * 2).await;
        ensure!(node.published().await?["disk1"].uid() == pv.uid());
        node.configure("storageClassMap", "{}")?;
        http_until(address, "/readyz", |code, _| code == 200).await?;
        node.until("disk1", "withdrawn", |pv| pv.is_none()).await?;
        Ok(())
    });
}

#[test]
fn another_directory_at_the_same_path_is_read_at_once() {
    in_worlds("another_directory", &MODES, async |node: Rc<Node>| {
        without_timer(&node);
        let classes = [
            node.class("Delete", "").await?,
            node.class("Delete", "").await?,
            node.class("Delete", "").await?,
        ];
        for (class, entry) in classes.iter().zip(["disk1", "disk2", "disk3"]) {
            node.tmpfs(class, entry)?;
        }
        let map = |count: usize| -> String {
            let classes = classes[..count].iter();
            classes.map(|class| node.settings_of(class, "")).collect()
        };
        node.configure("storageClassMap", &map(1))?;
        let address = node.listen()?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        let config = node.settings.borrow().config_dir.clone();
        // Gone, unreadable, and another one.
        std::fs::rename(&config, node.path("former"))?;
        http_until(address, "/metrics", |_, body| problems(body)).await?;
        std::fs::write(&config, "a file")?;
        http_until(address, "/metrics", |_, body| problems(body)).await?;
        ensure!(http_get(address, "/readyz").await?.0 == 200);
        std::fs::remove_file(&config)?;
        let mut volume = ConfigVolume::new(&config)?;
        volume.set("storageClassMap", &map(2))?;
        node.available("disk2").await?;
        http_until(address, "/metrics", |_, body| !problems(body)).await?;
        // The new one is followed.
        volume.set("storageClassMap", &map(3))?;
        node.available("disk3").await?;
        volume.set("storageClassMap", &map(2))?;
        node.until("disk3", "withdrawn", |pv| pv.is_none()).await?;
        // Mounted over, empty: everything stays. Then with contents, and unmounted again.
        mounts::tmpfs(&config, 1 << 20)?;
        http_until(address, "/metrics", |_, body| problems(body)).await?;
        std::fs::write(config.join("storageClassMap"), map(3))?;
        node.available("disk3").await?;
        mounts::unmount(&config)?;
        node.until("disk3", "withdrawn", |pv| pv.is_none()).await?;
        ensure!(
            node.published().await?["disk1"].uid() == pv.uid(),
            "the first class was disturbed"
        );
        Ok(())
    });
}
