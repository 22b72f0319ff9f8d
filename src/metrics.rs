//! The metrics, in the classic text format 0.0.4: the classic ones under their names, and what is new.
//!
//! Every label has a closed set of values: never a path or the text of an error, and the name of a PV only while it is
//! being scrubbed. A node with a thousand volumes has as many series as one with ten.

mod classic;
mod process;
mod register;
mod releases;
mod requests;
#[cfg(test)]
mod tests;
mod volumes;
mod work;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{Encoder, IntCounter, IntCounterVec, Registry, TextEncoder};

use crate::capacity;
use crate::cluster::{Cluster, Owner, Ownership};
use crate::config::{Config, VolumeMode};
use crate::memory::Memory;
use crate::plan::Plan;
use crate::scrub::progress::Unit;
use crate::wakes::Cause;

pub use register::Description;
pub use requests::measured;

/// Every metric of the node daemon.
pub struct Metrics {
    registry: Registry,
    descriptions: Vec<Description>,
    classic: classic::Classic,
    volumes: volumes::Volumes,
    work: work::Work,
    requests: requests::Requests,
    process: process::Process,
    /// Held while several metrics are set that belong together, so that no answer shows half of them.
    releases: Mutex<releases::Releases>,
}

impl Metrics {
    /// The metrics, registered.
    ///
    /// # Errors
    /// A name was used twice or is not legal, which is a mistake in this module.
    pub fn new() -> prometheus::Result<Self> {
        let mut to = register::Register::default();
        Ok(Self {
            classic: classic::Classic::new(&mut to)?,
            volumes: volumes::Volumes::new(&mut to)?,
            work: work::Work::new(&mut to)?,
            requests: requests::Requests::new(&mut to)?,
            process: process::Process::new(&mut to)?,
            releases: Mutex::default(),
            registry: to.registry,
            descriptions: to.descriptions,
        })
    }

    /// All metrics that there are, also those that have no value yet.
    #[must_use]
    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }

    fn releases(&self) -> MutexGuard<'_, releases::Releases> {
        self.releases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The metrics as Prometheus text 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let _whole = self.releases();
        self.process.read();
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// A PV of this path on the node was created: `since` the look that showed it.
    pub fn created(&self, path: &Path, mode: VolumeMode, since: Duration) {
        self.classic.created(mode, since);
        if let Some(since_release) = self.releases().available(path) {
            self.volumes.available_again(since_release);
        }
    }

    /// A create or delete of a PV was answered.
    pub fn api_call(&self, method: &str, took: Duration, failed: bool) {
        self.classic.api_call(method, took, failed);
    }

    /// A scrub has ended well. `command` is the cleaner as a closed set of words: a method's name, or `command`.
    pub fn scrubbed(&self, mode: VolumeMode, by: By, command: &str, capacity: &str, took: Duration) {
        self.classic.scrubbed(mode, by, command, capacity, took);
    }

    /// A scrub has failed.
    pub fn scrub_failed(&self, mode: VolumeMode, by: By) {
        self.classic.scrub_failed(mode, by);
    }

    /// A scrub in the process has ended, well or not.
    pub fn scrub_ended(&self, took: Duration) {
        self.work.scrub_seconds.inc_by(took.as_secs_f64());
    }

    /// What counts all that scrubs cover, in this unit.
    #[must_use]
    pub fn scrub_counter(&self, unit: Unit) -> IntCounter {
        self.work.scrub_counter(unit).clone()
    }

    /// The configuration was read: how many problems it has now.
    pub fn config_problems(&self, count: usize) {
        self.work.config(count);
    }

    /// Ready, as `/readyz` says it.
    pub fn ready(&self, ready: bool) {
        self.work.ready.set(i64::from(ready));
    }

    /// Something has led to a pass.
    pub fn woken(&self, cause: Cause) {
        self.work.woken(cause);
    }

    /// A pass has ended, whatever it has come to.
    pub fn pass_ended(&self, took: Duration) {
        self.work.pass_ended(took);
    }

    /// What counts watches that failed, by resource.
    #[must_use]
    pub fn watch_restarts(&self) -> IntCounterVec {
        self.work.watch_restarts.clone()
    }

    /// An event was posted, or was not taken.
    pub fn event(&self, posted: bool) {
        self.work.event(posted);
    }

    /// The state after a pass.
    pub fn pass(&self, plan: &Plan, config: &Config, cluster: &Cluster, ownership: &Ownership, memory: &Memory) {
        let mut releases = self.releases();
        for took in releases.note(plan, cluster, ownership, memory) {
            self.volumes.available_again(took);
        }
        let own = cluster.pvs.values().filter(|pv| ownership.of(pv) != Owner::Foreign);
        let mut capacities: Vec<(VolumeMode, u64)> = own
            .filter_map(|pv| Some((pv.mode, capacity::parse(&pv.capacity)?)))
            .collect();
        // Between the end of a PV and the next of its volume there is no less storage than before and after.
        let between = plan.volumes.iter().filter(|volume| releases.between(volume));
        capacities.extend(between.filter_map(|volume| {
            let mode = config.classes.get(&volume.directory.class)?.volume_mode;
            Some((mode, capacity::parse(volume.capacity.as_deref()?)?))
        }));
        self.classic.pass(&capacities, memory);
        self.volumes.pass(plan, config, &releases);
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
