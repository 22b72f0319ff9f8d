//! The startup taint: a node that joins with it gets no pods until its volumes are published.
//!
//! It is removed by an update of the whole Node (PUT), which is what the classic chart permits, as the server's own JSON:
//! no field is lost that this program does not know. The update carries the resourceVersion that was read.

use k8s_openapi::api::core::v1::Node;
use kube::api::{GetParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde_json::Value;
use tracing::{debug, info, warn};

use super::settle::Done;
use super::{Config, Daemon, Duration};
use crate::api::{self, WriteError};
use crate::cluster::Pv;
use crate::events::Letter;
use crate::plan::Severity;
use crate::wakes::Cause;

/// How long until an update that is not permitted is tried again: the permission may be granted meanwhile.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// What is known of removing the taint.
#[derive(Debug, Default)]
pub(super) struct Taint {
    /// A call is under way.
    calling: bool,
    failures: u32,
    /// Not before.
    due: Option<Duration>,
    /// Why it stays, as it was told last.
    told: Option<String>,
}

impl Daemon {
    /// Removes the startup taint from the own Node, as often as it is there while we are ready. Returns when it is tried
    /// again.
    pub(super) fn follow_taint(&mut self, config: &Config, ready: bool) -> Option<Duration> {
        let key = &config.provisioner_not_ready_node_taint_key;
        if !config.remove_node_not_ready_taint || key.is_empty() {
            self.show_taint(None);
            return None;
        }
        let there = {
            let store = self.shared.store();
            let node = store.cluster().node.as_ref();
            node.is_some_and(|node| node.taint_keys.contains(key))
        };
        if !there {
            self.taint.told = None;
            self.show_taint(Some("it is not on the node".into()));
            return None;
        }
        if !ready {
            self.show_taint(Some("it stays until the provisioner is ready".into()));
            return None;
        }
        if let Some(missing) = self.missing_volumes() {
            let what = format!("it stays: waiting for {missing} (--ready-volumes)");
            if self.taint.told.as_ref() != Some(&what) {
                info!(node = %self.settings.node_name, "startup taint: {what}");
                self.taint.told = Some(what.clone());
            }
            self.show_taint(Some(what));
            return None;
        }
        if let Some(due) = self.taint.due.filter(|due| *due > self.now()) {
            return Some(due);
        }
        if !self.taint.calling {
            self.taint.calling = true;
            let (client, name, key) = (self.client.clone(), self.settings.node_name.clone(), key.clone());
            self.tasks.spawn(async move {
                {
                    let removed = remove(&client, &name, &key).await;
                    Done::Untainted(removed.map(|(node, removed)| (Box::new(node), removed)))
                }
            });
        }
        None
    }

    fn show_taint(&self, what: Option<String>) {
        self.board.startup_taint(what);
    }

    /// Which PVs of `--ready-volumes` are not published yet.
    fn missing_volumes(&self) -> Option<String> {
        let store = self.shared.store();
        let ownership = store.ownership()?;
        let own = |pv: &&Pv| !pv.deleting && ownership.of(pv) == crate::cluster::Owner::Ours;
        let missing = self.settings.ready_volumes.iter().filter_map(|(class, wanted)| {
            let pvs = store.cluster().pvs.values();
            let there = pvs.filter(own).filter(|pv| pv.class == *class).count();
            (there < *wanted).then(|| format!("{wanted} volumes of class {class}, of which there are {there}"))
        });
        let missing: Vec<String> = missing.collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    }

    /// An attempt to remove the taint has ended.
    pub(super) fn untainted(&mut self, result: Result<(Box<Node>, bool), WriteError>) {
        self.taint.calling = false;
        self.shared.wake.wake(Cause::Api);
        match result {
            Ok((node, removed)) => {
                self.taint = Taint::default();
                if removed {
                    info!(node = %self.settings.node_name, "startup taint removed");
                }
                self.shared.update(|store| store.node(&node));
            }
            Err(err) => {
                self.taint.failures += 1;
                let pause = match &err {
                    WriteError::Forbidden(_) => REFUSED_AGAIN,
                    _ => api::wait(self.taint.failures, err.asked()),
                };
                self.taint.due = Some(self.now() + pause);
                let what = match &err {
                    WriteError::Conflict => return, // The node has changed meanwhile: looked at again.
                    WriteError::Forbidden(why) => format!(
                        "the startup taint cannot be removed: {why}; grant update on nodes (deploy/optional/startup-taint.yaml), or set removeNodeNotReadyTaint to false"
                    ),
                    err => format!("the startup taint cannot be removed: {err}; it is tried again"),
                };
                self.show_taint(Some(what.clone()));
                if self.taint.told.as_ref() != Some(&what) {
                    warn!(node = %self.settings.node_name, "{what}");
                    self.taint.told = Some(what.clone());
                    if matches!(err, WriteError::Forbidden(_)) {
                        self.tell_taint(what);
                    }
                }
            }
        }
    }

    fn tell_taint(&mut self, message: String) {
        let Some((source, about)) = self.who() else { return };
        let letter = Letter {
            about,
            severity: Severity::Warning,
            reason: "StartupTaintStays",
            message,
            source,
            host: self.settings.node_name.clone(),
            may_be_told: true,
        };
        if !self.outbox.put(letter) {
            debug!("event about the startup taint left out: too many are waiting");
        }
    }
}

/// Reads the Node, and writes it back without the taints of this key. Returns it, and whether there were any.
async fn remove(client: &Client, name: &str, key: &str) -> Result<(Node, bool), WriteError> {
    let nodes = Request::new(Node::url_path(&(), None));
    let broken = |error: &dyn std::fmt::Display| WriteError::Other(format!("the Node cannot be read: {error}"));
    let read = nodes.get(name, &GetParams::default()).map_err(|error| broken(&error))?;
    let mut node: Value = client.request(read).await?;
    let removed = without(&mut node, key);
    if removed {
        let body = serde_json::to_vec(&node).map_err(|error| broken(&error))?;
        let write = nodes
            .replace(name, &PostParams::default(), body)
            .map_err(|error| broken(&error))?;
        node = client.request(write).await?;
    }
    let node = serde_json::from_value(node).map_err(|error| broken(&error))?;
    Ok((node, removed))
}

/// Takes the taints of this key, whatever their effect, from a Node; whether there were any.
fn without(node: &mut Value, key: &str) -> bool {
    let Some(spec) = node.get_mut("spec").and_then(Value::as_object_mut) else {
        return false;
    };
    let Some(taints) = spec.get_mut("taints").and_then(Value::as_array_mut) else {
        return false;
    };
    let before = taints.len();
    taints.retain(|taint| taint.get("key").and_then(Value::as_str) != Some(key));
    let removed = taints.len() < before;
    if taints.is_empty() {
        spec.remove("taints");
    }
    removed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_taints_of_the_key_go_and_nothing_else_is_touched() {
        let mut node = json!({"kind": "Node", "metadata": {"name": "n", "resourceVersion": "7", "future": {"a": 1}},
            "spec": {"podCIDR": "10.0.0.0/24", "future": [1], "taints": [
                {"key": "a/not-ready", "effect": "NoSchedule"},
                {"key": "b", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
                {"key": "a/not-ready", "effect": "NoExecute", "value": "x"}]},
            "status": {"future": true}});
        let mut expected = node.clone();
        expected["spec"]["taints"] = json!([{"key": "b", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
        assert!(without(&mut node, "a/not-ready"));
        assert_eq!(node, expected);
        assert!(!without(&mut node, "a/not-ready"));
        assert!(without(&mut node, "b"));
        assert!(node["spec"].get("taints").is_none());
        assert!(!without(&mut json!({"metadata": {}}), "b"));
    }
}
