//! Requests as they go over the wire, for tests of what a typed client would hide.

use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::Value;

/// Sends a request and reads the whole answer: its HTTP status code and its JSON (null, if it is none).
///
/// A PATCH is a merge patch. `accept` may ask for another form of the object; empty means JSON.
///
/// # Errors
/// If there is no answer.
pub async fn call(client: &Client, method: &str, path: &str, accept: &str, body: &Value) -> Result<(u16, Value)> {
    let response = send(client, method, path, accept, body).await?;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// The events of a watch, read until there are `count`, or it ends. `path` includes the query.
///
/// # Errors
/// If there is no answer, or fewer events within `deadline`.
pub async fn watch(client: &Client, path: &str, accept: &str, count: usize, deadline: Duration) -> Result<Vec<Value>> {
    let mut response = send(client, "GET", path, accept, &Value::Null).await?.into_body();
    let (mut events, mut rest) = (Vec::new(), Vec::new());
    let read = async {
        while events.len() < count {
            let Some(frame) = response.frame().await else {
                break;
            };
            rest.extend_from_slice(frame?.data_ref().map_or(&[][..], |d| d));
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                events.push(serde_json::from_slice(&line)?);
            }
        }
        anyhow::Ok(())
    };
    let result = tokio::time::timeout(deadline, read).await;
    result.with_context(|| format!("{count} events of {path} within {deadline:?}; there were {events:#?}"))??;
    Ok(events)
}

async fn send(client: &Client, method: &str, path: &str, accept: &str, body: &Value) -> Result<http::Response<Body>> {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let accept = if accept.is_empty() { "application/json" } else { accept };
    let bytes = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("accept", accept)
        .header("content-type", kind)
        .body(Body::from(bytes))?;
    client.send(request).await.with_context(|| format!("{method} {path}"))
}
