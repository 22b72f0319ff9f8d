//! Each kind of edit, and what becomes of the PVs that are there.

use std::rc::Rc;

use anyhow::{Result, ensure};
use kube::ResourceExt;
use local_volume_provisioner::names;
use serde_json::json;
use testkit::mounts;

use crate::node::{self, GRACE, MODES, Node, in_worlds, phase};

/// A class whose volumes are seen elsewhere than where they are on the node.
fn class_at(class: &str, host_dir: &str, mount_dir: &std::path::Path) -> String {
    format!("{class}:\n  hostDir: {host_dir}\n  mountDir: {}\n", mount_dir.display())
}

#[test]
fn a_class_that_was_removed_is_served_to_its_end_also_after_a_restart() {
    in_worlds("removed_and_restarted", &MODES, async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.configure("storageClassMap", "{}")?;
        node.stop().await?;
        node.start().await?;
        node.several_passes().await;
        ensure!(node.published().await?["disk1"].uid() == pv.uid(), "a bound PV went");
        node.release("a").await?;
        node.until("disk1", "scrubbed and gone", |pv| pv.is_none()).await?;
        ensure!(node::names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn without_a_note_of_its_directory_a_volume_waits_for_its_class() {
    in_worlds("removed_legacy", &MODES, async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        let map = std::fs::read_to_string(node.path("config/storageClassMap"))?;
        node.configure("storageClassMap", "{}")?;
        node.stop().await?;
        // As the classic program has made it.
        let ours = [names::CLASS_DIRECTORY, names::CLEANER].map(|name| (name.to_owned(), json!(null)));
        let annotations: serde_json::Map<_, _> = ours.into_iter().collect();
        let pv = node
            .patch(&pv, json!({"metadata": {"annotations": annotations}}))
            .await?;
        node.start().await?;
        node.release("a").await?;
        node.event(&pv, "VolumeFailedDelete", "class").await?;
        node.several_passes().await;
        ensure!(node::names(&disk) == ["file"], "scrubbed without its class");
        node.configure("storageClassMap", &map)?;
        node.again("disk1", &pv).await?;
        ensure!(node::names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn another_host_dir_takes_the_place_of_the_old_one() {
    in_worlds("another_host_dir", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disks = ["disk1", "disk2"].map(|entry| node.tmpfs(&class, entry).unwrap());
        node.tmpfs("other", "disk3")?;
        node.start().await?;
        node.exactly(&["disk1", "disk2"]).await?;
        let bound = node.claim("a", &class).await?;
        let path = bound.spec.as_ref().unwrap().local.as_ref().unwrap().path.clone();
        let (used, free) = if disks[0].to_str() == Some(&path) {
            ("disk1", "disk2")
        } else {
            ("disk2", "disk1")
        };
        let file = std::path::Path::new(&path).join("file");
        std::fs::write(&file, "secret")?;
        let other = node.path("other");
        node.configure(
            "storageClassMap",
            &class_at(&class, &other.display().to_string(), &other),
        )?;
        node.available("disk3").await?;
        node.until(free, "withdrawn", |pv| pv.is_none()).await?;
        ensure!(node.published().await?[used].uid() == bound.uid());
        // It is scrubbed where it is, and does not come back: nobody looks there any more.
        node.release("a").await?;
        node.until(used, "scrubbed and gone", |pv| pv.is_none()).await?;
        ensure!(!file.exists());
        node.exactly(&["disk3"]).await?;
        Ok(())
    });
}

#[test]
fn another_mount_dir_shows_the_same_volumes_and_a_wrong_one_costs_none() {
    in_worlds("another_mount_dir", &MODES, async |node: Rc<Node>| {
        let class = node.free_class_name()?;
        node.plane.create_storage_class(&class, "Delete").await?;
        let host_dir = node.path("host").display().to_string();
        for entry in ["disk1", "disk2"] {
            node.tmpfs("view1", entry)?;
        }
        node.configure("storageClassMap", &class_at(&class, &host_dir, &node.path("view1")))?;
        node.start().await?;
        let first = node.exactly(&["disk1", "disk2"]).await?;
        let same = async || -> Result<bool> {
            let now = node.published().await?;
            Ok(first
                .iter()
                .all(|(entry, pv)| now.get(entry).is_some_and(|now| now.uid() == pv.uid())))
        };
        let bound = node.claim("a", &class).await?;
        node.configure("storageClassMap", &class_at(&class, &host_dir, &node.path("view7")))?;
        tokio::time::sleep(GRACE * 3).await; // That nothing is withdrawn takes this long to be seen.
        ensure!(same().await?, "a typing mistake took volumes away");
        // The DaemonSet's mount and the class are changed together.
        std::fs::rename(node.path("view1"), node.path("view2"))?;
        node.configure("storageClassMap", &class_at(&class, &host_dir, &node.path("view2")))?;
        node.tmpfs("view2", "disk3")?;
        node.available("disk3").await?;
        ensure!(same().await?);
        let path = bound.spec.as_ref().unwrap().local.as_ref().unwrap().path.clone();
        let entry = path.rsplit('/').next().unwrap().to_owned();
        let file = node.path("view2").join(&entry).join("file");
        std::fs::write(&file, "secret")?;
        node.release("a").await?;
        node.again(&entry, &bound).await?;
        ensure!(!file.exists());
        Ok(())
    });
}

#[test]
fn another_volume_mode_is_that_of_free_volumes_after_the_grace_period() {
    in_worlds("another_volume_mode", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
        std::os::unix::fs::symlink(device.path(), node.entry(&class, "disk1"))?;
        node.tmpfs(&class, "disk2")?;
        node.start().await?;
        let first = node.exactly(&["disk1", "disk2"]).await?;
        node.configure("storageClassMap", &node.settings_of(&class, "  volumeMode: Block\n"))?;
        let block = node.again("disk1", &first["disk1"]).await?;
        ensure!(block.spec.as_ref().unwrap().volume_mode.as_deref() == Some("Block"));
        node.exactly(&["disk1"]).await?; // A mount is no volume of such a class.
        node.configure("storageClassMap", &node.settings_of(&class, ""))?;
        node.again("disk1", &block).await?;
        node.exactly(&["disk1", "disk2"]).await?;
        Ok(())
    });
}

#[test]
fn names_that_do_not_match_any_more_are_withdrawn_and_come_back() {
    in_worlds("another_pattern", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        for entry in ["ssd1", "hdd1"] {
            node.tmpfs(&class, entry)?;
        }
        node.start().await?;
        let first = node.exactly(&["ssd1", "hdd1"]).await?;
        node.configure("storageClassMap", &node.settings_of(&class, "  namePattern: ssd*\n"))?;
        let left = node.exactly(&["ssd1"]).await?;
        ensure!(left["ssd1"].uid() == first["ssd1"].uid());
        node.configure("storageClassMap", &node.settings_of(&class, ""))?;
        let again = node.exactly(&["ssd1", "hdd1"]).await?;
        ensure!(again["ssd1"].uid() == first["ssd1"].uid());
        Ok(())
    });
}

#[test]
fn keys_that_come_and_go_are_those_of_the_next_publication() {
    in_worlds("keys", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        node.start().await?;
        let first = node.available("disk1").await?;
        ensure!(first.owner_references().is_empty() && !first.labels().contains_key("team"));
        let selector = "  selector:\n  - matchExpressions: [{key: zone, operator: In, values: [a]}]\n";
        let map = node.settings_of(
            &class,
            &format!("{selector}  accessMode: ReadWriteMany\n  fsType: xfs\n"),
        );
        node.edit([
            ("labelsForPV", Some("team: storage\n")),
            ("nodeLabelsForPV", Some("[kubernetes.io/os]")),
            ("setPVOwnerRef", Some("yes")),
            ("jobTolerations", Some("[{operator: Exists}]")),
            ("storageClassMap", Some(map.as_str())),
        ])?;
        node.tmpfs(&class, "disk2")?;
        let second = node.available("disk2").await?;
        ensure!(second.labels().get("team").is_some_and(|team| team == "storage"));
        ensure!(second.labels().contains_key("kubernetes.io/os"));
        ensure!(second.owner_references().len() == 1);
        let spec = second.spec.as_ref().unwrap();
        ensure!(spec.access_modes.as_deref() == Some(&["ReadWriteMany".to_owned()][..]));
        ensure!(spec.local.as_ref().unwrap().fs_type.as_deref() == Some("xfs"));
        let terms = &spec
            .node_affinity
            .as_ref()
            .unwrap()
            .required
            .as_ref()
            .unwrap()
            .node_selector_terms;
        ensure!(terms.len() == 2, "{terms:?}");
        let map = node.settings_of(&class, "");
        node.edit([
            ("labelsForPV", None),
            ("nodeLabelsForPV", None),
            ("setPVOwnerRef", None),
            ("jobTolerations", None),
            ("storageClassMap", Some(map.as_str())),
        ])?;
        node.tmpfs(&class, "disk3")?;
        let third = node.available("disk3").await?;
        ensure!(third.owner_references().is_empty() && !third.labels().contains_key("team"));
        // What is there stays as it is.
        let now = node.published().await?;
        ensure!(now["disk1"].uid() == first.uid() && now["disk2"].uid() == second.uid());
        Ok(())
    });
}

#[test]
fn volumes_stay_ours_when_the_way_of_naming_the_provisioner_changes() {
    in_worlds("name_only", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        node.start().await?;
        let mut pv = node.available("disk1").await?;
        for (round, value) in ["yes", "no", "yes"].into_iter().enumerate() {
            let claim = format!("c{round}");
            node.claim(&claim, &class).await?;
            std::fs::write(disk.join("file"), "secret")?;
            node.configure("useNodeNameOnly", value)?;
            node.several_passes().await;
            let now = node.published().await?;
            ensure!(phase(&now["disk1"]) == "Bound" && now["disk1"].uid() == pv.uid());
            node.release(&claim).await?;
            pv = node.again("disk1", &pv).await?;
            ensure!(node::names(&disk).is_empty());
        }
        Ok(())
    });
}
