//! The server on a socket, for kubectl and for processes of their own.

use std::io;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use tokio::net::TcpListener;

use super::{Api, routes};

/// No object of the API is larger.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

impl Api {
    /// Serves plain HTTP until dropped. The bearer token is the user's name; without one it is `admin`.
    ///
    /// # Errors
    /// Those of the listener.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        let api = self.clone();
        let app = Router::new().fallback(move |request| answer(api.clone(), request));
        axum::serve(listener, app).await
    }

    /// The text of a kubeconfig for [`Api::serve`] at this address (`127.0.0.1:8001`), for this user.
    #[must_use]
    pub fn kubeconfig(address: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\n\
             users: [{{name: u, user: {{token: {user}}}}}]\n"
        )
    }
}

async fn answer(api: Api, request: Request) -> Response {
    let token = request.headers().get(header::AUTHORIZATION);
    let token = token.and_then(|t| t.to_str().ok()?.strip_prefix("Bearer "));
    let user = token.unwrap_or("admin").to_owned();
    let (parts, body) = request.into_parts();
    let body: Bytes = match axum::body::to_bytes(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    match routes::handle(api, user, http::Request::from_parts(parts, body)).await {
        Ok(reply) => reply.map(Body::new),
        // Over HTTP/1 a handler cannot break the connection; a gateway would say this.
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
