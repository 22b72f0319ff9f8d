//! The command line.

mod classic;
mod dry_run;
mod log_level;
mod scrub;
mod status;
mod table;
mod uninstall;
mod validate;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing::{info, warn};

use crate::plan::Limits;
use crate::scan::ScanSettings;
use crate::settings::Settings;

/// Publishes the mount points and block devices of a node as local PersistentVolumes, and scrubs them when they are
/// released.
#[derive(Debug, Parser)]
#[command(
    name = "local-volume-provisioner",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Without a command it is the daemon of one node, as in a DaemonSet. To see what it would publish from a directory of this machine, without a cluster:\n\n    local-volume-provisioner plan --host-dir /mnt/disks --class fast"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of one node (the same as no command)
    Run(Box<RunArgs>),
    /// Show every entry of the discovery directories with what it is and why, and the PVs it would become
    Plan(dry_run::PlanArgs),
    /// Show what the daemon of this node sees, does and waits for
    Status(status::StatusArgs),
    /// Show or change how much the daemon of this node logs, while it runs
    Log(log_level::LogArgs),
    /// Check a ConfigMap manifest or a configuration directory, without a cluster
    Validate(validate::ValidateArgs),
    /// Remove our finalizer from the PVs of a cluster, before or after the provisioner is removed
    Uninstall(uninstall::UninstallArgs),
    /// Make what a block device or a filesystem holds unreadable, as cleaning Jobs do
    Scrub(scrub::ScrubArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The daemon's flags. Durations are Go durations, such as 10s or 1m30s.
#[derive(Debug, Args)]
struct RunArgs {
    /// Serve /metrics, /ready, /readyz and /livez here; empty: nowhere
    #[arg(long, default_value = ":8080", value_name = "ADDRESS")]
    listen_address: String,
    /// Serve the status page and /status, which name claims, here; empty: nowhere
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    status_address: String,
    /// Serve the metrics at this path
    #[arg(long, default_value = "/metrics", value_name = "PATH")]
    metrics_path: String,
    /// Look at the directories at least this often; changes are seen at once without it
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    discovery_period: Duration,
    /// Withdraw the unused PV of a volume that has been missing for this long
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = duration)]
    grace_period: Duration,
    /// Scrub this many volumes at once
    #[arg(long, default_value_t = 4, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    scrub_concurrency: u16,
    /// Quarantine a volume whose scrub has failed so many times in a row
    #[arg(long, default_value_t = 10, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    scrub_retries: u32,
    /// Wipe no more bytes per second of one device, such as 100Mi [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = crate::scrub::limits::parse_bandwidth)]
    scrub_bandwidth: Option<NonZeroU64>,
    /// Kill a blockCleanerCommand that neither writes anything nor ends for this long, and take any other scrub that gets
    /// nothing done for a hanging one
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = duration)]
    stall_timeout: Duration,
    /// Take a disk for unresponsive when a system call on it takes this long
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration)]
    syscall_timeout: Duration,
    /// The host's mount table, which shows what pods have mounted
    #[arg(long, default_value = "/host/mountinfo", value_name = "FILE")]
    host_mountinfo: PathBuf,
    /// The configuration: the ConfigMap, mounted as a volume
    #[arg(long, default_value = "/etc/provisioner/config", value_name = "DIR")]
    config_dir: PathBuf,
    /// The name of that ConfigMap, in MY_NAMESPACE: events about the configuration are on it
    #[arg(long, value_name = "NAME")]
    config_map: Option<String>,
    /// Remove the startup taint only when so many volumes of a class are published, such as fast=2,raw=1
    #[arg(long, value_name = "CLASS=NUMBER", value_delimiter = ',', value_parser = ready_volumes)]
    ready_volumes: Vec<(String, usize)>,
    /// How log lines are written
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Log level: 0 to 3 are info, 4 and 5 debug, 6 and more trace
    #[arg(short, long, default_value_t = 2, value_name = "LEVEL", value_parser = log_level)]
    v: u8,
    #[command(flatten)]
    classic: classic::Ignored,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    match crate::config::duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be more than 0".to_owned()),
        result => result.map_err(|error| error.to_string()),
    }
}

fn log_level(text: &str) -> Result<u8, String> {
    text.parse()
        .map_err(|_| "write a number from 0 to 255: 2 is info, 4 debug, 6 trace".to_owned())
}

fn ready_volumes(text: &str) -> Result<(String, usize), String> {
    let expected = || "expected CLASS=NUMBER, such as fast=2".to_owned();
    let (class, number) = text.split_once('=').ok_or_else(expected)?;
    crate::config::names::check_object_name(class).map_err(|why| format!("{class:?} is no class: {why}"))?;
    Ok((class.to_owned(), number.parse().map_err(|_| expected())?))
}

/// The program: parses the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(code) = scrub::by_script_name(std::env::args_os()) {
        return code;
    }
    let cli = Cli::parse_from(classic::two_dashes(std::env::args_os()));
    let result = match cli.command {
        None => run(&cli.run),
        Some(Command::Run(args)) => run(&args),
        Some(Command::Plan(args)) => dry_run::run(&args),
        Some(Command::Status(args)) => status::run(&args),
        Some(Command::Log(args)) => log_level::run(&args),
        Some(Command::Validate(args)) => validate::run(&args),
        Some(Command::Uninstall(args)) => uninstall::run(&args),
        Some(Command::Scrub(args)) => scrub::run(&args),
        Some(Command::Completions { shell }) => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "local-volume-provisioner", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("local-volume-provisioner: {error:#}");
        ExitCode::FAILURE
    })
}

/// A runtime for a client: everything that blocks has threads of its own, so one thread is enough.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Looks, and scrubs, of which there are as many as --scrub-concurrency says.
        .thread_keep_alive(Duration::from_secs(10))
        .thread_stack_size(512 << 10)
        .build()
        .context("the async runtime cannot be started")
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    crate::sys::memory::one_malloc_arena();
    crate::logs::to_stderr(args.v, matches!(args.log_format, LogFormat::Json));
    let settings = settings(args)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let client = crate::api::connect().await?;
        info!(version = env!("CARGO_PKG_VERSION"), node = %settings.node_name, "starting");
        let toggled = tokio::spawn(toggle_debug()?);
        let ended = crate::run::run(settings, client, signalled()?).await;
        toggled.abort();
        ended
    });
    // A thread that hangs on a dead disk must not keep the process.
    runtime.shutdown_background();
    ended?;
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Ends with SIGTERM or SIGINT. As PID 1 of a container a process gets no signal that it does not handle.
fn signalled() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut int = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// SIGUSR1 turns debug lines on, and off again.
fn toggle_debug() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signals = signal(SignalKind::user_defined1()).context("SIGUSR1 cannot be handled")?;
    Ok(async move {
        while signals.recv().await.is_some() {
            crate::logs::toggle_debug();
        }
    })
}

fn settings(args: &RunArgs) -> anyhow::Result<Settings> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(node_name) = variable("MY_NODE_NAME") else {
        bail!("MY_NODE_NAME is not set: set it to the node's name (in a Pod: fieldRef spec.nodeName)");
    };
    let namespace = variable("MY_NAMESPACE").unwrap_or_else(|| {
        warn!("MY_NAMESPACE is not set: cleaning Jobs are looked for in namespace default");
        "default".into()
    });
    Ok(Settings {
        node_name,
        namespace,
        job_image: variable("JOB_CONTAINER_IMAGE"),
        config_dir: args.config_dir.clone(),
        config_map: args.config_map.clone(),
        pod: variable("POD_NAME").map(|name| crate::settings::Pod {
            name,
            uid: variable("POD_UID"),
        }),
        ready_volumes: args.ready_volumes.iter().cloned().collect(),
        stuck_after: crate::http::STUCK_AFTER,
        listen_address: address("--listen-address", &args.listen_address)?,
        status_address: address("--status-address", &args.status_address)?,
        metrics_path: args.metrics_path.clone(),
        limits: Limits {
            grace_period: args.grace_period,
            discovery_period: args.discovery_period,
            scrub_concurrency: usize::from(args.scrub_concurrency),
            creations: crate::run::CREATIONS,
            scrub_retries: args.scrub_retries,
        },
        scrub: crate::scrub::limits::Limits {
            bytes_per_second: args.scrub_bandwidth,
            stall_timeout: args.stall_timeout,
            checkpoints: crate::scrub::checkpoint::Cadence::default(),
        },
        scan: ScanSettings {
            syscall_timeout: args.syscall_timeout,
            host_mountinfo: args.host_mountinfo.clone(),
            ..ScanSettings::default()
        },
    })
}

/// An address as Go takes it: without a host it is every address of the machine, IPv4 and IPv6.
fn address(flag: &str, text: &str) -> anyhow::Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let full = if text.starts_with(':') {
        format!("[::]{text}")
    } else {
        text.replace("localhost:", "127.0.0.1:")
    };
    full.parse()
        .map(Some)
        .with_context(|| format!("{flag} {text:?} is no address such as :8080 or 127.0.0.1:8080"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        let args = std::iter::once("local-volume-provisioner").chain(args.iter().copied());
        Cli::try_parse_from(classic::two_dashes(args.map(Into::into)))
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn classic_command_lines_are_taken() {
        for args in [
            &["-v=2", "--logtostderr"][..],
            &["--v", "4", "-alsologtostderr=true", "--vmodule=a=1"],
            &[
                "-stderrthreshold=INFO",
                "-log_file",
                "/tmp/x",
                "--config-sync-period",
                "5s",
            ],
            &["-discovery-period=1m30s", "-listen-address", ":9090"],
            &["--legacy_stderr_threshold_behavior=false", "-one_output"],
        ] {
            assert!(parse(args).is_ok(), "{args:?}: {:?}", parse(args).err());
        }
        let cli = parse(&["-discovery-period=1m30s", "-v=4"]).unwrap();
        assert_eq!((cli.run.discovery_period, cli.run.v), (Duration::from_secs(90), 4));
    }

    #[test]
    fn mistakes_are_refused() {
        for args in [
            &["--discovery-period=10"][..],
            &["--nonsense"],
            &["--scrub-concurrency=0"],
            &["-discovery"],
            &["plam"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn addresses_are_those_of_go() {
        assert_eq!(address("--x", ":8080").unwrap().unwrap().to_string(), "[::]:8080");
        assert_eq!(
            address("--x", "localhost:1").unwrap().unwrap().to_string(),
            "127.0.0.1:1"
        );
        assert_eq!(address("--x", "").unwrap(), None);
        assert!(address("--x", "8080").is_err());
    }
}
