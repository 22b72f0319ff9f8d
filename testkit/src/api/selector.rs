//! Label and field selectors, as strings in a query.

use serde_json::Value;

use super::{resource::Resource, status::Status};

/// What a list or a watch selects. The default selects everything.
#[derive(Debug, Default, Clone)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    /// Path below the object, wanted value, and whether it must be equal.
    fields: Vec<(String, String, bool)>,
}

#[derive(Debug, Clone)]
struct Requirement {
    key: String,
    /// Whether the key must be there (with one of the values, if there are any), or must not be so.
    wanted: bool,
    values: Option<Vec<String>>,
}

impl Selector {
    pub(crate) fn parse(resource: &Resource, labels: Option<&str>, fields: Option<&str>) -> Result<Selector, Status> {
        let mut selector = Selector::default();
        for part in split_top(labels.unwrap_or_default()) {
            selector.labels.push(requirement(part)?);
        }
        for part in split_top(fields.unwrap_or_default()) {
            let (key, value, equal) = if let Some((k, v)) = part.split_once("!=") {
                (k, v, false)
            } else if let Some((k, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (k, v, true)
            } else {
                return Err(Status::bad_request(format!("invalid field selector: {part}")));
            };
            let known = match resource.plural {
                "events" => key.starts_with("involvedObject.") || key == "reason" || key == "type",
                "pods" => key == "spec.nodeName" || key == "status.phase",
                _ => false,
            };
            if !known && !["metadata.name", "metadata.namespace"].contains(&key) {
                return Err(Status::bad_request(format!(
                    "{key:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                )));
            }
            selector.fields.push((key.to_owned(), value.to_owned(), equal));
        }
        Ok(selector)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|r| r.matches(&object["metadata"]["labels"]))
            && self.fields.iter().all(|(path, value, equal)| {
                let found = path.split('.').fold(object, |v, key| &v[key]);
                (found.as_str().unwrap_or_default() == value) == *equal
            })
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let found = labels[&self.key].as_str();
        let hit = match (&self.values, found) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(values), Some(found)) => values.iter().any(|v| v == found),
        };
        hit == self.wanted
    }
}

fn requirement(text: &str) -> Result<Requirement, Status> {
    let make = |key: &str, wanted, values| {
        let key = key.trim();
        let legal = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        if !legal {
            return Err(Status::bad_request(format!("unable to parse requirement: {text}")));
        }
        Ok(Requirement {
            key: key.to_owned(),
            wanted,
            values,
        })
    };
    let one = |v: &str| Some(vec![v.trim().to_owned()]);
    if let Some(list) = text.strip_suffix(')') {
        let (head, list) = list.split_once('(').unwrap_or((text, ""));
        let values = Some(list.split(',').map(|v| v.trim().to_owned()).collect());
        return match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => make(key, true, values),
            Some((key, "notin")) => make(key, false, values),
            _ => make("", true, None),
        };
    }
    if let Some(key) = text.strip_prefix('!') {
        make(key, false, None)
    } else if let Some((key, value)) = text.split_once("!=") {
        make(key, false, one(value))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        make(key, true, one(value))
    } else {
        make(text, true, None)
    }
}

/// The parts between commas that are not in parentheses.
fn split_top(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|s| !s.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors() {
        let object = json!({"metadata": {"labels": {"a": "1", "x.io/b": ""}}});
        let pods = Resource::known("pods");
        for (selector, matches) in [
            ("", true),
            ("a", true),
            ("!a", false),
            ("a=1", true),
            ("a==2", false),
            ("a!=2", true),
            ("c!=2", true),
            ("a in (0, 1),x.io/b", true),
            ("a notin (0,1)", false),
            ("c notin (0)", true),
            ("x.io/b=", true),
            ("!c,a in (1)", true),
            ("a,c", false),
        ] {
            let parsed = Selector::parse(pods, Some(selector), None).unwrap();
            assert_eq!(parsed.matches(&object), matches, "{selector}");
        }
        assert!(Selector::parse(pods, Some("a is (b)"), None).is_err());
        assert!(Selector::parse(pods, Some("a b"), None).is_err());
    }

    #[test]
    fn field_selectors() {
        let object = json!({"metadata": {"name": "n"}, "spec": {"nodeName": "w"}});
        let pods = Resource::known("pods");
        let matches = |fields| Selector::parse(pods, None, Some(fields)).map(|s| s.matches(&object));
        assert!(matches("metadata.name=n,spec.nodeName!=v").unwrap());
        assert!(!matches("metadata.name=m").unwrap());
        assert!(matches("spec.volumes=x").is_err());
    }
}
