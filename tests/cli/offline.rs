//! What needs no cluster: mistakes in the call, validate, help.

use crate::program::{ended, program, run};

#[test]
fn without_a_node_name_it_ends_at_once() {
    let ended = run(&["--listen-address="]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.contains("MY_NODE_NAME is not set: set it to the node's name"),
        "{}",
        ended.err
    );
    let empty = program().env("MY_NODE_NAME", "").output().unwrap();
    assert_eq!(empty.status.code(), Some(1));
}

#[test]
fn without_a_way_to_the_cluster_it_ends_at_once() {
    let output = program().env("MY_NODE_NAME", "node1").output().unwrap();
    let ended_ = ended(output);
    assert_eq!(ended_.code, Some(1));
    assert!(
        ended_.err.contains("KUBECONFIG is not set, and this is no Pod"),
        "{}",
        ended_.err
    );
    let output = program()
        .env("MY_NODE_NAME", "node1")
        .env("KUBECONFIG", "/no/such/file")
        .output()
        .unwrap();
    let ended_ = ended(output);
    assert_eq!(ended_.code, Some(1));
    assert!(ended_.err.contains("/no/such/file"), "{}", ended_.err);
}

#[test]
fn mistakes_in_the_call_are_explained() {
    for (args, words) in [
        (&["plam"][..], "plan"),
        (&["--discovery-period=10"], "--discovery-period"),
        (&["plan", "--host-dir", "/mnt"], "--class"),
        (&["validate"], "PATH"),
    ] {
        let ended = run(args);
        assert_eq!(ended.code, Some(2), "{args:?}");
        assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
    }
}

#[test]
fn the_help_names_every_command_and_each_has_its_own() {
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for command in ["run", "plan", "validate", "completions"] {
        assert!(
            help.out
                .lines()
                .any(|line| line.trim_start().starts_with(&format!("{command} "))),
            "{}",
            help.out
        );
    }
    let listed = help
        .out
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1);
    for line in listed.take_while(|line| !line.is_empty()) {
        let Some(command) = line.strip_prefix("  ").filter(|line| !line.starts_with(' ')) else {
            continue; // The second line of a description.
        };
        let command = command.split_whitespace().next().unwrap();
        if command == "help" {
            continue;
        }
        let own = run(&[command, "--help"]);
        assert_eq!(own.code, Some(0), "{command}");
        assert!(own.out.contains("Usage:"), "{command}: {}", own.out);
    }
    for flag in [
        "--listen-address",
        "--metrics-path",
        "--discovery-period",
        "--grace-period",
        "--config-dir",
        "--host-mountinfo",
    ] {
        assert!(help.out.contains(flag), "{flag}");
    }
    assert_eq!(
        run(&["--version"]).out.trim(),
        format!("local-volume-provisioner {}", env!("CARGO_PKG_VERSION"))
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            run(&["completions", shell]).out.contains("local-volume-provisioner"),
            "{shell}"
        );
    }
}

const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: config\ndata:\n  storageClassMap: |\n    fast:\n      hostDir: /mnt/fast\n      mountDir: /mnt/fast\n";

#[test]
fn validate_says_what_is_wrong_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let good = file("good.yaml", GOOD);
    let relative = file(
        "relative.yaml",
        &GOOD.replace("hostDir: /mnt/fast", "hostDir: mnt/fast"),
    );
    let typo = file(
        "typo.yaml",
        &GOOD.replace("mountDir: /mnt/fast", "mountDir: /mnt/fast\n      volumemod: Block"),
    );
    let syntax = file("syntax.yaml", "apiVersion: v1\ndata: [\n");

    let ended = run(&["validate", &good]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), format!("{good}: good: classes fast\n").as_str())
    );
    let ended = run(&["validate", &good, &relative]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("good.yaml: good: classes fast"), "{}", ended.out);
    let error = ended.out.lines().find(|line| line.starts_with("error: ")).unwrap();
    for words in ["relative.yaml:8", "storageClassMap.fast.hostDir", "mnt/fast"] {
        assert!(error.contains(words), "{error}");
    }
    let ended = run(&["validate", &typo]);
    assert_eq!(ended.code, Some(0), "{}", ended.out);
    assert!(
        ended.out.contains("warning: ") && ended.out.contains("volumemod"),
        "{}",
        ended.out
    );
    assert_eq!(run(&["validate", "--strict", &typo]).code, Some(1));
    for (path, words) in [(syntax.as_str(), "syntax.yaml"), ("/no/such/file", "/no/such/file")] {
        let ended = run(&["validate", path]);
        assert_eq!(ended.code, Some(1), "{path}");
        assert!(ended.out.contains(words), "{path}: {}", ended.out);
    }

    let mounted = dir.path().join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    std::fs::write(
        mounted.join("storageClassMap"),
        "fast:\n  hostDir: /mnt/fast\n  mountDir: /mnt/fast\n",
    )
    .unwrap();
    std::fs::write(mounted.join("labelsForPV"), "team: \"no label!\"\n").unwrap();
    let ended = run(&["validate", &mounted.display().to_string()]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("labelsForPV"), "{}", ended.out);
}
