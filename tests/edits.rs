//! The configuration is edited while volumes are published, bound, released and scrubbed: on a real control plane, through
//! the files that kubelet makes of a ConfigMap, with and without permission to patch.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "edits/files.rs"]
mod files;
#[path = "support/plane_node.rs"]
mod node;
#[path = "edits/rows.rs"]
mod rows;
#[path = "edits/scrubs.rs"]
mod scrubs;
#[path = "edits/soak.rs"]
mod soak;
#[path = "edits/told.rs"]
mod told;
