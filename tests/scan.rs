//! Looking at a node with real mounts and devices.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use local_volume_provisioner::identity::part;
use local_volume_provisioner::observed::{Directory, DirectoryKey, EntryKind, HostView, MountFacts, Observed};
use local_volume_provisioner::scan::{ScanSettings, Scanner};
use nix::mount::{MsFlags, mount, umount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;

#[path = "scan/devices.rs"]
mod devices;
#[path = "support/node.rs"]
mod node;
use node::{Node, OWN_MOUNTINFO, available, on_a_node, run};

fn settings(node: &Node) -> ScanSettings {
    ScanSettings {
        own_mountinfo: OWN_MOUNTINFO.into(),
        host_mountinfo: node.path("host-mountinfo"),
        ..ScanSettings::default()
    }
}

fn key(directory: &Path) -> DirectoryKey {
    DirectoryKey::new("fast", "/mnt/fast", directory)
}

fn observe(node: &Node, directory: &Path, probe: bool) -> Observed {
    Scanner::new(settings(node)).scan(&[key(directory)], &|_, _| probe)
}

/// The entries of one directory by name.
fn entries(node: &Node, directory: &Path, probe: bool) -> BTreeMap<OsString, EntryKind> {
    let observed = observe(node, directory, probe);
    match observed.directories.into_values().next().unwrap() {
        Directory::Read(entries) => {
            let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
            assert!(names.is_sorted(), "{names:?}");
            entries.into_iter().map(|entry| (entry.name, entry.kind)).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn mount_facts(node: &Node, directory: &Path, name: &str) -> MountFacts {
    match entries(node, directory, false).remove(OsStr::new(name)) {
        Some(EntryKind::Mount(facts)) => *facts,
        other => panic!("{name}: {other:?}"),
    }
}

/// Makes a directory entry that leads to a device.
fn link(directory: &Path, name: &str, device: &Path) {
    symlink(device, directory.join(name)).unwrap();
}

#[test]
fn one_of_everything() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        let at = |name: &str| format!("disks/{name}");
        File::create(dir.join("file")).unwrap();
        mkfifo(&dir.join("fifo"), Mode::S_IRUSR).unwrap();
        let _socket = UnixListener::bind(dir.join("socket")).unwrap();
        mknod(
            &dir.join("character"),
            SFlag::S_IFCHR,
            Mode::S_IRUSR,
            nix::sys::stat::makedev(1, 3),
        )
        .unwrap();
        fs::create_dir(dir.join("directory")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        symlink("itself", dir.join("itself")).unwrap();
        symlink("file/below", dir.join("through-a-file")).unwrap();
        symlink("directory", dir.join("to-directory")).unwrap();
        symlink("tmpfs", dir.join("to-mount")).unwrap();
        symlink("file", dir.join("to-file")).unwrap();
        symlink("fifo", dir.join("to-fifo")).unwrap();
        node.tmpfs(at("tmpfs"), MsFlags::empty());
        node.tmpfs(at("read-only"), MsFlags::MS_RDONLY);
        node.bind(&node.directory("source"), at("bind"));
        node.bind(&node.directory(at("onto-itself")), at("onto-itself"));
        let doomed = node.directory("doomed");
        node.bind(&doomed, at("deleted"));
        fs::remove_dir(&doomed).unwrap();
        let file_mount = dir.join("bound-file");
        File::create(&file_mount).unwrap();
        mount(
            Some(&dir.join("file")),
            &file_mount,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        let device = node.attach(&node.image("image", 1 << 20), &[]);
        let rdev = fs::metadata(&device).unwrap().rdev();
        link(&dir, "to-device", &device);
        mknod(&dir.join("device"), SFlag::S_IFBLK, Mode::S_IRUSR, rdev).unwrap();

        let kinds: Vec<String> = entries(node, &dir, false)
            .into_iter()
            .map(|(name, kind)| {
                let kind = match kind {
                    EntryKind::Mount(facts) if facts.deleted => "Deleted".to_owned(),
                    EntryKind::Mount(facts) if facts.read_only => "ReadOnly".to_owned(),
                    EntryKind::Mount(_) => "Mount".to_owned(),
                    EntryKind::Device(facts) if facts.dev == rdev => "Device".to_owned(),
                    other => format!("{other:?}"),
                };
                format!("{} {kind}", name.to_str().unwrap())
            })
            .collect();
        assert_eq!(
            kinds,
            [
                "bind Mount",
                "bound-file File",
                "character CharacterDevice",
                "dangling DanglingSymlink",
                "deleted Deleted",
                "device Device",
                "directory PlainDirectory",
                "fifo Fifo",
                "file File",
                "itself DanglingSymlink",
                "onto-itself Mount",
                "read-only ReadOnly",
                "socket Socket",
                "through-a-file DanglingSymlink",
                "tmpfs Mount",
                "to-device Device",
                "to-directory SymlinkToDirectory",
                "to-fifo SymlinkToOther",
                "to-file SymlinkToOther",
                "to-mount SymlinkToDirectory",
            ]
        );
    });
}

#[test]
fn the_facts_of_mounts() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        node.tmpfs("disks/tmpfs", MsFlags::empty());
        let facts = mount_facts(node, &dir, "tmpfs");
        assert_eq!(
            (facts.fs_type.as_str(), facts.capacity_bytes, facts.subtree.as_path()),
            ("tmpfs", 1 << 20, Path::new("/"))
        );
        assert_eq!(facts.dev, fs::metadata(dir.join("tmpfs")).unwrap().dev());

        let source = node.directory("source/a b");
        node.bind(&source, "disks/bind");
        let facts = mount_facts(node, &dir, "bind");
        assert_eq!(facts.subtree, Path::new("/source/a b"));
        assert!(facts.id.unwrap().get(part::HANDLE).is_some());
        let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(None::<&str>, &dir.join("bind"), None::<&str>, remount, None::<&str>).unwrap();
        assert!(
            mount_facts(node, &dir, "bind").read_only,
            "a read-only bind mount of a writable filesystem"
        );

        if available("btrfs") {
            let (device, uuid) = node.formatted("image", "btrfs");
            let whole = node.mount(&device, "btrfs", "whole");
            run("btrfs", |command| {
                command.args(["subvolume", "create"]).arg(whole.join("sub"))
            });
            node.bind(&whole.join("sub"), "disks/subvolume");
            let facts = mount_facts(node, &dir, "subvolume");
            let pods = node.path("pods/uid/volumes/kubernetes.io~local-volume/pv");
            node.bind(&dir.join("subvolume"), &pods);
            fs::copy(OWN_MOUNTINFO, node.path("host-mountinfo")).unwrap();
            let HostView::Seen(pods) = observe(node, &dir, false).host else {
                panic!("blind")
            };
            assert_eq!(
                (pods[0].dev, &pods[0].subtree),
                (facts.dev, &facts.subtree),
                "the pod's mount is comparable"
            );
            assert_eq!(facts.id.unwrap().get(part::UUID), Some(uuid.as_str()));
        }
    });
}

#[test]
fn names_are_bytes() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        let names: Vec<OsString> = [
            &b"a blank"[..],
            b"a\ttab",
            b"a\nnewline",
            b"\"quoted\" 'twice'",
            b"back\\slash",
            b"\\040",
            b"comma,colon:hash#",
            b"\xff\xfenot utf-8",
            "ü—✓".as_bytes(),
            b"...",
            &[b'x'; 255],
        ]
        .into_iter()
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
        for name in &names {
            node.tmpfs(Path::new("disks").join(name), MsFlags::empty());
        }
        let found = entries(node, &dir, false);
        assert_eq!(found.len(), names.len());
        for name in &names {
            assert!(
                matches!(&found[name], EntryKind::Mount(facts) if facts.id.is_ok()),
                "{name:?}: {:?}",
                found[name]
            );
        }
    });
}

#[test]
fn a_mount_over_a_mount_is_the_one_on_top() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        node.bind(&node.directory("below"), "disks/a");
        node.tmpfs("disks/a", MsFlags::empty());
        let facts = mount_facts(node, &dir, "a");
        assert_eq!(
            (facts.fs_type.as_str(), facts.subtree.as_path(), facts.nested),
            ("tmpfs", Path::new("/"), Vec::<PathBuf>::new())
        );
    });
}

#[test]
fn the_directory_itself_may_be_a_mount() {
    on_a_node(|node| {
        let dir = node.tmpfs("disks", MsFlags::empty());
        node.tmpfs("disks/a", MsFlags::empty());
        fs::create_dir(dir.join("b")).unwrap();
        let link_to_it = node.path("link");
        symlink(&dir, &link_to_it).unwrap();
        for path in [&dir, &link_to_it] {
            let found = entries(node, path, false);
            assert!(matches!(found[OsStr::new("a")], EntryKind::Mount(_)));
            assert_eq!(found[OsStr::new("b")], EntryKind::PlainDirectory);
        }
    });
}

#[test]
fn mounts_below_a_volume_are_found_through_every_table() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        let volume = node.tmpfs("disks/a", MsFlags::empty());
        assert_eq!(mount_facts(node, &dir, "a").nested, Vec::<PathBuf>::new());
        // Through another mount of the same filesystem.
        let elsewhere = node.bind(&volume, "elsewhere");
        let inner = node.tmpfs("elsewhere/x/y", MsFlags::empty());
        assert_eq!(mount_facts(node, &dir, "a").nested, [inner.as_path()]);
        // A volume that is the part of the filesystem beside it.
        fs::create_dir(elsewhere.join("z")).unwrap();
        node.bind(&elsewhere.join("z"), "disks/z");
        assert_eq!(mount_facts(node, &dir, "z").nested, Vec::<PathBuf>::new());
        umount(&inner).unwrap();
        assert_eq!(mount_facts(node, &dir, "a").nested, Vec::<PathBuf>::new());

        // In the host's table only.
        let dev = fs::metadata(&volume).unwrap().dev();
        let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
        let host =
            format!("1 0 {major}:{minor} / /mnt/a rw - tmpfs t rw\n2 1 0:99 / /mnt/a/in\\040side rw - tmpfs t rw\n");
        fs::write(node.path("host-mountinfo"), host).unwrap();
        assert_eq!(mount_facts(node, &dir, "a").nested, [Path::new("/mnt/a/in side")]);
    });
}

#[test]
fn the_host_is_seen_or_the_node_is_blind_with_the_reason() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        let reason = |content: Option<&str>| {
            let path = node.path("host-mountinfo");
            let _ = fs::remove_file(&path);
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            match observe(node, &dir, false).host {
                HostView::Blind(reason) => reason,
                HostView::Seen(pods) => format!("seen {}", pods.len()),
            }
        };
        assert!(reason(None).contains("does not exist"));
        assert!(reason(Some("")).contains("no mounts"));
        let good = "1 0 8:1 / / rw - ext4 x rw\n\
            2 1 8:2 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~local-volume/pv rw - ext4 x rw\n";
        assert_eq!(reason(Some(good)), "seen 1");
        assert!(
            reason(Some(&format!("{good}rubbish\n"))).contains("1 lines"),
            "what could hide a pod's mount"
        );
    });
}

#[test]
fn missing_is_not_unreadable_and_unreadable_is_not_empty() {
    on_a_node(|node| {
        let missing = key(&node.path("missing"));
        let file = key(&node.image("file", 1));
        let empty = key(&node.directory("empty"));
        let mut scanner = Scanner::new(settings(node));
        let keys = [missing.clone(), file.clone(), empty.clone()];
        let found = scanner.scan(&keys, &|_, _| true).directories;
        assert_eq!(found[&missing], Directory::Missing);
        assert!(
            matches!(&found[&file], Directory::Unreadable(text) if text.contains("ENOTDIR") && text.contains("/file"))
        );
        assert_eq!(found[&empty], Directory::Read(Vec::new()));

        let blind = ScanSettings {
            own_mountinfo: node.path("none"),
            ..settings(node)
        };
        let found = Scanner::new(blind).scan(&keys, &|_, _| true).directories;
        assert!(
            matches!(&found[&empty], Directory::Unreadable(text) if text.contains("/none")),
            "{found:?}"
        );
    });
}

#[test]
fn a_mount_that_the_table_lacks_is_not_guessed_at() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        let old = fs::read(OWN_MOUNTINFO).unwrap();
        node.tmpfs("disks/a", MsFlags::empty());
        fs::write(node.path("old"), old).unwrap();
        let outdated = ScanSettings {
            own_mountinfo: node.path("old"),
            ..settings(node)
        };
        let found = Scanner::new(outdated).scan(&[key(&dir)], &|_, _| true);
        let Directory::Read(entries) = &found.directories[&key(&dir)] else {
            panic!()
        };
        assert!(
            matches!(&entries[0].kind, EntryKind::Failed(text) if text.contains("is not in")),
            "{entries:?}"
        );
    });
}

#[test]
fn an_automount_is_not_triggered() {
    on_a_node(|node| {
        if !available("autofs") {
            return;
        }
        let dir = node.directory("disks");
        let automounter = Automounter::new(&node.directory("disks/a"));
        let found = entries(node, &dir, true);
        let kind = &found[OsStr::new("a")];
        assert!(
            matches!(kind, EntryKind::Failed(text) if text.contains("automount")),
            "{kind:?}"
        );
        assert!(!automounter.was_asked());
    });
}

/// What a scanner that has looked before sees of the only entry.
fn again(scanner: &mut Scanner, directory: &Path) -> MountFacts {
    let observed = scanner.scan(&[key(directory)], &|_, _| false);
    match observed.directories.into_values().next() {
        Some(Directory::Read(mut entries)) => match entries.remove(0).kind {
            EntryKind::Mount(facts) => *facts,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_changes_between_two_looks_of_a_scanner_is_seen() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        let mut scanner = Scanner::new(settings(node));
        let path = node.tmpfs("disks/a", MsFlags::empty());
        let first = again(&mut scanner, &dir);
        assert_eq!(again(&mut scanner, &dir), first);

        // The kernel gives the next mount the same id and device number, so the table's text may be as it was.
        node.unmount(&path);
        node.tmpfs("disks/a", MsFlags::empty());
        let second = again(&mut scanner, &dir);
        assert_ne!(second.id.unwrap(), first.id.unwrap(), "another one came to its place");

        // Nothing tells of a filesystem that turns read-only or writable as a whole.
        for flags in [MsFlags::MS_RDONLY, MsFlags::empty()] {
            let remount = MsFlags::MS_REMOUNT | flags;
            mount(None::<&str>, &path, None::<&str>, remount, None::<&str>).unwrap();
            assert_eq!(again(&mut scanner, &dir).read_only, !flags.is_empty());
        }
        fs::create_dir(path.join("below")).unwrap();
        let nested = node.tmpfs("disks/a/below", MsFlags::empty());
        assert_eq!(again(&mut scanner, &dir).nested, [nested.as_path()]);
        node.unmount(&nested);
        assert!(again(&mut scanner, &dir).nested.is_empty());
        node.unmount(&path);

        // Nor of the directory behind a bind mount that is deleted.
        let source = node.directory("source");
        node.bind(&source, "disks/a");
        assert!(!again(&mut scanner, &dir).deleted);
        fs::remove_dir(&source).unwrap();
        assert!(again(&mut scanner, &dir).deleted);
    });
}

/// An automounter that never answers.
struct Automounter {
    requests: OwnedFd,
    _pipe: OwnedFd,
    process: Child,
}

impl Automounter {
    /// A process of the automounter's own group triggers nothing, so it is given another's.
    fn new(at: &Path) -> Self {
        let (requests, pipe) = nix::unistd::pipe().unwrap();
        let process = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let options = format!(
            "fd={},pgrp={},minproto=5,maxproto=5,direct",
            pipe.as_raw_fd(),
            process.id()
        );
        let automounter = Self {
            requests,
            _pipe: pipe,
            process,
        };
        mount(
            Some("auto"),
            at,
            Some("autofs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        automounter
    }

    fn was_asked(&self) -> bool {
        poll(
            &mut [PollFd::new(self.requests.as_fd(), PollFlags::POLLIN)],
            PollTimeout::ZERO,
        )
        .unwrap()
            > 0
    }
}

impl Drop for Automounter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_hangs_is_alone_with_it() {
    on_a_node(|node| {
        if !available("autofs") {
            return;
        }
        let dead = node.directory("dead");
        let automounter = Automounter::new(&dead);
        let dir = node.directory("disks");
        symlink(dead.join("device"), dir.join("a")).unwrap();
        node.tmpfs("disks/b", MsFlags::empty());
        let timeout = Duration::from_millis(500);
        let mut scanner = Scanner::new(ScanSettings {
            syscall_timeout: timeout,
            ..settings(node)
        });
        for round in 0..3 {
            let started = Instant::now();
            let found = scanner.scan(&[key(&dir), key(&dead)], &|_, _| true).directories;
            let took = started.elapsed();
            let Directory::Read(entries) = &found[&key(&dir)] else {
                panic!("{found:?}")
            };
            assert!(matches!(entries[0].kind, EntryKind::Unresponsive(_)), "{entries:?}");
            assert!(matches!(entries[1].kind, EntryKind::Mount(_)), "{entries:?}");
            assert!(matches!(found[&key(&dead)], Directory::Unreadable(_)), "{found:?}");
            assert_eq!(scanner.unresponsive(), 2);
            assert!(
                round == 0 || took < timeout,
                "what is known to hang costs no time: {took:?}"
            );
        }
        assert!(automounter.was_asked(), "it was this that hung");
    });
}

#[test]
fn a_thousand_entries_and_a_file_that_goes_meanwhile() {
    on_a_node(|node| {
        let dir = node.directory("disks");
        for index in 0..1000 {
            let mut file = File::create(dir.join(format!("{index:04}"))).unwrap();
            file.write_all(b"x").unwrap();
        }
        let found = Scanner::new(settings(node)).scan(&[key(&dir)], &|_, name| {
            // The closure is asked after the directory was read, and before its entries are looked at.
            if name == "0500" {
                fs::remove_file(dir.join(name)).unwrap();
            }
            false
        });
        let Directory::Read(entries) = &found.directories[&key(&dir)] else {
            panic!()
        };
        assert_eq!(entries.len(), 999);
        assert!(
            entries
                .iter()
                .all(|entry| entry.kind == EntryKind::File && entry.name != "0500")
        );
        assert!(!found.boot_id.is_empty());
    });
}
