//! What the loop tells, kept until somebody asks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;

use super::advice::{advice, commands};
use super::{
    Class, Configuration, Directory, Event, HostMounts, PersistentVolumes, Problem, Scrub, Status, VERSION, Volume,
    printable,
};
use crate::cluster::Mode;
use crate::config::{self, Loaded, VolumeMode};
use crate::http::Health;
use crate::observed::{self, DirectoryKey, HostView, Observed};
use crate::plan::{self, Notice, Severity, State};
use crate::scrub::progress::{Progress, Unit};

/// How many events are kept.
const EVENTS: usize = 50;

/// What tells one row from another, as long as both are there.
type RowKey<'a> = (&'a DirectoryKey, &'a OsStr, Option<&'a str>);

fn row_key(row: &plan::Volume) -> RowKey<'_> {
    (&row.directory, &row.entry, row.pv.as_deref())
}

/// Where the loop writes what it knows, and the endpoint reads it. Neither waits for the other for longer than a copy.
pub struct Board {
    node: String,
    started: Timestamp,
    health: Arc<Health>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    startup_taint: Option<String>,
    mode: Option<Mode>,
    host: Option<HostMounts>,
    configuration: Configuration,
    directories: Vec<Directory>,
    looked: Option<Timestamp>,
    rows: Vec<plan::Volume>,
    /// Since when each row is in its state for its reason.
    since: Vec<Timestamp>,
    /// The running scrubs, by the name of the PV.
    scrubs: BTreeMap<String, Progress>,
    own: Option<PersistentVolumes>,
    /// The newest last.
    events: VecDeque<Event>,
}

impl Board {
    /// A board of a daemon that begins now.
    #[must_use]
    pub fn new(node: &str, health: Arc<Health>) -> Self {
        Self {
            node: node.to_owned(),
            started: Timestamp::now(),
            health,
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration was read. `changed`: what is in it is used from now on.
    pub fn configuration(&self, loaded: &Loaded, changed: bool) {
        let now = seconds(Timestamp::now());
        let mut inner = self.inner();
        let configuration = &mut inner.configuration;
        configuration.read = Some(now.clone());
        configuration.problems = loaded.problems.iter().map(Problem::from).collect();
        configuration.warnings = loaded.warnings.iter().map(Problem::from).collect();
        if changed {
            configuration.loaded = Some(now);
            configuration.classes = loaded.config.classes.values().map(Class::from).collect();
        }
    }

    /// What becomes of the startup taint.
    pub fn startup_taint(&self, what: Option<String>) {
        self.inner().startup_taint = what;
    }

    /// The node was looked at.
    pub fn looked(&self, observed: &Observed) {
        let host = match &observed.host {
            HostView::Seen(_) => HostMounts {
                seen: true,
                reason: None,
            },
            HostView::Blind(reason) => HostMounts {
                seen: false,
                reason: Some(reason.clone()),
            },
        };
        let directories = observed.directories.iter().map(Directory::from).collect();
        let mut inner = self.inner();
        inner.host = Some(host);
        inner.directories = directories;
    }

    /// A look was judged: the rows of the plan, the own PVs, and what may be done with PVs.
    pub fn planned(&self, rows: Vec<plan::Volume>, own: PersistentVolumes, mode: Mode) {
        let now = Timestamp::now();
        let mut inner = self.inner();
        let shown = inner.shown();
        let same = |row: &plan::Volume, was: &plan::Volume| {
            (row.state.word(), slug(&row.state)) == (was.state.word(), slug(&was.state))
        };
        let since = |row| match shown.get(&row_key(row)) {
            Some((was, since)) if same(row, was) => *since,
            _ => now,
        };
        inner.since = rows.iter().map(since).collect();
        inner.rows = rows;
        inner.own = Some(own);
        inner.mode = Some(mode);
        inner.looked = Some(now);
    }

    /// The rows of a plan that are not as they are shown now. Progress is no change.
    pub fn changes<'a>(&self, rows: &'a [plan::Volume]) -> Vec<&'a plan::Volume> {
        let inner = self.inner();
        let shown = inner.shown();
        let same = |row: &plan::Volume, was: &plan::Volume| match (&row.state, &was.state) {
            (State::Scrubbing(_), State::Scrubbing(_)) => true,
            (state, former) => state == former && row.warning == was.warning,
        };
        let changed = |row: &&plan::Volume| !shown.get(&row_key(row)).is_some_and(|(was, _)| same(row, was));
        rows.iter().filter(changed).collect()
    }

    /// A look has shown the same as the one before, and it would be judged the same.
    pub fn nothing_changed(&self) {
        self.inner().looked = Some(Timestamp::now());
    }

    /// Which scrubs run now, by the name of the PV.
    pub fn scrubs(&self, running: BTreeMap<String, Progress>) {
        self.inner().scrubs = running;
    }

    /// Something is told as an event.
    pub fn told(&self, notice: &Notice) {
        let event = Event {
            time: seconds(Timestamp::now()),
            severity: match notice.severity {
                Severity::Normal => "Normal".into(),
                Severity::Warning => "Warning".into(),
            },
            reason: notice.reason.into(),
            pv: notice.pv.clone(),
            message: notice.message.clone(),
        };
        let mut inner = self.inner();
        inner.events.push_back(event);
        if inner.events.len() > EVENTS {
            inner.events.pop_front();
        }
    }

    /// Since when the rows are as they are.
    #[cfg(test)]
    pub(super) fn since(&self) -> Vec<Timestamp> {
        self.inner().since.clone()
    }

    /// All that is known now.
    #[must_use]
    pub fn status(&self) -> Status {
        let waiting_for = self.health.waiting_for();
        let inner = self.inner();
        let scrubs: Vec<Scrub> = inner.scrubs.iter().map(|(pv, progress)| scrub(pv, progress)).collect();
        Status {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            node: self.node.clone(),
            time: seconds(Timestamp::now()),
            started: seconds(self.started),
            ready: waiting_for.is_empty(),
            waiting_for,
            startup_taint: inner.startup_taint.clone(),
            mode: inner.mode.map(|mode| format!("{mode:?}")),
            host_mounts: inner.host.clone(),
            configuration: inner.configuration.clone(),
            directories: inner.directories.clone(),
            looked: inner.looked.map(seconds),
            volumes: inner
                .rows
                .iter()
                .zip(&inner.since)
                .map(|(row, since)| volume(row, *since, &scrubs))
                .collect(),
            scrubs,
            persistent_volumes: inner.own,
            events: inner.events.iter().rev().cloned().collect(),
        }
    }
}

impl Inner {
    /// The rows as they are shown now, and since when.
    fn shown(&self) -> HashMap<RowKey<'_>, (&plan::Volume, Timestamp)> {
        let rows = self.rows.iter().zip(&self.since);
        rows.map(|(row, since)| (row_key(row), (row, *since))).collect()
    }
}

fn volume(row: &plan::Volume, since: Timestamp, scrubs: &[Scrub]) -> Volume {
    let reason = match row.state {
        State::Scrubbing(_) => scrubs
            .iter()
            .find(|scrub| Some(&scrub.pv) == row.pv.as_ref())
            .map(|scrub| scrub.text.clone())
            .or_else(|| Some("in a cleaning Job".to_owned())),
        _ => row.state.reason(),
    };
    let cause = match row.state {
        State::Scrubbing(_) => reason.clone(),
        _ => row.state.cause(),
    };
    let out = matches!(
        row.state,
        State::Ignored(_) | State::Held(_) | State::Unresponsive(_) | State::Vanished(_)
    );
    Volume {
        class: row.directory.class.clone(),
        directory: path(&row.directory.host_dir),
        entry: printable(&row.entry),
        state: row.state.word().into(),
        reason,
        slug: slug(&row.state).map(str::to_owned),
        cause,
        advice: advice(&row.state),
        commands: commands(row),
        warning: row.warning.clone(),
        unhealthy: row.health.ailment().map(|ailment| ailment.slug().to_owned()),
        attention: out || row.warning.is_some(),
        pv: row.pv.clone(),
        published: row.published,
        claim: row.claim.clone(),
        capacity: row.capacity.clone(),
        id: row.id.as_ref().map(ToString::to_string),
        since: seconds(since),
    }
}

fn slug(state: &State) -> Option<&'static str> {
    match state {
        State::Ignored(reason) => Some(reason.slug()),
        State::Held(reason) => Some(reason.slug()),
        _ => None,
    }
}

fn scrub(pv: &str, progress: &Progress) -> Scrub {
    let now = progress.snapshot();
    Scrub {
        pv: pv.to_owned(),
        text: now.to_string(),
        unit: match now.unit {
            Unit::Bytes => "bytes".into(),
            Unit::Entries => "entries".into(),
        },
        done: now.done,
        total: now.total,
        per_second: now.per_second,
        remaining_seconds: now.remaining.map(|rest| rest.as_secs()),
        elapsed_seconds: now.elapsed.as_secs(),
        resumed_at: now.inherited,
    }
}

/// RFC 3339 in whole seconds, as Kubernetes writes times.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn path(path: &Path) -> String {
    printable(path.as_os_str())
}

impl From<&config::Problem> for Problem {
    fn from(problem: &config::Problem) -> Self {
        Self {
            file: problem.file.clone(),
            line: problem.line,
            key: problem.key.clone(),
            class: problem.class.clone(),
            message: problem.message.clone(),
        }
    }
}

impl From<&config::Class> for Class {
    fn from(class: &config::Class) -> Self {
        Self {
            name: class.name.clone(),
            host_dir: path(&class.host_dir),
            mount_dir: path(&class.mount_dir),
            volume_mode: match class.volume_mode {
                VolumeMode::Filesystem => "Filesystem".into(),
                VolumeMode::Block => "Block".into(),
            },
        }
    }
}

impl From<(&DirectoryKey, &observed::Directory)> for Directory {
    fn from((key, directory): (&DirectoryKey, &observed::Directory)) -> Self {
        let (entries, error) = match directory {
            observed::Directory::Read(entries) => (Some(entries.len()), None),
            observed::Directory::Missing => (None, Some("it does not exist; make it".into())),
            observed::Directory::Unreadable(error) => (None, Some(error.clone())),
        };
        Self {
            class: key.class.clone(),
            host_dir: path(&key.host_dir),
            mount_dir: path(&key.mount_dir),
            entries,
            error,
        }
    }
}
