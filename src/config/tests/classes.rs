use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::*;

const HEAD: &str = "a:\n  hostDir: /h\n  mountDir: /m\n";

/// A class that is sound but for the lines that follow its directories.
fn with(lines: &str) -> String {
    format!("{HEAD}{lines}\n")
}

#[test]
fn a_minimal_class_has_the_defaults() {
    let expected = Class {
        name: "a".into(),
        host_dir: "/h".into(),
        mount_dir: "/m".into(),
        volume_mode: VolumeMode::Filesystem,
        access_mode: "ReadWriteOnce".into(),
        fs_type: None,
        name_pattern: NamePattern::default(),
        block_cleaner_command: None,
        selector: Vec::new(),
    };
    assert_eq!(class(HEAD), expected);
    let empty =
        "  volumeMode:\n  accessMode: ''\n  fsType: ~\n  namePattern: \"\"\n  blockCleanerCommand:\n  selector: null";
    assert_eq!(class(&with(empty)), expected);
    assert_eq!(expected.cleaner(), Cleaner::Zero);
    assert_eq!(expected.cleaner_as_written(), "zero");
}

#[test]
fn a_full_class() {
    let class = class(
        "fast-disks:
  hostDir: /mnt/./disks//fast/
  mountDir: /mnt/x/../disks/fast
  volumeMode: Block
  accessMode: ReadWriteOncePod
  fsType: xfs
  namePattern: nvme*,sd[a-c]
  blockCleanerCommand:
  - /scripts/shred.sh
  - 2
  selector:
  - matchExpressions:
    - {key: zone, operator: In, values: [1, yes]}
    matchFields:
    - {key: metadata.name, operator: In, values: [n1]}
",
    );
    let requirement = |key: &str, values: &[&str]| {
        Some(vec![NodeSelectorRequirement {
            key: key.into(),
            operator: "In".into(),
            values: Some(values.iter().map(ToString::to_string).collect()),
        }])
    };
    let expected = Class {
        name: "fast-disks".into(),
        host_dir: "/mnt/disks/fast".into(),
        mount_dir: "/mnt/disks/fast".into(),
        volume_mode: VolumeMode::Block,
        access_mode: "ReadWriteOncePod".into(),
        fs_type: Some("xfs".into()),
        name_pattern: NamePattern::parse("nvme*,sd[a-c]").unwrap(),
        block_cleaner_command: Some(vec!["/scripts/shred.sh".into(), "2".into()]),
        selector: vec![NodeSelectorTerm {
            match_expressions: requirement("zone", &["1", "true"]),
            match_fields: requirement("metadata.name", &["n1"]),
        }],
    };
    assert_eq!(class, expected);
    assert_eq!(class.cleaner(), Cleaner::Shred { passes: 2 });
    assert_eq!(class.cleaner_as_written(), "/scripts/shred.sh 2");
}

#[test]
fn each_invalid_setting_is_named_with_its_line() {
    for (lines, expected) in [
        (
            "  volumeMode: block",
            "volumeMode: unsupported volume mode \"block\": use Filesystem or Block",
        ),
        ("  accessMode: RWO", "accessMode: unsupported access mode \"RWO\""),
        (
            "  namePattern: 'ok,[x'",
            "namePattern: bad glob \"[x\": a `[` is not closed",
        ),
        ("  blockCleanerCommand: []", "blockCleanerCommand: the command is empty"),
        (
            "  blockCleanerCommand: zero",
            "blockCleanerCommand: expected a list, found \"zero\"",
        ),
        (
            "  blockCleanerCommand: [shred, 0]",
            "blockCleanerCommand: shred takes a number of passes from 1 up",
        ),
        (
            "  blockCleanerCommand: [{a: b}]",
            "blockCleanerCommand[0]: expected text, found a map",
        ),
        ("  fsType: [ext4]", "fsType: expected text, found a list"),
        (
            "  selector: {matchExpressions: []}",
            "selector: expected a list, found a map",
        ),
        (
            "  selector: [{matchExpressions: [{key: a b, operator: Exists}]}]",
            "selector[0].matchExpressions[0].key: illegal",
        ),
        (
            "  selector: [{matchExpressions: [{key: a, operator: in}]}]",
            "selector[0].matchExpressions[0].operator: unknown",
        ),
        (
            "  selector: [{matchExpressions: [{key: a, operator: In}]}]",
            "selector[0].matchExpressions[0].values: operator In needs",
        ),
        (
            "  selector: [{matchExpressions: [{key: a, operator: Exists, values: [b]}]}]",
            "selector[0].matchExpressions[0].values: operator Exists takes",
        ),
        (
            "  selector: [{matchExpressions: [{key: a, operator: Gt, values: [1, 2]}]}]",
            "selector[0].matchExpressions[0].values: operator Gt needs",
        ),
        (
            "  selector: [{matchFields: [{key: a, operator: In, values: [b]}]}]",
            "selector[0].matchFields[0].key: a field",
        ),
        (
            "  selector: [{matchFields: [{key: metadata.name, operator: Exists}]}]",
            "selector[0].matchFields[0]: a field",
        ),
    ] {
        let loaded = load(&[("storageClassMap", &with(lines))]);
        let start = format!("dir/storageClassMap:4: storageClassMap.a.{expected}");
        let shown = shown(&loaded.problems);
        assert_eq!(shown.len(), 1, "{lines}: {shown:?}");
        assert!(shown[0].starts_with(&start), "{lines}: {}", shown[0]);
        assert_eq!(loaded.problems[0].class.as_deref(), Some("a"));
        assert!(loaded.config.classes.is_empty());
    }
}

#[test]
fn directories_are_required_and_absolute() {
    assert_eq!(
        class_problems("a:\nb:\n  hostDir: mnt\n  mountDir: /..\n"),
        [
            "dir/storageClassMap:1: storageClassMap.a.hostDir: hostDir is required: name an absolute path",
            "dir/storageClassMap:1: storageClassMap.a.mountDir: mountDir is required: name an absolute path",
            "dir/storageClassMap:3: storageClassMap.b.hostDir: \"mnt\" is not an absolute path",
            "dir/storageClassMap:4: storageClassMap.b.mountDir: the root directory cannot be a discovery directory",
        ]
    );
}

#[test]
fn a_broken_class_leaves_the_others_alone() {
    let loaded = load(&[(
        "storageClassMap",
        "Bad_Name: {hostDir: /a, mountDir: /a}\nlist: [1]\nok: {hostDir: /c, mountDir: /c}\nbroken: {hostDir: /d}\n",
    )]);
    assert_eq!(loaded.config.classes.keys().collect::<Vec<_>>(), ["ok"]);
    let classes: Vec<_> = loaded
        .problems
        .iter()
        .map(|p| (p.class.as_deref().unwrap(), p.line.unwrap()))
        .collect();
    assert_eq!(classes, [("Bad_Name", 1), ("broken", 4), ("list", 2)]);
    assert!(loaded.warnings.is_empty());
}

#[test]
fn classes_do_not_share_directories() {
    let loaded = load(&[(
        "storageClassMap",
        "z: {hostDir: /z, mountDir: /m/a/}
inside: {hostDir: /i, mountDir: /m/a/b}
a: {hostDir: /a, mountDir: /m/a}
around: {hostDir: /r, mountDir: /m}
beside: {hostDir: /b, mountDir: /m/ab}
host: {hostDir: /a/, mountDir: /n}
",
    )]);
    assert_eq!(loaded.config.classes.keys().collect::<Vec<_>>(), ["a", "beside"]);
    assert_eq!(
        shown(&loaded.problems),
        [
            "dir/storageClassMap:4: storageClassMap.around.mountDir: /m contains /m/a, the mountDir of class \"a\": put them side by side",
            "dir/storageClassMap:6: storageClassMap.host.hostDir: /a is the hostDir of class \"a\" too: give each class its own",
            "dir/storageClassMap:2: storageClassMap.inside.mountDir: /m/a/b lies inside of /m/a, the mountDir of class \"a\": put them side by side",
            "dir/storageClassMap:1: storageClassMap.z.mountDir: /m/a is the mountDir of class \"a\" too: give each class its own",
        ]
    );
}

#[test]
fn a_broken_class_does_not_occupy_directories() {
    let loaded = load(&[(
        "storageClassMap",
        "a: {hostDir: /h, mountDir: /m, volumeMode: x}\nb: {hostDir: /h, mountDir: /m}\n",
    )]);
    assert_eq!(loaded.config.classes.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(loaded.problems.len(), 1);
}

#[test]
fn what_is_accepted_but_looks_wrong_is_warned_about() {
    for (lines, key, part) in [
        (
            "  blockCleanerCommand: [/scripts/quick_reset.sh]",
            "blockCleanerCommand",
            "can read what the last one wrote",
        ),
        (
            "  blockCleanerCommand: [/scripts/fsclean.sh]",
            "blockCleanerCommand",
            "does not scrub block devices",
        ),
        ("  namePattern: sd*, nvme*", "namePattern", "spaces"),
        ("  selector: [{}]", "selector[0]", "matches no node"),
        (
            "  hostDirectory: /x",
            "hostDirectory",
            "unknown field, ignored; known are hostDir,",
        ),
        ("  volumMode: Block", "volumMode", "did you mean volumeMode?"),
        (
            "  selector: [{matchExpression: []}]",
            "selector[0].matchExpression",
            "did you mean matchExpressions?",
        ),
        (
            "b: {hostDir: /h/sub, mountDir: /b}",
            "x",
            "lies inside of /h, the hostDir of class \"a\"",
        ),
    ] {
        let loaded = load(&[("storageClassMap", &with(lines))]);
        assert!(loaded.problems.is_empty(), "{lines}");
        let warning = &loaded.warnings[0];
        assert_eq!(warning.line, Some(4), "{lines}");
        assert!(warning.message.contains(part), "{lines}: {warning}");
        let (class, key) = if key == "x" { ("b", "hostDir") } else { ("a", key) };
        assert_eq!(warning.class.as_deref(), Some(class));
        assert_eq!(warning.key, format!("storageClassMap.{class}.{key}"));
    }
    let kinds = ["zero", "discard", "/bin/wipe", "/scripts/shred.sh"];
    for command in kinds {
        let loaded = load(&[("storageClassMap", &with(&format!("  blockCleanerCommand: [{command}]")))]);
        assert_eq!(loaded.warnings, [], "{command}");
    }
}

#[test]
fn of_nested_host_dirs_each_names_the_nearest_around_it() {
    let value = "a: {hostDir: /h, mountDir: /a}\n\
        b: {hostDir: /h/x/y/z, mountDir: /b}\n\
        c: {hostDir: /h/x, mountDir: /c}\n\
        d: {hostDir: /h/x-, mountDir: /d}\n\
        e: {hostDir: /hh, mountDir: /e}\n";
    let warnings = load(&[("storageClassMap", value)]).warnings;
    let mut found: Vec<_> = warnings
        .iter()
        .map(|warning| {
            (
                warning.class.as_deref().unwrap(),
                warning.message.split(',').nth(1).unwrap(),
            )
        })
        .collect();
    found.sort_unstable();
    let of = |class| format!(" the hostDir of class {class:?}");
    let expected = [("b", of("c")), ("c", of("a")), ("d", of("a"))];
    assert_eq!(
        found,
        expected.each_ref().map(|(class, outer)| (*class, outer.as_str()))
    );
}
