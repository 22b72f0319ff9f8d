use super::*;

const ALL: &[(&str, &str)] = &[
    (
        "storageClassMap",
        "a: {hostDir: /a, mountDir: /a}\nb: {hostDir: /b, mountDir: /b}\n",
    ),
    ("labelsForPV", "x: old\ny: old\n"),
    ("useJobForCleaning", "yes"),
    ("useNodeNameOnly", "yes"),
    ("setPVOwnerRef", "yes"),
    ("removeNodeNotReadyTaint", "yes"),
    ("provisionerNotReadyNodeTaintKey", "key"),
    ("minResyncPeriod", "1s"),
    ("nodeLabelsForPV", "[zone]"),
    ("jobTolerations", "[{operator: Exists}]"),
];

/// The configuration [`ALL`] after an edit that replaces one key.
fn edited(key: &str, value: &str) -> (Config, Loaded) {
    let before = sound(ALL);
    let keys: Vec<_> = ALL
        .iter()
        .map(|(k, v)| if *k == key { (*k, value) } else { (*k, *v) })
        .collect();
    (before.clone(), load(&keys).keep_last_good(&before))
}

#[test]
fn a_key_that_breaks_keeps_its_last_good_value() {
    for (key, _) in ALL {
        let (before, loaded) = edited(key, "[{");
        assert_eq!(loaded.config, before, "{key}");
        assert_eq!(loaded.problems.len(), 1, "{key}");
        let (before, loaded) = edited(key, "");
        if *key == "storageClassMap" {
            assert_eq!(loaded.config, before, "no class at all must be written as {{}}");
            assert_eq!(edited(key, "{}").1.config.classes, BTreeMap::new());
            continue;
        }
        assert_ne!(loaded.config, before, "{key}: an empty value is an edit, not an error");
    }
}

#[test]
fn a_class_that_breaks_keeps_its_last_good_settings_and_others_change() {
    let (before, loaded) = edited(
        "storageClassMap",
        "a: {hostDir: a}\nb: {hostDir: /b2, mountDir: /b2}\nc: {}\n",
    );
    assert_eq!(loaded.config.classes["a"], before.classes["a"]);
    assert_eq!(loaded.config.classes["b"].host_dir.to_str(), Some("/b2"));
    assert!(!loaded.config.classes.contains_key("c"));
    let (_, loaded) = edited("storageClassMap", "b: {hostDir: /b, mountDir: /b}\n");
    assert_eq!(
        loaded.config.classes.keys().collect::<Vec<_>>(),
        ["b"],
        "a class that is removed goes"
    );
}

#[test]
fn a_label_that_breaks_keeps_its_last_good_value() {
    let (_, loaded) = edited("labelsForPV", "x: not legal\nz: new\nw: not legal\n");
    let labels: Vec<_> = loaded
        .config
        .labels_for_pv
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(labels, [("x", "old"), ("z", "new")]);
}

#[test]
fn if_nothing_can_be_read_everything_stays() {
    let before = sound(ALL);
    let loaded = load_directory(std::path::Path::new("/nonexistent")).keep_last_good(&before);
    assert_eq!(loaded.config, before);
    assert_eq!(loaded.problems.len(), 1);
}

#[test]
fn a_map_that_is_lost_keeps_the_classes_and_nothing_at_all_keeps_everything() {
    let before = sound(ALL);
    let without = |gone: &[&str]| {
        let keys = ALL.iter().filter(|(key, _)| !gone.contains(key));
        let keys = keys.map(|(key, value)| (key.to_string(), value.as_bytes().to_vec()));
        parse("dir", &keys.collect()).keep_last_good(&before)
    };
    let loaded = without(&["storageClassMap", "useNodeNameOnly"]);
    assert_eq!(loaded.config.classes, before.classes);
    assert!(
        !loaded.config.use_node_name_only,
        "another key that is removed is the default"
    );
    assert_eq!(loaded.problems.len(), 1);
    let nothing = parse("dir", &BTreeMap::new()).keep_last_good(&before);
    assert_eq!(nothing.config, before);
}

#[test]
fn a_new_class_does_not_push_out_an_old_one() {
    let text = "0: {hostDir: /0, mountDir: /b}\na: {hostDir: /a, mountDir: /a}\nb: {hostDir: /b, mountDir: /b}\n";
    let (before, loaded) = edited("storageClassMap", text);
    assert_eq!(loaded.config.classes, before.classes);
    let classes: Vec<_> = loaded.problems.iter().map(|p| p.class.as_deref().unwrap()).collect();
    assert_eq!(classes, ["b", "0"]);
}

#[test]
fn a_class_that_takes_the_directory_of_a_restored_one_is_restored_too() {
    let (before, loaded) = edited(
        "storageClassMap",
        "a: {hostDir: /new, mountDir: /b}\nb: {mountDir: b}\n",
    );
    assert_eq!(loaded.config.classes, before.classes);
    let last = loaded.problems.last().unwrap();
    assert_eq!(
        (last.class.as_deref(), last.key.as_str()),
        (Some("a"), "storageClassMap.a.mountDir")
    );
}

#[test]
fn without_problems_the_edit_is_taken_as_it_is() {
    let (_, loaded) = edited(
        "storageClassMap",
        "a: {hostDir: /b, mountDir: /b}\nb: {hostDir: /a, mountDir: /a}\n",
    );
    assert!(loaded.problems.is_empty());
    assert_eq!(loaded.config.classes["a"].host_dir.to_str(), Some("/b"));
}
