//! What tests do to a plane as its administrator.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Node, PersistentVolumeClaim, Pod, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
    storage::v1::StorageClass,
};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{POLL, Plane};

/// One rule of a ClusterRole: API groups, resources, verbs.
pub type Rule<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);

/// What the built-in ClusterRole `system:persistent-volume-provisioner` lets do.
pub const BUILT_IN: &[Rule<'static>] = &[
    (
        &[""],
        &["persistentvolumes"],
        &["get", "list", "watch", "create", "delete"],
    ),
    (&[""], &["persistentvolumeclaims"], &["get", "list", "watch"]),
    (&["storage.k8s.io"], &["storageclasses"], &["get", "list", "watch"]),
    (&[""], &["events"], &["create", "update", "patch", "watch"]),
];

/// What the preset `classic` may do besides the built-in ClusterRole `system:persistent-volume-provisioner`.
const CLASSIC: &[Rule<'static>] = &[(&[""], &["nodes"], &["get"])];

/// What the preset `full` may do besides.
const FULL: &[Rule<'static>] = &[
    (&[""], &["nodes"], &["get", "list", "watch"]),
    (&[""], &["persistentvolumes"], &["patch", "update"]),
    (&["batch"], &["jobs"], &["*"]),
];

impl Plane {
    /// Makes a user with exactly these rules, cluster-wide (and what every authenticated user may do); the answer is
    /// the kubeconfig, see also [`Plane::client_of`]. The user is a service account of namespace `default`.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn user(&self, name: &str, rules: &[Rule<'_>]) -> Result<PathBuf> {
        let client = self.client().await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        let account = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        accounts.create(&PostParams::default(), &account).await?;
        let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": "default"});
        self.grant(name, rules, &subject).await?;
        let request: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": {"audiences": []}}))?;
        let token = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await?;
        let token = token.status.context("the TokenRequest has no status")?.token;
        self.add_user(name, &token)
    }

    /// A Node that pods can be scheduled to: Ready, without taints, with this `kubernetes.io/hostname` label.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn create_node(&self, name: &str, hostname_label: &str) -> Result<Node> {
        let nodes: Api<Node> = Api::all(self.client().await?);
        let labels = json!({"kubernetes.io/hostname": hostname_label, "kubernetes.io/os": "linux"});
        let node = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        let resources = json!({"cpu": "64", "memory": "256Gi", "pods": "1000"});
        let ready = json!({"type": "Ready", "status": "True", "reason": "ByHand", "lastHeartbeatTime": null,
            "lastTransitionTime": null});
        let status = json!({"status": {"conditions": [ready], "capacity": resources, "allocatable": resources}});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        // Admission taints every new Node not-ready, and the controller that would take it off does not run.
        let untainted = Patch::Merge(json!({"spec": {"taints": null}}));
        Ok(nodes.patch(name, &PatchParams::default(), &untainted).await?)
    }

    /// A StorageClass for local volumes: no provisioner, WaitForFirstConsumer, this reclaimPolicy.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn create_storage_class(&self, name: &str, policy: &str) -> Result<StorageClass> {
        let classes: Api<StorageClass> = Api::all(self.client().await?);
        let class = serde_json::from_value(json!({"metadata": {"name": name},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": policy}))?;
        Ok(classes.create(&PostParams::default(), &class).await?)
    }

    /// A claim for 1Mi of this class, for one node to read and write. It is bound when a pod uses it.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn create_claim(&self, namespace: &str, name: &str, class: &str) -> Result<PersistentVolumeClaim> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client().await?, namespace);
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Mi"}}});
        let claim = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
        Ok(claims.create(&PostParams::default(), &claim).await?)
    }

    /// A pod that uses a claim. The scheduler gives it a node, and with that a volume to the claim; it never runs.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn create_pod(&self, namespace: &str, name: &str, claim: &str) -> Result<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.client().await?, namespace);
        let pod: Value = json!({"metadata": {"name": name}, "spec": {
            "containers": [{"name": "c", "image": "none", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}});
        Ok(pods
            .create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?)
    }

    /// Deletes a pod at once: there is no kubelet to end it.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client().await?, namespace);
        let params = DeleteParams::default().grace_period(0);
        pods.delete(name, &params).await?;
        Ok(())
    }

    /// Deletes a claim; its volume becomes Released once no pod uses it.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn delete_claim(&self, namespace: &str, name: &str) -> Result<()> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client().await?, namespace);
        claims.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Asks every 50 ms until `ask` has an answer.
    ///
    /// # Errors
    /// After `deadline`: that `what` did not happen.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut ask: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T> {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            if let Some(found) = ask().await {
                return Ok(found);
            }
            if tokio::time::Instant::now() >= end {
                bail!("not within {deadline:?}: {what}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Gives the users `full` and `classic` their rules.
    pub(super) async fn grant_presets(&self) -> Result<()> {
        let bindings: Api<ClusterRoleBinding> = Api::all(self.client().await?);
        for (user, rules) in [("classic", CLASSIC), ("full", FULL)] {
            let subject = json!({"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"});
            self.grant(user, rules, &subject).await?;
            let built_in = binding(
                &format!("{user}-built-in"),
                "system:persistent-volume-provisioner",
                &subject,
            )?;
            bindings.create(&PostParams::default(), &built_in).await?;
        }
        Ok(())
    }

    async fn grant(&self, name: &str, rules: &[Rule<'_>], subject: &Value) -> Result<()> {
        let client = self.client().await?;
        let rules: Vec<_> = rules
            .iter()
            .map(|(groups, resources, verbs)| json!({"apiGroups": groups, "resources": resources, "verbs": verbs}))
            .collect();
        let role = format!("testkit-{name}");
        let cluster_role = serde_json::from_value(json!({"metadata": {"name": role}, "rules": rules}))?;
        Api::<ClusterRole>::all(client.clone())
            .create(&PostParams::default(), &cluster_role)
            .await?;
        let binding = binding(&role, &role, subject)?;
        Api::<ClusterRoleBinding>::all(client)
            .create(&PostParams::default(), &binding)
            .await?;
        Ok(())
    }
}

fn binding(name: &str, role: &str, subject: &Value) -> Result<ClusterRoleBinding> {
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role});
    Ok(serde_json::from_value(
        json!({"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}),
    )?)
}
