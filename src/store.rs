//! The last known state of the API objects that concern this node, fed by the watches and by our own writes.
//!
//! Synchronous and without a client: a watch hands in what it saw, a writer hands in what the server answered. What is
//! kept of an object is only what is used.

mod jobs;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::storage::v1::StorageClass;

use crate::cluster::{Cluster, Node, Owner, Ownership, Pv, Use};

/// How many ended PVs are remembered: more than one node recycles while a watch lags.
const ENDED: usize = 1024;

/// What the watches have shown so far.
#[derive(Debug, Default)]
pub struct Store {
    cluster: Cluster,
    ownership: Option<Ownership>,
    /// `useNodeNameOnly`.
    node_name_only: bool,
    /// PVs listed since the last restart of their watch, until the list is complete.
    relist: Option<BTreeMap<String, Pv>>,
    /// PVs that the watch does not show any more, or that a write met: to be read by name before anything is concluded.
    doubtful: BTreeSet<String>,
    /// How often the watch of PVs may have missed changes.
    gaps: u64,
    /// Counts changes that matter to anybody.
    version: u64,
    /// PVs that ended since the loop last asked, as they were last seen.
    endings: Vec<Pv>,
    /// UIDs of PVs that ended lately: a watch that lags behind our own writes must not bring them back.
    ended: VecDeque<String>,
    pvs_listed: bool,
    classes_listed: bool,
    jobs_listed: bool,
    /// Jobs that the watch does not show any more, and their UIDs: to be read by name before they are taken for gone.
    doubtful_jobs: BTreeMap<String, String>,
    former_listed: bool,
}

impl Store {
    /// What is known of the cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// How own PVs are told from others, once the Node is known.
    #[must_use]
    pub fn ownership(&self) -> Option<&Ownership> {
        self.ownership.as_ref()
    }

    /// How often changes of PVs may have been missed.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// What is still to be listed; empty once everything that decisions need is known.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<&'static str> {
        [
            (self.cluster.node.is_some(), "the node"),
            (self.pvs_listed, "PersistentVolumes"),
            (self.former_listed, "PersistentVolumes without our label"),
            (self.classes_listed, "StorageClasses"),
            (self.jobs_listed, "Jobs"),
        ]
        .into_iter()
        .filter_map(|(known, what)| (!known).then_some(what))
        .collect()
    }

    /// PVs to be read by name, which are then handed to [`Store::read_by_name`].
    #[must_use]
    pub fn doubtful(&self) -> &BTreeSet<String> {
        &self.doubtful
    }

    /// A write or a watch says that what is known of this PV may be out of date.
    pub fn doubt(&mut self, name: &str) {
        self.version += 1;
        self.doubtful.insert(name.to_owned());
    }

    /// Counts the changes: another number, another store.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The own Node as read or watched.
    pub fn node(&mut self, node: &core::Node) {
        let node = Node::from(node);
        if self.cluster.node.as_ref() != Some(&node) {
            self.cluster.node = Some(node);
            self.identify();
        }
    }

    /// `useNodeNameOnly`, as configured now.
    pub fn use_node_name_only(&mut self, only: bool) {
        if self.node_name_only != only {
            self.node_name_only = only;
            self.identify();
        }
    }

    fn identify(&mut self) {
        self.version += 1;
        self.ownership = self.cluster.node.as_ref().and_then(|node| {
            Some(Ownership {
                node_name: node.name.clone(),
                node_uid: node.uid.clone(),
                hostname: node.hostname()?.to_owned(),
                node_name_only: self.node_name_only,
            })
        });
    }

    /// PVs are listed for another hostname label: until that is done, nothing is known.
    pub fn pvs_unknown(&mut self) {
        self.version += 1;
        self.pvs_listed = false;
        self.former_listed = false;
    }

    /// Own PVs that a watch by our label does not show: foreign ones in our way, and those without the label.
    #[must_use]
    pub fn unwatched(&self) -> Vec<String> {
        let hostname = self.ownership.as_ref().map(|ownership| ownership.hostname.as_str());
        let unwatched = self
            .cluster
            .pvs
            .values()
            .filter(|pv| pv.node_label.as_deref() != hostname);
        unwatched.map(|pv| pv.name.clone()).collect()
    }

    /// Whether a PV concerns this node: ours, or tied to this host.
    fn concerns_us(&self, pv: &Pv) -> bool {
        self.ownership.as_ref().is_some_and(|ownership| {
            ownership.of(pv) != Owner::Foreign || (pv.path.is_some() && pv.hostnames.contains(&ownership.hostname))
        })
    }

    /// The watch of PVs starts over: a list follows.
    pub fn pvs_restart(&mut self) {
        self.gaps += 1;
        self.relist = Some(BTreeMap::new());
    }

    /// A PV of the list.
    pub fn pv_listed(&mut self, pv: &core::PersistentVolume) {
        let pv = Pv::from(pv);
        if self.concerns_us(&pv)
            && let Some(relist) = &mut self.relist
        {
            relist.insert(pv.name.clone(), pv);
        }
    }

    /// The list is complete.
    pub fn pvs_complete(&mut self) {
        self.version += 1;
        self.gaps += 1;
        self.pvs_listed = true;
        let Some(listed) = self.relist.take() else { return };
        for name in self.cluster.pvs.keys() {
            if !listed.contains_key(name) {
                self.doubtful.insert(name.clone());
            }
        }
        for pv in listed.into_values() {
            self.put(pv);
        }
    }

    /// A PV was added or changed, by the watch or as a write's answer.
    pub fn pv_changed(&mut self, pv: &core::PersistentVolume) {
        let pv = Pv::from(pv);
        if self.concerns_us(&pv) {
            self.put(pv);
        } else if self.cluster.pvs.contains_key(&pv.name) {
            self.doubt(&pv.name);
        }
    }

    /// A PV that a listing has met: kept if it concerns us.
    pub fn pv_found(&mut self, pv: &core::PersistentVolume) {
        let pv = Pv::from(pv);
        if self.concerns_us(&pv) {
            self.put(pv);
        }
    }

    /// A PV that we have made, and how often changes may have been missed when the call began: a list that was read
    /// since may have been read after its end, and would never show that.
    pub fn pv_made(&mut self, pv: &core::PersistentVolume, gaps: u64) {
        self.pv_changed(pv);
        if gaps != self.gaps {
            self.doubt(pv.metadata.name.as_deref().unwrap_or_default());
        }
    }

    fn put(&mut self, pv: Pv) {
        if self.ended.contains(&pv.uid) {
            return;
        }
        let newer = |known: &Pv| known.uid != pv.uid || revision(&pv) >= revision(known);
        if self.cluster.pvs.get(&pv.name).is_none_or(newer) {
            self.insert(pv);
        }
    }

    fn insert(&mut self, mut pv: Pv) {
        self.version += 1;
        self.cluster.names_taken.remove(&pv.name);
        if let Some(known) = self.cluster.pvs.get(&pv.name) {
            pv.seen_used = known.uid == pv.uid && known.usage(true) == Use::Used;
        }
        let uid = pv.uid.clone();
        if let Some(former) = self.cluster.pvs.insert(pv.name.clone(), pv)
            && former.uid != uid
        {
            self.end(former);
        }
    }

    fn end(&mut self, pv: Pv) {
        self.version += 1;
        self.ended.push_back(pv.uid.clone());
        if self.ended.len() > ENDED {
            self.ended.pop_front();
        }
        self.endings.push(pv);
    }

    /// PVs that ended since this was last asked, as they were last seen.
    pub fn take_endings(&mut self) -> Vec<Pv> {
        std::mem::take(&mut self.endings)
    }

    /// The watch does not show a PV any more. Only an object that was being deleted and has no finalizer left is known
    /// to be gone by that; any other may merely have lost its label.
    pub fn pv_left_watch(&mut self, pv: &core::PersistentVolume) {
        let pv = Pv::from(pv);
        let known = self.cluster.pvs.get(&pv.name).filter(|known| known.uid == pv.uid);
        if known.is_none() {
            return;
        }
        if pv.deleting && pv.finalizers.is_empty() {
            self.pv_gone(&pv.name, &pv.uid);
        } else {
            self.doubt(&pv.name);
        }
    }

    /// A write's answer says that the PV is gone.
    pub fn pv_gone(&mut self, name: &str, uid: &str) {
        if self.cluster.pvs.get(name).is_some_and(|known| known.uid == uid)
            && let Some(pv) = self.cluster.pvs.remove(name)
        {
            self.end(pv);
        }
    }

    /// What reading a PV by its name has shown.
    pub fn read_by_name(&mut self, name: &str, found: Option<&core::PersistentVolume>) {
        self.doubtful.remove(name);
        self.version += 1;
        match found {
            None => {
                self.cluster.names_taken.remove(name);
                if let Some(pv) = self.cluster.pvs.remove(name) {
                    self.end(pv);
                }
            }
            Some(found) => {
                let pv = Pv::from(found);
                if self.concerns_us(&pv) {
                    self.read(pv);
                } else {
                    if let Some(former) = self.cluster.pvs.remove(name) {
                        self.end(former);
                    }
                    self.cluster.names_taken.insert(name.to_owned());
                }
            }
        }
    }

    /// A reading, which the watch may have overtaken.
    fn read(&mut self, pv: Pv) {
        if let Some(at) = self.ended.iter().position(|uid| *uid == pv.uid) {
            // The reading began before the end, or the end was none: another reading tells.
            self.ended.remove(at);
            self.doubt(&pv.name);
        }
        self.put(pv);
    }

    /// PVs that the label-scoped watch cannot see were looked for.
    pub fn former_listed(&mut self) {
        self.version += 1;
        self.former_listed = true;
    }

    /// The StorageClasses, all of them.
    pub fn classes(&mut self, classes: &BTreeMap<String, StorageClass>) {
        self.version += 1;
        self.classes_listed = true;
        self.cluster.storage_classes = classes
            .iter()
            .map(|(name, class)| (name.clone(), class.into()))
            .collect();
    }

    /// StorageClasses of a dry run without a cluster.
    pub fn assume_classes(&mut self, classes: BTreeMap<String, crate::cluster::StorageClass>) {
        self.version += 1;
        self.classes_listed = true;
        self.cluster.storage_classes = classes;
    }
}

/// resourceVersions of one resource compare as numbers:
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions> (KEP-5504).
fn revision(pv: &Pv) -> u64 {
    number(&pv.resource_version)
}

fn number(resource_version: &str) -> u64 {
    resource_version.parse().unwrap_or(0)
}
