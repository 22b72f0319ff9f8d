//! The names that the API objects carry: annotations, labels, the finalizer, and the names of PersistentVolumes.

use std::path::Path;

/// Keeps a PV until its volume is known to be clean.
pub const FINALIZER: &str = "local-volume-provisioner/scrub";
/// Kubernetes' own: keeps a PV while it is bound.
pub const PV_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Label: the node's hostname label value; the watch selects by it.
pub const NODE_LABEL: &str = "local-volume-provisioner/node";
/// Label of a node whose value is in every PV's node affinity.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// Annotation: the identity of the storage that was published.
pub const VOLUME_ID: &str = "local-volume-provisioner/volume-id";
/// Annotation: set to `seen-while-bound` where the id was noted only after the volume had been bound (a PV of the
/// classic program), to `unknown` where it could not be noted at all.
pub const VOLUME_ID_ORIGIN: &str = "local-volume-provisioner/volume-id-origin";
/// Annotation: UID of the first claim that this PV was bound to.
pub const USED: &str = "local-volume-provisioner/used";
/// Annotation: the cleaner that the volume was published with, as a JSON list.
pub const CLEANER: &str = "local-volume-provisioner/cleaner";
/// Annotation: the class's `mountDir` when the volume was published.
pub const CLASS_DIRECTORY: &str = "local-volume-provisioner/class-directory";
/// Annotation: where a wipe that was interrupted goes on; see [`crate::scrub::checkpoint`].
pub const CHECKPOINT: &str = "local-volume-provisioner/checkpoint";
/// Annotation by `uninstall`: the PV gets no finalizer any more, and is scrubbed before it is deleted instead of after.
pub const LEAVING: &str = "local-volume-provisioner/leaving";
/// Annotation by the operator: `adopt` accepts the storage that is at the path now.
pub const RESOLVE: &str = "local-volume-provisioner/resolve";
/// Annotation by the operator: `scrub` or `keep` what a retained volume holds.
pub const RETAINED: &str = "local-volume-provisioner/retained";
/// Annotation: the PV stands in for one that was removed before its volume was scrubbed; `used`, or `unknown` where nobody
/// can say whether that one was ever bound.
pub const STAND_IN: &str = "local-volume-provisioner/stand-in";
/// Annotation of a stand-in: `namespace/name/uid` of the claim that was bound when the PV was removed, and may live.
pub const LAST_CLAIM: &str = "local-volume-provisioner/last-claim";
/// UID in the claimRef of a stand-in: no claim has it, so nothing can be bound to the PV.
pub const NO_CLAIM: &str = "removed-by-force";
/// Annotation: which provisioner made the PV; kube-controller-manager needs it to let a PV become Released.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Annotation of kube-controller-manager on a PV that it has bound.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// FNV-1a, 32 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn fnv1a_32(parts: &[&[u8]]) -> u32 {
    parts
        .iter()
        .flat_map(|part| part.iter())
        .fold(0x811c_9dc5, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        })
}

/// FNV-1a, 128 bits, over length-prefixed parts, so that no two lists of parts run together.
fn fnv1a_128(parts: &[&[u8]]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = OFFSET;
    for part in parts {
        let length = (part.len() as u64).to_le_bytes();
        for byte in length.iter().chain(part.iter()) {
            hash = (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }
    hash
}

/// The classic name of the PV of an entry: `local-pv-` and the FNV-1a-32 of entry, node and class without separators,
/// in hex without leading zeros.
#[must_use]
pub fn classic_pv_name(entry: &str, node: &str, class: &str) -> String {
    format!(
        "local-pv-{:x}",
        fnv1a_32(&[entry.as_bytes(), node.as_bytes(), class.as_bytes()])
    )
}

/// The name for an entry whose classic name is taken: over path, node and class, 41 characters. (55 at most: it also
/// names a Job, `cleanup-<pv>`, and is a label's value.)
#[must_use]
pub fn long_pv_name(path: &Path, node: &str, class: &str) -> String {
    use std::os::unix::ffi::OsStrExt;
    format!(
        "local-pv-{:032x}",
        fnv1a_128(&[path.as_os_str().as_bytes(), node.as_bytes(), class.as_bytes()])
    )
}

/// The name of an event about an object of this name that says this: at most 253 characters, which is what a name may
/// have.
#[must_use]
pub fn event_name(object: &str, says: &[&[u8]]) -> String {
    let hash = fnv1a_128(says);
    // An object's name is ASCII; what is cut off must not leave a dot or hyphen at the end.
    let object = object.get(..220).unwrap_or(object).trim_end_matches(['.', '-']);
    format!("{object}.{hash:032x}")
}

/// What that value begins with; the node's name follows.
pub const PROVISIONED_BY_PREFIX: &str = "local-volume-provisioner-";

/// The value of the provisioned-by annotation, which is also the source of our events.
#[must_use]
pub fn provisioned_by(node_name: &str, node_uid: Option<&str>) -> String {
    match node_uid {
        Some(uid) => format!("{PROVISIONED_BY_PREFIX}{node_name}-{uid}"),
        None => format!("{PROVISIONED_BY_PREFIX}{node_name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_names_are_those_of_the_field() {
        assert_eq!(classic_pv_name("mount1", "test-node", "sc1"), "local-pv-aaaafef5");
        assert_eq!(classic_pv_name("vol2", "node1", "fast"), "local-pv-162d2d9");
    }

    #[test]
    fn classic_names_run_their_parts_together_and_long_ones_do_not() {
        assert_eq!(classic_pv_name("ab", "n", "c"), classic_pv_name("a", "bn", "c"));
        let long = |path: &str, class| long_pv_name(Path::new(path), "n", class);
        assert_ne!(long("/mnt/a", "bc"), long("/mnt/ab", "c"));
        assert_eq!(long("/mnt/a", "bc").len(), 41);
    }
}
