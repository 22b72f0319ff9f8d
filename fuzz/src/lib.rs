//! What must hold for every input from outside.
//!
//! A target takes any bytes, hands them to a parser of the provisioner and panics where a property does not hold. The
//! files below `corpus/` are inputs that show something; `tests/corpus.rs` tries each of them, and `hack/fuzz` looks for
//! others with libFuzzer.

mod config;
mod manifest;
mod mountinfo;
mod signature;
mod sysfs;
mod text;
mod words;

/// Takes an input, and panics if it breaks what the target states.
pub type Target = fn(&[u8]);

/// All targets by the names of their directories in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config::target),
    ("manifest", manifest::target),
    ("mountinfo", mountinfo::target),
    ("signature", signature::target),
    ("sysfs", sysfs::target),
    ("words", words::target),
];
