//! kubectl, the nodes and tenants (a claim and a pod that writes), with a deadline on every wait.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

mod disks;
mod tenant;

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
    let mut child = command.spawn().map_err(|err| format!("{command:?}: {err}"))?;
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
            let mut args = vec!["delete", "--ignore-not-found", "--timeout=60s", "--cascade=foreground"];
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
        self.await_some("the end of all PVs", RECYCLE, || self.pvs().is_empty().then_some(()));
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
            self.kubectl(&["apply", "-f", &file(&format!("deploy/kubernetes/{name}.yaml"))]);
        }
        let raw_class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "raw"},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        });
        self.apply(&raw_class);
        let classes = "local:\n  hostDir: /mnt/local-storage/local\n  mountDir: /mnt/local-storage/local\n\
                       raw:\n  hostDir: /mnt/local-storage/raw\n  mountDir: /mnt/local-storage/raw\n  volumeMode: Block\n";
        let jobs = if setup == Setup::Jobs { "yes" } else { "no" };
        let config = json!({"data": {"storageClassMap": classes, "useJobForCleaning": jobs}}).to_string();
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
        daemonset["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["--grace-period=2s", "-v=4"]);
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
        self.try_kubectl(args, "").unwrap_or_else(|err| panic!("{err}"))
    }

    fn try_kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        run(
            Command::new("kubectl").env("KUBECONFIG", &self.kubeconfig).args(args),
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
            Command::new(file("hack/cluster")).env("CLUSTER_DIR", dir).args(args),
            "",
        )
    }

    /// Runs a command on a node; its output.
    pub fn on_node(&self, node: &str, command: &[&str]) -> String {
        let mut args = vec!["node", node];
        args.extend(command);
        self.hack_cluster(&args).unwrap_or_else(|err| panic!("{err}"))
    }

    /// Kills a node at once and boots it, and waits for its provisioner.
    pub fn reboot(&self, node: &str) {
        let pod = || {
            let pods = self.list(&["pods", "-l", APP, "--field-selector", &format!("spec.nodeName={node}")]);
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
        self.await_some(&format!("an Available PV of {path} on {node}"), RECYCLE, || {
            self.pv_at(node, path).filter(|pv| pv["status"]["phase"] == "Available")
        })
    }

    /// Waits for another PV of the same name than the one with this UID.
    pub fn recycled_pv(&self, name: &str, uid: &str) -> Value {
        let began = Instant::now();
        let pv = self.await_some(
            &format!("{name} to be Available again, as a new object"),
            RECYCLE,
            || {
                self.get("pv", name)
                    .filter(|pv| pv["metadata"]["uid"] != uid && pv["status"]["phase"] == "Available")
            },
        );
        println!(
            "{name} was published again {:.1} s after its claim was deleted",
            began.elapsed().as_secs_f32()
        );
        pv
    }

    /// Asks again and again until there is an answer, up to the deadline.
    pub fn await_some<T>(&self, what: &str, deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
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

    /// Waits for the event of a Job that has run to its end; the Job itself is deleted by then.
    pub fn await_job(&self, name: &str) {
        let selector = format!("involvedObject.kind=Job,involvedObject.name={name},reason=Completed");
        self.await_some(&format!("Job {name} to complete"), Duration::from_secs(10), || {
            let events = self.list(&["events", "--field-selector", &selector]);
            (!events.is_empty()).then_some(())
        });
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
