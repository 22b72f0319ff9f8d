//! Running the operator's own cleaner: a program with its arguments, in a process group of its own.
//!
//! What it writes goes to the log line by line, whatever it is and however much. It is killed, with everything that it
//! started and that stayed in its group, when it shows no sign of life for too long and when the scrub is to stop; when
//! this returns, nothing of it is running.

mod lines;
#[cfg(test)]
mod tests;

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::ScrubError;
use super::progress::Cancel;
use crate::config::Cleaner;
use crate::reason::Held;
use lines::Lines;

/// Environment of a cleaner of block devices: the device's path in the container.
pub const DEVICE_VARIABLE: &str = "LOCAL_PV_BLKDEVICE";
/// Environment of a cleaner of filesystems: the mount point's path in the container.
pub const FILESYSTEM_VARIABLE: &str = "LOCAL_PV_FILESYSTEM";

/// How often it is looked whether the command has ended (without its output telling so) or should end.
const NAP: Duration = Duration::from_millis(50);
/// As `NAP`, once it has closed its output: it is about to end.
const SHORT_NAP: Duration = Duration::from_millis(5);
/// Between SIGTERM and SIGKILL: a well-behaved command needs less, and the daemon's own shutdown must not wait longer.
const GRACE: Duration = Duration::from_secs(5);
/// After SIGKILL, for what only a system call that does not return can delay.
const LEFTOVERS: Duration = Duration::from_secs(10);
/// A pipe holds no more: what the command wrote before it ended.
const PIPE_BYTES: usize = 64 * 1024;

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    /// The program and its arguments. No shell is involved.
    pub words: &'a [String],
    /// [`DEVICE_VARIABLE`] or [`FILESYSTEM_VARIABLE`].
    pub variable: &'static str,
    /// Its value, which is all that the command is told.
    pub volume: &'a Path,
    /// It is killed when it neither writes anything nor ends for so long.
    pub stall_timeout: Duration,
}

/// What a cleaner means in this container: a classic script path is a native method, unless a program of that name is
/// there which is not this very one.
#[must_use]
pub fn resolve(cleaner: &Cleaner, as_written: &[String]) -> Cleaner {
    let script = as_written.first().filter(|program| program.starts_with('/'));
    match script {
        Some(script) if is_other_program(Path::new(script), Path::new("/proc/self/exe")) => {
            Cleaner::Command(as_written.to_vec())
        }
        _ => cleaner.clone(),
    }
}

/// Whether there is a file, and another one than `own`, through whatever links.
fn is_other_program(file: &Path, own: &Path) -> bool {
    let place = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    place(file).is_some_and(|found| Some(found) != place(own))
}

/// Runs a command to its end. Exit code 0 counts as scrubbed.
///
/// # Errors
///
/// `Held`: there is no such program, or it cannot be executed (`CleanerUnavailable`). `Failed`: it ended otherwise, and
/// says how and with which last line, or it stalled. `Cancelled`: it was killed.
pub fn run(invocation: &Invocation<'_>, cancel: &Cancel) -> Result<(), ScrubError> {
    let program = invocation.words.first().map_or("", String::as_str);
    let mut running = Running::start(invocation)?;
    let mut lines = Lines::new(program, invocation.volume);
    let mut last_sign = Instant::now();
    loop {
        if running.has_ended().context("waitid")? {
            break;
        }
        let stalled = last_sign.elapsed() >= invocation.stall_timeout;
        if cancel.is_cancelled() || stalled {
            running.end(&mut lines)?;
            running.bury(&mut lines)?;
            if !stalled {
                return Err(ScrubError::Cancelled);
            }
            return Err(ScrubError::Failed(anyhow!(
                "{program} was killed: it neither wrote anything nor ended for {:?} (--stall-timeout); {}",
                invocation.stall_timeout,
                lines.last_words()
            )));
        }
        if running.read(&mut lines)? {
            last_sign = Instant::now();
        }
    }
    let status = running.bury(&mut lines)?;
    if status.success() {
        return Ok(());
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.to_string());
            format!("was killed by {name}")
        }
        (None, None) => format!("ended with {status}"),
    };
    Err(ScrubError::Failed(anyhow!("{program} {how}; {}", lines.last_words())))
}

/// A command that was started. Dropped, it is killed.
struct Running {
    child: Child,
    group: Pid,
    /// Standard output and error, until nobody can write them any more.
    output: Option<PipeReader>,
    buffer: Vec<u8>,
    buried: bool,
}

impl Running {
    fn start(invocation: &Invocation<'_>) -> Result<Self, ScrubError> {
        let unavailable = |why: &dyn std::fmt::Display| {
            let words = invocation.words.join(" ");
            ScrubError::Held(Held::CleanerUnavailable(format!(
                "the cleaner {words} cannot be run: {why}"
            )))
        };
        let Some((program, arguments)) = invocation.words.split_first() else {
            return Err(unavailable(&"it is empty"));
        };
        // One pipe for both, so that lines stay in the order in which they were written.
        let (output, writer) = io::pipe().context("pipe")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env(invocation.variable, invocation.volume)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("dup")?)
            .stderr(writer);
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => unavailable(&error),
            _ if error.raw_os_error() == Some(nix::libc::ENOEXEC) => unavailable(&error),
            _ => ScrubError::Failed(anyhow!(error).context(format!("cannot start {program}"))),
        })?;
        // The ends for writing are the command's alone now.
        drop(command);
        let group = i32::try_from(child.id()).context("a process id")?;
        Ok(Self {
            child,
            group: Pid::from_raw(group),
            output: Some(output),
            buffer: vec![0; PIPE_BYTES],
            buried: false,
        })
    }

    /// Whether the command itself has ended. It is not reaped yet, so nobody else gets its process id.
    fn has_ended(&self) -> nix::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::Pid(self.group), flags) {
                Ok(status) => return Ok(status != WaitStatus::StillAlive),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what the command wrote, or waits for it a moment. Says whether there was anything.
    fn read(&mut self, lines: &mut Lines) -> Result<bool, ScrubError> {
        let Some(output) = &mut self.output else {
            std::thread::sleep(SHORT_NAP);
            return Ok(false);
        };
        if !readable(output, NAP)? {
            return Ok(false);
        }
        match output.read(&mut self.buffer) {
            Ok(0) => self.output = None,
            Ok(length) => {
                lines.feed(&self.buffer[..length]);
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(ScrubError::Failed(
                    anyhow!(error).context("reading the command's output"),
                ));
            }
        }
        Ok(false)
    }

    /// Kills the group, politely at first, and waits until the command has ended.
    fn end(&mut self, lines: &mut Lines) -> Result<(), ScrubError> {
        let mut signal = Signal::SIGTERM;
        loop {
            self.signal(signal);
            let end = Instant::now() + GRACE;
            while Instant::now() < end {
                if self.has_ended().context("waitid")? {
                    return Ok(());
                }
                self.read(lines)?;
            }
            if signal == Signal::SIGKILL {
                // It hangs in a system call. Nobody else may get the volume as long as it may go on writing.
                tracing::warn!(pid = %self.group, "the cleaner cannot be killed; waiting for it");
            }
            signal = Signal::SIGKILL;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = killpg(self.group, signal)
            && error != Errno::ESRCH
        {
            tracing::debug!(%error, %signal, "could not signal the cleaner");
        }
    }

    /// After the command's end: kills what it left in its group, takes in the last of its output, and reaps.
    fn bury(&mut self, lines: &mut Lines) -> Result<ExitStatus, ScrubError> {
        // Not reaped yet, so the group's number is still its own.
        self.signal(Signal::SIGKILL);
        let mut left = PIPE_BYTES;
        while let Some(output) = &mut self.output
            && left > 0
            && readable(output, Duration::ZERO)?
        {
            match output.read(&mut self.buffer[..left]) {
                Ok(0) | Err(_) => self.output = None,
                Ok(length) => {
                    lines.feed(&self.buffer[..length]);
                    left -= length;
                }
            }
        }
        lines.finish();
        let status = self.child.wait().context("waiting for the command")?;
        self.buried = true;
        self.wait_for_leftovers()?;
        Ok(status)
    }

    /// Waits until the group has no member any more. As PID 1 of a container this process is the one to reap them.
    fn wait_for_leftovers(&self) -> Result<(), ScrubError> {
        let whole_group = Pid::from_raw(-self.group.as_raw());
        let end = Instant::now() + LEFTOVERS;
        loop {
            while matches!(waitpid(whole_group, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
            {
            }
            if killpg(self.group, None) == Err(Errno::ESRCH) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(ScrubError::Failed(anyhow!(
                    "the command left processes behind that cannot be killed (process group {})",
                    self.group
                )));
            }
            std::thread::sleep(SHORT_NAP);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.buried {
            self.signal(Signal::SIGKILL);
            if let Err(error) = self.child.wait() {
                tracing::debug!(%error, "could not reap the cleaner");
            }
        }
    }
}

/// Whether there is something to be read, or will be within this time; the end is something.
fn readable(output: &PipeReader, wait: Duration) -> Result<bool, ScrubError> {
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(ScrubError::Failed(anyhow!(error).context("poll"))),
    }
}
