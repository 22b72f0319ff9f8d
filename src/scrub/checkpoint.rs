//! Where an interrupted wipe goes on: the note that a wipe leaves on its PV now and then, and when it counts.
//!
//! A checkpoint says that everything before it was wiped, and was flushed before the note was made. To take one that is
//! wrong would leave a tenant's data on the device, to ignore one costs time: it counts only for the very release, the
//! very attachment of the very device and the very method that it was made for.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::Pv;
use crate::config::Cleaner;
use crate::identity::{Comparison, IdKind, VolumeId, part};
use crate::plan::State;
use crate::reason::Held;
use crate::wakes::{Cause, Wake};

/// Offsets of checkpoints are multiples of this: no device has larger blocks, and every step of a wipe ends at one,
/// except for the last.
pub(super) const ALIGN_BYTES: u64 = 64 * 1024;

/// A place in a wipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Which time over the device, counted from 1: `discard` discards and zeroes, `shred` writes random data as often as
    /// it was told, and zeros.
    pub pass: u32,
    /// Bytes from the start of the device: the pass has done everything before.
    pub offset: u64,
}

impl Position {
    /// Nothing is done yet.
    pub const START: Self = Self { pass: 1, offset: 0 };

    /// Bytes that lie behind this place, of all passes.
    #[must_use]
    pub fn done_bytes(self, size_bytes: u64) -> u64 {
        let passes = u64::from(self.pass.saturating_sub(1));
        passes.saturating_mul(size_bytes).saturating_add(self.offset)
    }
}

/// How often a wipe notes where it is: when both of these have passed since the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence {
    /// Time.
    pub period: Duration,
    /// Bytes of the device.
    pub bytes: u64,
}

impl Default for Cadence {
    fn default() -> Self {
        Self {
            // A write to the API every half minute is nothing to it, and half a minute of work is soon done again.
            period: Duration::from_secs(30),
            // What takes less than some seconds is not worth a write.
            bytes: 1 << 30,
        }
    }
}

/// How many passes over the device a method takes; `None` for one that leaves no checkpoints. The last one writes the
/// zeros.
#[must_use]
pub fn passes(cleaner: &Cleaner) -> Option<u32> {
    match cleaner {
        Cleaner::Zero => Some(1),
        Cleaner::Discard => Some(2),
        Cleaner::Shred { passes } => passes.checked_add(1),
        Cleaner::Quick | Cleaner::Fsclean | Cleaner::Command(_) => None,
    }
}

/// All that makes a wipe the one that it is: what a checkpoint is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wipe {
    /// The native method.
    pub method: Cleaner,
    /// `blockCleanerCommand` that led to it.
    pub command: Vec<String>,
    /// Size of the device.
    pub size_bytes: u64,
    /// Identity of the device, with the boot and the attachment that it was read in.
    pub volume: VolumeId,
    /// UID of the PV.
    pub pv_uid: String,
    /// UID of the claim that the PV was released from.
    pub claim_uid: String,
}

/// A place in a wipe, as it is noted on a PV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The wipe.
    pub wipe: Wipe,
    /// The place.
    pub position: Position,
}

/// How a checkpoint is written. A field that is not known may change what the others mean: there must be none.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    method: String,
    command: Vec<String>,
    pass: u32,
    offset: u64,
    size: u64,
    volume: String,
    pv: String,
    claim: String,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wipe, position } = self;
        let written = Written {
            method: wipe.method.to_string(),
            command: wipe.command.clone(),
            pass: position.pass,
            offset: position.offset,
            size: wipe.size_bytes,
            volume: wipe.volume.to_string(),
            pv: wipe.pv_uid.clone(),
            claim: wipe.claim_uid.clone(),
        };
        f.write_str(&serde_json::to_string(&written).map_err(|_| fmt::Error)?)
    }
}

impl Wipe {
    /// Where this wipe goes on, by what is noted on its PV.
    ///
    /// # Errors
    /// Why the note does not count, in words.
    pub fn resume(&self, noted: &str) -> Result<Position, String> {
        let noted: Written = serde_json::from_str(noted).map_err(|error| format!("it cannot be read: {error}"))?;
        let differs = |what: &str| Err(format!("it is of {what}"));
        if noted.pv != self.pv_uid {
            return differs("another PersistentVolume");
        }
        if noted.claim != self.claim_uid || self.claim_uid.is_empty() {
            return differs("an earlier release");
        }
        if noted.method != self.method.to_string() || noted.command != self.command {
            return differs("another cleaner");
        }
        if noted.size != self.size_bytes {
            return differs("a device of another size");
        }
        let volume: VolumeId = noted
            .volume
            .parse()
            .map_err(|error| format!("its volume id cannot be read: {error}"))?;
        if !same_attachment(&volume, &self.volume) {
            return differs("another device, or of an earlier attachment of it");
        }
        let position = Position {
            pass: noted.pass,
            offset: noted.offset,
        };
        let passes = passes(&self.method).unwrap_or(0);
        let exists = (1..=passes).contains(&position.pass) && position.offset < self.size_bytes;
        if !exists || !position.offset.is_multiple_of(ALIGN_BYTES) {
            return Err("there is no such place in this wipe".into());
        }
        Ok(position)
    }
}

/// Whether what was wiped of the one device is known to be wiped on the other. Within one run of the machine the
/// attachment must be the same. From one run to the next, or where the kernel does not count attachments (before 5.15),
/// the hardware must tell which disk it is: of a name such as its slot or its backing file, and of an array or a mapped
/// device, which may be put together from other, older members, nothing follows for what is on it.
fn same_attachment(noted: &VolumeId, now: &VolumeId) -> bool {
    if noted.kind != IdKind::Device || noted.compare(now) != Comparison::Same {
        return false;
    }
    let both = |key| noted.get(key).zip(now.get(key)).filter(|(noted, _)| !noted.is_empty());
    let equal = |key| both(key).is_some_and(|(noted, now)| noted == now);
    if equal(part::BOOT) && both(part::DISKSEQ).is_some() {
        return equal(part::DISKSEQ);
    }
    equal(part::WWN) || equal(part::SERIAL)
}

/// Whether a PV is in the one state in which nobody can be given its volume before it is gone: being deleted, kept by our
/// finalizer. No other has a checkpoint.
#[must_use]
pub fn may_be_noted_on(pv: &Pv) -> bool {
    pv.deleting && pv.has_our_finalizer() && !pv.is_leaving()
}

/// Whether a checkpoint still counts when nobody wipes the volume and this is its state. Whatever has, or may have, come
/// to the device meanwhile ends it; that nothing could be seen does not.
#[must_use]
pub fn outlives(state: &State) -> bool {
    matches!(
        state,
        State::Released | State::Scrubbing(_) | State::Unresponsive(_) | State::Held(Held::Unreadable(_))
    )
}

/// Where a wipe puts its checkpoints, and whoever writes them down takes them from: neither waits for the other, and only
/// the newest counts. Clones share it.
#[derive(Debug, Clone)]
pub struct Notes {
    newest: Arc<Mutex<Option<Checkpoint>>>,
    wake: Arc<Wake>,
}

impl Notes {
    /// Empty. `wake` is notified of each new one.
    #[must_use]
    pub fn new(wake: Arc<Wake>) -> Self {
        Self {
            newest: Arc::default(),
            wake,
        }
    }

    /// Everything before this is wiped and flushed.
    pub fn put(&self, checkpoint: Checkpoint) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(checkpoint);
        self.wake.wake(Cause::Scrub);
    }

    /// The newest that was not taken yet.
    #[must_use]
    pub fn take(&self) -> Option<Checkpoint> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
