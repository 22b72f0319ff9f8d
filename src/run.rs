//! The daemon: wakes, passes, and what comes of them. One pass at a time.

mod calls;
mod checkpoints;
mod configuration;
mod jobs;
mod look;
mod pace;
mod scrubs;
mod settle;
mod show;
mod start;
mod taint;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::cluster::{Mode, Node, Owner, Ownership, Pv};
use crate::config::{self, Config, Problem};
use crate::events::{Outbox, Told};
use crate::failpoint;
use crate::http::Health;
use crate::lock::Locks;
use crate::memory::Memory;
use crate::metrics::{self, Metrics};
use crate::observed::{Directory, DirectoryKey, HostView, Observed};
use crate::plan::{self, Action, Inputs, JobSettings, Plan};
use crate::scan::{Scanner, Tables};
use crate::scrub::checkpoint::Notes;
use crate::scrub::progress::{Cancel, Progress};
use crate::settings::Settings;
use crate::status::{self, Board};
use crate::sys;
use crate::wakes::{Cause, Directories, MountTables};
use crate::watch::Shared;

use look::{Calm, Eyes};
use pace::Pace;
use settle::Done;

/// How many API writes are under way at once. Sixteen connections are what one API server serves at full speed.
const WRITES: usize = 16;
/// How many PVs are being made at once: more than an API server makes between two passes, however busy both are.
pub const CREATIONS: usize = 256;

struct Daemon {
    settings: Settings,
    client: Client,
    shared: Shared,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// What people are shown.
    board: Arc<Board>,
    started: Instant,
    /// Wakes as long as it lives.
    mount_tables: Option<MountTables>,
    pace: Pace,
    /// The last pass, if nothing came of it.
    calm: Option<Calm>,
    /// How many looks in a row, begun by the timer, have shown nothing new.
    calm_looks: u32,
    /// inotify tells of changes of all the directories.
    announced: bool,
    eyes: Option<Eyes>,
    /// A look that was begun, and has the eyes.
    looking: Option<tokio::task::JoinHandle<(Eyes, look::Look)>>,
    /// The mount tables that the eyes look at.
    tables: Tables,
    mode: Mode,
    /// Run as long as the daemon does.
    watches: JoinSet<()>,
    pv_watches: JoinSet<()>,
    /// For which hostname and mode.
    watched_pvs: Option<(String, Mode)>,
    unwatched_read: Instant,
    mode_asked: Instant,
    jobs: jobs::Reading,
    node_watched: bool,
    node_read: Option<Instant>,
    config: Option<Config>,
    problems: Vec<Problem>,
    config_news: configuration::News,
    /// Classes that are configured, but not in a way that could ever be used.
    broken_classes: BTreeSet<String>,
    memory: Memory,
    told: Told,
    outbox: Outbox,
    tasks: JoinSet<Done>,
    writes: Arc<Semaphore>,
    /// As many scrubs ask the API server at once whether they may begin. They do not queue behind writes.
    questions: Arc<Semaphore>,
    /// As many scrubs run at once.
    slots: Arc<Semaphore>,
    /// Scrubs that have ended since the last pass.
    scrubs_ended: usize,
    /// The running scrubs, by the UID of the PV.
    running: BTreeMap<String, (Progress, Cancel)>,
    /// Where running wipes put their checkpoints, by the UID of the PV.
    notes: BTreeMap<String, Notes>,
    directories_read: BTreeSet<PathBuf>,
    /// Those that cannot be read now, and why.
    directories_unread: BTreeMap<DirectoryKey, String>,
    /// Directories that another provisioner holds, and how it says so.
    locked_out: Vec<String>,
    was_ready: bool,
    taint: taint::Taint,
    gaps: u64,
    blind_told: bool,
    /// When the running scrubs were logged last.
    progress_told: Duration,
}

/// Runs the daemon until `shutdown`.
///
/// # Errors
/// The daemon cannot start, or a part of it ended that must not end.
pub async fn run(settings: Settings, client: Client, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new().context("metrics cannot be registered")?);
    let health = Arc::new(Health::new(settings.stuck_after));
    let client = metrics::measured(client, Arc::clone(&metrics));
    let server = serve(&settings, &health, &metrics).await?;
    let board = Arc::new(Board::new(&settings.node_name, Arc::clone(&health)));
    let page = status::page::serve(settings.status_address, Arc::clone(&board));
    let mut daemon = start::daemon(settings, client, metrics, health, board);
    tokio::pin!(shutdown);
    let ended = tokio::select! {
        () = &mut shutdown => Ok(()),
        result = server => result,
        never = page => match never {},
        result = daemon.go() => result,
    };
    daemon.stop().await;
    ended
}

/// Listens. Where the machine has no IPv6, "every address" is every one of IPv4.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Serves HTTP for ever, or nothing for ever where no address is given.
async fn serve(
    settings: &Settings,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let listener = match settings.listen_address {
        None => None,
        Some(address) => Some(
            listen(address)
                .await
                .with_context(|| format!("cannot listen on {address} (--listen-address)"))?,
        ),
    };
    let router = crate::http::router(Arc::clone(health), Arc::clone(metrics), &settings.metrics_path);
    Ok(async move {
        match listener {
            Some(listener) => axum::serve(listener, router).await.context("the HTTP server ended"),
            None => std::future::pending().await,
        }
    })
}

impl Daemon {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    async fn go(&mut self) -> anyhow::Result<()> {
        self.connect().await?;
        failpoint::hit!("start.connected");
        let mut due: Option<Duration>;
        let mut by_timer = false;
        self.shared.wake.note(Cause::Start);
        loop {
            let causes: Vec<Cause> = self.shared.wake.take_causes().collect();
            causes.iter().for_each(|cause| self.metrics.woken(*cause));
            let began = self.now();
            self.health.pass(Some(std::time::Instant::now()));
            due = self.pass(&causes, by_timer).await?;
            self.health.pass(None);
            let took = self.now() - began;
            self.metrics.pass_ended(took);
            self.pace.spent(took, self.now());
            let safety = self.now() + self.until_next_look();
            let wait = due.map_or(safety, |due| due.min(safety)).saturating_sub(self.now());
            // When a whole period has passed and there was nothing to do after it.
            if std::mem::take(&mut by_timer) && due.is_none() && self.tasks.is_empty() {
                sys::memory::give_back();
            }
            tokio::select! {
                () = self.shared.wake.woken() => {}
                Some(done) = self.tasks.join_next() => self.settle_task(done)?,
                Some(ended) = self.watches.join_next() => bail!("a watch ended: {ended:?}"),
                Some(ended) = self.jobs.watch.join_next() => {
                    self.jobs_refused(ended.context("the watch of Jobs failed")?);
                }
                () = tokio::time::sleep(wait) => {
                    self.shared.wake.note(Cause::Timer);
                    by_timer = true;
                }
            }
            self.rest().await?;
        }
    }

    fn settle_task(&mut self, done: Result<Done, tokio::task::JoinError>) -> anyhow::Result<()> {
        self.calm = None;
        let done = done.context("a task of the daemon failed")?;
        self.shared.wake.note(done.cause());
        self.settle(done);
        Ok(())
    }

    /// One look and what follows from it. Returns when the next is due at the latest.
    async fn pass(&mut self, causes: &[Cause], by_timer: bool) -> anyhow::Result<Option<Duration>> {
        let began = Instant::now();
        // Read before the look, which uses it, too: it probes no device before the PVs are known.
        let informed = self.is_informed();
        // Nothing follows from lists that are not complete.
        let of_api = |cause: &Cause| matches!(cause, Cause::Api | Cause::Call);
        let observed = if informed || !causes.iter().all(of_api) {
            Some(self.look_around().await?)
        } else {
            None
        };
        let calm_looks = std::mem::take(&mut self.calm_looks);
        self.follow_identity();
        self.tell_configuration();
        let ready = self.tell_readiness();
        self.doubt_unwatched();
        self.read_doubtful();
        let Some(observed) = observed.filter(|_| informed) else {
            return Ok(None);
        };
        let store = self.shared.clone();
        let store = store.store();
        let (Some(config), Some(ownership), Some(node)) = (
            self.config.clone(),
            store.ownership().cloned(),
            store.cluster().node.clone(),
        ) else {
            return Ok(None);
        };
        // Not only before the look: another hostname label has made all PVs unknown by now.
        if !store.waiting_for().is_empty() || !self.locked_out.is_empty() {
            return Ok(None);
        }
        let version = store.version();
        drop(store);
        failpoint::hit!("pass.looked");
        let taint = self.follow_taint(&config, ready);
        if self.is_calm(&observed, version) {
            debug!(took = ?began.elapsed(), "pass: nothing has changed");
            self.nothing_changed(if by_timer { calm_looks + 1 } else { 0 });
            return Ok(taint);
        }
        let plan = self.plan(&config, &ownership, &node, &observed);
        debug!(actions = plan.actions.len(), volumes = plan.volumes.len(), took = ?began.elapsed(), "pass");
        self.log_changes(&plan);
        self.log_progress(&plan);
        self.tell(&plan, &ownership);
        self.ask_mode_again(&plan);
        self.follow_jobs(&plan);
        let retry = self.memory.next_retry(self.now());
        let due = plan.wake_at.into_iter().chain(retry).chain(taint).min();
        self.calm = self.calm_after(&plan, due, observed, version);
        let outdated = self.outdated_checkpoints(&plan);
        failpoint::hit!("pass.planned");
        for action in plan.actions {
            self.start(action, began);
        }
        self.keep_checkpoints(outdated);
        self.show(plan.volumes, &ownership);
        Ok(due)
    }

    fn plan(&mut self, config: &Config, ownership: &Ownership, node: &Node, observed: &Observed) -> Plan {
        let now = self.now();
        let limits = self.limits();
        let shared = self.shared.clone();
        let mut store = shared.store();
        if store.gaps() != self.gaps {
            self.gaps = store.gaps();
            self.memory.watched_since_creation.clear();
        }
        let mut endings = store.take_endings();
        // Of the many local PVs that other programs may make on this node only those in our directories matter.
        let in_our_directory = |pv: &Pv| {
            config
                .classes
                .values()
                .any(|class| Some(class.host_dir.as_path()) == pv.host_dir())
        };
        endings.retain(|pv| ownership.of(pv) != Owner::Foreign || in_our_directory(pv));
        self.memory.note(&endings, store.cluster(), ownership, now);
        self.memory.note_jobs(&store.cluster().jobs, now);
        let progress = self
            .running
            .iter()
            .map(|(uid, (progress, _))| (uid.clone(), progress.snapshot()))
            .collect();
        let inputs = |memory| Inputs {
            config,
            broken_classes: &self.broken_classes,
            limits,
            mode: self.mode,
            jobs: JobSettings {
                namespace: &self.settings.namespace,
                image: self.settings.job_image.as_deref(),
                bytes_per_second: self.settings.scrub.bytes_per_second,
            },
            node,
            ownership,
            observed,
            cluster: store.cluster(),
            memory,
            progress: &progress,
            now,
        };
        let plan = plan::plan(&inputs(&self.memory));
        self.memory.note_observed(&plan, observed, store.cluster(), now);
        self.metrics
            .pass(&plan, config, store.cluster(), ownership, &self.memory);
        plan
    }

    /// Logs once a minute how far the scrubs are that take longer than that.
    fn log_progress(&mut self, plan: &Plan) {
        const PERIOD: Duration = Duration::from_secs(60);
        let now = self.now();
        if now < self.progress_told + PERIOD {
            return;
        }
        self.progress_told = now;
        for volume in &plan.volumes {
            if let (plan::State::Scrubbing(Some(progress)), Some(pv)) = (&volume.state, &volume.pv)
                && progress.elapsed >= PERIOD
            {
                info!(%pv, %progress, "scrubbing");
            }
        }
    }

    /// Logs each volume's state when it changes.
    fn log_changes(&self, plan: &Plan) {
        for volume in self.board.changes(&plan.volumes) {
            let reason = match &volume.state {
                plan::State::Scrubbing(_) => None,
                state => state.reason().or_else(|| volume.warning.clone()),
            };
            let path = volume.directory.host_dir.join(&volume.entry);
            info!(
                path = %path.display(),
                class = %volume.directory.class,
                pv = volume.pv.as_deref().unwrap_or("-"),
                state = volume.state.word(),
                reason = reason.as_deref().unwrap_or("-"),
                "volume"
            );
        }
    }

    /// Ends what runs: scrubs stop between two entries or chunks, and are started anew by the next process.
    async fn stop(&mut self) {
        for (_, cancel) in self.running.values() {
            cancel.cancel();
        }
        self.watches.abort_all();
        self.jobs.watch.abort_all();
        self.pv_watches.abort_all();
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            while self.tasks.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            error!("a scrub did not stop in 20 s; it ends with the process");
        }
    }
}

impl Daemon {
    /// Starts what an action asks for; its end is settled by the loop.
    fn start(&mut self, action: Action, looked: Instant) {
        match action {
            Action::Create(pv) => self.create(pv, looked),
            Action::Patch {
                pv,
                patch,
                lets_go,
                why,
            } => self.patch(pv, patch, lets_go, why),
            Action::Delete { pv, lets_go, why } => self.delete(pv, lets_go, why),
            Action::Scrub(order) => self.scrub(*order),
            Action::AbortScrub { uid, why } => {
                if let Some((_, cancel)) = self.running.get(&uid) {
                    warn!(%uid, %why, "scrub aborted");
                    cancel.cancel();
                }
            }
            Action::ReadClaim(claim) => self.read_claim(claim),
            Action::CreateJob(order) => self.create_job(*order),
            Action::DeleteJob { pv, job, cause, why } => self.delete_job(pv, *job, cause.map(|cause| *cause), &why),
        }
    }
}
