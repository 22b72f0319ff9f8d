//! Events of PersistentVolumes, as core/v1 objects in the form that the classic program writes them.
//!
//! The newer API refuses their source, and its reporting instance is limited to 63 characters, which the provisioned-by
//! name exceeds.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::debug;

use crate::failpoint;
use crate::plan::{Notice, Severity};

/// PVs have no namespace; their events live in this one.
const NAMESPACE: &str = "default";
/// The API server refuses longer messages.
const MESSAGE_BYTES: usize = 1024;
/// How many told notices are remembered for being repeated.
const REMEMBERED: usize = 4096;

/// What was told so far.
#[derive(Debug, Default)]
pub struct Told {
    /// Notices that stand now; they are told once, until they end and come again.
    standing: std::collections::BTreeSet<Notice>,
    /// Events by notice: a repetition counts up.
    events: HashMap<Notice, Posted>,
}

#[derive(Debug, Clone)]
struct Posted {
    name: String,
    count: i32,
}

impl Told {
    /// Which of a plan's notices are to be told now: those that did not stand before.
    pub fn news(&mut self, notices: &[Notice]) -> Vec<Notice> {
        let now: std::collections::BTreeSet<Notice> = notices.iter().cloned().collect();
        let news = now.difference(&self.standing).cloned().collect();
        self.standing = now;
        news
    }

    /// How a notice is to be posted: as a repetition of the event with this name, or as a new one.
    #[must_use]
    pub fn earlier(&self, notice: &Notice) -> Option<(String, i32)> {
        self.events
            .get(notice)
            .map(|posted| (posted.name.clone(), posted.count))
    }

    /// A notice was posted.
    pub fn posted(&mut self, notice: Notice, name: String, count: i32) {
        if self.events.len() >= REMEMBERED {
            self.events.clear(); // A repetition becomes a new event then, which is no harm.
        }
        self.events.insert(notice, Posted { name, count });
    }
}

/// Posts a notice, as a repetition of an earlier event if there is one. Returns the event's name and count.
///
/// An event that cannot be posted is logged and forgotten: the log says the same.
pub async fn post(
    client: &Client,
    source: &str,
    host: &str,
    notice: &Notice,
    earlier: Option<(String, i32)>,
) -> Option<(String, i32)> {
    let api: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
    let now = Timestamp::now();
    if let Some((name, count)) = earlier {
        let repeat = json!({"count": count + 1, "lastTimestamp": Time(now)});
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(repeat)).await {
            Ok(_) => return Some((name, count + 1)),
            Err(err) => debug!(event = %name, error = %err, "event cannot be repeated; making a new one"),
        }
    }
    let event = event(source, host, notice, now);
    failpoint::hit!("event.before");
    let made = api.create(&PostParams::default(), &event).await;
    failpoint::hit!("event.after");
    match made {
        Ok(event) => event.metadata.name.map(|name| (name, 1)),
        Err(err) => {
            debug!(pv = %notice.pv, reason = notice.reason, error = %err, "event cannot be posted");
            None
        }
    }
}

/// Something to tell about an object that is no PV.
#[derive(Debug, Clone)]
pub struct Telling {
    /// Which.
    pub about: ObjectReference,
    /// Normal or Warning.
    pub severity: Severity,
    /// The event's reason.
    pub reason: &'static str,
    /// The event's message.
    pub message: String,
}

/// Posts an event about an object that is no PV, in its namespace. One that cannot be posted is logged and forgotten.
pub async fn tell(client: &Client, source: &str, host: &str, telling: &Telling) {
    let notice = Notice {
        pv: telling.about.name.clone().unwrap_or_default(),
        uid: String::new(),
        severity: telling.severity,
        reason: telling.reason,
        message: telling.message.clone(),
    };
    let namespace = telling.about.namespace.as_deref().unwrap_or(NAMESPACE);
    let mut event = event(source, host, &notice, Timestamp::now());
    event.metadata.namespace = Some(namespace.to_owned());
    event.involved_object = telling.about.clone();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    if let Err(err) = api.create(&PostParams::default(), &event).await {
        debug!(about = %notice.pv, reason = notice.reason, error = %err, "event cannot be posted");
    }
}

fn event(source: &str, host: &str, notice: &Notice, now: Timestamp) -> Event {
    let nanoseconds = now.as_nanosecond();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{nanoseconds:x}", notice.pv)),
            namespace: Some(NAMESPACE.into()),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolume".into()),
            name: Some(notice.pv.clone()),
            uid: Some(notice.uid.clone()),
            ..Default::default()
        },
        type_: Some(
            match notice.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .into(),
        ),
        reason: Some(notice.reason.into()),
        message: Some(shortened(&notice.message)),
        source: Some(EventSource {
            component: Some(source.to_owned()),
            host: Some(host.to_owned()),
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Default::default()
    }
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(message: &str) -> Notice {
        Notice {
            pv: "local-pv-1".into(),
            uid: "u".into(),
            severity: Severity::Warning,
            reason: "VolumeFailedDelete",
            message: message.into(),
        }
    }

    #[test]
    fn a_standing_cause_is_told_once_and_again_when_it_comes_back() {
        let mut told = Told::default();
        assert_eq!(told.news(&[notice("a")]), [notice("a")]);
        assert_eq!(told.news(&[notice("a")]), []);
        assert_eq!(told.news(&[notice("a"), notice("b")]), [notice("b")]);
        assert_eq!(told.news(&[]), []);
        assert_eq!(told.news(&[notice("a")]), [notice("a")]);
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let long = "ü".repeat(MESSAGE_BYTES);
        assert_eq!(shortened(&long).len(), MESSAGE_BYTES);
        assert_eq!(shortened(&format!("x{long}")).len(), MESSAGE_BYTES - 1);
    }
}
