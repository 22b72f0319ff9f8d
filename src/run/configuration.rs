//! The configuration: what was read is taken into use, what is wrong with it is told, and what is still missing for
//! being ready.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::Client;
use kube::api::Api;
use tracing::{debug, info, warn};

use super::settle::Done;
use super::{Config, Daemon, Directory, DirectoryKey, HostView, Observed, Problem, config};
use crate::events::{Letter, reference};
use crate::plan::Severity;
use crate::wakes::Cause as WakeCause;

/// A problem, wherever its lines have moved to: the key, the class, and what is wrong.
type Cause = (String, Option<String>, String);

/// What was told of the configuration by events, and what is to be told once the Node is known.
#[derive(Debug, Default)]
pub(super) struct News {
    standing: BTreeSet<Cause>,
    queue: Vec<(Severity, &'static str, String)>,
}

/// So many problems of one edit are told by an event each; of the rest their number. All are in the log and the status.
const TOLD_AT_ONCE: usize = 10;

impl News {
    /// Takes note of the problems as they stand, and of what is used: `None`, where there is no configuration yet.
    fn note(&mut self, problems: &[Problem], used: Option<&Config>) {
        let cause = |problem: &Problem| (problem.key.clone(), problem.class.clone(), problem.message.clone());
        let standing: BTreeSet<Cause> = problems.iter().map(cause).collect();
        let new: Vec<&Problem> = problems
            .iter()
            .filter(|problem| !self.standing.contains(&cause(problem)))
            .collect();
        for problem in new.iter().take(TOLD_AT_ONCE) {
            let message = format!("{problem}; {}", instead(problem, used));
            self.queue.push((Severity::Warning, "ConfigurationProblem", message));
        }
        if new.len() > TOLD_AT_ONCE {
            let message = format!("{} more problems: see the log, or /status", new.len() - TOLD_AT_ONCE);
            self.queue.push((Severity::Warning, "ConfigurationProblem", message));
        }
        if standing.is_empty() && !self.standing.is_empty() {
            let message = "the configuration is good again, and all of it is used".to_owned();
            self.queue.push((Severity::Normal, "ConfigurationMended", message));
        }
        self.standing = standing;
    }
}

/// What is used in place of what is broken.
fn instead(problem: &Problem, used: Option<&Config>) -> String {
    match (used, &problem.class, problem.key.as_str()) {
        (None, _, _) => "the provisioner waits for it to be mended".into(),
        (Some(config), Some(class), _) if config.classes.contains_key(class) => {
            format!("class {class} keeps its last good settings")
        }
        (Some(_), Some(class), _) => format!("class {class} is not served until it is mended"),
        (Some(_), None, "") => "everything stays as it was".into(),
        (Some(_), None, _) => "the last good value is kept".into(),
    }
}

impl Daemon {
    pub(super) fn take_config(&mut self, loaded: config::Loaded) {
        let loaded = match &self.config {
            Some(previous) => loaded.keep_last_good(previous),
            None => loaded,
        };
        let news: Vec<&Problem> = loaded
            .problems
            .iter()
            .chain(&loaded.warnings)
            .filter(|problem| !self.problems.contains(problem))
            .collect();
        for problem in news {
            warn!("configuration: {problem}");
        }
        self.metrics.config_problems(loaded.problems.len());
        self.problems = loaded.problems.iter().chain(&loaded.warnings).cloned().collect();
        let usable = self.config.is_some() || !loaded.config.classes.is_empty() || loaded.problems.is_empty();
        let broken = loaded.problems.iter().filter_map(|problem| problem.class.clone());
        self.broken_classes = broken
            .filter(|class| !loaded.config.classes.contains_key(class))
            .collect();
        let mended = loaded.problems.is_empty() && !self.config_news.standing.is_empty();
        if mended {
            info!("configuration: good again, and all of it is used");
        }
        self.config_news
            .note(&loaded.problems, usable.then_some(&loaded.config));
        let changed = usable && self.config.as_ref() != Some(&loaded.config);
        self.board.configuration(&loaded, changed);
        if changed {
            info!(classes = %loaded.config.classes.keys().cloned().collect::<Vec<_>>().join(" "), "configuration loaded");
            self.shared.wake.wake(WakeCause::Configuration); // The directories may be others now.
            let before = self.config.take();
            self.jobs_configured(before.as_ref(), &loaded.config);
            self.config = Some(loaded.config);
        }
    }

    /// Posts what is new about the configuration, as soon as it is known who we are.
    pub(super) fn tell_configuration(&mut self) {
        let Some((source, node)) = self.who() else { return };
        let about = self.about_configuration(&node);
        for (severity, reason, message) in std::mem::take(&mut self.config_news.queue) {
            let letter = Letter {
                about: about.clone(),
                severity,
                reason,
                message,
                source: source.clone(),
                host: self.settings.node_name.clone(),
                may_be_told: true,
            };
            let (client, outbox) = (self.client.clone(), self.outbox.clone());
            self.tasks.spawn(async move {
                let about = with_uid(&client, letter.about).await;
                if !outbox.put(Letter { about, ..letter }) {
                    debug!(reason, "event left out: too many are waiting");
                }
                Done::Told
            });
        }
    }

    /// The source of our events, and a reference to the own Node, once it is known.
    pub(super) fn who(&self) -> Option<(String, ObjectReference)> {
        let store = self.shared.store();
        let node = store.cluster().node.as_ref()?;
        let source = store.ownership().map_or_else(
            || crate::names::provisioned_by(&node.name, Some(&node.uid)),
            crate::cluster::Ownership::provisioned_by,
        );
        let reference = reference("Node", None, &node.name, Some(&node.uid));
        Some((source, reference))
    }

    /// What the events about the configuration are about: the ConfigMap if its name is known, else the own pod, else the
    /// Node.
    fn about_configuration(&self, node: &ObjectReference) -> ObjectReference {
        let settings = &self.settings;
        let namespace = Some(settings.namespace.as_str());
        match (&settings.config_map, &settings.pod) {
            (Some(name), _) => reference("ConfigMap", namespace, name, None),
            (None, Some(pod)) => reference("Pod", namespace, &pod.name, pod.uid.as_deref()),
            (None, None) => node.clone(),
        }
    }

    /// Takes note of which directories can be read, and says what has changed. One that was never there is like one that
    /// cannot be read: nothing is known of its volumes. (A wrong `mountDir` must not take the PVs of every node.)
    pub(super) fn note_directories(&mut self, observed: &mut Observed) {
        let configured: BTreeSet<DirectoryKey> = self
            .config
            .iter()
            .flat_map(|config| config.classes.values().map(DirectoryKey::from))
            .collect();
        let mut unread = std::collections::BTreeMap::new();
        for (key, directory) in &mut observed.directories {
            if matches!(directory, Directory::Read(_)) {
                self.directories_read.insert(key.mount_dir.clone());
            } else if matches!(directory, Directory::Missing)
                && configured.contains(key)
                && !self.directories_read.contains(&key.mount_dir)
            {
                *directory = Directory::Unreadable("it does not exist; make it, or mend mountDir".into());
            }
            let why = match directory {
                Directory::Read(_) => continue,
                Directory::Missing => "it does not exist any more",
                Directory::Unreadable(why) => why,
            };
            if self.directories_unread.get(key).map(String::as_str) != Some(why) {
                warn!(class = %key.class, path = %key.mount_dir.display(), %why, "discovery directory cannot be read");
            }
            unread.insert(key.clone(), why.to_owned());
        }
        for key in self.directories_unread.keys().filter(|key| !unread.contains_key(key)) {
            if observed.directories.contains_key(key) {
                info!(class = %key.class, path = %key.mount_dir.display(), "discovery directory can be read");
            }
        }
        self.directories_unread = unread;
        if let HostView::Blind(reason) = &observed.host
            && !std::mem::replace(&mut self.blind_told, true)
        {
            warn!(%reason, "mounts of pods cannot be seen: released filesystem volumes rest for a discovery period before and after their scrub; mount the host's /proc/1/mountinfo at /host/mountinfo");
        }
    }

    /// Reports whether it is ready, and what it waits for.
    pub(super) fn tell_readiness(&mut self) -> bool {
        let waiting_for = self.waiting_for();
        let ready = waiting_for.is_empty();
        if self.health.waits_for(waiting_for.clone()) {
            if ready {
                info!("ready");
            } else {
                info!(waiting_for = %waiting_for.join("; "), "not ready");
            }
        }
        ready
    }

    /// What is missing for being ready, in words. Once it was ready, no directory makes it unready again: an edit that
    /// adds one which only some nodes have is no reason to stop a rollout.
    fn waiting_for(&mut self) -> Vec<String> {
        let mut missing = self.locked_out.clone();
        let Some(config) = &self.config else {
            missing.push(format!(
                "a configuration: {}",
                self.problems
                    .first()
                    .map_or_else(|| "nothing was read yet".into(), ToString::to_string)
            ));
            return missing;
        };
        let store = self.shared.store();
        if store.cluster().node.is_some() && store.ownership().is_none() {
            missing.push("the label kubernetes.io/hostname on the node".into());
        } else {
            let lists = store.waiting_for();
            missing.extend(lists.iter().map(|what| format!("the API server to list {what}")));
        }
        drop(store);
        if self.was_ready {
            return missing;
        }
        for class in config.classes.values() {
            if self.directories_read.contains(&class.mount_dir) {
                continue;
            }
            let why = self.directories_unread.get(&DirectoryKey::from(class));
            let why = why.map_or("it was not read yet", String::as_str);
            missing.push(format!(
                "mountDir {} of class {}: {why}",
                class.mount_dir.display(),
                class.name
            ));
        }
        self.was_ready = missing.is_empty();
        missing
    }
}

/// `kubectl describe configmap` finds events by the UID. Where it may not be read, `kubectl events --for` finds them.
async fn with_uid(client: &Client, about: ObjectReference) -> ObjectReference {
    if about.kind.as_deref() != Some("ConfigMap") {
        return about;
    }
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), about.namespace.as_deref().unwrap_or("default"));
    let read = api.get_metadata(about.name.as_deref().unwrap_or_default()).await;
    ObjectReference {
        uid: read.ok().and_then(|found| found.metadata.uid),
        ..about
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn problem(key: &str, line: u64) -> Problem {
        Problem {
            file: "dir/storageClassMap".into(),
            line: Some(line),
            key: key.into(),
            class: key.strip_prefix("storageClassMap.").map(str::to_owned),
            message: "wrong".into(),
        }
    }

    fn told(news: &mut News, problems: &[Problem], used: Option<&Config>) -> Vec<(Severity, String)> {
        news.note(problems, used);
        let told = std::mem::take(&mut news.queue);
        told.into_iter()
            .map(|(severity, _, message)| (severity, message))
            .collect()
    }

    #[test]
    fn a_cause_is_told_once_and_its_end_once() {
        let mut news = News::default();
        let used = Config::default();
        let (a, b) = (problem("storageClassMap.a", 3), problem("labelsForPV", 1));
        let first = told(&mut news, std::slice::from_ref(&a), Some(&used));
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].0, Severity::Warning);
        let expected = "dir/storageClassMap:3: storageClassMap.a: wrong; class a is not served until it is mended";
        assert_eq!(first[0].1, expected);
        let moved = problem("storageClassMap.a", 9);
        assert_eq!(told(&mut news, std::slice::from_ref(&moved), Some(&used)), []);
        let second = told(&mut news, &[moved, b.clone()], Some(&used));
        assert_eq!(second.len(), 1);
        assert!(second[0].1.ends_with("the last good value is kept"), "{second:?}");
        assert_eq!(told(&mut news, &[b], Some(&used)), [], "one of two is no end");
        let end = told(&mut news, &[], Some(&used));
        assert_eq!(end.len(), 1);
        assert_eq!(end[0].0, Severity::Normal);
        assert_eq!(told(&mut news, &[], Some(&used)), []);
        assert_eq!(told(&mut news, &[a], None).len(), 1, "it came back");
    }

    #[test]
    fn an_edit_that_breaks_everything_is_no_flood_of_events() {
        let mut news = News::default();
        let all: Vec<Problem> = (0..300).map(|n| problem(&format!("storageClassMap.c{n}"), n)).collect();
        let told = told(&mut news, &all, Some(&Config::default()));
        assert_eq!(told.len(), TOLD_AT_ONCE + 1);
        assert!(told.last().unwrap().1.starts_with("290 more problems"));
    }
}
