//! PVs on their way back: released and terminating ones, and when they may be scrubbed and let go.

use std::time::Duration;

use crate::cluster::{ClaimRef, Mode, Phase, Pv, Use};
use crate::config::{Cleaner, VolumeMode};
use crate::identity::{Comparison, VolumeId};
use crate::memory::{ClaimReading, ClaimState, Scrub, ScrubState};
use crate::names;
use crate::observed::{Directory, DirectoryKey, EntryKind, HostView};
use crate::reason::Held;

use super::condition::defect;
use super::storage::{Match, not_a_volume, seen_id};
use super::volume::adopted;
use super::{Action, Planner, PvPatch, PvRef, ScrubKind, ScrubOrder, Severity, Sight, State};

/// How long a reading of a claim counts while its end is waited for.
const CLAIM_READING: Duration = Duration::from_secs(5);

/// What a scrub is of.
pub(super) enum Medium {
    Filesystem,
    Device,
}

/// What the operator said about what a volume holds.
enum Word {
    Scrub,
    Keep,
    Nothing,
}

impl Planner<'_> {
    /// Stops a scrub whose PV is not what it was when the scrub was ordered: somebody has given it back, or wants what is
    /// on it.
    pub(super) fn abort_outdated(&mut self, pv: &Pv) {
        let Some(Scrub {
            state: ScrubState::Running,
            claim_uid,
            ..
        }) = self.i.memory.scrubs.get(&pv.uid)
        else {
            return;
        };
        let why = if claim_uid.as_deref() != pv.claim_uid() {
            "the claimRef of its PV changed"
        } else if !pv.deleting && pv.phase != Phase::Released {
            "its PV is not released any more"
        } else if pv.reclaim_policy != "Delete" && pv.annotation(names::RETAINED) != Some("scrub") {
            "the reclaim policy of its PV changed"
        } else {
            return;
        };
        self.plan.actions.push(Action::AbortScrub {
            uid: pv.uid.clone(),
            why: why.into(),
        });
    }

    /// Released, and not being deleted.
    pub(super) fn released(&mut self, pv: &Pv, key: Option<&DirectoryKey>, sight: &Sight<'_>) -> State {
        match pv.reclaim_policy.as_str() {
            "Delete" => {}
            "Retain" => {
                let patch = self.upkeep(pv, None, Use::Used);
                self.patch(pv, patch, false, "to keep what it says true");
                return State::Held(Held::Retain);
            }
            policy => {
                let message = format!("Volume has unsupported PersistentVolumeReclaimPolicy: {policy}");
                self.notice(pv, Severity::Warning, "VolumeUnsupportedReclaimPolicy", message);
                return State::Held(Held::UnsupportedPolicy(policy.to_owned()));
            }
        }
        match self.i.mode {
            Mode::Patch if !pv.is_leaving() => {
                let patch = self.upkeep(pv, None, Use::Used);
                if !patch.is_empty() {
                    // First: the finalizer is what makes a terminating PV wait for its scrub.
                    self.patch(pv, patch, false, "before it is deleted");
                } else {
                    self.delete(pv, false, "released with reclaim policy Delete");
                }
                State::Released
            }
            _ => self.clean_up(pv, key, sight, |planner, pv| planner.delete(pv, true, "scrubbed")),
        }
    }

    /// Being deleted.
    pub(super) fn terminating(&mut self, pv: &Pv, key: Option<&DirectoryKey>, sight: &Sight<'_>) -> State {
        if self.i.mode == Mode::Classic && pv.has_our_finalizer() && !pv.is_protected() {
            let what = "it carries the finalizer local-volume-provisioner/scrub, and patching PersistentVolumes, which removing that takes, is not granted any more; grant it, or run uninstall".to_owned();
            let held = Held::NotPermitted(what);
            self.hold_notice(pv, &held);
            return State::Held(held);
        }
        if pv.node_label.as_deref() != Some(self.i.ownership.hostname.as_str()) && self.i.mode == Mode::Patch {
            // The watch selects by it: without it nobody would tell when the PV is not protected any more.
            let patch = PvPatch {
                node_label: Some(self.i.ownership.hostname.clone()),
                ..Default::default()
            };
            self.patch(pv, patch, false, "to be told of its changes");
            return State::Released;
        }
        let bound = pv.phase == Phase::Bound;
        if bound {
            self.condition(pv, sight);
        }
        if bound || pv.is_protected() {
            return if bound { State::Bound } else { State::Released };
        }
        if !pv.has_our_finalizer() {
            let held = Held::ForeignFinalizer(pv.finalizers.join(", "));
            self.hold_notice(pv, &held);
            return State::Held(held);
        }
        if self.usage(pv) == Use::Unused {
            self.let_go(pv, "never used");
            return State::Released;
        }
        self.returning(pv, key, sight, Self::let_go)
    }

    /// Stands in for a PV that was removed before its volume was scrubbed, and goes the way that that one would have
    /// gone: never into circulation.
    pub(super) fn stand_in(&mut self, pv: &Pv, key: Option<&DirectoryKey>, sight: &Sight<'_>) -> State {
        if self.i.mode == Mode::Patch && !pv.is_leaving() {
            let patch = self.upkeep(pv, None, Use::Used);
            if patch.is_empty() {
                self.delete(pv, false, "it only stands in for a PV that was removed by force");
            } else {
                self.patch(pv, patch, false, "before it is deleted");
            }
            return State::Released;
        }
        match (pv.phase, pv.claim_uid()) {
            (Phase::Released | Phase::Failed, _) => {}
            (_, None) => {
                // The claimRef is what keeps it from being bound: another is made with one.
                self.delete(
                    pv,
                    false,
                    "its claimRef was removed, and it only stands in for a PV that was removed by force",
                );
                return State::Released;
            }
            _ => return State::Released, // kube-controller-manager has not looked at it yet.
        }
        self.returning(pv, key, sight, |planner, pv, why| planner.delete(pv, true, why))
    }

    /// What becomes of a volume whose PV does not go back into circulation: by its use, its policy and the operator's
    /// word; `then` lets the PV go.
    fn returning(
        &mut self,
        pv: &Pv,
        key: Option<&DirectoryKey>,
        sight: &Sight<'_>,
        then: impl Fn(&mut Self, &Pv, &str),
    ) -> State {
        let word = match pv.annotation(names::RETAINED) {
            Some("scrub") => Word::Scrub,
            Some("keep") => Word::Keep,
            _ => Word::Nothing,
        };
        let mut held = match (self.usage(pv), pv.reclaim_policy.as_str()) {
            (Use::Unknown, _) => Some(Held::UnknownUse),
            (_, "Delete") => None,
            (_, "Retain") => Some(Held::RetainDeleting),
            (_, policy) => Some(Held::UnsupportedPolicy(policy.to_owned())),
        };
        match word {
            Word::Keep => return self.kept(pv, sight, then),
            Word::Scrub => held = None,
            Word::Nothing => {}
        }
        if let Some(held) = held {
            self.hold_notice(pv, &held);
            return State::Held(held);
        }
        let running = self.i.memory.scrubs.get(&pv.uid).map(|scrub| &scrub.state);
        if !matches!(running, Some(ScrubState::Running)) {
            if let Some(held) = self.bind_under_way(pv) {
                return State::Held(held);
            }
            if let Some(claim) = pv.last_claim()
                && let Some(held) = self.claim_may_live(claim.clone(), |claim, uid, _| *uid == claim.uid)
                && !(matches!(word, Word::Scrub) && self.is_kept_secret(&claim))
            {
                self.hold_notice(pv, &held);
                return State::Held(held);
            }
        }
        self.clean_up(pv, key, sight, |planner, pv| then(planner, pv, "scrubbed"))
    }

    /// `retained=keep`: the PV goes once the entry has gone with its data, so that nobody is given the data.
    fn kept(&mut self, pv: &Pv, sight: &Sight<'_>, then: impl Fn(&mut Self, &Pv, &str)) -> State {
        // A mount that is late after a reboot shows as a plain directory, a disk as a dangling link: the name is what counts.
        if matches!(sight, Sight::Absent) && self.is_taken_out(pv) {
            let since = self.i.memory.missing_since.get(&pv.uid).copied().unwrap_or(self.i.now);
            let due = since + self.i.limits.grace_period;
            if due <= self.i.now {
                then(
                    self,
                    pv,
                    "its data was kept, and it was taken out of the discovery directory",
                );
            } else {
                self.wake(due);
            }
        }
        State::Held(Held::Kept)
    }

    /// Whether the directory was read, and what was published is not there under another name.
    fn is_taken_out(&self, pv: &Pv) -> bool {
        let key = self.class_directories.of_pv(pv);
        let directory = key.and_then(|key| self.i.observed.directories.get(&key));
        let noted = || pv.annotation(names::VOLUME_ID)?.parse::<VolumeId>().ok();
        let noted = noted();
        let is_it = |kind: &EntryKind| match (&noted, seen_id(kind)) {
            (Some(noted), Some(seen)) => noted.compare(seen) == Comparison::Same,
            _ => false,
        };
        let entries = self
            .i
            .observed
            .directories
            .values()
            .flat_map(|directory| match directory {
                Directory::Read(entries) => entries.as_slice(),
                _ => &[],
            });
        matches!(directory, Some(Directory::Read(_))) && !entries.into_iter().any(|entry| is_it(&entry.kind))
    }

    /// A claimRef on an Available PV that is being deleted is a bind that cannot complete; it has ended when the claim
    /// does not name this volume.
    fn bind_under_way(&mut self, pv: &Pv) -> Option<Held> {
        let claim = pv
            .claim
            .clone()
            .filter(|claim| pv.phase == Phase::Available && !claim.uid.is_empty())?;
        self.claim_may_live(claim, |claim, uid, volume_name| {
            *uid == claim.uid && volume_name == pv.name
        })
    }

    /// The hold while a claim exists, by `is_it`: its UID and the volume that it names. A Lost claim binds again to the
    /// next PV of that name.
    fn claim_may_live(&mut self, claim: ClaimRef, is_it: impl Fn(&ClaimRef, &str, &str) -> bool) -> Option<Held> {
        let held = Held::ClaimMayLive(claim.to_string());
        let Some(reading) = self.claim_reading(&claim) else {
            self.act(&format!("claim {claim}"), Action::ReadClaim(claim));
            return Some(held);
        };
        let lives = match &reading.state {
            ClaimState::Absent => false,
            ClaimState::Present { uid, volume_name } => is_it(&claim, uid, volume_name),
            ClaimState::Unreadable(_) | ClaimState::Forbidden(_) => true,
        };
        if lives {
            self.wake(reading.at + CLAIM_READING);
        }
        lives.then_some(held)
    }

    fn claim_reading(&self, claim: &ClaimRef) -> Option<&ClaimReading> {
        let reading = self.i.memory.claim(claim);
        reading.filter(|reading| self.i.now < reading.at + CLAIM_READING)
    }

    /// Where claims may not be read nobody but the operator knows.
    fn is_kept_secret(&self, claim: &ClaimRef) -> bool {
        let reading = self.claim_reading(claim);
        reading.is_some_and(|reading| matches!(reading.state, ClaimState::Forbidden(_)))
    }

    /// Removes our finalizer.
    fn let_go(&mut self, pv: &Pv, why: &str) {
        let rest = pv
            .finalizers
            .iter()
            .filter(|finalizer| *finalizer != names::FINALIZER)
            .cloned()
            .collect();
        let patch = PvPatch {
            finalizers: Some(rest),
            ..Default::default()
        };
        self.patch(pv, patch, true, why);
    }

    /// Scrubs a live PV's volume, and then does what lets the PV go.
    fn clean_up(
        &mut self,
        pv: &Pv,
        key: Option<&DirectoryKey>,
        sight: &Sight<'_>,
        then: impl FnOnce(&mut Self, &Pv),
    ) -> State {
        let Some(key) = key else {
            // Without its class nobody knows where it is; a scrub that has begun does.
            match self.i.memory.scrubs.get(&pv.uid).map(|scrub| &scrub.state) {
                Some(ScrubState::Running) => return State::Scrubbing(self.i.progress.get(&pv.uid).cloned()),
                Some(ScrubState::Clean { settled: true, .. })
                    if self.pod_mount(&pv.name, &EntryKind::File).is_none() =>
                {
                    then(self, pv);
                    return State::Released;
                }
                _ => {}
            }
            self.hold_notice(pv, &Held::ClassNotConfigured);
            return State::Held(Held::ClassNotConfigured);
        };
        if let Sight::Unresponsive(call) = sight {
            self.hold_notice(pv, &Held::Unreadable((*call).to_owned()));
            return State::Unresponsive((*call).to_owned());
        }
        let state = self.scrub_step(pv, key, sight, then);
        if let State::Held(held) = &state
            && !matches!(held, Held::Resting(_))
        {
            self.hold_notice(pv, held);
        }
        state
    }

    /// One step of getting a volume clean; `then` once it is.
    pub(super) fn scrub_step(
        &mut self,
        pv: &Pv,
        key: &DirectoryKey,
        sight: &Sight<'_>,
        then: impl FnOnce(&mut Self, &Pv),
    ) -> State {
        let scrub = self.i.memory.scrubs.get(&pv.uid);
        match scrub {
            Some(Scrub {
                state: ScrubState::Running,
                last_hold,
                ..
            }) => {
                if let Some(held) = last_hold.clone() {
                    self.hold_notice(pv, &held); // It stands until this try has ended well.
                }
                let progress = self.i.progress.get(&pv.uid).cloned();
                return match progress.as_ref().and_then(|now| now.stalled) {
                    None => State::Scrubbing(progress),
                    Some(timeout) => self.stalled_scrub(pv, timeout),
                };
            }
            Some(Scrub {
                state: ScrubState::Clean { at, settled, .. },
                ..
            }) => {
                return self.clean(pv, key, sight, *at, *settled, then);
            }
            Some(Scrub {
                state: ScrubState::Failed { error, .. },
                failures,
                ..
            }) if *failures >= self.i.limits.scrub_retries && !self.told_to_retry(pv) => {
                return State::Held(Held::Quarantined {
                    error: error.clone(),
                    failures: *failures,
                });
            }
            Some(Scrub {
                state: ScrubState::Failed { due, error },
                failures,
                ..
            }) if *due > self.i.now => {
                self.wake(*due);
                return State::Held(Held::ScrubFailed {
                    error: error.clone(),
                    failures: *failures,
                });
            }
            Some(Scrub {
                state: ScrubState::HeldBack { due, held },
                ..
            }) if *due > self.i.now => {
                self.wake(*due);
                return State::Held(held.clone());
            }
            _ => {}
        }
        if self.i.config.use_job_for_cleaning
            && matches!(sight, Sight::Entry(entry) if matches!(entry.kind, EntryKind::Device(_)))
        {
            return self.job_step(pv, key, sight, then);
        }
        match self.may_scrub(pv, sight) {
            Err(held) => State::Held(held),
            Ok(medium) => self.order(pv, key, sight, medium),
        }
    }

    /// A scrub that hangs: it goes on, or ends, when its system call returns. Another of the same volume never starts
    /// beside it.
    fn stalled_scrub(&mut self, pv: &Pv, timeout: Duration) -> State {
        let what = format!(
            "its scrub has done nothing for {} s (--stall-timeout): a system call on it hangs",
            timeout.as_secs_f64()
        );
        let message = format!(
            "Error cleaning PV {:?}: {what}; look at the disk and its cable (dmesg)",
            pv.name
        );
        self.notice(pv, Severity::Warning, "VolumeFailedDelete", message);
        State::Unresponsive(what)
    }

    /// `resolve=retry` ends a quarantine: the word is taken back where that is permitted, and the failures are counted
    /// anew; where it is not, the scrub is tried as long as the word stands.
    fn told_to_retry(&mut self, pv: &Pv) -> bool {
        let told = pv.annotation(names::RESOLVE) == Some("retry");
        if told && self.i.mode == Mode::Patch {
            let patch = PvPatch {
                annotations: [(names::RESOLVE.to_owned(), None)].into(),
                ..Default::default()
            };
            self.patch(pv, patch, false, "the operator has it tried again");
            return false;
        }
        told
    }

    /// The scrub has ended well. Where pods' mounts cannot be seen, the volume rests and is looked at once more.
    #[allow(clippy::too_many_arguments)]
    fn clean(
        &mut self,
        pv: &Pv,
        key: &DirectoryKey,
        sight: &Sight<'_>,
        at: Duration,
        settled: bool,
        then: impl FnOnce(&mut Self, &Pv),
    ) -> State {
        if !settled {
            let due = at + self.i.limits.discovery_period;
            if due > self.i.now {
                self.wake(due);
                return State::Held(Held::Resting(
                    "scrubbed; looked at once more before it is published".into(),
                ));
            }
            return match self.may_scrub(pv, sight) {
                Err(held) => State::Held(held),
                Ok(medium) => self.order(pv, key, sight, medium),
            };
        }
        // A pod's mount that came up since would write into the next tenant's volume.
        let kind = match sight {
            Sight::Entry(entry) => &entry.kind,
            _ => &EntryKind::File, // By the PV's name alone.
        };
        if let Some(user) = self.pod_mount(&pv.name, kind) {
            return State::Held(Held::InUse(user));
        }
        then(self, pv);
        State::Released
    }

    fn is_blind(&self) -> bool {
        matches!(self.i.observed.host, HostView::Blind(_))
    }

    /// Whether a released volume may be scrubbed now, and how; `None` if there is nothing to scrub.
    pub(super) fn may_scrub(&mut self, pv: &Pv, sight: &Sight<'_>) -> Result<Medium, Held> {
        if let Some(job) = self.i.cluster.jobs.at_work(&pv.name) {
            return Err(Held::JobRunning(job.to_owned()));
        }
        match sight {
            Sight::Unseen(held) => return Err(held.clone()),
            Sight::Failing(what) => return Err(Held::Failing((*what).to_owned())),
            _ => {}
        }
        if let Some(what) = not_a_volume(sight, pv.mode) {
            return Err(Held::NotMounted(what));
        }
        let Sight::Entry(entry) = sight else {
            return Err(Held::NotMounted("the entry is gone".into()));
        };
        if let Some(user) = self.pod_mount(&pv.name, &entry.kind) {
            return Err(Held::InUse(user));
        }
        let found = self.matches(pv, &entry.kind);
        if !matches!(found, Match::Wrong { .. })
            && let Some(held) = defect(&entry.kind)
        {
            return Err(held);
        }
        match found {
            // What is there now is new, but the claim may have been used since: it is scrubbed like any other.
            Match::LostWithReboot => {}
            Match::Wrong { expected, found } => return Err(Held::WrongStorage { expected, found }),
            Match::Unknown(error) => return Err(Held::IdentityUnknown(error)),
            Match::Right => {}
        }
        match &entry.kind {
            EntryKind::Mount(mount) => {
                if !mount.nested.is_empty() {
                    return Err(Held::NestedMounts(
                        mount.nested.iter().map(|point| point.display().to_string()).collect(),
                    ));
                }
                self.rested(pv)?;
                Ok(Medium::Filesystem)
            }
            _ => Ok(Medium::Device),
        }
    }

    /// On a blind node a released filesystem is left alone for a discovery period: a pod that was killed by force may
    /// still be writing.
    fn rested(&mut self, pv: &Pv) -> Result<(), Held> {
        if !self.is_blind() {
            return Ok(());
        }
        let since = self.i.memory.released_since.get(&pv.uid).copied().unwrap_or(self.i.now);
        let due = since + self.i.limits.discovery_period;
        if due <= self.i.now {
            return Ok(());
        }
        self.wake(due);
        Err(Held::Resting("scrubbed when pods have had time to end".into()))
    }

    /// The command that a device was published with: of its PV, or of its class for a PV of the classic program.
    pub(super) fn cleaner_command(&self, pv: &Pv) -> Result<Vec<String>, Held> {
        let noted = pv.annotation(names::CLEANER).map(|noted| {
            serde_json::from_str::<Vec<String>>(noted).map_err(|error| {
                Held::CleanerUnavailable(format!("the PV's annotation {} is {noted:?}: {error}", names::CLEANER))
            })
        });
        let class = || self.i.config.classes.get(&pv.class)?.block_cleaner_command.clone();
        Ok(noted
            .transpose()?
            .or_else(class)
            .unwrap_or_else(|| vec!["zero".to_owned()]))
    }

    /// The cleaner that a device was published with. Whether it can be run is seen when it is.
    fn device_cleaner(&self, pv: &Pv) -> Result<(Cleaner, Vec<String>), Held> {
        let command = self.cleaner_command(pv)?;
        let cleaner = Cleaner::parse(&command).map_err(Held::CleanerUnavailable)?;
        Ok((cleaner, command))
    }

    /// The classic event at the start of a wipe.
    pub(super) fn start_notice(&mut self, pv: &Pv) {
        if pv.mode == VolumeMode::Block {
            let message = format!("Starting cleanup of Block PV {:?}, this may take a while", pv.name);
            self.notice(pv, Severity::Normal, "VolumeDelete", message);
        }
    }

    fn order(&mut self, pv: &Pv, key: &DirectoryKey, sight: &Sight<'_>, medium: Medium) -> State {
        let (kind, command) = match medium {
            Medium::Filesystem => (ScrubKind::Filesystem, Vec::new()),
            Medium::Device => match self.device_cleaner(pv) {
                Ok((cleaner, command)) => (ScrubKind::Device(cleaner), command),
                Err(held) => return State::Held(held),
            },
        };
        if self.slots == 0 {
            return State::Released; // The end of another scrub is a wake.
        }
        self.slots -= 1;
        match self.i.memory.scrubs.get(&pv.uid).map(|scrub| scrub.last_hold.clone()) {
            None => self.start_notice(pv),
            Some(Some(held)) => self.hold_notice(pv, &held),
            Some(None) => {}
        }
        let seen = match sight {
            Sight::Entry(entry) => seen_id(&entry.kind).cloned(),
            _ => None,
        };
        let expected = match sight {
            Sight::Entry(entry) if matches!(self.matches(pv, &entry.kind), Match::LostWithReboot) => seen,
            // What the operator has accepted is what is there now, not what may be there when the scrub starts.
            _ if adopted(pv) => seen,
            _ => {
                let noted = || pv.annotation(names::VOLUME_ID)?.parse::<VolumeId>().ok();
                noted().or(seen)
            }
        };
        let order = ScrubOrder {
            pv: PvRef::from(pv),
            claim_uid: pv.claim_uid().map(str::to_owned),
            directory: key.clone(),
            entry: pv.entry().unwrap_or_default().to_owned(),
            expected,
            kind,
            command,
            blind: self.is_blind(),
            capacity: pv.capacity.clone(),
        };
        self.act(&pv.name, Action::Scrub(Box::new(order)));
        State::Scrubbing(None)
    }
}
