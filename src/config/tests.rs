#![allow(clippy::unwrap_used)]

mod classes;
mod directory;
mod manifest;
mod quirks;
mod reload;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Parses keys as the files of the directory `dir`; without `storageClassMap` there is no class.
fn load(keys: &[(&str, &str)]) -> Loaded {
    let none = ("storageClassMap", "{}");
    let has_classes = keys.iter().any(|(key, _)| key.eq_ignore_ascii_case(none.0));
    let keys: BTreeMap<_, _> = (!has_classes)
        .then_some(&none)
        .into_iter()
        .chain(keys)
        .map(|(key, value)| (key.to_string(), value.as_bytes().to_vec()))
        .collect();
    parse("dir", &keys)
}

/// As [`load`], for what is sound without a doubt.
fn sound(keys: &[(&str, &str)]) -> Config {
    let loaded = load(keys);
    assert_eq!(shown(&loaded.problems), Vec::<String>::new());
    loaded.config
}

/// The only class of a `storageClassMap` that is sound.
fn class(value: &str) -> Class {
    let config = sound(&[("storageClassMap", value)]);
    assert_eq!(config.classes.len(), 1);
    config.classes.into_values().next().unwrap()
}

/// The messages about a `storageClassMap`.
fn class_problems(value: &str) -> Vec<String> {
    shown(&load(&[("storageClassMap", value)]).problems)
}

fn shown(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

const FAST: &str = "fast:\n  hostDir: /mnt/fast\n  mountDir: /mnt/fast\n";

#[test]
fn nothing_configured_is_the_defaults_and_a_warning() {
    let loaded = load(&[("storageClassMap", "{}")]);
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.config.min_resync_period, Duration::from_secs(300));
    assert!(loaded.problems.is_empty());
    assert_eq!(
        shown(&loaded.warnings),
        ["dir/storageClassMap: storageClassMap: no class is configured: no volume will be published"]
    );
}

#[test]
fn no_class_at_all_must_be_written() {
    for blank in ["", "\n", "  \n", "# classes:\n#  fast: {}\n", "---\n", "~", "null"] {
        let loaded = load(&[("storageClassMap", blank), ("useNodeNameOnly", "yes")]);
        let [problem] = loaded.problems.as_slice() else {
            panic!("{blank:?}: {:?}", loaded.problems);
        };
        assert_eq!(
            (problem.key.as_str(), &problem.class),
            ("storageClassMap", &None),
            "{blank:?}"
        );
        assert!(problem.line.is_some() && problem.message.contains("{}"), "{problem}");
        assert!(loaded.config.use_node_name_only, "{blank:?}");
        assert!(loaded.warnings.is_empty(), "{blank:?}: {:?}", loaded.warnings);
    }
    let without = parse(
        "dir",
        &BTreeMap::from([("useNodeNameOnly".to_owned(), b"yes".to_vec())]),
    );
    assert_eq!(
        shown(&without.problems),
        ["dir: storageClassMap: it is missing: write the classes, or {} if no class is meant"]
    );
    assert!(without.config.use_node_name_only);
    for keys in [BTreeMap::new(), BTreeMap::from([("readme".to_owned(), b"x".to_vec())])] {
        let nothing = parse("dir", &keys);
        assert_eq!(nothing.config, Config::default());
        let [problem] = nothing.problems.as_slice() else {
            panic!("{:?}", nothing.problems);
        };
        assert_eq!((problem.key.as_str(), problem.file.as_str()), ("", "dir"));
        assert!(problem.message.contains("no setting is in it"), "{problem}");
    }
}

#[test]
fn all_keys() {
    let config = sound(&[
        ("storageClassMap", FAST),
        ("nodeLabelsForPV", "- topology.kubernetes.io/zone\n- rack\n- rack\n"),
        ("labelsForPV", "team: storage\n"),
        ("useAlphaAPI", "false"),
        ("useJobForCleaning", "true"),
        ("jobTolerations", "- operator: Exists\n"),
        ("minResyncPeriod", "1m30s"),
        ("useNodeNameOnly", "true"),
        ("setPVOwnerRef", "true"),
        ("removeNodeNotReadyTaint", "true"),
        (
            "provisionerNotReadyNodeTaintKey",
            "sig-storage-local-static-provisioner/agent-not-ready",
        ),
    ]);
    let expected = Config {
        classes: config.classes.clone(),
        node_labels_for_pv: vec!["topology.kubernetes.io/zone".into(), "rack".into()],
        labels_for_pv: BTreeMap::from([("team".into(), "storage".into())]),
        use_job_for_cleaning: true,
        job_tolerations: vec![Toleration {
            operator: Some("Exists".into()),
            ..Toleration::default()
        }],
        min_resync_period: Duration::from_secs(90),
        use_node_name_only: true,
        set_pv_owner_ref: true,
        remove_node_not_ready_taint: true,
        provisioner_not_ready_node_taint_key: "sig-storage-local-static-provisioner/agent-not-ready".into(),
    };
    assert_eq!(config, expected);
    assert_eq!(config.classes.keys().collect::<Vec<_>>(), ["fast"]);
}

#[test]
fn a_broken_key_costs_only_itself() {
    let loaded = load(&[
        ("storageClassMap", FAST),
        ("labelsForPV", "a: [\n"),
        ("minResyncPeriod", "5"),
        ("useNodeNameOnly", "yes"),
        ("useJobForCleaning", "maybe"),
    ]);
    assert_eq!(loaded.config.classes.len(), 1);
    assert!(loaded.config.use_node_name_only);
    assert_eq!(loaded.config.min_resync_period, Duration::from_secs(300));
    let keys: Vec<_> = loaded
        .problems
        .iter()
        .map(|p| (p.top_key(), p.class.as_deref()))
        .collect();
    assert_eq!(
        keys,
        [
            ("labelsForPV", None),
            ("minResyncPeriod", None),
            ("useJobForCleaning", None)
        ]
    );
    let shown = shown(&loaded.problems);
    assert!(
        shown[0].starts_with("dir/labelsForPV:1: labelsForPV: not valid YAML (column 4): "),
        "{}",
        shown[0]
    );
    assert!(shown[1].starts_with("dir/minResyncPeriod:1: minResyncPeriod: invalid duration \"5\": the unit"));
    assert_eq!(
        shown[2],
        "dir/useJobForCleaning:1: useJobForCleaning: expected true or false, found \"maybe\""
    );
}

#[test]
fn unknown_keys_are_typos_of_something() {
    let loaded = load(&[
        ("storageClassMap", FAST),
        ("storageClassMaps", "{}"),
        ("nodeLabels", "[]"),
        ("README", "hello: [\n"),
    ]);
    assert!(loaded.problems.is_empty());
    let warnings = shown(&loaded.warnings);
    assert!(warnings[0].starts_with("dir/README: README: unknown key, ignored; known are storageClassMap, "));
    assert_eq!(
        warnings[1],
        "dir/nodeLabels: nodeLabels: unknown key, ignored: did you mean nodeLabelsForPV?"
    );
    assert_eq!(
        warnings[2],
        "dir/storageClassMaps: storageClassMaps: unknown key, ignored: did you mean storageClassMap?"
    );
}

#[test]
fn illegal_labels_are_left_out_one_by_one() {
    let loaded = load(&[
        ("storageClassMap", FAST),
        (
            "labelsForPV",
            "good: yes\nbad value: x\nspaced: a b\nlocal-volume-provisioner/node: x\n",
        ),
        ("nodeLabelsForPV", "- zone\n- a/b/c\n- \n- [x]\n"),
        ("provisionerNotReadyNodeTaintKey", "not a key"),
    ]);
    assert_eq!(
        loaded.config.labels_for_pv,
        BTreeMap::from([("good".into(), "true".into())])
    );
    assert_eq!(loaded.config.node_labels_for_pv, ["zone"]);
    assert_eq!(loaded.config.provisioner_not_ready_node_taint_key, "");
    let keys: Vec<_> = loaded
        .problems
        .iter()
        .map(|p| (p.key.as_str(), p.line.unwrap()))
        .collect();
    let expected = [
        ("labelsForPV.bad value", 2),
        ("labelsForPV.local-volume-provisioner/node", 4),
        ("labelsForPV.spaced", 3),
        ("nodeLabelsForPV[1]", 2),
        ("nodeLabelsForPV[2]", 3),
        ("nodeLabelsForPV[3]", 4),
        ("provisionerNotReadyNodeTaintKey", 1),
    ];
    assert_eq!(keys, expected);
    assert!(
        loaded.problems[2]
            .message
            .contains("\"a b\" cannot be the value of a label")
    );
}

#[test]
fn tolerations() {
    let config = sound(&[(
        "jobTolerations",
        "- key: dedicated\n  operator: Equal\n  value: 1_0\n  effect: NoExecute\n  TolerationSeconds: 1e3\n- operator: Exists\n",
    )]);
    let full = Toleration {
        key: Some("dedicated".into()),
        operator: Some("Equal".into()),
        value: Some("10".into()),
        effect: Some("NoExecute".into()),
        toleration_seconds: Some(1000),
    };
    assert_eq!(config.job_tolerations[0], full);
    for (bad, key) in [
        ("- {key: a, operator: Like}", "jobTolerations[0].operator"),
        ("- {value: a}", "jobTolerations[0].operator"),
        ("- {key: a, operator: Exists, value: b}", "jobTolerations[0].value"),
        ("- {key: a, value: a b}", "jobTolerations[0].value"),
        ("- {key: a b}", "jobTolerations[0].key"),
        ("- {key: a, effect: Never}", "jobTolerations[0].effect"),
        (
            "- {key: a, effect: NoExecute, tolerationSeconds: \"3\"}",
            "jobTolerations[0].tolerationSeconds",
        ),
        (
            "- {key: a, effect: NoExecute, tolerationSeconds: 1.5}",
            "jobTolerations[0].tolerationSeconds",
        ),
        (
            "- {key: a, tolerationSeconds: 3}",
            "jobTolerations[0].tolerationSeconds",
        ),
        ("key: a", "jobTolerations"),
    ] {
        let loaded = load(&[("jobTolerations", bad)]);
        assert_eq!(
            loaded.problems.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(),
            [key],
            "{bad}"
        );
        assert!(loaded.config.job_tolerations.is_empty());
    }
}

#[test]
fn settings_without_effect_are_warned_about() {
    let loaded = load(&[
        ("storageClassMap", FAST),
        ("useAlphaAPI", "true"),
        ("removeNodeNotReadyTaint", "true"),
    ]);
    assert!(loaded.problems.is_empty());
    let keys: Vec<_> = loaded.warnings.iter().map(|w| w.key.as_str()).collect();
    assert_eq!(keys, ["useAlphaAPI", "removeNodeNotReadyTaint"]);
}

#[test]
fn a_problem_reads_well_with_and_without_a_place() {
    let mut problem = Problem {
        file: "f".into(),
        line: Some(3),
        key: "storageClassMap.a.hostDir".into(),
        class: None,
        message: "wrong".into(),
    };
    assert_eq!(problem.to_string(), "f:3: storageClassMap.a.hostDir: wrong");
    assert_eq!(problem.top_key(), "storageClassMap");
    problem.line = None;
    problem.key = "nodeLabelsForPV[0]".into();
    assert_eq!(problem.to_string(), "f: nodeLabelsForPV[0]: wrong");
    assert_eq!(problem.top_key(), "nodeLabelsForPV");
    problem.key.clear();
    assert_eq!(problem.to_string(), "f: wrong");
    assert_eq!(problem.top_key(), "");
    problem.key = "labelsForPV.a\nb".to_owned();
    problem.message = "\u{1b}[31m is wrong".to_owned();
    assert_eq!(
        problem.to_string(),
        "f: labelsForPV.a\\nb: \\u{1b}[31m is wrong",
        "a log keeps its lines and a terminal its colours"
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        key in prop_oneof!["storageClassMap|labelsForPV|nodeLabelsForPV|jobTolerations|minResyncPeriod", ".{0,8}"],
        value in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = parse("", &BTreeMap::from([(key, value)]));
    }

    /// Mostly well-formed, so that it gets beyond the syntax.
    #[test]
    fn yaml_like_text_never_panics(
        lines in prop::collection::vec("[ ]{0,6}(- )?(fast|hostDir|selector|mountDir|<<|a)(: )?(&x |\\*x|\\| *|\\[|\\{a: b\\}|/mnt/../x|!!str 1|\"|é)?", 0..12)
    ) {
        let text = lines.join("\n");
        let _ = load(&[("storageClassMap", &text), ("labelsForPV", &text), ("jobTolerations", &text)]);
        let _ = parse_manifest("m", &text);
    }
}
