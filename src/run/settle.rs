//! What is learnt from how a call or a scrub has ended.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::jobs::Made;
use super::{Daemon, Duration, Plan};
use crate::api::{self, PrunedPv, WriteError};
use crate::cluster::{ClaimRef, CleaningJob, Mode, Pv};
use crate::config::VolumeMode;
use crate::failpoint;
use crate::memory::{ClaimReading, ClaimState, Scrub, ScrubState, scrub_backoff};
use crate::metrics::By;
use crate::plan::{JobOrder, Notice, PvRef, ScrubOrder, Severity};
use crate::reason::Held;
use crate::recycle::Clean;
use crate::scrub::ScrubError;
use crate::wakes::Cause;

/// Something that was started and has ended.
pub(super) enum Done {
    Created {
        /// How often changes may have been missed when the call began.
        gaps: u64,
        name: String,
        result: Result<PrunedPv, WriteError>,
        took: Duration,
        since_look: Duration,
    },
    Patched {
        pv: PvRef,
        /// The operator's word `resolve` was taken.
        resolved: bool,
        result: Result<PrunedPv, WriteError>,
    },
    /// A checkpoint.
    Noted {
        pv: PvRef,
        result: Result<PrunedPv, WriteError>,
    },
    Deleted {
        pv: PvRef,
        result: Result<Option<PrunedPv>, WriteError>,
        took: Duration,
    },
    Read {
        name: String,
        result: Result<Option<PrunedPv>, WriteError>,
    },
    ReadClaim {
        claim: ClaimRef,
        state: ClaimState,
    },
    ReadNode(Result<Box<Node>, WriteError>),
    Scrubbed {
        order: Box<ScrubOrder>,
        result: Result<Clean, ScrubError>,
        /// In its slot; `None` if it never had one.
        took: Option<Duration>,
    },
    /// There was no slot for it.
    NotScrubbed {
        /// Of its PV.
        uid: String,
        /// What was known of it before it was ordered.
        before: Option<Scrub>,
    },
    /// An event about something else than a PV was posted, or not.
    Told,
    /// The Node, and whether the startup taint was removed from it.
    Untainted(Result<(Box<Node>, bool), WriteError>),
    Mode(Result<Mode, WriteError>),
    JobPermission(Result<Option<&'static str>, WriteError>),
    ReadJob {
        name: String,
        /// Of the one that was known.
        uid: String,
        result: Result<Option<Box<Job>>, WriteError>,
    },
    MadeJob {
        order: Box<JobOrder>,
        made: Made,
    },
    DeletedJob {
        pv: String,
        job: Box<CleaningJob>,
        /// The hold that made it fail.
        held: Option<Held>,
        result: Result<(), WriteError>,
    },
}

impl Done {
    /// As what it leads to a look.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::Scrubbed { .. } => Cause::Scrub,
            _ => Cause::Call,
        }
    }
}

impl Daemon {
    /// Takes in how something ended.
    pub(super) fn settle(&mut self, done: Done) {
        match done {
            Done::Created {
                gaps,
                name,
                result,
                took,
                since_look,
            } => self.created(&name, gaps, result, took, since_look),
            Done::Patched { pv, resolved, result } => self.patched(&pv, resolved, result),
            Done::Noted { pv, result } => self.noted(&pv, result),
            Done::Deleted { pv, result, took } => self.deleted(&pv, result, took),
            Done::Read { name, result } => {
                self.memory.in_flight.remove(&name);
                match result {
                    Ok(found) => {
                        self.memory.creating.remove(&name);
                        self.shared.update(|store| store.read_by_name(&name, found.as_deref()));
                    }
                    Err(err) => self.failed(&name, &err, "read"),
                }
            }
            Done::ReadClaim { claim, state } => {
                self.memory.in_flight.remove(&format!("claim {claim}"));
                let reading = ClaimReading { at: self.now(), state };
                self.memory.claims.insert(claim, reading);
            }
            Done::Told => {}
            Done::Untainted(result) => self.untainted(result),
            Done::ReadNode(result) => {
                self.memory.in_flight.remove("the own node");
                match result {
                    Ok(node) => {
                        self.memory.retries.remove("the own node");
                        self.node_read = Some(Instant::now());
                        self.shared.update(|store| store.node(&node));
                    }
                    Err(err) => self.failed("the own node", &err, "read"),
                }
            }
            Done::Scrubbed { order, result, took } => self.scrubbed(&order, result, took),
            Done::NotScrubbed { uid, before } => {
                self.running.remove(&uid);
                match before {
                    Some(before) => drop(self.memory.scrubs.insert(uid, before)),
                    None => drop(self.memory.scrubs.remove(&uid)),
                }
            }
            Done::Mode(result) => self.take_mode(result),
            Done::JobPermission(result) => self.job_permission(result),
            Done::ReadJob { name, uid, result } => self.job_read(&name, &uid, result),
            Done::MadeJob { order, made } => self.job_made(&order, made),
            Done::DeletedJob { pv, job, held, result } => self.job_deleted(&pv, &job, held, result),
        }
    }

    fn created(
        &mut self,
        name: &str,
        gaps: u64,
        result: Result<PrunedPv, WriteError>,
        took: Duration,
        since_look: Duration,
    ) {
        self.memory.in_flight.remove(name);
        self.metrics.api_call("create", took, result.is_err());
        match result {
            Ok(made) => {
                let pv = Pv::from(&*made);
                info!(pv = %name, path = %pv.path.clone().unwrap_or_default().display(), class = %pv.class, capacity = %pv.capacity, "PersistentVolume created");
                if let Some(path) = &pv.path {
                    self.metrics.created(path, pv.mode, since_look);
                }
                self.memory.retries.remove(name);
                self.memory.creating.remove(name);
                self.memory.watched_since_creation.insert(pv.uid);
                self.shared.update(|store| store.pv_made(&made, gaps));
            }
            // It is read, and the next pass knows whose it is.
            Err(WriteError::Exists) => self.shared.update(|store| store.doubt(name)),
            Err(err) => {
                self.failed(name, &err, "create");
                // It may have been made all the same: it is read before it is tried again.
                self.shared.update(|store| store.doubt(name));
            }
        }
    }

    fn patched(&mut self, pv: &PvRef, resolved: bool, result: Result<PrunedPv, WriteError>) {
        self.memory.in_flight.remove(&pv.name);
        match result {
            Ok(now) => {
                self.memory.retries.remove(&pv.name);
                if resolved {
                    // The operator's word was taken: what failed before does not count any more.
                    self.memory.scrubs.remove(&pv.uid);
                }
                let ended = now.metadata.deletion_timestamp.is_some() && now.finalizers().is_empty();
                self.shared.update(|store| {
                    if ended {
                        store.pv_gone(&pv.name, &pv.uid)
                    } else {
                        store.pv_changed(&now)
                    }
                });
            }
            Err(err) => self.refused(pv, &err, "patch"),
        }
    }

    fn deleted(&mut self, pv: &PvRef, result: Result<Option<PrunedPv>, WriteError>, took: Duration) {
        self.memory.in_flight.remove(&pv.name);
        self.metrics.api_call("delete", took, result.is_err());
        match result {
            Ok(rest) => {
                self.memory.retries.remove(&pv.name);
                match rest.filter(|rest| !rest.finalizers().is_empty()) {
                    Some(rest) => self.shared.update(|store| store.pv_changed(&rest)),
                    None => self.shared.update(|store| store.pv_gone(&pv.name, &pv.uid)),
                }
            }
            Err(err) => {
                if matches!(err, WriteError::Forbidden(_) | WriteError::Other(_)) {
                    self.tell_refused(pv, &err);
                }
                self.refused(pv, &err, "delete");
            }
        }
    }

    fn tell_refused(&mut self, pv: &PvRef, err: &WriteError) {
        let Some(ownership) = self.shared.store().ownership().cloned() else {
            return;
        };
        let message = format!(
            "Error cleaning PV {:?}: the PersistentVolume cannot be deleted: {err}",
            pv.name
        );
        let notice = Notice {
            pv: pv.name.clone(),
            uid: pv.uid.clone(),
            claim: None,
            severity: Severity::Warning,
            reason: "VolumeFailedDelete",
            message,
        };
        if self.told.first_time(&notice) && !self.post(notice.clone(), &ownership, false) {
            self.told.untold(&notice);
        }
    }

    /// A write with preconditions did not go through.
    fn refused(&mut self, pv: &PvRef, err: &WriteError, verb: &str) {
        if matches!(err, WriteError::Conflict | WriteError::Forbidden(_)) {
            self.memory.let_go.remove(&pv.uid); // It was not done.
        }
        match err {
            // It is not as it was seen: look again, at the object itself, for the watch may lag.
            WriteError::Conflict | WriteError::Absent | WriteError::Exists => {
                self.shared.update(|store| store.doubt(&pv.name))
            }
            WriteError::Forbidden(_) | WriteError::Other(_) | WriteError::Busy { .. } => {
                self.failed(&pv.name, err, verb)
            }
        }
    }

    /// A call failed: it is tried again by a pass when it is due.
    pub(super) fn failed(&mut self, name: &str, err: &WriteError, verb: &str) {
        let now = self.now();
        if matches!(err, WriteError::Forbidden(_)) && self.mode == Mode::Patch {
            self.ask_mode();
        }
        let failures = self.memory.write_failed(name, err.to_string(), now);
        self.memory.put_off(name, now + api::wait(failures, err.asked()));
        if failures == 1 {
            warn!(pv = name, error = %err, "cannot {verb} PersistentVolume; trying again");
        } else {
            debug!(pv = name, failures, error = %err, "cannot {verb} PersistentVolume");
        }
    }

    /// What is held for want of a permission ends with the permission.
    pub(super) fn ask_mode_again(&mut self, plan: &Plan) {
        let wants = |volume: &crate::plan::Volume| {
            matches!(
                &volume.state,
                crate::plan::State::Held(crate::reason::Held::NotPermitted(_))
            )
        };
        if plan.volumes.iter().any(wants) && self.mode_asked.elapsed() >= self.settings.limits.discovery_period {
            self.ask_mode();
        }
    }

    /// The permissions may have changed.
    pub(super) fn ask_mode(&mut self) {
        const KEY: &str = "the permissions";
        let waits = self.memory.retries.get(KEY).is_some_and(|retry| retry.due > self.now());
        if waits || self.memory.in_flight.contains(KEY) {
            return;
        }
        self.mode_asked = Instant::now();
        let client = self.client.clone();
        self.call(KEY, move || async move { Done::Mode(api::mode(&client).await) });
    }

    fn take_mode(&mut self, result: Result<Mode, WriteError>) {
        self.memory.in_flight.remove("the permissions");
        match result {
            Ok(mode) if mode != self.mode => {
                warn!(from = ?self.mode, to = ?mode, "the permissions have changed");
                self.mode = mode;
            }
            Ok(_) => {}
            Err(err) => warn!(error = %err, "cannot ask for the permissions"),
        }
    }

    fn scrubbed(&mut self, order: &ScrubOrder, result: Result<Clean, ScrubError>, took: Option<Duration>) {
        failpoint::hit!("settle.scrubbed");
        let (now, name, uid) = (self.now(), &order.pv.name, &order.pv.uid);
        self.running.remove(uid);
        if let Some(took) = took {
            self.scrubs_ended += 1;
            self.metrics.scrub_ended(took);
        }
        let took = took.unwrap_or_default();
        let mode = self
            .shared
            .store()
            .cluster()
            .pvs
            .get(name)
            .map_or(VolumeMode::Filesystem, |pv| pv.mode);
        let Some(scrub) = self.memory.scrubs.get_mut(uid) else {
            return;
        };
        match result {
            Ok(clean) => {
                info!(pv = %name, ?took, entries = clean.entries_removed, "scrub ended");
                self.metrics
                    .scrubbed(mode, By::Process, order.kind.word(), &order.capacity, took);
                scrub.failures = 0;
                scrub.held_back = 0;
                scrub.last_hold = None;
                scrub.state = ScrubState::Clean {
                    at: now,
                    stamp: clean.stamp,
                    settled: clean.settled,
                };
            }
            Err(ScrubError::Held(held)) => {
                debug!(pv = %name, %held, "scrub held back");
                self.memory.hold_back(uid, order.claim_uid.as_deref(), held, now);
            }
            Err(ScrubError::Cancelled) => {
                info!(pv = %name, "scrub stopped");
                self.memory.scrubs.remove(uid);
            }
            Err(ScrubError::Failed(err)) => {
                scrub.failures += 1;
                let error = format!("{err:#}");
                warn!(pv = %name, failures = scrub.failures, %error, "scrub failed; it is tried again");
                self.metrics.scrub_failed(mode, By::Process);
                scrub.last_hold = Some(Held::ScrubFailed {
                    error: error.clone(),
                    failures: scrub.failures,
                });
                scrub.state = ScrubState::Failed {
                    due: now + scrub_backoff(scrub.failures),
                    error,
                };
            }
        }
    }
}
