//! A program's life on a node of the usual size: its start, mounts and claims; and what the same takes whoever does it.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use local_volume_provisioner::api::connect_by;

use crate::Scale;
use crate::cluster::{Cluster, Pvs, is_free};
use crate::program::{Binary, Running};
use crate::proxy::Proxy;
use crate::report::Report;

/// Volumes of a node of the usual size.
pub(crate) const USUAL: usize = 20;
/// What a start leaves behind has settled by then.
const SETTLE: Duration = Duration::from_secs(3);
/// Longer than the first period between two looks.
pub(crate) const QUIET: Duration = Duration::from_secs(15);

const FIRST_PV: &str = "start to first PV";
const MOUNT_TO_PV: &str = "mount to PV";
const LATE_MOUNT_TO_PV: &str = "mount to PV, after minutes of quiet";
const MOUNT_TO_AVAILABLE: &str = "mount to Available";
const RECYCLED: &str = "PVC deleted to Available again, empty volume";

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

/// Waits until the controllers have written all that they write to new PVs (20 a second), and for [`QUIET`] after that.
pub(crate) async fn quiet(cluster: &Cluster<'_>) -> Result<()> {
    let protected = |pv: &PersistentVolume| pv.finalizers().iter().any(|name| name == "kubernetes.io/pv-protection");
    let all = |pvs: &Pvs| pvs.values().all(protected);
    cluster.seen.clone().until("the PVs are protected", all).await?;
    tokio::time::sleep(QUIET).await;
    Ok(())
}

/// A node of the usual size, and its program with the proxy that it talks through.
pub(crate) async fn start(
    cluster: &Cluster<'_>,
    binary: &Binary,
    report: &mut Report,
    column: usize,
) -> Result<(Running, Proxy)> {
    entries(0, USUAL).try_for_each(|entry| cluster.mount(&entry))?;
    let proxy = Proxy::to(cluster.plane.server()).await?;
    let mut running = binary.start(&cluster.name, &cluster.kubeconfig(Some(proxy.address))?, &cluster.log())?;
    report.add(column, "start to /metrics", "ms", milliseconds(running.serves().await?));
    let mut seen = cluster.seen.clone();
    let first = seen.until("there is a PV", |pvs| !pvs.is_empty()).await?;
    report.add(column, FIRST_PV, "ms", milliseconds(first - running.began));
    available(cluster, USUAL).await?;
    quiet(cluster).await?;
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
    Ok((running, proxy))
}

pub(crate) async fn measure(
    cluster: &Cluster<'_>,
    binary: &Binary,
    scale: &Scale,
    report: &mut Report,
    column: usize,
) -> Result<()> {
    drop(idle(cluster, binary, scale, report, column).await?);
    let _running = binary.start(&cluster.name, &cluster.kubeconfig(None)?, &cluster.log())?;
    tokio::time::sleep(SETTLE).await;
    mount_some(cluster, scale, report, column).await?;
    recycle_some(cluster, scale, report, Some(column)).await?;
    Ok(())
}

/// Starts it with the usual volumes, and measures what it costs while nothing happens.
pub(crate) async fn idle(
    cluster: &Cluster<'_>,
    binary: &Binary,
    scale: &Scale,
    report: &mut Report,
    column: usize,
) -> Result<Running> {
    let (running, proxy) = start(cluster, binary, report, column).await?;
    idle_window(&running, &proxy, scale.window, "idle", report, column).await?;
    if let Some(rest) = scale.settled {
        tokio::time::sleep(rest).await;
        idle_window(&running, &proxy, scale.window, "idle for long", report, column).await?;
        // No connection is left by then but those of the watches.
        let (mut seen, count) = (cluster.seen.clone(), cluster.seen.now().len() + 1);
        let began = Instant::now();
        cluster.mount("late")?;
        let there = seen.until("its PV is there", |pvs| pvs.len() == count).await?;
        report.add(column, LATE_MOUNT_TO_PV, "ms", milliseconds(there - began));
    }
    Ok(running)
}

/// What it costs in this time, per minute.
async fn idle_window(
    running: &Running,
    proxy: &Proxy,
    window: Duration,
    what: &str,
    report: &mut Report,
    column: usize,
) -> Result<()> {
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

/// One volume after the other is mounted.
async fn mount_some(cluster: &Cluster<'_>, scale: &Scale, report: &mut Report, column: usize) -> Result<()> {
    let (mut to_pv, mut to_available) = (Vec::new(), Vec::new());
    let before = cluster.seen.now().len();
    for (count, entry) in entries(USUAL, USUAL + scale.mounts).enumerate() {
        let count = before + count + 1;
        let mut seen = cluster.seen.clone();
        let began = Instant::now();
        cluster.mount(&entry)?;
        to_pv.push(seen.until("its PV is there", |pvs| pvs.len() == count).await? - began);
        to_available.push(available(cluster, count).await? - began);
    }
    report.times(Some(column), MOUNT_TO_PV, to_pv, "");
    report.times(Some(column), MOUNT_TO_AVAILABLE, to_available, "");
    Ok(())
}

/// One claim after the other is bound and deleted.
async fn recycle_some(cluster: &Cluster<'_>, scale: &Scale, report: &mut Report, column: Option<usize>) -> Result<()> {
    let names: Vec<String> = cluster.seen.now().into_keys().take(scale.claims).collect();
    let mut times = Vec::new();
    for name in names {
        let name = [name];
        cluster.bind(&name).await?;
        times.push(cluster.recycle(&name).await?);
    }
    report.times(column, RECYCLED, times, "a client that answers every event at once");
    Ok(())
}

/// What the same takes whoever does it.
pub(crate) async fn floors(cluster: &Cluster<'_>, scale: &Scale, report: &mut Report) -> Result<()> {
    let what = "one request of each kind, and a create";
    let began = Instant::now();
    let client = connect_by(&cluster.plane.kubeconfig_of("full")?).await?;
    Api::<Node>::all(client.clone()).get(&cluster.name).await?;
    let own = ListParams::default().labels("bench=none");
    Api::<PersistentVolume>::all(client).list(&own).await?;
    cluster.create(vec![cluster.pv("disk00000")?]).await?;
    report.floor(FIRST_PV, "ms", milliseconds(began.elapsed()), what);
    let (mut to_pv, mut to_available) = (Vec::new(), Vec::new());
    for number in 1..=scale.mounts {
        let mut seen = cluster.seen.clone();
        let object = cluster.pv(&format!("disk{number:05}"))?;
        let began = Instant::now();
        cluster.create(vec![object]).await?;
        to_pv.push(seen.until("its PV is there", |pvs| pvs.len() > number).await? - began);
        to_available.push(available(cluster, number + 1).await? - began);
    }
    report.times(None, MOUNT_TO_PV, to_pv, "a create, seen by a watch");
    report.times(
        None,
        MOUNT_TO_AVAILABLE,
        to_available,
        "a create, and the controller's answer",
    );
    let recycler = cluster.recycle_at_once();
    recycle_some(cluster, scale, report, None).await?;
    recycler.abort();
    Ok(())
}

/// Beside the PVs of many other nodes.
pub(crate) async fn crowded(
    cluster: &Cluster<'_>,
    binary: &Binary,
    foreign: usize,
    scale: &Scale,
    report: &mut Report,
    column: usize,
) -> Result<()> {
    let beside = format!("beside {foreign} PVs of other nodes");
    entries(0, USUAL).try_for_each(|entry| cluster.mount(&entry))?;
    let proxy = Proxy::to(cluster.plane.server()).await?;
    let mut running: Running =
        binary.start(&cluster.name, &cluster.kubeconfig(Some(proxy.address))?, &cluster.log())?;
    let mut seen = cluster.seen.clone();
    let first = seen.until("there is a PV", |pvs| !pvs.is_empty()).await?;
    let mut add = |what: &str, unit: &'static str, value: f64| {
        report.add(column, &format!("{what}, {beside}"), unit, value);
    };
    add(FIRST_PV, "ms", milliseconds(first - running.began));
    available(cluster, USUAL).await?;
    // Now, and not after the quiet, for which the controllers take minutes with 50,000 PVs.
    add("CPU of the start", "ms", milliseconds(running.cpu()?));
    add("received at start", "kB", proxy.received() as f64 / 1e3);
    quiet(cluster).await?;
    let memory = running.memory()?;
    add("resident memory", "MB", memory.resident);
    add("of that anonymous", "MB", memory.anonymous);
    let time = scale.window.min(Duration::from_secs(20));
    let (cpu, received) = (running.cpu()?, proxy.received());
    cluster.change_foreign(foreign, 50, time).await?;
    if foreign > 0 {
        let seconds = time.as_secs_f64();
        let cpu = milliseconds(running.cpu()? - cpu) / seconds;
        let received = (proxy.received() - received) as f64 / 1e3 / seconds;
        add("50 updates/s of those, CPU per second", "ms", cpu);
        add("50 updates/s of those, received per second", "kB", received);
    }
    running.check()
}
