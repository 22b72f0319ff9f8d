//! How much the daemon logs, and how that is changed while it runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use testkit::mounts;

use crate::daemon::{Daemon, free_address, is_ok, wait};
use crate::program::{Server, configuration, in_namespace, run};

/// Makes a daemon log to this file, and pass often.
fn logging(dir: &Path) -> (PathBuf, impl FnOnce(&mut Command)) {
    let path = dir.join("daemon.log");
    let file = std::fs::File::create(&path).unwrap();
    (path, move |command: &mut Command| {
        command.stderr(file).args(["--discovery-period", "100ms"]);
    })
}

fn lines(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn passes(log: &Path) -> usize {
    let is_pass = |line: &&String| line.contains("DEBUG") && line.contains("pass");
    lines(log).iter().filter(is_pass).count()
}

/// The head and the body of the answer to a request with these header lines.
fn ask(address: SocketAddr, what: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{what} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.trim().to_owned())
}

#[test]
fn a_signal_turns_debug_lines_on_and_off_and_nothing_is_logged_while_nothing_happens() {
    in_namespace("log_signal", |dir| {
        let server = Server::start();
        mounts::tmpfs(&configuration(dir).join("../fast"), 1 << 20).unwrap();
        std::fs::create_dir(dir.join("fast/disk1")).unwrap();
        mounts::tmpfs(&dir.join("fast/disk1"), 16 << 20).unwrap();
        let (log, with_log) = logging(dir);
        let mut daemon = Daemon::start(dir, &server, "full", with_log);
        daemon.until("/readyz", |head, _| is_ok(head));
        wait("published", || !server.api.list("persistentvolumes").is_empty());
        daemon.until("/metrics", |_, body| {
            body.contains("volumes{state=\"available\",storage_class=\"fast\"} 1\n")
        });
        assert_eq!(passes(&log), 0);
        daemon.signal(Signal::SIGUSR1);
        wait("passes are logged", || passes(&log) > 0);
        // Idle from here on: the rest of what publishing brought is in.
        let settled = passes(&log) + 3;
        wait("a few passes", || passes(&log) >= settled);
        let before = lines(&log).len();
        wait("more passes", || passes(&log) >= settled + 5);
        let idle = lines(&log).split_off(before);
        let loud: Vec<&String> = idle.iter().filter(|line| !line.contains("DEBUG")).collect();
        assert!(loud.is_empty(), "{loud:?}");

        daemon.signal(Signal::SIGUSR1);
        let off = |line: &String| line.contains("log level") && line.contains("info");
        wait("off again", || lines(&log).iter().any(off));
        std::fs::create_dir(dir.join("fast/disk2")).unwrap();
        mounts::tmpfs(&dir.join("fast/disk2"), 16 << 20).unwrap();
        wait("published", || server.api.list("persistentvolumes").len() == 2);
        let after = lines(&log);
        let at = after.iter().position(off).unwrap();
        assert!(
            after[at..].iter().all(|line| !line.contains("DEBUG")),
            "{:?}",
            &after[at..]
        );
        assert!(after[at..].iter().any(|line| line.contains("disk2")));
        assert_eq!(daemon.terminate(Signal::SIGTERM), Some(0));
    });
}

#[test]
fn the_command_changes_the_level_and_no_website_can() {
    in_namespace("log_command", |dir| {
        let server = Server::start();
        let (log, with_log) = logging(dir);
        let mut daemon = Daemon::start(dir, &server, "full", with_log);
        daemon.until("/readyz", |head, _| is_ok(head));
        let address = daemon.status.to_string();
        let asked = |more: &[&str]| {
            let ended = run(&[&["log", "--address", &address], more].concat());
            assert_eq!(ended.code, Some(0), "{}", ended.err);
            ended.out.trim().to_owned()
        };
        wait("the page is there", || TcpStream::connect(daemon.status).is_ok());
        assert_eq!(asked(&[]), "info");
        assert_eq!(asked(&["debug"]), "debug");
        wait("passes are logged", || passes(&log) > 0);
        assert_eq!(asked(&[]), "debug");
        for (what, headers, code) in [
            ("PUT /log", "Host: localhost\r\nContent-Length: 5\r\n", " 400 "),
            ("PUT /log", "Host: localhost\r\nX-Log-Level: loud\r\n", " 400 "),
            ("POST /log", "Host: localhost\r\nX-Log-Level: trace\r\n", " 405 "),
            ("PUT /log", "Host: evil.example\r\nX-Log-Level: trace\r\n", " 403 "),
            (
                "OPTIONS /log",
                "Host: localhost\r\nOrigin: http://evil.example\r\n",
                " 405 ",
            ),
        ] {
            let (head, body) = ask(daemon.status, what, headers);
            assert!(
                head.lines().next().unwrap().contains(code),
                "{what} {headers}: {head} {body}"
            );
            assert!(!head.to_lowercase().contains("access-control-allow"), "{head}");
        }
        assert_eq!(asked(&[]), "debug", "as it was");
        assert_eq!(asked(&["info"]), "info");
        assert_ne!(run(&["log", "loud", "--address", &address]).code, Some(0));
        assert_eq!(daemon.terminate(Signal::SIGTERM), Some(0));
    });
}

#[test]
fn an_address_that_others_reach_does_not_let_the_level_be_changed() {
    in_namespace("log_elsewhere", |dir| {
        let server = Server::start();
        configuration(dir);
        let port = free_address().port();
        let everywhere = SocketAddr::from(([0, 0, 0, 0], port));
        let mut daemon = Daemon::start_at(everywhere, dir, &server, "full", |_| {});
        daemon.until("/readyz", |head, _| is_ok(head));
        let local = SocketAddr::from(([127, 0, 0, 1], port));
        wait("the page is there", || TcpStream::connect(local).is_ok());
        for what in ["GET /log", "PUT /log"] {
            let (head, _) = ask(local, what, "Host: localhost\r\nX-Log-Level: debug\r\n");
            assert!(head.contains(" 404 "), "{what}: {head}");
        }
    });
}

#[test]
fn as_json_each_line_is_an_object() {
    in_namespace("log_json", |dir| {
        let server = Server::start();
        configuration(dir);
        mounts::tmpfs(&dir.join("fast/disk1"), 16 << 20).unwrap();
        let (log, with_log) = logging(dir);
        let mut daemon = Daemon::start(dir, &server, "full", |command| {
            with_log(command);
            command.args(["--log-format", "json", "-v=4"]);
        });
        daemon.until("/readyz", |head, _| is_ok(head));
        wait("published", || !server.api.list("persistentvolumes").is_empty());
        assert_eq!(daemon.terminate(Signal::SIGTERM), Some(0));
        let objects: Vec<serde_json::Value> = lines(&log)
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        let of = |message: &str| {
            let found = objects.iter().find(|object| object["fields"]["message"] == message);
            found.unwrap_or_else(|| panic!("no {message:?} in {objects:?}"))
        };
        assert_eq!(of("volume")["level"], "INFO");
        assert_eq!(of("volume")["fields"]["class"], "fast");
        assert_eq!(of("pass")["level"], "DEBUG");
        assert!(objects.iter().all(|object| object["timestamp"].is_string()));
    });
}
