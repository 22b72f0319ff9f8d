//! `scrub`: one scrub of one volume, as cleaning Jobs run it; and the classic scripts, which are links to this program.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::MissedTickBehavior;
use tracing::info;

use super::{runtime, signalled};
use crate::config::Cleaner;
use crate::identity::VolumeId;
use crate::job::{BANDWIDTH_VARIABLE, VOLUME_ID_VARIABLE};
use crate::reason::Held;
use crate::recycle;
use crate::scan::{ScanSettings, Tables};
use crate::scrub::command::{DEVICE_VARIABLE, FILESYSTEM_VARIABLE};
use crate::scrub::limits::{IdlePriority, Steering, parse_bandwidth};
use crate::scrub::progress::{Cancel, Progress, Snapshot, Unit};
use crate::scrub::{ScrubError, block, filesystem};

/// A line of the log about the progress comes so often where there is no terminal.
const LOG_PERIOD: Duration = Duration::from_secs(5);
/// The bar on a terminal moves so often.
const BAR_PERIOD: Duration = Duration::from_millis(200);

/// Exit code of `scrub` where nothing was wrong but the moment: the volume is in use, read-only, other storage, or not
/// there. `EX_TEMPFAIL` of sysexits.h. The classic scripts know 0 and 1 only.
const HELD: u8 = 75;

/// `scrub`.
#[derive(Debug, Args)]
#[command(
    after_help = "The volume must be free: a mounted device, or one that anybody holds, is left alone. `quick` leaves all data but signatures on the device.\n\nExit code: 0 when it was scrubbed, 75 when it was left alone because it is in use, read-only, failing, not there or other storage than --volume-id says, 2 for wrong arguments, 1 for anything else."
)]
pub(super) struct ScrubArgs {
    /// zero, discard, shred or quick for a block device; fsclean for a mounted filesystem
    method: String,
    /// How often shred writes random data [default: 3]
    passes: Option<String>,
    /// The device, or the mount point [default: $LOCAL_PV_BLKDEVICE, for fsclean $LOCAL_PV_FILESYSTEM]
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
    /// Scrub it only if this is its volume id, as on its PV [default: $LOCAL_PV_VOLUME_ID]
    #[arg(long, value_name = "ID")]
    volume_id: Option<String>,
    /// Wipe no more bytes per second, such as 100Mi [default: $LOCAL_PV_SCRUB_BANDWIDTH, else no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bandwidth)]
    scrub_bandwidth: Option<NonZeroU64>,
    /// The host's mount table, if it is here
    #[arg(long, default_value = "/host/mountinfo", value_name = "FILE")]
    host_mountinfo: PathBuf,
}

/// What is to be done to what.
#[derive(Debug, Clone)]
struct Task {
    cleaner: Cleaner,
    volume: PathBuf,
    expected: Option<VolumeId>,
    bytes_per_second: Option<NonZeroU64>,
    scan: ScanSettings,
    /// A hold has an exit code of its own.
    tells_holds: bool,
}

/// A script of the classic image.
struct Script {
    name: &'static str,
    arguments: &'static str,
    variable: &'static str,
    does: &'static str,
}

const SCRIPTS: [Script; 5] = [
    Script {
        name: "quick_reset.sh",
        arguments: "",
        variable: DEVICE_VARIABLE,
        does: "removes the signatures of filesystems, volume managers and partition tables; data stays readable",
    },
    Script {
        name: "shred.sh",
        arguments: " [PASSES]",
        variable: DEVICE_VARIABLE,
        does: "overwrites the device with random data, 3 times if not told otherwise, and then with zeros",
    },
    Script {
        name: "dd_zero.sh",
        arguments: " [PASSES]",
        variable: DEVICE_VARIABLE,
        does: "overwrites the device with zeros, once however many passes are asked for",
    },
    Script {
        name: "blkdiscard.sh",
        arguments: "",
        variable: DEVICE_VARIABLE,
        does: "discards all blocks of the device and zeroes it",
    },
    Script {
        name: "fsclean.sh",
        arguments: "",
        variable: FILESYSTEM_VARIABLE,
        does: "removes all files of the mounted filesystem",
    },
];

/// Does what a classic script did, if the program was called by the name of one.
pub(super) fn by_script_name(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let called = PathBuf::from(args.next()?);
    let name = called.file_name()?.to_str()?;
    let script = SCRIPTS.iter().find(|script| script.name == name)?;
    let arguments: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let result = script_task(script, &arguments).and_then(|task| scrub(&task));
    Some(result.unwrap_or_else(|error| {
        eprintln!("{name}: {error:#}");
        ExitCode::FAILURE
    }))
}

fn script_task(script: &Script, arguments: &[String]) -> anyhow::Result<Task> {
    let usage = || {
        let Script {
            name,
            arguments,
            variable,
            does,
        } = script;
        format!("usage: {variable}=PATH {name}{arguments}\n{name} {does}.")
    };
    if arguments.iter().any(|argument| argument.starts_with('-')) {
        bail!("no such option\n{}", usage());
    }
    let words: Vec<String> = std::iter::once(format!("/scripts/{}", script.name))
        .chain(arguments.iter().cloned())
        .collect();
    let cleaner = Cleaner::parse(&words).map_err(|error| anyhow!("{error}\n{}", usage()))?;
    task(cleaner, None, None).map_err(|error| anyhow!("{error:#}\n{}", usage()))
}

/// Runs `scrub`.
pub(super) fn run(args: &ScrubArgs) -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::iter::once(&args.method).chain(&args.passes).cloned().collect();
    let cleaner = match Cleaner::parse(&words).map_err(|error| anyhow!(error))? {
        Cleaner::Command(words) if words == ["fsclean"] => Cleaner::Fsclean,
        Cleaner::Command(words) => bail!(
            "{} is no method: use zero, discard, shred, quick or fsclean",
            words.join(" ")
        ),
        cleaner => cleaner,
    };
    let mut task = match task(cleaner, args.device.clone(), args.volume_id.clone()) {
        Ok(task) => task,
        Err(error) if is_absent(&error) => {
            eprintln!("local-volume-provisioner: {error:#}");
            return Ok(ExitCode::from(HELD));
        }
        Err(error) => return Err(error),
    };
    task.tells_holds = true;
    task.bytes_per_second = args.scrub_bandwidth.or(task.bytes_per_second);
    task.scan.host_mountinfo = args.host_mountinfo.clone();
    scrub(&task)
}

/// Whether the volume is not there: it may have been pulled out, and may come back.
fn is_absent(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::NotFound)
}

/// The task that arguments and environment describe.
fn task(cleaner: Cleaner, volume: Option<PathBuf>, volume_id: Option<String>) -> anyhow::Result<Task> {
    let variable = match cleaner {
        Cleaner::Fsclean => FILESYSTEM_VARIABLE,
        _ => DEVICE_VARIABLE,
    };
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let Some(volume) = volume.or_else(|| set(variable).map(PathBuf::from)) else {
        bail!("{variable} is not set: it must name what to scrub");
    };
    // An id that cannot be understood cannot be met: nothing is scrubbed then.
    let volume_id = volume_id.or_else(|| set(VOLUME_ID_VARIABLE).map(|value| value.to_string_lossy().into_owned()));
    let expected = volume_id.map(|text| text.parse()).transpose()?;
    if cleaner != Cleaner::Fsclean {
        let found = std::fs::metadata(&volume).with_context(|| format!("cannot look at {}", volume.display()))?;
        if !std::os::unix::fs::FileTypeExt::is_block_device(&found.file_type()) {
            bail!("{} is not a block device", volume.display());
        }
    }
    let bandwidth = set(BANDWIDTH_VARIABLE).map(|text| parse_bandwidth(&text.to_string_lossy()));
    let bytes_per_second = bandwidth
        .transpose()
        .map_err(|error| anyhow!("{BANDWIDTH_VARIABLE}: {error}"))?;
    Ok(Task {
        cleaner,
        volume,
        expected,
        bytes_per_second,
        scan: ScanSettings::default(),
        tells_holds: false,
    })
}

fn scrub(task: &Task) -> anyhow::Result<ExitCode> {
    crate::logs::to_stderr(2, false);
    let unit = match task.cleaner {
        Cleaner::Fsclean => Unit::Entries,
        _ => Unit::Bytes,
    };
    let (progress, cancel) = (Progress::new(unit, 0), Cancel::new());
    let began = Instant::now();
    info!(volume = %task.volume.display(), method = %task.cleaner, "scrub starts");
    let result = runtime()?.block_on(watched(task.clone(), &progress, &cancel))?;
    let volume = task.volume.display();
    match result {
        Ok(()) => {
            info!(%volume, took = ?began.elapsed(), "scrubbed");
            Ok(ExitCode::SUCCESS)
        }
        Err(ScrubError::Held(held)) if task.tells_holds => {
            eprintln!("local-volume-provisioner: {volume} was not scrubbed: {held}");
            Ok(ExitCode::from(HELD))
        }
        Err(ScrubError::Held(held)) => bail!("{volume} was not scrubbed: {held}"),
        Err(ScrubError::Failed(error)) => Err(error.context(format!("{volume} was not scrubbed"))),
        Err(ScrubError::Cancelled) => {
            bail!("{volume} was not scrubbed to its end: it was stopped by a signal; scrub it again")
        }
    }
}

/// Runs the task on a thread of its own, shows how far it is, and stops it on a signal.
async fn watched(task: Task, progress: &Progress, cancel: &Cancel) -> anyhow::Result<Result<(), ScrubError>> {
    let display = Display::new();
    let mut work = {
        let (progress, cancel) = (progress.clone(), cancel.clone());
        tokio::task::spawn_blocking(move || task.run(&progress, &cancel))
    };
    let mut signal = std::pin::pin!(signalled()?);
    let mut tick = tokio::time::interval(display.period());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first comes at once, when there is nothing to show yet.
    tick.tick().await;
    loop {
        tokio::select! {
            result = &mut work => {
                display.end();
                return result.context("the scrub failed");
            }
            () = &mut signal, if !cancel.is_cancelled() => {
                info!("stopping");
                cancel.cancel();
            }
            _ = tick.tick() => display.show(&progress.snapshot()),
        }
    }
}

impl Task {
    fn run(&self, progress: &Progress, cancel: &Cancel) -> Result<(), ScrubError> {
        let _idle = IdlePriority::of_this_thread();
        match self.cleaner {
            Cleaner::Fsclean => self.filesystem(progress, cancel),
            _ => self.device(progress, cancel),
        }
    }

    fn device(&self, progress: &Progress, cancel: &Cancel) -> Result<(), ScrubError> {
        let (scan, tables, expected) = (&self.scan, &Tables::new(&self.scan), self.expected.as_ref());
        let device = recycle::claim(&self.volume, scan, tables)?;
        let examine = || recycle::examine_device(&device, &self.volume, scan, tables, expected);
        let facts = examine()?;
        let steering = Steering::new(progress, cancel, self.bytes_per_second);
        let mut check = || examine().map(drop);
        block::wipe(&self.cleaner, &device.file, facts.capacity_bytes, &mut check, &steering)
    }

    fn filesystem(&self, progress: &Progress, cancel: &Cancel) -> Result<(), ScrubError> {
        let no_name = || ScrubError::Failed(anyhow!("{} names no mount point", self.volume.display()));
        let name = self.volume.file_name().ok_or_else(no_name)?;
        let parent = self.volume.parent().filter(|parent| *parent != Path::new(""));
        let root = filesystem::open_mount_root(parent.unwrap_or(Path::new(".")), name)?;
        let tables = Tables::new(&self.scan);
        let mount = recycle::examine_filesystem(&root, &self.scan, &tables, self.expected.as_ref())?;
        let mut check = || {
            let (mount, own) = recycle::as_it_is(mount.mount_id, &tables)?;
            let (_, host) = tables.host_anew();
            recycle::check_nested(&mount, &own, &host)?;
            match host
                .pods()
                .iter()
                .find(|pod| pod.dev == mount.dev && recycle::overlap(&pod.subtree, &mount.root))
            {
                None => Ok(()),
                Some(pod) => Err(ScrubError::Held(Held::InUse(format!(
                    "pod {} has it mounted (as PV {})",
                    pod.pod_uid, pod.pv
                )))),
            }
        };
        filesystem::filesystem(&root, &mut check, progress, cancel).map(drop)
    }
}

/// Where the progress is shown.
enum Display {
    Bar(ProgressBar),
    Log,
}

impl Display {
    fn new() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Bar(ProgressBar::no_length())
        } else {
            Self::Log
        }
    }

    fn period(&self) -> Duration {
        match self {
            Self::Bar(_) => BAR_PERIOD,
            Self::Log => LOG_PERIOD,
        }
    }

    fn show(&self, snapshot: &Snapshot) {
        let bar = match self {
            Self::Log => return info!(progress = %snapshot, "scrubbing"),
            Self::Bar(bar) => bar,
        };
        let template = match (snapshot.unit, snapshot.total) {
            (Unit::Bytes, Some(_)) => "{wide_bar} {binary_bytes} of {binary_total_bytes}, {msg}",
            (Unit::Bytes, None) => "{spinner} {binary_bytes}",
            (Unit::Entries, _) => "{spinner} {pos} entries removed",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if let Some(total) = snapshot.total {
            bar.set_length(total);
        }
        if let Some(remaining) = snapshot.remaining {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let rate = indicatif::BinaryBytes(snapshot.per_second as u64);
            bar.set_message(format!("{rate}/s, {} s left", remaining.as_secs()));
        }
        bar.set_position(snapshot.done);
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
