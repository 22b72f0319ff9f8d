//! A program on a node of the usual size: its start, and what it costs while nothing happens.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Scale;
use crate::cluster::{Cluster, Pvs, is_free};
use crate::program::{Binary, Running};
use crate::proxy::Proxy;
use crate::report::Report;

/// Volumes of a node of the usual size.
pub(crate) const USUAL: usize = 20;
/// Longer than the first period between two looks.
pub(crate) const QUIET: Duration = Duration::from_secs(15);

pub(crate) const FIRST_PV: &str = "start to first PV";
const LATE_MOUNT_TO_PV: &str = "mount to PV, after minutes of quiet";

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn entries(from: usize, to: usize) -> impl Iterator<Item = String> {
    (from..to).map(|number| format!("disk{number:05}"))
}

/// Waits until there are so many PVs, and all are Available.
pub(crate) async fn available(cluster: &Cluster<'_>, count: usize) -> Result<Instant> {
    let all = |pvs: &Pvs| pvs.len() == count && pvs.values().all(is_free);
    cluster
        .seen
        .clone()
        .until(&format!("{count} PVs are Available"), all)
        .await
}

/// What a program has done until all its volumes are Available.
pub(crate) struct Started {
    pub(crate) running: Running,
    /// What it talks through.
    pub(crate) proxy: Proxy,
    /// Until it served its metrics.
    pub(crate) serves: Duration,
    pub(crate) first_pv: Duration,
    pub(crate) cpu: Duration,
    /// In kB.
    pub(crate) received: f64,
}

/// Starts a program on a node of the usual size.
pub(crate) async fn begin(cluster: &Cluster<'_>, binary: &Binary) -> Result<Started> {
    entries(0, USUAL).try_for_each(|entry| cluster.mount(&entry))?;
    let proxy = Proxy::to(cluster.plane.server()).await?;
    let mut running = binary.start(&cluster.name, &cluster.kubeconfig(Some(proxy.address))?, &cluster.log())?;
    let serves = running.serves().await?;
    let mut seen = cluster.seen.clone();
    let first = seen.until("there is a PV", |pvs| !pvs.is_empty()).await?;
    available(cluster, USUAL).await?;
    Ok(Started {
        serves,
        first_pv: first - running.began,
        cpu: running.cpu()?,
        received: proxy.received() as f64 / 1e3,
        running,
        proxy,
    })
}

/// What a start costs, and the memory after it.
pub(crate) async fn start(
    cluster: &Cluster<'_>,
    binary: &Binary,
    report: &mut Report,
    column: usize,
) -> Result<Started> {
    let mut started = begin(cluster, binary).await?;
    let running = &mut started.running;
    report.add(column, "start to /metrics", "ms", milliseconds(started.serves));
    report.add(column, FIRST_PV, "ms", milliseconds(started.first_pv));
    report.add(column, "CPU of the start", "ms", milliseconds(started.cpu));
    report.add(column, "received at start", "kB", started.received);
    tokio::time::sleep(QUIET).await;
    let memory = running.memory()?;
    report.add(column, "resident memory, 20 volumes", "MB", memory.resident);
    report.add(column, "of that anonymous", "MB", memory.anonymous);
    let sizes = cluster
        .seen
        .now()
        .into_values()
        .map(|pv| serde_json::to_vec(&pv).map(|json| json.len()));
    if let Some(size) = sizes.collect::<Result<Vec<_>, _>>()?.into_iter().max() {
        report.add(column, "a PV as JSON", "B", size as f64);
    }
    running.check()?;
    Ok(started)
}

/// Starts it with the usual volumes, and measures what it costs while nothing happens.
pub(crate) async fn idle(
    cluster: &Cluster<'_>,
    binary: &Binary,
    scale: &Scale,
    report: &mut Report,
    column: usize,
) -> Result<()> {
    let started = start(cluster, binary, report, column).await?;
    idle_window(&started, scale.window, "idle", report, column).await?;
    if let Some(rest) = scale.settled {
        tokio::time::sleep(rest).await;
        idle_window(&started, scale.window, "idle for long", report, column).await?;
        // No connection is left by then but those of the watches.
        let (mut seen, count) = (cluster.seen.clone(), cluster.seen.now().len() + 1);
        let began = Instant::now();
        cluster.mount("late")?;
        let there = seen.until("its PV is there", |pvs| pvs.len() == count).await?;
        report.add(column, LATE_MOUNT_TO_PV, "ms", milliseconds(there - began));
    }
    Ok(())
}

/// What it costs in this time, per minute.
async fn idle_window(
    started: &Started,
    window: Duration,
    what: &str,
    report: &mut Report,
    column: usize,
) -> Result<()> {
    let (running, proxy) = (&started.running, &started.proxy);
    let (cpu, switches, sent) = (running.cpu()?, running.context_switches()?, proxy.sent());
    tokio::time::sleep(window).await;
    let minutes = window.as_secs_f64() / 60.0;
    let cpu = milliseconds(running.cpu()? - cpu) / minutes;
    report.add(column, &format!("{what}, CPU per minute"), "ms", cpu);
    let switches = running.context_switches()?.saturating_sub(switches) as f64 / minutes;
    report.add(column, &format!("{what}, context switches per minute"), "", switches);
    let sent = (proxy.sent() - sent) as f64 / minutes;
    report.add(
        column,
        &format!("{what}, bytes to the API server per minute"),
        "B",
        sent,
    );
    Ok(())
}
