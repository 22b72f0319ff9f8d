//! Starting the scrubs that a plan orders: the last question to the API server, a slot, and the work on the disk.

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tracing::info;

use super::settle::Done;
use super::{Arc, Client, Daemon, Duration, Semaphore, Shared, jobs};
use crate::cluster::Mode;
use crate::failpoint;
use crate::memory::{Scrub, ScrubState};
use crate::plan::{Limits, ScrubKind, ScrubOrder};
use crate::recycle::{Clean, Scrubber};
use crate::scrub::ScrubError;
use crate::scrub::checkpoint::Notes;
use crate::scrub::progress::{Cancel, Progress, Unit};

/// So many scrubs at most are ordered ahead, for when a slot is free.
const MOST_AHEAD: usize = 64;
/// What a scrub was ordered by may be out of date when it has waited so long for a slot: another pass orders it anew.
const AHEAD: Duration = Duration::from_secs(1);

/// A scrub that waits for its slot for longer asks for Jobs again: one that was made a moment ago has no container that
/// runs yet. How long the answer itself took does not count, for the next would take as long.
const FRESH: Duration = Duration::from_millis(200);

impl Daemon {
    /// The limits of a plan. Where scrubs end faster than pass follows pass, twice as many are ordered ahead as have ended
    /// since the last one, and wait for a slot: it is not to stay empty until the next pass.
    pub(super) fn limits(&mut self) -> Limits {
        let mut limits = self.settings.limits;
        let ahead = (2 * std::mem::take(&mut self.scrubs_ended)).min(MOST_AHEAD);
        limits.scrub_concurrency = limits.scrub_concurrency.saturating_add(ahead);
        limits
    }

    pub(super) fn scrub(&mut self, order: ScrubOrder) {
        failpoint::hit!("scrub.ordered");
        let may_resume = self.may_resume(&order);
        let former = self.memory.scrubs.get(&order.pv.uid);
        let (failures, held_back) = former.map_or((0, 0), |scrub| (scrub.failures, scrub.held_back));
        let before = former.cloned();
        let stamp = former.and_then(|scrub| match &scrub.state {
            ScrubState::Clean { stamp, .. } => stamp.clone(),
            _ => None,
        });
        let unit = match order.kind {
            ScrubKind::Filesystem => Unit::Entries,
            ScrubKind::Device(_) => Unit::Bytes,
        };
        let progress = Progress::with_stall_timeout(unit, self.settings.scrub.stall_timeout)
            .counted_by(self.metrics.scrub_counter(unit));
        let cancel = Cancel::new();
        let scrub = Scrub {
            claim_uid: order.claim_uid.clone(),
            failures,
            held_back,
            last_hold: former.and_then(|scrub| scrub.last_hold.clone()),
            state: ScrubState::Running,
        };
        self.memory.scrubs.insert(order.pv.uid.clone(), scrub);
        self.running
            .insert(order.pv.uid.clone(), (progress.clone(), cancel.clone()));
        let notes = (self.mode == Mode::Patch).then(|| Notes::new(Arc::clone(&self.shared.wake)));
        self.notes
            .extend(notes.clone().map(|notes| (order.pv.uid.clone(), notes)));
        let scrubber = Scrubber {
            client: self.client.clone(),
            runtime: tokio::runtime::Handle::current(),
            mode: self.mode,
            scan: self.settings.scan.clone(),
            tables: self.tables.clone(),
            order,
            earlier_stamp: stamp,
            limits: self.settings.scrub,
            progress,
            cancel,
            notes,
            may_resume,
        };
        let jobs = self
            .jobs_known()
            .then(|| (self.client.clone(), self.settings.namespace.clone()));
        let attempt = Attempt {
            scrubber,
            jobs,
            shared: self.shared.clone(),
            questions: Arc::clone(&self.questions),
            slots: Arc::clone(&self.slots),
            before,
        };
        self.tasks.spawn(attempt.run());
    }
}

/// A scrub that was ordered.
struct Attempt {
    scrubber: Scrubber,
    /// Where Jobs are looked for, if they may be read.
    jobs: Option<(Client, String)>,
    shared: Shared,
    questions: Arc<Semaphore>,
    slots: Arc<Semaphore>,
    /// What was known of a scrub of this PV before.
    before: Option<Scrub>,
}

impl Attempt {
    async fn run(self) -> Done {
        let order = Box::new(self.scrubber.order.clone());
        // Slots are for disks: the API server is asked before there is one.
        let Ok(Ok(permit)) = timeout(AHEAD, Arc::clone(&self.questions).acquire_owned()).await else {
            return self.not_now();
        };
        let answer = self.may_begin().await;
        drop(permit);
        if let Err(error) = answer {
            let (result, took) = (Err(error), None);
            return Done::Scrubbed { order, result, took };
        }
        let answered = Instant::now();
        let Ok(Ok(slot)) = timeout(AHEAD, Arc::clone(&self.slots).acquire_owned()).await else {
            return self.not_now();
        };
        let progress = self.scrubber.progress.clone();
        progress.add(0); // It has not hung while it waited.
        let path = order.directory.host_dir.join(&order.entry);
        info!(pv = %order.pv.name, path = %path.display(), kind = ?order.kind, "scrub starts");
        let began = Instant::now();
        let result = in_slot(slot, &progress, self.scrub(answered)).await;
        let took = Some(began.elapsed());
        Done::Scrubbed { order, result, took }
    }

    /// Whether it was cancelled, or a Job is at work that the watch does not show because it lacks its labels.
    async fn may_begin(&self) -> Result<(), ScrubError> {
        if self.scrubber.cancel.is_cancelled() {
            return Err(ScrubError::Cancelled);
        }
        match &self.jobs {
            Some((client, namespace)) => {
                let pv = &self.scrubber.order.pv.name;
                jobs::none_at_work(client, namespace, pv, &self.shared).await
            }
            None => Ok(()),
        }
    }

    /// With its slot.
    async fn scrub(self, answered: Instant) -> Result<Clean, ScrubError> {
        if self.scrubber.cancel.is_cancelled() {
            return Err(ScrubError::Cancelled); // While it waited.
        }
        if answered.elapsed() > FRESH {
            self.may_begin().await?;
        }
        match tokio::task::spawn_blocking(move || self.scrubber.run()).await {
            Ok(result) => result,
            Err(panic) => Err(ScrubError::Failed(anyhow::anyhow!("the scrubber failed: {panic}"))),
        }
    }

    fn not_now(self) -> Done {
        let uid = self.scrubber.order.pv.uid;
        let before = self.before;
        Done::NotScrubbed { uid, before }
    }
}

/// Runs a scrub in its slot, which others get when it has stalled: what hangs does nothing.
async fn in_slot<T>(slot: OwnedSemaphorePermit, progress: &Progress, run: impl Future<Output = T>) -> T {
    const LOOK: Duration = Duration::from_secs(1);
    let mut slot = Some(slot);
    tokio::pin!(run);
    loop {
        tokio::select! {
            ended = &mut run => return ended,
            () = tokio::time::sleep(LOOK), if slot.is_some() => {
                if progress.snapshot().stalled.is_some() {
                    slot = None;
                }
            }
        }
    }
}
