//! PVs that are in circulation: free and bound ones.

use crate::capacity;
use crate::cluster::{Phase, Pv, Use};
use crate::observed::EntryKind;
use crate::reason::Held;

use super::condition::{Condition, defect};
use super::entry::facts_capacity;
use super::storage::{Match, not_a_volume, seen_id};
use super::{Action, Occupant, Planner, PvRef, Severity, Sight, State, Volume};

impl<'a> Planner<'a> {
    /// Judges one own PV.
    pub(super) fn pv(&mut self, pv: &'a Pv) {
        self.occupy(pv, false);
        self.abort_outdated(pv);
        let (key, sight) = self.sight(pv);
        if pv.only_stands_in() {
            let message = "its predecessor was removed before the volume was scrubbed: this PV stands in for it, and goes when the volume is clean".to_owned();
            self.notice(pv, Severity::Warning, "RemovedByForce", message);
        }
        let (state, warning) = if pv.deleting {
            (self.terminating(pv, key.as_ref(), &sight), None)
        } else if pv.only_stands_in() {
            (self.stand_in(pv, key.as_ref(), &sight), None)
        } else {
            match (pv.phase, &pv.claim) {
                (Phase::Available | Phase::Pending, None) => self.free(pv, &sight),
                (Phase::Available | Phase::Pending, Some(_)) | (Phase::Bound, _) => self.bound(pv, &sight),
                (Phase::Released, _) => (self.released(pv, key.as_ref(), &sight), None),
                (Phase::Failed, _) => {
                    self.hold_notice(pv, &Held::PhaseFailed);
                    (State::Held(Held::PhaseFailed), None)
                }
            }
        };
        self.row(pv, key, &sight, state, warning);
    }

    /// A PV of this node from the time when its Node object had another UID: adopted if it is provably the same storage,
    /// and pods on this node may still use it.
    pub(super) fn former_node_pv(&mut self, pv: &'a Pv) {
        let (key, sight) = self.sight(pv);
        let same = pv.hostnames == [self.i.ownership.hostname.clone()]
            && pv.annotation(crate::names::VOLUME_ID).is_some()
            && matches!(&sight, Sight::Entry(entry) if not_a_volume(&sight, pv.mode).is_none()
                && matches!(self.matches(pv, &entry.kind), Match::Right));
        if same && self.i.mode == crate::cluster::Mode::Patch {
            self.occupy(pv, false);
            let by = self.i.ownership.provisioned_by();
            let annotations = [(crate::names::PROVISIONED_BY.to_owned(), Some(by))].into();
            let patch = super::PvPatch {
                annotations,
                ..Default::default()
            };
            self.patch(
                pv,
                patch,
                false,
                "made while the node object had another UID; the storage is the same",
            );
            let state = if pv.phase == Phase::Bound {
                State::Bound
            } else {
                State::Released
            };
            self.row(pv, key, &sight, state, None);
        } else {
            self.occupy(pv, true);
            let message = format!(
                "PV {} was made while node {} had another UID or another hostname label, and cannot be taken over: its volume is neither scrubbed nor published; delete the PV to have that done",
                pv.name, self.i.node.name
            );
            self.notice(pv, Severity::Warning, "ForeignPersistentVolume", message);
        }
    }

    /// A PV that another program made for a path of ours.
    pub(super) fn foreign_pv(&mut self, pv: &'a Pv) {
        let in_our_directory = self
            .i
            .config
            .classes
            .values()
            .any(|class| Some(class.host_dir.as_path()) == pv.host_dir());
        if !in_our_directory || !pv.hostnames.contains(&self.i.ownership.hostname) {
            return;
        }
        self.occupy(pv, true);
        let message = format!(
            "PV {} stands for a path in a discovery directory, but was not made by this provisioner: the path is not published",
            pv.name
        );
        self.notice(pv, Severity::Warning, "ForeignPersistentVolume", message);
    }

    fn occupy(&mut self, pv: &'a Pv, foreign: bool) {
        if let Some(path) = &pv.path {
            let (pv, class) = (&pv.name, &pv.class);
            self.occupied.insert(path, Occupant { pv, class, foreign });
        }
    }

    fn row(
        &mut self,
        pv: &Pv,
        key: Option<crate::observed::DirectoryKey>,
        sight: &Sight<'_>,
        state: State,
        warning: Option<String>,
    ) {
        let kind = match sight {
            Sight::Entry(entry) => Some(&entry.kind),
            _ => None,
        };
        let directory = key.unwrap_or_else(|| {
            let host_dir = pv.host_dir().unwrap_or(std::path::Path::new("/"));
            crate::observed::DirectoryKey::new(&pv.class, host_dir, "")
        });
        let health = self.health(pv, sight, &state);
        self.plan.volumes.push(Volume {
            directory,
            entry: pv.entry().unwrap_or_default().to_owned(),
            state,
            pv: Some(pv.name.clone()),
            published: true,
            claim: pv.claim.as_ref().map(ToString::to_string),
            capacity: Some(pv.capacity.clone()),
            id: kind.and_then(seen_id).cloned(),
            warning,
            health,
        });
    }

    /// A PV that nobody has claimed.
    fn free(&mut self, pv: &Pv, sight: &Sight<'_>) -> (State, Option<String>) {
        let usage = self.usage(pv);
        let warning = (usage == Use::Used).then(|| {
            let message = "its claimRef was cleared by hand: the next claim gets the data of the last one".to_owned();
            self.notice(pv, Severity::Warning, "ReusedWithoutScrub", message.clone());
            message
        });
        let entry = match sight {
            Sight::Unseen(_) | Sight::Unresponsive(_) if self.class_is_gone(pv) => {
                return self.missing(pv, usage, "its class is not configured any more", warning);
            }
            Sight::Unseen(held) => return (State::Available, Some(held.to_string())),
            Sight::Unresponsive(call) => return (State::Unresponsive((*call).to_owned()), warning),
            Sight::Absent => return self.missing(pv, usage, "the entry is gone", warning),
            Sight::Failing(what) => return self.ailing(pv, usage, Held::Failing((*what).to_owned()), warning),
            Sight::Entry(entry) => *entry,
        };
        if let Some(what) = not_a_volume(sight, pv.mode) {
            return self.missing(pv, usage, &what, warning);
        }
        if let Some(what) = self.out_of_class(pv) {
            return self.missing(pv, usage, &what, warning);
        }
        let found = self.matches(pv, &entry.kind);
        if let Match::Wrong { expected, found } = found {
            // At once: a claim that is bound now would get somebody's data.
            let held = Held::WrongStorage { expected, found };
            self.delete(pv, false, &held.to_string());
            return (State::Held(held), warning);
        }
        if let Some(held) = defect(&entry.kind) {
            return self.ailing(pv, usage, held, warning);
        }
        match found {
            Match::LostWithReboot => {
                self.delete(
                    pv,
                    usage == Use::Unused,
                    "what was published went with a reboot, and this is a new volume",
                );
                return (State::Available, warning);
            }
            Match::Unknown(error) => {
                let held = Held::IdentityUnknown(error);
                self.notice(pv, Severity::Warning, "VolumeMismatch", held.to_string());
                return (State::Held(held), warning);
            }
            Match::Right | Match::Wrong { .. } => {}
        }
        self.follow(pv, usage, entry);
        (State::Available, warning)
    }

    /// Keeps what is written on a free PV true: capacity, label, marks.
    fn follow(&mut self, pv: &Pv, usage: Use, entry: &crate::observed::Entry) {
        let mut patch = self.upkeep(pv, Some(&entry.kind), usage);
        if let Some(now) = other_capacity(pv, &entry.kind).filter(|now| *now != "0" && usage == Use::Unused) {
            match self.i.mode {
                crate::cluster::Mode::Patch => patch.capacity = Some(now),
                crate::cluster::Mode::Classic => {
                    let why = format!(
                        "its capacity changed from {} to {now}, and patching is not permitted",
                        pv.capacity
                    );
                    self.delete(pv, true, &why);
                    return;
                }
            }
        }
        self.patch(pv, patch, false, "to keep what it says true");
    }

    /// Whether a PV's class was taken out of the configuration; one that is only broken there was not.
    fn class_is_gone(&self, pv: &Pv) -> bool {
        !self.i.config.classes.contains_key(&pv.class) && !self.i.broken_classes.contains(&pv.class)
    }

    /// Whether a PV's volume is there, but would not be published under its class any more.
    fn out_of_class(&self, pv: &Pv) -> Option<String> {
        if self.class_is_gone(pv) {
            return Some("its class is not configured any more".into());
        }
        let class = self.i.config.classes.get(&pv.class)?;
        if Some(class.host_dir.as_path()) != pv.host_dir() {
            return Some(format!("hostDir of its class is {} now", class.host_dir.display()));
        }
        if class.volume_mode != pv.mode {
            return Some(format!("volumeMode of its class is {:?} now", class.volume_mode));
        }
        let name = pv.entry().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        (!class.name_pattern.matches(name)).then(|| {
            format!(
                "its name does not match namePattern {:?} any more",
                class.name_pattern.to_string()
            )
        })
    }

    /// The volume of a free PV is not there: the PV is withdrawn after the grace period, unless it holds somebody's data.
    fn missing(&mut self, pv: &Pv, usage: Use, what: &str, warning: Option<String>) -> (State, Option<String>) {
        let state = State::Vanished(what.to_owned());
        if usage != Use::Unused {
            self.notice(
                pv,
                Severity::Warning,
                "VolumeVanished",
                format!("{what}; the PV is kept, because it may have been used"),
            );
            return (state, warning);
        }
        self.withdraw(pv, what);
        (state, warning)
    }

    /// Withdraws an unused PV, whose volume has been missing or ailing for the grace period.
    pub(super) fn withdraw(&mut self, pv: &Pv, why: &str) {
        // Without a note of when that began it has just begun: the run loop notes it after this pass.
        let since = self.i.memory.missing_since.get(&pv.uid).copied().unwrap_or(self.i.now);
        let due = since + self.i.limits.grace_period;
        if due <= self.i.now {
            self.delete(pv, true, why);
        } else {
            self.wake(due);
        }
    }

    /// A PV that is bound, or that a claim is being bound to: nothing is done, but everything is said.
    fn bound(&mut self, pv: &Pv, sight: &Sight<'_>) -> (State, Option<String>) {
        let usage = self.usage(pv);
        let kind = match sight {
            Sight::Entry(entry) => Some(&entry.kind),
            _ => None,
        };
        if pv.phase != Phase::Bound
            && pv.claim_uid().is_none()
            && let Some(kind) = kind
            && not_a_volume(sight, pv.mode).is_none()
            && let Match::Wrong { expected, found } = self.matches(pv, kind)
        {
            // Reserved by hand for a claim that is not bound yet, and would get somebody's data.
            let held = Held::WrongStorage { expected, found };
            self.delete(pv, false, &held.to_string());
            return (State::Held(held), None);
        }
        let patch = self.upkeep(pv, kind, usage);
        self.patch(pv, patch, false, "to keep what it says true");
        let state = if pv.phase == Phase::Bound {
            State::Bound
        } else {
            State::Available
        };
        if let Sight::Unseen(held) = sight {
            return (state, Some(held.to_string()));
        }
        let condition = self.condition(pv, sight);
        match (sight, &condition) {
            (Sight::Unresponsive(call), _) => return (State::Unresponsive((*call).to_owned()), None),
            (_, Some(Condition::Vanished(what))) => return (State::Vanished(what.clone()), None),
            _ => {}
        }
        let condition = condition.map(|condition| condition.to_string());
        let Some(kind) = kind else { return (state, condition) };
        let warning = match self.matches(pv, kind) {
            Match::Wrong { expected, found } => {
                let held = Held::WrongStorage { expected, found };
                self.notice(pv, Severity::Warning, "VolumeMismatch", held.to_string());
                Some(held.to_string())
            }
            Match::LostWithReboot => {
                let message =
                    "what the claim was bound to went with a reboot; what is there now is new and empty".to_owned();
                self.notice(pv, Severity::Warning, "VolumeLost", message.clone());
                Some(message)
            }
            Match::Unknown(error) => Some(Held::IdentityUnknown(error).to_string()),
            Match::Right => self.capacity_warning(pv, kind),
        };
        (state, condition.or(warning))
    }

    fn capacity_warning(&mut self, pv: &Pv, kind: &EntryKind) -> Option<String> {
        let now = other_capacity(pv, kind)?;
        let message = format!("its capacity is {now} now, and {} was published", pv.capacity);
        self.notice(pv, Severity::Warning, "CapacityChanged", message.clone());
        Some(message)
    }

    /// Deletes a PV with preconditions, and only if it is as it was seen.
    pub(super) fn delete(&mut self, pv: &Pv, lets_go: bool, why: &str) {
        self.act(
            &pv.name,
            Action::Delete {
                pv: PvRef::from(pv),
                lets_go,
                why: why.to_owned(),
            },
        );
    }

    /// Says, once per cause, why a volume does not come back.
    pub(super) fn hold_notice(&mut self, pv: &Pv, held: &Held) {
        self.notice(
            pv,
            Severity::Warning,
            "VolumeFailedDelete",
            format!("Error cleaning PV {:?}: {held}", pv.name),
        );
    }
}

/// The capacity of what is there now, if it is not what was published.
pub(super) fn other_capacity(pv: &Pv, kind: &EntryKind) -> Option<String> {
    facts_capacity(kind).filter(|now| capacity::parse(now) != capacity::parse(&pv.capacity))
}

/// Whether the operator accepts the storage that is at the path now.
pub(super) fn adopted(pv: &Pv) -> bool {
    pv.annotation(crate::names::RESOLVE) == Some("adopt")
}
