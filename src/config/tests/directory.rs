use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use testkit::config_volume::ConfigVolume;

use super::*;

#[test]
fn a_config_map_volume_is_read_through_its_symlinks() {
    let dir = tempfile::tempdir().unwrap();
    let mut volume = ConfigVolume::new(dir.path()).unwrap();
    let edit = [("storageClassMap", Some(FAST)), ("useNodeNameOnly", Some("no"))];
    volume.edit(edit).unwrap();
    fs::create_dir(dir.path().join("labelsForPV")).unwrap();
    let loaded = load_directory(dir.path());
    assert_eq!(shown(&loaded.problems), Vec::<String>::new());
    assert_eq!(shown(&loaded.warnings), Vec::<String>::new());
    assert_eq!(loaded.config.classes.keys().collect::<Vec<_>>(), ["fast"]);

    let edit = [("storageClassMap", Some("{a: {}}")), ("useNodeNameOnly", Some("yes"))];
    volume.edit(edit).unwrap();
    let loaded = load_directory(dir.path());
    assert!(loaded.config.use_node_name_only);
    assert_eq!(
        loaded.problems[0].file,
        dir.path().join("storageClassMap").display().to_string()
    );
}

#[test]
fn a_directory_that_is_swapped_while_it_is_read_is_never_mixed() {
    let dir = tempfile::tempdir().unwrap();
    let mut volume = ConfigVolume::new(dir.path()).unwrap();
    let mut put = |at: usize| {
        let (flag, label) = if at.is_multiple_of(2) {
            ("no", "a: no")
        } else {
            ("yes", "a: yes")
        };
        // One key comes and goes: it is never seen as missing, nor as a link to nowhere.
        let sometimes = ("setPVOwnerRef", (flag == "yes").then_some("yes"));
        let edit = [
            ("useNodeNameOnly", Some(flag)),
            ("labelsForPV", Some(label)),
            ("storageClassMap", Some("{}")),
            sometimes,
        ];
        volume.edit(edit).unwrap();
    };
    put(0);
    let reads = AtomicUsize::new(0);
    let mut loads = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for at in 1..300 {
                put(at);
                // Kubelet writes once a minute: never faster than a reader can finish.
                while reads.load(Ordering::SeqCst) < at {
                    std::thread::yield_now();
                }
            }
        });
        while !writer.is_finished() {
            loads.push(load_directory(dir.path()));
            reads.fetch_add(1, Ordering::SeqCst);
        }
    });
    for loaded in loads {
        assert_eq!(shown(&loaded.problems), Vec::<String>::new());
        let expected = loaded.config.use_node_name_only.to_string();
        assert_eq!(loaded.config.labels_for_pv.get("a"), Some(&expected));
        assert_eq!(loaded.config.set_pv_owner_ref, loaded.config.use_node_name_only);
    }
}

#[test]
fn what_cannot_be_read_is_a_problem_of_its_key() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("useNodeNameOnly"), "yes").unwrap();
    symlink("nowhere", dir.path().join("storageClassMap")).unwrap();
    mkfifo(&dir.path().join("labelsForPV"), Mode::S_IRWXU).unwrap();
    let large = fs::File::create(dir.path().join("jobTolerations")).unwrap();
    large.set_len(5 << 20).unwrap();
    let loaded = load_directory(dir.path());
    assert!(loaded.config.use_node_name_only);
    let mut problems: Vec<_> = loaded
        .problems
        .iter()
        .map(|p| (p.key.as_str(), p.message.as_str()))
        .collect();
    problems.sort_unstable();
    let expected = [
        ("jobTolerations", "cannot read it: it is larger than 4 MiB"),
        ("labelsForPV", "cannot read it: it is not a regular file"),
        (
            "storageClassMap",
            "cannot read it: No such file or directory (os error 2)",
        ),
    ];
    assert_eq!(problems, expected);
    assert!(
        loaded
            .problems
            .iter()
            .all(|p| p.file == dir.path().join(&p.key).display().to_string())
    );
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

/// Kubelet swaps `..data` first, and makes and removes the links to its files after that.
#[test]
fn links_that_kubelet_has_not_made_or_removed_yet_say_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut volume = ConfigVolume::new(dir.path()).unwrap();
    let edit = [("storageClassMap", Some(FAST)), ("useNodeNameOnly", Some("yes"))];
    volume.edit(edit).unwrap();
    fs::remove_file(dir.path().join("storageClassMap")).unwrap();
    symlink("..data/labelsForPV", dir.path().join("labelsForPV")).unwrap();
    let loaded = load_directory(dir.path());
    assert_eq!(shown(&loaded.problems), Vec::<String>::new());
    assert!(loaded.config.use_node_name_only);
    assert_eq!(loaded.config.classes.len(), 1);
    // A mount of one file over it, and one beside it, count.
    fs::write(dir.path().join("setPVOwnerRef"), "yes").unwrap();
    assert!(load_directory(dir.path()).config.set_pv_owner_ref);
}

#[test]
fn a_missing_directory_is_a_problem_with_what_to_do() {
    let loaded = load_directory(Path::new("/nonexistent/config"));
    assert_eq!(
        shown(&loaded.problems),
        [
            "/nonexistent/config: cannot read the configuration directory: No such file or directory (os error 2): \
          mount the provisioner's ConfigMap there, or name its directory with --config-dir"
        ]
    );
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.warnings.is_empty());
}
