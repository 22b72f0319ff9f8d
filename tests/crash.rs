//! Ended by `kill -9` at every step, and held at every phase while somebody edits its objects and its mounts: on a real
//! control plane, in both permission modes and with both views of the host.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "crash/edits.rs"]
mod edits;
#[path = "crash/given_on.rs"]
mod given_on;
#[path = "support/plane_node.rs"]
mod node;
#[path = "crash/points.rs"]
mod points;
#[path = "support/process.rs"]
mod process;
#[path = "crash/story.rs"]
mod story;
#[path = "support/volume.rs"]
mod volume;
