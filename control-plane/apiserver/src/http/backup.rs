//! `/orlop/v1/store/backup`: a copy of the store, for administrators.
//!
//! The body is a store file, of known length, so that a copy that breaks off is noticed. It holds every Secret: nobody outside
//! `system:masters` gets it. Refuses more than a few at a time, and ends one that is not fetched in time.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::{Body, respond};
use crate::api::Api;
use crate::auth::{MASTERS, User};
use crate::error::ApiError;
use crate::storage::{Backup, BackupError};

pub(super) const PATH: &str = "/orlop/v1/store/backup";

/// How long fetching a backup may take; it holds one of the few places.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Bytes that are read from the copy at a time.
const CHUNK: usize = 64 << 10;
/// Chunks that wait for the client, at most.
const CHUNKS: usize = 4;
/// Seconds after which a refused client may ask again.
const RETRY_AFTER: u32 = 10;

pub(super) async fn answer(api: &Api, user: &User, method: &Method) -> Result<Response<Body>, ApiError> {
    if !user.is_in(MASTERS) {
        return Err(ApiError::forbidden_path(PATH, &user.name, "get", ""));
    }
    if method != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    let backup = api.store.backup().await.map_err(|error| match error {
        BackupError::Busy { .. } => ApiError::too_many_requests(error.to_string(), RETRY_AFTER),
        BackupError::Failed { .. } => ApiError::internal(error),
    })?;
    let length = backup.file.metadata().map_err(ApiError::internal)?.len();
    let mut response = respond(200, "application/octet-stream", "");
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    *response.body_mut() = body(backup, LIMIT);
    Ok(response)
}

/// The backup's contents. File and place are given back after `limit` however little of the body was asked for: what is not
/// sent by then is missing from the announced length, and the client sees that.
fn body(backup: Backup, limit: Duration) -> Body {
    let (sender, mut receiver) = mpsc::channel(CHUNKS);
    tokio::spawn(async move {
        let Backup { file, place: _place } = backup;
        let chunks = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK);
        if tokio::time::timeout(limit, feed(chunks, sender)).await.is_err() {
            tracing::warn!(?limit, "a backup was not fetched in time");
        }
    });
    StreamBody::new(stream::poll_fn(move |context| receiver.poll_recv(context))).boxed_unsync()
}

/// Sends the chunks until the last one, the first failure, or until nobody wants them.
async fn feed(mut chunks: ReaderStream<tokio::fs::File>, sender: mpsc::Sender<io::Result<Frame<Bytes>>>) {
    while let Some(chunk) = chunks.next().await {
        let failed = chunk.is_err();
        if sender.send(chunk.map(Frame::data)).await.is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    //! What a backup that is fetched, and one that is not, sends and holds.

    use std::io::Write;
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    /// More than the channel takes.
    const BYTES: usize = (CHUNKS + 4) * CHUNK;
    const DEADLINE: Duration = Duration::from_secs(60);

    fn backup(places: &Arc<Semaphore>) -> Backup {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; BYTES]).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        Backup { file, place: places.clone().try_acquire_owned().unwrap() }
    }

    #[tokio::test]
    async fn a_backup_that_nobody_reads_gives_its_place_back() {
        let places = Arc::new(Semaphore::new(1));
        let unread = body(backup(&places), Duration::from_millis(1));
        let place = tokio::time::timeout(DEADLINE, places.acquire()).await;
        assert!(place.is_ok(), "the place is free");
        let rest = unread.collect().await.unwrap().to_bytes();
        assert!(rest.len() < BYTES, "the client sees that it broke off");
    }

    #[tokio::test]
    async fn a_backup_that_is_read_is_whole() {
        let places = Arc::new(Semaphore::new(1));
        let read = body(backup(&places), DEADLINE).collect().await.unwrap().to_bytes();
        assert!(read.len() == BYTES && read.iter().all(|byte| *byte == 7));
        let place = tokio::time::timeout(DEADLINE, places.acquire()).await;
        assert!(place.is_ok(), "the place is free");
    }
}
