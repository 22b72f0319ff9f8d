//! The cleaning Jobs, as far as the API server says of them what is used.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;

use crate::names;

/// What is used of a cleaning Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleaningJob {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// Label `pvuuid`: the UID of the PV that it cleans for.
    pub pv_uid: String,
    /// UID of the claim that the PV was released from; none on a Job of the classic program.
    pub claim_uid: Option<String>,
    /// The hostname that it is tied to.
    pub hostname: Option<String>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// It has the label `pv`.
    pub labelled: bool,
    /// Its label `kubernetes.io/hostname`: the name of the node that it was made for.
    pub node_name: Option<String>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// A container of it has run.
    pub started: bool,
    /// It was ended by its deadline.
    pub timed_out: bool,
    /// How far it is.
    pub progress: JobProgress,
    /// From its start to its completion.
    pub took: Option<std::time::Duration>,
}

impl CleaningJob {
    /// Neither made by this program nor by the classic one, as far as its labels say: it is waited for, and never
    /// deleted.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        !self.labelled && self.pv_uid.is_empty()
    }

    /// Whether the watch of a node shows it; see [`crate::job::selectors`].
    #[must_use]
    pub fn is_shown_to(&self, node_name: &str) -> bool {
        self.labelled && self.node_name.as_deref().is_none_or(|name| name == node_name)
    }
}

/// How far a Job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobProgress {
    /// Not ended, or a pod of it is active.
    AtWork,
    /// Complete.
    Succeeded,
    /// Failed, with the reason.
    Failed(String),
}

/// Reads a Job as a cleaning Job: the name of its PV, and what is used of it. A Job has ended when it is Complete or
/// Failed and no pod is active; one that is deleted in the foreground keeps its status, so the object may outlive its
/// work.
#[must_use]
pub fn cleaning_job(job: &Job) -> Option<(String, CleaningJob)> {
    let meta = &job.metadata;
    let name = meta.name.clone()?;
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key).cloned());
    let label_pv = label("pv");
    let labelled = label_pv.is_some();
    let pv = label_pv.or_else(|| crate::job::pv_of(&name).map(str::to_owned))?;
    let pod = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let job = CleaningJob {
        name,
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        pv_uid: label("pvuuid").unwrap_or_default(),
        claim_uid: meta
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(crate::job::CLAIM_UID).cloned()),
        hostname: pod.and_then(|pod| pod.node_selector.as_ref()?.get(names::HOSTNAME_LABEL).cloned()),
        deleting: meta.deletion_timestamp.is_some(),
        labelled,
        node_name: label(names::HOSTNAME_LABEL),
        created: meta.creation_timestamp.as_ref().map(|time| time.0),
        started: job_started(job),
        timed_out: job_timed_out(job),
        progress: job_progress(job),
        took: job_took(job),
    };
    Some((pv, job))
}

fn job_progress(job: &Job) -> JobProgress {
    let Some(status) = &job.status else {
        return JobProgress::AtWork;
    };
    if status.active.unwrap_or(0) > 0 {
        return JobProgress::AtWork;
    }
    let mut conditions = status
        .conditions
        .iter()
        .flatten()
        .filter(|condition| condition.status == "True");
    conditions
        .find_map(|condition| match condition.type_.as_str() {
            "Complete" => Some(JobProgress::Succeeded),
            "Failed" => Some(JobProgress::Failed(condition.message.clone().unwrap_or_default())),
            _ => None,
        })
        .unwrap_or(JobProgress::AtWork)
}

/// Whether its status shows that a container of it runs or has run. API servers before 1.24 do not count ready pods.
fn job_started(job: &Job) -> bool {
    let Some(status) = &job.status else { return false };
    let active = status.active.unwrap_or(0) > 0;
    let ready = status.ready.map_or(active, |ready| ready > 0);
    // A failed pod may be one that never ran: refused by kubelet, or ended by the deadline.
    ready || status.succeeded.unwrap_or(0) > 0
}

fn job_timed_out(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "Failed"
            && condition.status == "True"
            && condition.reason.as_deref() == Some("DeadlineExceeded")
    })
}

fn job_took(job: &Job) -> Option<std::time::Duration> {
    let status = job.status.as_ref()?;
    let (start, end) = (status.start_time.as_ref()?.0, status.completion_time.as_ref()?.0);
    end.duration_since(start).try_into().ok()
}

/// The cleaning Jobs, as far as they can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jobs {
    /// Not permitted: there are none then, as far as holding goes, and none can be made.
    Unreadable {
        /// What is not permitted.
        verb: &'static str,
        /// Those that were at work when the permission was lost, by the name of their PV: nobody can say that they have
        /// ended.
        left: BTreeMap<String, CleaningJob>,
    },
    /// By the name of their PV.
    Read(BTreeMap<String, CleaningJob>),
}

impl Default for Jobs {
    fn default() -> Self {
        Self::Read(BTreeMap::new())
    }
}

impl Jobs {
    /// The Job of a PV.
    #[must_use]
    pub fn of(&self, pv: &str) -> Option<&CleaningJob> {
        match self {
            Self::Unreadable { .. } => None,
            Self::Read(jobs) => jobs.get(pv),
        }
    }

    /// The Job that is at work for a PV, as far as that is known.
    fn working(&self, pv: &str) -> Option<&CleaningJob> {
        let (Self::Read(jobs) | Self::Unreadable { left: jobs, .. }) = self;
        jobs.get(pv).filter(|job| job.progress == JobProgress::AtWork)
    }

    /// The name of the Job that is at work for a PV, whatever release it is for.
    #[must_use]
    pub fn at_work(&self, pv: &str) -> Option<&str> {
        self.working(pv).map(|job| job.name.as_str())
    }
}
