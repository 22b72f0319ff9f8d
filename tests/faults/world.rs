//! A node with real mounts and an API server in the process.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::client::ClientBuilder;
use local_volume_provisioner::scan::ScanSettings;
use local_volume_provisioner::scrub::limits::Limits;
use local_volume_provisioner::settings::Settings;
use local_volume_provisioner::{api, plan};
use serde_json::{Value, json};
use testkit::api::{Api, Controllers, Fault};
use testkit::config_volume::ConfigVolume;
use testkit::mounts;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Of paused time.
pub const DEADLINE: Duration = Duration::from_secs(600);
/// Of every class here.
pub const CLASS: &str = "fast";

/// What it is called, and how it is made.
pub type Trouble = (&'static str, fn() -> Fault);

/// A daemon: what stops it, and its end.
type Running = (oneshot::Sender<()>, JoinHandle<Result<()>>);

pub struct World {
    pub api: Api,
    pub user: &'static str,
    pub scrub: Cell<Limits>,
    dir: tempfile::TempDir,
    address: std::net::SocketAddr,
    daemon: RefCell<Option<Running>>,
    claims: Cell<u32>,
    _controllers: Controllers,
}

/// Runs a test as each of these users, on a thread with a mount namespace of its own and paused time.
pub fn as_users<F: AsyncFn(Rc<World>) -> Result<()> + Send + Sync + Copy + 'static>(
    name: &str,
    users: &[&'static str],
    test: F,
) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: {name}: needs root for mounts");
        return;
    }
    for user in users {
        let user = *user;
        let thread = std::thread::spawn(move || run(user, test));
        if let Err(error) = thread.join().unwrap() {
            panic!("{name} as {user}: {error:#}");
        }
    }
}

fn run<F: AsyncFn(Rc<World>) -> Result<()>>(user: &'static str, test: F) -> Result<()> {
    mounts::private_namespace()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async {
        let world = Rc::new(World::new(user)?);
        let result = test(Rc::clone(&world)).await;
        let stopped = world.stop().await;
        result.and(stopped)
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

impl World {
    fn new(user: &'static str) -> Result<Self> {
        let api = Api::new();
        api.create_node("node1", "host1");
        api.create_storage_class(CLASS, "Delete");
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join(CLASS))?;
        let directory = dir.path().join(CLASS).display().to_string();
        let map = format!("{CLASS}:\n  hostDir: {directory}\n  mountDir: {directory}\n");
        ConfigVolume::new(dir.path().join("config"))?.set("storageClassMap", &map)?;
        Ok(Self {
            _controllers: api.run_controllers(),
            api,
            user,
            scrub: Cell::default(),
            dir,
            address: std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?,
            daemon: None.into(),
            claims: 0.into(),
        })
    }

    /// Starts the daemon. Its client has the deadline of the real one.
    pub fn start(&self) {
        let task = PathBuf::from(format!(
            "/proc/{}/task/{}/mountinfo",
            std::process::id(),
            nix::unistd::gettid()
        ));
        let settings = Settings {
            node_name: "node1".into(),
            namespace: "default".into(),
            scrub: self.scrub.get(),
            job_image: None,
            config_dir: self.dir.path().join("config"),
            config_map: None,
            pod: None,
            ready_volumes: std::collections::BTreeMap::new(),
            stuck_after: Duration::from_secs(120),
            listen_address: Some(self.address),
            status_address: None,
            metrics_path: "/metrics".into(),
            limits: plan::Limits {
                grace_period: Duration::from_secs(60),
                discovery_period: Duration::from_secs(10),
                scrub_concurrency: 4,
                creations: local_volume_provisioner::run::CREATIONS,
                scrub_retries: 10,
            },
            scan: ScanSettings {
                host_mountinfo: task.clone(),
                own_mountinfo: task,
                ..ScanSettings::default()
            },
        };
        let client = api::with_layers(ClientBuilder::new(self.api.service(self.user), "default"));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let daemon = tokio::task::spawn_local(local_volume_provisioner::run::run(settings, client, shutdown));
        *self.daemon.borrow_mut() = Some((stop, daemon));
    }

    pub async fn stop(&self) -> Result<()> {
        let running = self.daemon.borrow_mut().take();
        if let Some((stop, daemon)) = running {
            ensure!(
                !daemon.is_finished(),
                "the daemon has ended by itself: {:?}",
                daemon.await
            );
            let _ = stop.send(());
            daemon.await.context("the daemon panicked")??;
        }
        Ok(())
    }

    pub fn entry(&self, entry: &str) -> PathBuf {
        self.dir.path().join(CLASS).join(entry)
    }

    pub fn tmpfs(&self, entry: &str) -> Result<()> {
        mounts::tmpfs(&self.entry(entry), 16 << 20)
    }

    /// The PVs of an entry; more than one is a disaster.
    pub fn pv(&self, entry: &str) -> Option<Value> {
        let path = self.entry(entry).display().to_string();
        let mut all = self
            .api
            .list("persistentvolumes")
            .into_iter()
            .filter(|pv| pv["spec"]["local"]["path"] == path.as_str());
        let first = all.next();
        assert!(all.next().is_none(), "two PVs of {entry}");
        first
    }

    /// Waits until the entry is free, under another UID than this.
    pub async fn available(&self, entry: &str, but: &Value) -> Result<Value> {
        let what = format!("{entry} is Available");
        self.until(&what, |world| {
            let pv = world.pv(entry)?;
            let free = pv["status"]["phase"] == "Available" && pv["metadata"]["deletionTimestamp"].is_null();
            (free && pv["metadata"]["uid"] != *but).then_some(pv)
        })
        .await
    }

    pub async fn until<T>(&self, what: &str, mut holds: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        self.api.wait_for(what, DEADLINE, |_| holds(self)).await
    }

    /// Binds a claim to an entry's PV; its name.
    pub fn bind(&self, pv: &Value) -> Result<String> {
        self.claims.set(self.claims.get() + 1);
        let claim = format!("claim-{}", self.claims.get());
        self.api.create_claim("default", &claim, CLASS);
        self.api
            .bind("default", &claim, pv["metadata"]["name"].as_str().unwrap())?;
        Ok(claim)
    }

    /// The rest of a volume's life, twice: bound, written, released, scrubbed, free again.
    pub async fn lives_on(&self, entry: &str) -> Result<()> {
        for _ in 0..2 {
            let pv = self.available(entry, &Value::Null).await?;
            let claim = self.bind(&pv)?;
            std::fs::write(self.entry(entry).join("file"), "secret")?;
            self.pass_time(Duration::from_secs(30)).await;
            ensure!(self.entry(entry).join("file").exists(), "scrubbed while bound");
            self.api.delete_claim("default", &claim)?;
            self.available(entry, &pv["metadata"]["uid"]).await?;
            self.is_clean(entry)?;
        }
        Ok(())
    }

    pub fn is_clean(&self, entry: &str) -> Result<()> {
        ensure!(
            std::fs::read_dir(self.entry(entry))?.next().is_none(),
            "{entry} is not empty"
        );
        Ok(())
    }

    /// Makes a cleaning Job that is at work on an entry, and returns its name.
    pub fn job_at_work(&self, entry: &str) -> String {
        let pv = local_volume_provisioner::names::classic_pv_name(entry, "node1", CLASS);
        let name = format!("cleanup-{pv}");
        let job = json!({"metadata": {"name": name, "labels": {"pv": pv}},
            "spec": {"template": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}});
        self.api.create("jobs", "default", job);
        name
    }

    pub async fn pass_time(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    /// What one of the endpoints answers.
    pub async fn get(&self, path: &'static str) -> Result<String> {
        let address = self.address;
        // Where it may block, for time stands still meanwhile.
        tokio::task::spawn_blocking(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
        .await?
    }

    /// Waits until the daemon is ready, or is not for this reason.
    pub async fn readiness(&self, code: u16, reason: &str) -> Result<()> {
        let mut answer = String::new();
        for _ in 0..600 {
            // It may not listen yet.
            answer = self.get("/readyz").await.unwrap_or_else(|error| error.to_string());
            if answer.starts_with(&format!("HTTP/1.1 {code}")) && answer.contains(reason) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        bail!("not {code} with {reason:?}, but {answer}")
    }

    /// How many requests of a kind are made while this much time passes.
    pub async fn requests_in(&self, window: Duration, verb: &str, plural: &str) -> usize {
        self.api.clear_requests();
        self.pass_time(window).await;
        self.api.count(verb, plural)
    }

    /// Waits for an event with this text.
    pub async fn event(&self, text: &str) -> Result<()> {
        self.until(&format!("an event says {text:?}"), |world| {
            let events = world.api.list("events");
            events
                .iter()
                .any(|event| event["message"].as_str().is_some_and(|m| m.contains(text)))
                .then_some(())
        })
        .await
    }
}

/// All requests that this one describes fail until the faults are cleared.
pub fn always(fault: Fault) -> Fault {
    fault.times(usize::MAX)
}
