//! Calls of the API server: what may be done, and the writes with their preconditions.

mod connection;
mod pruned;
mod wait;

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde_json::{Value, json};

use crate::cluster::{CleaningJob, Mode};
use crate::failpoint;
use crate::names;
use crate::plan::{PvPatch, PvRef};

pub use connection::{client, connect, connect_by, with_layers};
pub use pruned::PrunedPv;
pub use wait::{asked_by, asked_by_watch, wait};

/// How a write ended, in the terms that decide what comes next.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object is not as it was when the decision was made: look again.
    #[error("it has changed meanwhile")]
    Conflict,
    /// The object is not there.
    #[error("it does not exist")]
    Absent,
    /// An object of that name exists.
    #[error("it exists already")]
    Exists,
    /// The server refuses for good: not permitted.
    #[error("not permitted: {0}")]
    Forbidden(String),
    /// Anything else: tried again later.
    #[error("{0}")]
    Other(String),
    /// The server is overloaded: tried again no sooner than it says.
    #[error("{message}")]
    Busy {
        /// In its words.
        message: String,
        /// How long to wait.
        asked: Duration,
    },
}

impl WriteError {
    /// How long the server has asked to wait.
    #[must_use]
    pub fn asked(&self) -> Option<Duration> {
        match self {
            Self::Busy { asked, .. } => Some(*asked),
            _ => None,
        }
    }
}

impl From<kube::Error> for WriteError {
    fn from(err: kube::Error) -> Self {
        match err {
            kube::Error::Api(status) => Self::from(*status),
            other => Self::Other(chain(&other)),
        }
    }
}

impl From<Status> for WriteError {
    fn from(status: Status) -> Self {
        match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => Self::Exists,
            (409, _) => Self::Conflict,
            (404, _) => Self::Absent,
            (403, _) => Self::Forbidden(status.message),
            (code, reason) => {
                let message = format!("{} ({code} {reason})", status.message);
                match wait::asked(&status) {
                    Some(asked) => Self::Busy { message, asked },
                    None => Self::Other(message),
                }
            }
        }
    }
}

/// An error with all its causes.
fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Creates a PV.
///
/// # Errors
/// See [`WriteError`].
pub async fn create(client: &Client, pv: Box<PersistentVolume>) -> Result<PrunedPv, WriteError> {
    failpoint::hit!("create.before");
    let pv = PrunedPv::from(pv);
    let made = Api::all(client.clone()).create(&PostParams::default(), &pv).await;
    failpoint::hit!("create.after");
    Ok(made?)
}

/// Changes a PV, if it is still the one and as it was.
///
/// # Errors
/// See [`WriteError`].
pub async fn patch(client: &Client, pv: &PvRef, patch: &PvPatch) -> Result<PrunedPv, WriteError> {
    let api: Api<PrunedPv> = Api::all(client.clone());
    let body = merge_patch(pv, patch);
    failpoint::hit!(failpoint::patch(patch, "before"));
    let patched = api.patch(&pv.name, &PatchParams::default(), &Patch::Merge(&body)).await;
    failpoint::hit!(failpoint::patch(patch, "after"));
    Ok(patched?)
}

/// The merge patch, with the resourceVersion that the decision was made on. No two objects ever have the same, so the
/// UID adds nothing (and a wrong one is answered with 422, not 409).
#[must_use]
pub fn merge_patch(pv: &PvRef, patch: &PvPatch) -> Value {
    let mut metadata = json!({"resourceVersion": pv.resource_version});
    if let Some(value) = &patch.node_label {
        metadata["labels"] = json!({names::NODE_LABEL: value});
    }
    if !patch.annotations.is_empty() {
        metadata["annotations"] = json!(patch.annotations);
    }
    if let Some(finalizers) = &patch.finalizers {
        metadata["finalizers"] = json!(finalizers);
    }
    let mut body = json!({"metadata": metadata});
    if let Some(capacity) = &patch.capacity {
        body["spec"] = json!({"capacity": {"storage": capacity}});
    }
    body
}

/// Deletes a PV, if it is still the one and as it was. `None`: it is gone; else it is as returned, with finalizers.
///
/// # Errors
/// See [`WriteError`].
pub async fn delete(client: &Client, pv: &PvRef) -> Result<Option<PrunedPv>, WriteError> {
    let api: Api<PrunedPv> = Api::all(client.clone());
    let preconditions = Preconditions {
        uid: Some(pv.uid.clone()),
        resource_version: Some(pv.resource_version.clone()),
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..Default::default()
    };
    failpoint::hit!("delete.before");
    let deleted = api.delete(&pv.name, &params).await;
    failpoint::hit!("delete.after");
    Ok(deleted?.left())
}

/// Reads a PV by its name.
///
/// # Errors
/// See [`WriteError`].
pub async fn read(client: &Client, name: &str) -> Result<Option<PrunedPv>, WriteError> {
    let api: Api<PrunedPv> = Api::all(client.clone());
    Ok(api.get_opt(name).await?)
}

/// Creates a cleaning Job.
///
/// # Errors
/// See [`WriteError`].
pub async fn create_job(client: &Client, job: &Job) -> Result<Job, WriteError> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or("default");
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    failpoint::hit!("job.create.before");
    let made = api.create(&PostParams::default(), job).await;
    failpoint::hit!("job.create.after");
    Ok(made?)
}

/// Deletes a cleaning Job in the foreground (its pods first), if it is still the one and as it was.
///
/// # Errors
/// See [`WriteError`].
pub async fn delete_job(client: &Client, namespace: &str, job: &CleaningJob) -> Result<(), WriteError> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let preconditions = Preconditions {
        uid: Some(job.uid.clone()),
        resource_version: Some(job.resource_version.clone()),
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..DeleteParams::foreground()
    };
    failpoint::hit!("job.delete.before");
    let deleted = api.delete(&job.name, &params).await;
    failpoint::hit!("job.delete.after");
    deleted?;
    Ok(())
}

/// Finds out whether PersistentVolumes may be patched: by asking, or where asking is refused, by trying with a PV that
/// does not exist and `dryRun` (403 = no, 404 = yes).
///
/// # Errors
/// The server did not answer.
pub async fn mode(client: &Client) -> Result<Mode, WriteError> {
    match may(client, "patch", "", "persistentvolumes", None).await {
        Ok(true) => return Ok(Mode::Patch),
        Ok(false) => return Ok(Mode::Classic),
        Err(WriteError::Forbidden(_) | WriteError::Absent) => {}
        Err(err) => return Err(err),
    }
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let params = PatchParams {
        dry_run: true,
        ..Default::default()
    };
    let probe = api
        .patch(
            "local-volume-provisioner-probe",
            &params,
            &Patch::Merge(json!({"metadata": {}})),
        )
        .await;
    match probe.map_err(WriteError::from) {
        Ok(_) | Err(WriteError::Absent | WriteError::Conflict) => Ok(Mode::Patch),
        Err(WriteError::Forbidden(_)) => Ok(Mode::Classic),
        Err(err) => Err(err),
    }
}

/// Asks the API server whether this user may do something (SelfSubjectAccessReview).
///
/// # Errors
/// The server did not answer, or refuses to be asked.
pub async fn may(
    client: &Client,
    verb: &str,
    group: &str,
    resource: &str,
    namespace: Option<&str>,
) -> Result<bool, WriteError> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.into()),
                group: Some(group.into()),
                resource: Some(resource.into()),
                namespace: namespace.map(str::to_owned),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Which verb it is that keeps objects of a kind from being listed and watched, if any: by asking, or where asking is
/// refused, by trying.
///
/// # Errors
/// The server did not answer.
pub async fn refused_to_watch<K>(
    api: &Api<K>,
    group: &str,
    resource: &str,
    namespace: Option<&str>,
) -> Result<Option<&'static str>, WriteError>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let client = api.clone().into_client();
    for verb in ["list", "watch"] {
        match may(&client, verb, group, resource, namespace).await {
            Ok(true) => {}
            Ok(false) => return Ok(Some(verb)),
            Err(WriteError::Forbidden(_) | WriteError::Absent) => {
                return match api
                    .list_metadata(&ListParams::default().limit(1))
                    .await
                    .map_err(WriteError::from)
                {
                    Ok(_) => Ok(None),
                    Err(WriteError::Forbidden(_)) => Ok(Some("list")),
                    Err(err) => Err(err),
                };
            }
            Err(err) => return Err(err),
        }
    }
    Ok(None)
}

/// The Job of this name, whatever its labels: by a list of one, for which the verb that the watch needs is enough.
///
/// # Errors
/// See [`WriteError`].
pub async fn job_named(client: &Client, namespace: &str, name: &str) -> Result<Option<Job>, WriteError> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    Ok(api.list(&params).await?.items.into_iter().next())
}
