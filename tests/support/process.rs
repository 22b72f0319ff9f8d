//! The daemon of a test's node as a process, which may be killed at any instruction and is started again, and many such
//! nodes beside each other.

// Each test binary uses what it needs.
#![allow(dead_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::node::{DEADLINE, Node};

/// So many nodes at a time: they wait for the control plane most of the time.
pub const AT_A_TIME: usize = 10;

/// What one process after the other is given as FAILPOINTS.
type Arms = Box<dyn Iterator<Item = String>>;

/// A daemon that is started again whenever it was killed.
pub struct Daemon {
    inner: Rc<Inner>,
    supervisor: tokio::task::JoinHandle<()>,
}

struct Inner {
    node: Rc<Node>,
    /// What the next processes are armed with; once they are used up, nothing.
    arms: RefCell<Arms>,
    child: RefCell<Option<Child>>,
    /// How often it was killed, by a fail point or by the test.
    killed: Cell<u32>,
    ended: RefCell<Option<String>>,
}

impl Inner {
    fn spawn(&self) -> Result<()> {
        let node = &self.node;
        let settings = node.settings.borrow().clone();
        let arms = self.arms.borrow_mut().next().unwrap_or_default();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(node.path("daemon.log"))?;
        let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
        // It ends with this thread, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(env!("CARGO_BIN_EXE_local-volume-provisioner"))
            .env("MY_NODE_NAME", &node.name)
            .env("MY_NAMESPACE", &settings.namespace)
            .env("JOB_CONTAINER_IMAGE", "none")
            .env("KUBECONFIG", node.plane.kubeconfig_of(node.world.user)?)
            .env("FAILPOINTS", arms)
            .env("FAILPOINTS_DIR", node.path("held"))
            .env_remove("RUST_LOG")
            .arg("--listen-address=")
            .arg("--config-dir")
            .arg(&settings.config_dir)
            .arg("--host-mountinfo")
            .arg(&settings.scan.host_mountinfo)
            .args(["--discovery-period", &milliseconds(settings.limits.discovery_period)])
            .args(["--grace-period", &milliseconds(settings.limits.grace_period)])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .context("run setpriv")?;
        *self.child.borrow_mut() = Some(child);
        Ok(())
    }

    /// Starts it again if it was killed. What ended in any other way is remembered.
    fn look(&self) -> Result<()> {
        let Some(status) = self.child.borrow_mut().as_mut().map(Child::try_wait) else {
            return Ok(());
        };
        match status? {
            None => Ok(()),
            Some(status) if status.signal() == Some(9) => {
                self.killed.set(self.killed.get() + 1);
                self.spawn()
            }
            Some(status) => bail!("the daemon ended by itself: {status}"),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.borrow_mut().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Daemon {
    /// Starts it. Each of `arms` is what one process is given as FAILPOINTS, one after the other.
    pub fn start(node: &Rc<Node>, arms: impl IntoIterator<Item = String> + 'static) -> Result<Self> {
        let inner = Rc::new(Inner {
            node: Rc::clone(node),
            arms: RefCell::new(Box::new(arms.into_iter())),
            child: RefCell::new(None),
            killed: Cell::new(0),
            ended: RefCell::new(None),
        });
        std::fs::create_dir_all(node.path("held"))?;
        // Beside many others, whose PVs are in every answer.
        node.poll.set(Duration::from_millis(80));
        inner.spawn()?;
        let watched = Rc::clone(&inner);
        let supervisor = tokio::task::spawn_local(async move {
            loop {
                if let Err(error) = watched.look() {
                    watched.child.borrow_mut().take();
                    *watched.ended.borrow_mut() = Some(format!("{error:#}"));
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Ok(Self { inner, supervisor })
    }

    /// How often it was killed so far.
    pub fn killed(&self) -> u32 {
        self.inner.killed.get()
    }

    /// Waits until it was killed as often as that.
    pub async fn killed_times(&self, times: u32) -> Result<()> {
        let end = tokio::time::Instant::now() + DEADLINE;
        while self.killed() < times {
            self.check()?;
            ensure!(
                tokio::time::Instant::now() < end,
                "the fail point was not reached: {} of {times} times",
                self.killed()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Kills it as by `kill -9`; it is started again.
    pub fn kill(&self) -> Result<()> {
        if let Some(child) = self.inner.child.borrow_mut().as_mut() {
            child.kill()?;
        }
        Ok(())
    }

    /// An error if it has ended otherwise than by being killed.
    pub fn check(&self) -> Result<()> {
        match self.inner.ended.borrow().as_ref() {
            Some(how) => bail!("{how}; its log is\n{}", self.log()),
            None => Ok(()),
        }
    }

    /// What it has logged, all of its processes.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.inner.node.path("daemon.log")).unwrap_or_default()
    }

    /// Waits until it has logged a text.
    pub async fn logged(&self, text: &str) -> Result<()> {
        self.logged_after("", text).await
    }

    /// Waits until it has logged a text after what its log was then.
    pub async fn logged_after(&self, then: &str, text: &str) -> Result<()> {
        let end = tokio::time::Instant::now() + DEADLINE;
        while !self.log().get(then.len()..).is_some_and(|log| log.contains(text)) {
            self.check()?;
            ensure!(
                tokio::time::Instant::now() < end,
                "{text:?} was not logged; the log is\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ends it as Kubernetes does. It must end well.
    pub async fn stop(&self) -> Result<()> {
        self.check()?;
        let Some(mut child) = self.inner.child.borrow_mut().take() else {
            return Ok(());
        };
        // A process that was killed in this moment is no failure.
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            if let Some(status) = child.try_wait()? {
                match status.signal() {
                    Some(15) => {} // Before it could handle it.
                    Some(9) => self.inner.killed.set(self.killed() + 1),
                    _ => ensure!(status.success(), "it ended with {status}; its log is\n{}", self.log()),
                }
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                child.kill()?;
                child.wait()?;
                bail!("it does not end; its log is\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts it again after [`stop`](Self::stop), armed as by [`start`](Self::start).
    pub fn again(&self, arms: impl IntoIterator<Item = String> + 'static) -> Result<()> {
        *self.inner.arms.borrow_mut() = Box::new(arms.into_iter());
        self.inner.spawn()
    }

    /// Waits until a thread of it is held at a point (`<point>=pause`).
    pub async fn held(&self, point: &str) -> Result<Held> {
        let file = self.inner.node.path("held").join(point);
        let end = tokio::time::Instant::now() + DEADLINE;
        while !file.exists() {
            self.check()?;
            ensure!(
                tokio::time::Instant::now() < end,
                "{point} was not reached; the log is\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Held { file })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.supervisor.abort();
        if let Some(mut child) = self.inner.child.borrow_mut().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A thread of the daemon that is held; it goes on when this is dropped.
pub struct Held {
    file: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Runs all jobs, so many at a time, each on a thread of its own; the errors of those that failed.
pub fn beside_each_other<T: Send + Sync>(
    workers: usize,
    jobs: Vec<T>,
    run: impl Fn(&T) -> Result<()> + Sync,
    name: impl Fn(&T) -> String + Sync,
) -> Vec<String> {
    let jobs = Mutex::new(jobs.into_iter().collect::<VecDeque<T>>());
    let failed = Mutex::new(Vec::new());
    let worker = || {
        loop {
            let Some(job) = jobs.lock().unwrap().pop_front() else {
                return;
            };
            // A thread of its own: it moves into a mount namespace.
            let ended = std::thread::scope(|scope| scope.spawn(|| run(&job)).join());
            let error = match ended {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "it panicked".to_owned(),
            };
            failed.lock().unwrap().push(format!("{}: {error}", name(&job)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(worker);
        }
    });
    failed.into_inner().unwrap()
}
