//! The HTTP endpoints: metrics, readiness, liveness.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::Metrics;

/// What the endpoints show, kept current by the loop.
pub struct Health {
    inner: Mutex<Inner>,
    stuck_after: Duration,
}

struct Inner {
    /// What is still missing for being ready.
    waiting_for: Vec<String>,
    /// When a pass began that has not ended.
    pass_began: Option<Instant>,
}

/// A pass that takes longer than this is stuck: every call in it has a deadline of its own well below, and none is of the
/// API server.
pub const STUCK_AFTER: Duration = Duration::from_secs(120);

impl Default for Health {
    fn default() -> Self {
        Self::new(STUCK_AFTER)
    }
}

impl Health {
    /// Nothing was looked at yet. A pass that takes longer than `stuck_after` is stuck.
    #[must_use]
    pub fn new(stuck_after: Duration) -> Self {
        Self {
            stuck_after,
            inner: Mutex::new(Inner {
                waiting_for: vec!["the first look at the node".into()],
                pass_began: None,
            }),
        }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is missing for being ready; nothing, if ready. Returns whether that has changed.
    pub fn waits_for(&self, what: Vec<String>) -> bool {
        let mut inner = self.inner();
        let changed = inner.waiting_for != what;
        inner.waiting_for = what;
        changed
    }

    /// What is missing for being ready; nothing, if ready.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<String> {
        self.inner().waiting_for.clone()
    }

    /// A pass begins or ends.
    pub fn pass(&self, began: Option<Instant>) {
        self.inner().pass_began = began;
    }
}

#[derive(Clone)]
struct Shown {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// The routes.
pub fn router(health: Arc<Health>, metrics: Arc<Metrics>, metrics_path: &str) -> Router {
    Router::new()
        .route(metrics_path, get(text))
        .route("/ready", get(ready))
        .route("/ready/DiscovererReadyzCheck", get(ready))
        .route("/readyz", get(ready))
        .route("/livez", get(live))
        .with_state(Shown { health, metrics })
}

async fn text(State(shown): State<Shown>) -> Response {
    shown.metrics.ready(shown.health.waiting_for().is_empty());
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        shown.metrics.text(),
    )
        .into_response()
}

async fn ready(State(shown): State<Shown>) -> Response {
    let waiting_for = shown.health.waiting_for();
    if waiting_for.is_empty() {
        "ok\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for {}\n", waiting_for.join("; ")),
        )
            .into_response()
    }
}

async fn live(State(shown): State<Shown>) -> Response {
    let began = shown.health.inner().pass_began;
    match began.map(|began| began.elapsed()) {
        Some(elapsed) if elapsed > shown.health.stuck_after => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("a pass is stuck: it began {} s ago\n", elapsed.as_secs()),
        )
            .into_response(),
        _ => "ok\n".into_response(),
    }
}
