//! What becomes a PersistentVolume, what it says, and how soon: on a real control plane with real mounts and devices,
//! with and without permission to patch.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "publish/circumstances.rs"]
mod circumstances;
#[path = "publish/entries.rs"]
mod entries;
#[path = "publish/in_use.rs"]
mod in_use;
#[path = "support/plane_node.rs"]
mod node;
#[path = "publish/objects.rs"]
mod objects;
#[path = "publish/ready.rs"]
mod ready;
#[path = "publish/taint.rs"]
mod taint;
#[path = "publish/wakes.rs"]
mod wakes;
