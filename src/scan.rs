//! One look at the node: every entry of every discovery directory, and what it is.
//!
//! Whatever may block runs under a deadline, per directory and per entry ([`crate::probe`]). Nothing is written, nothing
//! is mounted by looking (no automount is triggered), and of the entries only directories and block devices are opened.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::devices::sysfs::attached_loops;
use crate::devices::users::{AttachedLoop, Surroundings, parse_swaps};
use crate::identity::VolumeId;
use crate::mounts::{Nesting, Reading, Source, Table};
use crate::observed::{Directory, DirectoryKey, Entry, EntryKind, HostView, Observed};
use crate::probe::{Outcome, Prober, Work};
use crate::sys;

mod entry;

/// The mount tables are read, and mounts asked for their identity, this often even where the kernel tells of no change:
/// a filesystem can be given another UUID while it is mounted.
const REFRESH: Duration = Duration::from_secs(60);

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

/// The mount tables, shared by all who look at them.
#[derive(Debug, Clone)]
pub struct Tables {
    own: Arc<Source>,
    host: Arc<Source>,
}

impl Tables {
    /// Those of these settings. Nothing is read yet.
    #[must_use]
    pub fn new(settings: &ScanSettings) -> Self {
        Self {
            own: Arc::new(Source::new(&settings.own_mountinfo)),
            host: Arc::new(Source::new(&settings.host_mountinfo)),
        }
    }

    /// The mount table of this process as it is now.
    ///
    /// # Errors
    /// It cannot be read; says where it was looked for.
    pub fn own(&self) -> io::Result<Arc<Table>> {
        let path = self.own.path();
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()));
        Ok(self.own.now().map_err(named)?.table)
    }

    /// As [`own`](Self::own), read whatever the kernel says of changes.
    ///
    /// # Errors
    /// It cannot be read; says where it was looked for.
    pub fn own_anew(&self) -> io::Result<Arc<Table>> {
        let _ = self.own.anew(); // What fails fails again, and says where.
        self.own()
    }

    /// The host's mount table as it is now, empty if it cannot be read, and what it tells of pods. Whatever could hide a
    /// pod's mount makes the node blind.
    #[must_use]
    pub fn host(&self) -> (HostView, Arc<Table>) {
        view_of(self.host.path(), self.host.now())
    }

    /// As [`host`](Self::host), read whatever the kernel says of changes.
    #[must_use]
    pub fn host_anew(&self) -> (HostView, Arc<Table>) {
        view_of(self.host.path(), self.host.anew())
    }
}

fn view_of(path: &Path, reading: io::Result<Reading>) -> (HostView, Arc<Table>) {
    let blind = |reason| (HostView::Blind(reason), Arc::default());
    let table = match reading {
        Ok(reading) => reading.table,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return blind(format!(
                "{} does not exist; mount the host's /proc/1/mountinfo there",
                path.display()
            ));
        }
        Err(error) => return blind(format!("cannot read {}: {error}", path.display())),
    };
    let view = match (table.mounts().len(), table.skipped()) {
        (0, _) => HostView::Blind(format!("{} shows no mounts", path.display())),
        (_, 0) => HostView::Seen(table.pods().to_vec()),
        (_, skipped) => HostView::Blind(format!("{skipped} lines of {} are not understood", path.display())),
    };
    (view, table)
}

/// Looks at the node, and remembers between looks what hangs, and what mounts are that have stayed.
#[derive(Debug)]
pub struct Scanner {
    settings: ScanSettings,
    tables: Tables,
    prober: Prober<Thing>,
    boot_id: String,
    known: Known,
}

/// The identities of mounts, for as long as no mount comes or goes: until then each mount id means the same mount.
#[derive(Debug, Default)]
struct Known {
    ids: Arc<HashMap<Root, VolumeId>>,
    /// As [`Reading::changes`] was when they were read.
    changes: Option<u64>,
    read: Option<Instant>,
    /// The table that they were read with.
    table: Option<Arc<Table>>,
    /// There are volumes that are directories of a filesystem: nobody tells when they are renamed or deleted.
    directories: bool,
}

/// The root directory of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Root {
    mount_id: u64,
    inode: u64,
    birth_nanoseconds: Option<i128>,
}

impl Root {
    fn new(mount_id: u64, status: &sys::Status) -> Self {
        Self {
            mount_id,
            inode: status.inode,
            birth_nanoseconds: status.birth_nanoseconds,
        }
    }

    /// Of a filesystem that does not tell any more what its root is.
    fn unknown(mount_id: u64) -> Self {
        Self {
            mount_id,
            inode: 0,
            birth_nanoseconds: None,
        }
    }
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
    /// What it is the root of, if it is the root of a mount.
    root: Option<Root>,
}

/// All that is known besides the entry itself when one is looked at.
struct Context {
    own: Reading,
    own_path: PathBuf,
    known: Arc<HashMap<Root, VolumeId>>,
    around: Surroundings,
}

impl Scanner {
    /// A scanner with nothing known to hang.
    #[must_use]
    pub fn new(settings: ScanSettings) -> Self {
        let prober = Prober::new(settings.syscall_timeout);
        let tables = Tables::new(&settings);
        Self {
            settings,
            tables,
            prober,
            boot_id: String::new(),
            known: Known::default(),
        }
    }

    /// The mount tables that it looks at.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
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
        let (own, host_reading) = self.read_tables();
        let (host, host_table) = view_of(&self.settings.host_mountinfo, host_reading);
        let (mut read, tasks) = self.list(directories, probe);
        match own {
            Ok(own) => {
                let nesting = [own.table.nesting(), host_table.nesting()];
                let mut kinds = self.look(&tasks, own.clone(), &host_table);
                // The tasks are in the order of the directories, and of the names in each.
                for tasks in tasks.chunk_by(|one, next| Arc::ptr_eq(&one.key, &next.key)) {
                    let seen = tasks.iter().zip(kinds.by_ref());
                    let entries = seen.filter_map(|(task, kind)| {
                        Some(Entry {
                            name: task.name.clone(),
                            kind: with_nested(kind?, &nesting),
                        })
                    });
                    let entries = entries.collect();
                    if let Some(task) = tasks.first() {
                        read.insert(DirectoryKey::clone(&task.key), Directory::Read(entries));
                    }
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
        Observed {
            directories: read,
            host,
            boot_id: self.boot_id.clone(),
        }
    }

    /// The own mount table and the host's: what the kernel says of changes does, but for now and then.
    fn read_tables(&mut self) -> (io::Result<Reading>, io::Result<Reading>) {
        let overdue = self.known.read.is_none_or(|read| read.elapsed() >= REFRESH);
        if overdue {
            self.known = Known {
                read: Some(Instant::now()),
                ..Known::default()
            };
        }
        if overdue || self.known.directories {
            (self.tables.own.anew(), self.tables.host.anew())
        } else {
            (self.tables.own.now(), self.tables.host.now())
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

    /// Looks at the entries, and says in their order what they are: `None` of those that went meanwhile.
    ///
    /// The mount table is read before. One that changed meanwhile may have given an id to another mount, so the entries
    /// that are roots of mounts that came, went or changed are looked at once more with the new one.
    fn look(
        &mut self,
        tasks: &[Task],
        own: Reading,
        host: &Arc<Table>,
    ) -> impl Iterator<Item = Option<EntryKind>> + use<> {
        let loops = if tasks.iter().any(|task| task.probe) {
            self.loops()
        } else {
            Vec::new()
        };
        let same = |known: &Arc<Table>| Arc::ptr_eq(known, &own.table);
        if own.changes.is_none() || own.changes != self.known.changes || !self.known.table.as_ref().is_some_and(same) {
            self.known.ids = Arc::default();
        }
        self.known.table = Some(Arc::clone(&own.table));
        let context = Arc::new(self.context(own.clone(), host, loops));
        let all: Vec<&Task> = tasks.iter().collect();
        let mut seen = self.look_once(&all, &context);

        let mut settled = own.changes;
        if let Ok(after) = self.tables.own.now()
            && (after.changes != own.changes || !Arc::ptr_eq(&after.table, &own.table))
        {
            settled = None;
            let outdated = |seen: &Seen| {
                seen.root.is_some_and(|root| {
                    let (before, after) = (own.table.get(root.mount_id), after.table.get(root.mount_id));
                    // An id may be another mount's by now whose line is the same.
                    before.is_none() || before != after || context.known.contains_key(&root)
                })
            };
            let again: Vec<usize> = (0..seen.len()).filter(|&at| outdated(&seen[at])).collect();
            if !again.is_empty() {
                self.known.ids = Arc::default();
                let context = Arc::new(self.context(after, host, context.around.loops.clone()));
                let outdated: Vec<&Task> = again.iter().map(|&at| &tasks[at]).collect();
                for (at, anew) in again.into_iter().zip(self.look_once(&outdated, &context)) {
                    seen[at] = anew;
                }
            }
        }
        self.note_known(&seen, settled);
        let directory =
            |seen: &Seen| matches!(&seen.kind, Some(EntryKind::Mount(facts)) if facts.subtree != Path::new("/"));
        self.known.directories = seen.iter().any(directory);
        seen.into_iter().map(|seen| seen.kind)
    }

    /// Keeps the identities of mounts, if none has come or gone while they were looked at.
    fn note_known(&mut self, seen: &[Seen], changes: Option<u64>) {
        let identified = |seen: &Seen| match (seen.root, &seen.kind) {
            (Some(root), Some(EntryKind::Mount(facts))) => Some((root, facts.id.clone().ok()?)),
            _ => None,
        };
        let all_known = |seen: &Seen| seen.root.is_none_or(|root| self.known.ids.contains_key(&root));
        if changes.is_none() || changes != self.known.changes || !seen.iter().all(all_known) {
            let ids = changes.map(|_| seen.iter().filter_map(identified).collect());
            self.known.ids = Arc::new(ids.unwrap_or_default());
            self.known.changes = changes;
        }
    }

    fn look_once(&mut self, tasks: &[&Task], context: &Arc<Context>) -> Vec<Seen> {
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
                root: None,
            },
        });
        outcomes.collect()
    }

    fn context(&self, own: Reading, host: &Arc<Table>, loops: Vec<AttachedLoop>) -> Context {
        let around = Surroundings {
            sysfs: self.settings.sysfs.clone(),
            boot_id: self.boot_id.clone(),
            mounts: vec![Arc::clone(&own.table), Arc::clone(host)],
            loops,
            swaps: parse_swaps(&fs::read("/proc/swaps").unwrap_or_default()),
        };
        Context {
            own,
            own_path: self.settings.own_mountinfo.clone(),
            known: Arc::clone(&self.known.ids),
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

/// What a device is examined against, as it is now and without a deadline: for a scrub, which has a thread of its own.
#[must_use]
pub fn surroundings(settings: &ScanSettings, tables: &Tables) -> Surroundings {
    let own = tables.own().unwrap_or_default();
    let (_, host) = tables.host();
    let loops = attached_loops(&settings.sysfs);
    Surroundings {
        sysfs: settings.sysfs.clone(),
        boot_id: boot_id(),
        mounts: vec![own, host],
        loops: loops
            .iter()
            .map(|(name, backing)| AttachedLoop::examine(name, backing, Path::new("/dev")))
            .collect(),
        swaps: parse_swaps(&fs::read("/proc/swaps").unwrap_or_default()),
    }
}

/// Adds what is mounted below a volume, in any of the tables.
fn with_nested(mut kind: EntryKind, tables: &[&Nesting]) -> EntryKind {
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
    fn proc_by(table: Table) -> EntryKind {
        let key = DirectoryKey::new("c", "/", "/");
        let listing = Arc::new(entry::list(Path::new("/")).ok().unwrap());
        let task = Task {
            key: Arc::new(key),
            listing,
            name: "proc".into(),
            probe: false,
        };
        let mut scanner = Scanner::new(ScanSettings::default());
        let own = Reading {
            table: Arc::new(table),
            changes: None,
        };
        scanner.look(&[task], own, &Arc::default()).next().unwrap().unwrap()
    }

    #[test]
    fn an_outdated_mount_table_is_read_again() {
        let text = fs::read("/proc/self/mountinfo").unwrap();
        let is_proc = |kind: EntryKind| matches!(kind, EntryKind::Mount(facts) if facts.fs_type == "proc");
        assert!(is_proc(proc_by(Table::new(text.clone()))));
        assert!(is_proc(proc_by(Table::default())), "it was mounted since");
        let reused = String::from_utf8(text).unwrap().replace(" - proc ", " - ext4 ");
        assert!(
            is_proc(proc_by(Table::new(reused.into_bytes()))),
            "its id was another mount's before"
        );
    }
}
