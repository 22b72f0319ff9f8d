//! What a test's author does to the cluster by hand, past all permissions and faults.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    Api,
    resource::Resource,
    store::{Key, WriteOptions},
};

impl Api {
    /// The object, if it exists. `namespace` is ignored for cluster-wide resources.
    ///
    /// # Panics
    /// For a resource that the server does not know; so do all functions here that take one.
    #[must_use]
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = Key::new(Resource::known(plural), namespace, name);
        self.state().store.get(&key).cloned()
    }

    /// The PersistentVolume, if it exists.
    #[must_use]
    pub fn get_pv(&self, name: &str) -> Option<Value> {
        self.get("persistentvolumes", "", name)
    }

    /// All objects of a resource, of all namespaces, in order of their names.
    #[must_use]
    pub fn list(&self, plural: &str) -> Vec<Value> {
        let state = self.state();
        let all = state.store.select(Resource::known(plural), "");
        all.map(|(_, object)| object.clone()).collect()
    }

    /// Creates an object as an administrator would; the answer is what is stored.
    ///
    /// # Panics
    /// With the server's words, if it refuses.
    pub fn create(&self, plural: &str, namespace: &str, object: Value) -> Value {
        let options = WriteOptions::default();
        self.write(|s| s.create(Resource::known(plural), namespace, object, options))
            .unwrap_or_else(|s| panic!("create {plural}: {}", s.to_json()["message"]))
    }

    /// Deletes an object as an administrator would: with finalizers it is Terminating afterwards.
    ///
    /// # Errors
    /// With the server's words.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) -> Result<()> {
        let key = Key::new(Resource::known(plural), namespace, name);
        self.write(|s| s.delete(&key, &Value::Null, WriteOptions::default()))
            .map_err(|s| anyhow!("{}", s.to_json()["message"]))?;
        Ok(())
    }

    /// Changes an object, status and metadata included, past all rules of the server; watches see it. A Terminating
    /// object that is left without finalizers is removed.
    ///
    /// # Panics
    /// If it does not exist.
    pub fn edit(&self, plural: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let key = Key::new(Resource::known(plural), namespace, name);
        let mut state = self.state();
        let mut object = state
            .store
            .get(&key)
            .cloned()
            .unwrap_or_else(|| panic!("edit {plural} {namespace}/{name}: not found"));
        change(&mut object);
        state.store.force(&key, Some(object));
        drop(state);
        self.notify();
    }

    /// Removes an object at once, whatever its finalizers, as who strips them by force.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) {
        let key = Key::new(Resource::known(plural), namespace, name);
        self.state().store.force(&key, None);
        self.notify();
    }

    /// A Node with this `kubernetes.io/hostname` label.
    pub fn create_node(&self, name: &str, hostname_label: &str) -> Value {
        let labels = json!({"kubernetes.io/hostname": hostname_label, "kubernetes.io/os": "linux"});
        self.create(
            "nodes",
            "",
            json!({"metadata": {"name": name, "labels": labels}, "spec": {}}),
        )
    }

    /// A StorageClass for local volumes: no provisioner, WaitForFirstConsumer, this reclaimPolicy.
    pub fn create_storage_class(&self, name: &str, policy: &str) -> Value {
        let class = json!({"metadata": {"name": name}, "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": policy});
        self.create("storageclasses", "", class)
    }

    /// A claim for 1Mi of this class, for one node to read and write. It stays Pending until [`Api::bind`].
    pub fn create_claim(&self, namespace: &str, name: &str, class: &str) -> Value {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Mi"}}});
        let claim = json!({"metadata": {"name": name}, "spec": spec});
        self.create("persistentvolumeclaims", namespace, claim)
    }

    /// Ends a Job as its controller would: Complete, or Failed.
    pub fn finish_job(&self, namespace: &str, name: &str, success: bool) {
        self.edit("jobs", namespace, name, |job| {
            let condition = if success { "Complete" } else { "Failed" };
            job["status"] = json!({"conditions": [{"type": condition, "status": "True"}]});
            job["status"][if success { "succeeded" } else { "failed" }] = 1.into();
        });
    }

    /// Waits until `f` finds something; it is asked again after every request and every change.
    ///
    /// # Errors
    /// After `deadline`: says that `what` did not happen, and the last requests.
    pub async fn wait_for<T>(&self, what: &str, deadline: Duration, mut f: impl FnMut(&Api) -> Option<T>) -> Result<T> {
        let mut changed = self.subscribe();
        let end = Instant::now() + deadline;
        loop {
            changed.borrow_and_update();
            if let Some(found) = f(self) {
                return Ok(found);
            }
            match timeout_at(end, changed.changed()).await {
                Ok(result) => result.context("the server is gone")?,
                Err(_) => {
                    let requests = self.requests();
                    let last: Vec<_> = requests.iter().rev().take(10).map(line).collect();
                    bail!("not within {deadline:?}: {what}; the last requests, newest first: {last:#?}");
                }
            }
        }
    }
}

fn line(request: &super::Request) -> String {
    let status = request.status.map_or("no answer".to_owned(), |s| s.to_string());
    format!("{} {} {}: {status}", request.user, request.verb, request.path)
}
