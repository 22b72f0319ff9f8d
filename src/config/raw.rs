//! Unvalidated settings: typed access to the nodes of a YAML tree, with errors that know their key and line.

use std::collections::BTreeMap;

use super::scalar::{Resolved, resolve, to_text};
use super::yaml::{Entry, Node, Value};

/// Something wrong at a place; which file and class it concerns is added by who knows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub(super) key: String,
    pub(super) line: u64,
    pub(super) message: String,
}

/// A node together with the path that leads to it.
#[derive(Debug, Clone)]
pub(super) struct Raw<'a> {
    node: &'a Node,
    /// Such as `storageClassMap.fast.selector[0].matchExpressions`.
    pub(super) key: String,
    /// Of the key that the value belongs to, or of the list item.
    pub(super) line: u64,
}

/// The known fields of a map that are there, by their canonical names.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    parent: Raw<'a>,
    present: BTreeMap<&'static str, Raw<'a>>,
}

impl<'a> Raw<'a> {
    /// The whole value of a top-level key.
    pub(super) fn root(key: &str, node: &'a Node) -> Self {
        Self {
            node,
            key: key.to_owned(),
            line: node.line,
        }
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault {
            key: self.key.clone(),
            line: self.line,
            message: message.into(),
        }
    }

    /// A string; other scalars are coerced, null is "".
    pub(super) fn text(&self) -> Result<String, Fault> {
        match &self.node.value {
            Value::Scalar(s) if s.plain => Ok(to_text(&s.text).into_owned()),
            Value::Scalar(s) => Ok(s.text.clone()),
            Value::List(_) | Value::Map(_) => Err(self.mismatch("text")),
        }
    }

    /// A boolean; null is false.
    pub(super) fn flag(&self) -> Result<bool, Fault> {
        match &self.node.value {
            Value::Scalar(s) if s.plain => match resolve(&s.text) {
                Resolved::Bool(flag) => Ok(flag),
                Resolved::Null => Ok(false),
                _ => Err(self.mismatch("true or false")),
            },
            Value::Scalar(s) if matches!(resolve(&s.text), Resolved::Bool(_)) => Err(self.fault(format!(
                "{:?} in quotes is text here, not true or false: remove the quotes",
                s.text
            ))),
            _ => Err(self.mismatch("true or false")),
        }
    }

    /// A whole number; null is none.
    pub(super) fn integer(&self) -> Result<Option<i64>, Fault> {
        let number = match &self.node.value {
            Value::Scalar(s) if s.plain => match resolve(&s.text) {
                Resolved::Null => return Ok(None),
                Resolved::Int(number) => i64::try_from(number).ok(),
                // 1e3 is 1000; beyond 2^53 a float is no longer exact.
                #[allow(clippy::cast_possible_truncation)]
                Resolved::Float(number) if number.fract() == 0.0 && number.abs() <= 9e15 => Some(number as i64),
                _ => None,
            },
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.mismatch("a whole number"))
    }

    /// The items of a list; null has none.
    pub(super) fn items(&self) -> Result<Vec<Raw<'a>>, Fault> {
        match &self.node.value {
            Value::List(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(at, node)| Raw {
                    node,
                    key: format!("{}[{at}]", self.key),
                    line: node.line,
                })
                .collect()),
            _ if self.node.is_null() => Ok(Vec::new()),
            _ => Err(self.mismatch("a list")),
        }
    }

    /// A list of strings.
    pub(super) fn texts(&self) -> Result<Vec<String>, Fault> {
        self.items()?.iter().map(Raw::text).collect()
    }

    pub(super) fn is_null(&self) -> bool {
        self.node.is_null()
    }

    /// The entries of a map, sorted, of a duplicate key the last; null has none.
    pub(super) fn entries(&self, warnings: &mut Vec<Fault>) -> Result<Vec<(&'a str, Raw<'a>)>, Fault> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries,
            _ if self.node.is_null() => return Ok(Vec::new()),
            _ => return Err(self.mismatch("a map of keys and values")),
        };
        let mut last: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in entries {
            let Some(former) = last.insert(&entry.key, entry) else {
                continue;
            };
            // To override what a merge brought is what merging is for.
            if former.merged {
                continue;
            }
            let how = if entry.merged {
                "`<<` brings it again after it"
            } else {
                "it occurs again"
            };
            warnings.push(self.child(entry).fault(format!(
                "{how}: the value in line {} is used, the one in line {} is not",
                entry.line, former.line
            )));
        }
        Ok(last.into_iter().map(|(key, entry)| (key, self.child(entry))).collect())
    }

    /// The fields of a structure. They match without regard to case; unknown ones are warned about and ignored.
    pub(super) fn fields(
        &self,
        known: &'static [&'static str],
        warnings: &mut Vec<Fault>,
    ) -> Result<Fields<'a>, Fault> {
        let mut present = BTreeMap::new();
        let entries = self.entries(warnings)?;
        // What is spelled exactly comes last, so that it wins.
        let exact = |key: &&str| known.contains(key);
        let (exact, other): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(key, _)| exact(key));
        for (key, raw) in other.into_iter().chain(exact) {
            let Some(name) = known.iter().find(|name| name.eq_ignore_ascii_case(key)) else {
                warnings.push(raw.fault(unknown("field", key, known)));
                continue;
            };
            if let Some(former) = present.insert(*name, raw) {
                warnings.push(former.fault(format!("it occurs again as {key:?}, which is used")));
            }
        }
        Ok(Fields {
            parent: self.clone(),
            present,
        })
    }

    fn child(&self, entry: &'a Entry) -> Raw<'a> {
        Raw {
            node: &entry.value,
            key: format!("{}.{}", self.key, entry.key),
            line: entry.line,
        }
    }

    fn mismatch(&self, expected: &str) -> Fault {
        let found = match &self.node.value {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Scalar(_) if self.node.is_null() => "nothing".to_owned(),
            Value::Scalar(s) => {
                // A whole file can end up here, as text that was meant to be a map.
                let start: String = s.text.chars().take(40).collect();
                if start.len() < s.text.len() {
                    format!("{start:?}…")
                } else {
                    format!("{start:?}")
                }
            }
        };
        self.fault(format!("expected {expected}, found {found}"))
    }
}

impl<'a> Fields<'a> {
    /// A field, unless it is absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&Raw<'a>> {
        self.present.get(name).filter(|raw| !raw.is_null())
    }

    /// A string, "" where the field is absent.
    pub(super) fn text(&self, name: &str) -> Result<String, Fault> {
        self.get(name).map_or_else(|| Ok(String::new()), Raw::text)
    }

    /// A string, or none where the field is absent or empty.
    pub(super) fn non_empty(&self, name: &str) -> Result<Option<String>, Fault> {
        Ok(Some(self.text(name)?).filter(|text| !text.is_empty()))
    }

    /// The items of a list, none where the field is absent.
    pub(super) fn items(&self, name: &str) -> Result<Vec<Raw<'a>>, Fault> {
        self.get(name).map_or_else(|| Ok(Vec::new()), Raw::items)
    }

    /// A fault of one field, which may be absent.
    pub(super) fn fault(&self, name: &str, message: impl Into<String>) -> Fault {
        match self.present.get(name) {
            Some(raw) => raw.fault(message),
            None => {
                let fault = self.parent.fault(message);
                Fault {
                    key: format!("{}.{name}", fault.key),
                    ..fault
                }
            }
        }
    }
}

/// The message about an unknown key or field, with the known one that was probably meant.
pub(super) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(meant) => format!("unknown {what}, ignored: did you mean {meant}?"),
        None => format!("unknown {what}, ignored; known are {}", known.join(", ")),
    }
}

/// The known name that a typo or an abbreviation (`nodeLabels`) probably meant.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // No typo has this length, and the distance takes as long as both lengths multiplied.
    if name.len() > 64 {
        return None;
    }
    let name = name.to_ascii_lowercase();
    let distance = |known: &str| strsim::osa_distance(&name, &known.to_ascii_lowercase());
    let by_distance = known.iter().map(|known| (distance(known), *known)).min();
    // One wrong character in three is still a typo of a short name; three at most of a long one.
    let allowed = (name.chars().count() / 3).min(3);
    by_distance
        .filter(|(distance, _)| *distance <= allowed)
        .map(|(_, known)| known)
        .or_else(|| {
            let abbreviates = |known: &&&str| name.len() >= 4 && known.to_ascii_lowercase().starts_with(&name);
            known.iter().find(abbreviates).copied()
        })
}
