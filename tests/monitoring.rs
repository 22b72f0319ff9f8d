//! What is in deploy/monitoring fits the program: rules, dashboard and runbook use metrics, labels and reasons that there
//! are, and promtool takes them. Whether each alert fires when it should is in rules_test.yaml.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "docs/markdown.rs"]
#[allow(unreachable_pub, dead_code)] // a test is its own crate
mod markdown;
#[path = "monitoring/promql.rs"]
#[allow(unreachable_pub)] // a test is its own crate
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use local_volume_provisioner::metrics::{By, Metrics};
use local_volume_provisioner::scrub::progress::Unit;
use markdown::{Set, anchor, between, literals, text, top};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn rules() -> Vec<Rule> {
    let rules: Rules = serde_saphyr::from_str(&text("deploy/monitoring/rules.yaml")).unwrap();
    let rules: Vec<Rule> = rules.groups.into_iter().flat_map(|group| group.rules).collect();
    assert!(rules.len() > 10);
    rules
}

fn promtool(what: &str) -> Option<Command> {
    let found = Command::new("promtool")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        println!("SKIPPED: {what}: no promtool here (Debian: prometheus)");
        return None;
    }
    let mut command = Command::new("promtool");
    command.current_dir(top().join("deploy/monitoring"));
    Some(command)
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn promtool_takes_the_metrics() {
    let Some(mut promtool) = promtool("promtool_takes_the_metrics") else {
        return;
    };
    let metrics = Metrics::new().unwrap();
    let second = std::time::Duration::from_secs(1);
    metrics.created("/mnt/x".as_ref(), Default::default(), second);
    metrics.api_call("create", second, true);
    metrics.scrubbed(Default::default(), By::Process, "zero", "10Gi", second);
    metrics.scrub_failed(Default::default(), By::Job);
    metrics.scrub_counter(Unit::Bytes).inc();
    metrics.pass_ended(second);
    let mut child = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = metrics.text();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn promtool_takes_the_rules_and_each_alert_fires_when_it_should() {
    let Some(mut promtool) = promtool("promtool_takes_the_rules") else {
        return;
    };
    succeeds(promtool.args(["check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"]));
    let mut promtool = Command::new("promtool");
    promtool.current_dir(top().join("deploy/monitoring"));
    succeeds(promtool.args(["test", "rules", "rules_test.yaml"]));
}

#[test]
fn each_alert_is_tried_to_fire_and_not_to_fire() {
    #[derive(Deserialize)]
    struct Tests {
        tests: Vec<Test>,
    }
    #[derive(Deserialize)]
    struct Test {
        alert_rule_test: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        alertname: String,
        exp_alerts: Vec<Value>,
    }
    let tests: Tests = serde_saphyr::from_str(&text("deploy/monitoring/rules_test.yaml")).unwrap();
    let cases: Vec<Case> = tests.tests.into_iter().flat_map(|test| test.alert_rule_test).collect();
    for rule in rules() {
        for fires in [true, false] {
            let tried = |case: &Case| case.alertname == rule.alert && case.exp_alerts.is_empty() != fires;
            assert!(cases.iter().any(tried), "{} fires={fires}: not tested", rule.alert);
        }
    }
}

#[test]
fn the_operator_s_manifest_has_the_same_rules() {
    let rules = text("deploy/monitoring/rules.yaml");
    let rules = &rules[rules.find("\ngroups:").unwrap() + 1..];
    let inside: String = rules.lines().map(|line| format!("  {line}\n")).collect();
    let manifest = text("deploy/monitoring/prometheusrule.yaml");
    let (head, spec) = manifest.split_once("\nspec:\n").unwrap();
    assert!(head.contains("kind: PrometheusRule"));
    assert_eq!(spec, inside, "make it anew as its first lines say");
}

/// Metrics with their labels, and what is added to every target.
fn known() -> promql::Known {
    let metrics = Metrics::new().unwrap();
    let mut known = promql::Known::default();
    known.add("up", []);
    for metric in metrics.descriptions() {
        if metric.histogram {
            for (end, label) in [("_bucket", Some("le")), ("_sum", None), ("_count", None)] {
                let labels = metric.labels.iter().map(String::as_str).chain(label);
                known.add(&format!("{}{end}", metric.name), labels);
            }
        } else {
            known.add(&metric.name, metric.labels.iter().map(String::as_str));
        }
    }
    known
}

#[test]
fn rules_use_metrics_and_labels_that_there_are() {
    let known = known();
    for rule in rules() {
        known
            .check(&rule.expr)
            .unwrap_or_else(|error| panic!("{}: {error}", rule.alert));
        let labels = known.labels_of(&rule.expr);
        for text in rule.annotations.values() {
            for label in text.split("$labels.").skip(1) {
                let label: String = label.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(labels.contains(&label), "{}: $labels.{label}", rule.alert);
            }
        }
        let severity = rule.labels["severity"].as_str();
        assert!(["critical", "warning"].contains(&severity), "{}", rule.alert);
    }
}

/// Every reason to be held either has exactly one alert, or is what somebody has asked for.
#[test]
fn every_reason_to_be_held_has_its_alert() {
    const WANTED: [&str; 2] = ["retain", "kept"];
    let source = text("src/reason.rs");
    let implementation = between(&source, "impl Held {", "impl fmt::Display");
    let reasons = literals(between(implementation, "match self {", "\n        }\n"));
    assert!(reasons.len() > 20);
    let mut alerted: Vec<String> = Vec::new();
    for rule in rules() {
        for value in rule.expr.split("reason=").skip(1) {
            let values = value.trim_start_matches('~').split('"').nth(1).unwrap();
            alerted.extend(values.split('|').map(str::to_owned));
        }
    }
    let once: Set = alerted.iter().cloned().collect();
    assert_eq!(once.len(), alerted.len(), "twice: {alerted:?}");
    let wanted = WANTED.map(str::to_owned).into();
    let with_alert: Set = reasons.difference(&wanted).cloned().collect();
    assert_eq!(once, with_alert);
}

#[test]
fn each_alert_has_its_section_in_the_runbook() {
    let runbook = text("docs/runbook.md");
    let headings = runbook.lines().filter(|line| line.starts_with("### "));
    let sections: BTreeSet<String> = headings
        .map(|line| line.trim_start_matches('#').trim().to_owned())
        .collect();
    let rules = rules();
    let alerts: BTreeSet<String> = rules.iter().map(|rule| rule.alert.clone()).collect();
    assert_eq!(alerts.len(), rules.len(), "an alert has two rules");
    assert_eq!(sections, alerts);
    for rule in rules {
        let link = format!("docs/runbook.md#{}", anchor(&rule.alert));
        assert_eq!(rule.annotations["runbook_url"], link, "{}", rule.alert);
        let section = markdown::section("docs/runbook.md", &format!("### {}", rule.alert));
        for part in ["Means: ", "Look: ", "Do: "] {
            assert!(section.contains(part), "{}: no {part:?}", rule.alert);
        }
    }
}

/// All objects of the dashboard that have a query, and its variables.
fn dashboard() -> (Vec<(String, String)>, Set) {
    let dashboard: Value = serde_json::from_str(&text("deploy/monitoring/dashboard.json")).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names = variables
        .iter()
        .map(|variable| variable["name"].as_str().unwrap().to_owned());
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array();
        assert!(
            panel["type"] == "row" || targets.is_some_and(|targets| !targets.is_empty()),
            "{title}"
        );
        for target in targets.into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "$datasource", "{title}");
            queries.push((title.to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let query = variable["query"]["query"].as_str().unwrap();
        let inner = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')'))
            .unwrap();
        let (metric, label) = inner.rsplit_once(", ").unwrap();
        queries.push((format!("variable of {label}"), format!("count by ({label}) ({metric})")));
    }
    assert!(queries.len() > 25);
    (queries, names.collect())
}

#[test]
fn the_dashboard_uses_metrics_labels_and_variables_that_there_are() {
    let (queries, variables) = dashboard();
    let known = known();
    for (title, query) in &queries {
        known.check(query).unwrap_or_else(|error| panic!("{title}: {error}"));
        for variable in query.split('$').skip(1) {
            let name: String = variable
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            assert!(
                name == "__rate_interval" || variables.contains(&name),
                "{title}: ${name}"
            );
        }
    }
    for name in ["datasource", "node", "class"] {
        assert!(variables.contains(name), "{name}");
    }
}

#[test]
fn promtool_takes_the_dashboard_s_queries() {
    let Some(mut promtool) = promtool("promtool_takes_the_dashboard_s_queries") else {
        return;
    };
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, (_, query)) in dashboard().0.iter().enumerate() {
        let query = serde_json::to_string(&query.replace("$__rate_interval", "5m")).unwrap();
        rules += &format!("  - record: panel:{number}\n    expr: {query}\n");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dashboard.yaml");
    std::fs::write(&file, rules).unwrap();
    succeeds(promtool.args(["check", "rules"]).arg(&file));
}
