//! Scrubbing devices in Jobs: when one is made, when it counts, and when it goes.

use crate::cluster::{CleaningJob, JobProgress, Jobs, Phase, Pv};
use crate::job;
use crate::names;
use crate::observed::DirectoryKey;
use crate::reason::Held;

use super::{Action, Planner, Sight, State};

impl Planner<'_> {
    /// One step of getting a device clean by a Job; `then` once it is.
    pub(super) fn job_step(
        &mut self,
        pv: &Pv,
        gone: bool,
        key: &DirectoryKey,
        sight: &Sight<'_>,
        then: impl FnOnce(&mut Self, &Pv),
    ) -> State {
        let jobs = &self.i.cluster.jobs;
        if *jobs == Jobs::Unreadable {
            let namespace = self.i.jobs.namespace;
            return State::Held(Held::CleanerUnavailable(format!(
                "useJobForCleaning is set, but Jobs in namespace {namespace} cannot be read: grant them with a Role, and restart the provisioner"
            )));
        }
        let Some(job) = jobs.of(&pv.name) else {
            return match self.may_scrub(pv, sight) {
                Err(held) => State::Held(held),
                Ok(_) => self.make_job(pv, key, sight),
            };
        };
        // A leftover never counts, however it ended; it is removed at the end of the pass.
        if job.deleting || !counts(job, pv) {
            return State::Held(Held::JobRunning(job.name.clone()));
        }
        self.wanted_jobs.insert(pv.name.clone());
        match &job.progress {
            JobProgress::AtWork => State::Scrubbing(None),
            JobProgress::Failed(error) => {
                self.delete_job(&pv.name, job, &format!("it failed: {error}"));
                State::Released
            }
            JobProgress::Succeeded => {
                // A pod's mount that came up since may have written: the Job's work is void.
                if let Sight::Entry(entry) = sight
                    && let Some(user) = self.pod_mount(&pv.name, &entry.kind)
                {
                    self.delete_job(&pv.name, job, "the volume is in use again");
                    return State::Held(Held::InUse(user));
                }
                if gone {
                    // Its end is what is remembered of a PV that is gone: the volume is clean.
                    self.end_job(&pv.name, job, true, "it has cleaned the volume of a PV that is gone");
                } else {
                    then(self, pv);
                }
                State::Released
            }
        }
    }

    fn delete_job(&mut self, pv: &str, job: &CleaningJob, why: &str) {
        self.end_job(pv, job, false, why);
    }

    fn end_job(&mut self, pv: &str, job: &CleaningJob, proves_clean: bool, why: &str) {
        let action = Action::DeleteJob {
            pv: pv.to_owned(),
            job: Box::new(job.clone()),
            proves_clean,
            why: why.to_owned(),
        };
        self.act(pv, action);
    }

    fn make_job(&mut self, pv: &Pv, key: &DirectoryKey, sight: &Sight<'_>) -> State {
        let seen = match sight {
            Sight::Entry(entry) => super::entry::facts_id(&entry.kind),
            _ => None,
        };
        let lost = matches!(sight, Sight::Entry(entry) if matches!(self.matches(pv, &entry.kind), super::storage::Match::LostWithReboot));
        let noted = pv
            .annotation(names::VOLUME_ID)
            .filter(|_| !lost && !super::volume::adopted(pv));
        let Some(image) = self.i.jobs.image else {
            return State::Held(Held::CleanerUnavailable(
                "useJobForCleaning is set, but JOB_CONTAINER_IMAGE is not: set it to the provisioner's image".into(),
            ));
        };
        let command = match self.cleaner_command(pv) {
            Ok(command) => command,
            Err(held) => return State::Held(held),
        };
        let job = job::build(&job::CleaningJob {
            pv: &pv.name,
            pv_uid: &pv.uid,
            claim_uid: pv.claim_uid(),
            volume_id: noted.or(seen.as_deref()),
            bytes_per_second: self.i.jobs.bytes_per_second,
            directory: key,
            entry: pv.entry().unwrap_or_default(),
            command: &command,
            namespace: self.i.jobs.namespace,
            image,
            node_name: &self.i.node.name,
            hostname: &self.i.ownership.hostname,
            tolerations: &self.i.config.job_tolerations,
        });
        self.start_notice(pv);
        self.act(&pv.name, Action::CreateJob(Box::new(job)));
        State::Scrubbing(None)
    }

    /// Removes the own Jobs that nothing waits for, and ends those that are at work on a volume that is in circulation
    /// again or for a PV of another UID. One that is at work for a PV that is gone, or whose class does not use Jobs any
    /// more, is let end: it blocks its path until then.
    pub(super) fn unwanted_jobs(&mut self) {
        let Jobs::Read(jobs) = &self.i.cluster.jobs else { return };
        for (name, job) in jobs {
            let ours = job.hostname.as_deref() == Some(self.i.ownership.hostname.as_str());
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
