//! Cleaning Jobs: whether they may be read, making and deleting them, and counting how they ended.

mod look;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::Api;
use tokio::time::Instant;
use tracing::{info, warn};

use super::settle::Done;
use super::{Daemon, Duration, Plan, plan};
use crate::api::{self, WriteError};
use crate::cluster::{CleaningJob, JobProgress, Jobs, cleaning_job};
use crate::config::Config;
use crate::memory::{Scrub, ScrubState, scrub_backoff};
use crate::metrics::By;
use crate::plan::{FailureCause, JobOrder, State};
use crate::reason::Held;
use crate::scrub::ScrubError;
use crate::watch::{self, Shared};
use look::look_at;

/// Between two questions for the permission to read Jobs, however often the answer and what comes of it differ.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// What a call for the permission is known by.
const PERMISSION: &str = "the permissions for Jobs";

/// Reading Jobs, as far as that is permitted.
pub(super) struct Reading {
    /// The watch, while it runs. It ends with the verb that is refused.
    pub(super) watch: tokio::task::JoinSet<&'static str>,
    /// The permission is to be asked for.
    to_ask: bool,
    asked: Instant,
    /// When the Jobs that the watch does not show were read.
    read: Instant,
}

impl Reading {
    /// No question is open.
    pub(super) fn nothing_to_ask(&self) -> bool {
        !self.to_ask
    }

    /// The permission is asked for once more if there is no watch.
    pub(super) fn ask_again_if_refused(&mut self) {
        self.to_ask |= self.watch.is_empty();
    }

    pub(super) fn new() -> Self {
        Self {
            watch: tokio::task::JoinSet::new(),
            to_ask: false,
            asked: Instant::now(),
            read: Instant::now(),
        }
    }
}

/// How the creation of a Job ended.
pub(super) enum Made {
    /// It was created.
    Created(Box<Job>),
    /// The device shows what the Job would be held by: it was not created.
    Held(Held),
    /// There is a Job of that name.
    Exists(Option<Box<Job>>),
    /// The server refused.
    Refused(WriteError),
}

impl Daemon {
    /// Takes in whether Jobs may be read: the verb that is refused, if any.
    pub(super) fn take_job_permission(&mut self, refused: Option<&'static str>) {
        self.jobs.asked = Instant::now();
        self.jobs.to_ask = false;
        match refused {
            Some(verb) => self.shared.update(|store| store.jobs_unreadable(verb)),
            None if self.jobs.watch.is_empty() => {
                let namespace = self.settings.namespace.clone();
                let node_name = self.settings.node_name.clone();
                let watch = watch::jobs(self.client.clone(), self.shared.clone(), namespace, node_name);
                self.jobs.watch.spawn(watch);
            }
            None => {}
        }
    }

    /// The watch of Jobs has ended, which it does when it is not permitted any more.
    pub(super) fn jobs_refused(&mut self, verb: &'static str) {
        let namespace = &self.settings.namespace;
        warn!(%verb, %namespace, "Jobs cannot be read any more: not permitted");
        self.shared.update(|store| store.jobs_unreadable(verb));
        self.jobs.to_ask = true;
    }

    /// The configuration changes: with useJobForCleaning Jobs must be readable.
    pub(super) fn jobs_configured(&mut self, before: Option<&Config>, now: &Config) {
        let turned_on = now.use_job_for_cleaning && before.is_some_and(|before| !before.use_job_for_cleaning);
        self.jobs.to_ask |= turned_on;
    }

    /// Asks again for the permission to read Jobs when it may have changed and when a volume waits for it, and reads
    /// those that the watch does not show. An idle node does neither.
    pub(super) fn follow_jobs(&mut self, plan: &Plan) {
        let period = self.settings.limits.discovery_period;
        if self.jobs.watch.is_empty() {
            let unreadable = !self.jobs_known();
            let uses_jobs = self.config.as_ref().is_some_and(|config| config.use_job_for_cleaning);
            let waits = |volume: &plan::Volume| match volume.state {
                State::Held(Held::CleanerUnavailable(_)) => uses_jobs,
                // One that was at work when the permission was lost.
                State::Held(Held::JobRunning(_)) => true,
                _ => false,
            };
            let waited_for = unreadable && plan.volumes.iter().any(waits);
            let pause = if self.jobs.to_ask {
                ASK_PAUSE.min(period)
            } else {
                period
            };
            if (self.jobs.to_ask || waited_for) && self.jobs.asked.elapsed() >= pause {
                self.ask_for_jobs();
            }
        }
        let mut names = self.shared.store().doubtful_jobs().clone();
        if self.jobs.read.elapsed() >= period {
            self.jobs.read = Instant::now();
            names.extend(self.shared.store().unwatched_jobs());
        }
        for (name, uid) in names {
            self.read_job(name, uid);
        }
    }

    fn ask_for_jobs(&mut self) {
        if self.memory.in_flight.contains(PERMISSION) {
            return;
        }
        self.jobs.asked = Instant::now();
        let (client, namespace) = (self.client.clone(), self.settings.namespace.clone());
        self.call(PERMISSION, move || async move {
            Done::JobPermission(ask(client, namespace).await)
        });
    }

    pub(super) fn job_permission(&mut self, result: Result<Option<&'static str>, WriteError>) {
        self.memory.in_flight.remove(PERMISSION);
        match result {
            Ok(refused) => {
                if refused.is_none() {
                    info!("Jobs can be read now");
                }
                self.take_job_permission(refused);
            }
            Err(error) => warn!(%error, "cannot ask for the permissions for Jobs"),
        }
    }

    /// Whether Jobs can be read.
    pub(super) fn jobs_known(&self) -> bool {
        !matches!(self.shared.store().cluster().jobs, Jobs::Unreadable { .. })
    }

    /// Reads a Job that the watch does not show.
    fn read_job(&mut self, name: String, uid: String) {
        let key = format!("job {name}");
        let waits = self
            .memory
            .retries
            .get(&key)
            .is_some_and(|retry| retry.due > self.now());
        if waits || self.memory.in_flight.contains(&key) {
            return;
        }
        let (client, namespace) = (self.client.clone(), self.settings.namespace.clone());
        self.call(&key, move || async move {
            let result = api::job_named(&client, &namespace, &name).await;
            let result = result.map(|found| found.map(Box::new));
            Done::ReadJob { name, uid, result }
        });
    }

    pub(super) fn job_read(&mut self, name: &str, uid: &str, result: Result<Option<Box<Job>>, WriteError>) {
        let key = format!("job {name}");
        self.memory.in_flight.remove(&key);
        match result {
            Ok(found) => {
                self.memory.retries.remove(&key);
                self.shared
                    .update(|store| store.job_read_by_name(name, uid, found.as_deref()));
            }
            Err(error) => {
                let now = self.now();
                let failures = self.memory.write_failed(&key, error.to_string(), now);
                self.memory.put_off(&key, now + api::wait(failures, error.asked()));
            }
        }
    }

    pub(super) fn create_job(&mut self, mut order: JobOrder) {
        let client = self.client.clone();
        let (namespace, scan) = (self.settings.namespace.clone(), self.settings.scan.clone());
        self.call(&order.pv.clone(), move || async move {
            let made = match look_at(&order.device, &scan).await {
                Some(held) => Made::Held(held),
                None => {
                    crate::job::note_start(&mut order.job, Timestamp::now());
                    create(&client, &namespace, &order).await
                }
            };
            let order = Box::new(order);
            Done::MadeJob { order, made }
        });
    }

    pub(super) fn job_made(&mut self, order: &JobOrder, made: Made) {
        let name = crate::job::name(&order.pv);
        self.memory.in_flight.remove(&order.pv);
        let held = match made {
            Made::Created(job) => {
                info!(pv = %order.pv, job = %name, "cleaning Job created");
                return self.shared.update(|store| store.job_found(&job));
            }
            Made::Held(held) => held,
            // It has gone between two looks.
            Made::Exists(None) => Held::JobRunning(name.clone()),
            Made::Exists(Some(job)) => {
                self.shared.update(|store| store.job_found(&job));
                let ended = |(_, job): &(String, CleaningJob)| job.progress != JobProgress::AtWork;
                let foreign = |(_, job): &(String, CleaningJob)| job.is_foreign();
                let known = self.shared.store().cluster().jobs.of(&order.pv).is_some();
                match cleaning_job(&job).filter(ended) {
                    Some(ended) if foreign(&ended) => {}
                    _ if known => return, // The next pass judges it.
                    // It has the name, and is for another PV or on another node.
                    _ => {
                        let held = Held::JobRunning(name);
                        return self.hold_job_back(&order.pv, &order.pv_uid, order.claim_uid.as_deref(), held);
                    }
                }
                let namespace = &self.settings.namespace;
                Held::CleanerUnavailable(format!(
                    "its cleaning Job cannot be made, because there is one called {name} that is not the provisioner's (it lacks the labels pv and pvuuid) and has ended; delete it: kubectl -n {namespace} delete job {name}"
                ))
            }
            Made::Refused(error) => Held::CleanerUnavailable(self.refused_job("create", &name, &error)),
        };
        self.hold_job_back(&order.pv, &order.pv_uid, order.claim_uid.as_deref(), held);
    }

    fn refused_job(&self, verb: &str, name: &str, error: &WriteError) -> String {
        let namespace = &self.settings.namespace;
        let advice = match error {
            // Also a 403, and no Role helps.
            WriteError::Forbidden(why) if why.contains("exceeded quota") => "; raise the ResourceQuota".to_owned(),
            WriteError::Absent => format!("; MY_NAMESPACE is {namespace}: create that namespace"),
            WriteError::Forbidden(_) => format!(
                "; grant the verb {verb} on jobs in namespace {namespace} with a Role (deploy/kubernetes/rbac.yaml); it goes on without a restart"
            ),
            _ => "; it is tried again".to_owned(),
        };
        format!("cannot {verb} cleaning Job {name} in namespace {namespace}: {error}{advice}")
    }

    fn hold_job_back(&mut self, pv: &str, uid: &str, claim_uid: Option<&str>, held: Held) {
        let now = self.now();
        let known = self.memory.scrubs.get(uid).and_then(|scrub| scrub.last_hold.as_ref());
        if known != Some(&held) {
            info!(%pv, %held, "cleaning Job held back");
        }
        self.memory.hold_back(uid, claim_uid, held, now);
    }

    pub(super) fn delete_job(&mut self, pv: String, job: CleaningJob, cause: Option<FailureCause>, why: &str) {
        info!(%pv, job = %job.name, %why, "deleting cleaning Job");
        let (client, namespace) = (self.client.clone(), self.settings.namespace.clone());
        let scan = self.settings.scan.clone();
        self.call(&pv.clone(), move || async move {
            let held = match cause {
                None => None,
                Some(FailureCause::Held(held)) => Some(held),
                Some(FailureCause::Device(device)) => look_at(&device, &scan).await,
            };
            let result = api::delete_job(&client, &namespace, &job).await;
            let job = Box::new(job);
            Done::DeletedJob { pv, job, held, result }
        });
    }

    pub(super) fn job_deleted(
        &mut self,
        pv: &str,
        job: &CleaningJob,
        held: Option<Held>,
        result: Result<(), WriteError>,
    ) {
        self.memory.in_flight.remove(pv);
        // The watch may lag: it is neither deleted nor counted twice.
        match result {
            Ok(()) => self.shared.update(|store| store.job_going(&job.uid)),
            Err(WriteError::Absent) => {
                self.memory.retries.remove(&crate::memory::job_deletion(pv));
                self.memory.retries.remove(pv);
                return self.shared.update(|store| store.job_gone(&job.uid));
            }
            // Also where it is not as it was: the watch shows how it is, in a moment.
            Err(error) => return self.job_not_deleted(pv, job, &error),
        }
        self.memory.retries.remove(&crate::memory::job_deletion(pv));
        self.memory.retries.remove(pv);
        match held {
            // No failure: it is judged anew after a pause.
            Some(held) => self.hold_back_for(pv, job, held),
            None => self.count_job(pv, job),
        }
    }

    /// A hold of the release that the PV is in now: a Job of the classic program does not say which it was made for.
    fn hold_back_for(&mut self, pv: &str, job: &CleaningJob, held: Held) {
        let claim_uid = self.claim_of_release(pv, job);
        self.hold_job_back(pv, &job.pv_uid, claim_uid.as_deref(), held);
    }

    fn claim_of_release(&self, pv: &str, job: &CleaningJob) -> Option<String> {
        let live = self.shared.store().cluster().pvs.get(pv).cloned();
        let live = live.filter(|live| live.uid == job.pv_uid);
        let claim_uid = live.as_ref().map_or(job.claim_uid.as_deref(), |live| live.claim_uid());
        claim_uid.map(str::to_owned)
    }

    fn job_not_deleted(&mut self, pv: &str, job: &CleaningJob, error: &WriteError) {
        let waits_for_it = {
            let store = self.shared.store();
            let returning = |pv: &crate::cluster::Pv| pv.deleting || pv.phase == crate::cluster::Phase::Released;
            let live = store.cluster().pvs.get(pv);
            live.is_some_and(|pv| pv.uid == job.pv_uid && returning(pv))
        };
        if matches!(error, WriteError::Forbidden(_)) {
            let now = self.now();
            let why = self.refused_job("delete", &job.name, error);
            let known = self.memory.retries.contains_key(&crate::memory::job_deletion(pv));
            if !known {
                warn!(%pv, %why, "an ended cleaning Job stays");
            }
            let due = self.memory.job_deletion_refused(pv, error.to_string(), now);
            // What runs in the process has a state of its own, by which it is not ordered again.
            if !waits_for_it || self.running.contains_key(&job.pv_uid) {
                return;
            }
            let claim_uid = self.claim_of_release(pv, job);
            let held = Held::CleanerUnavailable(why);
            return self
                .memory
                .hold_back_until(&job.pv_uid, claim_uid.as_deref(), held, due);
        }
        self.failed(pv, error, "delete the cleaning Job of");
    }

    /// A Job that has ended is counted when it goes: once.
    fn count_job(&mut self, pv: &str, job: &CleaningJob) {
        let now = self.now();
        let live = self.shared.store().cluster().pvs.get(pv).cloned();
        let known = live.filter(|live| live.uid == job.pv_uid);
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
                let Some(pv) = known.filter(|pv| !self.running.contains_key(&pv.uid)) else {
                    return;
                };
                let failures = self.memory.scrubs.get(&pv.uid).map_or(0, |scrub| scrub.failures) + 1;
                warn!(pv = %pv.name, failures, %error, "cleaning Job failed; it is tried again");
                let error = format!("Job {} failed: {error}", job.name);
                let scrub = Scrub {
                    claim_uid: pv.claim_uid().map(str::to_owned),
                    failures,
                    held_back: 0,
                    last_hold: Some(Held::ScrubFailed {
                        error: error.clone(),
                        failures,
                    }),
                    state: ScrubState::Failed {
                        due: now + scrub_backoff(failures),
                        error,
                    },
                };
                self.memory.scrubs.insert(pv.uid, scrub);
            }
        }
    }
}

/// Which verb keeps Jobs from being read.
pub(super) async fn ask(client: Client, namespace: String) -> Result<Option<&'static str>, WriteError> {
    let jobs: Api<Job> = Api::namespaced(client, &namespace);
    api::refused_to_watch(&jobs, "batch", "jobs", Some(&namespace)).await
}

async fn create(client: &Client, namespace: &str, order: &JobOrder) -> Made {
    match api::create_job(client, &order.job).await {
        Ok(job) => Made::Created(Box::new(job)),
        Err(WriteError::Exists) => match api::job_named(client, namespace, &crate::job::name(&order.pv)).await {
            Ok(found) => Made::Exists(found.map(Box::new)),
            Err(error) => Made::Refused(error),
        },
        Err(error) => Made::Refused(error),
    }
}

/// No Job is at work under the name of a PV's cleaning Job, whatever its labels.
///
/// # Errors
/// `Held`: one is, or nobody can say.
pub(super) async fn none_at_work(
    client: &Client,
    namespace: &str,
    pv: &str,
    shared: &Shared,
) -> Result<(), ScrubError> {
    let job = match api::job_named(client, namespace, &crate::job::name(pv)).await {
        // None are known of then, and the watch will say so.
        Ok(None) | Err(WriteError::Forbidden(_)) => return Ok(()),
        Ok(Some(job)) => job,
        Err(error) => {
            let held = Held::Unreadable(format!("its cleaning Job cannot be looked for: {error}"));
            return Err(ScrubError::Held(held));
        }
    };
    shared.update(|store| store.job_found(&job));
    match cleaning_job(&job).filter(|(_, job)| job.progress == JobProgress::AtWork) {
        Some((_, job)) => Err(ScrubError::Held(Held::JobRunning(job.name))),
        None => Ok(()),
    }
}
