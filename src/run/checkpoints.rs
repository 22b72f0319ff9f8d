//! Writing down how far wipes are, on their PVs, and taking back what does not count any more.

use tracing::debug;

use super::settle::Done;
use super::{Daemon, Mode, Plan};
use crate::api::{self, PrunedPv, WriteError};
use crate::cluster::{Cluster, JobProgress, Owner, Pv};
use crate::memory::ScrubState;
use crate::names;
use crate::plan::{PvPatch, PvRef, ScrubOrder};
use crate::reason::Held;
use crate::scrub::checkpoint;

impl Daemon {
    /// To be called after the plan's actions were started: what is under way for a PV goes first.
    pub(super) fn keep_checkpoints(&mut self, outdated: Vec<PvRef>) {
        self.notes.retain(|uid, _| self.running.contains_key(uid));
        if self.mode != Mode::Patch {
            return;
        }
        for pv in outdated {
            if !self.is_busy(&pv.name) && !self.running.contains_key(&pv.uid) {
                self.patch(pv, annotation(None), false, "its wipe starts over".into());
            }
        }
        for (pv, patch) in self.due_notes() {
            let client = self.client.clone();
            self.call(&pv.name.clone(), move || async move {
                let result = api::patch(&client, &pv, &patch).await;
                Done::Noted { pv, result }
            });
        }
    }

    /// Whether a call for a PV is under way, or waits for its next try.
    fn is_busy(&self, name: &str) -> bool {
        let waits = self
            .memory
            .retries
            .get(name)
            .is_some_and(|retry| retry.due > self.now());
        waits || self.memory.in_flight.contains(name)
    }

    /// The newest checkpoints, and the PVs to note them on. A PV that is busy is left for a later pass.
    fn due_notes(&self) -> Vec<(PvRef, PvPatch)> {
        let store = self.shared.store();
        let pvs = store.cluster().pvs.values();
        let carriers = pvs.filter(|pv| checkpoint::may_be_noted_on(pv) && !self.is_busy(&pv.name));
        let due = carriers.filter_map(|pv| {
            let newest = self.notes.get(&pv.uid)?.take()?;
            let same_release = pv.claim_uid() == Some(newest.wipe.claim_uid.as_str());
            same_release.then(|| (PvRef::from(pv), annotation(Some(newest.to_string()))))
        });
        due.collect()
    }

    /// The PVs whose checkpoint does not count any more, as the plan shows. That is remembered: the annotation may be seen
    /// late, or not be removable now, and what was seen may have ended by then.
    pub(super) fn outdated_checkpoints(&mut self, plan: &Plan) -> Vec<PvRef> {
        let shared = self.shared.clone();
        let store = shared.store();
        let Some(ownership) = store.ownership() else {
            return Vec::new();
        };
        let ours = |pv: &&Pv| ownership.of(pv) == Owner::Ours && !self.running.contains_key(&pv.uid);
        let pvs = store.cluster().pvs.values();
        let bearers = pvs.filter(|pv| pv.annotation(names::CHECKPOINT).is_some() || checkpoint::may_be_noted_on(pv));
        let outdated = bearers.filter(ours).filter(|pv| is_outdated(pv, plan, store.cluster()));
        let outdated: Vec<&Pv> = outdated.collect();
        self.memory.outworn.extend(outdated.iter().map(|pv| pv.uid.clone()));
        let noted = outdated
            .into_iter()
            .filter(|pv| pv.annotation(names::CHECKPOINT).is_some());
        noted.map(PvRef::from).collect()
    }

    /// Whether a scrub may begin where an interrupted one has left off. What an earlier try of this process has met, a
    /// device that is in use or one that fails, a checkpoint does not outlive.
    pub(super) fn may_resume(&mut self, order: &ScrubOrder) -> bool {
        let unread = |state: &ScrubState| matches!(state, ScrubState::HeldBack { held, .. } if matches!(held, Held::Unreadable(_)));
        let uid = &order.pv.uid;
        let former = self.memory.scrubs.get(uid);
        if former.is_some_and(|former| !unread(&former.state))
            || wiped_by_job(self.shared.store().cluster(), &order.pv.name, uid)
        {
            self.memory.outworn.insert(uid.clone());
        }
        !self.memory.outworn.contains(uid)
    }

    /// Only the next checkpoint makes up for one that could not be written: the wipe goes on, and at worst some of it is
    /// done twice.
    pub(super) fn noted(&mut self, pv: &PvRef, result: Result<PrunedPv, WriteError>) {
        self.memory.in_flight.remove(&pv.name);
        match result {
            Ok(now) => self.shared.update(|store| store.pv_changed(&now)),
            Err(err) => {
                debug!(pv = %pv.name, error = %err, "a checkpoint could not be written; the next will be");
                match err {
                    WriteError::Conflict | WriteError::Absent | WriteError::Exists => {
                        self.shared.update(|store| store.doubt(&pv.name));
                    }
                    WriteError::Forbidden(_) => self.ask_mode(),
                    WriteError::Other(_) | WriteError::Busy { .. } => {}
                }
            }
        }
    }
}

/// Whether something has, or may have, come to the device of a PV that nobody wipes now.
fn is_outdated(pv: &Pv, plan: &Plan, cluster: &Cluster) -> bool {
    let mut rows = plan.volumes.iter();
    let row = rows.find(|volume| volume.published && volume.pv.as_deref() == Some(pv.name.as_str()));
    wiped_by_job(cluster, &pv.name, &pv.uid)
        || row.is_some_and(|row| !checkpoint::outlives(&row.state))
        || !checkpoint::may_be_noted_on(pv)
}

/// Whether a Job's cleaner has written, or writes, to the volume of a PV: nobody knows where.
pub(super) fn wiped_by_job(cluster: &Cluster, pv: &str, uid: &str) -> bool {
    let job = cluster.jobs.of(pv);
    job.is_some_and(|job| job.pv_uid == uid || job.progress == JobProgress::AtWork)
}

fn annotation(value: Option<String>) -> PvPatch {
    PvPatch {
        annotations: [(names::CHECKPOINT.to_owned(), value)].into(),
        ..PvPatch::default()
    }
}
