//! Running the program, and an API server for it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use testkit::api::Api;
use testkit::mounts;

/// The program, with nothing in its environment that it looks at.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_local-volume-provisioner"));
    for name in [
        "MY_NODE_NAME",
        "MY_NAMESPACE",
        "KUBECONFIG",
        "KUBERNETES_SERVICE_HOST",
        "RUST_LOG",
    ] {
        command.env_remove(name);
    }
    command
}

/// How it ended: exit code, standard output, standard error.
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn run(args: &[&str]) -> Ended {
    ended(program().args(args).output().unwrap())
}

pub fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a test with a directory of its own on a thread with a mount namespace of its own, which programs that are
/// started there share.
pub fn in_namespace(name: &str, test: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: {name}: needs root for mounts");
        return;
    }
    let thread = std::thread::spawn(move || {
        mounts::private_namespace().unwrap();
        let dir = tempfile::tempdir().unwrap();
        test(dir.path());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// An API server on a port of this machine, with a node and a class. It ends with the process.
pub struct Server {
    pub api: Api,
    address: String,
}

impl Server {
    pub fn start() -> Self {
        let api = Api::new();
        api.create_node("node1", "host1");
        api.create_storage_class("fast", "Delete");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        listener.set_nonblocking(true).unwrap();
        let served = api.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let _controllers = served.run_controllers();
                served.serve(tokio::net::TcpListener::from_std(listener).unwrap()).await
            })
        });
        Self { api, address }
    }

    /// A kubeconfig for a user, as a file in this directory.
    pub fn kubeconfig(&self, dir: &Path, user: &str) -> PathBuf {
        let path = dir.join(format!("{user}.kubeconfig"));
        std::fs::write(&path, Api::kubeconfig(&self.address, user)).unwrap();
        path
    }
}

/// A configuration directory with the class `fast` at `<dir>/fast`, which is made.
pub fn configuration(dir: &Path) -> PathBuf {
    let config = dir.join("config");
    std::fs::create_dir_all(&config).unwrap();
    let directory = dir.join("fast");
    std::fs::create_dir_all(&directory).unwrap();
    let map = format!("fast:\n  hostDir: {0}\n  mountDir: {0}\n", directory.display());
    std::fs::write(config.join("storageClassMap"), map).unwrap();
    config
}
