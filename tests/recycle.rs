//! The life of a volume on a real control plane with real mounts, in both permission modes and with both views of the
//! host: published, bound, released, scrubbed, published again; and everything that must keep it from coming back.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "support/plane_node.rs"]
mod node;

use std::io::{Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use node::{Node, in_every_world, in_worlds, names, phase};
use serde_json::json;
use testkit::mounts;

const FINALIZER: &str = "local-volume-provisioner/scrub";

#[test]
fn a_released_volume_is_emptied_and_published_again() {
    in_every_world(
        "a_released_volume_is_emptied_and_published_again",
        async |node: Rc<Node>| {
            let class = node.class("Delete", "").await?;
            let disk = node.tmpfs(&class, "disk1")?;
            node.start().await?;
            let first = node.available("disk1").await?;
            ensure!(
                first.finalizers().contains(&FINALIZER.to_owned()) == (node.world.user == "full"),
                "{:?}",
                first.finalizers()
            );
            let bound = node.claim("a", &class).await?;
            ensure!(bound.uid() == first.uid());
            std::fs::write(disk.join("file"), "secret")?;
            std::fs::create_dir_all(disk.join(".hidden/deep"))?;
            std::fs::write(disk.join(".hidden/deep/file"), "secret")?;
            node.release("a").await?;
            let second = node.again("disk1", &first).await?;
            ensure!(second.name_any() == first.name_any(), "the name stays");
            ensure!(names(&disk).is_empty(), "{:?}", names(&disk));
            // And once more: nothing of the first round is in the way.
            node.claim("b", &class).await?;
            std::fs::write(disk.join("file"), "secret")?;
            node.release("b").await?;
            node.again("disk1", &second).await?;
            ensure!(names(&disk).is_empty(), "{:?}", names(&disk));
            Ok(())
        },
    );
}

#[test]
fn a_retained_volume_is_left_alone() {
    in_every_world("a_retained_volume_is_left_alone", async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Retain").await?;
        std::fs::write(disk.join("file"), "keep")?;
        node.release("a").await?;
        node.until("disk1", "Released", |pv| pv.is_some_and(|pv| phase(pv) == "Released"))
            .await?;
        node.several_passes().await;
        let now = node.published().await?.remove("disk1").context("the PV is gone")?;
        ensure!(
            now.uid() == pv.uid() && now.metadata.deletion_timestamp.is_none(),
            "{now:?}"
        );
        ensure!(names(&disk) == ["file"]);
        Ok(())
    });
}

#[test]
fn a_retained_volume_whose_pv_is_deleted_keeps_its_data_until_the_operator_decides() {
    in_every_world("retained_and_deleted", async |node: Rc<Node>| {
        let (class, disk, pv) = node.tenant("Retain").await?;
        std::fs::write(disk.join("file"), "keep")?;
        node.release("a").await?;
        let released = node
            .until("disk1", "Released", |pv| pv.is_some_and(|pv| phase(pv) == "Released"))
            .await?
            .unwrap();
        node.delete(&released).await?;
        node.several_passes().await;
        ensure!(names(&disk) == ["file"]);
        if node.world.user == "full" {
            node.event(&pv, "VolumeFailedDelete", "retained=scrub").await?;
            node.patch(
                &pv,
                json!({"metadata": {"annotations": {"local-volume-provisioner/retained": "scrub"}}}),
            )
            .await?;
            node.again("disk1", &pv).await?;
            ensure!(names(&disk).is_empty());
        } else {
            let stand_in = stood_in_for(&node, &pv).await?;
            node.event(&stand_in, "VolumeFailedDelete", "retained=scrub").await?;
            let keep = json!({"metadata": {"annotations": {"local-volume-provisioner/retained": "keep"}}});
            node.patch(&stand_in, keep).await?;
            mounts::unmount(&disk)?;
            node.several_passes().await;
            ensure!(
                node.published().await?["disk1"].uid() == stand_in.uid(),
                "a mount may be late"
            );
            std::fs::remove_dir(&disk)?;
            node.until("disk1", "let go", |pv| pv.is_none()).await?;
            node.tmpfs(&class, "disk1")?;
            node.again("disk1", &stand_in).await?;
        }
        Ok(())
    });
}

#[test]
fn other_storage_at_the_path_is_neither_scrubbed_nor_published() {
    in_every_world("other_storage_at_the_path", async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("tenant"), "secret")?;
        // Mounted over the right one, which stays beneath.
        mounts::tmpfs(&disk, 16 << 20)?;
        std::fs::write(disk.join("precious"), "not yours")?;
        node.event(&pv, "VolumeMismatch", "expected").await?;
        node.release("a").await?;
        node.event(&pv, "VolumeFailedDelete", "other storage").await?;
        node.several_passes().await;
        ensure!(names(&disk) == ["precious"]);
        ensure!(node.published().await?["disk1"].uid() == pv.uid());
        mounts::unmount(&disk)?;
        node.again("disk1", &pv).await?;
        ensure!(names(&disk).is_empty(), "{:?}", names(&disk));
        Ok(())
    });
}

#[test]
fn an_unmounted_volume_is_not_scrubbed_until_it_is_back() {
    in_every_world("an_unmounted_volume", async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let source = node.path("source");
        std::fs::create_dir(&source)?;
        let disk = node.entry(&class, "disk1");
        std::fs::create_dir(&disk)?;
        mounts::bind(&source, &disk)?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        node.claim("a", &class).await?;
        std::fs::write(disk.join("tenant"), "secret")?;
        mounts::unmount(&disk)?;
        std::fs::write(disk.join("on-the-root-disk"), "not yours")?;
        node.release("a").await?;
        node.event(&pv, "VolumeFailedDelete", "bring it back").await?;
        node.several_passes().await;
        ensure!(names(&disk) == ["on-the-root-disk"]);
        ensure!(names(&source) == ["tenant"]);
        mounts::bind(&source, &disk)?;
        node.again("disk1", &pv).await?;
        ensure!(names(&source).is_empty());
        mounts::unmount(&disk)?;
        ensure!(names(&disk) == ["on-the-root-disk"]);
        Ok(())
    });
}

#[test]
fn a_mount_below_the_volume_holds_it() {
    in_every_world("a_mount_below_the_volume_holds_it", async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        let below = disk.join("deep/mount");
        std::fs::create_dir_all(&below)?;
        mounts::tmpfs(&below, 1 << 20)?;
        std::fs::write(below.join("precious"), "not yours")?;
        node.release("a").await?;
        node.event(&pv, "VolumeFailedDelete", "mounted below").await?;
        node.several_passes().await;
        ensure!(names(&disk) == ["deep", "file"] && names(&below) == ["precious"]);
        mounts::unmount(&below)?;
        node.again("disk1", &pv).await?;
        ensure!(names(&disk).is_empty());
        Ok(())
    });
}

/// The kernel tells nobody that a directory was renamed, with which mounts may come to be below a volume.
#[test]
fn a_mount_that_is_moved_into_the_volume_with_its_directory_holds_it() {
    in_every_world("a_mount_that_is_moved_into_it", async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let base = node.path("base");
        mounts::tmpfs(&base, 16 << 20)?;
        std::fs::create_dir_all(base.join("v1"))?;
        std::fs::create_dir_all(base.join("other/mount"))?;
        mounts::tmpfs(&base.join("other/mount"), 1 << 20)?;
        let disk = node.entry(&class, "disk1");
        mounts::bind(&base.join("v1"), &disk)?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        node.claim("a", &class).await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.several_passes().await;
        std::fs::rename(base.join("other"), base.join("v1/other"))?;
        node.release("a").await?;
        node.event(&pv, "VolumeFailedDelete", "mounted below").await?;
        node.several_passes().await;
        ensure!(names(&disk) == ["file", "other"]);
        mounts::unmount(&base.join("v1/other/mount"))?;
        node.again("disk1", &pv).await?;
        ensure!(names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn a_pod_that_still_has_it_mounted_holds_it() {
    let seeing: Vec<_> = node::WORLDS.into_iter().filter(|world| world.sees_pods).collect();
    in_worlds(
        "a_pod_that_still_has_it_mounted_holds_it",
        &seeing,
        async |node: Rc<Node>| {
            let class = node.class("Delete", "").await?;
            let disk = node.tmpfs(&class, "disk1")?;
            node.start().await?;
            let pv = node.available("disk1").await?;
            node.claim("a", &class).await?;
            std::fs::write(disk.join("file"), "secret")?;
            let pod = node.pod_mount(&pv, &disk)?;
            node.release("a").await?;
            node.event(&pv, "VolumeFailedDelete", "pod 9e1f0c4d has it mounted")
                .await?;
            node.several_passes().await;
            ensure!(names(&disk) == ["file"]);
            mounts::unmount(&pod)?;
            node.again("disk1", &pv).await?;
            ensure!(names(&disk).is_empty());
            Ok(())
        },
    );
}

#[test]
fn a_blind_node_looks_twice_at_what_it_has_scrubbed() {
    let blind: Vec<_> = node::WORLDS.into_iter().filter(|world| !world.sees_pods).collect();
    in_worlds("a_blind_node_looks_twice", &blind, async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.release("a").await?;
        let end = tokio::time::Instant::now() + node::DEADLINE;
        while !names(&disk).is_empty() {
            ensure!(tokio::time::Instant::now() < end, "not scrubbed");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // A process of the former tenant writes on, right after the scrub.
        std::fs::write(disk.join("late"), "secret")?;
        node.again("disk1", &pv).await?;
        ensure!(names(&disk).is_empty(), "published with {:?}", names(&disk));
        Ok(())
    });
}

#[test]
fn what_was_released_while_the_daemon_was_down_is_scrubbed() {
    in_every_world("released_while_down", async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.stop().await?;
        node.release("a").await?;
        node.until("disk1", "Released", |pv| pv.is_some_and(|pv| phase(pv) == "Released"))
            .await?;
        node.start().await?;
        node.again("disk1", &pv).await?;
        ensure!(names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn a_bound_pv_that_is_deleted_by_hand_is_scrubbed_when_its_claim_is_gone() {
    in_every_world("deleted_by_hand", async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.delete(&pv).await?;
        node.several_passes().await;
        ensure!(names(&disk) == ["file"], "scrubbed under its tenant");
        ensure!(node.published().await?["disk1"].uid() == pv.uid());
        node.release("a").await?;
        node.again("disk1", &pv).await?;
        ensure!(names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn a_pv_that_vanishes_by_force_is_held_as_long_as_its_claim_lives() {
    in_every_world("vanishes_by_force", async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.delete(&pv).await?;
        node.patch(&pv, json!({"metadata": {"finalizers": null}})).await?;
        stood_in_for(&node, &pv).await?;
        // Also by a provisioner that knows nothing but what is in the API.
        node.stop().await?;
        node.start().await?;
        node.several_passes().await;
        let stand_in = stood_in_for(&node, &pv).await?;
        ensure!(names(&disk) == ["file"], "scrubbed while its claim lives");
        node.event(&stand_in, "VolumeFailedDelete", "claim default/").await?;
        node.release("a").await?;
        node.again("disk1", &stand_in).await?;
        ensure!(names(&disk).is_empty());
        Ok(())
    });
}

/// A PV that is in no circulation stands for the volume of one that was removed by force.
async fn stood_in_for(node: &Node, pv: &PersistentVolume) -> Result<PersistentVolume> {
    let is_it = |found: Option<&PersistentVolume>| {
        found.is_some_and(|found| {
            let settled = phase(found) == "Released" || found.metadata.deletion_timestamp.is_some();
            found.uid() != pv.uid() && found.annotations().contains_key("local-volume-provisioner/stand-in") && settled
        })
    };
    let found = node.until("disk1", "a PV stands in for it", is_it).await?;
    found.context("no PV")
}

#[test]
fn a_retained_pv_that_vanishes_by_force_is_held_for_the_operators_word() {
    in_every_world("retained_vanishes", async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Retain").await?;
        std::fs::write(disk.join("file"), "secret")?;
        node.release("a").await?;
        node.until("disk1", "Released", |pv| pv.is_some_and(|pv| phase(pv) == "Released"))
            .await?;
        node.delete(&pv).await?;
        node.patch(&pv, json!({"metadata": {"finalizers": null}})).await.ok();
        stood_in_for(&node, &pv).await?;
        node.stop().await?;
        node.start().await?;
        node.several_passes().await;
        let stand_in = stood_in_for(&node, &pv).await?;
        ensure!(names(&disk) == ["file"], "scrubbed without a word");
        node.event(&stand_in, "VolumeFailedDelete", "retained=scrub").await?;
        node.patch(
            &stand_in,
            json!({"metadata": {"annotations": {"local-volume-provisioner/retained": "scrub"}}}),
        )
        .await?;
        node.again("disk1", &stand_in).await?;
        ensure!(names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn a_vanished_volume_is_withdrawn_and_published_when_it_is_back() {
    in_every_world("vanished", async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        node.start().await?;
        let first = node.available("disk1").await?;
        mounts::unmount(&disk)?;
        node.until("disk1", "withdrawn", |pv| pv.is_none()).await?;
        node.tmpfs(&class, "disk1")?;
        let second = node.again("disk1", &first).await?;
        // Other storage at a free PV's path: withdrawn at once, and published as what it is.
        mounts::unmount(&disk)?;
        node.tmpfs(&class, "disk1")?;
        node.again("disk1", &second).await?;
        Ok(())
    });
}

#[test]
fn a_free_pv_follows_the_capacity_of_its_volume() {
    in_every_world("capacity", async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        let disk = node.tmpfs(&class, "disk1")?;
        node.start().await?;
        node.available("disk1").await?;
        let remount = |size: &str| {
            let status = std::process::Command::new("mount")
                .args(["-o", &format!("remount,size={size}")])
                .arg(&disk)
                .status();
            status.map(|status| assert!(status.success()))
        };
        let capacity = |wanted: &'static str| {
            move |pv: Option<&k8s_openapi::api::core::v1::PersistentVolume>| {
                pv.is_some_and(|pv| {
                    phase(pv) == "Available"
                        && pv.spec.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0 == wanted
                })
            }
        };
        remount("32m")?;
        node.until("disk1", "32Mi", capacity("32Mi")).await?;
        remount("12m")?;
        node.until("disk1", "12Mi", capacity("12Mi")).await?;
        Ok(())
    });
}

#[test]
fn a_block_volume_is_zeroed_and_published_again() {
    in_every_world("block", async |node: Rc<Node>| {
        let class = node.class("Delete", "  volumeMode: Block\n").await?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 47 << 20)?;
        std::os::unix::fs::symlink(device.path(), node.entry(&class, "disk1"))?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        ensure!(pv.spec.as_ref().unwrap().volume_mode.as_deref() == Some("Block"));
        node.claim_of_mode("a", &class, "Block").await?;
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(device.path())?;
        for offset in [0, 7 << 20, (47 << 20) - 4096] {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(&[0xaa; 4096])?;
        }
        file.sync_all()?;
        drop(file);
        node.release("a").await?;
        node.again("disk1", &pv).await?;
        node.event(&pv, "VolumeDelete", "Starting cleanup of Block PV").await?;
        let mut content = Vec::new();
        std::fs::File::open(device.path())?.read_to_end(&mut content)?;
        ensure!(
            content.len() == 47 << 20 && content.iter().all(|byte| *byte == 0),
            "the device is not zero"
        );
        Ok(())
    });
}

#[test]
fn a_device_in_use_is_not_scrubbed() {
    in_every_world("device_in_use", async |node: Rc<Node>| {
        let class = node.class("Delete", "  volumeMode: Block\n").await?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 47 << 20)?;
        std::os::unix::fs::symlink(device.path(), node.entry(&class, "disk1"))?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        node.claim_of_mode("a", &class, "Block").await?;
        mounts::mkfs(device.path(), "ext4")?;
        let elsewhere = node.path("elsewhere");
        std::fs::create_dir(&elsewhere)?;
        mounts::device(device.path(), &elsewhere, "ext4")?;
        std::fs::write(elsewhere.join("precious"), "not yours")?;
        node.release("a").await?;
        node.event(&pv, "VolumeFailedDelete", "in use").await?;
        node.several_passes().await;
        ensure!(std::fs::read(elsewhere.join("precious"))? == b"not yours");
        mounts::unmount(&elsewhere)?;
        node.again("disk1", &pv).await?;
        Ok(())
    });
}

/// Writes what a tenant leaves on a device.
fn soil(device: &std::path::Path, offsets: &[u64]) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(device)?;
    for offset in offsets {
        file.seek(SeekFrom::Start(*offset))?;
        file.write_all(&[0xaa; 4096])?;
    }
    Ok(file.sync_all()?)
}

fn bytes_at(device: &std::path::Path, offset: u64) -> Result<Vec<u8>> {
    let mut file = std::fs::File::open(device)?;
    let mut bytes = vec![0; 4096];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Binds a device of a class with this `blockCleanerCommand`, soils it, releases it, and looks when it is back.
async fn recycled_by(node: &Node, command: &str) -> Result<(mounts::LoopDevice, std::path::PathBuf)> {
    let extra = format!("  volumeMode: Block\n  blockCleanerCommand: {command}\n");
    let class = node.class("Delete", &extra).await?;
    let device = mounts::LoopDevice::with_file(&node.path(format!("{class}.img")), 16 << 20)?;
    let (entry, path) = (format!("disk-{class}"), node.entry(&class, &format!("disk-{class}")));
    std::os::unix::fs::symlink(device.path(), &path)?;
    if node.published().await?.is_empty() {
        node.start().await?;
    }
    let pv = node.available(&entry).await?;
    node.claim_of_mode(&class, &class, "Block").await?;
    soil(device.path(), &[0, 7 << 20, (16 << 20) - 4096])?;
    node.release(&class).await?;
    node.again(&entry, &pv)
        .await
        .with_context(|| format!("with {command}"))?;
    Ok((device, path))
}

#[test]
fn every_native_cleaner_recycles_a_device() {
    in_every_world("native_cleaners", async |node: Rc<Node>| {
        let mut devices = Vec::new();
        for command in [
            "[zero]",
            "[discard]",
            "[shred 2]",
            "[/scripts/shred.sh, \"1\"]",
            "[/scripts/blkdiscard.sh]",
        ] {
            let (device, _) = recycled_by(&node, command).await?;
            for offset in [0, 7 << 20, (16 << 20) - 4096] {
                ensure!(
                    bytes_at(device.path(), offset)? == [0; 4096],
                    "{command} left data at {offset}"
                );
            }
            devices.push(device);
        }
        // Signatures only: it is what the operator asked for.
        let (device, _) = recycled_by(&node, "[/scripts/quick_reset.sh]").await?;
        ensure!(bytes_at(device.path(), 0)? == [0; 4096] && bytes_at(device.path(), (16 << 20) - 4096)? == [0; 4096]);
        ensure!(bytes_at(device.path(), 7 << 20)? == [0xaa; 4096]);
        Ok(())
    });
}

#[test]
fn a_command_recycles_a_device() {
    in_every_world("commands", async |node: Rc<Node>| {
        let told = node.path("told");
        // It takes the device exclusively, as mkfs does: nobody else may hold it then.
        let script = format!(
            "echo \"$LOCAL_PV_BLKDEVICE\" > {}; mkfs.ext4 -q -F \"$LOCAL_PV_BLKDEVICE\"",
            told.display()
        );
        let (device, path) = recycled_by(&node, &json!(["sh", "-c", script]).to_string()).await?;
        ensure!(std::fs::read_to_string(&told)?.trim_end() == path.display().to_string());
        ensure!(
            bytes_at(device.path(), 0)?[1024 + 56..1024 + 58] == [0x53, 0xef],
            "mkfs has not run"
        );
        Ok(())
    });
}

#[test]
fn a_command_that_fails_releases_nothing() {
    in_every_world("failing_commands", async |node: Rc<Node>| {
        let flag = node.path("now-it-works");
        let script = format!("test -e {} || {{ echo 'out of order' >&2; exit 3; }}", flag.display());
        let command = json!(["sh", "-c", script]);
        let extra = format!("  volumeMode: Block\n  blockCleanerCommand: {command}\n");
        let class = node.class("Delete", &extra).await?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
        std::os::unix::fs::symlink(device.path(), node.entry(&class, "disk1"))?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        node.claim_of_mode("a", &class, "Block").await?;
        node.release("a").await?;
        node.event(
            &pv,
            "VolumeFailedDelete",
            "exited with code 3; its last line was: out of order",
        )
        .await?;
        ensure!(node.published().await?["disk1"].uid() == pv.uid());
        std::fs::write(flag, "")?;
        node.again("disk1", &pv).await?;
        Ok(())
    });
}

#[test]
fn a_command_that_hangs_is_killed_when_it_stalls_and_when_the_daemon_stops() {
    in_every_world("hanging_commands", async |node: Rc<Node>| {
        let (pid, flag) = (node.path("pid"), node.path("now-it-works"));
        let script = format!(
            "test -e {} && exit 0; echo $$ > {1}.new; mv {1}.new {1}; exec sleep 1000",
            flag.display(),
            pid.display()
        );
        let command = json!(["sh", "-c", script]);
        let extra = format!("  volumeMode: Block\n  blockCleanerCommand: {command}\n");
        let class = node.class("Delete", &extra).await?;
        let device = mounts::LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
        std::os::unix::fs::symlink(device.path(), node.entry(&class, "disk1"))?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        node.claim_of_mode("a", &class, "Block").await?;
        node.release("a").await?;
        let end = tokio::time::Instant::now() + node::DEADLINE;
        while !pid.exists() {
            ensure!(tokio::time::Instant::now() < end, "not started");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let process = std::path::Path::new("/proc").join(std::fs::read_to_string(&pid)?.trim());
        ensure!(process.exists(), "it has ended by itself");
        node.stop().await?;
        ensure!(!process.exists(), "it goes on without the daemon");
        ensure!(node.published().await?["disk1"].uid() == pv.uid());
        node.settings.borrow_mut().scrub.stall_timeout = std::time::Duration::from_millis(200);
        node.start().await?;
        node.event(&pv, "VolumeFailedDelete", "neither wrote anything nor ended for 200ms")
            .await?;
        std::fs::write(flag, "")?;
        node.again("disk1", &pv).await?;
        Ok(())
    });
}

#[test]
fn cleaners_that_are_not_there_hold_the_volume() {
    in_every_world("cleaners", async |node: Rc<Node>| {
        let mut kept = Vec::new();
        for (command, text) in [
            (
                "[/no/such/cleaner, -f]",
                "the cleaner /no/such/cleaner -f cannot be run",
            ),
            ("[/scripts/fsclean.sh]", "does not wipe block devices"),
        ] {
            let extra = format!("  volumeMode: Block\n  blockCleanerCommand: {command}\n");
            let class = node.class("Delete", &extra).await?;
            let device = mounts::LoopDevice::with_file(&node.path(format!("{class}.img")), 16 << 20)?;
            let entry = format!("disk-{class}");
            std::os::unix::fs::symlink(device.path(), node.entry(&class, &entry))?;
            if kept.is_empty() {
                node.start().await?;
            }
            let pv = node.available(&entry).await?;
            node.claim_of_mode(&class, &class, "Block").await?;
            soil(device.path(), &[0])?;
            node.release(&class).await?;
            node.event(&pv, "VolumeFailedDelete", text).await?;
            ensure!(node.published().await?[&entry].uid() == pv.uid());
            ensure!(bytes_at(device.path(), 0)? == [0xaa; 4096]);
            kept.push(device);
        }
        Ok(())
    });
}

#[test]
fn edits_of_a_pv_by_hand_are_repaired_or_survived() {
    in_every_world("edits_by_hand", async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        std::fs::write(disk.join("file"), "secret")?;
        // The label-scoped watch says DELETED now, for a PV that is Bound.
        node.patch(
            &pv,
            json!({"metadata": {"labels": {"local-volume-provisioner/node": null}}}),
        )
        .await?;
        if node.world.user == "full" {
            let labelled = |pv: Option<&k8s_openapi::api::core::v1::PersistentVolume>| {
                pv.is_some_and(|pv| pv.labels().contains_key("local-volume-provisioner/node"))
            };
            node.until("disk1", "labelled again", labelled).await?;
            node.patch(
                &pv,
                json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}}),
            )
            .await?;
            node.until("disk1", "the finalizer is back", |pv| {
                pv.is_some_and(|pv| pv.finalizers().contains(&FINALIZER.to_owned()))
            })
            .await?;
        }
        node.several_passes().await;
        let now = node.published().await?;
        ensure!(
            now.len() == 1 && now["disk1"].uid() == pv.uid(),
            "a second PV for one volume"
        );
        ensure!(names(&disk) == ["file"]);
        node.release("a").await?;
        node.again("disk1", &pv).await?;
        ensure!(names(&disk).is_empty());
        Ok(())
    });
}

#[test]
fn a_claim_ref_that_is_cleared_by_hand_is_reported() {
    in_every_world("cleared_by_hand", async |node: Rc<Node>| {
        let class = node.class("Retain", "").await?;
        node.tmpfs(&class, "disk1")?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        node.claim("a", &class).await?;
        node.release("a").await?;
        node.until("disk1", "Released", |pv| pv.is_some_and(|pv| phase(pv) == "Released"))
            .await?;
        if node.world.user == "full" {
            node.until("disk1", "marked", |pv| {
                pv.is_some_and(|pv| pv.annotations().contains_key("local-volume-provisioner/used"))
            })
            .await?;
        }
        node.patch(&pv, json!({"spec": {"claimRef": null}})).await?;
        node.available("disk1").await?;
        node.event(&pv, "ReusedWithoutScrub", "cleared by hand").await?;
        Ok(())
    });
}
