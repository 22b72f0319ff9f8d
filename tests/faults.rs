//! An API server that is away, slow, refuses, loses answers and breaks watches: the daemon stays up, says why it waits,
//! asks again at a bearable pace, and the volume's life goes on as if nothing had been.
//!
//! Time is paused and moves when nobody has anything to do, so minutes pass in milliseconds; the mounts are real.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "faults/checkpoints.rs"]
mod checkpoints;
#[path = "faults/events.rs"]
mod events;
#[path = "faults/jobs.rs"]
mod jobs;
#[path = "faults/start.rs"]
mod start;
#[path = "faults/watches.rs"]
mod watches;
#[path = "faults/world.rs"]
mod world;
#[path = "faults/writes.rs"]
mod writes;
