//! `log`: how much the daemon of this node logs, shown or changed while it runs.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::status;
use crate::status::page::LOG_LEVEL;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n    kubectl exec POD -- /local-volume-provisioner log debug\n    kubectl exec POD -- /local-volume-provisioner log info\n\nIt lasts until it is changed again, or the daemon ends."
)]
pub(super) struct LogArgs {
    /// The level from now on; without it the present one is printed
    level: Option<Level>,
    /// The daemon's --status-address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    address: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Info,
    Debug,
    Trace,
}

pub(super) fn run(args: &LogArgs) -> anyhow::Result<ExitCode> {
    let Some(address) = super::address("--address", &args.address)? else {
        bail!("--address is empty; give the daemon's --status-address");
    };
    let level = match args.level {
        None => status::ask(address, "GET /log", "")?,
        Some(level) => {
            let name = match level {
                Level::Info => "info",
                Level::Debug => "debug",
                Level::Trace => "trace",
            };
            status::ask(address, "PUT /log", &format!("{LOG_LEVEL}: {name}\r\n"))?
        }
    };
    println!("{}", status::shown(level.trim()));
    Ok(ExitCode::SUCCESS)
}
