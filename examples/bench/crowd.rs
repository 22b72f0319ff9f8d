//! A node beside the PVs of many others, and one that is alone where there is time for that.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use testkit::plane::Plane;

use crate::Scale;
use crate::cluster::Cluster;
use crate::life::{FIRST_PV, QUIET, Started};
use crate::program::Binary;
use crate::report::Report;
use crate::{fleet, life};

/// How often PVs of other nodes are changed, and for how long.
const CHANGES_PER_SECOND: u32 = 50;
const CHANGES: Duration = Duration::from_secs(10);

pub(crate) async fn measure(
    plane: &Plane,
    dir: &Path,
    binaries: &[Binary],
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let alone = scale.fleet.map(|_| 0);
    for foreign in alone.into_iter().chain([scale.foreign]) {
        eprintln!("bench: making {foreign} PVs of other nodes");
        for (column, binary) in binaries.iter().enumerate() {
            let cluster = Cluster::new(plane, dir, &format!("crowd{column}-{foreign}")).await?;
            if column == 0 {
                cluster.make_foreign(foreign).await?;
            }
            beside(&cluster, binary, foreign, report, column).await?;
            cluster.clear().await?;
        }
        if let Some(nodes) = scale.fleet {
            let dir = dir.join(foreign.to_string());
            fleet::measure(plane, &dir, &binaries[0], foreign, nodes, report).await?;
        }
    }
    Ok(())
}

async fn beside(
    cluster: &Cluster<'_>,
    binary: &Binary,
    foreign: usize,
    report: &mut Report,
    column: usize,
) -> Result<()> {
    let Started {
        mut running,
        proxy,
        first_pv,
        cpu,
        received,
        ..
    } = life::begin(cluster, binary).await?;
    let mut add = |what: &str, unit: &'static str, value: f64| {
        report.add(
            column,
            &format!("{what}, beside {foreign} PVs of other nodes"),
            unit,
            value,
        );
    };
    add(FIRST_PV, "ms", life::milliseconds(first_pv));
    add("CPU of the start", "ms", life::milliseconds(cpu));
    add("received at start", "kB", received);
    tokio::time::sleep(QUIET).await;
    let memory = running.memory()?;
    add("resident memory", "MB", memory.resident);
    add("of that anonymous", "MB", memory.anonymous);
    if foreign > 0 {
        let (cpu, received) = (running.cpu()?, proxy.received());
        let took = cluster.change_foreign(foreign, CHANGES_PER_SECOND, CHANGES).await?;
        let seconds = took.as_secs_f64();
        let cpu = life::milliseconds(running.cpu()? - cpu) / seconds;
        let received = (proxy.received() - received) as f64 / 1e3 / seconds;
        add("50 updates/s of those, CPU per second", "ms", cpu);
        add("50 updates/s of those, received per second", "kB", received);
    }
    running.check()
}
