//! Volumes whose size changes.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use nix::mount::{MsFlags, mount};

use crate::node::{MODES, Node, in_worlds};
use crate::storage::{DISK_BYTES, Filesystem, device, run};
use crate::{event_about, events};

const MIB: u64 = 1 << 20;

fn capacity(pv: &PersistentVolume) -> u64 {
    let capacity = pv.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    let quantity = capacity.and_then(|capacity| capacity.get("storage"));
    quantity
        .and_then(|quantity| local_volume_provisioner::capacity::parse(&quantity.0))
        .unwrap_or(0)
}

/// Waits until an entry's PV has a capacity. Whether it is the same object depends on what may be done with PVs.
async fn follows(
    node: &Node,
    entry: &str,
    holds: impl Fn(u64) -> bool,
    former: &PersistentVolume,
) -> Result<PersistentVolume> {
    let what = format!("the capacity of {entry} follows");
    node.until(entry, &what, |pv| pv.is_some_and(|pv| holds(capacity(pv))))
        .await?;
    let pv = node.available(entry).await?;
    ensure!(node.patches() == (pv.uid() == former.uid()), "{former:?}");
    Ok(pv)
}

fn resize(disk: &testkit::mounts::LoopDevice, bytes: u64) -> Result<()> {
    File::options().write(true).open(disk.file())?.set_len(bytes)?;
    run("losetup", [OsStr::new("--set-capacity"), disk.path().as_os_str()])
}

fn resize_tmpfs(path: &Path, bytes: u64) -> Result<()> {
    let (none, size) = (None::<&str>, format!("size={bytes}"));
    Ok(mount(none, path, none, MsFlags::MS_REMOUNT, Some(size.as_str()))?)
}

#[test]
fn a_free_pv_follows_its_device_both_ways() {
    in_worlds("a_free_pv_follows_its_device", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "  volumeMode: Block\n").await?;
        let disk = device(&node, "disk1.img", 64 * MIB)?;
        std::os::unix::fs::symlink(disk.path(), node.entry(&class, "disk1"))?;
        node.start().await?;
        let mut pv = node.available("disk1").await?;
        ensure!(capacity(&pv) == 64 * MIB);
        for mib in [96, 32] {
            resize(&disk, mib * MIB)?;
            pv = follows(&node, "disk1", |bytes| bytes == mib * MIB, &pv).await?;
        }
        Ok(())
    });
}

#[test]
fn a_free_pv_follows_its_filesystem() {
    in_worlds("a_free_pv_follows_its_filesystem", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        // Long enough that nothing is withdrawn while it is not mounted.
        node.set(|settings| settings.limits.grace_period = Duration::from_secs(60));
        let resize_ext4 = |disk: &Filesystem| {
            // While it is mounted, that takes CAP_SYS_RESOURCE.
            disk.unmount()?;
            disk.check()?;
            run("resize2fs", [disk.device.path()])?;
            disk.mount()
        };
        let resize_xfs = |disk: &Filesystem| run("xfs_growfs", [disk.path()]);
        type Resize = fn(&Filesystem) -> Result<()>;
        node.start().await?;
        for (fs_type, grow) in [("ext4", resize_ext4 as Resize), ("xfs", resize_xfs)] {
            let disk = Filesystem::new(&node, &class, fs_type, fs_type)?;
            let pv = node.available(fs_type).await?;
            let before = capacity(&pv);
            resize(&disk.device, 2 * DISK_BYTES)?;
            node.several_passes().await;
            let unchanged = node.available(fs_type).await?;
            ensure!(capacity(&unchanged) == before, "the filesystem is as large as it was");
            grow(&disk)?;
            follows(&node, fs_type, |bytes| bytes > before + DISK_BYTES / 2, &pv).await?;
        }
        let path = node.tmpfs(&class, "tmpfs")?;
        let mut pv = node.available("tmpfs").await?;
        for mib in [24, 12] {
            resize_tmpfs(&path, mib * MIB)?;
            pv = follows(&node, "tmpfs", |bytes| bytes == mib * MIB, &pv).await?;
        }
        Ok(())
    });
}

#[test]
fn the_size_of_a_bound_volume_is_told_once() {
    in_worlds("the_size_of_a_bound_volume", &MODES, async |node: Rc<Node>| {
        let (_, disk, pv) = node.tenant("Delete").await?;
        let uid = pv.uid().unwrap();
        resize_tmpfs(&disk, 32 * MIB)?;
        event_about(&node, &uid, "CapacityChanged", "32Mi now, and 16Mi was published").await?;
        for _ in 0..2 {
            node.several_passes().await;
            node.stop().await?;
            node.start().await?;
        }
        node.several_passes().await;
        let told = events(&node, &uid, "CapacityChanged").await?;
        ensure!(told.len() == 1 && told[0].count == Some(1), "{told:#?}");
        ensure!(capacity(&node.published().await?["disk1"]) == 16 * MIB);
        Ok(())
    });
}
