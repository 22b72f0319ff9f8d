//! What the volumes are, after each pass. Series do not grow with their number: only running scrubs have their own.

use prometheus::{Gauge, Histogram, IntGauge, IntGaugeVec, Result};

use super::register::{LONG, Register, whole};
use super::releases::Releases;
use crate::config::Config;
use crate::plan::{Plan, State, Volume};
use crate::scrub::progress::{Snapshot, Unit};

pub(super) struct Volumes {
    by_state: IntGaugeVec,
    held: IntGaugeVec,
    ignored: IntGaugeVec,
    vanished_bound: IntGauge,
    with_warning: IntGauge,
    scrub_done: IntGaugeVec,
    scrub_size: IntGaugeVec,
    released_to_available: Histogram,
    oldest_release: Gauge,
}

impl Volumes {
    pub(super) fn new(to: &mut Register) -> Result<Self> {
        Ok(Self {
            by_state: to.gauges(
                "volumes",
                "Entries of the discovery directories by state.",
                &["storage_class", "state"],
            )?,
            held: to.gauges("volumes_held", "Held volumes by reason.", &["reason"])?,
            ignored: to.gauges("volumes_ignored", "Entries that are no volume, by reason.", &["reason"])?,
            vanished_bound: to.gauge(
                "volumes_vanished_bound",
                "Volumes that are not there any more while a claim is bound to them.",
            )?,
            with_warning: to.gauge(
                "volumes_with_warning",
                "Volumes with something wrong that does not change their state.",
            )?,
            scrub_done: to.gauges(
                "scrub_done",
                "How much of a running scrub is done, in bytes or directory entries.",
                &["persistentvolume", "unit"],
            )?,
            scrub_size: to.gauges(
                "scrub_size",
                "How much there is to do in a running scrub, where that is known.",
                &["persistentvolume", "unit"],
            )?,
            released_to_available: to.histogram(
                "released_to_available_seconds",
                "Time from the release of a volume, as this process saw it, to its next PersistentVolume.",
                &LONG,
            )?,
            oldest_release: to.time(
                "oldest_release_timestamp_seconds",
                "When the volume was released that waits longest for its next PersistentVolume; 0 if none waits.",
            )?,
        })
    }

    pub(super) fn available_again(&self, since_release: std::time::Duration) {
        self.released_to_available.observe(since_release.as_secs_f64());
    }

    pub(super) fn pass(&self, plan: &Plan, config: &Config, releases: &Releases) {
        for gauges in [
            &self.by_state,
            &self.held,
            &self.ignored,
            &self.scrub_done,
            &self.scrub_size,
        ] {
            gauges.reset();
        }
        // A class without volumes says so.
        for class in config.classes.keys() {
            for state in State::WORDS {
                self.by_state.with_label_values(&[class.as_str(), state]).set(0);
            }
        }
        for volume in &plan.volumes {
            self.volume(volume);
        }
        let lost = |volume: &&Volume| matches!(volume.state, State::Vanished(_)) && volume.claim.is_some();
        self.vanished_bound.set(whole(plan.volumes.iter().filter(lost).count()));
        let warned = plan.volumes.iter().filter(|volume| volume.warning.is_some());
        self.with_warning.set(whole(warned.count()));
        self.oldest_release
            .set(releases.oldest().unwrap_or_default().as_secs_f64());
    }

    fn volume(&self, volume: &Volume) {
        self.by_state
            .with_label_values(&[volume.directory.class.as_str(), volume.state.word()])
            .inc();
        match &volume.state {
            State::Held(held) => self.held.with_label_values(&[held.slug()]).inc(),
            State::Ignored(ignored) => self.ignored.with_label_values(&[ignored.slug()]).inc(),
            State::Scrubbing(Some(progress)) => {
                if let Some(pv) = &volume.pv {
                    self.scrubbing(pv, progress);
                }
            }
            _ => {}
        }
    }

    fn scrubbing(&self, pv: &str, progress: &Snapshot) {
        let unit = match progress.unit {
            Unit::Bytes => "bytes",
            Unit::Entries => "entries",
        };
        let set = |gauges: &IntGaugeVec, value: u64| gauges.with_label_values(&[pv, unit]).set(whole(value));
        set(&self.scrub_done, progress.done);
        if let Some(total) = progress.total {
            set(&self.scrub_size, total);
        }
    }
}
