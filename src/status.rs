//! What the daemon sees, does and waits for, as data for people: `/status`, its page, and the command `status`.
//!
//! Nothing is decided here. The loop tells a [`Board`] what it has seen, planned and started; a [`Status`] is made from
//! that when somebody asks.

pub(crate) mod advice;
mod board;
pub mod page;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use board::Board;

/// The version of the schema. It grows when a field is removed or means something else, not when one is added.
pub const VERSION: u32 = 1;

/// Everything that `/status` says. Times are RFC 3339, in UTC and whole seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The program's version.
    pub program: String,
    /// The node's name.
    pub node: String,
    /// The time of this answer.
    pub time: String,
    /// When the process began.
    pub started: String,
    /// Ready, as `/readyz` says it.
    pub ready: bool,
    /// What is missing for being ready.
    pub waiting_for: Vec<String>,
    /// What becomes of the startup taint; `null`: it is not configured.
    #[serde(default)]
    pub startup_taint: Option<String>,
    /// `Patch` or `Classic`: what may be done with PVs; `null` until the API server has said it.
    pub mode: Option<String>,
    /// Whether mounts of pods are seen; `null` before the first look.
    pub host_mounts: Option<HostMounts>,
    /// The configuration.
    pub configuration: Configuration,
    /// The discovery directories, as the last look has shown them.
    pub directories: Vec<Directory>,
    /// When `volumes` was true last: the last look that was judged. `null` before the first.
    pub looked: Option<String>,
    /// Every entry of every discovery directory, and every own PV without one.
    pub volumes: Vec<Volume>,
    /// The scrubs that run in this process now.
    pub scrubs: Vec<Scrub>,
    /// The own PVs; `null` before the first look that was judged.
    pub persistent_volumes: Option<PersistentVolumes>,
    /// What was told last as events, at most 50, the newest first.
    pub events: Vec<Event>,
}

/// Whether mounts of pods are seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMounts {
    /// The host's mount table is there.
    pub seen: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// The configuration as it is used, and what is wrong with it as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Configuration {
    /// Since when the configuration in use is used; `null`: there is none yet.
    pub loaded: Option<String>,
    /// When it was read last, whether it has changed or not.
    pub read: Option<String>,
    /// What could not be used; the last good settings are used in its place, where there were any.
    pub problems: Vec<Problem>,
    /// What was accepted but looks wrong.
    pub warnings: Vec<Problem>,
    /// The classes in use.
    pub classes: Vec<Class>,
}

/// Something wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The line in it, from 1.
    pub line: Option<u64>,
    /// The key or the path to it; may be empty.
    pub key: String,
    /// The class that is broken by it, if it is one class.
    pub class: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

/// A class in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Its name, and that of its StorageClass.
    pub name: String,
    /// Its directory on the node.
    pub host_dir: String,
    /// Its directory in the container.
    pub mount_dir: String,
    /// `Filesystem` or `Block`.
    pub volume_mode: String,
}

/// A discovery directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Its class.
    pub class: String,
    /// Where it is on the node.
    pub host_dir: String,
    /// Where it is in the container.
    pub mount_dir: String,
    /// How many entries it has; `null`: it could not be read.
    pub entries: Option<usize>,
    /// Why it could not be read.
    pub error: Option<String>,
}

/// An entry of a discovery directory, or an own PV without one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Its class.
    pub class: String,
    /// Its directory on the node.
    pub directory: String,
    /// Its name as `plan` shows it: control characters, and what is not UTF-8, are escaped.
    pub entry: String,
    /// The state, as one word.
    pub state: String,
    /// Why it is in that state, for the states that have a reason.
    pub reason: Option<String>,
    /// The reason's short name.
    pub slug: Option<String>,
    /// `reason` without what to do about it.
    #[serde(default)]
    pub cause: Option<String>,
    /// What to do about it.
    pub advice: Option<String>,
    /// Commands by which to decide, where there is something to decide; one for each decision.
    #[serde(default)]
    pub commands: Vec<String>,
    /// Something wrong with it that does not change its state.
    pub warning: Option<String>,
    /// It is not in circulation, or something is wrong with it: to be shown first.
    pub attention: bool,
    /// Its PV, published or about to be.
    pub pv: Option<String>,
    /// The PV exists.
    pub published: bool,
    /// `namespace/name` of the claim.
    pub claim: Option<String>,
    /// The capacity as a quantity.
    pub capacity: Option<String>,
    /// What identifies the storage that is there now.
    pub id: Option<String>,
    /// Since when it is in this state for this reason, as far as this process has seen it.
    pub since: String,
}

/// A running scrub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scrub {
    /// Its PV.
    pub pv: String,
    /// All of it in words.
    pub text: String,
    /// `bytes` or `entries`: what the numbers count.
    pub unit: String,
    /// How much is done.
    pub done: u64,
    /// How much there is to do, if that is known.
    pub total: Option<u64>,
    /// The rate.
    pub per_second: f64,
    /// How many seconds the rest takes at this rate, if that is known.
    pub remaining_seconds: Option<u64>,
    /// How many seconds it runs.
    pub elapsed_seconds: u64,
    /// How much of it an earlier, interrupted scrub had done; 0: it was not resumed.
    pub resumed_at: u64,
}

/// The own PVs, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentVolumes {
    /// All.
    pub total: usize,
    /// Those that carry our finalizer.
    pub with_finalizer: usize,
}

/// Something that was told about a PV.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: String,
    /// `Normal` or `Warning`.
    pub severity: String,
    /// The event's reason.
    pub reason: String,
    /// The PV.
    pub pv: String,
    /// What was said.
    pub message: String,
}

/// A file name as it can be shown: what could move the cursor, and what is not UTF-8, is escaped.
#[must_use]
pub fn printable(name: &std::ffi::OsStr) -> String {
    use std::os::unix::ffi::OsStrExt;
    match name.to_str() {
        Some(name) if !name.chars().any(char::is_control) => name.to_owned(),
        Some(name) => name.escape_debug().to_string(),
        None => name.as_bytes().escape_ascii().to_string(),
    }
}
