//! A PersistentVolume without what nobody here asks for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Deref;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, PersistentVolumeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kube::core::ClusterResourceScope;
use serde::{Deserialize, Deserializer, Serialize};

/// A PersistentVolume as the API server sends it, of whose metadata only what is used is read. `managedFields` are most of
/// an object's text; as a tree of values they would cost more than all the rest.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct PrunedPv(Box<PersistentVolume>);

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<PersistentVolumeSpec>,
    status: Option<PersistentVolumeStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    finalizers: Option<Vec<String>>,
}

impl<'de> Deserialize<'de> for PrunedPv {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Wire { metadata, spec, status } = Wire::deserialize(from)?;
        let metadata = ObjectMeta {
            name: metadata.name,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            ..ObjectMeta::default()
        };
        Ok(Self(Box::new(PersistentVolume { metadata, spec, status })))
    }
}

impl From<Box<PersistentVolume>> for PrunedPv {
    fn from(pv: Box<PersistentVolume>) -> Self {
        Self(pv)
    }
}

impl Deref for PrunedPv {
    type Target = PersistentVolume;

    fn deref(&self) -> &PersistentVolume {
        &self.0
    }
}

/// It is a PersistentVolume in every respect.
impl Resource for PrunedPv {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        PersistentVolume::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        PersistentVolume::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        PersistentVolume::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        PersistentVolume::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cluster::Pv;

    #[test]
    fn all_that_is_used_of_a_pv_is_read() {
        let object = serde_json::json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": "local-pv-1", "uid": "u", "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z",
                "labels": {"local-volume-provisioner/node": "host1", "x": "y"},
                "annotations": {"pv.kubernetes.io/provisioned-by": "p", "local-volume-provisioner/used": "c"},
                "finalizers": ["kubernetes.io/pv-protection"],
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {}}}}],
                "generation": 3, "ownerReferences": [], "somethingNew": {"a": 1}
            },
            "spec": {
                "capacity": {"storage": "5Gi"}, "storageClassName": "fast", "volumeMode": "Block",
                "persistentVolumeReclaimPolicy": "Delete", "local": {"path": "/mnt/fast/a"},
                "claimRef": {"namespace": "n", "name": "c", "uid": "cu"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["host1"]}]}]}}
            },
            "status": {"phase": "Released", "lastPhaseTransitionTime": "2026-01-01T00:00:01Z"}
        });
        let text = object.to_string();
        let whole: PersistentVolume = serde_json::from_str(&text).unwrap();
        let pruned: PrunedPv = serde_json::from_str(&text).unwrap();
        assert_eq!(Pv::from(&*pruned), Pv::from(&whole));
        assert_eq!(pruned.metadata.managed_fields, None);
        assert!(whole.metadata.managed_fields.is_some(), "the example has them");
        let bare: PrunedPv = serde_json::from_str("{}").unwrap();
        assert_eq!(*bare, PersistentVolume::default());
    }

    #[test]
    fn what_is_sent_is_the_whole_object() {
        let pv = PersistentVolume {
            metadata: ObjectMeta {
                name: Some("local-pv-1".into()),
                owner_references: Some(Vec::new()),
                ..ObjectMeta::default()
            },
            ..PersistentVolume::default()
        };
        let sent = serde_json::to_value(PrunedPv::from(Box::new(pv.clone()))).unwrap();
        assert_eq!(sent, serde_json::to_value(&pv).unwrap());
        assert_eq!(
            PrunedPv::url_path(&(), None),
            PersistentVolume::url_path(&(), None),
            "the same resource"
        );
    }
}
