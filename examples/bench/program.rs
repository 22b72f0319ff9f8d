//! A program under measurement, and what /proc says of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is run.
pub(crate) struct Binary {
    pub(crate) path: PathBuf,
    args: Vec<String>,
}

impl Binary {
    pub(crate) fn new(path: &Path, args: Vec<String>) -> Result<Self> {
        let path = path
            .canonicalize()
            .with_context(|| format!("no program {}", path.display()))?;
        Ok(Self { path, args })
    }

    /// The same with one more argument.
    pub(crate) fn with(&self, argument: String) -> Self {
        let args = self.args.iter().cloned().chain([argument]).collect();
        let path = self.path.clone();
        Self { path, args }
    }

    /// Runs it as the provisioner of a node.
    pub(crate) fn start(&self, node: &str, kubeconfig: &Path, log: &Path) -> Result<Running> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let began = Instant::now();
        // It ends with this process, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.path)
            .args(&self.args)
            .arg(format!("--listen-address=127.0.0.1:{port}"))
            .env("MY_NODE_NAME", node)
            .env("MY_NAMESPACE", "default")
            .env("JOB_CONTAINER_IMAGE", "none")
            .env("KUBECONFIG", kubeconfig)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log)?)
            .spawn()
            .context("run setpriv")?;
        Ok(Running {
            child,
            began,
            port,
            log: log.to_owned(),
        })
    }
}

/// A running program, killed when dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) began: Instant,
    port: u16,
    log: PathBuf,
}

/// In MB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    pub(crate) anonymous: f64,
}

impl Running {
    /// An error with the end of its log if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            bail!(
                "it ended: {status}\n{}",
                lines[lines.len().saturating_sub(5)..].join("\n")
            );
        }
        Ok(())
    }

    /// Waits until it serves its metrics; the time since its start.
    pub(crate) async fn serves(&mut self) -> Result<Duration> {
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            self.check()?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(self.began.elapsed())
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        loop {
            self.check()?;
            if self
                .get("/readyz")
                .await
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many passes it has made, if it counts them.
    pub(crate) async fn passes(&self) -> Result<Option<f64>> {
        let metrics = self.get("/metrics").await?;
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix("local_volume_provisioner_pass_duration_seconds_count "));
        Ok(count.and_then(|count| count.trim().parse().ok()))
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = self.proc("status")?;
        // The file's kB are of 1,024 bytes (proc(5)).
        let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
        Ok(Memory {
            resident: megabytes(number(&status, "VmRSS:")?),
            anonymous: megabytes(number(&status, "RssAnon:")?),
        })
    }

    /// CPU time of all its threads, also of those that have ended.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.child.id().try_into()?)).context("its CPU clock")?;
        Ok(clock_gettime(clock).context("its CPU clock")?.into())
    }

    /// Of the threads that live now.
    pub(crate) fn context_switches(&self) -> Result<u64> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // It may have ended meanwhile.
            let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            sum += number(&status, "\nvoluntary_ctxt_switches:").unwrap_or(0);
            sum += number(&status, "\nnonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Ok(sum)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either may find that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(text: &str, key: &str) -> Result<u64> {
    let rest = text.split_once(key).with_context(|| format!("no {key}"))?.1;
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().with_context(|| format!("{key} {word}"))
}
