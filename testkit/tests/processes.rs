//! The server on a socket, and the life and death of a real control plane.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use testkit::{api::Api, plane::Plane};

/// Set for the child of a test.
const CHILD: &str = "TESTKIT_CHILD";
const DEADLINE: Duration = Duration::from_secs(30);

fn wait(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn the_server_in_the_process_listens() {
    let api = Api::new();
    api.create_node("node1", "node1");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn({
        let api = api.clone();
        async move { api.serve(listener).await }
    });
    let kubeconfig = Kubeconfig::from_yaml(&Api::kubeconfig(&address, "classic")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    let nodes = kube::Api::<Node>::all(Client::try_from(config).unwrap());
    assert!(nodes.get("node1").await.is_ok());
    assert!(
        nodes.delete("node1", &Default::default()).await.is_err(),
        "the token says who asks"
    );
    serving.abort();
    assert_eq!(api.requests()[0].user, "classic");
}

#[test]
fn a_plane_has_users_and_ends_when_dropped() {
    if let Err(missing) = Plane::available() {
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let plane = Plane::start().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let rules = [(&[""][..], &["persistentvolumes"][..], &["list"][..])];
        plane.user("reader", &rules).await.unwrap();
        let pvs = kube::Api::<PersistentVolume>::all(plane.client_of("reader").await.unwrap());
        let list = async || pvs.list(&Default::default()).await.ok();
        plane.wait_for("the role is in force", DEADLINE, list).await.unwrap();
        assert!(
            pvs.get("x")
                .await
                .is_err_and(|e| matches!(e, kube::Error::Api(s) if s.code == 403))
        );
        assert!(plane.client_of("nobody").await.is_err());
    });
    let (dir, address) = (plane.dir().to_owned(), plane.server().replace("https://", ""));
    drop(plane);
    assert!(!dir.exists() && TcpStream::connect(address).is_err());
}

/// Not a test: what [`a_plane_ends_with_its_process`] kills.
#[test]
fn start_a_plane_and_wait() {
    // The child of the test below; by itself it is none.
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let plane = Plane::start().unwrap();
    println!("\nplane {} {}", plane.dir().display(), plane.server());
    std::thread::sleep(DEADLINE);
}

#[test]
fn a_plane_ends_with_its_process() {
    if let Err(missing) = Plane::available() {
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "start_a_plane_and_wait", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|l| l.starts_with("plane ")).unwrap();
    let mut words = line.split(' ').skip(1);
    let (dir, server) = (words.next().unwrap(), words.next().unwrap());
    let address = server.replace("https://", "");
    assert!(Path::new(dir).is_dir() && TcpStream::connect(&address).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
    wait("the apiserver has ended", || TcpStream::connect(&address).is_err());
    wait("the files are removed", || !Path::new(dir).exists());
    let named_in = |cmdline: Vec<u8>| String::from_utf8_lossy(&cmdline).contains(dir);
    wait("all its processes have ended", || {
        let mut processes = fs::read_dir("/proc").unwrap().flatten();
        !processes.any(|p| fs::read(p.path().join("cmdline")).is_ok_and(named_in))
    });
}
