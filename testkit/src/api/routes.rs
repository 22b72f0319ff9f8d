//! From an HTTP request to an answer.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use serde_json::{Value, json};

use super::{
    Api, BoxError, Request,
    faults::Effect,
    metadata_only,
    resource::{Target, discovery},
    selector::Selector,
    status::Status,
    store::{Key, WriteOptions},
    watch::{self, WatchRequest},
};

/// The body of an answer: one piece, or the lines of a watch.
pub(crate) type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// An answer.
pub(crate) type Reply = http::Response<ReplyBody>;

/// What a handler needs to know of a request.
struct Call {
    target: Target,
    verb: &'static str,
    query: HashMap<String, String>,
    content_type: String,
    accept: String,
    body: Value,
}

/// Answers one request of `user`. An error is a broken connection.
pub(crate) async fn handle(api: Api, user: String, request: http::Request<Bytes>) -> Result<Reply, BoxError> {
    let path = request.uri().path().to_owned();
    if let (Some(document), &Method::GET) = (discovery(&path), request.method()) {
        return Ok(reply(200, &document));
    }
    let call = match Call::parse(&request) {
        Ok(call) => call,
        Err(status) => return Ok(refusal(&status)),
    };
    let entry = call.log_entry(&user, &request);
    let index = api.log(entry.clone());
    let mut lose_reply = false;
    match api.take_fault(&entry) {
        Some(Effect::Status(code, after)) => {
            api.answered(index, code);
            return Ok(refusal(&Status::of_code(code, after)));
        }
        Some(Effect::Overload(after)) => {
            api.answered(index, 429);
            return Ok(overloaded(after));
        }
        Some(Effect::Hang) => return std::future::pending().await,
        Some(Effect::Delay(by)) => tokio::time::sleep(by).await,
        Some(Effect::Disconnect) => return Err("the connection broke before the request".into()),
        Some(Effect::LoseReply) => lose_reply = true,
        Some(Effect::Run(Some(f))) => f(&api),
        Some(Effect::Run(None)) | None => {}
    }
    let (code, answer) = match call.permitted(&api, &user).and_then(|()| call.dispatch(&api, &user)) {
        Ok((code, answer)) => (code, answer),
        Err(status) => (status.code, refusal(&status)),
    };
    api.answered(index, code);
    match lose_reply {
        true => Err("the connection broke before the answer".into()),
        false => Ok(answer),
    }
}

impl Call {
    fn parse(request: &http::Request<Bytes>) -> Result<Call, Status> {
        let target = Target::parse(request.uri().path()).ok_or_else(Status::no_such_path)?;
        let query: HashMap<_, _> = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
        let watching = query.get("watch").is_some_and(|w| w == "true" || w == "1");
        let verb = match (request.method().as_str(), &target.name) {
            ("GET", None) if watching => "watch",
            ("GET", None) => "list",
            ("GET", Some(_)) => "get",
            ("POST", None) => "create",
            ("PUT", Some(_)) => "update",
            ("PATCH", Some(_)) => "patch",
            ("DELETE", Some(_)) => "delete",
            _ => {
                let message = "the server does not allow this method on the requested resource";
                return Err(Status::new(405, "MethodNotAllowed", message));
            }
        };
        let text = |name| {
            let value = request.headers().get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let body = match request.body() {
            empty if empty.is_empty() => Value::Null,
            body => {
                serde_json::from_slice(body).map_err(|e| Status::bad_request(format!("the body is not JSON: {e}")))?
            }
        };
        Ok(Call {
            target,
            verb,
            query,
            content_type: text(header::CONTENT_TYPE),
            accept: text(header::ACCEPT),
            body,
        })
    }

    fn log_entry(&self, user: &str, request: &http::Request<Bytes>) -> Request {
        let name = self.target.name.as_deref().or(self.body["metadata"]["name"].as_str());
        Request {
            user: user.to_owned(),
            verb: self.verb.to_owned(),
            resource: self.target.resource.plural.to_owned(),
            subresource: self.target.subresource.clone(),
            namespace: self.target.namespace.clone(),
            name: name.unwrap_or_default().to_owned(),
            path: request
                .uri()
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            body: Some(self.body.clone()).filter(|b| !b.is_null()),
            status: None,
        }
    }

    fn permitted(&self, api: &Api, user: &str) -> Result<(), Status> {
        let resource = self.target.resource;
        let what = match &self.target.subresource {
            Some(sub) => format!("{}/{sub}", resource.plural),
            None => resource.plural.to_owned(),
        };
        if api.permissions(user).allows(self.verb, &what) {
            return Ok(());
        }
        let name = self.target.name.as_deref().unwrap_or_default();
        Err(Status::forbidden(
            resource,
            name,
            user,
            self.verb,
            &what,
            &self.target.namespace,
        ))
    }

    fn dispatch(&self, api: &Api, user: &str) -> Result<(u16, Reply), Status> {
        let resource = self.target.resource;
        let options = WriteOptions {
            dry_run: self.parameter("dryRun") == Some("All"),
            status: self.target.subresource.is_some(),
            put: self.verb == "update",
        };
        let name = self.target.name.as_deref().unwrap_or_default();
        let key = Key::new(resource, &self.target.namespace, name);
        let (code, mut object) = match self.verb {
            "list" => return Ok((200, reply(200, &self.list(api)?))),
            "watch" => return Ok((200, self.watch(api)?)),
            "get" => {
                let found = api.state().store.get(&key).cloned();
                (200, found.ok_or_else(|| Status::not_found(resource, name))?)
            }
            "create" if resource.plural == "selfsubjectaccessreviews" => {
                let mut review = self.body.clone();
                let allowed = api.permissions(user).review(&review["spec"]);
                review["status"] = json!({"allowed": allowed});
                (201, review)
            }
            "create" => {
                let namespace = &self.target.namespace;
                let object = self.body.clone();
                (201, api.write(|s| s.create(resource, namespace, object, options))?)
            }
            "update" => (200, api.write(|s| s.update(&key, options, |_| self.body.clone()))?),
            "patch" => (200, self.patch(api, &key, options)?),
            _ => (200, self.delete(api, &key, options)?),
        };
        if self.accept.contains("as=PartialObjectMetadata;") {
            object = metadata_only(&object);
        }
        Ok((code, reply(code, &object)))
    }

    fn delete(&self, api: &Api, key: &Key, mut options: WriteOptions) -> Result<Value, Status> {
        let dry = self.body["dryRun"].as_array();
        options.dry_run |= dry.is_some_and(|d| d.iter().any(|d| d == "All"));
        let object = api.write(|s| s.delete(key, &self.body, options))?;
        let resource = self.target.resource;
        let goes_on = object["metadata"]["deletionTimestamp"].is_string();
        Ok(match goes_on || resource.answers_deleted() {
            true => object,
            false => Status::deleted(resource, &object),
        })
    }

    fn patch(&self, api: &Api, key: &Key, options: WriteOptions) -> Result<Value, Status> {
        if self.content_type != "application/merge-patch+json" {
            return Err(Status::new(
                415,
                "UnsupportedMediaType",
                format!(
                    "the server takes application/merge-patch+json only, not {}",
                    self.content_type
                ),
            ));
        }
        api.write(|s| {
            s.update(key, options, |old| {
                let mut new = old.clone();
                merge(&mut new, &self.body);
                new
            })
        })
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    fn selector(&self) -> Result<Selector, Status> {
        Selector::parse(
            self.target.resource,
            self.parameter("labelSelector"),
            self.parameter("fieldSelector"),
        )
    }

    fn list(&self, api: &Api) -> Result<Value, Status> {
        let resource = self.target.resource;
        let selector = self.selector()?;
        let limit = self.parameter("limit").and_then(|l| l.parse().ok()).unwrap_or(0_usize);
        let state = api.state();
        let mut version = state.store.version();
        let mut after = None;
        // The token is "version/namespace/name" of the last item that was sent.
        if let Some(token) = self.parameter("continue") {
            let mut parts = token.splitn(3, '/');
            let mut part = || parts.next().unwrap_or_default();
            version = part()
                .parse()
                .map_err(|_| Status::bad_request("continue key is not valid"))?;
            let namespace = part().to_owned();
            after = Some((namespace, part().to_owned()));
            if version < state.store.floor() {
                let message = "The provided continue parameter is too old to display a consistent list result.";
                return Err(Status::new(410, "Expired", message));
            }
        }
        let matching: Vec<_> = state
            .store
            .select(resource, &self.target.namespace)
            .filter(|(k, _)| {
                after
                    .as_ref()
                    .is_none_or(|(ns, name)| (&k.namespace, &k.name) > (ns, name))
            })
            .filter(|(_, o)| selector.matches(o))
            .collect();
        let metadata_list = self.accept.contains("as=PartialObjectMetadataList");
        let page = if limit > 0 {
            limit.min(matching.len())
        } else {
            matching.len()
        };
        let items: Vec<_> = matching[..page]
            .iter()
            .map(|(_, object)| match metadata_list {
                true => metadata_only(object),
                // The items of a typed list do not say what they are.
                false => object
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(k, _)| *k != "kind" && *k != "apiVersion")
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect(),
            })
            .collect();
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if page < matching.len() {
            let last = matching[page - 1].0;
            metadata["continue"] = format!("{version}/{}/{}", last.namespace, last.name).into();
            if selector.is_empty() {
                metadata["remainingItemCount"] = (matching.len() - page).into();
            }
        }
        let (kind, api_version) = match metadata_list {
            true => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
            false => (format!("{}List", resource.kind), resource.api_version()),
        };
        Ok(json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items}))
    }

    fn watch(&self, api: &Api) -> Result<Reply, Status> {
        let is_true = |name| self.parameter(name) == Some("true");
        let after = match self.parameter("resourceVersion") {
            None | Some("0") => None,
            Some(version) => Some(
                version
                    .parse()
                    .map_err(|_| Status::bad_request(format!("Invalid value: {version:?}: resourceVersion")))?,
            ),
        };
        let lines = watch::stream(
            api,
            WatchRequest {
                resource: self.target.resource,
                namespace: self.target.namespace.clone(),
                selector: self.selector()?,
                after,
                send_initial_events: is_true("sendInitialEvents"),
                bookmarks: is_true("allowWatchBookmarks"),
                metadata_only: self.accept.contains("as=PartialObjectMetadata;"),
                timeout: self
                    .parameter("timeoutSeconds")
                    .and_then(|t| t.parse().ok())
                    .map(Duration::from_secs),
            },
        );
        let body = StreamBody::new(lines.map_ok(Frame::data));
        Ok(with_body(200, None, BodyExt::boxed_unsync(body)))
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|t| t.remove(key));
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn refusal(status: &Status) -> Reply {
    let body = Full::new(Bytes::from(status.to_json().to_string()));
    with_body(
        status.code,
        status.retry_after(),
        body.map_err(|e| match e {}).boxed_unsync(),
    )
}

/// <https://github.com/kubernetes/kubernetes/blob/v1.35.0/staging/src/k8s.io/apiserver/pkg/server/filters/priority-and-fairness.go>
fn overloaded(after: std::time::Duration) -> Reply {
    let body = Full::new(Bytes::from_static(b"Too many requests, please try again later.\n"));
    let mut reply = with_body(429, Some(after.as_secs()), body.map_err(|e| match e {}).boxed_unsync());
    let text = header::HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, text);
    reply
}

fn reply(code: u16, value: &Value) -> Reply {
    let body = Full::new(Bytes::from(value.to_string()));
    with_body(code, None, body.map_err(|e| match e {}).boxed_unsync())
}

fn with_body(code: u16, retry_after: Option<u64>, body: ReplyBody) -> Reply {
    let mut reply = http::Response::new(body);
    *reply.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let json = header::HeaderValue::from_static("application/json");
    reply.headers_mut().insert(header::CONTENT_TYPE, json);
    if let Some(seconds) = retry_after {
        reply.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    reply
}
