//! The Job that scrubs a block device with `useJobForCleaning`, field by field as the classic program makes it.

use std::ffi::OsStr;
use std::num::NonZeroU64;
use std::path::Path;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, HostPathVolumeSource, PodSpec, PodTemplateSpec, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use crate::config::Cleaner;
use crate::names;
use crate::observed::DirectoryKey;

/// What the Job's scrub is told besides the classic `LOCAL_PV_BLKDEVICE`: the identity to be met, as on the PV.
pub const VOLUME_ID_VARIABLE: &str = "LOCAL_PV_VOLUME_ID";
/// `--scrub-bandwidth` of the provisioner, in bytes per second, for the Job's scrub. A variable and no argument: the
/// command may be any program's.
pub const BANDWIDTH_VARIABLE: &str = "LOCAL_PV_SCRUB_BANDWIDTH";
/// Annotation: UID of the claim that the PV was released from. A PV keeps its UID when its claimRef is cleared by hand
/// and it is bound again; the Job of the earlier release must not count for the later one.
pub const CLAIM_UID: &str = "local-volume-provisioner/claim-uid";

/// How often the Job starts its container anew before it fails: a failure is an event and a metric then, and we retry.
const BACKOFF_LIMIT: i32 = 2;
/// What the Job's deadline allows for each attempt at the least: image, scheduling, and a device that takes its time.
const SHORTEST_ATTEMPT_SECONDS: u64 = 3600;
/// Bytes per second. A device that is slower is out of order: a worn-out or contended disk still does several times that.
/// The deadline must never end a wipe that gets on; it is for what would last for ever.
const SLOWEST_DEVICE: u64 = 5 << 20;
/// How often a program that is not ours is taken to write the whole device: as `shred` by default, and zeros.
const PASSES_OF_A_COMMAND: u64 = 4;
/// A label's value has at most so many characters.
const LABEL_VALUE: usize = 63;

/// What a Job is made from.
pub struct CleaningJob<'a> {
    /// Name of the PV.
    pub pv: &'a str,
    /// Its UID.
    pub pv_uid: &'a str,
    /// UID of the claim that it was released from.
    pub claim_uid: Option<&'a str>,
    /// The volume id that is noted on it.
    pub volume_id: Option<&'a str>,
    /// How many bytes per second to wipe at most.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Where the device is.
    pub directory: &'a DirectoryKey,
    /// The entry's name.
    pub entry: &'a OsStr,
    /// The device's size in bytes.
    pub capacity_bytes: u64,
    /// `blockCleanerCommand`.
    pub command: &'a [String],
    /// `MY_NAMESPACE`.
    pub namespace: &'a str,
    /// `JOB_CONTAINER_IMAGE`.
    pub image: &'a str,
    /// The own node's name.
    pub node_name: &'a str,
    /// The value of its hostname label.
    pub hostname: &'a str,
    /// `jobTolerations`.
    pub tolerations: &'a [Toleration],
}

/// The name of a PV's cleaning Job.
#[must_use]
pub fn name(pv: &str) -> String {
    format!("cleanup-{pv}")
}

/// The PV that a Job of this name cleans, if it is the name of a cleaning Job.
#[must_use]
pub fn pv_of(name: &str) -> Option<&str> {
    name.strip_prefix("cleanup-")
}

/// Selectors of the Jobs that may be for this node: those labelled with its name, as here and by the classic program, and
/// those without that label, as where the name is too long for one.
#[must_use]
pub fn selectors(node_name: &str) -> Vec<String> {
    let hostname = names::HOSTNAME_LABEL;
    let labelled = (node_name.len() <= LABEL_VALUE).then(|| format!("pv,{hostname}={node_name}"));
    labelled.into_iter().chain([format!("pv,!{hostname}")]).collect()
}

/// Notes when the Job is made, in the classic annotation `start-time`: RFC 3339 with nanoseconds.
pub fn note_start(job: &mut Job, now: Timestamp) {
    let annotations = job.metadata.annotations.get_or_insert_default();
    annotations.insert("start-time".to_owned(), format!("{now:.9}"));
}

/// The Job object, but for its `start-time`.
#[must_use]
pub fn build(job: &CleaningJob<'_>) -> Job {
    let device = job.directory.mount_dir.join(job.entry).to_string_lossy().into_owned();
    let mut labels = vec![("pv", job.pv), ("pvuuid", job.pv_uid)];
    if job.node_name.len() <= LABEL_VALUE {
        labels.push((names::HOSTNAME_LABEL, job.node_name));
    }
    let mut annotations = vec![("device".to_owned(), device.clone())];
    annotations.extend(job.claim_uid.map(|uid| (CLAIM_UID.to_owned(), uid.to_owned())));
    Job {
        metadata: ObjectMeta {
            name: Some(name(job.pv)),
            namespace: Some(job.namespace.to_owned()),
            labels: Some(
                labels
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
            ),
            annotations: Some(annotations.into_iter().collect()),
            ..Default::default()
        },
        spec: Some(JobSpec {
            active_deadline_seconds: Some(deadline_seconds(job.capacity_bytes, job.command, job.bytes_per_second)),
            backoff_limit: Some(BACKOFF_LIMIT),
            template: PodTemplateSpec {
                metadata: None,
                spec: Some(pod(job, device)),
            },
            ..Default::default()
        }),
        status: None,
    }
}

/// After how many seconds the Job is ended, whatever it is doing or waiting for: all of its attempts on the slowest
/// device.
fn deadline_seconds(capacity_bytes: u64, command: &[String], bytes_per_second: Option<NonZeroU64>) -> i64 {
    let passes = match Cleaner::parse(command) {
        Ok(Cleaner::Zero | Cleaner::Quick) => 1,
        Ok(Cleaner::Discard) => 2,
        Ok(Cleaner::Shred { passes }) => u64::from(passes) + 1,
        Ok(Cleaner::Fsclean | Cleaner::Command(_)) | Err(_) => PASSES_OF_A_COMMAND,
    };
    let slowest = bytes_per_second.map_or(SLOWEST_DEVICE, |limit| limit.get().min(SLOWEST_DEVICE));
    let attempt = (capacity_bytes / slowest).saturating_mul(passes);
    let attempts = u64::from(BACKOFF_LIMIT.unsigned_abs()) + 1;
    let seconds = attempt.max(SHORTEST_ATTEMPT_SECONDS).saturating_mul(attempts);
    // The controller counts nanoseconds in 64 bits.
    i64::from(i32::try_from(seconds).unwrap_or(i32::MAX))
}

fn pod(job: &CleaningJob<'_>, device: String) -> PodSpec {
    let variable = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    let mut env = vec![variable("LOCAL_PV_BLKDEVICE", device)];
    env.extend(job.volume_id.map(|id| variable(VOLUME_ID_VARIABLE, id.to_owned())));
    let rate = job.bytes_per_second;
    env.extend(rate.map(|rate| variable(BANDWIDTH_VARIABLE, rate.to_string())));
    let host_path = |name: &str, path: &Path| Volume {
        name: name.to_owned(),
        host_path: Some(HostPathVolumeSource {
            path: path.to_string_lossy().into_owned(),
            type_: None,
        }),
        ..Default::default()
    };
    let mount = |name: &str, path: &Path| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let dev = Path::new("/dev");
    PodSpec {
        containers: vec![Container {
            name: "cleaner".into(),
            image: Some(job.image.to_owned()),
            command: Some(command(job.command)),
            env: Some(env),
            security_context: Some(SecurityContext {
                privileged: Some(true),
                ..Default::default()
            }),
            volume_mounts: Some(vec![mount("mount", &job.directory.mount_dir), mount("devdir", dev)]),
            ..Default::default()
        }],
        volumes: Some(vec![
            host_path("mount", &job.directory.host_dir),
            host_path("devdir", dev),
        ]),
        node_selector: Some([(names::HOSTNAME_LABEL.to_owned(), job.hostname.to_owned())].into()),
        tolerations: Some(job.tolerations.to_vec()).filter(|tolerations| !tolerations.is_empty()),
        restart_policy: Some("OnFailure".into()),
        ..Default::default()
    }
}

/// The command as it was configured, verbatim: the classic script paths are names of our binary in the image. Only a
/// method's name (and the default) is none that could be run.
fn command(configured: &[String]) -> Vec<String> {
    let is_path = configured.first().is_some_and(|program| program.contains('/'));
    let method = if is_path { None } else { Cleaner::parse(configured).ok() };
    match method {
        None | Some(Cleaner::Command(_)) => configured.to_vec(),
        Some(method) => {
            let words = method.to_string();
            ["/local-volume-provisioner", "scrub"]
                .into_iter()
                .chain(words.split(' '))
                .map(str::to_owned)
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(command: &[&str], node_name: &str) -> serde_json::Value {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let directory = DirectoryKey::new("raw", "/mnt/host", "/mnt/container");
        let job = CleaningJob {
            pv: "local-pv-1",
            pv_uid: "u-1",
            claim_uid: Some("c-1"),
            volume_id: Some("device wwn=1"),
            bytes_per_second: NonZeroU64::new(50_000_000),
            directory: &directory,
            entry: OsStr::new("disk 1"),
            capacity_bytes: 1 << 40,
            command: &command,
            namespace: "storage",
            image: "image:1",
            node_name,
            hostname: "host-1",
            tolerations: &[],
        };
        let mut job = build(&job);
        note_start(&mut job, Timestamp::from_second(1_700_000_000).unwrap());
        serde_json::to_value(job).unwrap()
    }

    #[test]
    fn a_job_is_the_classic_one() {
        let job = built(&["/scripts/shred.sh", "2"], "node-1");
        let expected = serde_json::json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": "cleanup-local-pv-1", "namespace": "storage",
                "labels": {"kubernetes.io/hostname": "node-1", "pv": "local-pv-1", "pvuuid": "u-1"},
                "annotations": {"device": "/mnt/container/disk 1", "start-time": "2023-11-14T22:13:20.000000000Z",
                    "local-volume-provisioner/claim-uid": "c-1"}
            },
            "spec": {"activeDeadlineSeconds": 3 * 3 * 209_715, "backoffLimit": 2, "template": {"spec": {
                "containers": [{"name": "cleaner", "image": "image:1", "command": ["/scripts/shred.sh", "2"],
                    "env": [{"name": "LOCAL_PV_BLKDEVICE", "value": "/mnt/container/disk 1"},
                        {"name": "LOCAL_PV_VOLUME_ID", "value": "device wwn=1"},
                        {"name": "LOCAL_PV_SCRUB_BANDWIDTH", "value": "50000000"}],
                    "securityContext": {"privileged": true},
                    "volumeMounts": [{"name": "mount", "mountPath": "/mnt/container"}, {"name": "devdir", "mountPath": "/dev"}]}],
                "volumes": [{"name": "mount", "hostPath": {"path": "/mnt/host"}}, {"name": "devdir", "hostPath": {"path": "/dev"}}],
                "nodeSelector": {"kubernetes.io/hostname": "host-1"},
                "restartPolicy": "OnFailure"
            }}}
        });
        assert_eq!(job, expected);
    }

    #[test]
    fn methods_are_run_by_the_binary_and_everything_else_verbatim() {
        let command =
            |words: &[&str]| built(words, "n")["spec"]["template"]["spec"]["containers"][0]["command"].clone();
        assert_eq!(
            command(&["zero"]),
            serde_json::json!(["/local-volume-provisioner", "scrub", "zero"])
        );
        assert_eq!(
            command(&["shred 5"]),
            serde_json::json!(["/local-volume-provisioner", "scrub", "shred", "5"])
        );
        assert_eq!(
            command(&["/scripts/dd_zero.sh", "1"]),
            serde_json::json!(["/scripts/dd_zero.sh", "1"])
        );
        assert_eq!(command(&["/bin/wipe", "-f"]), serde_json::json!(["/bin/wipe", "-f"]));
    }

    #[test]
    fn the_deadline_allows_for_every_attempt_on_a_slow_device() {
        let seconds = |capacity: u64, words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            deadline_seconds(capacity, &words, None)
        };
        let (hour, tib) = (3600, 1 << 40);
        assert_eq!(seconds(10 << 30, &["zero"]), 3 * hour);
        assert_eq!(seconds(0, &["zero"]), 3 * hour);
        assert_eq!(seconds(tib, &["zero"]), 3 * 209_715);
        assert_eq!(seconds(tib, &["/scripts/dd_zero.sh", "2"]), 3 * 209_715);
        assert_eq!(seconds(tib, &["discard"]), 3 * 2 * 209_715);
        assert_eq!(seconds(tib, &["shred", "1"]), 3 * 2 * 209_715);
        assert_eq!(seconds(tib, &["/bin/wipe"]), 3 * 4 * 209_715);
        assert_eq!(seconds(u64::MAX, &["shred"]), i64::from(i32::MAX));
        let limited = |limit| deadline_seconds(tib, &["zero".to_owned()], NonZeroU64::new(limit));
        assert_eq!(limited(1 << 20), 3 * (1 << 20));
        assert_eq!(limited(1 << 30), 3 * 209_715);
    }

    #[test]
    fn jobs_of_a_node_are_selected_by_its_name_if_that_can_be_a_label() {
        assert_eq!(
            selectors("node-1"),
            ["pv,kubernetes.io/hostname=node-1", "pv,!kubernetes.io/hostname"]
        );
        assert_eq!(selectors(&"n".repeat(64)), ["pv,!kubernetes.io/hostname"]);
    }

    #[test]
    fn a_node_name_that_is_no_label_value_is_left_off() {
        let job = built(&["zero"], &"n".repeat(64));
        assert_eq!(
            job["metadata"]["labels"]["kubernetes.io/hostname"],
            serde_json::Value::Null
        );
        assert_eq!(job["metadata"]["labels"]["pv"], "local-pv-1");
    }
}
