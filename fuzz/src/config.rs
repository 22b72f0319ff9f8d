//! The configuration of a directory. The input is YAML of `storageClassMap`; a line `@key` begins another key.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use local_volume_provisioner::config::{
    self, Class, Config, Loaded, Problem, VolumeMode, clean, names, parse, parse_manifest,
};
use local_volume_provisioner::name_pattern::NamePattern;
use serde_json::{Value, json};

use crate::text::assert_one_line;

/// A problem that an operator still can read.
const LONGEST_PROBLEM: usize = 64 << 10;

pub(crate) fn target(data: &[u8]) {
    let keys = keys(data);
    let loaded = parse("", &keys);
    for problem in loaded.problems.iter().chain(&loaded.warnings) {
        described(problem);
        let value = keys.get(&problem.file);
        assert!(value.is_some() || problem.line.is_none(), "no such file: {problem:?}");
        if let (Some(value), Some(line)) = (value, problem.line) {
            assert_line(value, line, problem);
        }
        assert!(!problem.key.is_empty(), "which key? {problem:?}");
    }
    for problem in &loaded.problems {
        assert!(problem.line.is_some(), "which line? {problem:?}");
    }
    sound(&loaded.config);
    printed(&loaded.config);
    as_manifest(&keys, &loaded);
    kept(loaded);
}

/// The values by their keys.
fn keys(data: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut keys = BTreeMap::new();
    let mut current = ("storageClassMap".to_owned(), Vec::new());
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_prefix(b"@").map(|key| std::str::from_utf8(key.trim_ascii())) {
            // The API server lets no other key into a ConfigMap.
            Some(Ok(key))
                if !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) =>
            {
                let (key, value) = std::mem::replace(&mut current, (key.to_owned(), Vec::new()));
                keys.insert(key, value);
            }
            _ => current.1.extend_from_slice(line),
        }
    }
    keys.insert(current.0, current.1);
    keys
}

/// It can be shown, in one line, and says something.
pub(crate) fn described(problem: &Problem) {
    assert!(!problem.message.is_empty());
    let shown = problem.to_string();
    assert_one_line(&shown);
    assert!(shown.len() < LONGEST_PROBLEM, "{} bytes of problem", shown.len());
}

/// The line is one of the text's; that behind its last line break counts.
pub(crate) fn assert_line(text: &[u8], line: u64, problem: &Problem) {
    let lines = text.iter().filter(|byte| **byte == b'\n' || **byte == b'\r').count() as u64 + 1;
    assert!((1..=lines).contains(&line), "of {lines} lines: {problem:?}");
}

/// What everything else relies on.
pub(crate) fn sound(config: &Config) {
    for (name, class) in &config.classes {
        assert_eq!(*name, class.name);
        assert_eq!(names::check_object_name(name), Ok(()));
        for dir in [&class.host_dir, &class.mount_dir] {
            let text = dir.to_string_lossy();
            assert!(dir.is_absolute() && text != "/" && clean(&text) == text, "{dir:?}");
        }
        for other in config.classes.values().filter(|other| other.name != *name) {
            assert_ne!(class.host_dir, other.host_dir);
            assert!(
                !class.mount_dir.starts_with(&other.mount_dir),
                "{class:?} and {other:?}"
            );
        }
        assert_eq!(
            NamePattern::parse(class.name_pattern.as_str()).as_ref(),
            Ok(&class.name_pattern)
        );
        if let Some(command) = &class.block_cleaner_command {
            assert_eq!(config::Cleaner::parse(command), Ok(class.cleaner()));
        }
    }
    for (key, value) in &config.labels_for_pv {
        assert_eq!(names::check_label_key(key), Ok(()));
        assert_eq!(names::check_label_value(value), Ok(()));
        assert!(!key.starts_with("local-volume-provisioner/"));
    }
    for key in &config.node_labels_for_pv {
        assert_eq!(names::check_label_key(key), Ok(()));
    }
}

/// What was read is read again from its own words.
fn printed(config: &Config) {
    let keys = print(config);
    let loaded = parse(
        "",
        &keys
            .iter()
            .map(|(key, value)| (key.clone(), value.to_string().into_bytes()))
            .collect(),
    );
    assert_eq!(loaded.problems, [], "of {keys:?}");
    assert_eq!(loaded.config, *config, "of {keys:?}");
}

/// The values in JSON, which is YAML.
fn print(config: &Config) -> BTreeMap<String, Value> {
    let classes: serde_json::Map<_, _> = config
        .classes
        .values()
        .map(|class| (class.name.clone(), print_class(class)))
        .collect();
    let tolerations: Vec<Value> = config.job_tolerations.iter().map(print_toleration).collect();
    let period = format!("{}ns", config.min_resync_period.as_nanos());
    let keys = [
        ("storageClassMap", json!(classes)),
        ("nodeLabelsForPV", json!(config.node_labels_for_pv)),
        ("labelsForPV", json!(config.labels_for_pv)),
        ("useJobForCleaning", json!(config.use_job_for_cleaning)),
        ("jobTolerations", json!(tolerations)),
        ("minResyncPeriod", json!(period)),
        ("useNodeNameOnly", json!(config.use_node_name_only)),
        ("setPVOwnerRef", json!(config.set_pv_owner_ref)),
        ("removeNodeNotReadyTaint", json!(config.remove_node_not_ready_taint)),
        (
            "provisionerNotReadyNodeTaintKey",
            json!(config.provisioner_not_ready_node_taint_key),
        ),
    ];
    keys.map(|(key, value)| (key.to_owned(), value)).into()
}

fn print_class(class: &Class) -> Value {
    let mode = match class.volume_mode {
        VolumeMode::Filesystem => "Filesystem",
        VolumeMode::Block => "Block",
    };
    json!({
        "hostDir": class.host_dir.to_str(),
        "mountDir": class.mount_dir.to_str(),
        "volumeMode": mode,
        "accessMode": class.access_mode,
        "fsType": class.fs_type,
        "namePattern": class.name_pattern.as_str(),
        "blockCleanerCommand": class.block_cleaner_command,
        "selector": class.selector,
    })
}

/// By hand, because what is empty stays away.
fn print_toleration(toleration: &Toleration) -> Value {
    json!({
        "key": toleration.key,
        "operator": toleration.operator,
        "value": toleration.value,
        "effect": toleration.effect,
        "tolerationSeconds": toleration.toleration_seconds,
    })
}

/// The same values under `data` of a manifest mean the same.
fn as_manifest(keys: &BTreeMap<String, Vec<u8>>, loaded: &Loaded) {
    let text = |value: &Vec<u8>| String::from_utf8(value.clone()).ok();
    let Some(data) = keys
        .iter()
        .map(|(key, value)| Some((key.clone(), Value::from(text(value)?))))
        .collect::<Option<serde_json::Map<_, _>>>()
    else {
        return;
    };
    let manifest = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data}).to_string();
    let manifest: String = manifest.chars().map(printable).collect();
    let same = parse_manifest("manifest", &manifest);
    assert_eq!(same.config, loaded.config, "of {manifest}");
    assert_eq!(
        same.problems.len(),
        loaded.problems.len(),
        "{:?}\n{:?}\nof {manifest}",
        same.problems,
        loaded.problems
    );
}

/// JSON takes characters that YAML takes only as escapes.
fn printable(c: char) -> String {
    match c {
        '\u{7f}'..='\u{9f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => format!("\\u{:04x}", u32::from(c)),
        _ => c.to_string(),
    }
}

/// After an edit what is broken is as before, and the whole is as sound as ever.
fn kept(loaded: Loaded) {
    let before =
        b"old:\n  hostDir: /mnt/old\n  mountDir: /mnt/old\nfast:\n  hostDir: /mnt/fast\n  mountDir: /mnt/fast\n";
    let before = parse("", &BTreeMap::from([("storageClassMap".to_owned(), before.to_vec())])).config;
    let (edited, broken) = (loaded.config.clone(), !loaded.problems.is_empty());
    let after = loaded.keep_last_good(&before);
    sound(&after.config);
    if !broken {
        assert_eq!(after.config, edited);
    }
    for class in after.config.classes.values() {
        let from = [&before, &edited].map(|config| config.classes.get(&class.name) == Some(class));
        assert!(from.contains(&true), "{class:?} is neither old nor new");
    }
}
