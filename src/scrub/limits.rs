//! How much of a disk a scrub may take from those who use it or its neighbours.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::ScrubError;
use super::checkpoint::Cadence;
use super::progress::{Cancel, Progress};
use crate::failpoint;
use crate::sys::{self, IoPriority};

/// What bounds each scrub of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `--scrub-bandwidth`: how many bytes per second a native method covers of one device; `None`: as many as it can.
    pub bytes_per_second: Option<NonZeroU64>,
    /// `--stall-timeout`: a command that neither writes a line nor ends for so long is killed.
    pub stall_timeout: Duration,
    /// How often a native method notes how far it is.
    pub checkpoints: Cadence,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes_per_second: None,
            // A command is silent for long when it is at work on a large disk; the documented default.
            stall_timeout: Duration::from_secs(600),
            checkpoints: Cadence::default(),
        }
    }
}

/// Reads `--scrub-bandwidth`: a number of bytes as a Kubernetes quantity, such as `100Mi` or `50M`.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse_bandwidth(text: &str) -> Result<NonZeroU64, String> {
    let bytes = crate::capacity::parse(text)
        .ok_or_else(|| format!("{text:?} is no number of bytes per second such as 100Mi or 50M"))?;
    NonZeroU64::new(bytes).ok_or_else(|| "0 would never end; leave the flag away for no limit".to_owned())
}

/// What steers a wipe while it runs.
#[derive(Debug)]
pub struct Steering<'a> {
    /// Is told what is done.
    pub progress: &'a Progress,
    /// Is asked between two chunks.
    pub cancel: &'a Cancel,
    throttle: Throttle,
}

impl<'a> Steering<'a> {
    /// A wipe that begins now.
    #[must_use]
    pub fn new(progress: &'a Progress, cancel: &'a Cancel, bytes_per_second: Option<NonZeroU64>) -> Self {
        Self {
            progress,
            cancel,
            throttle: Throttle {
                bytes_per_second,
                free_at: Cell::new(Instant::now()),
            },
        }
    }

    /// How much to do in one step of at most `most` bytes, which is a power of two.
    pub(super) fn step_bytes(&self, most: u64) -> u64 {
        self.throttle.step_bytes(most)
    }

    /// Counts a step that was done, and waits until the next may begin.
    pub(super) fn done(&self, bytes: u64) -> Result<(), ScrubError> {
        self.progress.add(bytes);
        failpoint::hit!("scrub.block.chunk");
        self.throttle.spend(bytes, self.cancel)
    }
}

/// Spaces steps out in time. What was not used, because the device was slow, is not made up for: no burst follows.
#[derive(Debug)]
struct Throttle {
    bytes_per_second: Option<NonZeroU64>,
    /// When what was done is paid for.
    free_at: Cell<Instant>,
}

/// No step is smaller: it is a multiple of every device's logical block.
const LEAST_STEP_BYTES: u64 = 64 * 1024;
/// A wait looks this often whether it should stop.
const NAP: Duration = Duration::from_millis(100);

impl Throttle {
    fn step_bytes(&self, most: u64) -> u64 {
        let Some(rate) = self.bytes_per_second else {
            return most;
        };
        // Some steps a second, so that neighbours do not wait long for one.
        let wanted = (rate.get() / 8).max(LEAST_STEP_BYTES);
        most.min(1 << wanted.ilog2())
    }

    fn spend(&self, bytes: u64, cancel: &Cancel) -> Result<(), ScrubError> {
        let Some(rate) = self.bytes_per_second else {
            return Ok(());
        };
        #[allow(clippy::cast_precision_loss)]
        let cost = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let now = Instant::now();
        // The step began when the one before was paid for, if it did not come later.
        let free_at = (self.free_at.get() + cost).max(now);
        self.free_at.set(free_at);
        loop {
            cancel.check()?;
            let left = free_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

/// Lets the calling thread's disk accesses, and those of the commands that it starts, come after everybody else's, for
/// as long as this lives. Where the disk's scheduler knows no priorities it has no effect.
#[derive(Debug)]
pub struct IdlePriority {
    before: Option<IoPriority>,
}

impl IdlePriority {
    /// From now on. That it is not permitted (a seccomp profile) is no reason not to scrub.
    #[must_use]
    pub fn of_this_thread() -> Self {
        let before = sys::io_priority().ok();
        if let Err(error) = sys::set_io_priority(IoPriority::IDLE) {
            tracing::debug!(%error, "the scrub runs with ordinary I/O priority");
        }
        Self { before }
    }
}

impl Drop for IdlePriority {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = sys::set_io_priority(before)
        {
            tracing::debug!(%error, "the thread's I/O priority stays idle");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::scrub::progress::Unit;

    const MIB: u64 = 1 << 20;

    #[test]
    fn bandwidths_are_quantities() {
        assert_eq!(parse_bandwidth("100Mi").unwrap().get(), 100 * MIB);
        assert_eq!(parse_bandwidth("50M").unwrap().get(), 50_000_000);
        assert_eq!(parse_bandwidth("4096").unwrap().get(), 4096);
        for wrong in ["", "0", "fast", "-1", "10MB/s"] {
            assert!(parse_bandwidth(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn steps_are_powers_of_two_that_fit_the_rate() {
        let throttle = |rate| Throttle {
            bytes_per_second: NonZeroU64::new(rate),
            free_at: Cell::new(Instant::now()),
        };
        assert_eq!(throttle(0).step_bytes(64 * MIB), 64 * MIB);
        assert_eq!(throttle(100 * MIB).step_bytes(64 * MIB), 8 * MIB);
        assert_eq!(throttle(100 * MIB).step_bytes(4 * MIB), 4 * MIB);
        assert_eq!(throttle(1).step_bytes(64 * MIB), LEAST_STEP_BYTES);
        assert_eq!(throttle(u64::MAX).step_bytes(64 * MIB), 64 * MIB);
    }

    #[test]
    fn a_limited_wipe_takes_its_time_and_can_be_stopped() {
        let (progress, cancel) = (Progress::new(Unit::Bytes, 0), Cancel::new());
        let steering = Steering::new(&progress, &cancel, NonZeroU64::new(10 * MIB));
        let began = Instant::now();
        for _ in 0..4 {
            steering.done(MIB / 2).unwrap();
        }
        assert!(began.elapsed() >= Duration::from_millis(199), "{:?}", began.elapsed());
        cancel.cancel();
        assert!(matches!(steering.done(MIB << 20), Err(ScrubError::Cancelled)));
        assert_eq!(progress.snapshot().done, 2 * MIB + (MIB << 20));
    }

    #[test]
    fn a_slow_device_saves_nothing_up() {
        let cancel = Cancel::new();
        let throttle = Throttle {
            bytes_per_second: NonZeroU64::new(10 * MIB),
            free_at: Cell::new(Instant::now().checked_sub(Duration::from_secs(5)).unwrap()),
        };
        throttle.spend(MIB, &cancel).unwrap();
        let began = Instant::now();
        throttle.spend(MIB, &cancel).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(99), "{:?}", began.elapsed());
    }

    #[test]
    fn the_priority_is_given_back() {
        std::thread::spawn(|| {
            let before = sys::io_priority().unwrap();
            let idle = IdlePriority::of_this_thread();
            assert_eq!(sys::io_priority().unwrap(), IoPriority::IDLE);
            drop(idle);
            assert_eq!(sys::io_priority().unwrap(), before);
        })
        .join()
        .unwrap();
    }
}
