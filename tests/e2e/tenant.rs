//! Tenants: a claim and a pod that uses it.

use serde_json::{Value, json};

use super::{Cluster, POD, node_of, text};

/// A PersistentVolume, as it was when a tenant used it.
pub struct Volume {
    object: Value,
}

impl Volume {
    /// metadata.name.
    pub fn name(&self) -> String {
        text(&self.object["metadata"]["name"])
    }

    /// metadata.uid.
    pub fn uid(&self) -> String {
        text(&self.object["metadata"]["uid"])
    }

    /// The path on the node.
    pub fn path(&self) -> String {
        text(&self.object["spec"]["local"]["path"])
    }

    /// The node.
    pub fn node(&self) -> String {
        node_of(&self.object)
    }
}

impl Cluster {
    /// A claim of the class and a pod with it (at /data or /dev/tenant) that has run the script; the volume they got.
    pub fn run_tenant(&self, name: &str, class: &str, mode: &str, script: &str) -> Volume {
        self.run_tenant_on(name, class, mode, script, None)
    }

    /// As `run_tenant`, on a certain node.
    pub fn run_tenant_on(&self, name: &str, class: &str, mode: &str, script: &str, node: Option<&str>) -> Volume {
        let metadata = json!({"name": name, "labels": {"e2e": "tenant"}});
        self.apply(&json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata,
            "spec": {
                "storageClassName": class, "volumeMode": mode, "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Mi"}},
            },
        }));
        let mut container = json!({
            "name": "tenant", "image": "localhost/busybox:local", "imagePullPolicy": "Never",
            // A shell that waits obeys SIGTERM; sleep as process 1 does not.
            "command": ["/bin/sh", "-ec", format!("trap 'exit 0' TERM\n{script}\ntouch /tmp/done\nsleep 3600 &\nwait")],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/done"]}, "periodSeconds": 1},
        });
        if mode == "Block" {
            container["volumeDevices"] = json!([{"name": "disk", "devicePath": "/dev/tenant"}]);
        } else {
            container["volumeMounts"] = json!([{"name": "disk", "mountPath": "/data"}]);
        }
        let mut spec = json!({
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [container],
            "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": name}}],
        });
        if let Some(node) = node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        self.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));

        self.await_some(&format!("pod {name} to be Ready"), POD, || {
            let pod = self.get("pod", name)?;
            assert_ne!(
                pod["status"]["phase"],
                "Failed",
                "the script of pod {name} failed: {}",
                self.kubectl(&["logs", name])
            );
            let conditions = pod["status"]["conditions"].as_array()?;
            conditions
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
                .then_some(())
        });
        let claim = self.get("pvc", name).unwrap();
        let object = self.get("pv", &text(&claim["spec"]["volumeName"])).unwrap();
        Volume { object }
    }

    /// Deletes the pod, then the claim.
    pub fn end_tenant(&self, name: &str) {
        for kind in ["pod", "pvc"] {
            self.kubectl(&["delete", kind, name, "--timeout=60s"]);
        }
    }
}
