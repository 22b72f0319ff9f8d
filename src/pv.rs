//! The PersistentVolume that an entry is published as, field by field as the classic program makes it.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, PersistentVolume,
    PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::capacity;
use crate::cluster::{ClaimRef, Mode, Node, Ownership, Phase, StorageClass, Use};
use crate::config::{Class, Config, VolumeMode};
use crate::memory::GonePv;
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
    [
        (names::CLASS_DIRECTORY.to_owned(), directory),
        (names::CLEANER.to_owned(), cleaner),
    ]
    .into_iter()
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
            labels: Some(labels(p.config, p.node, p.ownership)),
            annotations: Some(annotations),
            finalizers: (p.mode == Mode::Patch).then(|| vec![names::FINALIZER.into()]),
            owner_references: p.config.set_pv_owner_ref.then(|| vec![owner_reference(p.node)]),
            ..Default::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some(
                [(
                    "storage".to_owned(),
                    Quantity(capacity::quantity(capacity::round(bytes))),
                )]
                .into(),
            ),
            local: Some(LocalVolumeSource {
                path: p.path.to_string_lossy().into_owned(),
                fs_type: p.class.fs_type.clone(),
            }),
            access_modes: Some(vec![p.class.access_mode.clone()]),
            volume_mode: Some(volume_mode(p.class.volume_mode).into()),
            storage_class_name: Some(p.class.name.clone()),
            persistent_volume_reclaim_policy: Some(
                p.storage_class
                    .map_or_else(|| "Delete".into(), |class| class.reclaim_policy.clone()),
            ),
            mount_options: p
                .storage_class
                .map(|class| class.mount_options.clone())
                .filter(|options| !options.is_empty()),
            node_affinity: Some(affinity(p.ownership, &p.class.selector)),
            ..Default::default()
        }),
        status: None,
    }
}

/// What a stand-in is made from.
pub struct StandIn<'a> {
    /// The stand-in's name.
    pub name: &'a str,
    /// What is known of the PV that was removed.
    pub gone: &'a GonePv,
    /// The configuration.
    pub config: &'a Config,
    /// The own Node.
    pub node: &'a Node,
    /// Tells own PVs from others.
    pub ownership: &'a Ownership,
    /// With [`Mode::Patch`] it carries the finalizer from its creation on.
    pub mode: Mode,
}

/// A PV in the place of one that was removed before its volume was scrubbed: it keeps what that one said of the volume,
/// and nothing can be bound to it.
#[must_use]
pub fn stand_in(s: &StandIn<'_>) -> PersistentVolume {
    let pv = &s.gone.pv;
    let kept = pv.annotations.iter();
    let mut annotations: BTreeMap<String, String> = kept
        .map(|(key, value)| ((*key).to_owned(), value.clone().into_string()))
        .collect();
    annotations.remove(names::BOUND_BY_CONTROLLER);
    annotations.remove(names::RESOLVE);
    annotations.remove(names::CHECKPOINT); // Of another PV: it counts for none but that one.
    annotations.insert(names::PROVISIONED_BY.into(), s.ownership.provisioned_by());
    let word = if s.gone.usage == Use::Unknown {
        "unknown"
    } else {
        "used"
    };
    annotations.insert(names::STAND_IN.into(), word.into());
    // The claim of one that was released is gone; any other may live.
    let may_live = pv.claim_uid() != Some(names::NO_CLAIM) && !matches!(pv.phase, Phase::Released | Phase::Failed);
    if let Some(claim) = pv.claim.as_ref().filter(|claim| may_live && !claim.uid.is_empty()) {
        let value = format!("{}/{}/{}", claim.namespace, claim.name, claim.uid);
        annotations.insert(names::LAST_CLAIM.into(), value);
        if pv.annotation(names::RETAINED) == Some("scrub") {
            annotations.remove(names::RETAINED); // Said of what a claim would leave, not of what one may still have.
        }
    }
    let claim_uid = pv.claim_uid().filter(|uid| *uid != names::NO_CLAIM);
    if let (Some(uid), "used") = (claim_uid, word) {
        annotations.entry(names::USED.into()).or_insert_with(|| uid.to_owned());
    }
    let claim = pv.claim.as_ref();
    let part = |part: fn(&ClaimRef) -> &String, otherwise: &str| {
        let found = claim.map(part).filter(|part| !part.is_empty());
        Some(found.cloned().unwrap_or_else(|| otherwise.into()))
    };
    let class = s.config.classes.get(&pv.class);
    let finalizer = s.mode == Mode::Patch && !pv.is_leaving();
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(s.name.to_owned()),
            labels: Some(labels(s.config, s.node, s.ownership)),
            annotations: Some(annotations),
            finalizers: finalizer.then(|| vec![names::FINALIZER.into()]),
            owner_references: s.config.set_pv_owner_ref.then(|| vec![owner_reference(s.node)]),
            ..Default::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some([("storage".to_owned(), Quantity(pv.capacity.clone()))].into()),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                namespace: part(|claim| &claim.namespace, "default"),
                name: part(|claim| &claim.name, "unknown"),
                uid: Some(names::NO_CLAIM.into()),
                ..Default::default()
            }),
            local: Some(LocalVolumeSource {
                path: pv.path.clone().unwrap_or_default().to_string_lossy().into_owned(),
                fs_type: class.and_then(|class| class.fs_type.clone()),
            }),
            access_modes: Some(vec![
                class.map_or_else(|| "ReadWriteOnce".into(), |class| class.access_mode.clone()),
            ]),
            volume_mode: Some(volume_mode(pv.mode).into()),
            storage_class_name: Some(pv.class.clone()),
            persistent_volume_reclaim_policy: Some(pv.reclaim_policy.clone()),
            node_affinity: Some(affinity(s.ownership, &[])),
            ..Default::default()
        }),
        status: None,
    }
}

fn volume_mode(mode: VolumeMode) -> &'static str {
    match mode {
        VolumeMode::Block => "Block",
        VolumeMode::Filesystem => "Filesystem",
    }
}

/// Node labels, then the constant ones, which win; and our own, by which the watch selects.
fn labels(config: &Config, node: &Node, ownership: &Ownership) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = config
        .node_labels_for_pv
        .iter()
        .filter_map(|key| Some((key.clone(), node.labels.get(key)?.clone())))
        .collect();
    labels.extend(config.labels_for_pv.clone());
    labels.insert(names::NODE_LABEL.into(), ownership.hostname.clone());
    labels
}

fn affinity(ownership: &Ownership, selector: &[NodeSelectorTerm]) -> VolumeNodeAffinity {
    let hostname = NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: names::HOSTNAME_LABEL.into(),
            operator: "In".into(),
            values: Some(vec![ownership.hostname.clone()]),
        }]),
        match_fields: None,
    };
    let node_selector_terms = std::iter::once(hostname).chain(selector.iter().cloned()).collect();
    VolumeNodeAffinity {
        required: Some(NodeSelector { node_selector_terms }),
    }
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
