//! Who may do what.

use serde_json::Value;

/// The rules of one user: a list of (verbs, resources) that are allowed. `*` stands for any.
#[derive(Debug, Clone, Default)]
pub struct Permissions {
    rules: Vec<(Vec<String>, Vec<String>)>,
}

impl Permissions {
    /// Nothing at all, but for selfsubjectaccessreviews, which every authenticated user may create.
    #[must_use]
    pub fn none() -> Permissions {
        Permissions::default().allow(&["create"], &["selfsubjectaccessreviews"])
    }

    /// Everything.
    #[must_use]
    pub fn admin() -> Permissions {
        Permissions::default().allow(&["*"], &["*"])
    }

    /// The built-in ClusterRole `system:persistent-volume-provisioner` and `get` of nodes.
    #[must_use]
    pub fn classic() -> Permissions {
        Permissions::none()
            .allow(&["get", "list", "watch", "create", "delete"], &["persistentvolumes"])
            .allow(&["get", "list", "watch"], &["persistentvolumeclaims", "storageclasses"])
            .allow(&["create", "update", "patch", "watch"], &["events"])
            .allow(&["get"], &["nodes"])
    }

    /// [`Permissions::classic`], and `patch` and `update` of PersistentVolumes, reading nodes, and Jobs.
    #[must_use]
    pub fn full() -> Permissions {
        Permissions::classic()
            .allow(&["patch", "update"], &["persistentvolumes"])
            .allow(&["get", "list", "watch"], &["nodes"])
            .allow(&["*"], &["jobs"])
    }

    /// Allows these verbs on these resources as well (plural names, `persistentvolumes/status` for a subresource).
    #[must_use]
    pub fn allow(mut self, verbs: &[&str], resources: &[&str]) -> Permissions {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        self.rules.push((owned(verbs), owned(resources)));
        self
    }

    /// Takes these verbs on these resources away from every rule that names the resource itself (not `*`).
    #[must_use]
    pub fn deny(mut self, verbs: &[&str], resources: &[&str]) -> Permissions {
        let mut split = Vec::new();
        for (of_verbs, of_resources) in self.rules {
            for resource in of_resources {
                let mut left = of_verbs.clone();
                if resources.contains(&resource.as_str()) {
                    left.retain(|v| !verbs.contains(&v.as_str()));
                }
                split.push((left, vec![resource]));
            }
        }
        self.rules = split;
        self
    }

    /// Whether `verb` on `resource` is allowed.
    #[must_use]
    pub fn allows(&self, verb: &str, resource: &str) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|x| x == "*" || x == wanted);
        self.rules
            .iter()
            .any(|(verbs, resources)| has(verbs, verb) && has(resources, resource))
    }

    /// Whether what the `spec` of a SelfSubjectAccessReview asks for is allowed.
    pub(crate) fn review(&self, spec: &Value) -> bool {
        let attributes = &spec["resourceAttributes"];
        let text = |key: &str| attributes[key].as_str().unwrap_or_default();
        let resource = match text("subresource") {
            "" => text("resource").to_owned(),
            sub => format!("{}/{sub}", text("resource")),
        };
        self.allows(text("verb"), &resource)
    }
}

#[cfg(test)]
mod tests {
    use super::Permissions;

    #[test]
    fn presets() {
        let classic = Permissions::classic();
        assert!(classic.allows("delete", "persistentvolumes"));
        assert!(!classic.allows("patch", "persistentvolumes"));
        assert!(!classic.allows("watch", "nodes"));
        let full = Permissions::full();
        assert!(full.allows("patch", "persistentvolumes") && full.allows("delete", "jobs"));
        assert!(!full.allows("patch", "persistentvolumes/status"));
        let less = full.deny(&["patch"], &["persistentvolumes"]);
        assert!(!less.allows("patch", "persistentvolumes"));
        assert!(less.allows("update", "persistentvolumes") && less.allows("get", "persistentvolumes"));
    }
}
