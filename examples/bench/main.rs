//! Measures the provisioner as a process beside a real control plane, and honest floors in the same run: `hack/bench`.
//!
//! A floor is what the task costs whoever does it: a client that answers every event at once, `rm -rf`, `dd`. Figures of
//! two machines, or of one machine at two times, are not comparable; the ratios of one run are.

mod burst;
mod cluster;
mod crowd;
mod fleet;
mod life;
mod program;
mod proxy;
mod report;
mod scrubs;
mod single;
mod soak;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use testkit::mounts;
use testkit::plane::Plane;

use cluster::Cluster;
use program::Binary;
use report::Report;

/// Measures memory, latency and throughput of the provisioner on a real control plane.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// The provisioner, as it is released
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// Another program to be measured beside it: it reads /etc/provisioner/config and takes --listen-address
    #[arg(long, value_name = "FILE")]
    vs: Option<PathBuf>,
    /// An argument for the other program; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    vs_arg: Vec<String>,
    /// Measure only this
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Fewer repetitions, shorter windows, smaller disks
    #[arg(long)]
    quick: bool,
    /// So many PVs of other nodes [default: 10000, or 1000 with --quick]
    #[arg(long, value_name = "NUMBER")]
    foreign: Option<usize>,
    /// Write all figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A part that can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The memory with 20 volumes
    Memory,
    /// What an idle process with 20 volumes costs
    Idle,
    /// Many volumes at start, passes over them, and many released at once
    Burst,
    /// A node beside the PVs of many others, and without --quick alone, too
    Crowd,
    /// Scrubs beside rm, dd and blkdiscard
    Scrubs,
    /// An hour of releases and mounts, never measured unless asked for
    Soak,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Repetitions of mounts and of claims.
    mounts: usize,
    claims: usize,
    /// Volumes at start, and how many of them are released at once.
    volumes: usize,
    released: usize,
    /// How many times that is done, by each program and by the raw client.
    rounds: usize,
    foreign: usize,
    /// Nodes that start at once, and then what is measured beside PVs of other nodes is measured without them, too.
    fleet: Option<usize>,
    /// Of an idle process.
    window: std::time::Duration,
    /// After which a process that is idle looks as seldom as it ever does; none where that is not measured.
    settled: Option<std::time::Duration>,
    files: usize,
    device_bytes: u64,
    soak: std::time::Duration,
}

impl Scale {
    fn of(args: &Args) -> Self {
        let seconds = std::time::Duration::from_secs;
        if args.quick {
            Self {
                mounts: 15,
                claims: 10,
                volumes: 1_000,
                released: 100,
                rounds: 2,
                foreign: args.foreign.unwrap_or(1_000),
                fleet: None,
                window: seconds(30),
                settled: None,
                files: 10_000,
                device_bytes: 512 << 20,
                soak: seconds(5 * 60),
            }
        } else {
            Self {
                mounts: 15,
                claims: 15,
                volumes: 1_000,
                released: 200,
                rounds: 5,
                foreign: args.foreign.unwrap_or(10_000),
                fleet: Some(40),
                window: seconds(60),
                settled: Some(seconds(4 * 60)),
                files: 1_000_000,
                device_bytes: 4 << 30,
                soak: seconds(60 * 60),
            }
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match bench(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<()> {
    // There is no thread yet, so the whole process moves.
    mounts::enter_private_namespace()?;
    let dir = tempfile::tempdir()?;
    mounts::tmpfs(dir.path(), 16 << 30)?;
    provide_etc(dir.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure(args, dir.path()))?;
    print!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Lays a directory over /etc where only we see it: the classic program reads its configuration there.
fn provide_etc(dir: &Path) -> Result<()> {
    let (upper, work) = (dir.join("etc-upper"), dir.join("etc-work"));
    std::fs::create_dir_all(upper.join("provisioner/config"))?;
    std::fs::create_dir(&work)?;
    let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    nix::mount::mount(
        Some("overlay"),
        "/etc",
        Some("overlay"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .context("mount an overlay on /etc")
}

async fn measure(args: &Args, dir: &Path) -> Result<Report> {
    let scale = Scale::of(args);
    let plane = Plane::start()?;
    let mut report = Report::new(scale.foreign);
    let host_mountinfo = format!("--host-mountinfo=/proc/{}/mountinfo", std::process::id());
    // The page's port is one for the whole machine.
    let ours = Binary::new(&args.program, vec![host_mountinfo, "--status-address=".to_owned()])?;
    let other = args.vs.as_ref().map(|path| Binary::new(path, args.vs_arg.clone()));
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let binaries: Vec<Binary> = [Some(Ok(ours)), other].into_iter().flatten().collect::<Result<_>>()?;
    if wanted(Part::Scrubs) {
        scrubs::measure(&binaries[0], dir, &scale, &mut report)?;
    }
    let mut floor = match args.only {
        None => Some(single::Floor::new(&plane, dir).await?),
        Some(_) => None,
    };
    for (column, binary) in binaries.iter().enumerate() {
        let cluster = Cluster::new(&plane, dir, &format!("bench{column}")).await?;
        match args.only {
            None | Some(Part::Idle) => life::idle(&cluster, binary, &scale, &mut report, column).await?,
            Some(Part::Memory) => drop(life::start(&cluster, binary, &mut report, column).await?),
            Some(Part::Soak) => soak::measure(&cluster, binary, scale.soak, &mut report, column).await?,
            Some(Part::Scrubs | Part::Burst | Part::Crowd) => {}
        }
        if args.only.is_none() {
            // A floor is what it is beside the provisioner.
            let floor = floor.as_mut().filter(|_| column == 0);
            single::measure(&cluster, binary, floor, &scale, &mut report, column).await?;
        }
        cluster.clear().await?;
    }
    if let Some(floor) = floor {
        floor.report(&mut report).await?;
    }
    if wanted(Part::Burst) {
        burst::measure(&plane, dir, &binaries, &scale, &mut report).await?;
    }
    if wanted(Part::Crowd) {
        crowd::measure(&plane, dir, &binaries, &scale, &mut report).await?;
    }
    Ok(report)
}
