//! What is written on a PV besides its contents: label, finalizer, marks. Only where patching is permitted.

use crate::cluster::{Mode, Phase, Pv, Use};
use crate::names;
use crate::observed::EntryKind;

use super::storage::{Match, seen_id};
use super::volume::adopted;
use super::{Action, Planner, PvPatch, PvRef};

impl Planner<'_> {
    /// What is missing or wrong on a live PV: of the classic program, or after somebody's edit.
    pub(super) fn upkeep(&self, pv: &Pv, kind: Option<&EntryKind>, usage: Use) -> PvPatch {
        let mut patch = PvPatch::default();
        if self.i.mode != Mode::Patch {
            return patch;
        }
        if pv.node_label.as_deref() != Some(self.i.ownership.hostname.as_str()) {
            patch.node_label = Some(self.i.ownership.hostname.clone());
        }
        if !pv.has_our_finalizer() && !pv.deleting && !pv.is_leaving() {
            let mut finalizers = pv.finalizers.clone();
            finalizers.push(names::FINALIZER.into());
            patch.finalizers = Some(finalizers);
        }
        if let Some(uid) = pv.claim_uid().filter(|uid| *uid != names::NO_CLAIM)
            && pv.annotation(names::USED).is_none()
        {
            patch.annotations.insert(names::USED.into(), Some(uid.to_owned()));
        }
        self.note_settings(pv, kind, &mut patch);
        self.note_id(pv, kind, usage, &mut patch);
        patch
    }

    /// The settings that a PV of the classic program would be scrubbed with today.
    fn note_settings(&self, pv: &Pv, kind: Option<&EntryKind>, patch: &mut PvPatch) {
        if pv.annotation(names::CLASS_DIRECTORY).is_some() {
            return;
        }
        let Some(class) = self.i.config.classes.get(&pv.class) else {
            return;
        };
        if Some(class.host_dir.as_path()) != pv.host_dir() {
            return;
        }
        patch
            .annotations
            .extend(crate::pv::settings(class).map(|(key, value)| (key, Some(value))));
        if pv.annotation(names::VOLUME_ID).is_none() && kind.and_then(seen_id).is_none() {
            // Nobody can say (yet) what was published under it: it is scrubbed as the classic program would.
            patch
                .annotations
                .insert(names::VOLUME_ID_ORIGIN.into(), Some("unknown".into()));
        }
    }

    fn note_id(&self, pv: &Pv, kind: Option<&EntryKind>, usage: Use, patch: &mut PvPatch) {
        let seen = kind.and_then(seen_id);
        if adopted(pv)
            && let Some(id) = &seen
            && kind.is_some_and(|kind| matches!(self.matches(pv, kind), Match::Right))
        {
            patch.annotations.insert(names::VOLUME_ID.into(), Some(id.to_string()));
            patch.annotations.insert(names::RESOLVE.into(), None);
            return;
        }
        let origin = pv.annotation(names::VOLUME_ID_ORIGIN);
        let never_noted = pv.annotation(names::VOLUME_ID).is_none()
            && (pv.annotation(names::CLASS_DIRECTORY).is_none() || origin == Some("unknown"));
        if !never_noted || !matches!(pv.phase, Phase::Pending | Phase::Available | Phase::Bound) {
            return;
        }
        if let Some(id) = seen {
            patch.annotations.insert(names::VOLUME_ID.into(), Some(id.to_string()));
            if usage != Use::Unused {
                patch
                    .annotations
                    .insert(names::VOLUME_ID_ORIGIN.into(), Some("seen-while-bound".into()));
            } else if origin.is_some() {
                patch.annotations.insert(names::VOLUME_ID_ORIGIN.into(), None);
            }
        }
    }

    /// Adds the patch to the plan if it changes anything and may be made.
    pub(super) fn patch(&mut self, pv: &Pv, patch: PvPatch, lets_go: bool, why: &str) {
        if patch.is_empty() || self.i.mode != Mode::Patch {
            return;
        }
        self.act(
            &pv.name,
            Action::Patch {
                pv: PvRef::from(pv),
                patch,
                lets_go,
                why: why.to_owned(),
            },
        );
    }
}
