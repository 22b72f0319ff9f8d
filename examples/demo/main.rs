//! The life of a disk, played and timed: `make demo`, or `cargo run --example demo`.
//!
//! It needs no cluster, and no root where user namespaces are permitted. The provisioner is the real one
//! ([`local_volume_provisioner::run::run`]) on real mounts; the API server is the one of the test kit, in this process;
//! what the scheduler and kubelet do is played. The mounts are in a namespace that nobody else sees and that ends with
//! this process, however it ends.

mod journal;
mod node;
mod play;
mod screen;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::sync::oneshot;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use journal::Journal;
use node::Node;
use screen::Screen;

/// The exit code where the demo cannot run at all, as test drivers know it (automake's "skipped").
const CANNOT_RUN_HERE: u8 = 77;

/// Plays the life of a disk with the real provisioner: no cluster, no root.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Args {
    /// Show the provisioner's log in between, instead of writing it to a file
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // The log is opened first: what is mounted next may cover its directory.
    let log = match log(args.verbose) {
        Ok(log) => log,
        Err(error) => return failed(&error, None),
    };
    // There is no thread yet, so the whole process moves, and /proc/self/mountinfo is the table of all its threads.
    if let Err(error) = testkit::mounts::enter_private_namespace() {
        let _ = log.as_ref().map(std::fs::remove_file);
        eprintln!("demo: it cannot mount anything here: {error:#}\n{}", node::advice());
        return ExitCode::from(CANNOT_RUN_HERE);
    }
    match demonstrate(log.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, log.as_ref()),
    }
}

fn failed(error: &anyhow::Error, log: Option<&PathBuf>) -> ExitCode {
    eprintln!("\ndemo: {error:#}");
    if let Some(log) = log {
        eprintln!("The provisioner's log is {}", log.display());
    }
    ExitCode::FAILURE
}

/// Sends the provisioner's log to stderr, or to a file whose path is returned.
fn log(verbose: bool) -> Result<Option<PathBuf>> {
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter: Targets = asked
        .as_deref()
        .unwrap_or("info,kube_client=off,kube_runtime=off,tower=info")
        .parse()
        .context("RUST_LOG")?;
    let logs = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_target(false);
    if verbose {
        let ansi = screen::colours(&std::io::stderr());
        logs.with_writer(std::io::stderr)
            .with_ansi(ansi)
            .finish()
            .with(filter)
            .init();
        return Ok(None);
    }
    let (file, path): (File, PathBuf) = tempfile::Builder::new()
        .prefix("local-volume-provisioner-demo-")
        .suffix(".log")
        .tempfile()
        .and_then(|file| Ok(file.keep()?))
        .context("the provisioner's log cannot be written; set TMPDIR to a directory that can be, or use --verbose")?;
    logs.with_writer(Arc::new(file))
        .with_ansi(false)
        .finish()
        .with(filter)
        .init();
    Ok(Some(path))
}

fn demonstrate(log: Option<&PathBuf>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the async runtime cannot be started")?;
    runtime.block_on(async {
        let began = Instant::now();
        let node = Node::new()?;
        let mut screen = Screen::new();
        screen.title("local-volume-provisioner: the life of a disk, without a cluster");
        screen.fact("played", "the cluster: API server, scheduler, kubelet, tenants");
        screen.fact("real", "the provisioner, the mounts, the data");
        screen.fact(
            "mounts",
            &format!("below {}, seen by this process only", node.root.display()),
        );
        let log = log.map_or("below (--verbose)".into(), |path| path.display().to_string());
        screen.fact("log", &log);
        let journal = Journal::of(&node.api);
        play::before_the_start(&node, &mut screen)?;

        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let daemon = local_volume_provisioner::run::run(node.settings(), node.api.client("full"), shutdown);
        tokio::pin!(daemon);
        let played = tokio::select! {
            ended = &mut daemon => {
                ended.context("the provisioner failed")?;
                bail!("the provisioner ended by itself");
            }
            played = play::all(&node, &journal, &mut screen) => played,
        };
        drop(stop);
        let ended = daemon.await;
        let told = played?;
        ended.context("the provisioner did not stop in good order")?;
        screen.summary(&told, began.elapsed());
        Ok(())
    })
}
