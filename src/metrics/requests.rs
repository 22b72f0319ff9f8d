//! Every request to the API server, watched from the client's outermost layer.

use std::sync::Arc;
use std::time::Instant;

use axum::http::{Method, Request, StatusCode, Uri};
use kube::Client;
use kube::client::Body;
use prometheus::{HistogramVec, IntCounterVec, Result};

use super::Metrics;
use super::register::{Register, SHORT};

pub(super) struct Requests {
    total: IntCounterVec,
    seconds: HistogramVec,
}

/// The resources that requests are counted by; anything else is `other`.
const RESOURCES: [&str; 7] = [
    "persistentvolumes",
    "persistentvolumeclaims",
    "storageclasses",
    "nodes",
    "jobs",
    "events",
    "selfsubjectaccessreviews",
];

impl Requests {
    pub(super) fn new(to: &mut Register) -> Result<Self> {
        Ok(Self {
            total: to.counters(
                "api_requests_total",
                "Requests to the API server, of any kind.",
                &["verb", "resource", "result"],
            )?,
            seconds: to.histograms(
                "api_request_duration_seconds",
                "Time until the API server's answer began, or none was waited for any more.",
                &["verb"],
                &SHORT,
            )?,
        })
    }

    fn answered(&self, asked: Asked, result: &str, began: Instant) {
        self.total
            .with_label_values(&[asked.verb, asked.resource, result])
            .inc();
        self.seconds
            .with_label_values(&[asked.verb])
            .observe(began.elapsed().as_secs_f64());
    }
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    verb: &'static str,
    resource: &'static str,
}

impl Asked {
    /// By the API's paths: `/api/v1` or `/apis/GROUP/VERSION`, then `namespaces/NAME` where the resource has one, the
    /// resource, and the object's name.
    fn of(method: &Method, uri: &Uri) -> Self {
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty()).peekable();
        let root = parts.next();
        let prefix = if root == Some("apis") { 2 } else { 1 };
        let mut parts = parts.skip(prefix).peekable();
        let mut resource = parts.next().unwrap_or_default();
        if resource == "namespaces" {
            parts.next();
            resource = parts.next().unwrap_or("namespaces");
        }
        let named = parts.next().is_some();
        let watches = uri.query().is_some_and(|query| {
            let mut pairs = query.split('&');
            pairs.any(|pair| pair == "watch=true" || pair == "watch=1")
        });
        let verb = match *method {
            Method::GET if watches => "watch",
            Method::GET if named => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PATCH => "patch",
            Method::PUT => "update",
            Method::DELETE => "delete",
            _ => "other",
        };
        let known = RESOURCES.into_iter().find(|known| *known == resource);
        Self {
            verb,
            resource: known.unwrap_or("other"),
        }
    }
}

/// An answer as one of a closed set of words. A conflict, and an object that is not there, are no errors: they say that
/// something has changed meanwhile.
fn result(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200..400 => "ok",
        401 | 403 => "forbidden",
        404 => "not_found",
        409 => "conflict",
        410 => "gone",
        429 => "throttled",
        400..500 => "client_error",
        _ => "server_error",
    }
}

/// A client whose requests are counted and timed.
pub fn measured(client: Client, metrics: Arc<Metrics>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let asked = Asked::of(request.method(), request.uri());
        let (client, metrics, began) = (client.clone(), Arc::clone(&metrics), Instant::now());
        async move {
            let answer = client.send(request).await;
            let result = match &answer {
                Ok(answer) => result(answer.status()),
                Err(_) => "unreachable",
            };
            metrics.requests.answered(asked, result, began);
            answer
        }
    });
    Client::new(service, namespace)
}

#[cfg(test)]
mod tests {
    use axum::http::Response;

    use super::*;

    #[test]
    fn requests_are_told_apart_by_method_and_path() {
        let cases = [
            (
                "GET",
                "/api/v1/persistentvolumes?limit=500",
                "list",
                "persistentvolumes",
            ),
            (
                "GET",
                "/api/v1/persistentvolumes?&watch=true&timeoutSeconds=200",
                "watch",
                "persistentvolumes",
            ),
            (
                "GET",
                "/api/v1/persistentvolumes/local-pv-1",
                "get",
                "persistentvolumes",
            ),
            ("POST", "/api/v1/persistentvolumes?", "create", "persistentvolumes"),
            ("DELETE", "/api/v1/persistentvolumes/x", "delete", "persistentvolumes"),
            ("PATCH", "/api/v1/namespaces/default/events/x", "patch", "events"),
            ("POST", "/api/v1/namespaces/default/events", "create", "events"),
            (
                "GET",
                "/api/v1/namespaces/team/persistentvolumeclaims/data",
                "get",
                "persistentvolumeclaims",
            ),
            (
                "GET",
                "/apis/storage.k8s.io/v1/storageclasses",
                "list",
                "storageclasses",
            ),
            ("GET", "/apis/batch/v1/namespaces/kube-system/jobs", "list", "jobs"),
            (
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                "create",
                "selfsubjectaccessreviews",
            ),
            ("GET", "/version", "list", "other"),
            ("GET", "/api/v1/namespaces/default", "list", "other"),
            ("OPTIONS", "/api/v1/secrets", "other", "other"),
        ];
        for (method, uri, verb, resource) in cases {
            let method: Method = method.parse().unwrap();
            let asked = Asked::of(&method, &uri.parse().unwrap());
            assert_eq!(asked, Asked { verb, resource }, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn every_answer_is_counted_by_its_result() {
        let statuses = [
            (200, "ok"),
            (403, "forbidden"),
            (404, "not_found"),
            (409, "conflict"),
            (410, "gone"),
            (422, "client_error"),
            (429, "throttled"),
            (503, "server_error"),
        ];
        let metrics = Arc::new(Metrics::new().unwrap());
        for (status, result) in statuses {
            let server = tower::service_fn(move |_: Request<Body>| async move {
                let answer = Response::builder().status(status).body(Body::empty());
                answer.map_err(tower::BoxError::from)
            });
            let client = measured(Client::new(server, "team"), Arc::clone(&metrics));
            assert_eq!(client.default_namespace(), "team");
            let request = Request::get("/api/v1/nodes/n").body(Body::empty()).unwrap();
            assert_eq!(client.send(request).await.unwrap().status().as_u16(), status);
            let line = format!("api_requests_total{{resource=\"nodes\",result=\"{result}\",verb=\"get\"}} 1\n");
            assert!(metrics.text().contains(&line), "{line}{}", metrics.text());
        }
        let away =
            tower::service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>(tower::BoxError::from("away")) });
        let client = measured(Client::new(away, "team"), Arc::clone(&metrics));
        let request = Request::delete("/api/v1/persistentvolumes/n")
            .body(Body::empty())
            .unwrap();
        client.send(request).await.unwrap_err();
        let text = metrics.text();
        for line in [
            "api_requests_total{resource=\"persistentvolumes\",result=\"unreachable\",verb=\"delete\"} 1\n",
            "api_request_duration_seconds_count{verb=\"get\"} 8\n",
            "api_request_duration_seconds_count{verb=\"delete\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
