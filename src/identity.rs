//! What identifies the storage itself, whatever it is called today.
//!
//! A [`VolumeId`] is kept on the PV as the annotation `local-volume-provisioner/volume-id` and compared before a
//! volume is published again, before it is scrubbed, and while it is bound. Mount ids are never part of it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What kind of storage an id describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdKind {
    /// A filesystem that outlives a reboot.
    Filesystem,
    /// A filesystem that does not (tmpfs): after a reboot the old storage does not exist any more.
    Volatile,
    /// A block device.
    Device,
}

/// The identity of a filesystem (or a subtree of one) or of a block device.
///
/// Written as `kind key=value key=value …` with the keys sorted and the values percent-encoded where needed, so that
/// an operator can read it and two ids can be compared by eye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeId {
    /// What kind of storage.
    pub kind: IdKind,
    /// What identifies it, such as `uuid`, `subtree`, `handle`, `wwn`, `loop`, `diskseq`, `boot`.
    pub parts: BTreeMap<String, String>,
}

/// How the storage that is there now relates to the one that was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same storage.
    Same,
    /// Other storage.
    Different,
    /// The noted storage was volatile and went with a reboot: there is nothing to scrub, and this is a new volume.
    LostWithReboot,
}
