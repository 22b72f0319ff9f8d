//! `/status` and the page at `/`: on an address of their own, because they name claims.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::Board;

/// The page, complete in itself: it loads nothing but `/status`.
const PAGE: &str = include_str!("page.html");
/// Stands in the page for what the browser is told to trust: other scripts and styles do not run, wherever they come from.
const NONCE: &str = "{{nonce}}";
/// How long until an address that is taken is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves the status for ever, or nothing for ever where no address is given. An address that is taken is a warning: to
/// publish volumes matters more than to show them. It is tried again.
pub async fn serve(address: Option<SocketAddr>, board: Arc<Board>) -> Infallible {
    let Some(address) = address else {
        return std::future::pending().await;
    };
    let router = router(board, address.ip().is_loopback());
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "status page");
                if let Err(error) = axum::serve(listener, router.clone()).await {
                    warn!(%address, %error, "the status page ended");
                }
            }
            Err(error) if !told => {
                told = true;
                warn!(%address, %error, "no status page: cannot listen there (--status-address); trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The routes. `local`: only requests to this machine's own names are answered.
pub fn router(board: Arc<Board>, local: bool) -> Router {
    let router = Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .with_state(board);
    if local {
        // Nothing can be changed by those who reach the address from elsewhere.
        router
            .route("/log", get(log_level).put(set_log_level))
            .layer(from_fn(only_own_names))
    } else {
        router
    }
}

/// A browser sends the name that it was given. A site whose name is made to lead to this machine (DNS rebinding) could
/// else read the status of whoever has forwarded the port.
async fn only_own_names(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(HeaderValue::to_str);
    let own = match host {
        None => true, // No browser.
        Some(Ok(host)) => is_own(host),
        Some(Err(_)) => false,
    };
    if own {
        next.run(request).await
    } else {
        let answer = "ask for localhost or an IP address\n";
        secured((StatusCode::FORBIDDEN, answer).into_response(), "default-src 'none'")
    }
}

fn is_own(host: &str) -> bool {
    host.parse::<Authority>().is_ok_and(|authority| {
        let name = authority.host();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
    })
}

async fn status(State(board): State<Arc<Board>>) -> Response {
    match serde_json::to_vec(&board.status()) {
        Ok(body) => secured(
            ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            "default-src 'none'",
        ),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The header of `PUT /log` that carries the level. A website cannot have a browser send it here: for a header of its own
/// (and for PUT) the browser asks first, and is not answered.
pub const LOG_LEVEL: &str = "x-log-level";

async fn log_level() -> Response {
    match crate::logs::level() {
        Some(level) => plain(StatusCode::OK, level.name()),
        None => plain(StatusCode::NOT_FOUND, "this process does not log"),
    }
}

async fn set_log_level(headers: HeaderMap) -> Response {
    let named = headers.get(LOG_LEVEL).and_then(|name| name.to_str().ok());
    match named.and_then(crate::logs::Level::named) {
        Some(level) if crate::logs::set(level) => plain(StatusCode::OK, level.name()),
        Some(_) => plain(StatusCode::NOT_FOUND, "this process does not log"),
        None => plain(
            StatusCode::BAD_REQUEST,
            "send the header X-Log-Level: info, debug or trace",
        ),
    }
}

fn plain(code: StatusCode, text: &str) -> Response {
    secured((code, format!("{text}\n")).into_response(), "default-src 'none'")
}

async fn page() -> Response {
    let Ok(seed) = crate::sys::random_seed() else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "no random data (getrandom)\n").into_response();
    };
    let nonce: String = seed[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let html = PAGE.replace(NONCE, &nonce);
    secured(
        ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response(),
        &policy,
    )
}

fn secured(mut response: Response, policy: &str) -> Response {
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_own() {
        for host in [
            "localhost",
            "LOCALHOST:8081",
            "127.0.0.1:8081",
            "10.0.0.1",
            "[::1]:8081",
        ] {
            assert!(is_own(host), "{host}");
        }
        for host in [
            "evil.example:8081",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "a b",
        ] {
            assert!(!is_own(host), "{host}");
        }
    }

    #[test]
    fn the_page_loads_nothing_and_never_makes_markup_of_text() {
        for word in ["http:", "https:", "//cdn", "src=", "@import", "url("] {
            assert!(!PAGE.contains(word), "{word}");
        }
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            " onclick=",
        ] {
            assert!(!PAGE.contains(word), "{word}");
        }
        assert_eq!(PAGE.matches(NONCE).count(), 2, "one script and one style");
    }
}
