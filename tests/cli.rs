//! The program as it is called: its exit codes, its words, its endpoints.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "cli/daemon.rs"]
mod daemon;
#[path = "cli/logs.rs"]
mod logs;
#[path = "cli/offline.rs"]
mod offline;
#[path = "cli/plan.rs"]
mod plan;
#[path = "cli/program.rs"]
mod program;
#[path = "cli/status.rs"]
mod status;
