//! What the controllers of a cluster do to volumes and claims: the PersistentVolume controller, the two protection
//! controllers, and the garbage collector as far as it ends a foreground deletion.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{
    Api,
    metadata::now,
    resource::Resource,
    store::{Key, Store},
    validate::finalizers,
};

const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Runs the controllers in the background until dropped.
#[must_use = "the controllers end when this is dropped"]
pub struct Controllers {
    task: JoinHandle<()>,
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Api {
    /// Starts the controllers: [`Api::reconcile`] after every change. Needs a tokio runtime.
    pub fn run_controllers(&self) -> Controllers {
        let api = self.clone();
        let mut changed = self.subscribe();
        changed.mark_changed();
        let task = tokio::spawn(async move {
            while changed.changed().await.is_ok() {
                api.reconcile();
            }
        });
        Controllers { task }
    }

    /// Does what the controllers would do now, until nothing is left to do: phases of volumes and claims, completion
    /// of a binding that the scheduler began ([`Api::prebind`]), protection finalizers, foreground deletions.
    pub fn reconcile(&self) {
        let before = self.state().store.version();
        loop {
            let mut state = self.state();
            let version = state.store.version();
            step(&mut state.store);
            if state.store.version() == version {
                break;
            }
        }
        // Only then: the background task would wake itself for ever.
        if self.state().store.version() != before {
            self.notify();
        }
    }

    /// The scheduler's half of a binding, past all its checks: the volume's claimRef with the claim's UID, and the
    /// annotation that a controller chose it. The rest is [`Api::reconcile`]'s, which refuses a Terminating volume.
    ///
    /// # Panics
    /// If the claim or the volume does not exist.
    pub fn prebind(&self, namespace: &str, claim: &str, volume: &str) {
        let claim = self
            .get("persistentvolumeclaims", namespace, claim)
            .unwrap_or_else(|| panic!("claim {namespace}/{claim}: not found"));
        self.edit("persistentvolumes", "", volume, |pv| refer(pv, &claim));
    }

    /// Binds a claim to a volume, as if a pod that uses the claim was scheduled to the volume's node: scheduler and
    /// controllers ([`Api::reconcile`]).
    ///
    /// # Errors
    /// If the volume is Terminating or not free, or the claim is not Pending: the scheduler would not take it.
    ///
    /// # Panics
    /// If the claim or the volume does not exist.
    pub fn bind(&self, namespace: &str, claim: &str, volume: &str) -> Result<()> {
        self.reconcile();
        if let Some(pv) = self.get_pv(volume) {
            ensure!(!is_terminating(&pv), "volume {volume} is Terminating");
            let phase = &pv["status"]["phase"];
            ensure!(
                phase == "Available" && pv["spec"]["claimRef"].is_null(),
                "volume {volume} is {phase}"
            );
        }
        if let Some(claim) = self.get("persistentvolumeclaims", namespace, claim) {
            let phase = &claim["status"]["phase"];
            ensure!(phase == "Pending", "claim {} is {phase}", claim["metadata"]["name"]);
        }
        self.prebind(namespace, claim, volume);
        self.reconcile();
        Ok(())
    }

    /// Deletes a claim, and lets the controllers act on that: the claim goes unless a pod uses it, and its volume
    /// becomes Released.
    ///
    /// # Errors
    /// If there is no such claim.
    pub fn delete_claim(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete("persistentvolumeclaims", namespace, name)?;
        self.reconcile();
        Ok(())
    }
}

fn step(store: &mut Store) {
    for (plural, sync) in [
        ("persistentvolumes", sync_volume as fn(&mut Store, &Key, Value)),
        ("persistentvolumeclaims", sync_claim),
        ("jobs", sync_job),
    ] {
        let keys: Vec<_> = store
            .select(Resource::known(plural), "")
            .map(|(k, _)| k.clone())
            .collect();
        for key in keys {
            if let Some(object) = store.get(&key).cloned() {
                sync(store, &key, object);
            }
        }
    }
}

fn sync_volume(store: &mut Store, key: &Key, mut pv: Value) {
    let reference = pv["spec"]["claimRef"].clone();
    let phase = text(&pv["status"]["phase"]).to_owned();
    if text(&reference["uid"]).is_empty() {
        set_phase(&mut pv, "Available");
    } else {
        let claim = store.get(&claim_key(&reference));
        match claim.filter(|c| c["metadata"]["uid"] == reference["uid"]) {
            None if phase != "Failed" && phase != "Released" => set_phase(&mut pv, "Released"),
            None if phase == "Released" && !reclaims_elsewhere(&pv) => set_phase(&mut pv, "Failed"),
            None => {}
            Some(claim) => match text(&claim["spec"]["volumeName"]) {
                "" => {}
                name if name == key.name => set_phase(&mut pv, "Bound"),
                _ => unbind(&mut pv),
            },
        }
    }
    store.force(key, Some(pv.clone()));
    if is_terminating(&pv) && pv["status"]["phase"] != "Bound" {
        drop_finalizer(store, key, "kubernetes.io/pv-protection");
    }
}

/// Whether the controller leaves a Released volume to somebody else: to the operator, or to who provisioned it.
fn reclaims_elsewhere(pv: &Value) -> bool {
    match text(&pv["spec"]["persistentVolumeReclaimPolicy"]) {
        "Retain" => true,
        "Delete" => pv["metadata"]["annotations"][PROVISIONED_BY].is_string(),
        _ => false,
    }
}

fn sync_claim(store: &mut Store, key: &Key, mut claim: Value) {
    let volume_name = text(&claim["spec"]["volumeName"]).to_owned();
    let completed = claim["metadata"]["annotations"][BIND_COMPLETED].is_string();
    let volume = if volume_name.is_empty() {
        let meant = |pv: &Value| {
            let reference = &pv["spec"]["claimRef"];
            !is_terminating(pv)
                && reference["namespace"] == claim["metadata"]["namespace"]
                && reference["name"] == claim["metadata"]["name"]
                && (text(&reference["uid"]).is_empty() || reference["uid"] == claim["metadata"]["uid"])
                && pv["spec"]["storageClassName"] == claim["spec"]["storageClassName"]
        };
        let mut volumes = store.select(Resource::known("persistentvolumes"), "");
        volumes.find(|(_, pv)| meant(pv)).map(|(_, pv)| pv.clone())
    } else {
        let volume = Key::new(Resource::known("persistentvolumes"), "", &volume_name);
        let free_for_us = |pv: &Value| {
            let uid = text(&pv["spec"]["claimRef"]["uid"]);
            uid == text(&claim["metadata"]["uid"])
                || uid.is_empty() && pv["spec"]["claimRef"].is_null() && (completed || !is_terminating(pv))
        };
        let volume = store.get(&volume).filter(|pv| free_for_us(pv)).cloned();
        if volume.is_none() && completed {
            claim["status"]["phase"] = "Lost".into();
            store.force(key, Some(claim.clone()));
        }
        volume
    };
    if let Some(volume) = volume {
        complete_binding(store, key, claim.clone(), volume);
    }
    if is_terminating(&claim) && !is_in_use(store, key) {
        drop_finalizer(store, key, "kubernetes.io/pvc-protection");
    }
}

/// The controller's half of a binding, in the order of its writes, each of which watches see.
fn complete_binding(store: &mut Store, key: &Key, mut claim: Value, mut pv: Value) {
    let name = text(&pv["metadata"]["name"]).to_owned();
    let pv_key = Key::new(Resource::known("persistentvolumes"), "", &name);
    if text(&pv["spec"]["claimRef"]["uid"]).is_empty() {
        refer(&mut pv, &claim);
        store.force(&pv_key, Some(pv.clone()));
    }
    set_phase(&mut pv, "Bound");
    store.force(&pv_key, Some(pv.clone()));
    claim["spec"]["volumeName"] = name.into();
    for annotation in [BIND_COMPLETED, BOUND_BY_CONTROLLER] {
        claim["metadata"]["annotations"][annotation] = "yes".into();
    }
    store.force(key, Some(claim.clone()));
    claim["status"] = json!({"phase": "Bound", "accessModes": pv["spec"]["accessModes"],
        "capacity": pv["spec"]["capacity"]});
    store.force(key, Some(claim));
}

fn sync_job(store: &mut Store, key: &Key, job: Value) {
    let uid = &job["metadata"]["uid"];
    let owned = |pod: &Value| {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        owners.is_some_and(|o| o.iter().any(|o| o["uid"] == *uid))
    };
    let pods = Resource::known("pods");
    if is_terminating(&job) && !store.select(pods, &key.namespace).any(|(_, p)| owned(p)) {
        drop_finalizer(store, key, "foregroundDeletion");
    }
}

/// Makes a volume point to a claim.
fn refer(pv: &mut Value, claim: &Value) {
    let meta = &claim["metadata"];
    if pv["spec"]["claimRef"].is_null() {
        pv["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
    }
    pv["spec"]["claimRef"] = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1",
        "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"],
        "resourceVersion": meta["resourceVersion"]});
}

/// Takes back a claimRef to a claim that took another volume; one that the user made keeps the names.
fn unbind(pv: &mut Value) {
    let annotations = pv["metadata"]["annotations"].as_object_mut();
    let ours = annotations.and_then(|a| a.remove(BOUND_BY_CONTROLLER)).is_some();
    if ours {
        pv["spec"].as_object_mut().map(|s| s.remove("claimRef"));
    } else {
        let reference = pv["spec"]["claimRef"].as_object_mut();
        reference.map(|r| r.remove("uid"));
    }
    set_phase(pv, "Available");
}

fn set_phase(pv: &mut Value, phase: &str) {
    if pv["status"]["phase"] != phase {
        pv["status"]["phase"] = phase.into();
        pv["status"]["lastPhaseTransitionTime"] = now().into();
    }
}

fn is_in_use(store: &Store, claim: &Key) -> bool {
    let uses = |pod: &Value| {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let ended = ["Succeeded", "Failed"].contains(&text(&pod["status"]["phase"]));
        !ended
            && volumes
                .into_iter()
                .any(|v| v["persistentVolumeClaim"]["claimName"] == claim.name.as_str())
    };
    store
        .select(Resource::known("pods"), &claim.namespace)
        .any(|(_, p)| uses(p))
}

fn drop_finalizer(store: &mut Store, key: &Key, finalizer: &str) {
    let Some(mut object) = store.get(key).cloned() else {
        return;
    };
    let left: Vec<_> = finalizers(&object)
        .filter(|f| *f != finalizer)
        .map(str::to_owned)
        .collect();
    if left.is_empty() {
        object["metadata"].as_object_mut().map(|m| m.remove("finalizers"));
    } else {
        object["metadata"]["finalizers"] = json!(left);
    }
    store.force(key, Some(object));
}

fn claim_key(reference: &Value) -> Key {
    let resource = Resource::known("persistentvolumeclaims");
    Key::new(resource, text(&reference["namespace"]), text(&reference["name"]))
}

fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
