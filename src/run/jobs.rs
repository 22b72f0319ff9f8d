//! Cleaning Jobs: making them, deleting them, and counting how they ended.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use tracing::{info, warn};

use super::settle::Done;
use super::{Daemon, plan};
use crate::api::{self, WriteError};
use crate::cluster::{CleaningJob, JobProgress};
use crate::memory::{Scrub, ScrubState, scrub_backoff};
use crate::metrics::By;

impl Daemon {
    pub(super) fn create_job(&mut self, mut job: Job) {
        let label = |key: &str| job.metadata.labels.as_ref().and_then(|labels| labels.get(key).cloned());
        let Some(pv) = label("pv") else { return };
        crate::job::note_start(&mut job, Timestamp::now());
        info!(%pv, job = job.metadata.name.as_deref().unwrap_or_default(), "creating cleaning Job");
        let client = self.client.clone();
        self.call(&pv.clone(), async move {
            let result = api::create_job(&client, &job).await;
            Done::MadeJob { pv, result }
        });
    }

    pub(super) fn delete_job(&mut self, pv: String, job: CleaningJob, why: &str) {
        info!(%pv, job = %job.name, %why, "deleting cleaning Job");
        let (client, namespace) = (self.client.clone(), self.settings.namespace.clone());
        self.call(&pv.clone(), async move {
            let result = api::delete_job(&client, &namespace, &job).await;
            let job = Box::new(job);
            Done::DeletedJob { pv, job, result }
        });
    }

    pub(super) fn job_made(&mut self, pv: &str, result: Result<Job, WriteError>) {
        self.memory.in_flight.remove(pv);
        match result {
            Ok(job) => {
                self.memory.retries.remove(pv);
                self.shared.update(|store| store.job_made(&job));
            }
            // One that exists and is not shown by the watch is not ours to end; the volume waits for it.
            Err(err) => self.failed(pv, &err, "create the cleaning Job of"),
        }
    }

    pub(super) fn job_deleted(&mut self, pv: &str, job: &CleaningJob, result: Result<(), WriteError>) {
        self.memory.in_flight.remove(pv);
        match result {
            Ok(()) | Err(WriteError::Absent) => {}
            // Also where it is not as it was: the watch shows how it is, in a moment.
            Err(err) => return self.failed(pv, &err, "delete the cleaning Job of"),
        }
        self.memory.retries.remove(pv);
        self.count_job(pv, job);
    }

    /// A Job that has ended is counted when it goes: once.
    fn count_job(&mut self, pv: &str, job: &CleaningJob) {
        let now = self.now();
        let live = self.shared.store().cluster().pvs.get(pv).cloned();
        let gone = self.memory.gone.values().find(|gone| gone.pv.uid == job.pv_uid);
        let known = live
            .filter(|live| live.uid == job.pv_uid)
            .or_else(|| gone.map(|gone| gone.pv.clone()));
        let mode = known.as_ref().map_or_else(Default::default, |pv| pv.mode);
        match &job.progress {
            JobProgress::AtWork => {}
            JobProgress::Succeeded => {
                let capacity = known.as_ref().map(|pv| pv.capacity.clone()).unwrap_or_default();
                let took = job.took.unwrap_or_default();
                self.metrics.scrubbed(mode, By::Job, plan::JOB_COMMAND, &capacity, took);
            }
            JobProgress::Failed(error) => {
                self.metrics.scrub_failed(mode, By::Job);
                let Some(pv) = known else {
                    return;
                };
                let failures = self.memory.scrubs.get(&pv.uid).map_or(0, |scrub| scrub.failures) + 1;
                warn!(pv = %pv.name, failures, %error, "cleaning Job failed; it is tried again");
                let scrub = Scrub {
                    claim_uid: pv.claim_uid().map(str::to_owned),
                    failures,
                    held_back: 0,
                    last_hold: None,
                    state: ScrubState::Failed {
                        due: now + scrub_backoff(failures),
                        error: format!("Job {} failed: {error}", job.name),
                    },
                };
                self.memory.scrubs.insert(pv.uid, scrub);
            }
        }
    }
}
