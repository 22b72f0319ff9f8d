//! What the server refuses as Invalid (422), and the defaults that it fills in.

use serde_json::{Value, json};

use super::resource::Resource;

/// Pairs of a field's path and what is wrong with it.
type Causes = Vec<(String, String)>;

const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                           '.', and must start and end with an alphanumeric character";
const KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
                   an alphanumeric character";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                         '.', and must start and end with an alphanumeric character";

/// The server's limit on the sum of an object's annotations.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

/// Fills in what the server and its admission plugins would.
pub(crate) fn set_defaults(resource: &Resource, object: &mut Value, now: &str) {
    let mut default = |pointer: &str, value: Value| {
        let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
        if let Some(parent) = object.pointer_mut(parent)
            && parent[key].is_null()
        {
            parent[key] = value;
        }
    };
    match resource.plural {
        "persistentvolumes" => {
            default("/spec/persistentVolumeReclaimPolicy", "Retain".into());
            default("/spec/volumeMode", "Filesystem".into());
            object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": now});
            add_finalizer(object, "kubernetes.io/pv-protection");
        }
        "persistentvolumeclaims" => {
            default("/spec/volumeMode", "Filesystem".into());
            object["status"] = json!({"phase": "Pending"});
            add_finalizer(object, "kubernetes.io/pvc-protection");
        }
        "storageclasses" => {
            default("/reclaimPolicy", "Delete".into());
            default("/volumeBindingMode", "Immediate".into());
        }
        "pods" => object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"}),
        "jobs" => {
            default("/spec/backoffLimit", 6.into());
            default("/spec/completions", 1.into());
            default("/spec/parallelism", 1.into());
            object["status"] = json!({});
        }
        _ => {}
    }
}

/// Adds a finalizer, if it is not there.
pub(crate) fn add_finalizer(object: &mut Value, finalizer: &str) {
    let list = &mut object["metadata"]["finalizers"];
    match list.as_array_mut() {
        Some(list) if list.iter().any(|f| f == finalizer) => {}
        Some(list) => list.push(finalizer.into()),
        None => *list = json!([finalizer]),
    }
}

/// What is wrong with a new object, or with the new state of one.
pub(crate) fn validate(resource: &Resource, object: &Value) -> Causes {
    let mut causes = Causes::new();
    let mut refuse = |field: &str, message: String| causes.push((field.to_owned(), message));
    let meta = &object["metadata"];
    let name = meta["name"].as_str().unwrap_or_default();
    if !is_subdomain(name) {
        refuse("metadata.name", invalid(name, SUBDOMAIN));
    }
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        if !is_qualified(key) {
            refuse("metadata.labels", invalid(key, KEY));
        }
        let value = value.as_str().unwrap_or_default();
        if value.len() > 63 {
            refuse("metadata.labels", invalid(value, "must be no more than 63 bytes"));
        } else if !value.is_empty() && !is_name(value) {
            refuse("metadata.labels", invalid(value, LABEL_VALUE));
        }
    }
    let mut annotations_bytes = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        annotations_bytes += key.len() + value.as_str().unwrap_or_default().len();
        if !is_qualified(&key.to_lowercase()) {
            refuse("metadata.annotations", invalid(key, KEY));
        }
    }
    if annotations_bytes > MAX_ANNOTATIONS_BYTES {
        refuse(
            "metadata.annotations",
            format!("Too long: may not be more than {MAX_ANNOTATIONS_BYTES} bytes"),
        );
    }
    for (i, finalizer) in finalizers(object).enumerate() {
        let field = format!("metadata.finalizers[{i}]");
        if !is_qualified(finalizer) {
            refuse(&field, invalid(finalizer, KEY));
        } else if !finalizer.contains('/') && !["orphan", "foregroundDeletion"].contains(&finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            refuse(&field, invalid(finalizer, why));
        }
    }
    match resource.plural {
        "persistentvolumes" => validate_volume(&object["spec"], refuse),
        "events" => {
            let about = object["involvedObject"]["namespace"].as_str().unwrap_or_default();
            let expected = if about.is_empty() { "default" } else { about };
            if object["eventTime"].is_null() && meta["namespace"] != expected {
                refuse(
                    "involvedObject.namespace",
                    invalid(about, "does not match event.namespace"),
                );
            }
        }
        "storageclasses" if object["provisioner"].as_str().unwrap_or_default().is_empty() => {
            refuse("provisioner", "Required value".to_owned());
        }
        _ => {}
    }
    causes
}

fn validate_volume(spec: &Value, mut refuse: impl FnMut(&str, String)) {
    if spec["capacity"]["storage"].is_null() {
        refuse("spec.capacity", "Required value".to_owned());
        let why = "Unsupported value: supported values: \"storage\"";
        refuse("spec.capacity", why.to_owned());
    }
    if spec["accessModes"].as_array().is_none_or(Vec::is_empty) {
        refuse("spec.accessModes", "Required value".to_owned());
    }
    if spec["local"].is_object() {
        if spec["local"]["path"].as_str().unwrap_or_default().is_empty() {
            refuse("spec.local.path", "Required value".to_owned());
        }
        if spec["nodeAffinity"].is_null() {
            let why = "Required value: Local volume requires node affinity";
            refuse("spec.nodeAffinity", why.to_owned());
        }
    } else if spec["hostPath"].is_null() && spec["csi"].is_null() && spec["nfs"].is_null() {
        refuse("spec", "Required value: must specify a volume type".to_owned());
    }
    if spec["hostPath"].is_object() || spec["nfs"].is_object() {
        return;
    }
    if spec["persistentVolumeReclaimPolicy"] == "Recycle" && spec["csi"].is_object() {
        refuse(
            "spec.persistentVolumeReclaimPolicy",
            "Forbidden: may not be 'recycle' for CSI".to_owned(),
        );
    }
}

/// What is wrong with a change.
pub(crate) fn validate_update(resource: &Resource, old: &Value, new: &Value) -> Causes {
    let mut causes = Causes::new();
    if old["metadata"]["deletionTimestamp"].is_string() {
        let had: Vec<_> = finalizers(old).collect();
        let added: Vec<_> = finalizers(new)
            .filter(|f| !had.contains(f))
            .map(|f| format!("{f:?}"))
            .collect();
        if !added.is_empty() {
            causes.push((
                "metadata.finalizers".to_owned(),
                format!(
                    "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers \
                     []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
    // The field, and how the real server names it.
    let immutable: &[(&str, &str)] = match resource.plural {
        "persistentvolumes" => &[
            ("local", "spec.persistentvolumesource"),
            ("volumeMode", "volumeMode"),
            ("nodeAffinity", "nodeAffinity"),
        ],
        "jobs" => &[
            ("template", "spec.template"),
            ("selector", "spec.selector"),
            ("completionMode", "spec.completionMode"),
        ],
        _ => &[],
    };
    for (field, path) in immutable {
        let (old, new) = (&old["spec"][field], &new["spec"][field]);
        // An affinity may be added later.
        if old != new && (*field != "nodeAffinity" || !old.is_null()) {
            let why = match *field {
                "local" => "Forbidden: is immutable after creation",
                _ => "Invalid value: field is immutable",
            };
            causes.push(((*path).to_owned(), why.to_owned()));
        }
    }
    causes
}

/// The finalizers of an object.
pub(crate) fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn invalid(value: &str, why: &str) -> String {
    format!("Invalid value: {value:?}: {why}")
}

fn is_name(text: &str) -> bool {
    let alnum = |c: char| c.is_ascii_alphanumeric();
    (1..=63).contains(&text.len())
        && text.starts_with(alnum)
        && text.ends_with(alnum)
        && text.chars().all(|c| alnum(c) || "-_.".contains(c))
}

fn is_subdomain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|part| {
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            part.starts_with(legal) && part.ends_with(legal) && part.chars().all(|c| legal(c) || c == '-')
        })
}

fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name(name),
        None => is_name(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_checked() {
        let check = |meta: Value| validate(Resource::known("configmaps"), &json!({"metadata": meta}));
        assert_eq!(
            check(json!({"name": "a.b-c", "labels": {"x.io/y": "", "z": "A_b.c"}})),
            []
        );
        for bad in [
            json!({"name": "A"}),
            json!({"name": ""}),
            json!({"name": "a", "labels": {"k": "-3"}}),
            json!({"name": "a", "labels": {"k": "x".repeat(64)}}),
            json!({"name": "a", "labels": {"a/b/c": "v"}}),
            json!({"name": "a", "annotations": {"no blanks": "v"}}),
            json!({"name": "a", "annotations": {"k": "x".repeat(300_000)}}),
            json!({"name": "a", "finalizers": ["unqualified"]}),
        ] {
            assert_eq!(check(bad.clone()).len(), 1, "{bad}");
        }
    }
}
