//! A Kubernetes API server in the process.
//!
//! Faithful where it matters to a provisioner of PersistentVolumes: preconditions, conflicts, finalizers, selectors,
//! paging, watches, admission, refusals as `metav1.Status`, RBAC. There are no sockets and no clock but tokio's, so it
//! works under paused time. Faults are injected with [`Api::inject`]; what the controllers of a cluster do is done by
//! [`Api::reconcile`], or in the background by [`Api::run_controllers`].
//!
//! ```
//! # async fn f() -> kube::Result<()> {
//! use k8s_openapi::api::core::v1::Node;
//! let api = testkit::api::Api::new();
//! api.create_node("node1", "node1");
//! let nodes = kube::Api::<Node>::all(api.client("classic"));
//! assert_eq!(nodes.get("node1").await?.metadata.name.as_deref(), Some("node1"));
//! assert!(matches!(nodes.delete("node1", &Default::default()).await, Err(kube::Error::Api(s)) if s.code == 403));
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f()).unwrap();
//! ```

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::watch as channel;

mod controllers;
mod faults;
mod metadata;
mod objects;
mod permissions;
mod resource;
mod routes;
mod selector;
mod serve;
mod status;
mod store;
mod validate;
mod watch;

pub use controllers::Controllers;
pub use faults::Fault;
pub use permissions::Permissions;

use status::Status;
use store::Store;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The server. Clones are handles to the same one.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Told after every change and every request.
    changed: channel::Sender<()>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) store: Store,
    users: HashMap<String, Permissions>,
    faults: Vec<Fault>,
    requests: Vec<Request>,
    /// How often the watches of a resource were cut.
    cuts: HashMap<String, u64>,
}

impl State {
    pub(crate) fn cuts_of(&self, plural: &str) -> u64 {
        self.cuts.get(plural).copied().unwrap_or(0)
    }
}

/// A request that the server got.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Who asked.
    pub user: String,
    /// get, list, watch, create, update, patch or delete.
    pub verb: String,
    /// The plural name.
    pub resource: String,
    /// `status`, if it was that.
    pub subresource: Option<String>,
    /// Empty for none or all.
    pub namespace: String,
    /// Of the path, or (create) of the body; else empty.
    pub name: String,
    /// Path and query.
    pub path: String,
    /// The JSON body, if there was one.
    pub body: Option<Value>,
    /// The HTTP status of the answer; `None` if there is none (yet).
    pub status: Option<u16>,
}

impl Request {
    /// Whether it asks for a change.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !["get", "list", "watch"].contains(&self.verb.as_str()) && self.resource != "selfsubjectaccessreviews"
    }
}

impl Default for Api {
    fn default() -> Self {
        Api::new()
    }
}

impl Api {
    /// An empty server with the users `admin`, `full` and `classic` (see the presets of [`Permissions`]).
    #[must_use]
    pub fn new() -> Api {
        let users = [
            ("admin", Permissions::admin()),
            ("full", Permissions::full()),
            ("classic", Permissions::classic()),
        ];
        let state = State {
            users: users.map(|(name, p)| (name.to_owned(), p)).into(),
            ..State::default()
        };
        Api {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                changed: channel::Sender::new(()),
            }),
        }
    }

    /// A client of this user, with default namespace `default`. Needs to be called inside a tokio runtime. A user that
    /// was never given permissions has [`Permissions::none`].
    #[must_use]
    pub fn client(&self, user: &str) -> kube::Client {
        kube::Client::new(self.service(user), "default")
    }

    /// What [`Api::client`] makes its client of, for tests that put layers around it.
    #[must_use]
    pub fn service(&self, user: &str) -> Service {
        Service {
            api: self.clone(),
            user: user.to_owned(),
        }
    }

    /// Makes a user, or changes what a user may do from now on.
    pub fn set_permissions(&self, user: &str, permissions: Permissions) {
        self.state().users.insert(user.to_owned(), permissions);
    }

    /// Adds a fault behind those that are there.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Takes away all faults. Requests that hang go on hanging.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Breaks the running watches of this resource (plural name), as a lost connection does.
    pub fn cut_watches(&self, plural: &str) {
        *self.state().cuts.entry(plural.to_owned()).or_default() += 1;
        self.notify();
    }

    /// Forgets all history: every watch, running or begun with an earlier version, gets a 410 (as an ERROR event, like
    /// the real server), and so does every continue token.
    pub fn expire_history(&self) {
        self.state().store.compact();
        self.notify();
    }

    /// How many changes the history holds (10,000 unless told).
    pub fn set_history_window(&self, changes: usize) {
        self.state().store.set_window(changes);
    }

    /// All requests since the start, or the last [`Api::clear_requests`]; oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// Empties the log of requests.
    pub fn clear_requests(&self) {
        self.state().requests.clear();
    }

    /// How many requests with this verb for this resource are in the log.
    #[must_use]
    pub fn count(&self, verb: &str, plural: &str) -> usize {
        let matches = |r: &&Request| r.verb == verb && r.resource == plural;
        self.state().requests.iter().filter(matches).count()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a test's closure says nothing about the state.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify(&self) {
        self.inner.changed.send_replace(());
    }

    pub(crate) fn subscribe(&self) -> channel::Receiver<()> {
        self.inner.changed.subscribe()
    }

    pub(crate) fn write<T>(&self, f: impl FnOnce(&mut Store) -> Result<T, Status>) -> Result<T, Status> {
        let result = f(&mut self.state().store);
        self.notify();
        result
    }

    pub(crate) fn permissions(&self, user: &str) -> Permissions {
        let known = self.state().users.get(user).cloned();
        known.unwrap_or_else(Permissions::none)
    }

    fn take_fault(&self, request: &Request) -> Option<faults::Effect> {
        faults::take(&mut self.state().faults, request)
    }

    /// Appends to the log. The answer is the request's place, for [`Api::answered`].
    fn log(&self, request: Request) -> usize {
        let mut state = self.state();
        state.requests.push(request);
        let index = state.requests.len() - 1;
        drop(state);
        self.notify();
        index
    }

    fn answered(&self, index: usize, status: u16) {
        if let Some(request) = self.state().requests.get_mut(index) {
            request.status = Some(status);
        }
        self.notify();
    }
}

/// One user's way to the server: a `tower::Service` to build a `kube::Client` on.
#[derive(Clone)]
pub struct Service {
    api: Api,
    user: String,
}

impl tower::Service<http::Request<kube::client::Body>> for Service {
    type Response = routes::Reply;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<routes::Reply, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let Service { api, user } = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            routes::handle(api, user, http::Request::from_parts(parts, body)).await
        })
    }
}

/// What remains of an object for who asked for its metadata only.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}
