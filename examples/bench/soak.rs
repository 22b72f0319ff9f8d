//! A long life: does the memory grow with what was done?

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cluster::Cluster;
use crate::life::{QUIET, available, start};
use crate::program::Binary;
use crate::report::Report;

/// Of the work in a round, which is followed by [`QUIET`].
const WORK: Duration = Duration::from_secs(45);
/// So many volumes are released at once.
const AT_ONCE: usize = 5;

/// Binds and releases volumes, mounts and unmounts others, round by round, and looks at the memory after each.
pub(crate) async fn measure(
    cluster: &Cluster<'_>,
    binary: &Binary,
    length: Duration,
    report: &mut Report,
    column: usize,
) -> Result<()> {
    let mut started = start(cluster, binary, report, column).await?;
    let names: Vec<String> = cluster.seen.now().into_keys().collect();
    let (began, mut recycled, mut memory) = (Instant::now(), 0, Vec::new());
    while began.elapsed() < length {
        let round = Instant::now();
        while round.elapsed() < WORK {
            for names in names.chunks(AT_ONCE) {
                cluster.bind(names).await?;
                cluster.recycle(names).await?;
                recycled += names.len();
            }
            cluster.mount("guest")?;
            available(cluster, names.len() + 1).await?;
            cluster.unmount("guest")?;
        }
        tokio::time::sleep(QUIET).await;
        started.running.check()?;
        memory.push(started.running.memory()?.anonymous);
        eprintln!("bench: {recycled} volumes recycled, {:?} MB anonymous", memory.last());
        // After its grace period.
        available(cluster, names.len()).await?;
    }
    let name = |what: &str| format!("{what} of a soak of {} min", length.as_secs() / 60);
    report.add(column, &name("volumes recycled in the course"), "", recycled as f64);
    // What is made at the first use is not growth.
    let (first, rest) = memory
        .split_first()
        .map_or((0.0, &[][..]), |(first, rest)| (*first, rest));
    report.add(column, &name("anonymous memory after the first minute"), "MB", first);
    let most = rest.iter().copied().fold(first, f64::max);
    report.add(column, &name("anonymous memory at most"), "MB", most);
    let last = memory.last().copied().unwrap_or_default();
    report.add(column, &name("anonymous memory at the end"), "MB", last);
    Ok(())
}
