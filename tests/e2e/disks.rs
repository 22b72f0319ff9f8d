//! What tests put into the cluster for a while: mounts, devices, the policy. Dropped, they go.

use std::time::Duration;

use serde_json::json;

use super::{Cluster, file};

impl Cluster {
    /// Mounts a new tmpfs of 64 MiB; dropped, it is unmounted.
    pub fn mount_tmpfs(&self, node: &str, path: &str) -> Mount<'_> {
        self.on_node(node, &["mkdir", "-p", path]);
        self.on_node(node, &["mount", "-t", "tmpfs", "-o", "size=64m", "e2e", path]);
        Mount {
            cluster: self,
            node: node.to_owned(),
            path: path.to_owned(),
        }
    }

    /// Attaches a loop device of 32 MiB and links it at the path; dropped, both go.
    pub fn attach_device(&self, node: &str, link: &str) -> Device<'_> {
        // In a directory that the node keeps, by a name that hack/cluster down looks for.
        let image = "/var/local/e2e.img";
        self.on_node(node, &["truncate", "-s", "32M", image]);
        let device = self
            .on_node(node, &["losetup", "--find", "--show", image])
            .trim()
            .to_owned();
        let device = Device {
            cluster: self,
            node: node.to_owned(),
            link: link.to_owned(),
            image: image.to_owned(),
            device,
        };
        self.on_node(node, &["ln", "-s", &device.device, link]);
        device
    }

    /// deploy/optional/own-node-policy.yaml, in force; dropped, it is removed.
    pub fn apply_own_node_policy(&self) -> Policy<'_> {
        self.kubectl(&["apply", "-f", &file("deploy/optional/own-node-policy.yaml")]);
        let policy = Policy { cluster: self };
        let pv = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "e2e-foreign"},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
                "hostPath": {"path": "/"},
            },
        });
        // The same account, but by a token that belongs to no pod.
        let args = [
            "create",
            "--as=system:serviceaccount:default:local-storage-admin",
            "--dry-run=server",
            "-f",
            "-",
        ];
        self.await_some("the policy to be in force", Duration::from_secs(30), || {
            let refusal = self.try_kubectl(&args, &pv.to_string()).err()?;
            refusal.contains("the token carries no node name").then_some(())
        });
        policy
    }
}

/// A mount on a node, while it lives.
pub struct Mount<'a> {
    cluster: &'a Cluster,
    node: String,
    path: String,
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let unmounted = self.cluster.hack_cluster(&["node", &self.node, "umount", &self.path]);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

/// A loop device on a node and its link, while it lives.
pub struct Device<'a> {
    cluster: &'a Cluster,
    node: String,
    link: String,
    image: String,
    device: String,
}

impl Device<'_> {
    /// In how many lines of the device's content "secret" occurs.
    pub fn secrets(&self) -> u64 {
        let script = format!("grep -ac secret {} || :", self.image);
        self.cluster
            .on_node(&self.node, &["sh", "-c", &script])
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        // The device only: its PV goes once the grace period is over, by the one that published it.
        for command in [
            ["rm", "-f", &self.link],
            ["losetup", "-d", &self.device],
            ["rm", "-f", &self.image],
        ] {
            let mut args = vec!["node", &self.node];
            args.extend(command);
            let done = self.cluster.hack_cluster(&args);
            assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
        }
        if !std::thread::panicking() {
            self.cluster
                .await_some("the end of the device's PV", Duration::from_secs(15), || {
                    self.cluster.pv_at(&self.node, &self.link).is_none().then_some(())
                });
        }
    }
}

/// The policy, while it lives.
pub struct Policy<'a> {
    cluster: &'a Cluster,
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        let _ = self
            .cluster
            .try_kubectl(&["delete", "-f", &file("deploy/optional/own-node-policy.yaml")], "");
    }
}
