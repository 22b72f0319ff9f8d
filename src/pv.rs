//! The PersistentVolume that an entry is published as, field by field as the classic program makes it.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::capacity;
use crate::cluster::{Mode, Node, Ownership, StorageClass};
use crate::config::{Class, Config, VolumeMode};
use crate::names;
use crate::observed::EntryKind;

/// What a PV is made from.
pub struct Publication<'a> {
    /// The PV's name.
    pub name: &'a str,
    /// Its class.
    pub class: &'a Class,
    /// The StorageClass object; `None` in a dry run without a cluster, which assumes the defaults.
    pub storage_class: Option<&'a StorageClass>,
    /// `hostDir`/entry, not resolved.
    pub path: &'a Path,
    /// What the entry is.
    pub kind: &'a EntryKind,
    /// The configuration.
    pub config: &'a Config,
    /// The own Node.
    pub node: &'a Node,
    /// Tells own PVs from others.
    pub ownership: &'a Ownership,
    /// With [`Mode::Patch`] the PV carries the finalizer from its creation on.
    pub mode: Mode,
}

/// The settings that a volume is published with, as annotations: it can be scrubbed with them after its class has
/// changed or gone.
pub fn settings(class: &Class) -> impl Iterator<Item = (String, String)> {
    let default = vec!["zero".to_owned()];
    let cleaner = class.block_cleaner_command.as_ref().unwrap_or(&default);
    // A list of strings always serializes.
    let cleaner = serde_json::to_string(cleaner).unwrap_or_default();
    let directory = class.mount_dir.to_string_lossy().into_owned();
    [(names::CLASS_DIRECTORY.to_owned(), directory), (names::CLEANER.to_owned(), cleaner)].into_iter()
}

/// The PV object.
#[must_use]
pub fn build(p: &Publication<'_>) -> PersistentVolume {
    let (bytes, id) = match p.kind {
        EntryKind::Mount(mount) => (mount.capacity_bytes, mount.id.as_ref().ok()),
        EntryKind::Device(device) => (device.capacity_bytes, device.id.as_ref().ok()),
        _ => (0, None),
    };
    let mut annotations: BTreeMap<String, String> = settings(p.class).collect();
    annotations.insert(names::PROVISIONED_BY.into(), p.ownership.provisioned_by());
    annotations.extend(id.map(|id| (names::VOLUME_ID.into(), id.to_string())));
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(p.name.to_owned()),
            labels: Some(labels(p)),
            annotations: Some(annotations),
            finalizers: (p.mode == Mode::Patch).then(|| vec![names::FINALIZER.into()]),
            owner_references: p.config.set_pv_owner_ref.then(|| vec![owner_reference(p.node)]),
            ..Default::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some([("storage".to_owned(), Quantity(capacity::quantity(capacity::round(bytes))))].into()),
            local: Some(LocalVolumeSource {
                path: p.path.to_string_lossy().into_owned(),
                fs_type: p.class.fs_type.clone(),
            }),
            access_modes: Some(vec![p.class.access_mode.clone()]),
            volume_mode: Some(
                match p.class.volume_mode {
                    VolumeMode::Block => "Block",
                    VolumeMode::Filesystem => "Filesystem",
                }
                .into(),
            ),
            storage_class_name: Some(p.class.name.clone()),
            persistent_volume_reclaim_policy: Some(
                p.storage_class.map_or_else(|| "Delete".into(), |class| class.reclaim_policy.clone()),
            ),
            mount_options: p.storage_class.map(|class| class.mount_options.clone()).filter(|options| !options.is_empty()),
            node_affinity: Some(affinity(p)),
            ..Default::default()
        }),
        status: None,
    }
}

/// Node labels, then the constant ones, which win; and our own, by which the watch selects.
fn labels(p: &Publication<'_>) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = p
        .config
        .node_labels_for_pv
        .iter()
        .filter_map(|key| Some((key.clone(), p.node.labels.get(key)?.clone())))
        .collect();
    labels.extend(p.config.labels_for_pv.clone());
    labels.insert(names::NODE_LABEL.into(), p.ownership.hostname.clone());
    labels
}

fn affinity(p: &Publication<'_>) -> VolumeNodeAffinity {
    let hostname = NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: names::HOSTNAME_LABEL.into(),
            operator: "In".into(),
            values: Some(vec![p.ownership.hostname.clone()]),
        }]),
        match_fields: None,
    };
    let node_selector_terms = std::iter::once(hostname).chain(p.class.selector.iter().cloned()).collect();
    VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms }) }
}

fn owner_reference(node: &Node) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.name.clone(),
        uid: node.uid.clone(),
        ..Default::default()
    }
}
