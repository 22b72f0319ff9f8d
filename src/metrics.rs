//! The metrics, under the classic names and in the classic text format 0.0.4.

use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::capacity;
use crate::cluster::{Cluster, Owner, Ownership};
use crate::config::VolumeMode;
use crate::memory::{Memory, ScrubState};
use crate::plan::{Plan, State};
use crate::reason::Ailment;
use crate::scrub::progress::{Snapshot, Unit};

/// Every metric of the node daemon.
pub struct Metrics {
    registry: Registry,
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
    volumes: IntGaugeVec,
    held: IntGaugeVec,
    unhealthy: IntGaugeVec,
    scrub_done: IntGaugeVec,
    scrub_size: IntGaugeVec,
    problems: IntGauge,
}

/// Buckets from a millisecond to a minute: discovery and API calls.
const SHORT: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];
/// Buckets from a hundredth of a second to a day: a wipe of a large disk takes hours.
const LONG: [f64; 14] = [
    0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0,
];

fn name(rest: &str) -> String {
    format!("local_volume_provisioner_{rest}")
}

impl Metrics {
    /// The metrics, registered.
    ///
    /// # Errors
    /// A name was used twice or is not legal, which is a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |rest: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let metric = IntCounterVec::new(Opts::new(name(rest), help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauges = |rest: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntGaugeVec> {
            let metric = IntGaugeVec::new(Opts::new(name(rest), help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |rest: &str, help: &str| -> prometheus::Result<IntGauge> {
            let metric = IntGauge::with_opts(Opts::new(name(rest), help))?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let histogram =
            |rest: &str, help: &str, labels: &[&str], buckets: &[f64]| -> prometheus::Result<HistogramVec> {
                let metric = HistogramVec::new(HistogramOpts::new(name(rest), help).buckets(buckets.to_vec()), labels)?;
                registry.register(Box::new(metric.clone()))?;
                Ok(metric)
            };
        let metrics = Self {
            capacity_bytes: gauges(
                "persistentvolume_capacity_bytes",
                "Sum of the capacities of the own PersistentVolumes.",
                &["mode"],
            )?,
            discovery_total: counter(
                "persistentvolume_discovery_total",
                "PersistentVolumes created.",
                &["mode"],
            )?,
            discovery_seconds: histogram(
                "persistentvolume_discovery_duration_seconds",
                "Time from the look at the node to the created PersistentVolume.",
                &["mode"],
                &SHORT,
            )?,
            delete_total: counter("persistentvolume_delete_total", "Volumes scrubbed.", &["mode", "type"])?,
            delete_failed: counter(
                "persistentvolume_delete_failed_total",
                "Scrubs that failed.",
                &["mode", "type"],
            )?,
            delete_seconds: histogram(
                "persistentvolume_delete_duration_seconds",
                "Duration of scrubs.",
                &["mode", "type", "capacity", "cleanup_command"],
                &LONG,
            )?,
            api_total: counter(
                "apiserver_requests_total",
                "Creates and deletes of PersistentVolumes.",
                &["method"],
            )?,
            api_failed: counter(
                "apiserver_requests_failed_total",
                "Creates and deletes of PersistentVolumes that failed.",
                &["method"],
            )?,
            api_seconds: histogram(
                "apiserver_requests_duration_seconds",
                "Duration of creates and deletes of PersistentVolumes.",
                &["method"],
                &SHORT,
            )?,
            running: gauge("proctable_running", "Scrubs running now.")?,
            succeeded: gauge("proctable_succeeded", "Scrubs that succeeded and are not settled yet.")?,
            failed: gauge("proctable_failed", "Scrubs that failed and are not settled yet.")?,
            volumes: gauges(
                "volumes",
                "Entries of the discovery directories by state.",
                &["storage_class", "state"],
            )?,
            held: gauges("volumes_held", "Held volumes by reason.", &["reason"])?,
            unhealthy: gauges(
                "volumes_unhealthy",
                "Volumes whose storage does not do its service, by what is wrong with it.",
                &["reason"],
            )?,
            scrub_done: gauges(
                "scrub_done",
                "How much of a running scrub is done, in bytes or directory entries.",
                &["persistentvolume", "unit"],
            )?,
            scrub_size: gauges(
                "scrub_size",
                "How much there is to do in a running scrub, where that is known.",
                &["persistentvolume", "unit"],
            )?,
            problems: gauge("config_problems", "Problems of the configuration as it stands now.")?,
            registry,
        };
        for mode in ["Block", "Filesystem"] {
            metrics.capacity_bytes.with_label_values(&[mode]).set(0);
            metrics.discovery_total.with_label_values(&[mode]).reset();
        }
        for method in ["create", "delete"] {
            metrics.api_total.with_label_values(&[method]).reset();
            metrics.api_failed.with_label_values(&[method]).reset();
        }
        Ok(metrics)
    }

    /// The metrics as Prometheus text 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// A PV was created: `since` the look at the node that showed it.
    pub fn created(&self, mode: VolumeMode, since: Duration) {
        self.discovery_total.with_label_values(&[mode_label(mode)]).inc();
        self.discovery_seconds
            .with_label_values(&[mode_label(mode)])
            .observe(since.as_secs_f64());
    }

    /// A create or delete of a PV was answered.
    pub fn api_call(&self, method: &str, took: Duration, failed: bool) {
        self.api_total.with_label_values(&[method]).inc();
        self.api_seconds
            .with_label_values(&[method])
            .observe(took.as_secs_f64());
        if failed {
            self.api_failed.with_label_values(&[method]).inc();
        }
    }

    /// A scrub has ended well. `command` is the cleaner as a closed set of words: a method's name, or `command`.
    pub fn scrubbed(&self, mode: VolumeMode, by: By, command: &str, capacity: &str, took: Duration) {
        let bucket = capacity_bucket(capacity::parse(capacity).unwrap_or(0));
        self.delete_total
            .with_label_values(&[mode_label(mode), by.label()])
            .inc();
        self.delete_seconds
            .with_label_values(&[mode_label(mode), by.label(), &bucket, command])
            .observe(took.as_secs_f64());
    }

    /// A scrub has failed.
    pub fn scrub_failed(&self, mode: VolumeMode, by: By) {
        self.delete_failed
            .with_label_values(&[mode_label(mode), by.label()])
            .inc();
    }

    /// How many problems the configuration has now.
    pub fn config_problems(&self, count: usize) {
        self.problems.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The state after a pass.
    pub fn pass(&self, plan: &Plan, cluster: &Cluster, ownership: &Ownership, memory: &Memory) {
        for mode in [VolumeMode::Block, VolumeMode::Filesystem] {
            let own = cluster
                .pvs
                .values()
                .filter(|pv| pv.mode == mode && ownership.of(pv) != Owner::Foreign);
            let capacities = own.filter_map(|pv| capacity::parse(&pv.capacity));
            let sum = capacities.fold(0, u64::saturating_add);
            self.capacity_bytes
                .with_label_values(&[mode_label(mode)])
                .set(i64::try_from(sum).unwrap_or(i64::MAX));
        }
        let count = |wanted: fn(&ScrubState) -> bool| {
            i64::try_from(memory.scrubs.values().filter(|scrub| wanted(&scrub.state)).count()).unwrap_or(i64::MAX)
        };
        self.running.set(count(|state| matches!(state, ScrubState::Running)));
        self.succeeded
            .set(count(|state| matches!(state, ScrubState::Clean { .. })));
        self.failed
            .set(count(|state| matches!(state, ScrubState::Failed { .. })));
        for gauges in [&self.volumes, &self.held, &self.scrub_done, &self.scrub_size] {
            gauges.reset();
        }
        for ailment in Ailment::ALL {
            self.unhealthy.with_label_values(&[ailment.slug()]).set(0);
        }
        for volume in &plan.volumes {
            if let Some(ailment) = volume.health.ailment() {
                self.unhealthy.with_label_values(&[ailment.slug()]).inc();
            }
            self.volumes
                .with_label_values(&[volume.directory.class.as_str(), volume.state.word()])
                .inc();
            if let State::Held(held) = &volume.state {
                self.held.with_label_values(&[held.slug()]).inc();
            }
            if let (State::Scrubbing(Some(progress)), Some(pv)) = (&volume.state, &volume.pv) {
                self.scrubbing(pv, progress);
            }
        }
    }

    fn scrubbing(&self, pv: &str, progress: &Snapshot) {
        let unit = match progress.unit {
            Unit::Bytes => "bytes",
            Unit::Entries => "entries",
        };
        let set = |gauges: &IntGaugeVec, value: u64| {
            let gauge = gauges.with_label_values(&[pv, unit]);
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.scrub_done, progress.done);
        if let Some(total) = progress.total {
            set(&self.scrub_size, total);
        }
    }
}

/// What scrubbed a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// This process.
    Process,
    /// A Job.
    Job,
}

impl By {
    fn label(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Job => "job",
        }
    }
}

fn mode_label(mode: VolumeMode) -> &'static str {
    match mode {
        VolumeMode::Block => "Block",
        VolumeMode::Filesystem => "Filesystem",
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

    #[test]
    fn type_lines_carry_the_full_name() {
        let metrics = Metrics::new().unwrap();
        metrics.api_call("create", Duration::from_millis(3), false);
        let text = metrics.text();
        assert!(
            text.contains("# TYPE local_volume_provisioner_apiserver_requests_total counter\n"),
            "{text}"
        );
        assert!(
            text.contains("local_volume_provisioner_apiserver_requests_total{method=\"create\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("local_volume_provisioner_persistentvolume_capacity_bytes{mode=\"Block\"} 0\n"),
            "{text}"
        );
    }

    #[test]
    fn a_running_scrub_shows_how_far_it_is_and_is_forgotten_when_it_ends() {
        let metrics = Metrics::new().unwrap();
        let progress = crate::scrub::progress::Progress::new(Unit::Bytes, 100);
        progress.add(40);
        let volume = crate::plan::Volume {
            directory: crate::observed::DirectoryKey {
                class: "raw".into(),
                host_dir: "/mnt/raw".into(),
                mount_dir: "/discover/raw".into(),
            },
            entry: "disk".into(),
            state: State::Scrubbing(Some(progress.snapshot())),
            pv: Some("pv1".into()),
            published: true,
            claim: None,
            capacity: None,
            id: None,
            warning: None,
            health: crate::plan::Health::Bad(Ailment::Failing),
        };
        let ownership = Ownership {
            node_name: "node1".into(),
            node_uid: "u".into(),
            hostname: "host1".into(),
            node_name_only: false,
        };
        let pass = |volumes| {
            let plan = Plan {
                volumes,
                ..Plan::default()
            };
            metrics.pass(&plan, &Cluster::default(), &ownership, &Memory::default());
            metrics.text()
        };
        let text = pass(vec![volume]);
        for line in [
            "local_volume_provisioner_scrub_done{persistentvolume=\"pv1\",unit=\"bytes\"} 40\n",
            "local_volume_provisioner_scrub_size{persistentvolume=\"pv1\",unit=\"bytes\"} 100\n",
            "local_volume_provisioner_volumes_unhealthy{reason=\"failing\"} 1\n",
            "local_volume_provisioner_volumes_unhealthy{reason=\"read-only\"} 0\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!pass(Vec::new()).contains("pv1"));
    }
}
