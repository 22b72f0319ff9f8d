//! Events of PersistentVolumes and claims, as core/v1 objects in the form that the classic program writes them.
//!
//! The newer API refuses their source, and its reporting instance is limited to 63 characters, which the provisioned-by
//! name exceeds.
//!
//! An event's name follows from what it says of which object, so that the same one is found again after a restart: to get
//! or list events is not permitted to us, to patch one is, and an empty patch answers with the object.

mod outbox;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::failpoint;
use crate::names;
use crate::plan::{Notice, Severity};

pub use outbox::Outbox;

/// PVs have no namespace; their events live in this one.
const NAMESPACE: &str = "default";
/// The API server refuses longer messages.
const MESSAGE_BYTES: usize = 1024;
/// How many notices are remembered that come from no plan.
const REMEMBERED: usize = 4096;

/// What was told so far.
#[derive(Debug, Default)]
pub struct Told {
    /// Notices that stand now; they are told once, until they end and come again.
    standing: BTreeSet<Notice>,
    /// Notices that come from no plan, so that nobody says when they end.
    once: BTreeSet<Notice>,
    /// A plan has been told.
    began: bool,
}

impl Told {
    /// Which of a plan's notices are to be told now: those that did not stand before. Also whether they are the first
    /// plan's: what they tell may have stood before this process began.
    pub fn news(&mut self, notices: &[Notice]) -> (Vec<Notice>, bool) {
        let now: BTreeSet<Notice> = notices.iter().cloned().collect();
        let news = now.difference(&self.standing).cloned().collect();
        self.standing = now;
        (news, !std::mem::replace(&mut self.began, true))
    }

    /// A notice could not be told: it is news again in the next pass, if it still stands, or when it comes again.
    pub fn untold(&mut self, notice: &Notice) {
        self.standing.remove(notice);
        self.once.remove(notice);
    }

    /// Whether a notice that comes from no plan is to be told: the first time.
    pub fn first_time(&mut self, notice: &Notice) -> bool {
        if self.once.len() >= REMEMBERED {
            self.once.clear(); // It is told once more then, which is no harm.
        }
        self.once.insert(notice.clone())
    }
}

/// Something to tell about an object, on its way.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Which object. Events of those without a namespace live in `default`.
    pub about: ObjectReference,
    /// Normal or Warning.
    pub severity: Severity,
    /// The event's reason.
    pub reason: &'static str,
    /// The event's message.
    pub message: String,
    /// Who tells it: the provisioned-by name.
    pub source: String,
    /// The node's name.
    pub host: String,
    /// It may have been told by an earlier process, and stand ever since: then it is not told again.
    pub may_be_told: bool,
}

/// An event as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Posted {
    count: i32,
    resource_version: String,
}

impl From<Event> for Posted {
    fn from(event: Event) -> Self {
        Self {
            count: event.count.unwrap_or(1),
            resource_version: event.metadata.resource_version.unwrap_or_default(),
        }
    }
}

/// What an event can be about.
#[must_use]
pub fn reference(kind: &str, namespace: Option<&str>, name: &str, uid: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some(kind.into()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.into()),
        uid: uid.map(str::to_owned),
        ..Default::default()
    }
}

impl Letter {
    /// A notice about a PV, or about the claim that it names.
    #[must_use]
    pub fn of(notice: &Notice, source: String, host: String, may_be_told: bool) -> Self {
        let about = match &notice.claim {
            Some(claim) => reference(
                "PersistentVolumeClaim",
                Some(&claim.namespace),
                &claim.name,
                Some(&claim.uid),
            ),
            None => reference("PersistentVolume", None, &notice.pv, Some(&notice.uid)),
        };
        Self {
            about,
            severity: notice.severity,
            reason: notice.reason,
            message: notice.message.clone(),
            source,
            host,
            may_be_told,
        }
    }

    fn namespace(&self) -> &str {
        self.about.namespace.as_deref().unwrap_or(NAMESPACE)
    }

    fn object(&self) -> &str {
        self.about.name.as_deref().unwrap_or_default()
    }

    /// The object that the event is about, whatever it is called; its name, where its UID is not known.
    fn object_uid(&self) -> &str {
        self.about.uid.as_deref().unwrap_or(self.object())
    }

    /// The event's name: the same for the same words about the same object.
    fn name(&self) -> String {
        let parts = [
            &self.source,
            self.object_uid(),
            self.severity.word(),
            self.reason,
            &self.message,
        ];
        names::event_name(self.object(), &parts.map(str::as_bytes))
    }

    fn event(&self, now: Timestamp) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: Some(self.namespace().into()),
                ..Default::default()
            },
            involved_object: self.about.clone(),
            type_: Some(self.severity.word().into()),
            reason: Some(self.reason.into()),
            message: Some(shortened(&self.message)),
            source: Some(EventSource {
                component: Some(self.source.clone()),
                host: Some(self.host.clone()),
            }),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Default::default()
        }
    }

    /// Posts it: as a repetition of the event that there is, or as a new one.
    async fn post(&self, client: &Client, known: Option<&Posted>) -> kube::Result<Posted> {
        let api: Api<Event> = Api::namespaced(client.clone(), self.namespace());
        if let Some(known) = known {
            match self.repeat(&api, known).await {
                // The server drops events after an hour.
                Err(error) if code(&error) == Some(404) => {}
                // Somebody has changed it: it is looked at below.
                Err(error) if code(&error) == Some(409) => {}
                result => return result,
            }
        }
        failpoint::hit!("event.before");
        let made = api.create(&PostParams::default(), &self.event(Timestamp::now())).await;
        failpoint::hit!("event.after");
        match made {
            Err(error) if code(&error) == Some(409) => {
                let found = self.patch(&api, json!({})).await?;
                if self.may_be_told && known.is_none() {
                    return Ok(found);
                }
                self.repeat(&api, &found).await
            }
            made => made.map(Posted::from),
        }
    }

    async fn repeat(&self, api: &Api<Event>, known: &Posted) -> kube::Result<Posted> {
        let patch = json!({
            "metadata": {"resourceVersion": known.resource_version},
            "count": known.count.saturating_add(1),
            "lastTimestamp": Time(Timestamp::now()),
        });
        self.patch(api, patch).await
    }

    async fn patch(&self, api: &Api<Event>, patch: Value) -> kube::Result<Posted> {
        let patched = api
            .patch(&self.name(), &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.map(Posted::from)
    }
}

/// The HTTP status of an answer.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ClaimRef;

    fn notice(message: &str) -> Notice {
        Notice {
            pv: "local-pv-1".into(),
            uid: "u".into(),
            claim: None,
            severity: Severity::Warning,
            reason: "VolumeFailedDelete",
            message: message.into(),
        }
    }

    fn letter(notice: Notice) -> Letter {
        Letter::of(
            &notice,
            "local-volume-provisioner-node1-uid".into(),
            "node1".into(),
            false,
        )
    }

    #[test]
    fn a_standing_cause_is_told_once_and_again_when_it_comes_back() {
        let mut told = Told::default();
        assert_eq!(told.news(&[notice("a")]), (vec![notice("a")], true));
        assert_eq!(told.news(&[notice("a")]), (vec![], false));
        assert_eq!(told.news(&[notice("a"), notice("b")]).0, [notice("b")]);
        told.untold(&notice("b"));
        assert_eq!(told.news(&[notice("a"), notice("b")]).0, [notice("b")]);
        assert_eq!(told.news(&[]).0, []);
        assert_eq!(told.news(&[notice("a")]).0, [notice("a")]);
        assert!(told.first_time(&notice("c")) && !told.first_time(&notice("c")));
        told.untold(&notice("c"));
        assert!(told.first_time(&notice("c")));
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let long = "ü".repeat(MESSAGE_BYTES);
        assert_eq!(shortened(&long).len(), MESSAGE_BYTES);
        assert_eq!(shortened(&format!("x{long}")).len(), MESSAGE_BYTES - 1);
    }

    #[test]
    fn an_event_has_one_name_for_one_thing_to_say() {
        let name = letter(notice("a")).name();
        assert_eq!(letter(notice("a")).name(), name);
        assert_ne!(letter(notice("b")).name(), name);
        let other = Notice {
            uid: "u2".into(),
            ..notice("a")
        };
        assert_ne!(letter(other).name(), name, "a PV that was made again");
        // The longest name of a claim, and one that must not be cut after a dot.
        for claim in ["c".repeat(253), format!("{}.{}", "c".repeat(219), "d".repeat(33))] {
            let about_claim = Notice {
                claim: Some(ClaimRef {
                    namespace: "team".into(),
                    name: claim.clone(),
                    uid: "c1".into(),
                }),
                ..notice("a")
            };
            let event = letter(about_claim).event(Timestamp::now());
            let name = event.metadata.name.unwrap_or_default();
            assert!(name.len() <= 253 && !name.contains(".."), "{name}");
            assert_eq!(event.metadata.namespace.as_deref(), Some("team"));
            let object = event.involved_object;
            assert_eq!(
                (
                    object.kind.as_deref(),
                    object.namespace.as_deref(),
                    object.uid.as_deref()
                ),
                (Some("PersistentVolumeClaim"), Some("team"), Some("c1"))
            );
            assert_eq!(object.name, Some(claim));
        }
    }
}
