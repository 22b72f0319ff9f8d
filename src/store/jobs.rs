//! The cleaning Jobs: those that the watch shows, and those that only reading by name does.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;

use super::{Store, number};
use crate::cluster::{CleaningJob, JobProgress, Jobs, cleaning_job};

impl Store {
    /// The Jobs that the watch shows, all of them. One that it does not show any more may merely have lost its label:
    /// it stays as it was until it is read by name.
    pub fn jobs<'a>(&mut self, jobs: impl Iterator<Item = &'a Job>) {
        self.version += 1;
        self.jobs_listed = true;
        let former = match std::mem::take(&mut self.cluster.jobs) {
            Jobs::Read(former) | Jobs::Unreadable { left: former, .. } => former,
        };
        let mut read: BTreeMap<String, CleaningJob> = BTreeMap::new();
        for (pv, mut job) in jobs.filter_map(cleaning_job) {
            if let Some(known) = former.get(&pv).filter(|known| known.uid == job.uid) {
                if number(&known.resource_version) > number(&job.resource_version) {
                    job = known.clone(); // Read by name, or our own write's answer.
                }
                job.started |= known.started;
                job.deleting |= known.deleting; // The watch may lag behind our own write.
            }
            // Of two for one PV the one at work counts.
            if read.get(&pv).is_none_or(|kept| kept.progress != JobProgress::AtWork) {
                read.insert(pv, job);
            }
        }
        for (pv, job) in former {
            let at_work = job.progress == JobProgress::AtWork;
            let same = |shown: &CleaningJob| shown.name == job.name || shown.progress == JobProgress::AtWork;
            // One that was being deleted, or had ended, is gone, or as good as that.
            let shown = self.is_shown(&job);
            let may_be_there = if shown {
                at_work && !job.deleting
            } else {
                !self.is_over(&job)
            };
            if read.get(&pv).is_some_and(same) || !may_be_there || self.is_elsewhere(&job) {
                continue;
            }
            if shown {
                self.doubtful_jobs.insert(job.name.clone(), job.uid.clone());
            }
            if at_work || !read.contains_key(&pv) {
                read.insert(pv, job);
            }
        }
        self.cluster.jobs = Jobs::Read(read);
    }

    /// Whether the watch shows a Job, as long as it is there.
    fn is_shown(&self, job: &CleaningJob) -> bool {
        let node = self.cluster.node.as_ref();
        node.is_some_and(|node| job.is_shown_to(&node.name))
    }

    /// Whether a Job has ended that nobody here counts or deletes: not one of a provisioner, or one that neither names this
    /// node nor is tied to it.
    fn is_over(&self, job: &CleaningJob) -> bool {
        let ours = self.ownership.as_ref().map(|ownership| ownership.hostname.as_str());
        let tied_here = job.hostname.is_some() && job.hostname.as_deref() == ours;
        let counts = !job.is_foreign() && (tied_here || self.is_shown(job));
        job.progress != JobProgress::AtWork && !counts
    }

    /// Whether a Job is tied to another node.
    fn is_elsewhere(&self, job: &CleaningJob) -> bool {
        let ours = self.ownership.as_ref().map(|ownership| ownership.hostname.as_str());
        job.hostname.is_some() && ours.is_some() && job.hostname.as_deref() != ours
    }

    /// A Job that we have made, or met under its name: the watch may lag, or not show it.
    pub fn job_found(&mut self, job: &Job) {
        let Some((pv, mut job)) = cleaning_job(job) else { return };
        let (elsewhere, over) = (self.is_elsewhere(&job), self.is_over(&job));
        let (Jobs::Read(jobs) | Jobs::Unreadable { left: jobs, .. }) = &mut self.cluster.jobs;
        let known = jobs.get(&pv);
        if let Some(known) = known.filter(|known| known.uid == job.uid) {
            if number(&known.resource_version) > number(&job.resource_version) {
                return;
            }
            job.started |= known.started;
        } else if known.is_some_and(|known| known.progress == JobProgress::AtWork) {
            return; // Of two for one PV the one at work counts.
        }
        // What is not ours matters as long as it is at work, and on this node.
        self.version += 1;
        if over || (job.is_foreign() && elsewhere) {
            jobs.remove(&pv);
        } else {
            jobs.insert(pv, job);
        }
    }

    /// The server has taken our word to delete a Job.
    pub fn job_going(&mut self, uid: &str) {
        let (Jobs::Read(jobs) | Jobs::Unreadable { left: jobs, .. }) = &mut self.cluster.jobs;
        if let Some(job) = jobs.values_mut().find(|job| job.uid == uid) {
            job.deleting = true;
            self.version += 1;
        }
    }

    /// A Job is gone.
    pub fn job_gone(&mut self, uid: &str) {
        let (Jobs::Read(jobs) | Jobs::Unreadable { left: jobs, .. }) = &mut self.cluster.jobs;
        jobs.retain(|_, job| job.uid != uid);
        self.version += 1;
    }

    /// What reading a Job by its name has shown; `uid` is of the one that was known before.
    pub fn job_read_by_name(&mut self, name: &str, uid: &str, found: Option<&Job>) {
        self.doubtful_jobs.remove(name);
        let another = found.is_none_or(|found| found.metadata.uid.as_deref() != Some(uid));
        if let (true, Jobs::Read(jobs)) = (another, &mut self.cluster.jobs) {
            self.version += 1;
            jobs.retain(|_, job| job.uid != uid);
        }
        if let Some(found) = found {
            self.job_found(found);
        }
    }

    /// Jobs to be read by name, with their UIDs, for [`Store::job_read_by_name`]: those of which it is not certain that
    /// they are gone.
    #[must_use]
    pub fn doubtful_jobs(&self) -> &BTreeMap<String, String> {
        &self.doubtful_jobs
    }

    /// The Jobs that the watch does not show, with their UIDs: nothing but reading them tells that they have ended.
    #[must_use]
    pub fn unwatched_jobs(&self) -> Vec<(String, String)> {
        let Jobs::Read(jobs) = &self.cluster.jobs else {
            return Vec::new();
        };
        let unwatched = jobs.values().filter(|job| !self.is_shown(job));
        unwatched.map(|job| (job.name.clone(), job.uid.clone())).collect()
    }

    /// Jobs may not be read (any more): the verb that is refused. Those that were at work may still be.
    pub fn jobs_unreadable(&mut self, verb: &'static str) {
        self.version += 1;
        self.jobs_listed = true;
        self.doubtful_jobs.clear();
        let mut left = match std::mem::take(&mut self.cluster.jobs) {
            Jobs::Read(left) | Jobs::Unreadable { left, .. } => left,
        };
        left.retain(|_, job| job.progress == JobProgress::AtWork);
        self.cluster.jobs = Jobs::Unreadable { verb, left };
    }
}
