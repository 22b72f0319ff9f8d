//! The daemon as a process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::mounts;

use crate::program::{Server, configuration, in_namespace, program};

const DEADLINE: Duration = Duration::from_secs(40);

/// Ends with the test, however that ends.
pub struct Daemon {
    child: Child,
    address: SocketAddr,
    /// Of its status page.
    pub status: SocketAddr,
}

/// An address that nothing listens on.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Daemon {
    pub fn start(dir: &Path, server: &Server, user: &str, more: impl FnOnce(&mut Command)) -> Self {
        Self::start_at(free_address(), dir, server, user, more)
    }

    /// With its status page there.
    pub fn start_at(
        status: SocketAddr,
        dir: &Path,
        server: &Server,
        user: &str,
        more: impl FnOnce(&mut Command),
    ) -> Self {
        let address = free_address();
        let mut command = program();
        command
            .env("MY_NODE_NAME", "node1")
            .env("MY_NAMESPACE", "default")
            .env("KUBECONFIG", server.kubeconfig(dir, user))
            .arg(format!("--listen-address=:{}", address.port()))
            .arg(format!("--status-address={status}"))
            .arg("--config-dir")
            .arg(configuration(dir))
            .args(["--host-mountinfo", "/proc/self/mountinfo"])
            .stderr(Stdio::null());
        more(&mut command);
        let child = command.spawn().unwrap();
        Self { child, address, status }
    }

    /// The head and the body of an answer.
    fn get(&self, path: &str, accept: &str) -> Option<(String, String)> {
        get(self.address, path, accept)
    }

    pub fn until(&mut self, path: &str, holds: impl Fn(&str, &str) -> bool) {
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = self.get(path, "*/*");
            if answer.as_ref().is_some_and(|(head, body)| holds(head, body)) {
                return;
            }
            assert_eq!(self.child.try_wait().unwrap(), None, "it has ended");
            assert!(Instant::now() < end, "{path} says {answer:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub fn terminate(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn get(address: SocketAddr, path: &str, accept: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

pub fn is_ok(head: &str) -> bool {
    head.starts_with("HTTP/1.1 200")
}

pub fn wait(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All that dashboards know, with its type; `persistentvolume_delete_failed_total` appears with the first failure.
const METRICS: [(&str, &str); 12] = [
    ("persistentvolume_capacity_bytes", "gauge"),
    ("persistentvolume_discovery_total", "counter"),
    ("persistentvolume_discovery_duration_seconds", "histogram"),
    ("persistentvolume_delete_total", "counter"),
    ("persistentvolume_delete_duration_seconds", "histogram"),
    ("apiserver_requests_total", "counter"),
    ("apiserver_requests_failed_total", "counter"),
    ("apiserver_requests_duration_seconds", "histogram"),
    ("proctable_running", "gauge"),
    ("proctable_succeeded", "gauge"),
    ("proctable_failed", "gauge"),
    ("volumes", "gauge"),
];

#[test]
fn it_serves_a_volume_s_life_and_its_endpoints() {
    in_namespace("a_volume_s_life", |dir| {
        for user in ["full", "classic"] {
            let dir = &dir.join(user);
            std::fs::create_dir(dir).unwrap();
            let server = Server::start();
            configuration(dir);
            mounts::tmpfs(&dir.join("fast/disk1"), 16 << 20).unwrap();
            let mut daemon = Daemon::start(dir, &server, user, |_| {});
            for path in ["/ready", "/ready/DiscovererReadyzCheck", "/readyz", "/livez"] {
                daemon.until(path, |head, body| is_ok(head) && body == "ok\n");
            }
            let pv = || {
                server
                    .api
                    .list("persistentvolumes")
                    .pop()
                    .filter(|pv| pv["status"]["phase"] == "Available")
            };
            wait("published", || pv().is_some());
            let first = pv().unwrap();
            server.api.create_claim("default", "a", "fast");
            server
                .api
                .bind("default", "a", first["metadata"]["name"].as_str().unwrap())
                .unwrap();
            std::fs::write(dir.join("fast/disk1/file"), "secret").unwrap();
            server.api.delete_claim("default", "a").unwrap();
            wait("published again", || {
                pv().is_some_and(|pv| pv["metadata"]["uid"] != first["metadata"]["uid"])
            });
            assert!(std::fs::read_dir(dir.join("fast/disk1")).unwrap().next().is_none());
            daemon.until("/metrics", |_, body| {
                body.contains("local_volume_provisioner_persistentvolume_discovery_total{mode=\"Filesystem\"} 2\n")
            });
            let (head, body) = daemon.get("/metrics", "text/plain").unwrap();
            assert!(
                head.to_lowercase().contains("content-type: text/plain; version=0.0.4"),
                "{head}"
            );
            for (name, kind) in METRICS {
                let line = format!("# TYPE local_volume_provisioner_{name} {kind}\n");
                assert!(body.contains(&line), "{line} is not in\n{body}");
            }
            for line in [
                "persistentvolume_delete_total{mode=\"Filesystem\",type=\"process\"} 1",
                "persistentvolume_capacity_bytes{mode=\"Filesystem\"} 16777216",
                "apiserver_requests_total{method=\"create\"} 2",
                "apiserver_requests_total{method=\"delete\"} 1",
                "api_requests_total{resource=\"persistentvolumes\",result=\"ok\",verb=\"create\"} 2",
                "released_to_available_seconds_count 1",
                "oldest_release_timestamp_seconds 0",
                "scrubbed_entries_total 1",
                "wakes_total{cause=\"start\"} 1",
                "ready 1",
                "config_last_reload_successful 1",
                "volumes{state=\"available\",storage_class=\"fast\"} 1",
                "persistentvolume_delete_duration_seconds_count{capacity=\"500G\",cleanup_command=\"fsclean\",mode=\"Filesystem\",type=\"process\"} 1",
            ] {
                let line = format!("local_volume_provisioner_{line}\n");
                daemon.until("/metrics", |_, body| body.contains(&line));
            }
            assert!(daemon.get("/nowhere", "*/*").unwrap().0.starts_with("HTTP/1.1 404"));
            let signal = if user == "full" {
                Signal::SIGTERM
            } else {
                Signal::SIGINT
            };
            assert_eq!(daemon.terminate(signal), Some(0));
        }
    });
}

#[test]
fn the_classic_command_line_is_taken() {
    in_namespace("classic_command_line", |dir| {
        let server = Server::start();
        let mut daemon = Daemon::start(dir, &server, "classic", |command| {
            command.args([
                "-v=4",
                "--logtostderr",
                "-alsologtostderr=true",
                "--vmodule=a=2",
                "-stderrthreshold",
                "INFO",
            ]);
            command.args([
                "-discovery-period=1m30s",
                "--config-sync-period",
                "5s",
                "--metrics-path",
                "/other",
            ]);
        });
        daemon.until("/ready", |head, _| is_ok(head));
        assert!(is_ok(&daemon.get("/other", "*/*").unwrap().0));
        assert!(!is_ok(&daemon.get("/metrics", "*/*").unwrap().0));
    });
}

#[test]
fn an_address_without_a_host_is_every_address() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("SKIPPED: an_address_without_a_host_is_every_address: this machine has no IPv6");
        return;
    }
    in_namespace("every_address", |dir| {
        let server = Server::start();
        let mut daemon = Daemon::start(dir, &server, "classic", |_| {});
        daemon.until("/ready", |head, _| is_ok(head));
        let six = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, daemon.address.port()));
        assert!(
            get(six, "/livez", "*/*").is_some_and(|(head, _)| is_ok(&head)),
            "not on IPv6"
        );
    });
}

#[test]
fn a_second_provisioner_on_the_same_directories_writes_nothing() {
    in_namespace("second_provisioner", |dir| {
        let server = Server::start();
        let mut first = Daemon::start(dir, &server, "full", |_| {});
        first.until("/ready", |head, _| is_ok(head));
        let other = Server::start();
        mounts::tmpfs(&dir.join("fast/disk1"), 16 << 20).unwrap();
        let mut second = Daemon::start(dir, &other, "full", |_| {});
        second.until("/readyz", |head, body| {
            head.contains(" 503 ") && body.contains("another provisioner")
        });
        wait("the first publishes", || {
            !server.api.list("persistentvolumes").is_empty()
        });
        assert!(other.api.list("persistentvolumes").is_empty());
        assert_eq!(first.terminate(Signal::SIGTERM), Some(0));
        second.until("/readyz", |head, _| is_ok(head));
        wait("the second publishes", || {
            !other.api.list("persistentvolumes").is_empty()
        });
    });
}

#[test]
fn without_a_configuration_it_waits_for_one() {
    in_namespace("without_configuration", |dir| {
        let server = Server::start();
        mounts::tmpfs(&dir.join("fast/disk1"), 16 << 20).unwrap();
        let config = configuration(dir).join("storageClassMap");
        let good = std::fs::read_to_string(&config).unwrap();
        let mut daemon = Daemon::start(dir, &server, "full", |_| std::fs::write(&config, "fast: [\n").unwrap());
        daemon.until("/readyz", |head, body| {
            head.contains(" 503 ") && body.contains("storageClassMap")
        });
        std::fs::write(&config, good).unwrap();
        daemon.until("/readyz", |head, _| is_ok(head));
        wait("published", || !server.api.list("persistentvolumes").is_empty());
    });
}
