//! Watches: a stream of events from the cache, in chunks.
//!
//! One watch is one state machine in a stream: initial events, then whatever the cache sends, a bookmark now and then,
//! the end at its timeout or when the watcher fell behind (the client then starts again). A start that the window no
//! longer reaches is answered, as upstream does, with one ERROR event that carries the Status 410.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::form::Form;
use super::read::parse_revision;
use super::{Body, Call, JSON, respond};
use crate::api::Api;
use crate::cache::{Event, EventType, ReadError, WatchStart};
use crate::error::ApiError;
use crate::kinds::Kind;

/// Time between bookmarks.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Length of a watch whose client names none, and its random extra, so that clients do not all come back at once.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
const MAX_EXTRA: u64 = 1800;
/// Length of a watch, at most: a clock has an end.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Events that one chunk carries, at most.
const MAX_CHUNK_EVENTS: usize = 256;

impl Call<'_> {
    pub(super) fn watch(&self, kind: &'static Kind) -> Result<Response<Body>, ApiError> {
        let form = self.form()?;
        let filter = self.filter(kind)?;
        let revision = parse_revision(self.query.get("resourceVersion"))?;
        let bookmarks = self.query.is_set("allowWatchBookmarks");
        let initial_events = self.query.has("sendInitialEvents");
        let start = match revision {
            _ if self.query.is_set("sendInitialEvents") => WatchStart::State,
            None | Some(0) if initial_events => WatchStart::After(self.api.cache.revision()),
            None | Some(0) => WatchStart::State,
            Some(revision) => WatchStart::After(revision),
        };
        if initial_events && self.query.get("resourceVersionMatch") != "NotOlderThan" {
            let message = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
                           sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(ApiError::unprocessable(message));
        }
        let started = match self.api.cache.watch(kind.storage, filter, start) {
            Ok(started) => started,
            Err(error) => return Ok(error_event(error)),
        };
        let random = uuid::Uuid::new_v4().as_bytes()[0];
        let stream = WatchStream {
            api: self.api.clone(),
            kind,
            form,
            initial: started.initial.into(),
            end_of_initial: (self.query.is_set("sendInitialEvents") && bookmarks).then_some(started.revision),
            events: started.events,
            bookmarks,
            next_bookmark: Instant::now() + BOOKMARK_INTERVAL,
            deadline: Instant::now() + timeout(self.query.get("timeoutSeconds"), random)?,
            sent_any: false,
        };
        let frames = futures::stream::unfold(stream, |mut stream| async move {
            let chunk = stream.next().await?;
            Some((Ok(Frame::data(chunk)), stream))
        });
        let mut response = respond(200, JSON, Bytes::new());
        *response.body_mut() = StreamBody::new(frames).boxed_unsync();
        Ok(response)
    }
}

/// How long a watch lasts, by its `timeoutSeconds`; `random` spreads those that name none.
fn timeout(seconds: &str, random: u8) -> Result<Duration, ApiError> {
    if matches!(seconds, "" | "0") {
        return Ok(DEFAULT_TIMEOUT + Duration::from_secs(u64::from(random) * MAX_EXTRA / 256));
    }
    let wanted = seconds.parse::<u64>();
    let wanted = wanted.map_err(|_| ApiError::bad_request(format!("invalid timeoutSeconds: {seconds:?}")))?;
    Ok(Duration::from_secs(wanted).min(MAX_TIMEOUT))
}

fn error_event(error: ReadError) -> Response<Body> {
    let error = match error {
        ReadError::TooOld { wanted, oldest } => {
            ApiError::expired(format!("too old resource version: {wanted} ({oldest})"))
        }
        ReadError::TooNew { wanted, current } => ApiError::version_too_large(wanted, current),
    };
    let event = serde_json::json!({"type": "ERROR", "object": error.status()});
    respond(200, JSON, format!("{event}\n"))
}

struct WatchStream {
    api: std::sync::Arc<Api>,
    kind: &'static Kind,
    form: Form,
    initial: VecDeque<Event>,
    /// The revision of the bookmark that ends the initial events.
    end_of_initial: Option<u64>,
    events: mpsc::Receiver<Event>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    sent_any: bool,
}

impl WatchStream {
    /// The next chunk; none ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        if !self.initial.is_empty() || self.end_of_initial.is_some() {
            let count = self.initial.len().min(MAX_CHUNK_EVENTS);
            for event in self.initial.drain(..count).collect::<Vec<_>>() {
                self.write(&mut out, &event);
            }
            if self.initial.is_empty()
                && let Some(revision) = self.end_of_initial.take()
            {
                self.bookmark(&mut out, revision, true);
            }
            return Some(out.freeze());
        }
        // Both futures may be dropped: recv loses nothing, and sleeping has no state.
        tokio::select! {
            biased;
            event = self.events.recv() => {
                let event = event?;
                self.write(&mut out, &event);
                self.drain(&mut out);
            }
            () = tokio::time::sleep_until(self.deadline) => return None,
            () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                // What the cache applied up to here is in the channel already, so it goes out first.
                let revision = self.api.cache.revision();
                self.drain(&mut out);
                if self.events.is_empty() {
                    self.bookmark(&mut out, revision, false);
                }
                self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
            }
        }
        Some(out.freeze())
    }

    fn drain(&mut self, out: &mut BytesMut) {
        for _ in 0..MAX_CHUNK_EVENTS {
            let Ok(event) = self.events.try_recv() else { return };
            self.write(out, &event);
        }
    }

    fn write(&mut self, out: &mut BytesMut, event: &Event) {
        let kind = match event.kind {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
        };
        out.put_slice(b"{\"type\":\"");
        out.put_slice(kind.as_bytes());
        out.put_slice(b"\",\"object\":");
        out.put_slice(&self.form.event(self.kind, &event.entry, !self.sent_any));
        out.put_slice(b"}\n");
        self.sent_any = true;
    }

    fn bookmark(&self, out: &mut BytesMut, revision: u64, initial_end: bool) {
        let object = self.form.bookmark(self.kind, revision, initial_end);
        out.put_slice(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    //! How long a watch lasts.

    use super::*;

    #[test]
    fn a_watch_ends() {
        let of = |seconds: &str, random| timeout(seconds, random).map_err(|error| error.code);
        assert_eq!(of("7", 0), Ok(Duration::from_secs(7)));
        assert_eq!((of("", 0), of("0", 128)), (Ok(DEFAULT_TIMEOUT), Ok(Duration::from_secs(2700))));
        assert_eq!(of(&u64::MAX.to_string(), 0), Ok(MAX_TIMEOUT));
        assert_eq!((of("-1", 0), of("x", 0)), (Err(400), Err(400)));
    }
}
