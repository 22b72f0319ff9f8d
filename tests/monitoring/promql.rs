//! As much of PromQL as it takes to find the metrics and labels in a query. Whether it is one says promtool.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of every target, from the configuration of Prometheus.
const TARGET: [&str; 3] = ["job", "instance", "node"];

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Mark(char),
}

/// Metrics and their labels.
#[derive(Default)]
pub struct Known(BTreeMap<String, BTreeSet<String>>);

impl Known {
    pub fn add<'a>(&mut self, metric: &str, labels: impl IntoIterator<Item = &'a str>) {
        let labels = labels.into_iter().chain(TARGET).map(str::to_owned).collect();
        self.0.insert(metric.to_owned(), labels);
    }

    /// All labels that the metrics of a query have.
    pub fn labels_of(&self, query: &str) -> BTreeSet<String> {
        let metrics = words(query).filter_map(|word| self.0.get(&word).cloned());
        metrics.flatten().collect()
    }

    /// Whether all metrics of a query are known, and each has the labels that it is asked for.
    pub fn check(&self, query: &str) -> Result<(), String> {
        let tokens = tokens(query);
        let all = self.labels_of(query);
        let mut metrics = 0;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            let Token::Word(word) = token else { continue };
            let next = tokens.get(at);
            match word.as_str() {
                "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" => {
                    at += 1;
                    while let Some(Token::Word(label)) = tokens.get(at) {
                        if !all.contains(label) {
                            return Err(format!("{word} ({label}): no metric of it has that label"));
                        }
                        at += 1;
                    }
                }
                "and" | "or" | "unless" | "bool" | "offset" => {}
                _ if next == Some(&Token::Mark('(')) || aggregates(&tokens, at) => {}
                metric => {
                    let labels = self.0.get(metric).ok_or(format!("{metric}: no such metric"))?;
                    metrics += 1;
                    if next == Some(&Token::Mark('{')) {
                        at += 1;
                        while let Some(token) = tokens.get(at).filter(|token| **token != Token::Mark('}')) {
                            if let Token::Word(label) = token
                                && !labels.contains(label)
                            {
                                return Err(format!("{metric} has no label {label}"));
                            }
                            at += 1;
                        }
                    }
                }
            }
        }
        if metrics == 0 {
            return Err("it has no metric".into());
        }
        Ok(())
    }
}

/// `sum by (…) (…)`.
fn aggregates(tokens: &[Token], at: usize) -> bool {
    matches!(tokens.get(at), Some(Token::Word(word)) if word == "by" || word == "without")
}

fn words(query: &str) -> impl Iterator<Item = String> {
    tokens(query).into_iter().filter_map(|token| match token {
        Token::Word(word) => Some(word),
        Token::Mark(_) => None,
    })
}

/// Without strings, numbers, durations and commas.
fn tokens(query: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = query.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '"' => while rest.next().is_some_and(|c| c != '"') {},
            '[' => while rest.next().is_some_and(|c| c != ']') {},
            c if c.is_ascii_digit() => while rest.next_if(|c| c.is_alphanumeric() || *c == '.').is_some() {},
            c if c.is_alphabetic() || c == '_' => {
                let mut word = c.to_string();
                while let Some(c) = rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
            c if c.is_whitespace() || c == ',' => {}
            c => tokens.push(Token::Mark(c)),
        }
    }
    tokens
}

#[test]
fn what_is_wrong_in_a_query_is_found() {
    let mut known = Known::default();
    known.add("m_total", ["state"]);
    known.add("up", []);
    for good in [
        "sum by (state, node) (rate(m_total{state=~\"a|by\"}[5m])) > 1e3",
        "up == 0 and on (job, instance) last_over_time(m_total[7d])",
        "sum(m_total) or vector(0)",
    ] {
        known.check(good).unwrap();
    }
    for (bad, why) in [
        ("sum(m_totals)", "m_totals: no such metric"),
        ("m_total{reason=\"x\"}", "m_total has no label reason"),
        ("up{state=\"x\"} + m_total", "up has no label state"),
        ("sum by (reason) (m_total)", "by (reason)"),
        ("vector(1)", "no metric"),
    ] {
        assert!(
            known.check(bad).unwrap_err().contains(why),
            "{bad}: {:?}",
            known.check(bad)
        );
    }
}
