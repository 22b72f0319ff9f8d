//! Wipes that are interrupted by a kill of the daemon, on a real control plane with real devices: they go on where they
//! were, and only where that is known to be right.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "support/plane_node.rs"]
mod node;

use std::fs::{File, OpenOptions};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use local_volume_provisioner::scrub::checkpoint::Cadence;
use node::{Node, WORLDS, in_worlds, phase};
use serde_json::{Value, json};
use testkit::mounts::LoopDevice;

const CHECKPOINT: &str = "local-volume-provisioner/checkpoint";
/// Tells a process of this test that it is a daemon, and which.
const CHILD: &str = "TEST_OF_RESUMED_WIPES";
const MIB: u64 = 1 << 20;
const SIZE: u64 = 1024 * MIB;
/// A wipe takes eight seconds at this rate: long enough to be killed in the middle.
const SLOW: u64 = 128 * MIB;

/// A daemon in a process of its own, which can be killed at any instruction. It ends with its standard input.
struct Daemon(Child);

impl Daemon {
    fn start(node: &Node, bytes_per_second: Option<u64>) -> Result<Self> {
        let settings = node.settings.borrow();
        let child = json!({
            "node": node.name,
            "config": settings.config_dir,
            "host": settings.scan.host_mountinfo.exists(),
            "kubeconfig": node.plane.kubeconfig_of(node.world.user)?,
            "rate": bytes_per_second,
        });
        let log = OpenOptions::new().create(true).append(true).open(node.path("log"))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["--exact", "the_daemon", "--nocapture", "--test-threads=1"])
            .env(CHILD, child.to_string())
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self(child))
    }

    /// `kill -9`.
    fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What [`Daemon`] runs; no test.
#[test]
fn the_daemon() {
    let Ok(child) = std::env::var(CHILD) else { return };
    let child: Value = serde_json::from_str(&child).unwrap();
    let text = |key: &str| child[key].as_str().unwrap().to_owned();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let kubeconfig = text("kubeconfig");
        let client = local_volume_provisioner::api::connect_by(Path::new(&kubeconfig)).await;
        let client = client.unwrap();
        let mut settings = node::settings(&text("node"), Path::new(&text("config")));
        settings.scrub.bytes_per_second = child["rate"].as_u64().and_then(NonZeroU64::new);
        settings.scrub.checkpoints = Cadence {
            period: Duration::from_millis(50),
            bytes: 32 * MIB,
        };
        settings.scan.own_mountinfo = "/proc/self/mountinfo".into();
        if child["host"].as_bool().unwrap() {
            settings.scan.host_mountinfo = "/proc/self/mountinfo".into();
        }
        let ended = async {
            let mut byte = [0];
            let _ = tokio::io::AsyncReadExt::read(&mut tokio::io::stdin(), &mut byte).await;
        };
        local_volume_provisioner::run::run(settings, client, ended)
            .await
            .unwrap();
    });
}

/// A class with a released device of a tenant, in the middle of its wipe, and the daemon killed.
struct Interrupted {
    class: String,
    device: LoopDevice,
    pv: PersistentVolume,
    /// Up to here it is wiped, as far as the test knows.
    wiped: u64,
}

/// Where a tenant's data is: in every 16 MiB.
fn tenants_places() -> impl Iterator<Item = u64> {
    (0..SIZE / (16 * MIB)).map(|index| index * 16 * MIB + 4096 * (index % 7))
}

fn soil(device: &Path, places: impl Iterator<Item = u64>) -> Result<()> {
    let device = OpenOptions::new().write(true).open(device)?;
    for place in places {
        device.write_all_at(&[0xaa; 4096], place)?;
    }
    Ok(device.sync_all()?)
}

/// The first byte of a device that is not zero.
fn first_data(device: &Path) -> Result<Option<u64>> {
    let (device, zeros, mut buffer) = (File::open(device)?, vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..SIZE).step_by(1 << 20) {
        device.read_exact_at(&mut buffer, at)?;
        if buffer != zeros {
            let index = buffer.iter().position(|byte| *byte != 0).unwrap();
            return Ok(Some(at + index as u64));
        }
    }
    Ok(None)
}

fn checkpoint(pv: &PersistentVolume) -> Option<Value> {
    serde_json::from_str(pv.annotations().get(CHECKPOINT)?).ok()
}

fn noted_offset(pv: &PersistentVolume) -> u64 {
    checkpoint(pv)
        .and_then(|noted| noted["offset"].as_u64())
        .unwrap_or_default()
}

fn log(node: &Node) -> Result<String> {
    Ok(std::fs::read_to_string(node.path("log"))?)
}

/// Waits until the daemon has said something as often as this.
async fn said(node: &Node, what: &str, times: usize) -> Result<()> {
    let end = tokio::time::Instant::now() + node::DEADLINE;
    while log(node)?.matches(what).count() < times {
        ensure!(
            tokio::time::Instant::now() < end,
            "the log does not say {what:?}: {}",
            log(node)?
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Runs a test in these worlds, and tells the daemon's log if it fails.
fn on_nodes<F: AsyncFn(&Node) -> Result<()> + Send + Sync + Copy + 'static>(
    name: &str,
    worlds: &[node::World],
    test: F,
) {
    in_worlds(name, worlds, async move |node: Rc<Node>| {
        let result = test(&node).await;
        result.with_context(|| log(&node).unwrap_or_default())
    });
}

async fn released(node: &Node, class: &str, device: &LoopDevice, claim: &str) -> Result<()> {
    node.claim_of_mode(claim, class, "Block").await?;
    soil(device.path(), tenants_places())?;
    node.release(claim).await
}

async fn interrupted(node: &Node) -> Result<Interrupted> {
    let class = node.class("Delete", "  volumeMode: Block\n").await?;
    let device = LoopDevice::with_file(&node.path("backing.img"), SIZE)?;
    symlink(device.path(), node.entry(&class, "disk1"))?;
    let daemon = Daemon::start(node, Some(SLOW))?;
    let pv = node.available("disk1").await?;
    released(node, &class, &device, "a").await?;
    let middle = 256 * MIB;
    let pv = if node.patches() {
        let noted = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| noted_offset(pv) >= middle);
        node.until("disk1", "a checkpoint", noted).await?.context("no PV")?
    } else {
        let end = tokio::time::Instant::now() + node::DEADLINE;
        while first_data(device.path())?.is_some_and(|at| at < middle) {
            ensure!(tokio::time::Instant::now() < end, "not wiped: {}", log(node)?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        pv
    };
    daemon.kill()?;
    let data = first_data(device.path())?.context("it was wiped to its end")?;
    let wiped = data - data % (16 * MIB);
    ensure!(
        wiped >= middle && wiped >= noted_offset(&pv),
        "noted before it was wiped"
    );
    Ok(Interrupted {
        class,
        device,
        pv,
        wiped,
    })
}

async fn ends_clean(node: &Node, wipe: &Interrupted) -> Result<PersistentVolume> {
    let again = node.again("disk1", &wipe.pv).await?;
    let data = first_data(wipe.device.path())?;
    ensure!(data.is_none(), "published with data at {data:?}");
    ensure!(!again.annotations().contains_key(CHECKPOINT));
    Ok(again)
}

#[test]
fn a_wipe_goes_on_where_it_was_when_its_daemon_was_killed() {
    on_nodes("a_wipe_goes_on", &WORLDS[..2], async |node: &Node| {
        let wipe = interrupted(node).await?;
        let noted = node.published().await?.remove("disk1").context("no PV")?;
        let offset = noted_offset(&noted);
        let _daemon = Daemon::start(node, Some(SLOW))?;
        said(node, "an interrupted wipe is resumed", 1).await?;
        ensure!(
            log(node)?.contains(&format!("pass=1 offset={offset}")),
            "{}",
            log(node)?
        );
        // And once more, further on.
        let further = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| noted_offset(pv) > offset + 64 * MIB);
        node.until("disk1", "a later checkpoint", further).await?;
        drop(_daemon);
        let _daemon = Daemon::start(node, None)?;
        said(node, "an interrupted wipe is resumed", 2).await?;
        ends_clean(node, &wipe).await?;
        // What the daemon has written itself starts nothing anew.
        ensure!(log(node)?.matches("scrub starts").count() == 3, "{}", log(node)?);
        ensure!(!log(node)?.contains("starts over"), "{}", log(node)?);
        Ok(())
    });
}

#[test]
fn without_the_permission_to_patch_it_starts_over() {
    on_nodes("without_patch", &WORLDS[2..3], async |node: &Node| {
        let wipe = interrupted(node).await?;
        soil(wipe.device.path(), std::iter::once(wipe.wiped / 2 + 5 * MIB))?;
        let _daemon = Daemon::start(node, None)?;
        ends_clean(node, &wipe).await?;
        ensure!(!log(node)?.contains("resumed"), "{}", log(node)?);
        Ok(())
    });
}

#[test]
fn a_device_that_somebody_has_used_meanwhile_is_wiped_from_its_start() {
    on_nodes("used_meanwhile", &WORLDS[..1], async |node: &Node| {
        let wipe = interrupted(node).await?;
        let user = local_volume_provisioner::devices::claim_exclusive(wipe.device.path())?;
        let _daemon = Daemon::start(node, None)?;
        node.event(&wipe.pv, "VolumeFailedDelete", "in use").await?;
        // A single block, where no sample need be.
        user.file.write_all_at(&[0xaa; 512], wipe.wiped / 2 + 5 * MIB)?;
        user.file.sync_all()?;
        let forgotten = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| checkpoint(pv).is_none());
        node.until("disk1", "the checkpoint is gone", forgotten).await?;
        drop(user);
        ends_clean(node, &wipe).await?;
        ensure!(!log(node)?.contains("resumed"), "{}", log(node)?);
        Ok(())
    });
}

#[test]
fn data_where_the_checkpoint_says_that_there_is_none_is_found() {
    on_nodes("data_before_the_checkpoint", &WORLDS[..1], async |node: &Node| {
        let wipe = interrupted(node).await?;
        let places = (0..wipe.wiped / MIB).map(|mib| mib * MIB);
        // A tenant's files, of every MiB one tenth.
        soil(
            wipe.device.path(),
            places.flat_map(|mib| (0..25).map(move |block| mib + block * 4096)),
        )?;
        let _daemon = Daemon::start(node, None)?;
        ends_clean(node, &wipe).await?;
        ensure!(log(node)?.contains("what it says is wiped is not"), "{}", log(node)?);
        Ok(())
    });
}

#[test]
fn another_device_behind_the_name_has_nothing_to_do_with_it() {
    on_nodes("another_device", &WORLDS[..1], async |node: &Node| {
        let wipe = interrupted(node).await?;
        let other = LoopDevice::with_file(&node.path("other.img"), SIZE)?;
        soil(other.path(), std::iter::once(0))?;
        let entry = node.entry(&wipe.class, "disk1");
        std::fs::remove_file(&entry)?;
        symlink(other.path(), &entry)?;
        let _daemon = Daemon::start(node, None)?;
        node.event(&wipe.pv, "VolumeFailedDelete", "other storage").await?;
        let forgotten = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| checkpoint(pv).is_none());
        node.until("disk1", "the checkpoint is gone", forgotten).await?;
        ensure!(first_data(other.path())? == Some(0), "the other device was touched");
        // The operator takes it: all of it is wiped.
        soil(other.path(), std::iter::once(wipe.wiped / 2 + 5 * MIB))?;
        let adopt = json!({"metadata": {"annotations": {"local-volume-provisioner/resolve": "adopt"}}});
        node.patch(&wipe.pv, adopt).await?;
        node.again("disk1", &wipe.pv).await?;
        ensure!(first_data(other.path())?.is_none());
        ensure!(!log(node)?.contains("resumed"), "{}", log(node)?);
        Ok(())
    });
}

#[test]
fn a_checkpoint_of_an_earlier_release_is_not_used() {
    on_nodes("an_earlier_release", &WORLDS[..1], async |node: &Node| {
        let wipe = interrupted(node).await?;
        let former = node.published().await?.remove("disk1").context("no PV")?;
        let former = checkpoint(&former).context("no checkpoint")?;
        let daemon = Daemon::start(node, None)?;
        let second = ends_clean(node, &wipe).await?;
        ensure!(second.name_any() == wipe.pv.name_any());
        node.claim_of_mode("b", &wipe.class, "Block").await?;
        soil(wipe.device.path(), tenants_places())?;
        daemon.kill()?;
        node.release("b").await?;
        let is_released = |pv: Option<&PersistentVolume>| pv.is_some_and(|pv| phase(pv) == "Released");
        node.until("disk1", "Released", is_released).await?;
        // Somebody puts it on the PV of the second release, and deletes that PV.
        let mut noted = former;
        noted["pv"] = json!(second.uid());
        let annotations = json!({"metadata": {"annotations": {CHECKPOINT: noted.to_string()}}});
        node.patch(&second, annotations).await?;
        node.delete(&second).await?;
        let resumed = log(node)?.matches("resumed").count();
        let _daemon = Daemon::start(node, None)?;
        let wipe = Interrupted { pv: second, ..wipe };
        ends_clean(node, &wipe).await?;
        ensure!(log(node)?.contains("it is of an earlier release"), "{}", log(node)?);
        ensure!(log(node)?.matches("resumed").count() == resumed);
        Ok(())
    });
}
