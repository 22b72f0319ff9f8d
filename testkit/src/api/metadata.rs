//! What the server itself writes into an object.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::{resource::Resource, status::Status};

/// The present time as the API writes it.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Puts the namespace of the path, and a generated name if one is asked for, into a new object.
///
/// # Errors
/// If the object says another namespace.
pub(crate) fn name_object(resource: &Resource, namespace: &str, object: &mut Value) -> Result<(), Status> {
    let meta = &mut object["metadata"];
    if !meta.is_object() {
        *meta = json!({});
    }
    if resource.namespaced {
        if meta["namespace"].as_str().is_some_and(|n| n != namespace) {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        meta["namespace"] = namespace.into();
    }
    if meta["name"].as_str().unwrap_or_default().is_empty()
        && let Some(prefix) = meta["generateName"].as_str()
    {
        meta["name"] = format!("{prefix}{:05x}", next_number()).into();
    }
    Ok(())
}

/// Carries over from `old` what this kind of write does not change.
pub(crate) fn keep_what_clients_cannot_change(resource: &Resource, status: bool, old: &Value, new: &mut Value) {
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "managedFields",
    ] {
        copy(&old["metadata"], &mut new["metadata"], field);
    }
    for field in ["kind", "apiVersion"] {
        copy(old, new, field);
    }
    if status {
        copy(old, new, "spec");
    } else if resource.status {
        copy(old, new, "status");
    }
    if resource.plural == "persistentvolumes" && old["status"]["phase"] != new["status"]["phase"] {
        let time = "lastPhaseTransitionTime";
        if old["status"][time] == new["status"][time] {
            new["status"][time] = now().into();
        }
    }
    drop_empty(&mut new["metadata"]);
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => {
            to.as_object_mut().map(|m| m.remove(field));
        }
    }
}

/// Empty maps and lists in the metadata are not stored.
fn drop_empty(meta: &mut Value) {
    if let Some(meta) = meta.as_object_mut() {
        meta.retain(|_, v| {
            let empty = v.is_null()
                || v.as_object().is_some_and(serde_json::Map::is_empty)
                || v.as_array().is_some_and(Vec::is_empty);
            !empty
        });
    }
}

fn next_number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Unique in the process, and the same in every run of a single-threaded test.
pub(crate) fn next_uid() -> String {
    format!("00000000-0000-4000-8000-{:012x}", next_number())
}
