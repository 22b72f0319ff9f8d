//! What the process does: passes and what led to them, its configuration, scrubs, watches and events.

use std::time::Duration;

use prometheus::{Counter, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Result};

use super::register::{Register, SHORT, whole};
use super::releases::now;
use crate::scrub::progress::Unit;
use crate::wakes::Cause;

pub(super) struct Work {
    pub(super) ready: IntGauge,
    problems: IntGauge,
    config_good: IntGauge,
    config_time: Gauge,
    pass_seconds: Histogram,
    pass_time: Gauge,
    wakes: IntCounterVec,
    scrubbed_bytes: IntCounter,
    scrubbed_entries: IntCounter,
    pub(super) scrub_seconds: Counter,
    pub(super) watch_restarts: IntCounterVec,
    events: IntCounterVec,
}

impl Work {
    pub(super) fn new(to: &mut Register) -> Result<Self> {
        to.gauges(
            "build_info",
            "The program's version, as a label; always 1.",
            &["version"],
        )?
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
        let work = Self {
            ready: to.gauge("ready", "1 if ready, as /readyz says it.")?,
            problems: to.gauge("config_problems", "Problems of the configuration as it stands now.")?,
            config_good: to.gauge(
                "config_last_reload_successful",
                "1 if the configuration had no problem when it was read last.",
            )?,
            config_time: to.time(
                "config_last_reload_success_timestamp_seconds",
                "When the configuration was last read without a problem; 0 if never.",
            )?,
            pass_seconds: to.histogram(
                "pass_duration_seconds",
                "Duration of passes: a look at the node, and what follows from it.",
                &SHORT,
            )?,
            pass_time: to.time(
                "last_pass_timestamp_seconds",
                "When the last pass ended; 0 if none has.",
            )?,
            wakes: to.counters(
                "wakes_total",
                "What has led to a pass; a pass may have more than one cause.",
                &["cause"],
            )?,
            scrubbed_bytes: to.counter("scrubbed_bytes_total", "Bytes of devices that scrubs have covered.")?,
            scrubbed_entries: to.counter("scrubbed_entries_total", "Directory entries that scrubs have removed.")?,
            scrub_seconds: to.seconds(
                "scrub_seconds_total",
                "Time that scrubs in the process have taken, once they have ended, well or not.",
            )?,
            watch_restarts: to.counters(
                "watch_restarts_total",
                "Watches of the API server that failed and were begun again.",
                &["resource"],
            )?,
            events: to.counters(
                "events_total",
                "Events posted, and those that the API server did not take.",
                &["result"],
            )?,
        };
        for cause in Cause::ALL {
            work.wakes.with_label_values(&[cause.word()]).reset();
        }
        for resource in ["persistentvolumes", "storageclasses", "nodes", "jobs"] {
            work.watch_restarts.with_label_values(&[resource]).reset();
        }
        for result in ["posted", "dropped"] {
            work.events.with_label_values(&[result]).reset();
        }
        Ok(work)
    }

    pub(super) fn config(&self, problems: usize) {
        self.problems.set(whole(problems));
        self.config_good.set(i64::from(problems == 0));
        if problems == 0 {
            self.config_time.set(now().as_secs_f64());
        }
    }

    pub(super) fn pass_ended(&self, took: Duration) {
        self.pass_seconds.observe(took.as_secs_f64());
        self.pass_time.set(now().as_secs_f64());
    }

    pub(super) fn woken(&self, cause: Cause) {
        self.wakes.with_label_values(&[cause.word()]).inc();
    }

    pub(super) fn scrub_counter(&self, unit: Unit) -> &IntCounter {
        match unit {
            Unit::Bytes => &self.scrubbed_bytes,
            Unit::Entries => &self.scrubbed_entries,
        }
    }

    pub(super) fn event(&self, posted: bool) {
        let result = if posted { "posted" } else { "dropped" };
        self.events.with_label_values(&[result]).inc();
    }
}
