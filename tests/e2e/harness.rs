//! kubectl, the nodes and tenants (a claim and a pod that writes), with a deadline on every wait.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A pod must be scheduled, its sandbox and container made, and its probe must answer.
const POD: Duration = Duration::from_secs(60);
/// The controllers release the claim, kubelet unmounts, the volume is scrubbed and published.
const RECYCLE: Duration = Duration::from_secs(60);
/// All pods of the DaemonSet are replaced one after the other.
const ROLLOUT: Duration = Duration::from_secs(120);

const APP: &str = "app=local-volume-provisioner";
const DAEMONSET: &str = "daemonset/local-volume-provisioner";

/// How the provisioner is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// deploy/kubernetes as it is.
    Own,
    /// With deploy/kubernetes/classic-rbac: no permission to patch.
    Classic,
    /// As `Own`, and devices are scrubbed by Jobs.
    Jobs,
}

/// What the cluster holds now. The tests take turns: they share the nodes' disks.
static DEPLOYED: Mutex<Option<Setup>> = Mutex::new(None);

/// The cluster, with the provisioner running on every node.
pub struct Cluster {
    kubeconfig: PathBuf,
    deployed: MutexGuard<'static, Option<Setup>>,
}

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

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn node_of(pv: &Value) -> String {
    let terms = &pv["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    text(&terms[0]["matchExpressions"][0]["values"][0])
}

fn file(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command; its output, or what it said and how it ended.
fn run(command: &mut Command, input: &str) -> Result<String, String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|err| format!("{command:?}: {err}"))?;
    // A child that ended without reading says why by itself.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().map_err(|err| err.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?}: {}: {}", output.status, stderr.trim()))
    }
}

impl Cluster {
    /// The cluster of `LVP_E2E_KUBECONFIG` with the provisioner ready on all nodes; `None`, and says so, without it.
    pub fn deploy(setup: Setup) -> Option<Self> {
        let Some(kubeconfig) = std::env::var_os("LVP_E2E_KUBECONFIG") else {
            assert!(
                std::env::var_os("LVP_REQUIRE_ALL").is_none(),
                "LVP_E2E_KUBECONFIG is not set, and LVP_REQUIRE_ALL forbids to skip"
            );
            println!("SKIPPED: no cluster (LVP_E2E_KUBECONFIG is not set: see hack/test)");
            return None;
        };
        let deployed = DEPLOYED.lock().unwrap_or_else(|failed: PoisonError<_>| {
            let mut deployed = failed.into_inner();
            *deployed = None; // whatever the failed test left is taken away
            deployed
        });
        let mut cluster = Self {
            kubeconfig: kubeconfig.into(),
            deployed,
        };
        if *cluster.deployed != Some(setup) {
            *cluster.deployed = None;
            cluster.clear();
            cluster.install(setup);
            *cluster.deployed = Some(setup);
        }
        Some(cluster)
    }

    /// Takes everything of earlier tests away, also PVs that wait for a finalizer that nobody may remove any more.
    fn clear(&self) {
        for what in [
            DAEMONSET,
            "pods -l e2e=tenant",
            "pvc -l e2e=tenant",
            "jobs --all",
            "events --all",
            "validatingadmissionpolicybinding --all",
        ] {
            let mut args = vec![
                "delete",
                "--ignore-not-found",
                "--timeout=60s",
                "--cascade=foreground",
            ];
            args.extend(what.split(' '));
            self.kubectl(&args);
        }
        for pv in self.pvs() {
            let name = text(&pv["metadata"]["name"]);
            let free = r#"{"metadata":{"finalizers":null}}"#;
            // Terminating ones may vanish in between.
            let _ = self.try_kubectl(&["delete", "pv", &name, "--wait=false"], "");
            let _ = self.try_kubectl(&["patch", "pv", &name, "--type=merge", "-p", free], "");
        }
        self.await_some("the end of all PVs", RECYCLE, || {
            self.pvs().is_empty().then_some(())
        });
        // What failed tests left on the disks and beside them.
        let script = "find /var/local/kubevirt-storage/local-volume/ -mindepth 2 -maxdepth 2 -exec rm -rf {} + && \
                      find /mnt/local-storage/local -mindepth 1 -maxdepth 1 ! -name 'disk*' -exec rmdir {} +";
        for node in self.nodes() {
            self.on_node(&node, &["sh", "-c", script]);
        }
    }

    /// The manifests, with a class of devices, and a grace period for which a test can wait.
    fn install(&self, setup: Setup) {
        for node in self.nodes() {
            self.on_node(&node, &["mkdir", "-p", "/mnt/local-storage/raw"]);
        }
        let rbac = if setup == Setup::Classic {
            "classic-rbac/rbac"
        } else {
            "rbac"
        };
        for name in ["storageclass", rbac, "configmap"] {
            self.kubectl(&[
                "apply",
                "-f",
                &file(&format!("deploy/kubernetes/{name}.yaml")),
            ]);
        }
        let raw_class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "raw"},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        });
        self.apply(&raw_class);
        let classes = "local:\n  hostDir: /mnt/local-storage/local\n  mountDir: /mnt/local-storage/local\n\
                       raw:\n  hostDir: /mnt/local-storage/raw\n  mountDir: /mnt/local-storage/raw\n  volumeMode: Block\n";
        let jobs = if setup == Setup::Jobs { "yes" } else { "no" };
        let config =
            json!({"data": {"storageClassMap": classes, "useJobForCleaning": jobs}}).to_string();
        self.kubectl(&[
            "patch",
            "configmap",
            "local-storage-config",
            "--type=merge",
            "-p",
            &config,
        ]);

        let daemonset = self.kubectl(&[
            "create",
            "--dry-run=client",
            "-o",
            "json",
            "-f",
            &file("deploy/kubernetes/daemonset.yaml"),
        ]);
        let mut daemonset: Value = serde_json::from_str(&daemonset).unwrap();
        daemonset["spec"]["template"]["spec"]["containers"][0]["args"] =
            json!(["--grace-period=2s", "-v=4"]);
        self.apply(&daemonset);
        self.await_rollout();
    }

    fn await_rollout(&self) {
        self.kubectl(&[
            "rollout",
            "status",
            DAEMONSET,
            &format!("--timeout={}s", ROLLOUT.as_secs()),
        ]);
    }

    /// kubectl's output; the test fails if it fails.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args, "")
            .unwrap_or_else(|err| panic!("{err}"))
    }

    fn try_kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        run(
            Command::new("kubectl")
                .env("KUBECONFIG", &self.kubeconfig)
                .args(args),
            input,
        )
    }

    fn apply(&self, object: &Value) {
        self.try_kubectl(&["apply", "-f", "-"], &object.to_string())
            .unwrap_or_else(|err| panic!("{err}"));
    }

    /// `None` if it does not exist.
    fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let found = self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "json"]);
        (!found.is_empty()).then(|| serde_json::from_str(&found).unwrap())
    }

    fn list(&self, args: &[&str]) -> Vec<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        let list: Value = serde_json::from_str(&self.kubectl(&all)).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    fn hack_cluster(&self, args: &[&str]) -> Result<String, String> {
        let dir = self.kubeconfig.parent().unwrap_or(Path::new("/"));
        run(
            Command::new(file("hack/cluster"))
                .env("CLUSTER_DIR", dir)
                .args(args),
            "",
        )
    }

    /// Runs a command on a node; its output.
    pub fn on_node(&self, node: &str, command: &[&str]) -> String {
        let mut args = vec!["node", node];
        args.extend(command);
        self.hack_cluster(&args)
            .unwrap_or_else(|err| panic!("{err}"))
    }

    /// Kills a node at once and boots it, and waits for its provisioner.
    pub fn reboot(&self, node: &str) {
        let pod = || {
            let pods = self.list(&[
                "pods",
                "-l",
                APP,
                "--field-selector",
                &format!("spec.nodeName={node}"),
            ]);
            pods.into_iter().next().unwrap_or_default()["status"]["containerStatuses"][0].clone()
        };
        let before = pod()["containerID"].clone();
        self.hack_cluster(&["reboot", node])
            .unwrap_or_else(|err| panic!("{err}"));
        self.await_some("the provisioner on the rebooted node", ROLLOUT, || {
            let now = pod();
            (now["ready"] == true && now["containerID"] != before).then_some(())
        });
    }

    /// The nodes' names, sorted.
    pub fn nodes(&self) -> Vec<String> {
        self.list(&["nodes"])
            .iter()
            .map(|node| text(&node["metadata"]["name"]))
            .collect()
    }

    /// All PersistentVolumes.
    pub fn pvs(&self) -> Vec<Value> {
        self.list(&["pv"])
    }

    /// The PV of a path on a node, whatever its state.
    pub fn pv_at(&self, node: &str, path: &str) -> Option<Value> {
        self.pvs()
            .into_iter()
            .find(|pv| node_of(pv) == node && pv["spec"]["local"]["path"] == path)
    }

    /// Waits for a PV of a path on a node that is Available.
    pub fn available_pv(&self, node: &str, path: &str) -> Value {
        self.await_some(
            &format!("an Available PV of {path} on {node}"),
            RECYCLE,
            || {
                self.pv_at(node, path)
                    .filter(|pv| pv["status"]["phase"] == "Available")
            },
        )
    }

    /// Waits for another PV of the same name than the one with this UID.
    pub fn recycled_pv(&self, name: &str, uid: &str) -> Value {
        let began = Instant::now();
        let pv = self.await_some(
            &format!("{name} to be Available again, as a new object"),
            RECYCLE,
            || {
                self.get("pv", name).filter(|pv| {
                    pv["metadata"]["uid"] != uid && pv["status"]["phase"] == "Available"
                })
            },
        );
        println!(
            "{name} was published again {:.1} s after its claim was deleted",
            began.elapsed().as_secs_f32()
        );
        pv
    }

    /// Asks again and again until there is an answer, up to the deadline.
    pub fn await_some<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut ask: impl FnMut() -> Option<T>,
    ) -> T {
        let began = Instant::now();
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(
                began.elapsed() < deadline,
                "not within {} s: {what}",
                deadline.as_secs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A claim of the class and a pod with it (at /data or /dev/tenant) that has run the script; the volume they got.
    pub fn run_tenant(&self, name: &str, class: &str, mode: &str, script: &str) -> Volume {
        self.run_tenant_on(name, class, mode, script, None)
    }

    /// As `run_tenant`, on a certain node.
    pub fn run_tenant_on(
        &self,
        name: &str,
        class: &str,
        mode: &str,
        script: &str,
        node: Option<&str>,
    ) -> Volume {
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

    /// Waits for the event of a Job that has run to its end; the Job itself is deleted by then.
    pub fn await_job(&self, name: &str) {
        let selector =
            format!("involvedObject.kind=Job,involvedObject.name={name},reason=Completed");
        self.await_some(
            &format!("Job {name} to complete"),
            Duration::from_secs(10),
            || {
                let events = self.list(&["events", "--field-selector", &selector]);
                (!events.is_empty()).then_some(())
            },
        );
    }

    /// Mounts a new tmpfs of 64 MiB; dropped, it is unmounted.
    pub fn mount_tmpfs(&self, node: &str, path: &str) -> Mount<'_> {
        self.on_node(node, &["mkdir", "-p", path]);
        self.on_node(
            node,
            &["mount", "-t", "tmpfs", "-o", "size=64m", "e2e", path],
        );
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
            refusal
                .contains("the token carries no node name")
                .then_some(())
        });
        policy
    }

    /// What one wants to read when a test has failed.
    fn diagnosis(&self) -> String {
        let mut all = String::new();
        for args in [
            "get pv,pvc,pods,jobs -A -o wide",
            "get pv -o yaml",
            "describe pods -A",
            "get events -A --sort-by=.lastTimestamp",
            "logs -l app=local-volume-provisioner --prefix --tail=200",
            "logs -l app=local-volume-provisioner --prefix --tail=200 --previous",
        ] {
            let args: Vec<&str> = args.split(' ').collect();
            let output = self.try_kubectl(&args, "").unwrap_or_else(|err| err);
            let _ = writeln!(all, "--- kubectl {}\n{output}", args.join(" "));
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.diagnosis());
        }
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
        let unmounted = self
            .cluster
            .hack_cluster(&["node", &self.node, "umount", &self.path]);
        assert!(
            unmounted.is_ok() || std::thread::panicking(),
            "{unmounted:?}"
        );
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
            self.cluster.await_some(
                "the end of the device's PV",
                Duration::from_secs(15),
                || {
                    self.cluster
                        .pv_at(&self.node, &self.link)
                        .is_none()
                        .then_some(())
                },
            );
        }
    }
}

/// The policy, while it lives.
pub struct Policy<'a> {
    cluster: &'a Cluster,
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.try_kubectl(
            &[
                "delete",
                "-f",
                &file("deploy/optional/own-node-policy.yaml"),
            ],
            "",
        );
    }
}
