//! Many volumes at once: there when a program starts, and released together; and the same by a raw client.
//!
//! By turns, and several times: what an API server does in a second differs by half from one time to the next, and the first
//! burst of a fresh one is the slowest whoever makes it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::PersistentVolume;
use testkit::plane::Plane;

use crate::Scale;
use crate::cluster::Cluster;
use crate::life::{QUIET, available, entries, milliseconds};
use crate::program::{Binary, Running};
use crate::report::Report;

/// How many passes over what nothing happens to are measured together, and how far apart, so that no two become one.
const LOOKS: usize = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

const START_FLOOR: &str = "a client with 16 new connections";
const RELEASE_FLOOR: &str = "a client that answers every event at once";

/// Measures all programs, and the raw client beside each; what it took beside the provisioner is the floor.
pub(crate) async fn measure(
    plane: &Plane,
    dir: &Path,
    binaries: &[Binary],
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let start = format!("{} volumes at start, all PVs", scale.volumes);
    let release = format!("{} released at once, all Available again", scale.released);
    let floor = Cluster::new(plane, dir, "burst-floor").await?;
    make_all(&floor, scale).await?; // The first, which is not counted.
    floor.clear_pvs().await?;
    let (mut floors_of_start, mut floors_of_release) = (Vec::new(), Vec::new());
    for (column, binary) in binaries.iter().enumerate() {
        let cluster = Cluster::new(plane, dir, &format!("burst{column}")).await?;
        entries(0, scale.volumes).try_for_each(|entry| cluster.mount(&entry))?;
        let (mut starts, mut releases, mut running) = (Vec::new(), Vec::new(), None);
        for _ in 0..scale.rounds {
            // One side's PVs are cleared before the other is timed: controllers still write to new PVs.
            drop(running.take());
            cluster.clear_pvs().await?;
            let took = make_all(&floor, scale).await?;
            floors_of_start.extend((column == 0).then_some(took));
            floor.clear_pvs().await?;
            let (program, took) = publish_all(&cluster, binary, scale).await?;
            starts.push(took);
            running = Some(program);
        }
        let Some(mut running) = running else { continue };
        report.times(Some(column), &start, starts, "");
        report.add(column, "CPU of the last start", "s", running.cpu()?.as_secs_f64());
        tokio::time::sleep(QUIET).await;
        let memory = running.memory()?;
        let name = format!("resident memory, {} volumes", scale.volumes);
        report.add(column, &name, "MB", memory.resident);
        let name = format!("of that anonymous, {} volumes", scale.volumes);
        report.add(column, &name, "MB", memory.anonymous);
        unchanged(&cluster, &running, scale, report, column).await?;
        make_all(&floor, scale).await?;
        let recycler = floor.recycle_at_once();
        for round in 0..scale.rounds {
            let took = release_some(&floor, scale, round).await?;
            floors_of_release.extend((column == 0).then_some(took));
            let cpu = running.cpu()?;
            releases.push(release_some(&cluster, scale, round).await?);
            if round + 1 == scale.rounds {
                let cpu = running.cpu()? - cpu;
                report.add(column, "CPU of the last release", "s", cpu.as_secs_f64());
            }
        }
        recycler.abort();
        report.times(Some(column), &release, releases, "");
        running.check()?;
        drop(running);
        cluster.clear().await?;
        floor.clear_pvs().await?;
    }
    report.times(None, &start, floors_of_start, START_FLOOR);
    report.times(None, &release, floors_of_release, RELEASE_FLOOR);
    floor.clear().await
}

/// A raw client makes all PVs.
async fn make_all(cluster: &Cluster<'_>, scale: &Scale) -> Result<Duration> {
    let objects: Vec<PersistentVolume> = entries(0, scale.volumes)
        .map(|entry| cluster.pv(&entry))
        .collect::<Result<_>>()?;
    let began = Instant::now();
    cluster.connect_and_create(objects).await?;
    let took = began.elapsed();
    available(cluster, scale.volumes).await?;
    Ok(took)
}

/// A program starts, and makes all PVs.
async fn publish_all(cluster: &Cluster<'_>, binary: &Binary, scale: &Scale) -> Result<(Running, Duration)> {
    cluster.configure()?;
    let mut running = binary.start(&cluster.name, &cluster.kubeconfig(None)?, &cluster.log())?;
    let mut seen = cluster.seen.clone();
    let there = seen
        .until("all PVs are there", |pvs| pvs.len() == scale.volumes)
        .await?;
    available(cluster, scale.volumes).await?;
    running.check()?;
    let took = there - running.began;
    Ok((running, took))
}

/// Claims of some PVs, others in each round, are bound and then deleted.
async fn release_some(cluster: &Cluster<'_>, scale: &Scale, round: usize) -> Result<Duration> {
    let names = cluster.seen.now().into_keys();
    let names: Vec<String> = names.skip(round * scale.released).take(scale.released).collect();
    cluster.bind(&names).await?;
    cluster.recycle(&names).await
}

/// What a pass costs that shows nothing new. Something that changes nothing leads to each: the mode of the directory.
async fn unchanged(
    cluster: &Cluster<'_>,
    running: &Running,
    scale: &Scale,
    report: &mut Report,
    column: usize,
) -> Result<()> {
    let Some(before) = running.passes().await? else {
        return Ok(()); // A program that does not count its passes.
    };
    let cpu = running.cpu()?;
    for _ in 0..LOOKS {
        cluster.touch()?;
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    let cpu = running.cpu()? - cpu;
    let passes = running.passes().await?.unwrap_or_default() - before;
    anyhow::ensure!(passes > 0.0, "no change of its directory has led to a pass");
    let name = format!("a pass over {} unchanged volumes, CPU", scale.volumes);
    report.add(column, &name, "ms", milliseconds(cpu) / passes);
    Ok(())
}
