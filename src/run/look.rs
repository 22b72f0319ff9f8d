//! Looking at the node, and telling whether anything has changed since the last look.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::time::Instant;

use super::{Config, Daemon, Directories, Duration, Locks, Mode, Plan, Scanner, config, plan};
use crate::cluster::Jobs;
use crate::lock::LockError;
use crate::observed::{Directory, DirectoryKey, Observed};
use crate::plan::State;

/// The node's side: everything that may block on a disk lives on a thread of its own during a look.
pub(super) struct Eyes {
    pub(super) scanner: Scanner,
    pub(super) locks: Locks,
    pub(super) directories: Directories,
    pub(super) config_read: Option<Instant>,
}

/// What a look at the node has shown.
pub(super) struct Look {
    pub(super) observed: Observed,
    /// Directories that another provisioner holds, and how it says so.
    pub(super) locked_out: Vec<String>,
    /// The configuration, if it was read anew.
    pub(super) config: Option<config::Loaded>,
    /// inotify tells of changes of all the directories.
    pub(super) announced: bool,
}

/// What a look is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// To learn only: no locks, so that a process that is not connected, and may never be, keeps no other out.
    Learn,
    /// To act on it.
    Act,
}

/// A pass that found nothing to do and nothing to wait for, by what it was made from. A plan is a function of that: from
/// the same, another pass comes to the same.
pub(super) struct Calm {
    observed: Observed,
    /// Of the store.
    version: u64,
    config: Option<Config>,
    broken_classes: BTreeSet<String>,
    mode: Mode,
}

/// So many times as long as `--discovery-period` is the most that passes between two looks.
const LONGEST_PERIODS: u32 = 6;

impl Daemon {
    /// How long until the next look in any case. As long as looks show nothing new, each is a period later than the one
    /// before: what is announced is seen at once anyway, and the rest (sizes, counts of errors) keeps for a minute.
    pub(super) fn until_next_look(&self) -> Duration {
        let period = self.settings.limits.discovery_period;
        let announced = self.announced && self.mount_tables.is_some();
        period * if announced { 1 + self.calm_looks } else { 1 }
    }

    /// A look has shown nothing new, as so many in a row that the timer began.
    pub(super) fn nothing_changed(&mut self, looks: u32) {
        self.calm_looks = looks.min(LONGEST_PERIODS - 1);
        self.board.nothing_changed();
    }

    /// Whether nothing has changed since a pass that nothing came of. What a task has learnt is a change.
    pub(super) fn is_calm(&self, observed: &Observed, version: u64) -> bool {
        self.calm.as_ref().is_some_and(|calm| {
            calm.version == version
                && calm.mode == self.mode
                && calm.config == self.config
                && calm.broken_classes == self.broken_classes
                && calm.observed == *observed
        })
    }

    /// What another pass need not be made from: all volumes are as they shall be, and nothing is under way or awaited.
    pub(super) fn calm_after(
        &self,
        plan: &Plan,
        due: Option<Duration>,
        observed: Observed,
        version: u64,
    ) -> Option<Calm> {
        let settled = |volume: &plan::Volume| {
            matches!(volume.state, State::Available | State::Bound | State::Ignored(_)) && volume.warning.is_none()
        };
        let calm = due.is_none()
            && plan.actions.is_empty()
            && plan.events.is_empty()
            && plan.volumes.iter().all(settled)
            && self.tasks.is_empty()
            && self.running.is_empty()
            && self.jobs.nothing_to_ask();
        let store = self.shared.store();
        let no_jobs =
            matches!(&store.cluster().jobs, Jobs::Read(jobs) | Jobs::Unreadable { left: jobs, .. } if jobs.is_empty());
        (calm && no_jobs).then(|| Calm {
            observed,
            version,
            config: self.config.clone(),
            broken_classes: self.broken_classes.clone(),
            mode: self.mode,
        })
    }

    /// All that decisions need of the API server is known.
    pub(super) fn is_informed(&self) -> bool {
        self.shared.store().waiting_for().is_empty()
    }

    /// Looks at the node, and takes in what that shows of the configuration and the directories.
    pub(super) async fn look_around(&mut self) -> anyhow::Result<Observed> {
        let mut look = self.look().await?;
        self.announced = look.announced;
        self.locked_out = look.locked_out;
        if let Some(loaded) = look.config {
            self.take_config(loaded);
        }
        self.note_directories(&mut look.observed);
        self.show_look(&look.observed);
        Ok(look.observed)
    }

    /// Begins to look at the node, on a thread where blocking is allowed; with the intent to act on what that shows, the
    /// directories are locked.
    pub(super) fn begin_look(&mut self, intent: Intent) -> anyhow::Result<()> {
        let mut eyes = self.eyes.take().context("a look was lost")?;
        let config = self.config.clone().unwrap_or_default();
        let informed = self.is_informed();
        let (keys, published) = {
            let store = self.shared.store();
            let pvs = store.cluster().pvs.values().filter_map(|pv| pv.path.clone());
            // A pod may still use what a PV that is gone stood for.
            let published: HashSet<PathBuf> = pvs.chain(self.memory.gone.keys().cloned()).collect();
            (
                plan::directories(&config, store.cluster()),
                informed.then_some(published),
            )
        };
        let config_dir = self.settings.config_dir.clone();
        let period = self.settings.limits.discovery_period;
        self.looking = Some(tokio::task::spawn_blocking(move || {
            let look = look(&mut eyes, &keys, published.as_ref(), &config_dir, period, intent);
            (eyes, look)
        }));
        Ok(())
    }

    /// Looks at the node, or waits for the look that was begun.
    pub(super) async fn look(&mut self) -> anyhow::Result<Look> {
        if self.looking.is_none() {
            self.begin_look(Intent::Act)?;
        }
        let looking = self.looking.take().context("a look was lost")?;
        let (eyes, look) = looking.await.context("the look at the node failed")?;
        self.eyes = Some(eyes);
        Ok(look)
    }
}

/// A look at the node: everything in here may block. As long as it is not known what is published, no device is opened
/// exclusively.
fn look(
    eyes: &mut Eyes,
    keys: &[DirectoryKey],
    published: Option<&HashSet<PathBuf>>,
    config_dir: &Path,
    discovery_period: Duration,
    intent: Intent,
) -> Look {
    eyes.directories.follow_config(config_dir);
    // Changes are announced by inotify, where there is one; otherwise the safety timer has to do.
    let overdue = eyes.config_read.is_none_or(|read| read.elapsed() >= discovery_period);
    let config = (eyes.directories.take_config_changed() || overdue).then(|| {
        eyes.config_read = Some(Instant::now());
        config::load_directory(config_dir)
    });
    let may_probe = |path: &Path| published.is_some_and(|published| !published.contains(path));
    let mut observed = eyes
        .scanner
        .scan(keys, &|key, name| may_probe(&key.host_dir.join(name)));
    let mut locked_out = Vec::new();
    // Only of directories that have just answered: nothing here has a deadline.
    for (key, directory) in &mut observed.directories {
        if intent == Intent::Learn || !matches!(directory, Directory::Read(_)) {
            continue;
        }
        match eyes.locks.acquire(&key.mount_dir) {
            Ok(()) => {}
            Err(error @ LockError::HeldByAnother { .. }) => locked_out.push(error.to_string()),
            // Nothing is known of a directory that may be another's by now.
            Err(error) => *directory = Directory::Unreadable(error.to_string()),
        }
    }
    let answered = |key: &&DirectoryKey| {
        let unreadable = |directory: &Directory| matches!(directory, Directory::Unreadable(_));
        !observed.directories.get(*key).is_some_and(unreadable)
    };
    let paths = keys.iter().filter(answered).map(|key| key.mount_dir.as_path());
    let paths: BTreeSet<&Path> = paths.collect();
    eyes.directories.forget_missing(&paths);
    let announced = eyes.directories.follow(paths.into_iter());
    Look {
        observed,
        locked_out,
        config,
        announced,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use testkit::mounts::LoopDevice;

    use super::*;
    use crate::observed::EntryKind;

    #[test]
    fn only_devices_that_are_known_as_unpublished_are_opened_exclusively() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: needs root for loop devices");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let device = LoopDevice::with_file(&dir.path().join("file"), 1 << 20).unwrap();
        let disks = dir.path().join("disks");
        std::fs::create_dir(&disks).unwrap();
        std::os::unix::fs::symlink(device.path(), disks.join("disk1")).unwrap();
        let mut eyes = Eyes {
            scanner: Scanner::new(crate::scan::ScanSettings::default()),
            locks: Locks::default(),
            directories: Directories::new(Arc::default(), dir.path()),
            config_read: None,
        };
        let key = DirectoryKey::new("c", "/host", &disks);
        // Who uses it is only known if it was.
        let mut was_opened = |published: Option<HashSet<PathBuf>>| {
            let (published, period) = (published.as_ref(), Duration::from_secs(10));
            let keys = std::slice::from_ref(&key);
            let look = look(&mut eyes, keys, published, dir.path(), period, Intent::Learn);
            match &look.observed.directories[&key] {
                Directory::Read(entries) => match &entries[0].kind {
                    EntryKind::Device(facts) => facts.users.is_some(),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        };
        assert!(!was_opened(None));
        assert!(!was_opened(Some(["/host/disk1".into()].into())));
        assert!(was_opened(Some(HashSet::new())));
        assert!(!was_opened(Some(["/host/disk1".into()].into())));
    }
}
