//! How far a scrub is, and the wish to stop it: shared between its thread and those who look at it.

use super::ScrubError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntCounter;

/// What a scrub counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of a block device.
    Bytes,
    /// Directory entries of a filesystem.
    Entries,
}

/// A counter that one scrub advances and anybody reads. Clones share it.
#[derive(Debug, Clone)]
pub struct Progress {
    shared: Arc<Shared>,
    /// Counts what all scrubs do.
    counter: Option<IntCounter>,
}

#[derive(Debug)]
struct Shared {
    unit: Unit,
    started: Instant,
    /// What an earlier, interrupted scrub had done: part of `done`, not of the rate.
    inherited: AtomicU64,
    done: AtomicU64,
    /// 0 means unknown.
    total: AtomicU64,
}

/// A [`Progress`] at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// What `done` and `total` count.
    pub unit: Unit,
    /// How much is done.
    pub done: u64,
    /// How much of that an earlier, interrupted scrub had done.
    pub inherited: u64,
    /// How much there is to do, if that is known.
    pub total: Option<u64>,
    /// Since the scrub began.
    pub elapsed: Duration,
    /// Units per second, averaged since the scrub began.
    pub per_second: f64,
    /// How long the rest takes at this rate; `None` without a total or before anything is done.
    pub remaining: Option<Duration>,
}

impl std::fmt::Display for Snapshot {
    /// Such as `35 % of 4096 MiB, 512 MiB/s, 5 s left`, or `1200 entries removed, 40000/s`. What is large is in GiB, and
    /// what is long in hours.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        #[allow(clippy::cast_precision_loss)]
        let (done, total) = (self.done as f64, self.total.map(|total| total as f64));
        match (self.unit, total) {
            (Unit::Bytes, Some(total)) => {
                write!(
                    f,
                    "{:.0} % of {}, {:.0} MiB/s",
                    100.0 * done / total,
                    size(total),
                    self.per_second / MIB
                )?;
            }
            (Unit::Bytes, None) => write!(f, "{}, {:.0} MiB/s", size(done), self.per_second / MIB)?,
            (Unit::Entries, _) => write!(f, "{} entries removed, {:.0}/s", self.done, self.per_second)?,
        }
        if let Some(remaining) = self.remaining {
            write!(f, ", {} left", span(remaining.as_secs()))?;
        }
        #[allow(clippy::cast_precision_loss)]
        match total {
            Some(total) if self.inherited > 0 => {
                write!(f, ", resumed at {:.0} %", 100.0 * self.inherited as f64 / total)
            }
            _ => Ok(()),
        }
    }
}

const MIB: f64 = 1_048_576.0;

fn size(bytes: f64) -> String {
    if bytes < 10_240.0 * MIB {
        format!("{:.0} MiB", bytes / MIB)
    } else {
        format!("{:.0} GiB", bytes / MIB / 1024.0)
    }
}

/// A time in seconds, rounded up to what matters of it.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

impl Progress {
    /// A scrub that begins now. A `total` of 0 means that it is not known.
    #[must_use]
    pub fn new(unit: Unit, total: u64) -> Self {
        let shared = Shared {
            unit,
            started: Instant::now(),
            inherited: AtomicU64::new(0),
            done: AtomicU64::new(0),
            total: AtomicU64::new(total),
        };
        Self {
            shared: Arc::new(shared),
            counter: None,
        }
    }

    /// What is done is counted there, too, as it is done; not what was inherited.
    #[must_use]
    pub fn counted_by(self, counter: IntCounter) -> Self {
        Self {
            counter: Some(counter),
            ..self
        }
    }

    /// The scrub goes on where an interrupted one had done this much already. To be called before anything is counted.
    pub fn inherit(&self, done: u64) {
        self.shared.inherited.store(done, Ordering::Relaxed);
        self.shared.done.store(done, Ordering::Relaxed);
    }

    /// Sets how much there is to do; 0 means unknown.
    pub fn set_total(&self, total: u64) {
        self.shared.total.store(total, Ordering::Relaxed);
    }

    /// Counts more of it as done.
    pub fn add(&self, units: u64) {
        self.shared.done.fetch_add(units, Ordering::Relaxed);
        if let Some(counter) = &self.counter {
            counter.inc_by(units);
        }
    }

    /// How far it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_after(self.shared.started.elapsed())
    }

    fn snapshot_after(&self, elapsed: Duration) -> Snapshot {
        let done = self.shared.done.load(Ordering::Relaxed);
        let inherited = self.shared.inherited.load(Ordering::Relaxed);
        let total = Some(self.shared.total.load(Ordering::Relaxed)).filter(|total| *total > 0);
        #[allow(clippy::cast_precision_loss)]
        let per_second = if elapsed.is_zero() {
            0.0
        } else {
            done.saturating_sub(inherited) as f64 / elapsed.as_secs_f64()
        };
        #[allow(clippy::cast_precision_loss)]
        let remaining = total
            .filter(|_| per_second > 0.0)
            .and_then(|total| Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / per_second).ok());
        Snapshot {
            unit: self.shared.unit,
            done,
            inherited,
            total,
            elapsed,
            per_second,
            remaining,
        }
    }
}

/// The wish to stop a scrub. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the scrub at its next entry or chunk.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the scrub should stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// For the scrub: `Err` once it should stop.
    pub(super) fn check(&self) -> Result<(), ScrubError> {
        if self.is_cancelled() {
            Err(ScrubError::Cancelled)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_and_the_rest_follow_from_what_is_done() {
        let progress = Progress::new(Unit::Bytes, 1_000);
        progress.add(250);
        let snapshot = progress.snapshot_after(Duration::from_secs(5));
        assert_eq!((snapshot.done, snapshot.total), (250, Some(1_000)));
        assert!((snapshot.per_second - 50.0).abs() < 1e-9);
        assert_eq!(snapshot.remaining, Some(Duration::from_secs(15)));
    }

    #[test]
    fn what_an_earlier_scrub_did_is_done_but_says_nothing_about_the_rate() {
        let progress = Progress::new(Unit::Bytes, 1_000);
        progress.inherit(500);
        progress.add(100);
        let snapshot = progress.snapshot_after(Duration::from_secs(2));
        assert_eq!((snapshot.done, snapshot.inherited), (600, 500));
        assert_eq!(snapshot.remaining, Some(Duration::from_secs(8)));
        assert_eq!(
            snapshot.to_string(),
            "60 % of 0 MiB, 0 MiB/s, 8 s left, resumed at 50 %"
        );
    }

    #[test]
    fn without_a_total_or_before_the_first_step_there_is_no_estimate() {
        let progress = Progress::new(Unit::Entries, 0);
        progress.add(7);
        assert_eq!(progress.snapshot_after(Duration::from_secs(1)).remaining, None);
        assert_eq!(progress.snapshot_after(Duration::from_secs(1)).total, None);
        progress.set_total(10);
        assert!(progress.snapshot_after(Duration::from_secs(1)).remaining.is_some());
        assert_eq!(progress.snapshot_after(Duration::ZERO).remaining, None);
        let untouched = Progress::new(Unit::Entries, 10);
        assert_eq!(untouched.snapshot_after(Duration::from_secs(1)).remaining, None);
    }

    #[test]
    fn large_sizes_and_long_times_are_in_large_units() {
        let progress = Progress::new(Unit::Bytes, 4_000_000_000_000);
        progress.add(1_000_000_000_000);
        let snapshot = progress.snapshot_after(Duration::from_secs(2_000));
        assert_eq!(snapshot.to_string(), "25 % of 3725 GiB, 477 MiB/s, 100 min left");
        let snapshot = progress.snapshot_after(Duration::from_secs(20_000));
        assert_eq!(snapshot.to_string(), "25 % of 3725 GiB, 48 MiB/s, 16 h 40 min left");
    }

    #[test]
    fn all_scrubs_are_counted_together_without_what_they_inherit() {
        let counter = IntCounter::new("all", "all").unwrap();
        let first = Progress::new(Unit::Bytes, 100).counted_by(counter.clone());
        let second = Progress::new(Unit::Bytes, 100).counted_by(counter.clone());
        first.inherit(50);
        first.clone().add(7);
        second.add(5);
        assert_eq!((first.snapshot().done, counter.get()), (57, 12));
    }

    #[test]
    fn clones_share_the_count_and_the_wish() {
        let progress = Progress::new(Unit::Entries, 0);
        progress.clone().add(3);
        assert_eq!(progress.snapshot().done, 3);
        let cancel = Cancel::new();
        assert!(cancel.check().is_ok());
        cancel.clone().cancel();
        assert!(matches!(cancel.check(), Err(ScrubError::Cancelled)));
    }
}
