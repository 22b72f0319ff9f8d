//! What YAML 1.1 and Go make of the values that occur in the field.

use super::*;

#[test]
fn booleans() {
    for text in [
        "y",
        "Y",
        "yes",
        "Yes",
        "YES",
        "on",
        "On",
        "ON",
        "true",
        "True",
        "TRUE",
        "yes\n",
        "---\nyes\n",
        "yes # x",
    ] {
        assert!(sound(&[("useJobForCleaning", text)]).use_job_for_cleaning, "{text:?}");
    }
    for text in [
        "n",
        "No",
        "off",
        "FALSE",
        "false",
        "",
        "\n",
        "~",
        "null",
        "# nothing\n",
        "---\n",
    ] {
        assert!(!sound(&[("useJobForCleaning", text)]).use_job_for_cleaning, "{text:?}");
    }
    for text in ["yEs", "1", "enabled", "[true]", "{}", "|\n  yes"] {
        let loaded = load(&[("useJobForCleaning", text)]);
        assert_eq!(loaded.problems.len(), 1, "{text:?}");
        assert!(!loaded.config.use_job_for_cleaning);
    }
    let quoted = load(&[("useJobForCleaning", "\"yes\"")]);
    assert!(quoted.problems[0].message.contains("remove the quotes"), "{quoted:?}");
    assert!(sound(&[("useJobForCleaning", "!!bool \"yes\"")]).use_job_for_cleaning);
}

#[test]
fn an_empty_value_is_the_default() {
    for key in [
        "nodeLabelsForPV",
        "labelsForPV",
        "useAlphaAPI",
        "useJobForCleaning",
        "jobTolerations",
        "minResyncPeriod",
        "useNodeNameOnly",
        "setPVOwnerRef",
        "removeNodeNotReadyTaint",
        "provisionerNotReadyNodeTaintKey",
    ] {
        for value in ["", "\n", "null", "# comment\n"] {
            assert_eq!(sound(&[(key, value)]), Config::default(), "{key} {value:?}");
        }
    }
    assert_eq!(sound(&[("minResyncPeriod", "\"\"")]), Config::default());
}

#[test]
fn scalars_in_string_positions_are_coerced() {
    assert_eq!(
        sound(&[("nodeLabelsForPV", "- 2\n- yes\n- 1.10\n")]).node_labels_for_pv,
        ["2", "true", "1.1"]
    );
    let labels = sound(&[(
        "labelsForPV",
        "a: true\nb: 1.10\nc: yes\nd: 0o7\ne: 010\nf: 0x10\ng: 0b11\nh: 1_000\ni: 1e3\nj: null\nk: 2001-12-14\nl: \"yes\"\n\
         m: 'no'\nn:\no: !!str 010\np: ~\n2: x\nq: !custom on\n",
    )])
    .labels_for_pv;
    let expected = [
        ("2", "x"),
        ("a", "true"),
        ("b", "1.1"),
        ("c", "true"),
        ("d", "7"),
        ("e", "8"),
        ("f", "16"),
        ("false", ""),
        ("g", "3"),
        ("h", "1000"),
        ("i", "1000"),
        ("j", ""),
        ("k", "2001-12-14"),
        ("l", "yes"),
        ("m", "no"),
        ("o", "010"),
        ("p", ""),
        ("q", "on"),
    ];
    let labels: Vec<_> = labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(labels, expected);
}

#[test]
fn a_key_that_reads_as_a_boolean_or_number_is_coerced_too() {
    assert_eq!(class("on:\n  hostDir: /a\n  mountDir: /a\n").name, "true");
    assert_eq!(class("\"on\":\n  hostDir: /a\n  mountDir: /a\n").name, "on");
    assert_eq!(class("0x10:\n  hostDir: /a\n  mountDir: /a\n").name, "16");
}

#[test]
fn names_match_without_regard_to_case() {
    let config = sound(&[
        (
            "StorageClassMAP",
            "fast: {HOSTDIR: /a, mountdir: /b, VolumeMode: Block}\nFast: {}\n".trim_end_matches("Fast: {}\n"),
        ),
        ("usejobforcleaning", "yes"),
    ]);
    assert!(config.use_job_for_cleaning);
    assert_eq!(config.classes["fast"].volume_mode, VolumeMode::Block);
    // Classes are names, not fields.
    let loaded = load(&[(
        "storageClassMap",
        "fast: {hostDir: /a, mountDir: /a}\nFast: {hostDir: /b, mountDir: /b}\n",
    )]);
    assert_eq!(loaded.problems[0].class.as_deref(), Some("Fast"));
    assert_eq!(loaded.config.classes.len(), 1);
}

#[test]
fn of_two_spellings_the_exact_one_wins() {
    for text in [
        "a: {hostDir: /exact, hostdir: /other, mountDir: /m}",
        "a: {HostDir: /other, hostDir: /exact, mountDir: /m}",
    ] {
        let loaded = load(&[("storageClassMap", text)]);
        assert_eq!(loaded.config.classes["a"].host_dir.to_str(), Some("/exact"));
        assert_eq!(loaded.warnings.len(), 1);
        assert!(
            loaded.warnings[0].message.contains("\"hostDir\""),
            "{:?}",
            loaded.warnings
        );
    }
    let loaded = load(&[
        ("useNodeNameOnly", "yes"),
        ("usenodenameonly", "no"),
        ("storageClassMap", FAST),
    ]);
    assert!(loaded.config.use_node_name_only);
    assert_eq!(
        loaded.warnings.iter().map(|w| w.key.as_str()).collect::<Vec<_>>(),
        ["usenodenameonly"]
    );
}

#[test]
fn of_a_duplicate_the_last_wins() {
    let loaded = load(&[(
        "storageClassMap",
        "a: {hostDir: /first, mountDir: /m}\nb: {hostDir: /b, mountDir: /b}\na:\n  hostDir: /second\n  hostDir: /last\n  mountDir: /m\n",
    )]);
    assert!(loaded.problems.is_empty());
    assert_eq!(loaded.config.classes["a"].host_dir.to_str(), Some("/last"));
    assert_eq!(
        shown(&loaded.warnings),
        [
            "dir/storageClassMap:3: storageClassMap.a: it occurs again: the value in line 3 is used, the one in line 1 is not",
            "dir/storageClassMap:5: storageClassMap.a.hostDir: it occurs again: the value in line 5 is used, the one in line 4 is not",
        ]
    );
}

#[test]
fn anchors_and_merge_keys() {
    let loaded = load(&[(
        "storageClassMap",
        "a: &a\n  hostDir: /a\n  mountDir: &dir /a\n  accessMode: ReadWriteMany\n  fsType: xfs\nb:\n  <<: *a\n  hostDir: /b\n  mountDir: /b\n\
         c:\n  <<: [{fsType: ext4}, *a]\n  hostDir: /c\n  mountDir: /c\nd:\n  hostDir: *dir\n  mountDir: /d\n",
    )]);
    let b = &loaded.config.classes["b"];
    assert_eq!(
        (b.access_mode.as_str(), b.fs_type.as_deref()),
        ("ReadWriteMany", Some("xfs"))
    );
    assert_eq!(b.host_dir.to_str(), Some("/b"));
    let c = &loaded.config.classes["c"];
    assert_eq!(
        (c.access_mode.as_str(), c.fs_type.as_deref()),
        ("ReadWriteMany", Some("ext4"))
    );
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    // The alias is at fault, where it is used.
    assert_eq!(loaded.problems.len(), 1);
    assert_eq!(
        (loaded.problems[0].key.as_str(), loaded.problems[0].line),
        ("storageClassMap.d.hostDir", Some(15))
    );
}

#[test]
fn a_merge_after_a_field_overrides_it_as_in_go() {
    let loaded = load(&[("labelsForPV", "a: x\n<<: {a: z, b: w}\n"), ("storageClassMap", FAST)]);
    assert_eq!(loaded.config.labels_for_pv["a"], "z");
    assert_eq!(loaded.warnings[0].key, "labelsForPV.a");
    assert_eq!(sound(&[("labelsForPV", "<<: {a: z}\na: x\n")]).labels_for_pv["a"], "x");
    // Tagged as a string it is a key like any other, though no legal label.
    let tagged = load(&[("labelsForPV", "!!str <<: z\n")]);
    assert_eq!(tagged.problems[0].key, "labelsForPV.<<");
    for bad in ["<<: x\n", "<<: [x]\n", "<<:\n", "<<: []\n"] {
        assert_eq!(load(&[("labelsForPV", bad)]).problems.len(), 1, "{bad:?}");
    }
}

#[test]
fn crlf_and_a_byte_order_mark() {
    let class =
        class("\u{feff}fast:\r\n  hostDir: /mnt/fast\r\n  mountDir: \"/mnt/fast\"\r\n  namePattern: |-\r\n    sd*\r\n");
    assert_eq!(class.host_dir.to_str(), Some("/mnt/fast"));
    assert_eq!(class.name_pattern.as_str(), "sd*");
    assert!(sound(&[("useNodeNameOnly", "yes\r\n")]).use_node_name_only);
    let lines: Vec<_> = load(&[("storageClassMap", "a:\r\n  hostDir: /a\r\n  mountDir: m\r\n")])
        .problems
        .iter()
        .map(|problem| problem.line)
        .collect();
    assert_eq!(lines, [Some(3)]);
}

#[test]
fn json_is_yaml() {
    let class = class("{\n\t\"fast\": {\"hostDir\": \"/a\",\n\t\t\"mountDir\": \"/b\\u0063\"}\n}");
    assert_eq!(class.mount_dir.to_str(), Some("/bc"));
}

#[test]
fn what_is_no_single_yaml_value_is_refused() {
    for (text, line, part) in [
        ("a: b: c\n", 1, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 1, "tab"),
        ("a: 1\n---\nb: 2\n", 3, "second document"),
        ("a: *nowhere\n", 1, "anchor"),
        ("a: &x\n  b: *x\n", 2, "inside of what it refers to"),
        ("? [a]\n: b\n", 1, "cannot be a key"),
        ("x: y\n~: b\n", 2, "missing or null"),
        (&format!("x: y\n{}: b\n", "k".repeat(513)), 2, "longer than 512 bytes"),
        (
            "just text\n",
            1,
            "expected a map of keys and values, found \"just text\"",
        ),
    ] {
        let loaded = load(&[("labelsForPV", text)]);
        assert_eq!(loaded.problems.len(), 1, "{text:?}");
        let problem = &loaded.problems[0];
        assert_eq!(
            (problem.key.as_str(), problem.line, &problem.class),
            ("labelsForPV", Some(line), &None),
            "{problem}"
        );
        assert!(problem.message.contains(part), "{problem}");
        assert!(loaded.config.labels_for_pv.is_empty());
    }
    let keys = [("labelsForPV", &b"a: b\nc: \xe9\n"[..]), ("storageClassMap", b"{}")];
    let keys = keys.map(|(key, value)| (key.to_owned(), value.to_vec()));
    let latin1 = parse("", &keys.into());
    assert_eq!(
        (latin1.problems[0].file.as_str(), latin1.problems[0].line),
        ("labelsForPV", Some(2))
    );
    assert!(latin1.problems[0].message.contains("UTF-8"));
}

#[test]
fn alias_bombs_are_refused_at_once() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(", "));
    let merges = format!(
        "a: &a {{{}}}\nb: {{{}}}\n",
        "k: v, ".repeat(1000),
        "<<: *a, ".repeat(1000)
    );
    for text in [bomb, long, merges] {
        let loaded = load(&[("labelsForPV", &text)]);
        assert!(
            loaded.problems[0].message.contains("too large"),
            "{}",
            loaded.problems[0]
        );
        assert!(loaded.problems[0].line.unwrap() > 1);
    }
}

#[test]
fn deep_nesting_is_refused() {
    let mut levels = "a0: &a0 [[[[[[[[[[x]]]]]]]]]]\n".to_owned();
    for level in 1..10 {
        levels.push_str(&format!("a{level}: &a{level} [[[[[[[[[[*a{}]]]]]]]]]]\n", level - 1));
    }
    for text in [
        "[".repeat(100_000),
        "- ".repeat(1000),
        format!("{}{}", "{a: ".repeat(100), "}".repeat(100)),
        levels,
    ] {
        let loaded = load(&[("labelsForPV", &text)]);
        assert_eq!(loaded.problems.len(), 1);
        assert!(
            loaded.problems[0].message.contains("nested deeper than 64"),
            "{}",
            loaded.problems[0]
        );
    }
}

#[test]
fn common_slips_come_with_a_hint() {
    for (text, place, hint) in [
        ("a:\n  namePattern: *\n", ":2: ", "quote a text with special characters"),
        (
            "a:\n  namePattern: *.img\n",
            ":2: ",
            "quote a text with special characters",
        ),
        ("a:\n  hostDir: @a\n", ":2: ", "quote a text with special characters"),
        ("a:\n\thostDir: /a\n", ":2: ", "indent with spaces"),
        (
            "a:\n  hostDir:/a\n  mountDir: /a\n",
            ":3: ",
            "a space follows each colon",
        ),
        (
            "a:\n  hostDir: /a\n   mountDir: /b\n",
            ":3: ",
            "a space follows each colon",
        ),
        ("a:\n  hostDir: /a\n  mountDir\n", ":3: ", "a space follows each colon"),
    ] {
        let problems = class_problems(text);
        assert_eq!(problems.len(), 1, "{text:?}");
        assert!(
            problems[0].contains(place) && problems[0].ends_with(hint),
            "{}",
            problems[0]
        );
    }
}
