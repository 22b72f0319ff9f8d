//! The resources that the server knows, and how a path names them.

use serde_json::{Value, json};

/// One resource type.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespaced: bool,
    /// Whether `/status` is a subresource (and the main resource ignores changes of `status`).
    pub(crate) status: bool,
}

const fn resource(
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    status: bool,
) -> Resource {
    Resource {
        group,
        plural,
        kind,
        namespaced,
        status,
    }
}

static RESOURCES: [Resource; 9] = [
    resource("", "nodes", "Node", false, true),
    resource("", "persistentvolumes", "PersistentVolume", false, true),
    resource("", "persistentvolumeclaims", "PersistentVolumeClaim", true, true),
    resource("", "events", "Event", true, false),
    resource("", "configmaps", "ConfigMap", true, false),
    resource("", "pods", "Pod", true, true),
    resource("storage.k8s.io", "storageclasses", "StorageClass", false, false),
    resource("batch", "jobs", "Job", true, true),
    resource(
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        false,
        false,
    ),
];

impl Resource {
    /// The resource of this plural name, which is unique over the groups.
    pub(crate) fn by_plural(plural: &str) -> Option<&'static Resource> {
        RESOURCES.iter().find(|r| r.plural == plural)
    }

    /// The resource of this plural name, for callers that name it in their own code.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn known(plural: &str) -> &'static Resource {
        Self::by_plural(plural).unwrap_or_else(|| panic!("the server has no resource {plural:?}"))
    }

    /// Whether the answer to a DELETE is the object, not a Status.
    pub(crate) fn answers_deleted(&self) -> bool {
        let these = ["persistentvolumes", "persistentvolumeclaims", "pods", "storageclasses"];
        these.contains(&self.plural)
    }

    /// `v1`, `batch/v1`, …
    pub(crate) fn api_version(&self) -> String {
        match self.group {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }
}

/// What a request path names.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) resource: &'static Resource,
    /// Empty for cluster scope, and for a list over all namespaces.
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Target {
    /// Splits `/api/v1/namespaces/default/pods/p/status` and its like.
    pub(crate) fn parse(path: &str) -> Option<Target> {
        let mut parts = path.trim_matches('/').split('/');
        let group = match parts.next()? {
            "api" => "",
            "apis" => parts.next()?,
            _ => return None,
        };
        (parts.next()? == "v1").then_some(())?;
        let mut rest: Vec<&str> = parts.collect();
        let namespace = if rest.len() >= 3 && rest[0] == "namespaces" {
            let namespace = rest[1].to_owned();
            rest.drain(..2);
            namespace
        } else {
            String::new()
        };
        let resource = Resource::by_plural(rest.first()?).filter(|r| r.group == group)?;
        (rest.len() <= 3 && (resource.namespaced || namespace.is_empty())).then_some(())?;
        let subresource = rest.get(2).map(|s| (*s).to_owned());
        (subresource.is_none() || resource.status && subresource.as_deref() == Some("status")).then_some(())?;
        Some(Target {
            resource,
            namespace,
            name: rest.get(1).map(|s| (*s).to_owned()),
            subresource,
        })
    }
}

/// The discovery documents that kubectl asks for before anything else.
pub(crate) fn discovery(path: &str) -> Option<Value> {
    let groups = ["storage.k8s.io", "batch", "authorization.k8s.io"];
    match path.trim_matches('/') {
        "version" => Some(json!({"major": "1", "minor": "35", "gitVersion": "v1.35.0"})),
        "api" => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        "apis" => Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups":
        groups.map(|g| {
            let version = json!({"groupVersion": format!("{g}/v1"), "version": "v1"});
            json!({"name": g, "versions": [version], "preferredVersion": version})
        })})),
        "api/v1" => Some(resource_list("")),
        other => {
            let group = other.strip_prefix("apis/")?.strip_suffix("/v1")?;
            groups.contains(&group).then(|| resource_list(group))
        }
    }
}

fn resource_list(group: &str) -> Value {
    let of_group: Vec<_> = RESOURCES.iter().filter(|r| r.group == group).collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": of_group.first().map(|r| r.api_version()),
        "resources": of_group.iter().map(|r| json!({
            "name": r.plural, "singularName": r.kind.to_lowercase(), "kind": r.kind, "namespaced": r.namespaced,
            "shortNames": short_names(r.plural),
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        })).collect::<Vec<_>>()})
}

fn short_names(plural: &str) -> &'static [&'static str] {
    match plural {
        "nodes" => &["no"],
        "persistentvolumes" => &["pv"],
        "persistentvolumeclaims" => &["pvc"],
        "events" => &["ev"],
        "configmaps" => &["cm"],
        "pods" => &["po"],
        "storageclasses" => &["sc"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Target;

    #[test]
    fn paths_name_resources() {
        let t = Target::parse("/apis/batch/v1/namespaces/ns/jobs/j/status").unwrap();
        assert_eq!((t.resource.kind, t.namespace.as_str()), ("Job", "ns"));
        assert_eq!(
            (t.name.as_deref(), t.subresource.as_deref()),
            (Some("j"), Some("status"))
        );
        let t = Target::parse("/api/v1/persistentvolumeclaims").unwrap();
        assert_eq!((t.namespace.as_str(), t.name), ("", None));
        for bad in [
            "/api/v1/jobs",
            "/apis/batch/v1/persistentvolumes",
            "/api/v1/persistentvolumes/x/scale",
            "/api/v1/namespaces/ns/persistentvolumes/x",
            "/api/v2/pods",
            "/healthz",
        ] {
            assert!(Target::parse(bad).is_none(), "{bad}");
        }
    }
}
