//! The metrics of the classic program, under its names.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Result};

use super::register::{LONG, Register, SHORT, whole};
use super::{By, mode_label};
use crate::capacity;
use crate::config::VolumeMode;
use crate::memory::{Memory, ScrubState};

/// Dashboards and alerts of the classic program's users work on.
pub(super) struct Classic {
    capacity_bytes: IntGaugeVec,
    discovery_total: IntCounterVec,
    discovery_seconds: HistogramVec,
    delete_total: IntCounterVec,
    delete_failed: IntCounterVec,
    delete_seconds: HistogramVec,
    api_total: IntCounterVec,
    api_failed: IntCounterVec,
    api_seconds: HistogramVec,
    running: IntGauge,
    succeeded: IntGauge,
    failed: IntGauge,
}

impl Classic {
    pub(super) fn new(to: &mut Register) -> Result<Self> {
        let classic = Self {
            capacity_bytes: to.gauges(
                "persistentvolume_capacity_bytes",
                "Sum of the capacities of the own PersistentVolumes.",
                &["mode"],
            )?,
            discovery_total: to.counters(
                "persistentvolume_discovery_total",
                "PersistentVolumes created.",
                &["mode"],
            )?,
            discovery_seconds: to.histograms(
                "persistentvolume_discovery_duration_seconds",
                "Time from the look at the node to the created PersistentVolume.",
                &["mode"],
                &SHORT,
            )?,
            delete_total: to.counters("persistentvolume_delete_total", "Volumes scrubbed.", &["mode", "type"])?,
            delete_failed: to.counters(
                "persistentvolume_delete_failed_total",
                "Scrubs that failed.",
                &["mode", "type"],
            )?,
            delete_seconds: to.histograms(
                "persistentvolume_delete_duration_seconds",
                "Duration of scrubs.",
                &["mode", "type", "capacity", "cleanup_command"],
                &LONG,
            )?,
            api_total: to.counters(
                "apiserver_requests_total",
                "Creates and deletes of PersistentVolumes.",
                &["method"],
            )?,
            api_failed: to.counters(
                "apiserver_requests_failed_total",
                "Creates and deletes of PersistentVolumes that failed.",
                &["method"],
            )?,
            api_seconds: to.histograms(
                "apiserver_requests_duration_seconds",
                "Duration of creates and deletes of PersistentVolumes.",
                &["method"],
                &SHORT,
            )?,
            running: to.gauge("proctable_running", "Scrubs running now.")?,
            succeeded: to.gauge("proctable_succeeded", "Scrubs that succeeded and are not settled yet.")?,
            failed: to.gauge("proctable_failed", "Scrubs that failed and are not settled yet.")?,
        };
        classic.start_at_zero();
        Ok(classic)
    }

    /// A rate sees the first of something only if it has seen 0 before.
    fn start_at_zero(&self) {
        for mode in ["Block", "Filesystem"] {
            self.capacity_bytes.with_label_values(&[mode]).set(0);
            self.discovery_total.with_label_values(&[mode]).reset();
            for by in ["process", "job"] {
                self.delete_total.with_label_values(&[mode, by]).reset();
                self.delete_failed.with_label_values(&[mode, by]).reset();
            }
        }
        for method in ["create", "delete"] {
            self.api_total.with_label_values(&[method]).reset();
            self.api_failed.with_label_values(&[method]).reset();
        }
    }

    pub(super) fn created(&self, mode: VolumeMode, since: Duration) {
        self.discovery_total.with_label_values(&[mode_label(mode)]).inc();
        self.discovery_seconds
            .with_label_values(&[mode_label(mode)])
            .observe(since.as_secs_f64());
    }

    pub(super) fn api_call(&self, method: &str, took: Duration, failed: bool) {
        self.api_total.with_label_values(&[method]).inc();
        self.api_seconds
            .with_label_values(&[method])
            .observe(took.as_secs_f64());
        if failed {
            self.api_failed.with_label_values(&[method]).inc();
        }
    }

    pub(super) fn scrubbed(&self, mode: VolumeMode, by: By, command: &str, capacity: &str, took: Duration) {
        let bucket = capacity_bucket(capacity::parse(capacity).unwrap_or(0));
        self.delete_total
            .with_label_values(&[mode_label(mode), by.label()])
            .inc();
        self.delete_seconds
            .with_label_values(&[mode_label(mode), by.label(), &bucket, command])
            .observe(took.as_secs_f64());
    }

    pub(super) fn scrub_failed(&self, mode: VolumeMode, by: By) {
        self.delete_failed
            .with_label_values(&[mode_label(mode), by.label()])
            .inc();
    }

    /// Capacities are counted with their modes.
    pub(super) fn pass(&self, capacities: &[(VolumeMode, u64)], memory: &Memory) {
        for wanted in [VolumeMode::Block, VolumeMode::Filesystem] {
            let of_mode = capacities.iter().filter(|(mode, _)| *mode == wanted);
            let sum = of_mode.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
            self.capacity_bytes
                .with_label_values(&[mode_label(wanted)])
                .set(whole(sum));
        }
        let count = |wanted: fn(&ScrubState) -> bool| {
            whole(memory.scrubs.values().filter(|scrub| wanted(&scrub.state)).count())
        };
        self.running.set(count(|state| matches!(state, ScrubState::Running)));
        self.succeeded
            .set(count(|state| matches!(state, ScrubState::Clean { .. })));
        self.failed
            .set(count(|state| matches!(state, ScrubState::Failed { .. })));
    }
}

/// The capacity label: the next multiple of 500 GB, as the classic program writes it.
fn capacity_bucket(bytes: u64) -> String {
    const STEP: u64 = 500_000_000_000;
    format!("{}G", bytes.div_ceil(STEP).max(1) * 500)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_fall_into_steps_of_500_gb() {
        let cases = [
            (0, "500G"),
            (1, "500G"),
            (500_000_000_000, "500G"),
            (500_000_000_001, "1000G"),
            (1_900_000_000_000, "2000G"),
        ];
        for (bytes, bucket) in cases {
            assert_eq!(capacity_bucket(bytes), bucket, "{bytes}");
        }
    }
}
