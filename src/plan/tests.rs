//! Tables of inputs and the expected actions, states and notices.

#![allow(clippy::unwrap_used)]

mod circulation;
mod condition;
mod gone;
mod identity;
mod jobs;
mod properties;
mod publish;
mod quarantine;
mod recycling;
mod world;
