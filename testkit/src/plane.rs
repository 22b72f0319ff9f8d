//! A real control plane for tests: etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes on
//! free ports of 127.0.0.1, with TLS, tokens and RBAC. There is no kubelet: Nodes are objects made by hand, pods are
//! scheduled (which binds their claims) and never run.
//!
//! The Kubernetes programs come from `$KUBE_BIN` (default `~/.cache/kube`), etcd from there or the PATH. One plane serves all
//! tests of a binary: keep it in a `static OnceLock`. Its processes end with the test process, however that ends, and
//! its files are removed.

use std::{
    collections::HashMap,
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;

mod objects;
mod processes;

pub use objects::{BUILT_IN, Rule};
use processes::Processes;

/// How often a starting plane is looked at.
const POLL: Duration = Duration::from_millis(50);

/// How long each step of a start may take: 20 times of what it takes on two idle cores.
const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// A running control plane. It ends when dropped.
pub struct Plane {
    // Before the directory: fields are dropped in order.
    processes: Processes,
    dir: TempDir,
    server: String,
    /// Tokens by user.
    tokens: Mutex<HashMap<String, String>>,
}

impl Plane {
    /// Says what is missing on this machine to start a plane.
    ///
    /// # Errors
    /// What is missing, and where it was looked for.
    pub fn available() -> Result<(), String> {
        let bin = kube_bin();
        for program in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            if !bin.join(program).is_file() {
                return Err(format!("no {program} in {} (KUBE_BIN says where)", bin.display()));
            }
        }
        let path = env::var_os("PATH").unwrap_or_default();
        for program in ["etcd", "setpriv", "openssl"] {
            let beside = program == "etcd" && etcd_program().is_absolute();
            if !beside && !env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
                return Err(format!("no {program} in the PATH"));
            }
        }
        Ok(())
    }

    /// Starts a plane and waits until it is ready, about 4 s. Blocks the calling thread meanwhile.
    ///
    /// # Errors
    /// What did not happen in time, with the ends of all logs.
    pub fn start() -> Result<Plane> {
        Plane::available().map_err(anyhow::Error::msg)?;
        // Memory, where it is to be had: etcd writes a lot.
        let base = Some(PathBuf::from("/dev/shm"))
            .filter(|d| d.is_dir())
            .unwrap_or_else(env::temp_dir);
        let dir = tempfile::Builder::new().prefix("testkit-plane-").tempdir_in(base)?;
        let ports = free_ports()?;
        let plane = Plane {
            processes: Processes::new(dir.path())?,
            server: format!("https://127.0.0.1:{}", ports[0]),
            tokens: Mutex::default(),
            dir,
        };
        let launch = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build()?.block_on(plane.launch(ports))
        };
        // On a thread of its own: the caller's may run a runtime, which cannot be nested.
        let result = thread::scope(|scope| scope.spawn(launch).join());
        let result = result.unwrap_or_else(|_| bail!("the start panicked"));
        match result {
            Ok(()) => Ok(plane),
            Err(error) => Err(error.context(plane.processes.log_tails())),
        }
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("admin.kubeconfig")
    }

    /// The directory of the plane's logs (`apiserver.log`, …), gone when the plane ends.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `https://127.0.0.1:<port>`.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// An administrator's client.
    ///
    /// # Errors
    /// If the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig()).await
    }

    /// A client of a user: `admin`, `full`, `classic`, or one made by [`Plane::user`].
    ///
    /// # Errors
    /// If there is no such user.
    pub async fn client_of(&self, user: &str) -> Result<Client> {
        client(&self.kubeconfig_of(user)?).await
    }

    /// The kubeconfig of a user: `admin`, `full`, `classic`, or one made by [`Plane::user`].
    ///
    /// # Errors
    /// If there is no such user.
    pub fn kubeconfig_of(&self, user: &str) -> Result<PathBuf> {
        let path = self.path(&format!("{user}.kubeconfig"));
        if !path.is_file() {
            bail!("the plane has no user {user:?}");
        }
        Ok(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    async fn launch(&self, [port, etcd, etcd_peer, controllers, scheduler]: [u16; 5]) -> Result<()> {
        for user in ["admin", "full", "classic"] {
            self.add_user(user, &format!("{user}-{port}-{}", std::process::id()))?;
        }
        self.write_tokens()?;
        self.write_service_account_key()?;
        let client_url = format!("http://127.0.0.1:{etcd}");
        self.processes.start(
            "etcd",
            &etcd_program(),
            &[
                format!("--data-dir={}", self.text("etcd")),
                "--unsafe-no-fsync".to_owned(),
                format!("--listen-peer-urls=http://127.0.0.1:{etcd_peer}"),
                format!("--listen-client-urls={client_url}"),
                format!("--advertise-client-urls={client_url}"),
            ],
        )?;
        self.start_apiserver(port, &client_url)?;
        let ready = async || {
            let client = self.client().await.ok()?;
            let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
            client.request_text(request).await.ok()
        };
        self.wait("the apiserver is ready", ready).await?;
        self.start_controllers(controllers, scheduler)?;
        self.grant_presets().await?;
        let client = self.client().await?;
        let accounts = kube::Api::<k8s_openapi::api::core::v1::ServiceAccount>::namespaced(client, "default");
        // Without it no pod can be created.
        let account = async || accounts.get("default").await.ok();
        self.wait("the default service account is there", account).await?;
        Ok(())
    }

    fn start_apiserver(&self, port: u16, etcd: &str) -> Result<()> {
        let key = self.text("sa.key");
        let args = [
            format!("--etcd-servers={etcd}"),
            format!("--cert-dir={}", self.text("certs")),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            // It would refuse to write a loopback address into the Endpoints of the service "kubernetes".
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={port}"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            format!("--token-auth-file={}", self.text("tokens.csv")),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
        ];
        self.processes
            .start("apiserver", &kube_bin().join("kube-apiserver"), &args)
    }

    fn start_controllers(&self, controllers: u16, scheduler: u16) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.text("admin.kubeconfig"));
        let leader = "--leader-elect=false".to_owned();
        let args = [
            kubeconfig.clone(),
            leader.clone(),
            // No kubelet renews a lease, and no node has a network.
            "--controllers=*,-node-lifecycle-controller,-node-ipam-controller".to_owned(),
            format!("--service-account-private-key-file={}", self.text("sa.key")),
            format!("--root-ca-file={}", self.text("certs/apiserver.crt")),
            "--use-service-account-credentials".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={controllers}"),
            format!("--cert-dir={}", self.text("certs-controllers")),
            format!("--flex-volume-plugin-dir={}", self.text("flex")),
            // What the volume controller missed it finds after a second, not after 15.
            "--pvclaimbinder-sync-period=1s".to_owned(),
            // Tests with a thousand volumes are not about the client's own limits.
            "--kube-api-qps=500".to_owned(),
            "--kube-api-burst=1000".to_owned(),
        ];
        self.processes
            .start("controller-manager", &kube_bin().join("kube-controller-manager"), &args)?;
        let args = [
            kubeconfig,
            leader,
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={scheduler}"),
            format!("--cert-dir={}", self.text("certs-scheduler")),
        ];
        self.processes
            .start("scheduler", &kube_bin().join("kube-scheduler"), &args)
    }

    fn write_tokens(&self) -> Result<()> {
        let tokens = self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lines = tokens.iter().map(|(user, token)| match user.as_str() {
            "admin" => format!("{token},admin,admin,system:masters\n"),
            user => format!("{token},{user},{user}\n"),
        });
        fs::write(self.path("tokens.csv"), lines.collect::<String>()).context("write tokens.csv")
    }

    fn write_service_account_key(&self) -> Result<()> {
        let output = std::process::Command::new("openssl")
            .args(["genrsa", "-out", &self.text("sa.key"), "2048"])
            .output()
            .context("run openssl")?;
        if !output.status.success() {
            bail!("openssl genrsa: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Writes the kubeconfig of a user with this token.
    fn add_user(&self, user: &str, token: &str) -> Result<PathBuf> {
        let mut tokens = self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tokens.insert(user.to_owned(), token.to_owned());
        let path = self.path(&format!("{user}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"{}\", certificate-authority: {}}}}}]\n\
             users: [{{name: u, user: {{token: \"{token}\"}}}}]\n",
            self.server,
            self.text("certs/apiserver.crt"),
        );
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Asks every 50 ms until there is an answer; ends early if a process of the plane has ended.
    async fn wait<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        let end = tokio::time::Instant::now() + STEP_DEADLINE;
        while tokio::time::Instant::now() < end {
            if let Some(found) = ask().await {
                return Ok(found);
            }
            self.processes.check()?;
            tokio::time::sleep(POLL).await;
        }
        bail!("not within {STEP_DEADLINE:?}: {what}")
    }
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn kube_bin() -> PathBuf {
    match env::var_os("KUBE_BIN") {
        Some(dir) => dir.into(),
        None => PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/kube"),
    }
}

/// Ports that were free a moment ago, all different.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// The etcd beside the Kubernetes programs, else that of the PATH.
fn etcd_program() -> PathBuf {
    let beside = kube_bin().join("etcd");
    if beside.is_file() { beside } else { "etcd".into() }
}
