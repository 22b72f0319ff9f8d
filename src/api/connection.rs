//! The connections to the API server, and what every request has: a deadline, and errors that say when to try again.

use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::{Bytes, HttpBody};
use axum::http::{Request, Response};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{Client as HttpClient, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tower::timeout::TimeoutLayer;
use tower::util::MapResponseLayer;
use tower::{BoxError, Service, ServiceBuilder};

use super::wait;

/// How long a request may take until its response's headers; watches live on. Nine seconds, to tell it in logs from the
/// many timeouts of 10 s around.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(9);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without traffic for so long, the kernel asks whether the other end still lives (`TCP_KEEPIDLE` in tcp(7)): a watch is
/// silent for minutes, and a server that went without a word must not be listened to for as long.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Between two such questions (`TCP_KEEPINTVL`).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// So many without an answer end the connection (`TCP_KEEPCNT`).
const KEEPALIVE_RETRIES: u32 = 3;

/// Connects: KUBECONFIG if set, else the Pod's service account.
///
/// # Errors
/// Neither is there, or what is there cannot be used.
pub async fn connect() -> anyhow::Result<Client> {
    let config = if std::env::var_os("KUBECONFIG").is_some() {
        Config::from_kubeconfig(&kube::config::KubeConfigOptions::default())
            .await
            .context("KUBECONFIG cannot be used")?
    } else {
        Config::incluster().context("KUBECONFIG is not set, and this is no Pod with a service account")?
    };
    client(config)
}

/// Connects by this kubeconfig.
///
/// # Errors
/// It cannot be read or used.
pub async fn connect_by(kubeconfig: &std::path::Path) -> anyhow::Result<Client> {
    let file = kube::config::Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .with_context(|| format!("{} cannot be used", kubeconfig.display()))?;
    client(config)
}

/// A client whose requests have a deadline and are never retried behind our back.
///
/// # Errors
/// The configuration cannot be used, such as a broken certificate.
pub fn client(config: Config) -> anyhow::Result<Client> {
    if let Some(proxy) = &config.proxy_url {
        let host = proxy.host().unwrap_or_default();
        bail!("proxies are not supported ({host}): remove proxy-url from the kubeconfig, and unset HTTPS_PROXY");
    }
    let failed = "the Kubernetes client cannot be made";
    let tls = config.rustls_https_connector_with_connector(tcp()).context(failed)?;
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_write_timeout(Some(REQUEST_TIMEOUT));
    // For a connection that dies in the middle of an answer. A watch may be silent for as long as it lasts.
    let longest = Duration::from_secs(u64::from(crate::watch::LONGEST_WATCH_SECONDS) + 20);
    connector.set_read_timeout(Some(longest));
    connector.set_reset_reader_on_write(true);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context(failed)?)
        .layer(config.extra_headers_layer().context(failed)?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(connector));
    Ok(with_layers(ClientBuilder::new(service, config.default_namespace)))
}

/// The library's own connector lets a small piece wait for the acknowledgement of the one before it (Nagle's algorithm):
/// on a new connection the first request waits behind the end of the TLS handshake, for the 40 ms after which the server's
/// kernel acknowledges that.
fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp
}

/// The client of a service, with what all our requests need: a deadline, and errors that say when to try again.
pub fn with_layers<S, B>(service: ClientBuilder<S>) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    service
        .with_layer(&TimeoutLayer::new(REQUEST_TIMEOUT))
        .with_layer(&MapResponseLayer::new(wait::keep_retry_after))
        .build()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::net::sockopt;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn nothing_waits_for_an_acknowledgement_and_a_silent_server_is_noticed() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", server.local_addr().unwrap());
        let connected = tcp().oneshot(address.parse().unwrap()).await.unwrap();
        let stream = connected.inner();
        assert!(stream.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(stream).unwrap());
        let longest = sockopt::tcp_keepidle(stream).unwrap()
            + sockopt::tcp_keepintvl(stream).unwrap() * sockopt::tcp_keepcnt(stream).unwrap();
        assert_eq!(longest, Duration::from_secs(60));
    }

    #[test]
    fn a_proxy_is_refused_without_its_password() {
        let mut config = Config::new("https://127.0.0.1:6443".parse().unwrap());
        config.proxy_url = Some("http://user:secret@proxy:3128".parse().unwrap());
        let error = client(config).err().unwrap().to_string();
        assert!(error.contains("proxy-url") && error.contains("HTTPS_PROXY"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
