//! `status`: what the daemon of this node says of itself, as a table.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use k8s_openapi::jiff::Timestamp;

use super::table::{COMMAND, Row, with_notes, wrap};
use crate::status::{Problem, Status, VERSION, Volume, printable};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n    kubectl exec POD -- /local-volume-provisioner status\n    kubectl exec POD -- /local-volume-provisioner status --json\n\nExits with 0 when the daemon has answered, whatever it says."
)]
pub(super) struct StatusArgs {
    /// The daemon's --status-address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    address: String,
    /// Print what /status answers, as it is
    #[arg(long)]
    json: bool,
}

/// A daemon that does not answer within this time hangs.
const DEADLINE: Duration = Duration::from_secs(10);
/// More than a daemon with ten thousand volumes says.
const MOST: u64 = 64 << 20;
/// How many events are printed; `--json` has all.
const EVENTS: usize = 10;

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let Some(address) = super::address("--address", &args.address)? else {
        bail!("--address is empty; give the daemon's --status-address");
    };
    let body = ask(address, "GET /status", "Accept: application/json\r\n")?;
    let mut out = std::io::stdout().lock();
    if args.json {
        out.write_all(body.as_bytes()).and_then(|()| out.write_all(b"\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let said = || format!("{address} does not answer as a local-volume-provisioner does");
    let value: serde_json::Value = serde_json::from_str(&body).with_context(said)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version.is_some_and(|version| version != u64::from(VERSION)) {
        bail!("{address} answers by version {version:?} of the schema, and this program knows {VERSION}; use --json");
    }
    let status: Status = serde_json::from_value(value).with_context(said)?;
    out.write_all(text(&status, super::table::width()).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The body of the answer to a request, such as `GET /status`, with these header lines. HTTP/1.0, by which an answer is whole and ends with the connection.
pub(super) fn ask(address: SocketAddr, what: &str, headers: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).with_context(|| {
        format!("nothing answers on {address}: does the daemon run here, and with that --status-address? (it is in its log; --address names another)")
    })?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let asked = format!("{what} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n");
    let mut answer = String::new();
    let read = stream.write_all(asked.as_bytes());
    read.and_then(|()| stream.take(MOST).read_to_string(&mut answer))
        .with_context(|| format!("{address} does not answer (within {} s)", DEADLINE.as_secs()))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    let first = head.lines().next().unwrap_or_default();
    if first.split(' ').nth(1) != Some("200") {
        bail!(
            "{address} answers {:?} to {what}; is that the daemon's --status-address?",
            shown(first)
        );
    }
    Ok(body.to_owned())
}

/// Nothing that came from outside may move the cursor.
pub(super) fn shown(text: &str) -> String {
    printable(OsStr::new(text))
}

fn text(status: &Status, width: usize) -> String {
    let mut text = head(status, width);
    let mut volumes: Vec<&Volume> = status.volumes.iter().collect();
    volumes.sort_by_key(|volume| rank(volume));
    let rows: Vec<Row> = volumes.iter().map(|volume| row(volume, &status.time)).collect();
    text.push('\n');
    text.push_str(&with_notes(
        &["CLASS", "ENTRY", "STATE", "SINCE", "CAPACITY", "PV", "CLAIM"],
        &rows,
        width,
    ));
    if rows.is_empty() {
        text.push_str("no entry in any directory\n");
    }
    if !status.events.is_empty() {
        let rows: Vec<Row> = status
            .events
            .iter()
            .take(EVENTS)
            .map(|event| Row {
                cells: vec![
                    age(&event.time, &status.time),
                    shown(&event.severity),
                    shown(&event.reason),
                    shown(&event.pv),
                ],
                notes: vec![("", shown(&event.message))],
            })
            .collect();
        text.push('\n');
        text.push_str(&with_notes(&["AGE", "EVENT", "REASON", "PV"], &rows, width));
    }
    text
}

/// Everything but the tables: a line for each thing.
fn head(status: &Status, width: usize) -> String {
    let mut text = String::new();
    let mut line = |words: String| text.push_str(&wrap("", &shown(&words), width));
    line(format!(
        "node {}: {}",
        status.node,
        if status.ready { "ready" } else { "not ready" }
    ));
    for what in &status.waiting_for {
        line(format!("waiting for {what}"));
    }
    line(format!(
        "mode {}, up {}, last look {}",
        match status.mode.as_deref() {
            None => "not known yet",
            Some("Classic") => "Classic (patch on persistentvolumes is not permitted)",
            Some(mode) => mode,
        },
        age(&status.started, &status.time),
        match &status.looked {
            Some(looked) => format!("{} ago", age(looked, &status.time)),
            None => "not yet".into(),
        }
    ));
    if let Some(what) = &status.startup_taint {
        line(format!("startup taint: {what}"));
    }
    match &status.host_mounts {
        Some(host) if host.seen => line("mounts of pods are seen".into()),
        Some(host) => line(format!(
            "mounts of pods cannot be seen: {}",
            host.reason.as_deref().unwrap_or_default()
        )),
        None => {}
    }
    if let Some(pvs) = status.persistent_volumes {
        line(format!(
            "PVs: {}, {} of them with our finalizer",
            pvs.total, pvs.with_finalizer
        ));
    }
    let configuration = &status.configuration;
    let classes: Vec<&str> = configuration.classes.iter().map(|class| class.name.as_str()).collect();
    line(match &configuration.loaded {
        Some(loaded) => format!(
            "configuration loaded {} ago, read {} ago: classes {}",
            age(loaded, &status.time),
            configuration
                .read
                .as_ref()
                .map_or_else(|| "?".into(), |read| age(read, &status.time)),
            if classes.is_empty() {
                "none".into()
            } else {
                classes.join(", ")
            }
        ),
        None => "no configuration yet".into(),
    });
    for problem in &configuration.problems {
        line(format!("error: {}", place(problem)));
    }
    for warning in &configuration.warnings {
        line(format!("warning: {}", place(warning)));
    }
    for directory in &status.directories {
        let what = match (&directory.error, directory.entries) {
            (Some(error), _) => error.clone(),
            (None, Some(0)) => "is empty".into(),
            (None, Some(1)) => "1 entry".into(),
            (None, Some(entries)) => format!("{entries} entries"),
            (None, None) => continue,
        };
        line(format!(
            "directory {} (class {}): {what}",
            directory.host_dir, directory.class
        ));
    }
    text
}

/// The worst first, as on the page; what is no volume after what is one with something wrong; what is fine last.
fn rank(volume: &Volume) -> usize {
    let worst = ["unresponsive", "vanished", "held"]
        .iter()
        .position(|state| *state == volume.state);
    match worst {
        Some(rank) => rank,
        None if !volume.attention => 5,
        None if volume.state == "ignored" => 4,
        None => 3,
    }
}

fn row(volume: &Volume, now: &str) -> Row {
    let or_dash = |cell: &Option<String>| cell.as_deref().map_or_else(|| "-".into(), shown);
    let pv = volume.pv.as_deref().filter(|_| volume.published);
    let mut notes = Vec::new();
    let mut note = |word, text: &str| notes.push((word, shown(text)));
    if let Some(advice) = &volume.advice {
        note("do:", advice);
    }
    for command in &volume.commands {
        note(COMMAND, command);
    }
    // A daemon of another version may say it all in one.
    if let Some(why) = volume.cause.as_ref().or(volume.reason.as_ref()) {
        let slug = volume.slug.as_ref().map(|slug| format!("{slug}: ")).unwrap_or_default();
        note(if volume.attention { "why:" } else { "" }, &format!("{slug}{why}"));
    }
    if let Some(warning) = &volume.warning {
        note("note:", warning);
    }
    Row {
        cells: vec![
            shown(&volume.class),
            shown(&volume.entry),
            shown(&volume.state),
            age(&volume.since, now),
            or_dash(&volume.capacity),
            pv.map_or_else(|| "-".into(), shown),
            or_dash(&volume.claim),
        ],
        notes,
    }
}

fn place(problem: &Problem) -> String {
    let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
    let key = if problem.key.is_empty() { "" } else { ": " };
    format!("{}{line}{key}{}: {}", problem.file, problem.key, problem.message)
}

/// How long ago, in the largest unit that fits, as kubectl writes it.
fn age(then: &str, now: &str) -> String {
    let (Ok(then), Ok(now)) = (then.parse::<Timestamp>(), now.parse::<Timestamp>()) else {
        return "?".into();
    };
    let seconds = (now.as_second() - then.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_the_largest_unit_that_fits() {
        let since = |then: &str| age(then, "2026-01-10T12:00:00Z");
        assert_eq!(since("2026-01-10T11:59:15Z"), "45s");
        assert_eq!(since("2026-01-10T11:48:00Z"), "12m");
        assert_eq!(since("2026-01-10T07:00:00Z"), "5h");
        assert_eq!(since("2026-01-01T12:00:00Z"), "9d");
        assert_eq!(since("2026-01-10T12:00:05Z"), "0s", "clocks may be set back");
        assert_eq!(since("\x1b[2J"), "?");
    }
}
