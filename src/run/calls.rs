//! Starting the calls of the API that a plan asks for. Each ends as a [`Done`], which the loop settles.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::Api;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Arc, Daemon, Duration, Ownership, Plan, start};
use crate::api::{self, WriteError};
use crate::cluster::ClaimRef;
use crate::events::Letter;
use crate::failpoint;
use crate::memory::ClaimState;
use crate::plan::{Notice, PvPatch, PvRef, Severity};

use super::settle::Done;

impl Daemon {
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
