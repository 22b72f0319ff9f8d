//! Many nodes that start at once, as after an update of the DaemonSet: what the API server has to do for each.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use testkit::config_volume::ConfigVolume;
use testkit::mounts;
use testkit::plane::Plane;

use crate::cluster::{Cluster, Pvs, is_free};
use crate::life::{USUAL, entries};
use crate::program::{Binary, Running};
use crate::proxy::Proxy;
use crate::report::Report;

pub(crate) async fn measure(
    plane: &Plane,
    dir: &Path,
    binary: &Binary,
    foreign: usize,
    count: usize,
    report: &mut Report,
) -> Result<()> {
    let fleet = format!("fleet{foreign}");
    let cluster = Cluster::new(plane, dir, &fleet).await?;
    let proxy = Proxy::to(plane.server()).await?;
    let kubeconfig = cluster.kubeconfig(Some(proxy.address))?;
    let mut nodes = Vec::new();
    for number in 0..count {
        let name = format!("{fleet}-{number}");
        plane.create_node(&name, &name).await?;
        let disks = dir.join(&name).join("disks");
        entries(0, USUAL).try_for_each(|entry| mounts::tmpfs(&disks.join(entry), 16 << 20))?;
        let map = format!("{fleet}:\n  hostDir: {0}\n  mountDir: {0}\n", disks.display());
        let mut config = ConfigVolume::new(dir.join(&name).join("config"))?;
        config.edit([
            ("storageClassMap", Some(map.as_str())),
            ("labelsForPV", Some(format!("bench: {fleet}").as_str())),
        ])?;
        let binary = binary.with(format!("--config-dir={}", config.dir().display()));
        nodes.push((name, binary));
    }
    let start = || {
        nodes
            .iter()
            .map(|(name, binary)| binary.start(name, &kubeconfig, &dir.join(name).join("log")))
            .collect::<Result<Vec<Running>>>()
    };
    let first = start()?;
    let all = |pvs: &Pvs| pvs.len() == count * USUAL && pvs.values().all(is_free);
    cluster.seen.clone().until("all nodes have published", all).await?;
    drop(first);

    let (cpu, received, began) = (cpu_of_server(plane)?, proxy.received(), Instant::now());
    for node in &mut start()? {
        node.ready().await?;
    }
    let took = began.elapsed().as_secs_f64();
    let name = |what: &str| format!("{what}, {count} nodes start again at once beside {foreign} PVs");
    report.add(0, &name("all ready"), "s", took);
    let cpu = (cpu_of_server(plane)? - cpu).as_secs_f64() * 1e3 / count as f64;
    report.add(0, &name("CPU of the API server for each"), "ms", cpu);
    let received = (proxy.received() - received) as f64 / 1e3 / count as f64;
    report.add(0, &name("received by each"), "kB", received);
    // The mount table of what is measured after this is as long as it was before.
    for (name, _) in &nodes {
        let disks = dir.join(name).join("disks");
        entries(0, USUAL).try_for_each(|entry| mounts::unmount(&disks.join(entry)))?;
    }
    cluster.clear().await
}

/// CPU time of the API server.
fn cpu_of_server(plane: &Plane) -> Result<Duration> {
    let port = plane.server().rsplit(':').next().context("a port")?.to_owned();
    let argument = format!("--secure-port={port}");
    for process in std::fs::read_dir("/proc")? {
        let process = process?;
        // It may have ended meanwhile, or be none.
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let is_server = command.split(|byte| *byte == 0).any(|word| word == argument.as_bytes());
        if let Some(pid) = process.file_name().to_str().and_then(|pid| pid.parse().ok())
            && is_server
        {
            let clock = clock_getcpuclockid(Pid::from_raw(pid)).context("the CPU clock of the API server")?;
            return Ok(clock_gettime(clock).context("the CPU clock of the API server")?.into());
        }
    }
    anyhow::bail!("no process has the argument {argument}")
}
