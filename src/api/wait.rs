//! How long to wait before a call that failed is made again.
//!
//! The waits double, and each is a little longer than the one of another node that failed at the same moment: thousands
//! of nodes see the same API server go and come back. A server that says how long to wait (429 and 503 with Retry-After)
//! is obeyed, within reason. Nobody waits before a first try.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Response, header};
use kube::core::Status;
use kube::runtime::watcher;
use serde_json::json;
use tower::BoxError;

use crate::memory::api_backoff;

/// A server may ask for so much at most: longer, and nobody would know why nothing happens.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// How long to wait after so many failures in a row, of which the last one's answer may have asked for a time.
#[must_use]
pub fn wait(failures: u32, asked: Option<Duration>) -> Duration {
    let wait = api_backoff(failures.max(1));
    let wait = wait.max(asked.unwrap_or_default().min(LONGEST_ASKED));
    wait + wait.mul_f64(fastrand::f64() / 4.0)
}

/// What a refusal says of when to try again.
pub(super) fn asked(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// What the refusal of a call says of when to try again.
#[must_use]
pub fn asked_by(error: &kube::Error) -> Option<Duration> {
    match error {
        kube::Error::Api(status) => asked(status),
        _ => None,
    }
}

/// What the refusal of a watch says of when to try again.
#[must_use]
pub fn asked_by_watch(error: &watcher::Error) -> Option<Duration> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => asked_by(error),
        watcher::Error::WatchError(status) => asked(status),
        _ => None,
    }
}

/// Puts the header Retry-After where errors show it. API priority and fairness, like a proxy, refuses with plain text
/// and the header, and the client library keeps headers to itself; refusals in JSON say in the body what the header says.
pub(super) fn keep_retry_after<B>(response: Response<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (mut parts, body) = response.into_parts();
    let refused = matches!(parts.status.as_u16(), 429 | 503);
    let header = parts.headers.get(header::RETRY_AFTER);
    let seconds = header.and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
    let json = parts.headers.get(header::CONTENT_TYPE);
    let json = json.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let Some(seconds) = seconds.filter(|_| refused && !json) else {
        return Response::from_parts(parts, Body::new(body));
    };
    let code = parts.status.as_u16();
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason.replace(' ', ""), "details": {"retryAfterSeconds": seconds},
        "message": format!("the server is busy and asks to try again after {seconds} s")});
    let body = status.to_string().into_bytes();
    parts.headers.remove(header::CONTENT_ENCODING);
    parts.headers.insert(header::CONTENT_LENGTH, body.len().into());
    parts
        .headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(body))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_and_differ_from_node_to_node() {
        let all = |failures, asked| (0..100).map(move |_| wait(failures, asked));
        for (failures, asked, least) in [
            (1, None, SECOND / 10),
            (4, None, SECOND * 8 / 10),
            (50, None, 10 * SECOND),
            (1, Some(3 * SECOND), 3 * SECOND),
            (50, Some(SECOND), 10 * SECOND),
            (1, Some(3600 * SECOND), LONGEST_ASKED),
        ] {
            let (shortest, longest) = (all(failures, asked).min().unwrap(), all(failures, asked).max().unwrap());
            assert!(
                shortest >= least && longest <= least * 5 / 4,
                "{shortest:?} to {longest:?}"
            );
            assert!(longest > shortest, "5,000 nodes would come at one moment");
        }
    }

    async fn refused(
        code: u16,
        retry_after: Option<&'static str>,
        kind: &'static str,
        body: &'static str,
    ) -> kube::Error {
        let service = tower::service_fn(move |_: axum::http::Request<kube::client::Body>| async move {
            let mut response = Response::builder().status(code).header(header::CONTENT_TYPE, kind);
            if let Some(seconds) = retry_after {
                response = response.header(header::RETRY_AFTER, seconds);
            }
            Ok::<_, std::convert::Infallible>(response.body(Body::from(body.as_bytes().to_vec())).unwrap())
        });
        let client = super::super::with_layers(kube::client::ClientBuilder::new(service, "default"));
        client.apiserver_version().await.unwrap_err()
    }

    #[tokio::test]
    async fn a_server_says_when_to_come_again() {
        const STATUS: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","code":429,
            "reason":"TooManyRequests","message":"storage is busy","details":{"retryAfterSeconds":7}}"#;
        let busy = "Too many requests, please try again later.";
        let error = refused(429, Some("3"), "text/plain; charset=utf-8", busy).await;
        assert_eq!(asked_by(&error), Some(3 * SECOND), "{error}");
        assert!(matches!(&error, kube::Error::Api(status) if status.code == 429 && status.reason == "TooManyRequests"));
        let error = refused(503, Some("1"), "text/html", "<html>").await;
        assert_eq!(asked_by(&error), Some(SECOND));
        let error = refused(429, Some("7"), "application/json", STATUS).await;
        assert_eq!(asked_by(&error), Some(7 * SECOND));
        assert!(error.to_string().contains("storage is busy"), "{error}");
        // A date, nothing, and what is no question of load.
        assert_eq!(
            asked_by(&refused(429, Some("Wed, 21 Oct 2026 07:28:00 GMT"), "text/plain", busy).await),
            None
        );
        let error = refused(503, None, "text/plain", "no healthy upstream").await;
        assert_eq!(asked_by(&error), None);
        assert!(error.to_string().contains("no healthy upstream"), "{error}");
        assert_eq!(asked_by(&refused(404, Some("5"), "text/plain", "gone").await), None);
    }
}
