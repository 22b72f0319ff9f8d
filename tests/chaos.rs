//! Random histories on a real control plane with real mounts: volumes are bound, written to, released, unmounted and
//! edited, several at once, while the daemon is killed at random moments. See `hack/chaos`.
//!
//! CHAOS_CYCLES: so many lives of a volume (default 300). CHAOS_SEED: makes the same choices again; the moments at which
//! they meet each other are another time's.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "support/plane_node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;
#[path = "support/volume.rs"]
mod volume;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use node::{Node, WORLDS, World, is_surely_unused, phase};
use process::{Daemon, beside_each_other};
use serde_json::json;
use volume::{Guard, Volume};

/// Directories of each node, besides one device.
const DIRECTORIES: usize = 3;
const DEVICE_BYTES: u64 = 16 << 20;

/// What all nodes share.
struct Chaos {
    seed: u64,
    cycles: u32,
    begun: AtomicU32,
    ended: AtomicU32,
    killed: AtomicU32,
    edits: AtomicU32,
    since: Instant,
}

impl Chaos {
    /// Whether another life is to be lived.
    fn next(&self) -> bool {
        self.begun.fetch_add(1, Ordering::Relaxed) < self.cycles
    }

    fn ended(&self) {
        let ended = self.ended.fetch_add(1, Ordering::Relaxed) + 1;
        if ended.is_multiple_of((self.cycles / 10).max(1)) {
            eprintln!("chaos: {ended} of {} cycles, {:.0?}", self.cycles, self.since.elapsed());
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

#[test]
fn nothing_leaks_and_nothing_is_lost() {
    let Some(plane) = node::plane_for("chaos") else { return };
    let chaos = Chaos {
        seed: variable("CHAOS_SEED").unwrap_or_else(|| u64::from(fastrand::u32(..))),
        cycles: u32::try_from(variable("CHAOS_CYCLES").unwrap_or(300)).unwrap(),
        begun: AtomicU32::new(0),
        ended: AtomicU32::new(0),
        killed: AtomicU32::new(0),
        edits: AtomicU32::new(0),
        since: Instant::now(),
    };
    eprintln!("chaos: seed {}, {} cycles", chaos.seed, chaos.cycles);
    let worlds: Vec<_> = WORLDS.into_iter().zip(1..).collect();
    let failed = beside_each_other(
        WORLDS.len(),
        worlds,
        |(world, number)| node::run(plane, *world, async |node| in_a_world(node, &chaos, *number).await),
        |(world, _): &(World, u64)| format!("{world:?}"),
    );
    let (ended, killed, edits) = (&chaos.ended, &chaos.killed, &chaos.edits);
    eprintln!(
        "chaos: {ended:?} cycles, {killed:?} kills, {edits:?} edits and mounts in {:.0?}; {} nodes failed; CHAOS_SEED={}",
        chaos.since.elapsed(),
        failed.len(),
        chaos.seed
    );
    assert!(failed.is_empty(), "seed {}:\n{}", chaos.seed, failed.join("\n\n"));
}

/// What the daemons are armed with, besides being killed from outside: now and then a fail point, where there are any.
fn arms(mut rng: Rng) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || {
        #[cfg(feature = "failpoints")]
        if rng.bool() {
            let point = rng.choice(local_volume_provisioner::failpoint::POINTS)?;
            return Some(format!("{point}@{}=kill", rng.u32(1..4)));
        }
        rng.bool();
        Some(String::new())
    })
}

async fn in_a_world(node: Rc<Node>, chaos: &Chaos, number: u64) -> Result<()> {
    let mut rng = Rng::with_seed(chaos.seed.wrapping_mul(31).wrapping_add(number));
    let mut volumes = Vec::new();
    for at in 0..DIRECTORIES {
        let class = node.class("Delete", "").await?;
        volumes.push(Volume::directory(&node, &class, &format!("disk{at}"))?);
    }
    let class = node.class("Delete", "  volumeMode: Block\n").await?;
    volumes.push(Volume::device(&node, &class, "device", DEVICE_BYTES)?);
    let kept = Volume::directory(&node, &node.class("Delete", "").await?, "kept")?;
    let guards: Vec<_> = volumes.iter().map(Guard::over).collect();
    let daemon = Rc::new(Daemon::start(&node, arms(rng.fork()))?);
    let kept_pv = node.claim("kept", &kept.class).await?;
    kept.soil()?;
    let killer = tokio::task::spawn_local(killer(Rc::clone(&daemon), rng.fork()));
    let lives = volumes.iter().map(|volume| {
        let (daemon, rng) = (Rc::clone(&daemon), RefCell::new(rng.fork()));
        async move { lives(volume, &daemon, chaos, rng.into_inner()).await }
    });
    let ended = futures::future::try_join_all(lives).await;
    killer.abort();
    chaos.killed.fetch_add(daemon.killed(), Ordering::Relaxed);
    ended.with_context(|| format!("the daemon's log:\n{}", daemon.log()))?;
    for guard in &guards {
        guard.check()?;
    }
    kept.intact()?;
    let still = kept.pvs().await?;
    ensure!(
        still.len() == 1 && still[0].uid() == kept_pv.uid() && phase(&still[0]) == "Bound",
        "the PV of the volume that is kept: {still:?}"
    );
    daemon.stop().await?;
    node.clear().await
}

/// Kills the daemon, sometimes soon after it has started, sometimes when it has had time for some work.
async fn killer(daemon: Rc<Daemon>, mut rng: Rng) {
    loop {
        let milliseconds = if rng.bool() { 0..600 } else { 1000..4000 };
        tokio::time::sleep(Duration::from_millis(rng.u64(milliseconds))).await;
        let _ = daemon.kill();
    }
}

/// Lives of one volume, one after the other.
async fn lives(volume: &Rc<Volume>, daemon: &Daemon, chaos: &Chaos, mut rng: Rng) -> Result<()> {
    let mut number = 0;
    while chaos.next() {
        number += 1;
        let name = format!("{}-{number}", volume.entry);
        let life = life(volume, &name, chaos, &mut rng).await;
        life.with_context(|| format!("life {number} of {}", volume.entry))?;
        daemon.check()?;
        chaos.ended();
    }
    Ok(())
}

/// Free, bound, written to, released, free again; with edits and changes of mounts at random moments.
async fn life(volume: &Rc<Volume>, name: &str, chaos: &Chaos, rng: &mut Rng) -> Result<()> {
    let node = &volume.node;
    if rng.u8(..4) == 0 {
        let free = node.available(&volume.entry).await?;
        disturb(volume, Some(&free), is_surely_unused(&free), chaos, rng).await?;
    }
    let bound = node.claim_of_mode(name, &volume.class, volume.mode()).await?;
    ensure!(volume.left()?.is_empty(), "bound with {:?}", volume.left()?);
    volume.soil()?;
    // Until it is noted on the PV that it was used, nothing but what is seen says so.
    if node.patches() {
        let used = |pv: Option<&PersistentVolume>| {
            pv.is_some_and(|pv| pv.annotations().contains_key("local-volume-provisioner/used"))
        };
        node.until(&volume.entry, "marked as used", used).await?;
    }
    if rng.u8(..2) == 0 {
        disturb(volume, Some(&bound), node.patches(), chaos, rng).await?;
    }
    volume.intact()?;
    node.release(name).await?;
    if rng.u8(..2) == 0 {
        tokio::time::sleep(Duration::from_millis(rng.u64(0..400))).await;
        let now = volume.pvs().await?.pop();
        disturb(volume, now.as_ref(), node.patches(), chaos, rng).await?;
    }
    node.again(&volume.entry, &bound).await?;
    ensure!(volume.left()?.is_empty(), "published with {:?}", volume.left()?);
    let pvs = volume.pvs().await?;
    ensure!(pvs.len() == 1, "{} PVs for one volume", pvs.len());
    Ok(())
}

/// One random edit or change of mounts. `may_delete`: the PV's finalizer, or that it was never used, sees to it that
/// its end is noticed by a daemon that was not there.
async fn disturb(
    volume: &Volume,
    pv: Option<&PersistentVolume>,
    may_delete: bool,
    chaos: &Chaos,
    rng: &mut Rng,
) -> Result<()> {
    chaos.edits.fetch_add(1, Ordering::Relaxed);
    let node = &volume.node;
    let patch = async |patch| {
        if let Some(pv) = pv {
            // What is gone by now cannot be edited.
            drop(node.patch(pv, patch).await);
        }
    };
    match rng.u8(..6) {
        0..=2 => {
            volume.unmount()?;
            tokio::time::sleep(Duration::from_millis(rng.u64(0..1500))).await;
            volume.mount()?;
        }
        3 => patch(json!({"metadata": {"labels": {"local-volume-provisioner/node": null}}})).await,
        4 => {
            const ID: &str = "local-volume-provisioner/volume-id";
            let id = pv.and_then(|pv| pv.annotations().get(ID));
            patch(json!({"metadata": {"annotations": {ID: null}}})).await;
            tokio::time::sleep(Duration::from_millis(rng.u64(0..1500))).await;
            patch(json!({"metadata": {"annotations": {ID: id}}})).await;
        }
        _ => {
            if let Some(pv) = pv.filter(|_| may_delete) {
                drop(node.delete(pv).await);
            }
        }
    }
    Ok(())
}
