//! A ConfigMap manifest, as it stands in a repository or comes out of `helm template`, checked without a cluster.

use std::fs;
use std::path::Path;

use serde_saphyr::granit_parser::ScalarStyle;

use super::scalar::{Resolved, resolve};
use super::settings::{Lines, Origin, Setting, build};
use super::yaml::{self, Entry, Node, Scalar, Value};
use super::{Loaded, Problem};

/// Manifests of a whole release fit in easily.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// Loads the ConfigMap of a manifest in YAML or JSON; see [`parse_manifest`].
pub fn load_manifest(path: &Path) -> Loaded {
    let file = path.display().to_string();
    let text = fs::metadata(path).and_then(|meta| {
        if meta.len() > MAX_MANIFEST_BYTES {
            return Err(std::io::Error::other(format!(
                "it is larger than {} MiB",
                MAX_MANIFEST_BYTES >> 20
            )));
        }
        fs::read_to_string(path)
    });
    match text {
        Ok(text) => parse_manifest(&file, &text),
        Err(err) => broken(&file, None, format!("cannot read the manifest: {err}")),
    }
}

/// Parses a manifest of one or many documents (lists of objects included): its only ConfigMap, or of several the one
/// that has a `storageClassMap`. Lines are those of the manifest.
pub fn parse_manifest(file: &str, text: &str) -> Loaded {
    let documents = match yaml::documents(text) {
        Ok(documents) => documents,
        Err(yaml::SyntaxError { line, message }) => return broken(file, Some(line), message),
    };
    let mut maps = Vec::new();
    documents
        .iter()
        .for_each(|document| find_config_maps(document, &mut maps));
    let map = match maps.as_slice() {
        [only] => *only,
        [] => {
            let raw = documents
                .iter()
                .find(|document| child(document, "storageClassMap").is_some());
            let hint = match raw {
                Some(_) => "storageClassMap belongs under `data` of an object of kind ConfigMap",
                None => "an object with `kind: ConfigMap` and a storageClassMap under `data` is expected",
            };
            return broken(
                file,
                raw.map(|node| node.line),
                format!("there is no ConfigMap in it: {hint}"),
            );
        }
        several => {
            let with_classes: Vec<_> = several.iter().copied().filter(|map| has_classes(map)).collect();
            match with_classes.as_slice() {
                [only] => *only,
                [] => {
                    return broken(
                        file,
                        None,
                        format!("none of the ConfigMaps {} has a storageClassMap", list(several)),
                    );
                }
                many => {
                    let message = format!(
                        "more than one ConfigMap has a storageClassMap: {}; leave one",
                        list(many)
                    );
                    return broken(file, None, message);
                }
            }
        }
    };
    load(file, map)
}

fn load(file: &str, map: &Node) -> Loaded {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut settings: Vec<Setting> = Vec::new();
    for entry in data(map) {
        let origin = |lines| Origin {
            file: file.to_owned(),
            lines,
        };
        if entry.key.is_empty() {
            // A problem without a key would say that nothing could be read.
            let message = "the API server takes no empty key: give it a name".to_owned();
            problems.push(at(file, Some(entry.line), "data", message));
            continue;
        }
        let scalar = match &entry.value.value {
            Value::Scalar(scalar) if is_string(scalar) => scalar,
            _ => {
                let message = "the API server takes strings only: quote the value, or write it as a block after `|`";
                problems.push(at(file, Some(entry.value.line), &entry.key, message.to_owned()));
                continue;
            }
        };
        if let Some(former) = settings.iter().position(|setting| setting.key == entry.key) {
            settings.remove(former);
            let message = "the key occurs more than once: the last one is used".to_owned();
            warnings.push(at(file, Some(entry.line), &entry.key, message));
        }
        let text = if entry.value.is_null() { "" } else { &scalar.text };
        settings.push(Setting {
            key: entry.key.clone(),
            value: text.as_bytes().to_vec(),
            origin: origin(lines(scalar, entry.value.line)),
        });
    }
    if let Some(binary) = child(map, "binaryData").filter(|node| !node.is_null()) {
        warnings.push(at(
            file,
            Some(binary.line),
            "binaryData",
            "it is not looked at: use data".to_owned(),
        ));
    }
    let mut loaded = build(file, settings, problems);
    loaded.warnings.extend(warnings);
    loaded
}

/// kubectl turns the manifest into JSON, and `data: {key: true}` into a boolean that the API server refuses. Null passes.
fn is_string(scalar: &Scalar) -> bool {
    !scalar.plain || matches!(resolve(&scalar.text), Resolved::Text | Resolved::Null)
}

/// A literal block keeps its lines. The parser puts it where its first line that is not blank begins.
fn lines(scalar: &Scalar, line: u64) -> Lines {
    match scalar.style {
        ScalarStyle::Literal => {
            let blank = scalar.text.bytes().take_while(|byte| *byte == b'\n').count() as u64;
            Lines::After(line.saturating_sub(blank + 1))
        }
        _ if scalar.text.contains('\n') || scalar.style == ScalarStyle::Folded => Lines::In(line),
        _ => Lines::After(line.saturating_sub(1)),
    }
}

fn find_config_maps<'a>(node: &'a Node, found: &mut Vec<&'a Node>) {
    if child_text(node, "kind") == Some("ConfigMap") {
        found.push(node);
    }
    if let Some(Node {
        value: Value::List(items),
        ..
    }) = child(node, "items")
    {
        items.iter().for_each(|item| find_config_maps(item, found));
    }
}

fn has_classes(map: &Node) -> bool {
    data(map)
        .iter()
        .any(|entry| entry.key.eq_ignore_ascii_case("storageClassMap"))
}

fn data(map: &Node) -> &[Entry] {
    match child(map, "data") {
        Some(Node {
            value: Value::Map(entries),
            ..
        }) => entries,
        _ => &[],
    }
}

/// The last value of a key.
fn child<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .rev()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value),
        _ => None,
    }
}

fn child_text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match &child(node, key)?.value {
        Value::Scalar(scalar) => Some(&scalar.text),
        _ => None,
    }
}

fn list(maps: &[&Node]) -> String {
    let name = |map: &Node| {
        let name = child(map, "metadata").and_then(|metadata| child_text(metadata, "name"));
        format!("{} (line {})", name.unwrap_or("without a name"), map.line)
    };
    maps.iter().map(|map| name(map)).collect::<Vec<_>>().join(", ")
}

fn broken(file: &str, line: Option<u64>, message: String) -> Loaded {
    Loaded {
        problems: vec![at(file, line, "", message)],
        ..Loaded::default()
    }
}

fn at(file: &str, line: Option<u64>, key: &str, message: String) -> Problem {
    Problem {
        file: file.to_owned(),
        line,
        key: key.to_owned(),
        class: None,
        message,
    }
}
