//! Entries of a discovery directory: which become PVs, under which names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use kube::api::PostParams;
use local_volume_provisioner::names;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use testkit::mounts;

use crate::node::{MODES, Node, in_worlds};

#[test]
fn hard_names_are_served_and_recycled() {
    in_worlds("hard_names", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let long = "x".repeat(255);
        let hard = [
            "with blanks  two",
            "comma,equals=",
            "quotes\"'`",
            "back\\slash\\040",
            "tab\tnewline\n",
            ".hidden",
            "..data-like",
            "percent%20$(dollar)",
            "ünïcödé-磁盘",
            "[glob]*?",
            long.as_str(),
        ];
        for entry in hard {
            node.tmpfs(&class, entry)?;
        }
        node.start().await?;
        let published = node.exactly(&hard).await?;
        for entry in hard {
            let pv = &published[entry];
            let path = &pv.spec.as_ref().unwrap().local.as_ref().unwrap().path;
            ensure!(*path == node.entry(&class, entry).display().to_string(), "{path:?}");
            ensure!(
                pv.name_any() == names::classic_pv_name(entry, &node.name, &class),
                "{entry:?}"
            );
        }
        // All of them: a claim takes any.
        for number in 0..hard.len() {
            node.claim(&number.to_string(), &class).await?;
        }
        for entry in hard {
            std::fs::write(node.entry(&class, entry).join("file"), "secret")?;
        }
        for number in 0..hard.len() {
            node.release(&number.to_string()).await?;
        }
        for entry in hard {
            node.again(entry, &published[entry])
                .await
                .with_context(|| format!("{entry:?}"))?;
            ensure!(
                crate::node::names(&node.entry(&class, entry)).is_empty(),
                "{entry:?} was not scrubbed"
            );
        }
        Ok(())
    });
}

#[test]
fn of_one_of_everything_only_the_right_ones_are_published() {
    in_worlds("one_of_everything", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "  namePattern: \"[^z]*\"\n").await?;
        let entry = |name: &str| node.entry(&class, name);
        node.tmpfs(&class, "good-mount")?;
        node.tmpfs(&class, "z-does-not-match")?;
        mounts::tmpfs(
            &node.entry(&class, "").join(OsStr::from_bytes(b"not-utf8-\xff")),
            1 << 20,
        )?;
        std::fs::write(entry("file"), "")?;
        std::fs::create_dir(entry("directory"))?;
        nix::unistd::mkfifo(&entry("fifo"), Mode::S_IRWXU)?;
        let _socket = UnixListener::bind(entry("socket"))?;
        mknod(&entry("null"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3))?;
        symlink("nowhere", entry("dangling"))?;
        symlink("loop", entry("loop"))?;
        symlink(entry("good-mount"), entry("link-to-mount"))?;
        symlink(entry("file"), entry("link-to-file"))?;
        symlink("/dev/null", entry("link-to-null"))?;
        let read_only = node.tmpfs(&class, "read-only")?;
        remount_read_only(&read_only)?;
        let source = node.path("source");
        std::fs::create_dir(&source)?;
        std::fs::create_dir(entry("deleted-source"))?;
        mounts::bind(&source, &entry("deleted-source"))?;
        std::fs::remove_dir(&source)?;
        let both = node.path("both");
        mounts::tmpfs(&both, 1 << 20)?;
        std::fs::create_dir(both.join("below"))?;
        mounts::bind(&both, &entry("same-1"))?;
        mounts::bind(&both, &entry("same-2"))?;
        mounts::bind(&both.join("below"), &entry("same-3"))?;
        let devices: Vec<_> = (0..2)
            .map(|number| mounts::LoopDevice::with_file(&node.path(format!("backing{number}.img")), 16 << 20))
            .collect::<Result<_>>()?;
        symlink(devices[0].path(), entry("device-1"))?;
        symlink(devices[0].path(), entry("device-2"))?;
        // A device in a class of filesystems is for kubelet to format; one that is mounted is in use.
        mounts::mkfs(devices[1].path(), "ext4")?;
        let elsewhere = node.path("elsewhere");
        mounts::device(devices[1].path(), &elsewhere, "ext4")?;
        symlink(devices[1].path(), entry("mounted-device"))?;
        node.start().await?;
        let expected = ["device-1", "good-mount", "same-1"];
        let first = node.exactly(&expected).await?;
        ensure!(first["device-1"].spec.as_ref().unwrap().volume_mode.as_deref() == Some("Filesystem"));
        node.several_passes().await;
        let later = node.exactly(&expected).await?;
        ensure!(
            first.iter().all(|(entry, pv)| later[entry].uid() == pv.uid()),
            "they were published anew"
        );
        // What frees an entry publishes it.
        mounts::unmount(&elsewhere)?;
        mounts::unmount(&entry("same-1"))?;
        node.available("mounted-device").await?;
        node.available("same-2").await?;
        Ok(())
    });
}

fn remount_read_only(path: &std::path::Path) -> Result<()> {
    use nix::mount::{MsFlags, mount};
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?)
}

#[test]
fn a_part_of_a_bound_volume_is_not_published_elsewhere() {
    in_worlds("part_of_bound", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let storage = node.path("storage");
        mounts::tmpfs(&storage, 16 << 20)?;
        std::fs::create_dir(node.entry(&class, "disk1"))?;
        mounts::bind(&storage, &node.entry(&class, "disk1"))?;
        node.start().await?;
        node.available("disk1").await?;
        let bound = node.claim("a", &class).await?;
        std::fs::create_dir(storage.join("below"))?;
        std::fs::write(storage.join("below/file"), "secret")?;
        // What was published is out of sight, and a part of it is not.
        mounts::unmount(&node.entry(&class, "disk1"))?;
        mounts::bind(&storage.join("below"), &node.entry(&class, "disk2"))?;
        node.tmpfs(&class, "disk3")?;
        node.available("disk3").await?;
        node.several_passes().await;
        let now = node.published().await?;
        ensure!(now.keys().eq(["disk1", "disk3"]), "{:?}", now.keys());
        ensure!(now["disk1"].uid() == bound.uid() && storage.join("below/file").exists());
        Ok(())
    });
}

/// A PV that somebody else has made.
pub async fn create_foreign(
    node: &Node,
    name: &str,
    class: &str,
    path: &str,
    hostname: &str,
) -> Result<PersistentVolume> {
    let terms =
        json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [hostname]}]}]);
    let pv: Value = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "storageClassName": class, "persistentVolumeReclaimPolicy": "Retain",
        "local": {"path": path}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
    Ok(node
        .pvs()
        .create(&PostParams::default(), &serde_json::from_value(pv)?)
        .await?)
}

#[test]
fn a_name_that_another_node_has_taken_is_avoided() {
    in_worlds("name_taken", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        let classic = names::classic_pv_name("disk1", &node.name, &class);
        let other = create_foreign(&node, &classic, &class, "/mnt/disks/other", "some-other-host").await?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        ensure!(pv.name_any() == names::long_pv_name(&disk, &node.name, &class));
        // It is as good as any, and a restart finds it again.
        node.stop().await?;
        node.start().await?;
        node.claim("a", &class).await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.release("a").await?;
        let again = node.again("disk1", &pv).await?;
        ensure!(again.name_any() == pv.name_any() && crate::node::names(&disk).is_empty());
        let untouched = node.pvs().get(&classic).await?;
        ensure!(untouched.uid() == other.uid() && untouched.metadata.deletion_timestamp.is_none());
        Ok(())
    });
}

#[test]
fn two_volumes_whose_classic_names_are_the_same_are_both_published() {
    in_worlds("two_of_one_name", &MODES, async |node: Rc<Node>| {
        // The classic name runs entry, node and class together.
        let short = node.free_class_name()?;
        let long = format!("{}{short}", node.name);
        for (class, entry) in [(&short, format!("a{}", node.name)), (&long, "a".to_owned())] {
            node.plane.create_storage_class(class, "Delete").await?;
            std::fs::create_dir(node.path(class))?;
            node.configure_class(class, "")?;
            node.tmpfs(class, &entry)?;
        }
        let entries = [format!("a{}", node.name), "a".to_owned()];
        let classic = names::classic_pv_name("a", &node.name, &long);
        ensure!(classic == names::classic_pv_name(&entries[0], &node.name, &short));
        node.start().await?;
        let published = node.exactly(&[&entries[0], "a"]).await?;
        let found: Vec<String> = published.values().map(ResourceExt::name_any).collect();
        ensure!(found.contains(&classic) && found[0] != found[1], "{found:?}");
        node.stop().await?;
        node.start().await?;
        node.several_passes().await;
        let later = node.exactly(&[&entries[0], "a"]).await?;
        ensure!(published.iter().all(|(entry, pv)| later[entry].uid() == pv.uid()));
        Ok(())
    });
}

#[test]
fn a_path_that_a_foreign_pv_stands_for_is_not_published() {
    in_worlds("foreign_pv", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        let (name, path) = (format!("by-hand-{}", node.name), disk.display().to_string());
        let create = async || create_foreign(&node, &name, &class, &path, &node.hostname()).await;
        let foreign = node.create_unused("disk1", create).await?;
        node.tmpfs(&class, "disk2")?;
        node.start().await?;
        node.available("disk2").await?;
        node.event(&foreign, "ForeignPersistentVolume", "not published").await?;
        node.several_passes().await;
        ensure!(
            node.published().await?["disk1"].uid() == foreign.uid(),
            "two PVs for one volume"
        );
        node.delete(&foreign).await?;
        node.again("disk1", &foreign).await?;
        Ok(())
    });
}
