//! Wiping a device by a native method: where it begins, and noting how far it is.

use std::fs::File;

use tracing::info;

use super::Scrubber;
use crate::cluster::{Mode, Pv};
use crate::config::Cleaner;
use crate::names;
use crate::observed::DeviceFacts;
use crate::plan::{PvPatch, PvRef};
use crate::reason::Held;
use crate::scrub::block::Marks;
use crate::scrub::checkpoint::{self, Checkpoint, Position, Wipe};
use crate::scrub::limits::Steering;
use crate::scrub::{ScrubError, block};

/// What is checked right before the first write; it answers with the PV.
type Check<'a> = dyn FnMut() -> Result<Pv, ScrubError> + 'a;

impl Scrubber {
    /// Wipes a device that is held exclusively, from where an interrupted wipe of this release has left off.
    pub(super) fn wipe(
        &self,
        method: &Cleaner,
        device: &File,
        facts: &DeviceFacts,
        check: &mut Check<'_>,
    ) -> Result<(), ScrubError> {
        let wipe = self.resumable(method, facts);
        let mut start = || {
            self.begin(check, |noted| {
                let wipe = wipe.as_ref().ok_or("this wipe cannot be resumed")?;
                let position = wipe.resume(noted)?;
                block::is_wiped_before(device, method, position)
                    .map_err(|error| format!("what it says is wiped is not: {error}"))?;
                Ok(position)
            })
        };
        let note = |position| {
            if let (Some(notes), Some(wipe)) = (&self.notes, wipe.clone()) {
                notes.put(Checkpoint { wipe, position });
            }
        };
        let marks = wipe.as_ref().map(|_| Marks {
            cadence: self.limits.checkpoints,
            note: &note,
        });
        let steering = Steering::new(&self.progress, &self.cancel, self.limits.bytes_per_second);
        block::wipe_from(method, device, facts.capacity_bytes, &mut start, marks, &steering)
    }

    /// What checkpoints of this wipe are compared with; `None` where nothing can be noted, or the method, the device or
    /// the release cannot be told from others.
    fn resumable(&self, method: &Cleaner, facts: &DeviceFacts) -> Option<Wipe> {
        self.notes.as_ref()?;
        checkpoint::passes(method)?;
        Some(Wipe {
            method: method.clone(),
            command: self.order.command.clone(),
            size_bytes: facts.capacity_bytes,
            volume: facts.id.clone().ok()?,
            pv_uid: self.order.pv.uid.clone(),
            claim_uid: self.order.claim_uid.clone()?,
        })
    }

    /// Where to begin: the checks, and what is noted on the PV. A checkpoint that does not count is taken back before
    /// anything is written, lest it should count again for a device that it has nothing to say of any more.
    pub(super) fn begin(
        &self,
        check: &mut Check<'_>,
        resume: impl FnOnce(&str) -> Result<Position, String>,
    ) -> Result<Position, ScrubError> {
        let pv = check()?;
        let noted = pv.annotation(names::CHECKPOINT);
        let Some(noted) = noted.filter(|_| self.mode == Mode::Patch) else {
            return Ok(Position::START);
        };
        let usable = if !checkpoint::may_be_noted_on(&pv) {
            Err("its PV is not kept by our finalizer alone".into())
        } else if !self.may_resume {
            Err("the scrub has failed, or was held back, since".into())
        } else {
            resume(noted)
        };
        let position = match usable {
            Ok(position) => {
                info!(pv = %pv.name, pass = position.pass, offset = position.offset, "an interrupted wipe is resumed");
                position
            }
            Err(why) => {
                info!(pv = %pv.name, %why, "the checkpoint of an interrupted wipe does not count: it starts over");
                self.take_back(&pv)?;
                Position::START
            }
        };
        check()?; // Both have taken their time.
        Ok(position)
    }

    /// Removes the checkpoint from the PV.
    fn take_back(&self, pv: &Pv) -> Result<(), ScrubError> {
        let patch = PvPatch {
            annotations: [(names::CHECKPOINT.to_owned(), None)].into(),
            ..PvPatch::default()
        };
        let patched = self
            .runtime
            .block_on(crate::api::patch(&self.client, &PvRef::from(pv), &patch));
        // Not a failure of the scrub, which would count: nothing was touched.
        patched.map(drop).map_err(|error| {
            ScrubError::Held(Held::Unreadable(format!(
                "its PV's annotation {} is outdated and cannot be removed: {error}",
                names::CHECKPOINT
            )))
        })
    }
}
