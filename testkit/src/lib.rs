//! What the integration tests and the demo stand on.
//!
//! * [`api`]: a Kubernetes API server in the process, for tests of races, faults and paused time.
//! * [`plane`]: a real control plane (etcd, apiserver, controller manager, scheduler), for tests of the truth.
//! * [`config_volume`]: a ConfigMap volume, edited as kubelet does it.
//! * [`mounts`]: private mount namespaces, tmpfs and loop devices.
//! * [`raw`]: requests as they go over the wire.
//!
//! The same table of assertions (`tests/testkit_api.rs`) runs against [`api`] and [`plane`], so that the former stays
//! faithful to the latter.

pub mod api;
pub mod config_volume;
pub mod mounts;
pub mod plane;
pub mod raw;
