use std::path::Path;

use super::*;

const MANIFEST: &str = "# Source: chart/templates/configmap.yaml
apiVersion: v1
kind: ConfigMap
metadata:
  name: config
data:
  useNodeNameOnly: \"yes\"
  labelsForPV: |

    a: b
    c: d e
  minResyncPeriod: >-
    5
  storageClassMap: |-
    ok:
      hostDir: /ok
      mountDir: /ok
    broken:
      hostDir: /broken
      mountDir: broken
";

#[test]
fn lines_are_those_of_the_manifest() {
    let loaded = parse_manifest("m.yaml", MANIFEST);
    assert!(loaded.config.use_node_name_only);
    assert_eq!(loaded.config.labels_for_pv["a"], "b");
    assert_eq!(loaded.config.classes.keys().collect::<Vec<_>>(), ["ok"]);
    let shown = shown(&loaded.problems);
    assert_eq!(shown.len(), 3);
    assert!(
        shown[0].starts_with("m.yaml:11: labelsForPV.c: \"d e\" cannot be"),
        "{}",
        shown[0]
    );
    assert!(
        shown[1].starts_with("m.yaml:13: minResyncPeriod: invalid duration"),
        "{}",
        shown[1]
    );
    assert!(shown[1].ends_with(" (line 1 of the value)"));
    assert_eq!(
        shown[2],
        "m.yaml:20: storageClassMap.broken.mountDir: \"broken\" is not an absolute path"
    );
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn json_manifests() {
    let text = "{\"kind\": \"ConfigMap\",\n \"data\": {\n\"useNodeNameOnly\": \"on\",\n\"storageClassMap\": \"a:\\n  hostDir: /a\\n\"}}";
    let loaded = parse_manifest("m.json", text);
    assert!(loaded.config.use_node_name_only);
    assert_eq!(
        shown(&loaded.problems),
        ["m.json:4: storageClassMap.a.mountDir: mountDir is required: name an absolute path (line 1 of the value)"]
    );
}

#[test]
fn the_config_map_is_found_among_other_objects() {
    let other = "kind: ConfigMap\nmetadata: {name: other}\ndata: {x: z}\n";
    let text = format!("kind: DaemonSet\ndata: {{storageClassMap: no}}\n---\n{other}---\n{MANIFEST}---\n# nothing\n");
    let loaded = parse_manifest("m", &text);
    assert_eq!(loaded.config.classes.len(), 1);
    assert_eq!(loaded.problems[2].line, Some(20 + 7));
    let list = "kind: List\nitems:\n- kind: ConfigMap\n  data:\n    useNodeNameOnly: 'yes'\n";
    assert!(parse_manifest("m", list).config.use_node_name_only);
    // A single one is taken for it, whatever it lacks.
    let found = parse_manifest("m", other).problems;
    assert!(found[0].message.starts_with("no setting is in it"), "{found:?}");
}

#[test]
fn which_config_map_is_meant_must_be_clear() {
    let named = |name: &str, data: &str| format!("kind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{{data}}}\n");
    let (x, y) = (named("x", "a: b"), named("y", "a: b"));
    let (p, q) = (named("p", "storageClassMap: ''"), named("q", "StorageClassMap: ''"));
    for (text, line, expected) in [
        (
            String::new(),
            None,
            "there is no ConfigMap in it: an object with `kind: ConfigMap`",
        ),
        (
            "storageClassMap:\n  a: {}\n".to_owned(),
            Some(1),
            "there is no ConfigMap in it: storageClassMap belongs under",
        ),
        (
            format!("{x}---\n{y}"),
            None,
            "none of the ConfigMaps x (line 1), y (line 5) has a storageClassMap",
        ),
        (
            format!("{p}---\n{q}"),
            None,
            "more than one ConfigMap has a storageClassMap: p (line 1), q (line 5); leave one",
        ),
        ("kind: ConfigMap\ndata: [\n".to_owned(), Some(2), "not valid YAML"),
    ] {
        let loaded = parse_manifest("m", &text);
        assert_eq!(loaded.config, Config::default());
        assert_eq!(loaded.problems.len(), 1, "{text}");
        let problem = &loaded.problems[0];
        assert_eq!((problem.key.as_str(), problem.line), ("", line), "{problem}");
        assert!(problem.message.starts_with(expected), "{problem}");
    }
}

#[test]
fn values_that_the_api_server_refuses_are_problems() {
    let text = "kind: ConfigMap\ndata:\n  useNodeNameOnly: yes\n  storageClassMap:\n    a: {}\n  labelsForPV:\n  labelsForPV: 'a: b'\n";
    let loaded = parse_manifest("m", text);
    let lines: Vec<_> = loaded
        .problems
        .iter()
        .map(|p| (p.key.as_str(), p.line.unwrap()))
        .collect();
    assert_eq!(lines, [("useNodeNameOnly", 3), ("storageClassMap", 5)]);
    assert!(loaded.problems[0].message.contains("quote the value"));
    assert!(!loaded.config.use_node_name_only);
    assert_eq!(loaded.config.labels_for_pv["a"], "b");
    assert_eq!(
        shown(&loaded.warnings),
        ["m:7: labelsForPV: the key occurs more than once: the last one is used"]
    );
}

#[test]
fn a_manifest_is_read_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.yaml");
    std::fs::write(&path, MANIFEST).unwrap();
    assert_eq!(
        load_manifest(&path),
        parse_manifest(&path.display().to_string(), MANIFEST)
    );
    let missing = load_manifest(Path::new("/nonexistent.yaml"));
    assert_eq!(
        shown(&missing.problems),
        ["/nonexistent.yaml: cannot read the manifest: No such file or directory (os error 2)"]
    );
}

#[test]
fn an_empty_key_costs_nothing_else() {
    let loaded = parse_manifest(
        "m",
        "kind: ConfigMap\ndata:\n  \"\": [x]\n  useNodeNameOnly: \"true\"\n",
    );
    assert!(loaded.config.use_node_name_only);
    let found: Vec<_> = loaded.problems.iter().map(|p| (p.key.as_str(), p.line)).collect();
    assert_eq!(found, [("storageClassMap", None), ("data", Some(3))]);
}
