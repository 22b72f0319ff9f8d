//! `plan`: the dry run.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use local_volume_provisioner::names;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use testkit::mounts;
use testkit::plane::Plane;

use crate::program::{Server, configuration, ended, in_namespace, program, run};

/// The cells of an entry's line, which are separated by two blanks or more.
fn line(table: &str, entry: &str) -> Vec<String> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    };
    let found = table
        .lines()
        .map(cells)
        .find(|cells| cells.get(1).is_some_and(|cell| cell == entry));
    found.unwrap_or_else(|| panic!("no line for {entry} in\n{table}"))
}

#[test]
fn every_entry_has_its_line() {
    in_namespace("every_entry_has_its_line", |dir| {
        let at = dir.join("disks");
        std::fs::create_dir(&at).unwrap();
        mounts::tmpfs(&at.join("good mount"), 16 << 20).unwrap();
        mounts::tmpfs(&at.join(std::ffi::OsStr::from_bytes(b"not-utf8-\xff")), 1 << 20).unwrap();
        mounts::tmpfs(&at.join("same-1"), 1 << 20).unwrap();
        mounts::bind(&at.join("same-1"), &at.join("same-2")).unwrap();
        std::fs::write(at.join("file"), "").unwrap();
        std::fs::create_dir(at.join("directory")).unwrap();
        nix::unistd::mkfifo(&at.join("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at.join("socket")).unwrap();
        mknod(&at.join("null"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
        symlink("nowhere", at.join("dangling")).unwrap();
        symlink(at.join("good mount"), at.join("link")).unwrap();
        symlink(at.join("file"), at.join("link-to-file")).unwrap();
        let device = mounts::LoopDevice::with_file(&dir.join("image"), 48 << 20).unwrap();
        symlink(device.path(), at.join("device")).unwrap();
        let host_dir = at.display().to_string();
        let ended = run(&[
            "plan",
            "--host-dir",
            &host_dir,
            "--class",
            "fast",
            "--node-name",
            "node1",
        ]);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        for (entry, capacity) in [("good mount", "16Mi"), ("same-1", "1Mi"), ("device", "48Mi")] {
            let name = names::classic_pv_name(entry, "node1", "fast");
            let expected = ["fast", entry, "available", &name, capacity, "to be published"];
            let capacity_bytes = if capacity == "1Mi" { "1024Ki" } else { capacity };
            let found = line(&ended.out, entry);
            assert!(found == expected || found[4] == capacity_bytes, "{found:?}");
        }
        for (entry, reason) in [
            ("file", "a plain file"),
            ("directory", "not a mount point"),
            ("fifo", "a FIFO"),
            ("socket", "a socket"),
            ("null", "a character device"),
            ("dangling", "target does not exist"),
            ("link", "a symlink to a directory"),
            ("link-to-file", "no block device"),
            ("not-utf8-\\xff", "not UTF-8"),
            ("same-2", "the same storage as"),
        ] {
            let found = line(&ended.out, entry);
            assert_eq!(found[2], "ignored", "{found:?}");
            assert!(found.last().unwrap().contains(reason), "{found:?}");
        }
        assert_eq!(ended.out.lines().count(), 14, "{}", ended.out);
        let block = run(&[
            "plan",
            "--host-dir",
            &host_dir,
            "--class",
            "fast",
            "--volume-mode",
            "Block",
        ]);
        assert_eq!(line(&block.out, "device")[2], "available");
        assert!(
            line(&block.out, "good mount")
                .last()
                .unwrap()
                .contains("volumeMode Block")
        );
        let config = configuration(&dir.join("configured"));
        let of_class = |class: &str| run(&["plan", "--config", &config.display().to_string(), "--class", class]);
        let other = of_class("fats");
        assert_eq!(other.code, Some(1));
        assert!(
            other.err.contains("there is no class fats in ") && other.err.contains("its classes: fast"),
            "{}",
            other.err
        );
        assert_eq!(of_class("fast").code, Some(0));
    });
}

#[test]
fn on_a_terminal_what_to_do_comes_before_why_and_nothing_is_cut_off() {
    in_namespace("plan_on_a_terminal", |dir| {
        std::fs::create_dir_all(dir.join("disks/not mounted")).unwrap();
        std::fs::write(dir.join("disks").join("x".repeat(60)), "").unwrap();
        let plan = format!(
            "stty cols 80; {} plan --host-dir {} --class fast --node-name node1",
            env!("CARGO_BIN_EXE_local-volume-provisioner"),
            dir.join("disks").display()
        );
        let ended = ended(
            Command::new("script")
                .args(["-qec", &plan, "/dev/null"])
                .output()
                .unwrap(),
        );
        let lines: Vec<&str> = ended.out.lines().map(|line| line.trim_end()).collect();
        assert_eq!(lines[0], "CLASS  ENTRY        STATE    PV  CAPACITY", "{}", ended.out);
        assert_eq!(lines[1], "fast   not mounted  ignored  -   -");
        assert!(lines[2].starts_with("    do:  mount a filesystem"), "{}", ended.out);
        let why = lines
            .iter()
            .position(|line| line.starts_with("    why: a directory that is not"));
        assert!(why.is_some_and(|why| why > 2), "{}", ended.out);
        let wide = |line: &&&str| line.chars().count() > 80 && !line.contains("xxxx");
        assert_eq!(lines.iter().find(wide), None);
    });
}

#[test]
fn its_objects_are_accepted_by_a_real_server() {
    if let Err(why) = Plane::available() {
        println!("SKIPPED: its_objects_are_accepted_by_a_real_server: {why}");
        return;
    }
    in_namespace("its_objects_are_accepted_by_a_real_server", |dir| {
        let plane = Plane::start().unwrap();
        let config = configuration(dir);
        std::fs::write(config.join("labelsForPV"), "team: storage\n").unwrap();
        for entry in [
            "disk1",
            "with, \"quotes\" and \\",
            "tab\tnewline\n",
            "--- # yaml: [",
            ".hidden",
            "nülle",
        ] {
            mounts::tmpfs(&dir.join("fast").join(entry), 16 << 20).unwrap();
        }
        for format in ["yaml", "json"] {
            let ended = run(&[
                "plan",
                "--config",
                &config.display().to_string(),
                "--node-name",
                "node1",
                "-o",
                format,
            ]);
            assert_eq!(ended.code, Some(0), "{}", ended.err);
            let applied = kubectl_apply(&plane, dir, &ended.out);
            let created = applied
                .lines()
                .filter(|line| line.ends_with("created (server dry run)"))
                .count();
            assert_eq!(created, 6, "{applied}");
            assert!(
                applied.contains(&names::classic_pv_name("disk1", "node1", "fast")),
                "{applied}"
            );
        }
    });
}

fn kubectl_apply(plane: &Plane, dir: &Path, objects: &str) -> String {
    let file = dir.join("objects");
    std::fs::write(&file, objects).unwrap();
    let output = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(plane.kubeconfig())
        .args(["apply", "--dry-run=server", "-f"])
        .arg(&file)
        // For its cache.
        .env("HOME", dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let applied = ended(output);
    assert_eq!(applied.code, Some(0), "{}\n{objects}", applied.err);
    applied.out
}

#[test]
fn with_a_cluster_it_says_what_would_be_done_and_does_nothing() {
    in_namespace("with_a_cluster", |dir| {
        let server = Server::start();
        let config = configuration(dir);
        let kubeconfig = server.kubeconfig(dir, "full");
        for entry in ["disk1", "disk2"] {
            mounts::tmpfs(&dir.join("fast").join(entry), 16 << 20).unwrap();
        }
        let plan = |node: &str| {
            let mut command = program();
            command.args(["plan", "--node-name", node, "--config"]).arg(&config);
            ended(command.arg("--kubeconfig").arg(&kubeconfig).output().unwrap())
        };
        let first = plan("node1");
        assert_eq!(first.code, Some(0), "{}", first.err);
        let names = ["disk1", "disk2"].map(|entry| names::classic_pv_name(entry, "node1", "fast"));
        for name in &names {
            assert!(first.out.contains(&format!("  create PV {name}\n")), "{}", first.out);
        }
        // What it printed, applied: then nothing is left to do but what patches add.
        let mut command = program();
        command
            .args(["plan", "-o", "json", "--node-name", "node1", "--config"])
            .arg(&config);
        let printed = ended(command.arg("--kubeconfig").arg(&kubeconfig).output().unwrap());
        let list: serde_json::Value = serde_json::from_str(&printed.out).unwrap();
        for pv in list["items"].as_array().unwrap() {
            server.api.create("persistentvolumes", "", pv.clone());
        }
        server.api.reconcile();
        let second = plan("node1");
        assert!(
            second.out.ends_with("\nNothing to do to the cluster.\n"),
            "{}",
            second.out
        );
        server.api.create_claim("default", "a", "fast");
        server.api.bind("default", "a", &names[0]).unwrap();
        server.api.delete_claim("default", "a").unwrap();
        mounts::unmount(&dir.join("fast/disk2")).unwrap();
        let third = plan("node1");
        assert!(third.out.contains(&format!("PV {}", names[0])), "{}", third.out);
        assert_eq!(line(&third.out, "disk1")[2], "released");
        assert_eq!(line(&third.out, "disk2")[2], "vanished");
        let stranger = plan("nobody");
        assert_eq!(stranger.code, Some(1));
        assert!(stranger.err.contains("cannot read node nobody"), "{}", stranger.err);
        let writes: Vec<_> = server
            .api
            .requests()
            .into_iter()
            .filter(testkit::api::Request::is_write)
            .collect();
        assert!(writes.is_empty(), "{writes:#?}");
    });
}

#[test]
fn a_directory_that_shows_nothing_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (empty, missing) = (dir.path().join("empty"), dir.path().join("missing"));
    std::fs::create_dir(&empty).unwrap();
    for (directory, code, words) in [
        (&empty, 0, "it is empty; mount filesystems on directories in it"),
        (&missing, 1, "it does not exist; make it"),
    ] {
        let directory = directory.display().to_string();
        for output in ["table", "yaml", "json"] {
            let mut args = vec!["plan", "--class", "fast", "--node-name", "node1", "-o", output];
            args.extend(["--host-dir", &directory]);
            let ended = run(&args);
            assert_eq!(ended.code, Some(code), "{output}: {}", ended.err);
            let expected = format!("directory {directory} (class fast): {words}");
            assert!(ended.err.contains(&expected), "{output}: {}", ended.err);
        }
    }
}
