//! What plugin and daemon say to each other: one question and one answer, each a JSON document, over a unix connection.
//!
//! The end of a document is the end of that half of the connection. The reference's daemon speaks another protocol at the same
//! path; both sides then say so.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use cni::{AddResult, ErrorReply, Version, code, exec::Verb, json::DOCUMENT_LIMIT};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
};

use super::config::{Config, Options};
use crate::plugin::{Request, Valid, block_on};

/// How long a plugin waits for the daemon, which itself waits for servers.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// How long the daemon waits for the rest of a question, and until an answer is taken.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);
const PROTOCOL: u32 = 1;

/// A call that a plugin passes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Question {
    protocol: u32,
    pub(super) verb: String,
    pub(super) network: String,
    pub(super) container_id: String,
    pub(super) ifname: String,
    pub(super) netns: Option<PathBuf>,
    pub(super) options: Options,
    pub(super) priority: Option<u32>,
    /// What GC is to keep: container and link.
    pub(super) valid: Vec<(String, String)>,
}

impl Question {
    pub(super) fn new(
        request: &Request,
        verb: Verb,
        config: &Config,
        netns: Option<PathBuf>,
        valid: Valid,
    ) -> Self {
        Self {
            protocol: PROTOCOL,
            verb: verb.as_str().to_owned(),
            network: request.network.clone(),
            container_id: request.container_id.clone(),
            ifname: request.ifname.clone(),
            netns,
            options: config.options.clone(),
            priority: config.priority,
            valid: valid.into_iter().collect(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    /// A result of the newest version.
    Result(Map<String, Value>),
    Error(ErrorReply),
}

/// The plugin's side.
pub(super) fn ask(socket: &Path, question: &Question) -> Result<AddResult, ErrorReply> {
    let at = |error: String| ErrorReply::internal(format!("DHCP daemon at {}: {error}", socket.display()));
    let question = serde_json::to_vec(question).map_err(ErrorReply::internal)?;
    let question = bounded(question).map_err(|error| at(format!("the question: {error}")))?;
    let bytes = block_on(async {
        let asked = async {
            let mut stream = UnixStream::connect(socket).await?;
            stream.write_all(&question).await?;
            stream.shutdown().await?;
            read(stream).await
        };
        let asked = tokio::time::timeout(ANSWER_LIMIT, asked).await;
        let asked = asked.map_err(|_elapsed| at(format!("no answer within {} s", ANSWER_LIMIT.as_secs())))?;
        asked.map_err(|error| match error.kind() {
            // Nobody listens there.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                at(format!("{error}: start it with `dhcp daemon`"))
            }
            _ => at(error.to_string()),
        })
    })?;
    if bytes.is_empty() {
        return Err(at("it ended, or was started again, before it answered".to_owned()));
    }
    let answer = serde_json::from_slice(&bytes)
        .map_err(|error| at(format!("it speaks another protocol, so it is not of this release: {error}")))?;
    match answer {
        Answer::Result(document) => AddResult::from_json(&document)
            .map_err(|error| ErrorReply::new(code::DECODING_FAILURE, error.to_string())),
        Answer::Error(reply) => Err(reply),
    }
}

/// The daemon's side of one connection. Of a plugin that ends only a DEL or GC goes on: what they give back has to be given back anyway.
pub(super) async fn serve<F: Future<Output = Result<AddResult, ErrorReply>>>(
    mut stream: UnixStream,
    answer: impl FnOnce(Question) -> F,
) -> io::Result<()> {
    let question = tokio::time::timeout(QUESTION_LIMIT, read(&mut stream)).await??;
    let answered = match serde_json::from_slice::<Question>(&question) {
        Ok(question) if question.protocol == PROTOCOL => {
            let goes_on = matches!(question.verb.as_str(), "DEL" | "GC");
            let answered = answer(question);
            if goes_on {
                answered.await
            } else {
                tokio::select! {
                    answered = answered => answered,
                    gone = hang_up(&stream) => return gone,
                }
            }
        }
        Ok(_) | Err(_) => {
            Err(ErrorReply::internal("the plugin is not of the daemon's release: restart `dhcp daemon`"))
        }
    };
    let document = answered.and_then(|result| result.to_json(Version::NEWEST).map_err(ErrorReply::internal));
    let answer = match document {
        Ok(Value::Object(document)) => Answer::Result(document),
        Ok(_) => Answer::Result(Map::new()),
        Err(reply) => Answer::Error(reply),
    };
    let answer = serde_json::to_vec(&answer)?;
    // Who waited for the peer's end does not know any more that there is room to write.
    let mut stream = UnixStream::from_std(stream.into_std()?)?;
    tokio::time::timeout(QUESTION_LIMIT, stream.write_all(&answer)).await??;
    stream.shutdown().await
}

/// Waits until the peer is gone. That it has written everything says nothing, since it still reads.
async fn hang_up(stream: &UnixStream) -> io::Result<()> {
    while !stream.ready(Interest::WRITABLE).await?.is_write_closed() {
        // Room to write is no news, and is to be forgotten until something else happens.
        let _ = stream.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Err(io::Error::other("the plugin ended before its answer"))
}

async fn read(stream: impl AsyncReadExt + Unpin) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed, so that one sees that it is too large.
    stream.take(DOCUMENT_LIMIT as u64 + 1).read_to_end(&mut bytes).await?;
    bounded(bytes)
}

fn bounded(document: Vec<u8>) -> io::Result<Vec<u8>> {
    if document.len() > DOCUMENT_LIMIT {
        return Err(io::Error::other(format!("a larger document: expected at most {DOCUMENT_LIMIT} bytes")));
    }
    Ok(document)
}

#[cfg(test)]
mod tests;
