//! Scrubbing devices in Jobs: when one is made, when it counts, and when it goes.

use crate::cluster::{CleaningJob, JobProgress, Jobs, Phase, Pv};
use crate::identity::VolumeId;
use crate::job;
use crate::names;
use crate::observed::{DirectoryKey, EntryKind};
use crate::reason::Held;

use super::storage::{Match, seen_id};
use super::{Action, FailureCause, JobDevice, JobOrder, Planner, Sight, State};

impl Planner<'_> {
    /// One step of getting a device clean by a Job; `then` once it is.
    pub(super) fn job_step(
        &mut self,
        pv: &Pv,
        key: &DirectoryKey,
        sight: &Sight<'_>,
        then: impl FnOnce(&mut Self, &Pv),
    ) -> State {
        let jobs = &self.i.cluster.jobs;
        if let Jobs::Unreadable { verb, .. } = jobs {
            let namespace = self.i.jobs.namespace;
            return State::Held(Held::CleanerUnavailable(format!(
                "useJobForCleaning is set, but the verb {verb} on jobs in namespace {namespace} is not granted: grant list, watch, create and delete with a Role (deploy/kubernetes/rbac.yaml); it goes on without a restart"
            )));
        }
        let last_hold = || self.i.memory.scrubs.get(&pv.uid)?.last_hold.clone();
        let Some(job) = jobs.of(&pv.name) else {
            return match self.may_scrub(pv, sight) {
                Err(held) => State::Held(held),
                Ok(_) => self.make_job(pv, key, sight),
            };
        };
        // A leftover never counts, however it ended; it is removed at the end of the pass.
        if job.deleting || !counts(job, pv) {
            return State::Held(last_hold().unwrap_or_else(|| Held::JobRunning(job.name.clone())));
        }
        self.wanted_jobs.insert(pv.name.clone());
        match &job.progress {
            JobProgress::AtWork => {
                if let Some(held) = self.waits(job) {
                    return State::Held(held);
                }
                if let Some(held) = last_hold() {
                    self.hold_notice(pv, &held); // It stands until this try has ended well.
                }
                State::Scrubbing(None)
            }
            JobProgress::Failed(error) => self.failed_job(pv, key, sight, job, error),
            JobProgress::Succeeded => {
                // A pod's mount that came up since may have written: the Job's work is void.
                if let Sight::Entry(entry) = sight
                    && let Some(user) = self.pod_mount(&pv.name, &entry.kind)
                {
                    self.end_job(&pv.name, job, None, "the volume is in use again");
                    return State::Held(Held::InUse(user));
                }
                then(self, pv);
                State::Released
            }
        }
    }

    /// A Job that failed is deleted. Whether that counts depends on what it met: a hold is none of the scrub's failures.
    fn failed_job(&mut self, pv: &Pv, key: &DirectoryKey, sight: &Sight<'_>, job: &CleaningJob, error: &str) -> State {
        let held = if job.timed_out && !job.started {
            Some(self.pending(job))
        } else {
            self.may_scrub(pv, sight).err()
        };
        let cause = match &held {
            Some(held) => FailureCause::Held(held.clone()),
            None => FailureCause::Device(self.device(pv, key, sight)),
        };
        self.end_job(&pv.name, job, Some(cause), &format!("it failed: {error}"));
        held.map_or(State::Released, State::Held)
    }

    /// The hold by a Job of which no container has run for the grace period: images take their time.
    fn waits(&mut self, job: &CleaningJob) -> Option<Held> {
        if job.started {
            return None;
        }
        let since = self.i.memory.waiting_jobs.get(&job.uid).copied().unwrap_or(self.i.now);
        let due = since + self.i.limits.grace_period;
        if due > self.i.now {
            self.wake(due);
            return None;
        }
        Some(self.pending(job))
    }

    fn pending(&self, job: &CleaningJob) -> Held {
        Held::JobPending {
            namespace: self.i.jobs.namespace.to_owned(),
            job: job.name.clone(),
            since: job.created.map(|time| time.to_string()).unwrap_or_default(),
            timed_out: job.timed_out,
        }
    }

    fn delete_job(&mut self, pv: &str, job: &CleaningJob, why: &str) {
        self.end_job(pv, job, None, why);
    }

    fn end_job(&mut self, pv: &str, job: &CleaningJob, cause: Option<FailureCause>, why: &str) {
        let refused = self.i.memory.retries.get(&crate::memory::job_deletion(pv));
        if let Some(retry) = refused.filter(|retry| retry.due > self.i.now) {
            return self.wake(retry.due);
        }
        let action = Action::DeleteJob {
            pv: pv.to_owned(),
            job: Box::new(job.clone()),
            cause: cause.map(Box::new),
            why: why.to_owned(),
        };
        self.act(pv, action);
    }

    /// The id that the Job's device must have.
    fn wanted_id(&self, pv: &Pv, sight: &Sight<'_>) -> Option<String> {
        let seen = match sight {
            Sight::Entry(entry) => seen_id(&entry.kind).map(ToString::to_string),
            _ => None,
        };
        let lost =
            matches!(sight, Sight::Entry(entry) if matches!(self.matches(pv, &entry.kind), Match::LostWithReboot));
        let noted = pv
            .annotation(names::VOLUME_ID)
            .filter(|_| !lost && !super::volume::adopted(pv));
        noted.map(str::to_owned).or(seen)
    }

    fn device(&self, pv: &Pv, key: &DirectoryKey, sight: &Sight<'_>) -> JobDevice {
        let wanted = self.wanted_id(pv, sight);
        JobDevice {
            path: key.mount_dir.join(pv.entry().unwrap_or_default()),
            expected: wanted.and_then(|id| id.parse::<VolumeId>().ok()),
        }
    }

    fn make_job(&mut self, pv: &Pv, key: &DirectoryKey, sight: &Sight<'_>) -> State {
        let Some(image) = self.i.jobs.image else {
            return State::Held(Held::CleanerUnavailable(
                "useJobForCleaning is set, but JOB_CONTAINER_IMAGE is not: set it to the provisioner's image".into(),
            ));
        };
        let command = match self.cleaner_command(pv) {
            Ok(command) => command,
            Err(held) => return State::Held(held),
        };
        let capacity_bytes = match sight {
            Sight::Entry(entry) => match &entry.kind {
                EntryKind::Device(device) => device.capacity_bytes,
                _ => 0,
            },
            _ => 0,
        };
        let job = job::build(&job::CleaningJob {
            pv: &pv.name,
            pv_uid: &pv.uid,
            claim_uid: pv.claim_uid(),
            volume_id: self.wanted_id(pv, sight).as_deref(),
            bytes_per_second: self.i.jobs.bytes_per_second,
            directory: key,
            entry: pv.entry().unwrap_or_default(),
            capacity_bytes,
            command: &command,
            namespace: self.i.jobs.namespace,
            image,
            node_name: &self.i.node.name,
            hostname: &self.i.ownership.hostname,
            tolerations: &self.i.config.job_tolerations,
        });
        let order = JobOrder {
            job,
            pv: pv.name.clone(),
            pv_uid: pv.uid.clone(),
            claim_uid: pv.claim_uid().map(str::to_owned),
            device: self.device(pv, key, sight),
        };
        self.act(&pv.name, Action::CreateJob(Box::new(order)));
        // The device is looked at first: what held it the last time may still be there.
        if let Some(scrub) = self.i.memory.scrubs.get(&pv.uid)
            && let Some(held) = scrub.last_hold.clone()
        {
            return State::Held(held);
        }
        self.start_notice(pv);
        State::Scrubbing(None)
    }

    /// Removes the own Jobs that nothing waits for, and ends those that are at work on a volume that is in circulation
    /// again or for a PV of another UID. One that is at work for a PV that is gone, or whose class does not use Jobs any
    /// more, is let end: it blocks its path until then.
    pub(super) fn unwanted_jobs(&mut self) {
        let Jobs::Read(jobs) = &self.i.cluster.jobs else { return };
        for (name, job) in jobs {
            let ours = job.hostname.as_deref() == Some(self.i.ownership.hostname.as_str()) && !job.is_foreign();
            if !ours || job.deleting || self.wanted_jobs.contains(name) || self.acted.contains(name) {
                continue;
            }
            let pv = self.i.cluster.pvs.get(name);
            let returning = |pv: &Pv| pv.deleting || pv.phase == Phase::Released;
            let to_be_kept = |pv: &Pv| pv.reclaim_policy != "Delete" && pv.annotation(names::RETAINED) != Some("scrub");
            let why = match (&job.progress, pv) {
                (JobProgress::AtWork, None) => continue,
                (JobProgress::AtWork, Some(pv)) if pv.uid != job.pv_uid => "it is for an earlier PV of this name",
                (JobProgress::AtWork, Some(pv)) if to_be_kept(pv) => "its PV's data is to be kept now",
                (JobProgress::AtWork, Some(pv)) if returning(pv) => continue,
                (JobProgress::AtWork, Some(_)) => "its PV is in circulation again",
                // What it has done still counts, although this pass cannot see the volume.
                (_, Some(pv)) if returning(pv) && counts(job, pv) => continue,
                _ => "it has ended",
            };
            self.delete_job(name, &job.clone(), why);
        }
    }
}

/// Whether a Job is for this release of this PV. One of the classic program does not say for which claim.
fn counts(job: &CleaningJob, pv: &Pv) -> bool {
    job.pv_uid == pv.uid && job.claim_uid.as_deref().is_none_or(|uid| Some(uid) == pv.claim_uid())
}
