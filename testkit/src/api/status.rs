//! Refusals, as `metav1.Status`, in the words of the real server.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::resource::Resource;

/// A refusal.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) code: u16,
    reason: &'static str,
    message: String,
    details: Value,
    retry_after: Option<Duration>,
}

impl Status {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Status {
        Status {
            code,
            reason,
            message: message.into(),
            details: json!({}),
            retry_after: None,
        }
    }

    /// A refusal that only its code describes, for injected faults.
    pub(crate) fn of_code(code: u16, retry_after: Option<Duration>) -> Status {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: injected by the test"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => (
                "Conflict",
                "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest \
                 version and try again",
            ),
            410 => ("Expired", "The resourceVersion for the provided watch is too old."),
            422 => ("Invalid", "invalid: injected by the test"),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            500 => ("InternalError", "Internal error occurred: injected by the test"),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            504 => (
                "Timeout",
                "the server was unable to return a response in the time allotted",
            ),
            _ => ("Unknown", "injected by the test"),
        };
        let mut status = Status::new(code, reason, message);
        status.retry_after = retry_after;
        if let Some(after) = retry_after {
            status.details = json!({"retryAfterSeconds": after.as_secs()});
        }
        status
    }

    fn about(mut self, resource: &Resource, name: &str) -> Status {
        let details = [("name", name), ("group", resource.group), ("kind", resource.plural)];
        self.details = details
            .into_iter()
            .filter(|(_, v)| !v.is_empty())
            .map(|(k, v)| (k.to_owned(), Value::from(v)))
            .collect::<Map<_, _>>()
            .into();
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Status {
        Status::new(400, "BadRequest", message)
    }

    pub(crate) fn no_such_path() -> Status {
        Status::of_code(404, None)
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Status {
        let message = format!("{} \"{name}\" not found", full_name(resource));
        Status::new(404, "NotFound", message).about(resource, name)
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Status {
        let message = format!("{} \"{name}\" already exists", full_name(resource));
        Status::new(409, "AlreadyExists", message).about(resource, name)
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Status {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            full_name(resource)
        );
        Status::new(409, "Conflict", message).about(resource, name)
    }

    /// The conflict of a DELETE, which names the kind, not the resource.
    pub(crate) fn precondition(resource: &Resource, name: &str, why: &str) -> Status {
        let mut status = Status::conflict(resource, name, why);
        status.message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.kind);
        status
    }

    pub(crate) fn forbidden(
        resource: &Resource,
        name: &str,
        user: &str,
        verb: &str,
        what: &str,
        namespace: &str,
    ) -> Status {
        let scope = match namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        let object = match name {
            "" => full_name(resource),
            name => format!("{} \"{name}\"", full_name(resource)),
        };
        let message = format!(
            "{object} is forbidden: User \"{user}\" cannot {verb} resource \"{what}\" in API group \"{}\" {scope}",
            resource.group
        );
        Status::new(403, "Forbidden", message).about(resource, name)
    }

    /// `causes` are pairs of a field's path and what is wrong with it.
    pub(crate) fn invalid(resource: &Resource, name: &str, causes: &[(String, String)]) -> Status {
        let list: Vec<_> = causes.iter().map(|(field, m)| format!("{field}: {m}")).collect();
        let list = match list.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind = match resource.group {
            "" => resource.kind.to_owned(),
            group => format!("{}.{group}", resource.kind),
        };
        let mut status =
            Status::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {list}")).about(resource, name);
        status.details["kind"] = resource.kind.into();
        status.details["causes"] = causes
            .iter()
            .map(|(field, message)| {
                let reason = match message {
                    m if m.starts_with("Forbidden") => "FieldValueForbidden",
                    m if m.starts_with("Required") => "FieldValueRequired",
                    m if m.starts_with("Unsupported") => "FieldValueNotSupported",
                    _ => "FieldValueInvalid",
                };
                json!({"reason": reason, "message": message, "field": field})
            })
            .collect();
        status
    }

    /// What a DELETE answers for resources that do not answer the deleted object.
    pub(crate) fn deleted(resource: &Resource, object: &Value) -> Value {
        let meta = &object["metadata"];
        let mut details = json!({"name": meta["name"], "kind": resource.plural, "uid": meta["uid"]});
        if !resource.group.is_empty() {
            details["group"] = resource.group.into();
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }

    /// The seconds of the Retry-After header.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.retry_after.map(|d| d.as_secs())
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason, "details": self.details, "code": self.code,
        })
    }
}

fn full_name(resource: &Resource) -> String {
    match resource.group {
        "" => resource.plural.to_owned(),
        group => format!("{}.{group}", resource.plural),
    }
}
