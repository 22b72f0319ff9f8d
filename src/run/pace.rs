//! How soon one pass follows another.
//!
//! After quiet a wake is acted on at once, and so are the few passes that the life of one volume takes. Under a stream of
//! wakes (hundreds of volumes released at once) passes rest in between, so that each covers many wakes and what they are
//! about, the API server and the scrubs, gets the processor.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Daemon;

/// While they have to rest, passes take one part in this many of the time.
const PARTS: u32 = 5;
/// Passes that took so long together are made without rest: dozens on a node of the usual size.
const CREDIT: Duration = Duration::from_millis(150);
/// No pass counts for more: one that waited for a disk that hangs has spent nothing.
const MOST: Duration = Duration::from_millis(100);

/// While more calls of the API than [`FEW`] are under way or wait for their turn, the next pass waits for so long at most:
/// what it came to would have to wait behind them.
const FOR_CALLS: Duration = Duration::from_millis(500);
/// Enough to keep all connections busy while a pass is made.
const FEW: usize = 3 * super::WRITES;

/// What passes have taken lately.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What they took, less what has been made good by the time since.
    debt: Duration,
    /// When that was worked out, on the daemon's clock.
    at: Duration,
}

impl Pace {
    /// A pass has ended `now`, and `took` so long.
    pub(super) fn spent(&mut self, took: Duration, now: Duration) {
        let counted = took.min(MOST);
        self.settle(now.saturating_sub(counted));
        self.debt += counted;
        self.at = now;
    }

    /// How long to rest `now`, before the next pass.
    fn rest(&mut self, now: Duration) -> Duration {
        self.settle(now);
        self.debt.saturating_sub(CREDIT) * (PARTS - 1)
    }

    fn settle(&mut self, now: Duration) {
        self.debt = self.debt.saturating_sub(now.saturating_sub(self.at) / (PARTS - 1));
        self.at = self.at.max(now);
    }
}

impl Daemon {
    /// Rests before the next pass, and lets the API calls that wait for their turn go first. What ends meanwhile, or has
    /// ended, is settled, so that the next pass sees it all.
    pub(super) async fn rest(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let (rested, waited) = (now + self.pace.rest(self.now()), now + FOR_CALLS);
        loop {
            while let Some(done) = self.tasks.try_join_next() {
                self.settle_task(done)?;
            }
            // What scrubs are told must not wait for calls.
            let busy = self.memory.in_flight.len() > FEW && self.running.is_empty();
            let until = if busy { rested.max(waited) } else { rested };
            // A timer for now would take a millisecond.
            if until <= Instant::now() {
                return Ok(());
            }
            tokio::select! {
                Some(done) = self.tasks.join_next() => self.settle_task(done)?,
                () = sleep_until(until) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Makes passes that take so long for a time, each as soon as it may, and returns how many and the longest rest.
    fn stream(pace: &mut Pace, now: &mut Duration, took: Duration, time: Duration) -> (u32, Duration) {
        let (end, mut passes, mut longest) = (*now + time, 0, Duration::ZERO);
        while *now < end {
            let rest = pace.rest(*now);
            longest = longest.max(rest);
            *now += rest + took;
            pace.spent(took, *now);
            passes += 1;
        }
        (passes, longest)
    }

    #[test]
    fn a_stream_of_wakes_leaves_most_of_the_time_to_others() {
        let (mut pace, mut now) = (Pace::default(), Duration::ZERO);
        let (passes, longest) = stream(&mut pace, &mut now, 20 * MILLISECOND, Duration::from_secs(10));
        // A fifth of the time, and the credit.
        assert!((100..115).contains(&passes), "{passes}");
        assert!(longest <= 80 * MILLISECOND, "{longest:?}");
    }

    #[test]
    fn the_first_passes_after_quiet_are_made_at_once() {
        let (mut pace, mut now) = (Pace::default(), Duration::ZERO);
        for _ in 0..2 {
            let (passes, longest) = stream(&mut pace, &mut now, 20 * MILLISECOND, 120 * MILLISECOND);
            assert_eq!(
                (passes, longest),
                (6, Duration::ZERO),
                "the life of one volume on a large node"
            );
            now += Duration::from_secs(2);
        }
        let (passes, longest) = stream(&mut pace, &mut now, MILLISECOND, 120 * MILLISECOND);
        assert_eq!(
            (passes, longest),
            (120, Duration::ZERO),
            "and that of many on a small one"
        );
    }

    #[test]
    fn a_disk_that_hangs_is_not_made_up_for() {
        let mut pace = Pace::default();
        let mut now = Duration::from_secs(5);
        pace.spent(now, now);
        assert_eq!(pace.rest(now), Duration::ZERO);
        for _ in 0..10 {
            now += Duration::from_secs(5);
            pace.spent(Duration::from_secs(5), now);
        }
        assert!(pace.rest(now) <= (PARTS - 1) * MOST, "{:?}", pace.rest(now));
    }
}
