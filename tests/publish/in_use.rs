//! Devices that something else on the node uses: neither published nor scrubbed.

use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Result, ensure};
use testkit::mounts;

use crate::node::{MODES, Node, in_worlds};

fn run(program: &str, arguments: &[&Path]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Something that uses a device until it is dropped.
struct Used(Box<dyn Fn() -> Result<()>>);

impl Drop for Used {
    fn drop(&mut self) {
        if let Err(error) = (self.0)() {
            eprintln!("{error:#}");
        }
    }
}

/// The device is not published while it is used, and neither scrubbed while it is used under its PV.
async fn ensure_left_alone(
    node: &Node,
    device: &mounts::LoopDevice,
    use_it: impl Fn() -> Result<Used>,
    is_intact: impl Fn() -> Result<()>,
) -> Result<()> {
    let class = node.class("Delete", "  volumeMode: Block\n").await?;
    symlink(device.path(), node.entry(&class, "disk1"))?;
    let other = mounts::LoopDevice::with_file(&node.path("other.img"), 8 << 20)?;
    symlink(other.path(), node.entry(&class, "disk2"))?;
    let used = use_it()?;
    node.start().await?;
    node.available("disk2").await?;
    std::fs::remove_file(node.entry(&class, "disk2"))?;
    node.until("disk2", "withdrawn", |pv| pv.is_none()).await?;
    node.several_passes().await;
    ensure!(node.published().await?.is_empty(), "published while it is used");
    is_intact()?;
    drop(used);
    let pv = node.available("disk1").await?;
    node.claim_of_mode("a", &class, "Block").await?;
    let used = use_it()?;
    node.release("a").await?;
    node.event(&pv, "VolumeFailedDelete", "still in use: ").await?;
    node.several_passes().await;
    is_intact()?;
    ensure!(node.published().await?["disk1"].metadata.uid == pv.metadata.uid);
    drop(used);
    node.again("disk1", &pv).await?;
    let mut start = vec![1; 1 << 20];
    std::fs::File::open(device.path())?.read_exact_at(&mut start, 0)?;
    ensure!(start.iter().all(|byte| *byte == 0), "not scrubbed");
    Ok(())
}

#[test]
fn swap_is_left_alone() {
    in_worlds("swap", &MODES, async |node: Rc<Node>| {
        let device = mounts::LoopDevice::with_file(&node.path("swap.img"), 16 << 20)?;
        let path = device.path().to_owned();
        let use_it = || {
            run("mkswap", &[Path::new("-q"), &path])?;
            run("swapon", &[&path])?;
            let path = path.clone();
            Ok(Used(Box::new(move || run("swapoff", &[&path]))))
        };
        let is_intact = || {
            let mut magic = [0; 10];
            std::fs::File::open(&path)?.read_exact_at(&mut magic, 4086)?; // mkswap(8)
            ensure!(magic == *b"SWAPSPACE2", "{magic:?}");
            Ok(())
        };
        ensure_left_alone(&node, &device, use_it, is_intact).await
    });
}

/// An MBR with a partition of 8 MiB at sector 2048, and the partition's device.
fn partition(device: &Path) -> Result<PathBuf> {
    let mut table = [0_u8; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&(8_u32 << 11).to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    std::fs::OpenOptions::new()
        .write(true)
        .open(device)?
        .write_all_at(&table, 0)?;
    let piece = PathBuf::from(format!("{}p1", device.display()));
    if !piece.exists() {
        run("partx", &[Path::new("-a"), device])?;
    }
    Ok(piece)
}

#[test]
fn a_disk_whose_partition_is_mounted_is_left_alone() {
    in_worlds("partition", &MODES, async |node: Rc<Node>| {
        let device = mounts::LoopDevice::with_file(&node.path("disk.img"), 16 << 20)?;
        let piece = partition(device.path())?;
        let disk = device.path().to_owned();
        let _forgotten = Used(Box::new(move || run("partx", &[Path::new("-d"), &disk])));
        let at = node.path("elsewhere");
        let use_it = || {
            mounts::mkfs(&piece, "ext4")?;
            mounts::device(&piece, &at, "ext4")?;
            std::fs::write(at.join("precious"), "not yours")?;
            let at = at.clone();
            // Not lazily: it is still used then.
            Ok(Used(Box::new(move || Ok(nix::mount::umount(&at)?))))
        };
        let is_intact = || {
            ensure!(std::fs::read(at.join("precious"))? == b"not yours");
            Ok(())
        };
        ensure_left_alone(&node, &device, use_it, is_intact).await
    });
}
