//! HTTP: connections, routing, content negotiation, answers.
//!
//! Input: TLS connections. Output: the Kubernetes API. A request is parsed into a route, authorized, and handed to the
//! verb; an error becomes a Status here and nowhere else. Refuses clients without a certificate (but for the health
//! endpoints), requests in another user's name, bodies over 3 MiB, and media types other than JSON for answers (OpenAPI v2
//! comes in protobuf, too).

mod backup;
pub(crate) mod discovery;
mod form;
mod health;
mod impersonation;
pub(crate) mod openapi;
pub mod places;
mod proxy;
mod read;
mod reviews;
mod route;
pub mod serve;
mod watch;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::api::Api;
use crate::auth::{self, User};
use crate::error::ApiError;
use route::{ResourceRoute, Route};

/// A response body: bytes now, or a stream.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Bytes of a request body, at most (upstream's limit).
const MAX_BODY: usize = crate::object::MAX_SIZE;
const JSON: &str = "application/json";

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn respond(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    respond(code, JSON, value.to_string())
}

fn error_response(error: &ApiError) -> Response<Body> {
    let mut response = json(error.code, &error.status());
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Query parameters; the last of several equal names wins, but `all` gives every one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_form(key), decode_form(value))
        });
        Query { pairs: pairs.collect() }
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        self.pairs.iter().rev().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(key, _)| key == name)
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `true`, `1`, or the name alone.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name), "false" | "0")
    }
}

/// Percent decoding with `+` as space, as in queries alone.
fn decode_form(text: &str) -> String {
    decode_percent(&text.replace('+', " "))
}

fn decode_percent(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut ahead = bytes.clone();
                let digit = |byte: Option<u8>| byte.and_then(|byte| (byte as char).to_digit(16));
                match (digit(ahead.next()), digit(ahead.next())) {
                    (Some(high), Some(low)) => {
                        out.push((high * 16 + low) as u8);
                        bytes = ahead;
                    }
                    _ => out.push(byte),
                }
            }
            plain => out.push(plain),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Answers one request; never fails.
pub(crate) async fn handle(
    api: Arc<Api>,
    user: Option<Arc<User>>,
    request: Request<Incoming>,
) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = std::time::Instant::now();
    let response = match dispatch(&api, user.as_deref(), request).await {
        Ok(response) => response,
        Err(error) => error_response(&error),
    };
    let code = response.status().as_u16();
    let user = user.as_ref().map_or("", |user| user.name.as_str());
    tracing::debug!(%method, path, code, user, micros = started.elapsed().as_micros() as u64, "request");
    response
}

async fn dispatch(
    api: &Arc<Api>,
    user: Option<&User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or("");
    if let Some(user) = user {
        impersonation::refuse(user, request.headers())?;
    }
    if let Some(response) = health::answer(path, query, &*api.store) {
        return Ok(response);
    }
    let user = user.ok_or_else(ApiError::unauthorized)?;
    if path == backup::PATH {
        return backup::answer(api, user, request.method()).await;
    }
    let parsed = route::parse(path);
    if let Some(Route::Resource(route)) = parsed {
        return resource(api, user, route, request).await;
    }
    let verb = request.method().as_str().to_ascii_lowercase();
    auth::authorize_path(user, &verb, path, api.known())
        .map_err(|reason| ApiError::forbidden_path(path, &user.name, &verb, &reason))?;
    match parsed {
        Some(Route::Document(_)) if request.method() != Method::GET && request.method() != Method::HEAD => {
            Err(ApiError::method_not_allowed())
        }
        Some(Route::Document(document)) => discovery::answer(api, document, request.headers()),
        None if path == "/metrics" => Ok(metrics(api)),
        _ => Err(ApiError::no_such_path()),
    }
}

fn metrics(api: &Api) -> Response<Body> {
    let text = api.cache.metrics.render(&api.cache.gauges());
    respond(200, "text/plain; version=0.0.4; charset=utf-8", text)
}

async fn resource(
    api: &Arc<Api>,
    user: &User,
    route: ResourceRoute,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let verb = route.verb(request.method(), &query)?;
    let attributes = route.attributes(verb, &query);
    if let Err(reason) = auth::authorize(user, &attributes, api.known()) {
        let resource = crate::error::Resource { group: &attributes.group, name: &attributes.resource };
        return Err(ApiError::forbidden(
            resource,
            &attributes.object_name(),
            &attributes.denial(user, &reason),
        ));
    }
    let known =
        api.registry.find(&route.group, &route.version, &route.resource).map_or("", |kind| kind.plural);
    let result = Call { api, user, route, query, verb, request }.run().await;
    let code = result.as_ref().map_or_else(|error| error.code, |response| response.status().as_u16());
    api.cache.metrics.count_request(verb, known, code);
    result
}

/// One authorized request for a resource.
struct Call<'a> {
    api: &'a Arc<Api>,
    user: &'a User,
    route: ResourceRoute,
    query: Query,
    verb: &'static str,
    request: Request<Incoming>,
}

impl Call<'_> {
    async fn run(self) -> Result<Response<Body>, ApiError> {
        if let Some(review) = route::review(&self.route) {
            return self.review(review).await;
        }
        let Some(kind) = self.api.registry.find(&self.route.group, &self.route.version, &self.route.resource)
        else {
            return Err(ApiError::no_such_path());
        };
        route::check_served(kind, &self.route, self.verb)?;
        match (self.route.subresource.as_str(), self.verb) {
            ("log" | "exec" | "attach" | "portforward", _) => self.proxy(kind).await,
            ("", "list") => self.list(kind),
            ("", "watch") => self.watch(kind),
            (_, "get") => self.get(kind),
            _ => self.write(kind).await,
        }
    }
}

/// Reads a request body of JSON.
async fn read_body(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let limited = Limited::new(request.into_body(), MAX_BODY);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::too_large(MAX_BODY)),
        Err(error) => Err(ApiError::bad_request(format!("read request body: {error}"))),
    }
}

fn content_type(request: &Request<Incoming>) -> String {
    let value =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// Adds one `Warning` header per warning.
fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Parameters of a media type.
type Parameters = HashMap<String, String>;

#[cfg(test)]
mod tests {
    //! Query decoding.

    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse("a=1&a=2&labelSelector=app%3Dweb%2Cx+in+%28y%29&watch&bad=%zz%4");
        assert_eq!(query.get("a"), "2");
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.get("labelSelector"), "app=web,x in (y)");
        assert!(query.is_set("watch") && !query.is_set("nothing"));
        assert_eq!(query.get("bad"), "%zz%4");
    }
}
