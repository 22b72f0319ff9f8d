//! Watch streams.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Api, BoxError, metadata_only, resource::Resource, selector::Selector, status::Status, store::Change};

/// How often the real server sends bookmarks to those who asked for them.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);

/// How long a watch lasts that does not say so; the real server takes 30 to 60 minutes.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// What a watch request asked for.
#[derive(Debug)]
pub(crate) struct WatchRequest {
    pub(crate) resource: &'static Resource,
    pub(crate) namespace: String,
    pub(crate) selector: Selector,
    /// `None` (also for "0"): begin with all present objects.
    pub(crate) after: Option<u64>,
    pub(crate) send_initial_events: bool,
    pub(crate) bookmarks: bool,
    pub(crate) metadata_only: bool,
    pub(crate) timeout: Option<Duration>,
}

struct Watcher {
    api: Api,
    request: WatchRequest,
    changed: watch::Receiver<()>,
    cursor: u64,
    lines: VecDeque<Bytes>,
    ends: Instant,
    bookmark_at: Instant,
    cut: u64,
    done: bool,
}

/// The lines of a watch, until it times out, is cut, or its client is too slow for the history.
pub(crate) fn stream(api: &Api, request: WatchRequest) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + use<> {
    let changed = api.subscribe();
    let now = Instant::now();
    let mut watcher = Watcher {
        api: api.clone(),
        changed,
        cursor: 0,
        lines: VecDeque::new(),
        ends: now + request.timeout.unwrap_or(DEFAULT_TIMEOUT),
        bookmark_at: now + BOOKMARK_PERIOD,
        cut: api.state().cuts_of(request.resource.plural),
        done: false,
        request,
    };
    watcher.begin();
    futures::stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.next().await?;
        Some((line, watcher))
    })
}

impl Watcher {
    fn begin(&mut self) {
        let api = self.api.clone();
        let state = api.state();
        if let Some(version) = self.request.after.filter(|_| !self.request.send_initial_events) {
            self.cursor = version;
            return;
        }
        self.cursor = state.store.version();
        let namespace = self.request.namespace.clone();
        for (_, object) in state.store.select(self.request.resource, &namespace) {
            if self.request.selector.matches(object) {
                self.push("ADDED", object.clone());
            }
        }
        if self.request.send_initial_events {
            self.bookmark(json!({"k8s.io/initial-events-end": "true"}));
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(Ok(line));
            }
            if self.done {
                return None;
            }
            self.changed.borrow_and_update();
            if let Err(cut) = self.catch_up() {
                self.done = true;
                return Some(Err(cut));
            }
            if !self.lines.is_empty() || self.done {
                continue;
            }
            tokio::select! {
                result = self.changed.changed() => self.done = result.is_err(),
                () = sleep_until(self.ends) => {
                    self.done = true;
                    if self.request.bookmarks {
                        self.bookmark(json!({}));
                    }
                }
                () = sleep_until(self.bookmark_at), if self.request.bookmarks => {
                    self.bookmark_at += BOOKMARK_PERIOD;
                    self.bookmark(json!({}));
                }
            }
        }
    }

    /// Queues what happened since the last call.
    fn catch_up(&mut self) -> Result<(), BoxError> {
        let api = self.api.clone();
        let state = api.state();
        if state.cuts_of(self.request.resource.plural) != self.cut {
            return Err("the watch was cut".into());
        }
        if self.cursor < state.store.floor() {
            let message = format!("too old resource version: {} ({})", self.cursor, state.store.floor());
            let gone = Status::new(410, "Expired", message);
            self.line(&json!({"type": "ERROR", "object": gone.to_json()}));
            self.done = true;
            return Ok(());
        }
        for change in state.store.changes_after(self.cursor) {
            self.change(change);
        }
        self.cursor = self.cursor.max(state.store.version());
        Ok(())
    }

    fn change(&mut self, change: &Change) {
        let (resource, namespace) = (self.request.resource, &self.request.namespace);
        if change.key.plural != resource.plural || !(namespace.is_empty() || change.key.namespace == *namespace) {
            return;
        }
        let selected = |o: &Option<Value>| o.clone().filter(|o| self.request.selector.matches(o));
        match (selected(&change.old), selected(&change.new)) {
            (None, Some(new)) => self.push("ADDED", new),
            (Some(_), Some(new)) => self.push("MODIFIED", new),
            // Gone, or out of the selection: the last state that was in it, with the version of the change.
            (Some(mut old), None) => {
                old["metadata"]["resourceVersion"] = change.version.to_string().into();
                self.push("DELETED", old);
            }
            (None, None) => {}
        }
    }

    fn push(&mut self, kind: &str, object: Value) {
        let object = match self.request.metadata_only {
            true => metadata_only(&object),
            false => object,
        };
        self.line(&json!({"type": kind, "object": object}));
    }

    fn bookmark(&mut self, annotations: Value) {
        let resource = self.request.resource;
        let mut metadata = json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if annotations.as_object().is_some_and(|a| !a.is_empty()) {
            metadata["annotations"] = annotations;
        }
        let mut object = json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata});
        if resource.kind.starts_with("Persistent") || resource.kind == "Node" || resource.kind == "Pod" {
            object["spec"] = json!({});
            object["status"] = json!({});
        }
        self.push("BOOKMARK", object);
    }

    fn line(&mut self, event: &Value) {
        self.lines.push_back(Bytes::from(format!("{event}\n")));
    }
}
