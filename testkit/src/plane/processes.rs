//! The processes of a plane, which end with it or with the process that made it, whichever is first.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use anyhow::{Context, Result, bail};

/// Lines of each log in an error.
const TAIL_LINES: usize = 8;

type Start = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// Running children, each with a log file.
pub(crate) struct Processes {
    dir: PathBuf,
    /// To the thread that starts them. The kernel kills the children when the *thread* that started them ends, so
    /// it cannot be a test's.
    starter: Option<mpsc::Sender<Start>>,
    children: Mutex<Vec<(&'static str, Child)>>,
    /// Removes the directory when its standard input closes, that is, when this process ends.
    janitor: Child,
}

impl Processes {
    pub(crate) fn new(dir: &Path) -> Result<Processes> {
        let (starter, requests) = mpsc::channel::<Start>();
        thread::Builder::new()
            .name("plane".to_owned())
            .spawn(move || {
                for (mut command, answer) in requests {
                    // The receiver waits for it.
                    let _ = answer.send(command.spawn());
                }
            })
            .context("start a thread")?;
        // The killed processes may still write for a moment. In a session of its own: ^C is not for it.
        let script = r#"cat >/dev/null; for i in 1 2 3 4 5; do rm -rf "$0"; sleep 0.2; done; rm -rf "$0""#;
        let janitor = Command::new("setsid")
            .args(["sh", "-c", script])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run setsid sh")?;
        Ok(Processes {
            dir: dir.to_owned(),
            starter: Some(starter),
            children: Mutex::default(),
            janitor,
        })
    }

    /// Starts a program whose output goes to `<name>.log`.
    pub(crate) fn start(&self, name: &'static str, program: &Path, args: &[String]) -> Result<()> {
        let log = File::create(self.log(name)).with_context(|| format!("create {}", self.log(name).display()))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let (answer, child) = mpsc::sync_channel(1);
        let starter = self.starter.as_ref().context("the plane has ended")?;
        starter
            .send((command, answer))
            .ok()
            .context("the starting thread is gone")?;
        let child = child.recv()?.with_context(|| format!("run {}", program.display()))?;
        self.children().push((name, child));
        Ok(())
    }

    /// An error if one has ended.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, child) in self.children().iter_mut() {
            if let Some(status) = child.try_wait()? {
                bail!("{name} has ended: {status}");
            }
        }
        Ok(())
    }

    /// The last lines of every log.
    pub(crate) fn log_tails(&self) -> String {
        let mut text = String::new();
        for (name, _) in self.children().iter() {
            let log = fs::read_to_string(self.log(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
            text += &format!("{name}.log ends:\n  {tail}\n");
        }
        text
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn children(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, Child)>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (_, child) in self.children().iter_mut() {
            // Either may find that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.starter = None;
        // Our directory is the owner's to remove now.
        let _ = self.janitor.kill();
        let _ = self.janitor.wait();
    }
}
