//! One look at the node: every entry of every discovery directory, and what it is.
//!
//! Whatever may block runs under a deadline, per directory and per entry ([`crate::probe`]). Nothing is written, nothing
//! is mounted by looking (no automount is triggered), and of the entries only directories and block devices are opened.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use crate::devices::sysfs::attached_loops;
use crate::devices::users::{AttachedLoop, Surroundings, parse_swaps};
use crate::mounts::{self, Mount, Nesting};
use crate::observed::{Directory, DirectoryKey, Entry, EntryKind, HostView, Observed};
use crate::probe::{Outcome, Prober, Work};

mod entry;

/// Where to look, and how long to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanSettings {
    /// `--syscall-timeout`: how long one directory or entry may take.
    pub syscall_timeout: Duration,
    /// `--host-mountinfo`: where the host's `/proc/1/mountinfo` is mounted.
    pub host_mountinfo: PathBuf,
    /// The mount table of this process. A thread in a mount namespace of its own has another.
    pub own_mountinfo: PathBuf,
    /// Root of /sys.
    pub sysfs: PathBuf,
}

impl Default for ScanSettings {
    fn default() -> Self {
        Self {
            // The documented default of the flag.
            syscall_timeout: Duration::from_secs(5),
            host_mountinfo: "/host/mountinfo".into(),
            own_mountinfo: "/proc/self/mountinfo".into(),
            sysfs: "/sys".into(),
        }
    }
}

/// A thing that may hang.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Thing {
    Directory(Arc<DirectoryKey>),
    Entry(Arc<DirectoryKey>, OsString),
    Loop(String),
}

/// Looks at the node, and remembers between looks what hangs.
#[derive(Debug)]
pub struct Scanner {
    settings: ScanSettings,
    prober: Prober<Thing>,
    boot_id: String,
}

/// A directory that was opened and read.
struct Listing {
    fd: OwnedFd,
    /// Of the mount that the directory is in.
    mount_id: u64,
    names: Vec<OsString>,
}

/// Where reading a directory ended early.
enum Unlisted {
    Missing,
    Unreadable(String),
}

/// An entry to look at.
struct Task {
    key: Arc<DirectoryKey>,
    listing: Arc<Listing>,
    name: OsString,
    probe: bool,
}

/// What looking at an entry has shown.
struct Seen {
    /// `None` if it went since the directory was read.
    kind: Option<EntryKind>,
    /// The mount that it is the root of.
    mount_id: Option<u64>,
}

/// The mount table of this process at one moment.
#[derive(Default)]
struct OwnTable {
    text: Vec<u8>,
    mounts: Vec<Mount>,
    by_id: HashMap<u64, usize>,
}

impl OwnTable {
    fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read(path)?;
        let mounts = mounts::parse(&text);
        let by_id = mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| (mount.mount_id, index))
            .collect();
        Ok(Self { text, mounts, by_id })
    }

    fn get(&self, mount_id: u64) -> Option<&Mount> {
        self.mounts.get(*self.by_id.get(&mount_id)?)
    }
}

/// All that is known besides the entry itself when one is looked at.
struct Context {
    table: OwnTable,
    table_path: PathBuf,
    around: Surroundings,
}

impl Scanner {
    /// A scanner with nothing known to hang.
    #[must_use]
    pub fn new(settings: ScanSettings) -> Self {
        let prober = Prober::new(settings.syscall_timeout);
        Self {
            settings,
            prober,
            boot_id: String::new(),
        }
    }

    /// How many directories, entries and loop devices hang in a system call now.
    #[must_use]
    pub fn unresponsive(&self) -> usize {
        self.prober.stuck()
    }

    /// One look at these directories. Blocks; call it where that is allowed.
    ///
    /// `probe` says of an entry whether its device may be opened exclusively and searched for signatures, which must not
    /// happen to a published one.
    pub fn scan(&mut self, directories: &[DirectoryKey], probe: &dyn Fn(&DirectoryKey, &OsStr) -> bool) -> Observed {
        self.read_boot_id();
        let (host, host_mounts) = read_host(&self.settings.host_mountinfo);
        let (mut read, tasks) = self.list(directories, probe);
        let mut seen: BTreeMap<DirectoryKey, Vec<Entry>> = BTreeMap::new();
        match OwnTable::read(&self.settings.own_mountinfo) {
            Ok(table) => {
                let nesting = [Nesting::new(&table.mounts), Nesting::new(&host_mounts)];
                for (task, kind) in self.look(&tasks, table, &host_mounts) {
                    let entry = Entry {
                        name: task.name.clone(),
                        kind: with_nested(kind, &nesting),
                    };
                    seen.entry(DirectoryKey::clone(&task.key)).or_default().push(entry);
                }
            }
            Err(error) => {
                // Without it no mount can be told from a directory.
                let text = format!("cannot read {}: {error}", self.settings.own_mountinfo.display());
                for directory in read
                    .values_mut()
                    .filter(|directory| matches!(directory, Directory::Read(_)))
                {
                    *directory = Directory::Unreadable(text.clone());
                }
            }
        }
        for (key, entries) in seen {
            read.insert(key, Directory::Read(entries));
        }
        Observed {
            directories: read,
            host,
            boot_id: self.boot_id.clone(),
        }
    }

    /// It does not change while the machine runs.
    fn read_boot_id(&mut self) {
        if self.boot_id.is_empty() {
            self.boot_id = boot_id();
        }
    }

    /// Reads the directories. What was read is in the answer without entries; these are the tasks.
    fn list(
        &mut self,
        directories: &[DirectoryKey],
        probe: &dyn Fn(&DirectoryKey, &OsStr) -> bool,
    ) -> (BTreeMap<DirectoryKey, Directory>, Vec<Task>) {
        let items = directories
            .iter()
            .map(|key| {
                let path = key.mount_dir.clone();
                let work: Work<_> = Box::new(move || entry::list(&path));
                (Thing::Directory(Arc::new(key.clone())), work)
            })
            .collect();
        let mut read = BTreeMap::new();
        let mut tasks = Vec::new();
        for (key, (_, outcome)) in directories.iter().zip(self.prober.run(items)) {
            let directory = match outcome {
                Outcome::Done(Ok(mut listing)) => {
                    let names = std::mem::take(&mut listing.names);
                    let (key, listing) = (Arc::new(key.clone()), Arc::new(listing));
                    tasks.extend(names.into_iter().map(|name| Task {
                        probe: probe(&key, &name),
                        key: Arc::clone(&key),
                        listing: Arc::clone(&listing),
                        name,
                    }));
                    Directory::Read(Vec::new())
                }
                Outcome::Done(Err(Unlisted::Missing)) => Directory::Missing,
                Outcome::Done(Err(Unlisted::Unreadable(error))) | Outcome::Unresponsive(error) => {
                    Directory::Unreadable(error)
                }
            };
            read.insert(key.clone(), directory);
        }
        (read, tasks)
    }

    /// Looks at the entries. Those that went meanwhile are left out.
    ///
    /// The mount table is read before. One that changed meanwhile may have given an id to another mount, so the entries
    /// that are roots of mounts that came, went or changed are looked at once more with the new one.
    fn look<'a>(&mut self, tasks: &'a [Task], table: OwnTable, host: &[Mount]) -> Vec<(&'a Task, EntryKind)> {
        let loops = if tasks.iter().any(|task| task.probe) {
            self.loops()
        } else {
            Vec::new()
        };
        let mut context = Arc::new(self.context(table, host, loops));
        let all: Vec<&Task> = tasks.iter().collect();
        let mut results: Vec<(&Task, Seen)> = self.look_once(&all, &context);

        if let Ok(after) = OwnTable::read(&self.settings.own_mountinfo)
            && after.text != context.table.text
        {
            let outdated = |seen: &Seen| {
                seen.mount_id.is_some_and(|id| {
                    let (before, after) = (context.table.get(id), after.get(id));
                    before.is_none() || before != after
                })
            };
            let (again, mut settled): (Vec<_>, Vec<_>) = results.into_iter().partition(|(_, seen)| outdated(seen));
            if !again.is_empty() {
                let loops = context.around.loops.clone();
                context = Arc::new(self.context(after, host, loops));
                let again: Vec<&Task> = again.into_iter().map(|(task, _)| task).collect();
                settled.extend(self.look_once(&again, &context));
            }
            results = settled;
        }
        let mut entries: Vec<_> = results
            .into_iter()
            .filter_map(|(task, seen)| Some((task, seen.kind?)))
            .collect();
        entries.sort_by(|(left, _), (right, _)| (&left.key, &left.name).cmp(&(&right.key, &right.name)));
        entries
    }

    fn look_once<'a>(&mut self, tasks: &[&'a Task], context: &Arc<Context>) -> Vec<(&'a Task, Seen)> {
        let items = tasks
            .iter()
            .map(|task| {
                let (listing, name, probe) = (Arc::clone(&task.listing), task.name.clone(), task.probe);
                let context = Arc::clone(context);
                let work: Work<Seen> = Box::new(move || entry::look(&listing, &name, probe, &context));
                (Thing::Entry(Arc::clone(&task.key), task.name.clone()), work)
            })
            .collect();
        let outcomes = self.prober.run(items).into_iter().map(|(_, outcome)| match outcome {
            Outcome::Done(seen) => seen,
            Outcome::Unresponsive(text) => Seen {
                kind: Some(EntryKind::Unresponsive(text)),
                mount_id: None,
            },
        });
        tasks.iter().copied().zip(outcomes).collect()
    }

    fn context(&self, table: OwnTable, host: &[Mount], loops: Vec<AttachedLoop>) -> Context {
        let around = Surroundings {
            sysfs: self.settings.sysfs.clone(),
            boot_id: self.boot_id.clone(),
            mounts: table.mounts.iter().chain(host).cloned().collect(),
            loops,
            swaps: parse_swaps(&fs::read("/proc/swaps").unwrap_or_default()),
        };
        Context {
            table,
            table_path: self.settings.own_mountinfo.clone(),
            around,
        }
    }

    /// What every loop device is attached to. One whose backing file's filesystem is dead hangs, too.
    fn loops(&mut self) -> Vec<AttachedLoop> {
        let attached = attached_loops(&self.settings.sysfs);
        let items = attached
            .iter()
            .map(|(name, backing)| {
                let (thing, name, backing) = (Thing::Loop(name.clone()), name.clone(), backing.clone());
                let work: Work<AttachedLoop> =
                    Box::new(move || AttachedLoop::examine(&name, &backing, Path::new("/dev")));
                (thing, work)
            })
            .collect();
        let outcomes = self.prober.run(items).into_iter();
        let answered = outcomes
            .zip(&attached)
            .map(|((_, outcome), (name, backing))| match outcome {
                Outcome::Done(examined) => examined,
                Outcome::Unresponsive(_) => AttachedLoop::unexamined(name, backing),
            });
        answered.collect()
    }
}

/// The kernel's boot id (proc(5), /proc/sys/kernel/random/boot_id); empty if it cannot be read, which is another boot
/// than any.
#[must_use]
pub fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// What a device is examined against, read anew and without a deadline: for a scrub, which has a thread of its own.
#[must_use]
pub fn surroundings(settings: &ScanSettings) -> Surroundings {
    let own = OwnTable::read(&settings.own_mountinfo).unwrap_or_default();
    let (_, host) = read_host(&settings.host_mountinfo);
    let loops = attached_loops(&settings.sysfs);
    Surroundings {
        sysfs: settings.sysfs.clone(),
        boot_id: boot_id(),
        mounts: own.mounts.into_iter().chain(host).collect(),
        loops: loops
            .iter()
            .map(|(name, backing)| AttachedLoop::examine(name, backing, Path::new("/dev")))
            .collect(),
        swaps: parse_swaps(&fs::read("/proc/swaps").unwrap_or_default()),
    }
}

/// The host's mounts, and what they tell of pods. Whatever could hide a pod's mount makes the node blind.
#[must_use]
pub fn read_host(path: &Path) -> (HostView, Vec<Mount>) {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!(
                "{} does not exist; mount the host's /proc/1/mountinfo there",
                path.display()
            );
            return (HostView::Blind(reason), Vec::new());
        }
        Err(error) => {
            return (
                HostView::Blind(format!("cannot read {}: {error}", path.display())),
                Vec::new(),
            );
        }
    };
    let (mounts, skipped) = mounts::parse_counting(&text);
    let view = match (mounts.len(), skipped) {
        (0, _) => HostView::Blind(format!("{} shows no mounts", path.display())),
        (_, 0) => HostView::Seen(mounts::pod_mounts(&mounts)),
        (_, skipped) => HostView::Blind(format!("{skipped} lines of {} are not understood", path.display())),
    };
    (view, mounts)
}

/// Adds what is mounted below a volume, in any of the tables.
fn with_nested(mut kind: EntryKind, tables: &[Nesting]) -> EntryKind {
    if let EntryKind::Mount(facts) = &mut kind {
        let mut nested: Vec<PathBuf> = tables
            .iter()
            .flat_map(|table| table.below(facts.dev, &facts.subtree))
            .collect();
        nested.sort();
        nested.dedup();
        facts.nested = nested;
    }
    kind
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What is seen of /proc, which is a mount everywhere, if this table is the one that was read before.
    fn proc_by(table: OwnTable) -> EntryKind {
        let key = DirectoryKey {
            class: "c".into(),
            host_dir: "/".into(),
            mount_dir: "/".into(),
        };
        let listing = Arc::new(entry::list(Path::new("/")).ok().unwrap());
        let task = Task {
            key: Arc::new(key),
            listing,
            name: "proc".into(),
            probe: false,
        };
        let mut scanner = Scanner::new(ScanSettings::default());
        scanner.look(&[task], table, &[]).remove(0).1
    }

    #[test]
    fn an_outdated_mount_table_is_read_again() {
        let now = || OwnTable::read(Path::new("/proc/self/mountinfo")).unwrap();
        let is_proc = |kind: EntryKind| matches!(kind, EntryKind::Mount(facts) if facts.fs_type == "proc");
        assert!(is_proc(proc_by(now())));
        assert!(is_proc(proc_by(OwnTable::default())), "it was mounted since");
        let mut reused = now();
        reused.text.clear();
        for mount in &mut reused.mounts {
            mount.fs_type = "ext4".into();
        }
        assert!(is_proc(proc_by(reused)), "its id was another mount's before");
    }
}
