//! PersistentVolumes and claims as an API server and the controllers of a cluster treat them.

use std::collections::{BTreeMap, VecDeque};

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use local_volume_provisioner::names;
use local_volume_provisioner::plan::{PvPatch, PvRef};

/// What a watch of all PVs shows.
#[derive(Debug, Clone)]
pub enum Seen {
    Changed(PersistentVolume),
    Gone(PersistentVolume),
}

#[derive(Debug, Clone)]
pub struct Claim {
    pub uid: String,
    pub volume: String,
}

#[derive(Debug, PartialEq)]
pub enum Refused {
    Conflict,
    Absent,
    Exists,
}

#[derive(Default)]
pub struct Api {
    pub pvs: BTreeMap<String, PersistentVolume>,
    pub claims: BTreeMap<String, Claim>,
    pub watch: VecDeque<Seen>,
    pub seconds: i64,
    version: u64,
}

pub fn annotation<'a>(pv: &'a PersistentVolume, key: &str) -> Option<&'a str> {
    Some(pv.metadata.annotations.as_ref()?.get(key)?.as_str())
}

pub fn phase(pv: &PersistentVolume) -> &str {
    pv.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

pub fn is_terminating(pv: &PersistentVolume) -> bool {
    pv.metadata.deletion_timestamp.is_some()
}

pub fn claim_ref(pv: &PersistentVolume) -> Option<&ObjectReference> {
    pv.spec.as_ref()?.claim_ref.as_ref()
}

fn claim_uid(pv: &PersistentVolume) -> &str {
    claim_ref(pv)
        .and_then(|reference| reference.uid.as_deref())
        .unwrap_or_default()
}

impl Api {
    fn time(&self) -> Time {
        Time(Timestamp::from_second(1_700_000_000 + self.seconds).unwrap())
    }

    /// Stores an object, or ends it if nothing keeps it.
    fn put(&mut self, mut pv: PersistentVolume) -> Option<PersistentVolume> {
        let name = pv.metadata.name.clone().unwrap();
        if self.pvs.get(&name) == Some(&pv) {
            return Some(pv);
        }
        self.version += 1;
        pv.metadata.resource_version = Some(self.version.to_string());
        let kept = !pv.metadata.finalizers.as_ref().is_none_or(Vec::is_empty);
        if is_terminating(&pv) && !kept {
            self.pvs.remove(&name);
            self.watch.push_back(Seen::Gone(pv));
            return None;
        }
        self.pvs.insert(name, pv.clone());
        self.watch.push_back(Seen::Changed(pv.clone()));
        Some(pv)
    }

    pub fn edit(&mut self, name: &str, change: impl FnOnce(&mut PersistentVolume)) {
        if let Some(mut pv) = self.pvs.get(name).cloned() {
            change(&mut pv);
            self.put(pv);
        }
    }

    pub fn create(&mut self, pv: &PersistentVolume) -> Result<PersistentVolume, Refused> {
        let name = pv.metadata.name.clone().unwrap();
        if self.pvs.contains_key(&name) {
            return Err(Refused::Exists);
        }
        let mut pv = pv.clone();
        pv.metadata.uid = Some(format!("pv-uid-{}", self.version));
        pv.metadata.creation_timestamp = Some(self.time());
        pv.metadata
            .finalizers
            .get_or_insert_default()
            .push(names::PV_PROTECTION.into());
        Ok(self.put(pv).unwrap())
    }

    fn as_it_was(&self, pv: &PvRef) -> Result<PersistentVolume, Refused> {
        let found = self.pvs.get(&pv.name).ok_or(Refused::Absent)?;
        let same = found.metadata.resource_version.as_deref() == Some(&pv.resource_version);
        same.then(|| found.clone()).ok_or(Refused::Conflict)
    }

    pub fn patch(&mut self, pv: &PvRef, patch: &PvPatch) -> Result<PersistentVolume, Refused> {
        let mut pv = self.as_it_was(pv)?;
        let meta = &mut pv.metadata;
        if let Some(label) = &patch.node_label {
            let labels = meta.labels.get_or_insert_default();
            labels.insert(names::NODE_LABEL.into(), label.clone());
        }
        for (key, value) in &patch.annotations {
            let annotations = meta.annotations.get_or_insert_default();
            match value {
                Some(value) => drop(annotations.insert(key.clone(), value.clone())),
                None => drop(annotations.remove(key)),
            }
        }
        if let Some(finalizers) = &patch.finalizers {
            let had = meta.finalizers.clone().unwrap_or_default();
            let adds = finalizers.iter().any(|finalizer| !had.contains(finalizer));
            assert!(
                !(adds && meta.deletion_timestamp.is_some()),
                "the server refuses finalizers on what is being deleted"
            );
            meta.finalizers = Some(finalizers.clone());
        }
        let answer = pv.clone();
        Ok(self.put(pv).unwrap_or(answer))
    }

    /// `None`: it is gone.
    pub fn delete(&mut self, pv: &PvRef) -> Result<Option<PersistentVolume>, Refused> {
        self.as_it_was(pv)?;
        self.delete_by_hand(&pv.name);
        Ok(self.pvs.get(&pv.name).cloned())
    }

    pub fn delete_by_hand(&mut self, name: &str) {
        let time = self.time();
        self.edit(name, |pv| {
            pv.metadata.deletion_timestamp.get_or_insert(time);
        });
    }

    /// The scheduler's half of a binding.
    pub fn prebind(&mut self, volume: &str, claim: &str, uid: &str) {
        let made = Claim {
            uid: uid.into(),
            volume: String::new(),
        };
        self.claims.insert(claim.into(), made);
        self.edit(volume, |pv| {
            let annotations = pv.metadata.annotations.get_or_insert_default();
            annotations.insert(names::BOUND_BY_CONTROLLER.into(), "yes".into());
            pv.spec.as_mut().unwrap().claim_ref = Some(ObjectReference {
                namespace: Some("default".into()),
                name: Some(claim.into()),
                uid: Some(uid.into()),
                ..ObjectReference::default()
            });
        });
    }

    fn set_phase(&mut self, name: &str, to: &str) {
        let time = self.time();
        self.edit(name, |pv| {
            if phase(pv) != to {
                pv.status = Some(PersistentVolumeStatus {
                    phase: Some(to.into()),
                    last_phase_transition_time: Some(time),
                    ..PersistentVolumeStatus::default()
                });
            }
        });
    }

    /// The controllers of PersistentVolumes and of their protection.
    pub fn reconcile(&mut self) {
        for name in self.pvs.keys().cloned().collect::<Vec<_>>() {
            self.sync_volume(&name);
        }
        for (name, claim) in self.claims.clone() {
            self.sync_claim(&name, &claim);
        }
    }

    fn sync_volume(&mut self, name: &str) {
        let pv = self.pvs[name].clone();
        let reference = claim_ref(&pv).and_then(|reference| reference.name.clone());
        let claim = reference.and_then(|claim| self.claims.get(&claim));
        match (claim_uid(&pv), claim.filter(|claim| claim.uid == claim_uid(&pv))) {
            ("", _) => self.set_phase(name, "Available"),
            (_, Some(claim)) if claim.volume == name => self.set_phase(name, "Bound"),
            (_, Some(claim)) if claim.volume.is_empty() => {}
            (_, Some(_)) => {
                self.edit(name, |pv| {
                    pv.spec.as_mut().unwrap().claim_ref = None;
                    let annotations = pv.metadata.annotations.get_or_insert_default();
                    annotations.remove(names::BOUND_BY_CONTROLLER);
                });
                self.set_phase(name, "Available");
            }
            (_, None) if !matches!(phase(&pv), "Failed" | "Released") => self.set_phase(name, "Released"),
            (_, None) => {
                let policy = pv.spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref();
                if policy == Some("Delete") && annotation(&pv, names::PROVISIONED_BY).is_none() {
                    self.set_phase(name, "Failed");
                }
            }
        }
        let pv = &self.pvs[name];
        if is_terminating(pv) && phase(pv) != "Bound" {
            self.edit(name, |pv| {
                let finalizers = pv.metadata.finalizers.get_or_insert_default();
                finalizers.retain(|finalizer| finalizer != names::PV_PROTECTION);
            });
        }
    }

    fn sync_claim(&mut self, name: &str, claim: &Claim) {
        let mine = |pv: &&PersistentVolume| match claim_ref(pv) {
            Some(reference) => reference.name.as_deref() == Some(name) && claim_uid(pv) == claim.uid,
            None => !claim.volume.is_empty(), // A Lost claim takes its volume's successor.
        };
        let volume = if claim.volume.is_empty() {
            self.pvs.values().find(|pv| mine(pv) && !is_terminating(pv))
        } else {
            self.pvs.get(&claim.volume).filter(mine)
        };
        let Some(volume) = volume.and_then(|pv| pv.metadata.name.clone()) else {
            return;
        };
        if claim_ref(&self.pvs[&volume]).is_none() {
            self.prebind(&volume, name, &claim.uid);
        }
        self.set_phase(&volume, "Bound");
        self.claims.get_mut(name).unwrap().volume = volume;
    }
}
