//! What this process remembers from one pass to the next.
//!
//! The API objects say all that matters after a restart, but for PVs that others removed and that nothing stands in for
//! yet ([`Memory::gone`]). The rest makes passes cheap (back-off), patient (grace periods) and careful about what was
//! seen.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::{ClaimRef, CleaningJob, Cluster, JobProgress, Jobs, Owner, Ownership, Phase, Pv, Use};
use crate::reason::Held;

/// What ended this long ago needs no note any more: no watch is that late.
const FORGET: Duration = Duration::from_secs(600);

/// What one process remembers. Times are since its start.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// UIDs of PVs whose every change since their creation was seen.
    pub watched_since_creation: BTreeSet<String>,
    /// UIDs of PVs that we let go, and when: their end is our doing.
    pub let_go: BTreeMap<String, Duration>,
    /// PVs that ended although we did not let them go, by the path of their volume, until another stands in for them.
    pub gone: BTreeMap<PathBuf, GonePv>,
    /// UIDs of PVs whose checkpoint, whatever it says, does not count: this process saw what may have come to the device.
    pub outworn: BTreeSet<String>,
    /// Since when a PV's volume is missing, by the PV's UID.
    pub missing_since: BTreeMap<String, Duration>,
    /// Since when a PV is seen as released, by its UID.
    pub released_since: BTreeMap<String, Duration>,
    /// Scrubs under way and ended, by the UID of the PV.
    pub scrubs: BTreeMap<String, Scrub>,
    /// Since when a Job is known of which no container has run, by its UID.
    pub waiting_jobs: BTreeMap<String, Duration>,
    /// API writes that failed, by the PV's name.
    pub retries: BTreeMap<String, Retry>,
    /// PVs, by name, that an API call is under way for.
    pub in_flight: BTreeSet<String>,
    /// PVs, by name, that may have been made without that being known yet: their storage is spoken for.
    pub creating: BTreeMap<String, Pv>,
    /// The last readings of claims, by what PVs call them. The UID is part of it: that there was no claim of that name
    /// says nothing about one that was made later.
    pub claims: BTreeMap<ClaimRef, ClaimReading>,
}

/// A PV that ended although we did not let it go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GonePv {
    /// As it was last seen.
    pub pv: Pv,
    /// Whether it was ever bound.
    pub usage: Use,
}

/// A failed API write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// How many times in a row.
    pub failures: u32,
    /// When the next try is due.
    pub due: Duration,
    /// Why it failed.
    pub error: String,
}

/// What a claim's last reading said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimReading {
    /// When it was read.
    pub at: Duration,
    /// What it said.
    pub state: ClaimState,
}

/// What is known of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimState {
    /// It does not exist.
    Absent,
    /// It exists.
    Present {
        /// Its UID.
        uid: String,
        /// `spec.volumeName`, empty if unset.
        volume_name: String,
    },
    /// It could not be read, this time.
    Unreadable(String),
    /// Reading claims is not permitted.
    Forbidden(String),
}

/// A scrub of one PV's volume.
#[derive(Debug, Clone)]
pub struct Scrub {
    /// UID of the claim that the PV was released from, when the scrub started.
    pub claim_uid: Option<String>,
    /// How many times in a row it failed.
    pub failures: u32,
    /// How many times in a row it was started and held back.
    pub held_back: u32,
    /// What the last try was held back by, or failed with.
    pub last_hold: Option<Held>,
    /// Where it stands.
    pub state: ScrubState,
}

impl Scrub {
    /// Whether the volume is known to be clean of what the last claim of this PV left.
    fn covers(&self, pv: &Pv) -> bool {
        matches!(self.state, ScrubState::Clean { settled: true, .. }) && self.claim_uid.as_deref() == pv.claim_uid()
    }
}

/// Where a scrub stands.
#[derive(Debug, Clone)]
pub enum ScrubState {
    /// Running now.
    Running,
    /// The volume is clean since then.
    Clean {
        /// When.
        at: Duration,
        /// How the volume looked when the scrub had ended: a filesystem's change time, to see if it was touched since.
        stamp: Option<String>,
        /// It was found clean and untouched by a second look, after a rest.
        settled: bool,
    },
    /// It failed and is due again.
    Failed {
        /// When the next try is due.
        due: Duration,
        /// Why it failed.
        error: String,
    },
    /// It was refused by what it found, and is due again.
    HeldBack {
        /// When the next look is due.
        due: Duration,
        /// What it found.
        held: Held,
    },
}

/// Retries of a scrub: after 1 s, doubling to 5 min.
#[must_use]
pub fn scrub_backoff(failures: u32) -> Duration {
    doubling(Duration::from_secs(1), Duration::from_secs(300), failures)
}

/// Retries of an API write: after 0.1 s, doubling to 10 s.
#[must_use]
pub fn api_backoff(failures: u32) -> Duration {
    doubling(Duration::from_millis(100), Duration::from_secs(10), failures)
}

fn doubling(first: Duration, most: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most)
}

impl Memory {
    /// Takes note of how the cluster looks now, and of the PVs that ended since the last time.
    pub fn note(&mut self, endings: &[Pv], after: &Cluster, ownership: &Ownership, now: Duration) {
        for pv in endings {
            self.note_end(pv, ownership);
        }
        // A scrub that was at work when its PV ended counts.
        let scrubs = &self.scrubs;
        self.gone
            .retain(|_, gone| !scrubs.get(&gone.pv.uid).is_some_and(|scrub| scrub.covers(&gone.pv)));
        let stand_ins = after.pvs.values().filter(|pv| pv.is_stand_in());
        let stood_in_for: BTreeSet<&Path> = stand_ins.filter_map(|pv| pv.path.as_deref()).collect();
        self.gone.retain(|path, _| !stood_in_for.contains(path.as_path()));
        let alive: BTreeSet<&str> = after.pvs.values().map(|pv| pv.uid.as_str()).collect();
        self.watched_since_creation.retain(|uid| alive.contains(uid.as_str()));
        self.outworn.retain(|uid| alive.contains(uid.as_str()));
        let gone: BTreeSet<&str> = self.gone.values().map(|gone| gone.pv.uid.as_str()).collect();
        self.missing_since.retain(|uid, _| alive.contains(uid.as_str()));
        self.released_since.retain(|uid, _| alive.contains(uid.as_str()));
        self.scrubs.retain(|uid, scrub| {
            matches!(scrub.state, ScrubState::Running) || alive.contains(uid.as_str()) || gone.contains(uid.as_str())
        });
        self.retries.retain(|_, retry| retry.due + FORGET > now);
        self.claims.retain(|_, reading| reading.at + FORGET > now);
        self.let_go
            .retain(|uid, at| *at + FORGET > now || alive.contains(uid.as_str()));
        for pv in after.pvs.values() {
            if pv.phase == Phase::Bound || (pv.claim_uid().is_some() && pv.phase == Phase::Available) {
                self.let_go.remove(&pv.uid); // In use again, whatever became of the attempt to let it go.
            }
            // One that is deleted while it is bound is not released before its claim is gone.
            if pv.phase == Phase::Released || (pv.deleting && pv.phase != Phase::Bound && !pv.is_protected()) {
                self.released_since.entry(pv.uid.clone()).or_insert(now);
            } else {
                self.released_since.remove(&pv.uid);
            }
            self.forget_outdated_scrub(pv);
        }
    }

    /// A scrub counts only for the release that it was made for.
    fn forget_outdated_scrub(&mut self, pv: &Pv) {
        let Some(scrub) = self.scrubs.get(&pv.uid) else { return };
        if matches!(scrub.state, ScrubState::Running) {
            return; // The planner aborts it.
        }
        let other_release = scrub.claim_uid.as_deref() != pv.claim_uid();
        let back_in_use = !pv.deleting && pv.phase != Phase::Released;
        if other_release || back_in_use {
            self.scrubs.remove(&pv.uid);
        }
    }

    /// Takes note of what is missing on the node.
    pub fn note_observed(
        &mut self,
        plan: &crate::plan::Plan,
        observed: &crate::observed::Observed,
        cluster: &Cluster,
        now: Duration,
    ) {
        use crate::observed::Directory;
        use crate::plan::State;
        // A directory that was read and does not have the name: a mount that is late shows as a plain directory.
        let absent = |path: &Path| {
            observed.directories.iter().any(|(key, directory)| {
                let Directory::Read(entries) = directory else {
                    return false;
                };
                Some(key.host_dir.as_path()) == path.parent()
                    && !entries
                        .iter()
                        .any(|entry| Some(entry.name.as_os_str()) == path.file_name())
            })
        };
        let is_missing = |volume: &&crate::plan::Volume| match &volume.state {
            State::Vanished(_) => true,
            State::Held(Held::Kept) => absent(&volume.directory.host_dir.join(&volume.entry)),
            _ => false,
        };
        let missing: BTreeSet<&str> = plan
            .volumes
            .iter()
            .filter(is_missing)
            .filter_map(|volume| Some(cluster.pvs.get(volume.pv.as_deref()?)?.uid.as_str()))
            .collect();
        // A pod's mount that came up after a scrub may have written: the volume is scrubbed anew.
        let used_again = plan
            .volumes
            .iter()
            .filter(|volume| matches!(volume.state, State::Held(Held::InUse(_))));
        for name in used_again.filter_map(|volume| volume.pv.as_deref()) {
            let uid = cluster.pvs.get(name).map(|pv| pv.uid.clone());
            if let Some(uid) = uid
                && self
                    .scrubs
                    .get(&uid)
                    .is_some_and(|scrub| matches!(scrub.state, ScrubState::Clean { .. }))
            {
                self.scrubs.remove(&uid);
            }
        }
        self.missing_since.retain(|uid, _| missing.contains(uid.as_str()));
        for uid in missing {
            self.missing_since.entry(uid.to_owned()).or_insert(now);
        }
    }

    /// Takes note of the Jobs of which no container has run yet.
    pub fn note_jobs(&mut self, jobs: &Jobs, now: Duration) {
        let waiting: BTreeSet<&str> = match jobs {
            Jobs::Unreadable { .. } => BTreeSet::new(),
            Jobs::Read(jobs) => {
                let waits = |job: &&CleaningJob| job.progress == JobProgress::AtWork && !job.started;
                jobs.values().filter(waits).map(|job| job.uid.as_str()).collect()
            }
        };
        self.waiting_jobs.retain(|uid, _| waiting.contains(uid.as_str()));
        for uid in waiting {
            self.waiting_jobs.entry(uid.to_owned()).or_insert(now);
        }
    }

    /// A scrub, or the Job that does it, met a hold: that is no failure, and it is tried again after a pause.
    pub fn hold_back(&mut self, uid: &str, claim_uid: Option<&str>, held: Held, now: Duration) {
        let scrub = self.scrubs.entry(uid.to_owned()).or_insert_with(|| Scrub {
            claim_uid: claim_uid.map(str::to_owned),
            failures: 0,
            held_back: 0,
            last_hold: None,
            state: ScrubState::Running,
        });
        scrub.held_back += 1;
        scrub.last_hold = Some(held.clone());
        scrub.state = ScrubState::HeldBack {
            due: now + api_backoff(scrub.held_back),
            held,
        };
    }

    fn note_end(&mut self, pv: &Pv, ownership: &Ownership) {
        if self.let_go.contains_key(&pv.uid) {
            return;
        }
        let mut usage = pv.usage(self.watched_since_creation.contains(&pv.uid));
        if usage == Use::Unused {
            return;
        }
        if ownership.of(pv) == Owner::Foreign {
            usage = Use::Unknown; // What another program's PV left is the operator's to judge.
        }
        // Its end may be seen before the answer to the write that let it go, or that answer is lost.
        let scrubbed = self.scrubs.get(&pv.uid).is_some_and(|scrub| scrub.covers(pv));
        if scrubbed {
            return;
        }
        if let Some(path) = pv.path.clone() {
            let pv = pv.clone();
            self.gone.insert(path, GonePv { pv, usage });
        }
    }

    /// A write to a PV failed: it is due again later.
    pub fn write_failed(&mut self, pv_name: &str, error: String, now: Duration) -> u32 {
        let failures = self.retries.get(pv_name).map_or(0, |retry| retry.failures) + 1;
        self.retries.insert(
            pv_name.to_owned(),
            Retry {
                failures,
                due: now + api_backoff(failures),
                error,
            },
        );
        failures
    }

    /// A call that failed is due again no sooner than `due`.
    pub fn put_off(&mut self, pv_name: &str, due: Duration) {
        if let Some(retry) = self.retries.get_mut(pv_name) {
            retry.due = retry.due.max(due);
        }
    }

    /// When the next call that failed is due again. One whose time has come was begun by this pass, or is not wanted any
    /// more: its end is a wake of its own.
    #[must_use]
    pub fn next_retry(&self, now: Duration) -> Option<Duration> {
        self.retries
            .values()
            .map(|retry| retry.due)
            .filter(|due| *due > now)
            .min()
    }

    /// The claim that a PV names, as last read.
    #[must_use]
    pub fn claim(&self, claim: &ClaimRef) -> Option<&ClaimReading> {
        self.claims.get(claim)
    }
}
