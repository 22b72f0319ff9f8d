//! Whether the storage of a volume does its service, and what follows: a free, unused PV is withdrawn, the users of a bound
//! one are told. Nothing is ever scrubbed or deleted for it that was used.

use std::fmt;

use crate::cluster::{Phase, Pv, Use};
use crate::config::VolumeMode;
use crate::observed::EntryKind;
use crate::reason::{Ailment, Held};

use super::storage::{Match, not_a_volume};
use super::volume::other_capacity;
use super::{Health, Notice, Planner, Severity, Sight, State};

/// What an entry shows that keeps it from being used or scrubbed. Errors come first: a filesystem often becomes read-only
/// by them.
pub(super) fn defect(kind: &EntryKind) -> Option<Held> {
    let (failing, read_only) = match kind {
        EntryKind::Mount(mount) => (&mount.failing, mount.read_only),
        EntryKind::Device(device) => (&device.failing, device.read_only),
        EntryKind::Failing(what) => return Some(Held::Failing(what.clone())),
        _ => return None,
    };
    let failing = failing.clone().map(Held::Failing);
    failing.or_else(|| read_only.then_some(Held::ReadOnly))
}

/// What is wrong with the storage of a volume that somebody has.
pub(super) enum Condition {
    /// Not there.
    Vanished(String),
    /// A system call hangs.
    Unresponsive,
    /// Errors, or read-only.
    Defect(Held),
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vanished(what) => write!(f, "{what}, and a claim is bound to it"),
            Self::Unresponsive => write!(f, "a system call on it hangs; look at the disk and its cable (dmesg)"),
            Self::Defect(Held::ReadOnly) => write!(f, "it became read-only; look for I/O errors (dmesg)"),
            Self::Defect(held) => held.fmt(f),
        }
    }
}

impl Condition {
    fn of(sight: &Sight<'_>, mode: VolumeMode) -> Option<Self> {
        match sight {
            Sight::Unseen(_) => None,
            Sight::Unresponsive(_) => Some(Self::Unresponsive),
            Sight::Failing(what) => Some(Self::Defect(Held::Failing((*what).to_owned()))),
            Sight::Absent => Some(Self::Vanished("the entry is gone".into())),
            Sight::Entry(entry) => match not_a_volume(sight, mode) {
                Some(what) => Some(Self::Vanished(what)),
                None => defect(&entry.kind).map(Self::Defect),
            },
        }
    }

    fn ailment(&self) -> Ailment {
        match self {
            Self::Vanished(_) => Ailment::Vanished,
            Self::Unresponsive => Ailment::Unresponsive,
            Self::Defect(Held::ReadOnly) => Ailment::ReadOnly,
            Self::Defect(_) => Ailment::Failing,
        }
    }
}

impl Health {
    /// Of an entry without a PV.
    pub(super) fn of_unpublished(state: &State) -> Self {
        match state {
            State::Unresponsive(_) => Self::Bad(Ailment::Unresponsive),
            State::Held(Held::ReadOnly) => Self::Bad(Ailment::ReadOnly),
            State::Held(Held::Failing(_)) => Self::Bad(Ailment::Failing),
            _ => Self::Unknown,
        }
    }
}

impl Planner<'_> {
    /// The health of a volume with a PV.
    pub(super) fn health(&self, pv: &Pv, sight: &Sight<'_>, state: &State) -> Health {
        match (state, sight) {
            // A scrub may hang where a look does not.
            (State::Unresponsive(_), _) => return Health::Bad(Ailment::Unresponsive),
            // It is to be taken out of the directory.
            (State::Held(Held::Kept), _) | (_, Sight::Unseen(_)) => return Health::Unknown,
            _ => {}
        }
        if let Some(condition) = Condition::of(sight, pv.mode) {
            return Health::Bad(condition.ailment());
        }
        match (state, sight) {
            (State::Bound, Sight::Entry(entry))
                if other_capacity(pv, &entry.kind).is_some()
                    && matches!(self.matches(pv, &entry.kind), Match::Right) =>
            {
                Health::Bad(Ailment::CapacityChanged)
            }
            _ => Health::Good,
        }
    }

    /// A free PV whose storage has a defect: withdrawn after the grace period, unless it holds somebody's data.
    pub(super) fn ailing(
        &mut self,
        pv: &Pv,
        usage: Use,
        held: Held,
        warning: Option<String>,
    ) -> (State, Option<String>) {
        if usage == Use::Unused {
            self.withdraw(pv, &held.to_string());
            return (State::Held(held), warning);
        }
        let message = format!("{held}; the PV is kept, because it may have been used");
        self.notice(pv, Severity::Warning, "VolumeConditionAbnormal", message);
        (State::Available, Some(held.to_string()))
    }

    /// Tells of a bound volume what is wrong with it, and that nothing is any more.
    pub(super) fn condition(&mut self, pv: &Pv, sight: &Sight<'_>) -> Option<Condition> {
        let condition = Condition::of(sight, pv.mode);
        match &condition {
            Some(vanished @ Condition::Vanished(_)) => {
                self.tell_both(pv, Severity::Warning, "VolumeVanished", &vanished.to_string());
            }
            Some(other) => self.tell_both(pv, Severity::Warning, "VolumeConditionAbnormal", &other.to_string()),
            None if matches!(sight, Sight::Unseen(_)) => {}
            None if self.i.memory.ailing.contains(&pv.uid) => {
                let message = "its storage is there and shows no errors any more";
                self.tell_both(pv, Severity::Normal, "VolumeConditionNormal", message);
            }
            None => {}
        }
        condition
    }

    /// Tells it of the PV and of the claim that is bound to it: who has the claim may not see the PV.
    fn tell_both(&mut self, pv: &Pv, severity: Severity, reason: &'static str, message: &str) {
        self.notice(pv, severity, reason, message.to_owned());
        let claim = pv
            .claim
            .clone()
            .filter(|claim| pv.phase == Phase::Bound && !claim.uid.is_empty());
        if let Some(claim) = claim {
            self.plan.events.push(Notice {
                pv: pv.name.clone(),
                uid: pv.uid.clone(),
                claim: Some(claim),
                severity,
                reason,
                message: format!("PersistentVolume {}: {message}", pv.name),
            });
        }
    }
}
