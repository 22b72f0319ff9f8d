//! Every change of a PersistentVolume with its time, in order: `kubectl get pv --watch`, remembered.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::watch;

/// How long anything may take. What is waited for takes milliseconds; a busy machine may need more.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

/// A PersistentVolume as it became.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// Its place in the journal, plus one: where to look for what comes after it.
    pub(crate) next: usize,
    pub(crate) at: Instant,
    /// It does not exist any more.
    pub(crate) gone: bool,
    pub(crate) pv: PersistentVolume,
}

impl Change {
    /// Free to be claimed.
    pub(crate) fn is_available(&self) -> bool {
        !self.gone && !self.is_terminating() && self.phase() == "Available"
    }

    pub(crate) fn is_terminating(&self) -> bool {
        self.pv.metadata.deletion_timestamp.is_some()
    }

    pub(crate) fn phase(&self) -> &str {
        let status = self.pv.status.as_ref();
        status.and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.pv.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn uid(&self) -> &str {
        self.pv.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The last component of its path.
    pub(crate) fn entry(&self) -> &str {
        let local = self.pv.spec.as_ref().and_then(|spec| spec.local.as_ref());
        local
            .and_then(|local| local.path.rsplit('/').next())
            .unwrap_or_default()
    }

    /// As a quantity.
    pub(crate) fn capacity(&self) -> &str {
        let capacity = self.pv.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
        capacity
            .and_then(|capacity| capacity.get("storage"))
            .map_or("", |quantity| &quantity.0)
    }
}

/// The changes so far.
#[derive(Debug)]
pub(crate) struct Journal {
    changes: watch::Receiver<Vec<Change>>,
}

impl Journal {
    /// Begins a journal of this API server. Needs a tokio runtime.
    pub(crate) fn of(api: &testkit::api::Api) -> Self {
        let (sender, changes) = watch::channel(Vec::new());
        let pvs = kube::Api::<PersistentVolume>::all(api.client("admin"));
        tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(pvs, watcher::Config::default()));
            while let Some(event) = events.next().await {
                let (gone, pv) = match event {
                    Ok(Event::InitApply(pv) | Event::Apply(pv)) => (false, pv),
                    Ok(Event::Delete(pv)) => (true, pv),
                    // It goes on by itself, and what is missed is missed by a deadline.
                    Ok(Event::Init | Event::InitDone) | Err(_) => continue,
                };
                let at = Instant::now();
                sender.send_modify(|changes| {
                    let next = changes.len() + 1;
                    changes.push(Change { next, at, gone, pv });
                });
            }
        });
        Self { changes }
    }

    /// Where the next change will be.
    pub(crate) fn end(&self) -> usize {
        self.changes.borrow().len()
    }

    /// Waits for the first change from `from` on that is as wanted.
    ///
    /// # Errors
    /// After [`DEADLINE`]: it says that `what` did not happen, and what did.
    pub(crate) async fn find(&self, from: usize, what: &str, wanted: impl Fn(&Change) -> bool) -> Result<Change> {
        let mut changes = self.changes.clone();
        let mut found = None;
        let waiting = changes.wait_for(|changes| {
            found = changes[from..].iter().find(|change| wanted(change)).cloned();
            found.is_some()
        });
        let ended = tokio::time::timeout(DEADLINE, waiting).await.map(|seen| seen.map(drop));
        match ended {
            Ok(seen) => seen.context("the watch of PersistentVolumes ended")?,
            Err(_) => tracing::error!(changes = ?self.states(from), "did not happen: {what}"),
        }
        found.with_context(|| {
            let states = self.states(from).join("; ");
            format!("this did not happen within {DEADLINE:?}: {what}; what did: {states}")
        })
    }

    fn states(&self, from: usize) -> Vec<String> {
        let state = |change: &Change| {
            let end = match (change.gone, change.is_terminating()) {
                (true, _) => ", gone",
                (false, true) => ", Terminating",
                (false, false) => "",
            };
            format!("{} {}{end}", change.entry(), change.phase())
        };
        self.changes.borrow()[from..].iter().map(state).collect()
    }
}
