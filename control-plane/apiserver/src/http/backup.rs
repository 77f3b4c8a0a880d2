//! `/orlop/v1/store/backup`: a copy of the store, for administrators.
//!
//! The body is a store file, of known length, so that a copy that breaks off is noticed. It holds every Secret: nobody outside
//! `system:masters` gets it. Refuses more than a few at a time, and ends one that is not fetched in time.

use std::time::Duration;

use futures::StreamExt;
use http::{HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use super::{Body, respond};
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::storage::BackupError;

pub(super) const PATH: &str = "/orlop/v1/store/backup";

/// How long fetching a backup may take; it holds one of the few places.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Bytes that are read from the copy at a time.
const CHUNK: usize = 64 << 10;
/// Seconds after which a refused client may ask again.
const RETRY_AFTER: u32 = 10;

pub(super) async fn answer(api: &Api, user: &User, method: &Method) -> Result<Response<Body>, ApiError> {
    if !user.is_in("system:masters") {
        return Err(ApiError::forbidden_path(PATH, &user.name, "get"));
    }
    if method != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    let backup = api.store.backup().await.map_err(|error| match error {
        BackupError::Busy { .. } => ApiError::too_many_requests(error.to_string(), RETRY_AFTER),
        BackupError::Failed { .. } => ApiError::internal(error),
    })?;
    let length = backup.file.metadata().map_err(ApiError::internal)?.len();
    let chunks = ReaderStream::with_capacity(tokio::fs::File::from_std(backup.file), CHUNK);
    let place = backup.place;
    // What is not sent by then is missing from the announced length, and the client sees that.
    let chunks = chunks.take_until(tokio::time::sleep(LIMIT)).map(move |chunk| {
        let _held = &place;
        chunk.map(Frame::data)
    });
    let mut response = respond(200, "application/octet-stream", "");
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    *response.body_mut() = StreamBody::new(chunks).boxed_unsync();
    Ok(response)
}
