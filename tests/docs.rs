//! The documents say what the program does: every name that an operator may look up is in its table, no table names what
//! is not there, commands are taken by the binary, and links lead somewhere.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "docs/markdown.rs"]
#[allow(unreachable_pub)] // a test is its own crate
mod markdown;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use markdown::{Set, anchor, between, blocks, column, literals, literals_after, quoted, rows, section, text, top};

fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(top().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = docs
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    all.extend(["README.md", "CHANGELOG.md"].map(|name| top().join(name)));
    all
}

fn binary(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_local-volume-provisioner"))
        .args(args)
        .current_dir(top())
        .env_remove("MY_NODE_NAME")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// All sources below a path of `src`.
fn sources(path: &Path) -> String {
    if path.is_file() {
        return fs::read_to_string(path).unwrap();
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| sources(&path)).collect()
}

#[track_caller]
fn same(what: &str, code: &Set, documented: &Set) {
    assert!(
        !code.is_empty(),
        "found no {what} in the code: this test looks at the wrong place"
    );
    let missing: Vec<_> = code.difference(documented).collect();
    let invented: Vec<_> = documented.difference(code).collect();
    assert!(missing.is_empty(), "{what}: not documented: {missing:?}");
    assert!(
        invented.is_empty(),
        "{what}: documented and not in the code: {invented:?}"
    );
}

#[test]
fn reasons_are_documented() {
    let source = text("src/reason.rs");
    for (name, heading) in [
        ("Ignored", "## Ignored: why an entry is no volume"),
        ("Held", "## Held: why a volume is out of circulation"),
    ] {
        let implementation = between(&source, &format!("impl {name} {{"), "impl fmt::Display");
        let documented = rows(&section("docs/volumes.md", heading));
        let documented = documented.iter().flat_map(|row| quoted(&row[0])).collect();
        same(
            name,
            &literals(between(implementation, "match self {", "\n        }\n")),
            &documented,
        );
    }
}

#[test]
fn states_are_documented() {
    let source = text("src/plan.rs");
    let states = literals(between(&source, "fn word(&self)", "\n        }\n"));
    same("states", &states, &column("docs/volumes.md", "## States", 0));
    same(
        "states",
        &states,
        &column("README.md", "## When a volume is not there", 0),
    );
}

#[test]
fn events_are_documented() {
    let source = sources(&top().join("src/plan")) + &sources(&top().join("src/run"));
    let mut events = literals_after(&source, "Severity::Warning,");
    events.extend(literals_after(&source, "Severity::Normal,"));
    events.extend(literals_after(&source, "reason:"));
    same("events", &events, &column("docs/volumes.md", "## Events", 1));
}

#[test]
fn names_on_persistent_volumes_are_documented() {
    let own = |name: &String| name.starts_with("local-volume-provisioner/");
    let source = text("src/names.rs");
    let code = literals_after(&source, "&str =").into_iter().filter(own).collect();
    let mut documented = column("docs/volumes.md", "## What a PersistentVolume carries", 1);
    documented.extend(column("docs/volumes.md", "### Annotations that you may set", 0));
    same("names", &code, &documented.into_iter().filter(own).collect());
}

#[test]
fn metrics_are_documented() {
    let metrics = local_volume_provisioner::metrics::Metrics::new().unwrap();
    let with_labels = |metric: &local_volume_provisioner::metrics::Description| {
        let mut labels = metric.labels.clone();
        labels.sort();
        format!("{}({})", metric.name, labels.join(", "))
    };
    let code = metrics.descriptions().iter().map(with_labels).collect();
    let mut documented = Set::new();
    for row in rows(&section("docs/operations.md", "## Metrics")) {
        let mut labels: Vec<&str> = row[1].split(", ").map(str::trim).collect();
        labels.sort_unstable();
        let names = quoted(&row[0]).into_iter();
        documented.extend(names.map(|name| format!("{name}({})", labels.join(", "))));
    }
    same("metrics", &code, &documented);
}

#[test]
fn configuration_keys_are_documented() {
    let settings = text("src/config/settings.rs");
    let mut keys = literals(between(&settings, "const KEYS: &[&str] = &[", "];"));
    keys.extend(literals_after(&settings, "const CLASSES: &str ="));
    same("keys", &keys, &column("docs/configuration.md", "## The ConfigMap", 0));
    let class = text("src/config/class.rs");
    let fields = literals(between(&class, "const FIELDS: &[&str] = &[", "];"));
    same(
        "fields",
        &fields,
        &column("docs/configuration.md", "## Settings of a class", 0),
    );
}

/// The flags that a help text lists, and their defaults.
fn flags(help: &str) -> BTreeMap<String, Option<String>> {
    let options = help.split_once("\nOptions:\n").unwrap().1;
    let mut flags = BTreeMap::new();
    let mut entries: Vec<String> = Vec::new();
    for line in options
        .lines()
        .take_while(|line| !line.is_empty() && !line.starts_with(|c: char| c.is_alphabetic()))
    {
        match line.trim_start() {
            new if new.starts_with('-') => entries.push(new.to_owned()),
            more => entries.last_mut().unwrap().push_str(&format!(" {more}")),
        }
    }
    for entry in entries {
        let flag = entry.split([' ', ',']).find(|word| word.starts_with("--")).unwrap();
        let default = entry
            .split_once("[default: ")
            .map(|(_, rest)| rest.split(']').next().unwrap().to_owned());
        flags.insert(flag.to_owned(), default);
    }
    flags.retain(|flag, _| flag != "--help" && flag != "--version");
    flags
}

#[test]
fn flags_are_documented_with_their_defaults() {
    let code = flags(&stdout(&binary(&["run", "--help"])));
    let mut documented = BTreeMap::new();
    for row in rows(&section("docs/configuration.md", "## Flags")) {
        let flag = quoted(&row[0]).pop().unwrap();
        documented.insert(flag, quoted(&row[1]).pop());
    }
    assert_eq!(code, documented);
    for row in rows(&section("README.md", "## Configuration")) {
        let flag = quoted(&row[0]).pop().unwrap();
        let long = if flag == "-v" { "--v" } else { &flag };
        assert_eq!(code.get(long), Some(&quoted(&row[1]).pop()), "README.md: {flag}");
    }
}

#[test]
fn classic_flags_are_taken_as_documented() {
    let flags = section("docs/configuration.md", "## Flags");
    let (_, ignored) = flags.split_once("accepted without effect:").unwrap();
    let documented: Set = quoted(ignored).into_iter().collect();
    let source = text("src/cli/classic.rs");
    let mut code: Set = literals_after(&source, "long =")
        .iter()
        .map(|flag| format!("--{flag}"))
        .collect();
    code.insert("--config-sync-period".into());
    same("classic flags", &code, &documented);
    for flag in documented {
        let output = binary(&[&format!("{flag}=1"), "--help"]);
        assert!(
            output.status.success(),
            "{flag}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn variables_are_documented() {
    let source = sources(&top().join("src"));
    let mut code = literals_after(&source, "variable(");
    code.extend(literals_after(&source, "var_os("));
    code.extend(literals_after(&source, "_VARIABLE: &str ="));
    let mut documented = column("docs/configuration.md", "## Environment", 0);
    documented.extend(column("docs/configuration.md", "### Jobs", 0));
    assert!(code.len() > 2 && code.is_subset(&documented), "{code:?} {documented:?}");
}

#[test]
fn source_files_are_listed() {
    let listed = column("docs/development.md", "## What is where", 0);
    let entries = fs::read_dir(top().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let files = entries.map(|name| name.into_string().unwrap());
    let files: Set = files.filter(|name| name.ends_with(".rs") && name != "lib.rs").collect();
    same(
        "files",
        &files,
        &listed.into_iter().filter(|name| name.ends_with(".rs")).collect(),
    );
}

#[test]
fn commands_are_taken_by_the_binary() {
    let mut tried = Set::new();
    for document in documents() {
        for (_, lines) in blocks(&fs::read_to_string(&document).unwrap()) {
            for (at, line) in lines.iter().enumerate() {
                let command = line.trim_start().trim_start_matches("$ ");
                let Some(args) = command.strip_prefix("local-volume-provisioner ") else {
                    continue;
                };
                let args: Vec<&str> = args.split_whitespace().collect();
                // Its help is printed only after all that comes before was taken.
                let output = binary(&[&args[..], &["--help"]].concat());
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{}: {command}: {error}", document.display());
                if args[0] == "validate" && line.starts_with("$ ") {
                    assert_eq!(
                        stdout(&binary(&args)).lines().collect::<Vec<_>>(),
                        lines[at + 1..],
                        "{command}"
                    );
                }
                tried.insert(args[0].to_owned());
            }
        }
    }
    assert!(tried.contains("plan") && tried.contains("validate"), "{tried:?}");
}

#[test]
fn examples_of_the_configuration_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("configmap.yaml");
    let mut examples = 0;
    for document in documents() {
        for (language, lines) in blocks(&fs::read_to_string(&document).unwrap()) {
            if language != "yaml" {
                continue;
            }
            let mut manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n".to_owned();
            let indent = if lines[0] == "data:" { "" } else { "  " };
            if !indent.is_empty() {
                manifest += "data:\n";
            }
            lines.iter().for_each(|line| manifest += &format!("{indent}{line}\n"));
            fs::write(&file, &manifest).unwrap();
            let output = binary(&["validate", "--strict", file.to_str().unwrap()]);
            assert!(output.status.success(), "{}: {}", document.display(), stdout(&output));
            examples += 1;
        }
    }
    assert!(examples >= 2, "the examples are gone");
}

#[test]
fn make_targets_exist() {
    let makefile = text("Makefile");
    for document in documents() {
        let markdown = fs::read_to_string(&document).unwrap();
        let mut names = quoted(&markdown.replace("```", ""));
        names.extend(blocks(&markdown).into_iter().flat_map(|(_, lines)| lines));
        for name in names {
            let Some(target) = name
                .strip_prefix("make ")
                .and_then(|rest| rest.split_whitespace().next())
            else {
                continue;
            };
            assert!(
                makefile.contains(&format!("\n{target}:")),
                "{}: make {target}",
                document.display()
            );
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for document in documents() {
        let markdown = fs::read_to_string(&document).unwrap();
        for link in markdown.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                document.clone()
            } else {
                document.parent().unwrap().join(path)
            };
            assert!(target.exists(), "{}: {link} does not exist", document.display());
            if !fragment.is_empty() {
                let headings = fs::read_to_string(&target).unwrap();
                let mut headings = headings.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|heading| anchor(heading) == fragment),
                    "{}: no heading {link}",
                    document.display()
                );
            }
            links += 1;
        }
    }
    assert!(links > 20, "only {links} links found");
}

/// Every row of docs/safety.md names tests, as `file: name`, that there are.
#[test]
fn safety_is_shown_by_tests() {
    let markdown = text("docs/safety.md");
    let mut tests = 0;
    for line in markdown.lines().filter(|line| line.starts_with("| ")) {
        let shown = line.trim_end_matches('|').rsplit('|').next().unwrap();
        if shown.trim() == "shown by" {
            continue;
        }
        let named = quoted(shown);
        assert!(!named.is_empty(), "no test is named: {line}");
        for test in named {
            let (file, name) = test.split_once(": ").expect(line);
            let source = fs::read_to_string(top().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(source.contains(&format!("fn {name}(")), "{file} has no test {name}");
            tests += 1;
        }
    }
    assert!(tests > 50, "only {tests} tests found");
}

#[test]
fn tables_are_whole() {
    for document in documents() {
        let markdown = fs::read_to_string(&document).unwrap();
        let mut width = None;
        for line in markdown.lines() {
            if !line.starts_with('|') {
                width = None;
                continue;
            }
            let cells = line.matches('|').count();
            assert_eq!(*width.get_or_insert(cells), cells, "{}: {line}", document.display());
        }
    }
}
