//! Starting what a plan asks for: calls of the API, and scrubs. Each ends as a [`Done`], which the loop settles.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::Api;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Arc, Daemon, Duration, Ownership, Plan, jobs, start};
use crate::api::{self, WriteError};
use crate::cluster::{ClaimRef, Mode};
use crate::events::Letter;
use crate::failpoint;
use crate::memory::{ClaimState, Scrub, ScrubState};
use crate::plan::{Limits, Notice, PvPatch, PvRef, ScrubOrder, Severity};
use crate::recycle;
use crate::scrub::ScrubError;
use crate::scrub::checkpoint::Notes;
use crate::scrub::progress::{Cancel, Progress, Unit};

use super::settle::Done;

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

    /// Runs a call of the API for a PV, among a bounded number of others.
    pub(super) fn call<F>(&mut self, key: &str, call: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = Done> + Send + 'static,
    {
        self.memory.in_flight.insert(key.to_owned());
        let writes = Arc::clone(&self.writes);
        self.tasks.spawn(async move {
            // The semaphore is never closed.
            let _permit = writes.acquire_owned().await;
            // Only now, and not in the task itself: it takes kilobytes, and a thousand may be waiting.
            Box::pin(call()).await
        });
    }

    pub(super) fn create(&mut self, pv: Box<PersistentVolume>, looked: Instant) {
        let fresh = self.node_watched
            || self
                .node_read
                .is_some_and(|at| at.elapsed() < crate::watch::NODE_READING);
        if !fresh {
            self.read_node();
            return;
        }
        let gaps = self.shared.store().gaps();
        let name = pv.name_any();
        self.memory.creating.insert(name.clone(), (&*pv).into());
        let client = self.client.clone();
        self.call(&name.clone(), move || async move {
            let began = Instant::now();
            let result = api::create(&client, pv).await;
            Done::Created {
                gaps,
                name,
                result,
                took: began.elapsed(),
                since_look: looked.elapsed(),
            }
        });
    }

    /// The labels that are copied to PVs, and the UID, may have changed: the Node is read before anything is created.
    pub(super) fn read_node(&mut self) {
        const KEY: &str = "the own node";
        let waits = self.memory.retries.get(KEY).is_some_and(|retry| retry.due > self.now());
        let just_read = self.node_read.is_some_and(|at| at.elapsed() < Duration::from_secs(1));
        if waits || just_read || self.memory.in_flight.contains(KEY) {
            return;
        }
        let read = start::read_node(self.client.clone(), self.settings.node_name.clone());
        self.call(KEY, move || async move { Done::ReadNode(read.await.map(Box::new)) });
    }

    pub(super) fn patch(&mut self, pv: PvRef, patch: PvPatch, lets_go: bool, why: String) {
        debug!(pv = %pv.name, %why, "patching");
        self.lets_go(&pv, lets_go);
        let client = self.client.clone();
        self.call(&pv.name.clone(), move || async move {
            let result = api::patch(&client, &pv, &patch).await;
            let resolved = patch.annotations.get(crate::names::RESOLVE) == Some(&None);
            Done::Patched { pv, resolved, result }
        });
    }

    pub(super) fn delete(&mut self, pv: PvRef, lets_go: bool, why: String) {
        info!(pv = %pv.name, %why, "deleting PersistentVolume");
        self.lets_go(&pv, lets_go);
        let client = self.client.clone();
        self.call(&pv.name.clone(), move || async move {
            let began = Instant::now();
            let result = api::delete(&client, &pv).await;
            Done::Deleted {
                pv,
                result,
                took: began.elapsed(),
            }
        });
    }

    /// Noted before the call is made: the watch may show the PV's end before the answer is here, or the answer is lost.
    fn lets_go(&mut self, pv: &PvRef, lets_go: bool) {
        if lets_go {
            self.memory.let_go.insert(pv.uid.clone(), self.now());
        }
    }

    pub(super) fn read_claim(&mut self, claim: ClaimRef) {
        let client = self.client.clone();
        self.call(&format!("claim {claim}"), move || async move {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client, &claim.namespace);
            let read = api.get_opt(&claim.name).await;
            failpoint::hit!("claim.read");
            let state = match read {
                Ok(None) => ClaimState::Absent,
                Ok(Some(found)) => ClaimState::Present {
                    uid: found.metadata.uid.unwrap_or_default(),
                    volume_name: found.spec.and_then(|spec| spec.volume_name).unwrap_or_default(),
                },
                Err(err) => match WriteError::from(err) {
                    err @ WriteError::Forbidden(_) => ClaimState::Forbidden(err.to_string()),
                    err => ClaimState::Unreadable(err.to_string()),
                },
            };
            Done::ReadClaim { claim, state }
        });
    }

    /// Reads by name the PVs of which it is not certain that they are gone, or as they were seen.
    pub(super) fn read_doubtful(&mut self) {
        let names: Vec<String> = self.shared.store().doubtful().iter().cloned().collect();
        for name in names {
            let waits = self
                .memory
                .retries
                .get(&name)
                .is_some_and(|retry| retry.due > self.now());
            if waits || self.memory.in_flight.contains(&name) {
                continue;
            }
            let client = self.client.clone();
            self.call(&name.clone(), move || async move {
                let result = api::read(&client, &name).await;
                Done::Read { name, result }
            });
        }
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
            crate::plan::ScrubKind::Filesystem => Unit::Entries,
            crate::plan::ScrubKind::Device(_) => Unit::Bytes,
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
        let scrubber = recycle::Scrubber {
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
        let (shared, slots) = (self.shared.clone(), Arc::clone(&self.slots));
        let questions = Arc::clone(&self.questions);
        let progress = scrubber.progress.clone();
        self.tasks.spawn(async move {
            let order = Box::new(scrubber.order.clone());
            // The watch does not show a Job that lacks its labels.
            let check = async || match &jobs {
                Some((client, namespace)) => jobs::none_at_work(client, namespace, &order.pv.name, &shared).await,
                None => Ok(()),
            };
            // Slots are for disks: the API server is asked before there is one.
            let Ok(Ok(permit)) = tokio::time::timeout(AHEAD, questions.acquire_owned()).await else {
                let uid = order.pv.uid;
                return Done::NotScrubbed { uid, before };
            };
            let answer = if scrubber.cancel.is_cancelled() {
                Err(ScrubError::Cancelled)
            } else {
                check().await
            };
            drop(permit);
            if let Err(error) = answer {
                let (result, took) = (Err(error), None);
                return Done::Scrubbed { order, result, took };
            }
            let answered = Instant::now();
            let Ok(Ok(slot)) = tokio::time::timeout(AHEAD, slots.acquire_owned()).await else {
                let uid = order.pv.uid;
                return Done::NotScrubbed { uid, before };
            };
            progress.add(0); // It has not hung while it waited.
            let path = order.directory.host_dir.join(&order.entry);
            info!(pv = %order.pv.name, path = %path.display(), kind = ?order.kind, "scrub starts");
            let began = Instant::now();
            let run = async {
                if scrubber.cancel.is_cancelled() {
                    return Err(ScrubError::Cancelled); // While it waited.
                }
                if answered.elapsed() > FRESH {
                    check().await?;
                }
                match tokio::task::spawn_blocking(move || scrubber.run()).await {
                    Ok(result) => result,
                    Err(panic) => Err(ScrubError::Failed(anyhow::anyhow!("the scrubber failed: {panic}"))),
                }
            };
            let result = in_slot(slot, &progress, run).await;
            let took = Some(began.elapsed());
            Done::Scrubbed { order, result, took }
        });
    }

    /// Posts what is new among the plan's notices.
    pub(super) fn tell(&mut self, plan: &Plan, ownership: &Ownership) {
        let (news, first) = self.told.news(&plan.events);
        for notice in news {
            if !self.post(notice.clone(), ownership, first) {
                self.told.untold(&notice);
            }
        }
    }

    /// Says a notice everywhere. False if there is no room for its event now.
    pub(super) fn post(&mut self, notice: Notice, ownership: &Ownership, may_be_told: bool) -> bool {
        let host = self.settings.node_name.clone();
        let letter = Letter::of(&notice, ownership.provisioned_by(), host, may_be_told);
        if !self.outbox.put(letter) {
            return false;
        }
        // What is told to a claim is told of its PV, too.
        if notice.claim.is_none() {
            self.board.told(&notice);
            if notice.severity == Severity::Warning {
                warn!(pv = %notice.pv, reason = notice.reason, "{}", notice.message);
            }
        }
        true
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
