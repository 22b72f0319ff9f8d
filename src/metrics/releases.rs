//! Releases under way: from the moment that this process saw one to the moment that its volume is available again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cluster::{Cluster, Owner, Ownership, Pv};
use crate::memory::Memory;
use crate::plan::{Plan, State, Volume};
use crate::reason::{Held, Ignored};

/// By the path of the volume on the node: the PV of that path goes, and another comes.
#[derive(Default)]
pub(super) struct Releases(BTreeMap<PathBuf, Seen>);

struct Seen {
    /// UID of the PV that was released.
    pv: String,
    at: Instant,
    /// The same as a Unix time.
    time: Duration,
}

impl Releases {
    /// Takes in a pass, and returns how long those took that have come to their end.
    #[must_use]
    pub(super) fn note(
        &mut self,
        plan: &Plan,
        cluster: &Cluster,
        ownership: &Ownership,
        memory: &Memory,
    ) -> Vec<Duration> {
        if self.0.is_empty() && memory.released_since.is_empty() {
            return Vec::new();
        }
        let kept = plan.volumes.iter().filter(|volume| is_kept(&volume.state));
        let kept: HashSet<&str> = kept.filter_map(|volume| volume.pv.as_deref()).collect();
        let on_its_way = |volume: &&Volume| !volume.published && may_be_published(&volume.state);
        let unpublished: HashSet<PathBuf> = plan.volumes.iter().filter(on_its_way).map(path).collect();
        let own = cluster.pvs.values().filter(|pv| ownership.of(pv) == Owner::Ours);
        let own: HashMap<&Path, &Pv> = own.filter_map(|pv| Some((pv.path.as_deref()?, pv))).collect();
        let released = |pv: &Pv| {
            memory.released_since.contains_key(&pv.uid) && pv.claim.is_some() && !kept.contains(pv.name.as_str())
        };
        let mut took = Vec::new();
        self.0.retain(|path, seen| match own.get(path.as_path()) {
            Some(pv) if released(pv) => true,
            // The watch may show the new one before its creation is answered.
            Some(pv) if pv.uid != seen.pv && !pv.deleting => {
                took.push(seen.at.elapsed());
                false
            }
            Some(_) => false,
            None => unpublished.contains(path),
        });
        for (path, pv) in own.into_iter().filter(|(_, pv)| released(pv)) {
            let seen = self.0.entry(path.to_owned()).or_insert_with(|| Seen {
                pv: String::new(),
                at: Instant::now(),
                time: now(),
            });
            seen.pv.clone_from(&pv.uid);
        }
        took
    }

    /// A PV of this path was created: how long ago its volume was released, if it was and that is not known yet.
    pub(super) fn available(&mut self, path: &Path) -> Option<Duration> {
        self.0.remove(path).map(|seen| seen.at.elapsed())
    }

    /// Whether a volume is between two PVs.
    pub(super) fn between(&self, volume: &Volume) -> bool {
        !volume.published && self.0.contains_key(&path(volume))
    }

    /// When the one that waits longest was seen, as a Unix time.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.0.values().map(|seen| seen.time).min()
    }
}

/// What waits for the operator's word on data that is kept is on no way back.
fn is_kept(state: &State) -> bool {
    matches!(
        state,
        State::Held(Held::Retain | Held::RetainDeleting | Held::Kept | Held::UnknownUse)
    )
}

/// What has no PV now and is meant to have one.
fn may_be_published(state: &State) -> bool {
    match state {
        State::Ignored(reason) => matches!(reason, Ignored::InUse(_)),
        State::Vanished(_) => false,
        _ => true,
    }
}

fn path(volume: &Volume) -> PathBuf {
    volume.directory.host_dir.join(&volume.entry)
}

/// The Unix time.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
