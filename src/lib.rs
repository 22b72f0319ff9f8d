//! A static local-volume provisioner for Kubernetes.
//!
//! Data flows in one direction: [`scan`] reads the node into [`observed::Observed`], the watches keep
//! [`cluster::Cluster`], [`plan`] decides over both as a pure function, and `apply` carries the decisions out. A wake
//! (a mount, an inotify event, a watch event, a timer) only says "look again"; no decision is taken from its contents.

pub mod api;
pub mod capacity;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod devices;
pub mod events;
pub mod failpoint;
pub mod health;
pub mod http;
pub mod identity;
pub mod job;
pub mod lock;
pub mod logs;
pub mod memory;
pub mod metrics;
pub mod mounts;
pub mod name_pattern;
pub mod names;
pub mod observed;
pub mod plan;
pub mod probe;
pub mod pv;
pub mod reason;
pub mod recycle;
pub mod run;
pub mod scan;
pub mod scrub;
pub mod settings;
pub mod status;
pub mod store;
pub mod sys;
pub mod wakes;
pub mod watch;
