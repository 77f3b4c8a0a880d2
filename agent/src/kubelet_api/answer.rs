//! The form of answers: plain text for errors, as the kubelet's, since the API server puts it into the message of its Status; JSON.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::response::Builder;
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde::Serialize;

use crate::pods::LookupError;

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub type Answer = Response<Body>;

/// Why there is no such container, in the kubelet's words and with its code.
pub fn not_found(error: &LookupError) -> Answer {
    let status = if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
    text(status, error.to_string())
}

/// A text that ends with the body.
pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    let answer = Response::builder().status(status).header(CONTENT_TYPE, "text/plain; charset=utf-8");
    finish(answer, full(text.into()))
}

pub fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => finish(Response::builder().header(CONTENT_TYPE, "application/json"), full(bytes)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("encode the answer: {error}")),
    }
}

pub fn empty() -> Body {
    full(Bytes::new())
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: std::convert::Infallible| match never {}).boxed_unsync()
}

/// Headers that we write ourselves are always valid; if not, that is our error and said so.
pub fn finish(answer: Builder, body: Body) -> Answer {
    answer.body(body).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer of the kubelet API is malformed");
        let mut answer = Response::new(empty());
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        answer
    })
}
