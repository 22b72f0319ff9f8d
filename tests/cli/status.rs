//! The status of a running daemon: `/status`, its page, and the command.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::mounts;

use crate::daemon::{Daemon, free_address, get, is_ok, wait};
use crate::program::{Ended, Server, configuration, in_namespace, run};

/// What shall not become anything but text. The `/` of a tag cannot be in a name.
const HOSTILE: [&str; 4] = [
    "<img src=x onerror=alert(1)>",
    "quote\"' & {{nonce}}",
    "line\nbreak\x1b[2J",
    "<script>document.title=1",
];

/// A directory with a volume and what is none.
fn directory(dir: &Path) {
    configuration(dir);
    mounts::tmpfs(&dir.join("fast/disk1"), 16 << 20).unwrap();
    std::fs::create_dir(dir.join("fast/disk2")).unwrap();
    for name in HOSTILE {
        std::fs::write(dir.join("fast").join(name), "").unwrap();
    }
    std::fs::write(dir.join("fast").join(OsStr::from_bytes(b"not-utf8-\xff")), "").unwrap();
}

fn status(daemon: &Daemon) -> Option<Value> {
    let (head, body) = get(daemon.status, "/status", "*/*")?;
    assert!(is_ok(&head), "{head}");
    Some(serde_json::from_str(&body).unwrap())
}

/// Entry, state and short reason of each row.
fn rows(status: &Value) -> Vec<[&str; 3]> {
    let rows = status["volumes"].as_array().unwrap().iter();
    rows.map(|row| ["entry", "state", "slug"].map(|name| row[name].as_str().unwrap_or("-")))
        .collect()
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.unwrap_or_else(|| panic!("no {name} in {head}")).1
}

/// The head of an answer to a request with this Host.
fn asked_as(address: SocketAddr, path: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().0.to_owned()
}

fn asked(daemon: &Daemon, more: &[&str]) -> Ended {
    let address = daemon.status.to_string();
    run(&[&["status", "--address", &address], more].concat())
}

/// Until the daemon says that its volume is in this state.
fn until_disk1_is(daemon: &Daemon, state: &str) {
    wait(state, || {
        status(daemon).is_some_and(|status| {
            let row = |row: &Value| row["entry"] == "disk1" && row["state"] == state && row["published"] == true;
            status["volumes"].as_array().unwrap().iter().any(row)
        })
    });
}

#[test]
fn a_running_daemon_tells_everything_about_its_node() {
    in_namespace("tells_everything", |dir| {
        let server = Server::start();
        directory(dir);
        let daemon = Daemon::start(dir, &server, "full", |_| {});
        until_disk1_is(&daemon, "available");
        let said = status(&daemon).unwrap();
        assert_eq!(
            ["version", "node", "mode", "ready", "waiting_for"].map(|name| said[name].clone()),
            [
                1.into(),
                "node1".into(),
                "Patch".into(),
                true.into(),
                Value::Array(Vec::new())
            ]
        );
        assert_eq!(said["host_mounts"]["seen"], true);
        assert_eq!(
            said["persistent_volumes"],
            serde_json::json!({"total": 1, "with_finalizer": 1})
        );
        assert_eq!(said["directories"][0]["entries"], 7);
        assert_eq!(said["configuration"]["classes"][0]["name"], "fast");
        assert_eq!(
            rows(&said),
            [
                ["<img src=x onerror=alert(1)>", "ignored", "file"],
                ["<script>document.title=1", "ignored", "file"],
                ["disk1", "available", "-"],
                ["disk2", "ignored", "not-a-mount-point"],
                ["line\\nbreak\\u{1b}[2J", "ignored", "file"],
                ["not-utf8-\\xff", "ignored", "not-utf8"],
                ["quote\"' & {{nonce}}", "ignored", "file"],
            ]
        );

        let pv = server.api.list("persistentvolumes").pop().unwrap();
        server.api.create_claim("team", "data", "fast");
        server
            .api
            .bind("team", "data", pv["metadata"]["name"].as_str().unwrap())
            .unwrap();
        until_disk1_is(&daemon, "bound");
        let table = asked(&daemon, &[]);
        assert_eq!(table.code, Some(0), "{}", table.err);
        assert!(!table.out.contains('\x1b'), "{}", table.out);
        let line = |entry: &str| table.out.lines().find(|line| line.contains(entry)).unwrap();
        assert!(
            table.out.starts_with("node node1: ready\nmode Patch, up "),
            "{}",
            table.out
        );
        for cell in ["fast", "bound", pv["metadata"]["name"].as_str().unwrap(), "team/data"] {
            assert!(line("  disk1 ").contains(cell), "{cell}: {}", table.out);
        }
        let place = |entry: &str| table.out.lines().position(|line| line.contains(entry)).unwrap();
        let below: Vec<&str> = table.out.lines().skip(place("  disk2 ") + 1).take(3).collect();
        assert!(
            below[0].starts_with("    do:  mount a filesystem"),
            "what to do comes first: {below:?}"
        );
        assert!(
            below[2].starts_with("    why: not-a-mount-point: a directory that is not"),
            "{below:?}"
        );
        assert!(table.out.contains("\ndirectory "), "{}", table.out);
        assert!(
            place("  disk2 ") < place("  disk1 "),
            "what needs attention comes first"
        );
        let json = asked(&daemon, &["--json"]);
        let json: Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(json["volumes"], status(&daemon).unwrap()["volumes"]);
    });
}

#[test]
fn the_page_runs_nothing_but_its_own_script_and_is_for_this_machine_only() {
    in_namespace("page", |dir| {
        let server = Server::start();
        directory(dir);
        let daemon = Daemon::start(dir, &server, "full", |_| {});
        wait("served", || status(&daemon).is_some());
        let page = || {
            let (head, body) = get(daemon.status, "/", "text/html").unwrap();
            assert!(is_ok(&head), "{head}");
            let policy = header(&head, "content-security-policy").to_owned();
            let nonce = policy.split_once("script-src 'nonce-").unwrap().1;
            let nonce = nonce.split('\'').next().unwrap().to_owned();
            assert!(
                policy.contains("default-src 'none'") && !policy.contains("unsafe"),
                "{policy}"
            );
            assert_eq!(header(&head, "x-content-type-options"), "nosniff");
            assert_eq!(header(&head, "cache-control"), "no-store");
            assert_eq!(body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
            assert!(!body.contains("onerror") && !body.contains("disk1"), "it holds no data");
            nonce
        };
        let first = page();
        assert!(first.len() >= 32 && first != page(), "each page has a nonce of its own");
        let head = asked_as(daemon.status, "/status", "localhost:1");
        assert!(is_ok(&head), "{head}");
        assert_eq!(header(&head, "content-type"), "application/json");
        assert_eq!(header(&head, "x-content-type-options"), "nosniff");
        assert_eq!(header(&head, "cache-control"), "no-store");
        for path in ["/", "/status"] {
            let head = asked_as(daemon.status, path, "rebound.example:8081");
            assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        }
    });
}

/// What a browser makes of the page, as HTML, and what it says on its console.
fn shown_by_a_browser(browser: &str, profile: &Path, url: &str) -> (String, String) {
    let output = Command::new("timeout")
        .args([
            "60",
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(["--virtual-time-budget=3000", "--dump-dom", url])
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (html, said) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{said}");
    (html, said)
}

#[test]
fn a_browser_shows_the_page_and_hostile_names_as_text() {
    let found = |name: &&str| {
        Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let Some(browser) = ["chromium-headless-shell", "chromium", "google-chrome"]
        .into_iter()
        .find(found)
    else {
        println!("SKIPPED: a_browser_shows_the_page: no Chromium here (Debian: chromium-headless-shell)");
        return;
    };
    in_namespace("browser", move |dir| {
        let server = Server::start();
        directory(dir);
        let daemon = Daemon::start(dir, &server, "full", |_| {});
        until_disk1_is(&daemon, "available");
        let (html, said) = shown_by_a_browser(browser, &dir.join("profile"), &format!("http://{}/", daemon.status));
        assert!(
            !said.contains("CONSOLE"),
            "an error, or something was refused by the policy: {said}"
        );
        let text_of = |id: &str| {
            let rest = html
                .split_once(&format!("id=\"{id}\""))
                .unwrap_or_else(|| panic!("no {id}: {html}"))
                .1;
            rest.split_once("</section>").unwrap().0.to_owned()
        };
        assert!(
            html.contains("<title>node1 · local-volume-provisioner</title>"),
            "{html}"
        );
        let attention = text_of("attention");
        for name in [
            "&lt;img src=x onerror=alert(1)&gt;",
            "&lt;script&gt;document.title=1",
            "line\\nbreak\\u{1b}[2J",
            "not-utf8-\\xff",
            "a directory that is not a mount point",
            "What to do: ",
        ] {
            assert!(attention.contains(name), "{name}: {attention}");
        }
        assert!(!html.contains("<img"), "{html}");
        assert_eq!(html.matches("<script").count(), 1, "{html}");
        let table = text_of("volumes");
        assert!(table.contains("disk1") && !attention.contains("disk1"));
        assert_eq!(table.matches("<tr>").count(), 7, "every entry has its row: {table}");
        for cell in [
            "data-name=\"PV\">local-pv-",
            "data-name=\"Capacity\">16Mi",
            "data-name=\"Reason\">not-utf8",
        ] {
            assert!(table.contains(cell), "{cell}: {table}");
        }
        let about = html.split_once("id=\"about\"").unwrap().1;
        for words in ["last read", "7 entries", "1, 1 of them with our finalizer"] {
            assert!(about.contains(words), "{words}: {about}");
        }
        assert!(html.contains("role=\"alert\" hidden"), "it answers: {html}");
    });
}

#[test]
fn a_running_scrub_is_seen_to_advance() {
    in_namespace("scrub_advances", |dir| {
        let server = Server::start();
        configuration(dir);
        let device = mounts::LoopDevice::with_file(&dir.join("image"), 64 << 20).unwrap();
        std::os::unix::fs::symlink(device.path(), dir.join("fast/disk1")).unwrap();
        let daemon = Daemon::start(dir, &server, "full", |command| {
            command.arg("--scrub-bandwidth=16Mi");
        });
        until_disk1_is(&daemon, "available");
        let pv = server.api.list("persistentvolumes").pop().unwrap();
        let pv = pv["metadata"]["name"].as_str().unwrap();
        server.api.create_claim("team", "data", "fast");
        server.api.bind("team", "data", pv).unwrap();
        until_disk1_is(&daemon, "bound");
        server.api.delete_claim("team", "data").unwrap();
        let scrub = || {
            status(&daemon)
                .map(|said| said["scrubs"][0].clone())
                .unwrap_or_default()
        };
        wait("begun", || scrub()["done"].as_u64() > Some(0));
        let first = scrub();
        assert_eq!(
            ["pv", "unit", "total"].map(|name| first[name].clone()),
            [Value::from(pv), Value::from("bytes"), Value::from(64_u64 << 20)]
        );
        wait("advanced", || scrub()["done"].as_u64() > first["done"].as_u64());
        let table = asked(&daemon, &[]).out;
        let mut lines = table.lines().skip_while(|line| !line.contains("scrubbing"));
        let below = lines.nth(1);
        assert!(below.is_some_and(|line| line.contains(" % of 64 MiB, ")), "{table}");
        until_disk1_is(&daemon, "available");
        assert!(scrub().is_null(), "what has ended does not run");
    });
}

#[test]
fn an_address_that_is_taken_keeps_nobody_from_working() {
    in_namespace("address_taken", |dir| {
        let server = Server::start();
        directory(dir);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut daemon = Daemon::start_at(address, dir, &server, "full", |_| {});
        daemon.until("/readyz", |head, _| is_ok(head));
        wait("published", || !server.api.list("persistentvolumes").is_empty());
        drop(taken);
        wait("served once the address is free", || {
            get(address, "/status", "*/*").is_some_and(|(head, _)| is_ok(&head))
        });
    });
}

#[test]
fn a_broken_configuration_and_an_absent_directory_are_told_before_anything_is_ready() {
    in_namespace("told_before_ready", |dir| {
        let server = Server::start();
        let file = configuration(dir).join("storageClassMap");
        let good = std::fs::read_to_string(&file).unwrap();
        let map = good.replace("fast:", "other:").replace("/fast", "/absent") + &good + "bad:\n  hostDir: /x\n";
        let daemon = Daemon::start(dir, &server, "full", |_| std::fs::write(&file, map).unwrap());
        wait("told", || {
            status(&daemon).is_some_and(|said| {
                let waits = said["waiting_for"].to_string();
                said["ready"] == false
                    && waits.contains("absent of class other: it does not exist")
                    && said["configuration"]["problems"][0]["class"] == "bad"
                    && said["configuration"]["problems"][0]["line"].is_u64()
            })
        });
        let table = asked(&daemon, &[]);
        for words in [
            "node node1: not ready",
            "waiting for mountDir",
            "error: ",
            "(class other): it does not exist",
        ] {
            assert!(table.out.contains(words), "{words}: {}", table.out);
        }
    });
}

#[test]
fn the_command_says_when_nobody_answers_or_somebody_else_does() {
    let address = free_address().to_string();
    let ended = run(&["status", "--address", &address]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.contains(&format!("nothing answers on {address}")) && ended.err.contains("--status-address"),
        "{}",
        ended.err
    );
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    for (answer, said) in [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        ("HTTP/1.1 200 OK\r\n\r\nhello", "does not answer as"),
        ("HTTP/1.1 200 OK\r\n\r\n{\"version\": 9}", "schema"),
        ("\x1b[2J\r\n\r\n", "\\u{1b}"),
    ] {
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = other.accept().unwrap().0;
                // All of it: what is closed with something unread is reset.
                let lines = BufReader::new(&stream).lines().map(Result::unwrap);
                assert!(lines.take_while(|line| !line.is_empty()).count() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            run(&["status", "--address", &address])
        });
        assert_eq!(ended.code, Some(1), "{answer}");
        assert!(
            ended.err.contains(said) && !ended.err.contains('\x1b'),
            "{answer}: {}",
            ended.err
        );
    }
    assert_eq!(run(&["status", "--address", ""]).code, Some(1));
}
