//! The node's own question desk: a unix socket on which `orlopctl` asks what this agent holds.
//!
//! In: one line per connection, the name of a [`Question`]. Out: one JSON document, `{"ok": …}` or `{"error": "…"}`. Only root
//! can open the socket. Answers are read-only.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::api::chain;
use crate::policies::Guard;
use crate::services::Dataplane;

/// Longest question, bytes.
const MAX_QUESTION_BYTES: u64 = 64;
/// How long one conversation may take.
const CONVERSATION_TIMEOUT: Duration = Duration::from_secs(10);

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    Images,
    Sandboxes,
    Containers,
    Services,
    Policies,
    Counters,
}

impl Question {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Images, "images"),
        (Self::Sandboxes, "sandboxes"),
        (Self::Containers, "containers"),
        (Self::Services, "services"),
        (Self::Policies, "policies"),
        (Self::Counters, "counters"),
    ];

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(question, _)| *question == self).map_or("", |(_, name)| *name)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(question, _)| *question)
    }
}

/// What the answers come from.
#[derive(Clone)]
pub struct Context {
    pub runtime: runtime::Runtime,
    pub dataplane: Option<Dataplane>,
    pub policies: Guard,
    pub shutdown: CancellationToken,
}

/// Why the socket does not come up.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}")]
pub struct Error {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A frontend and where it leads.
#[derive(Debug, Serialize)]
struct Frontend {
    address: String,
    protocol: String,
    endpoints: Vec<String>,
    /// The endpoints for traffic from outside of the node, where they are others.
    #[serde(skip_serializing_if = "Option::is_none")]
    outside: Option<Vec<String>>,
    /// How long a client stays with its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<std::num::NonZeroU32>,
    /// How an endpoint is chosen, where that is not at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler: Option<&'static str>,
    /// The networks that may ask from outside of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    sources: Option<Vec<String>>,
}

/// Binds the socket. One that an earlier agent left is replaced: there is one agent per state folder.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |operation| move |source| Error { operation, path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    Ok(listener)
}

/// Answers until shutdown, one conversation at a time.
pub async fn run(listener: UnixListener, context: Context) {
    loop {
        // Cancel-safe: a connection is taken only when it is returned.
        let accepted = tokio::select! {
            () = context.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let talked = match accepted {
            Ok((stream, _)) => timeout(CONVERSATION_TIMEOUT, talk(stream, &context)).await,
            Err(error) => Ok(Err(error)),
        };
        match talked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a conversation on the admin socket"),
            Err(_elapsed) => tracing::debug!("a conversation on the admin socket took too long"),
        }
    }
}

async fn talk(mut stream: UnixStream, context: &Context) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new((&mut stream).take(MAX_QUESTION_BYTES)).read_line(&mut line).await?;
    let answer = match Question::parse(line.trim()) {
        Some(question) => answer(question, context).await,
        None => Err(format!("there is no question \"{}\"", line.trim())),
    };
    let document = match answer {
        Ok(value) => json!({"ok": value}),
        Err(error) => json!({"error": error}),
    };
    stream.write_all(document.to_string().as_bytes()).await?;
    stream.shutdown().await
}

async fn answer(question: Question, context: &Context) -> Result<Value, String> {
    let shown = |value: Result<Value, serde_json::Error>| value.map_err(|error| error.to_string());
    match question {
        Question::Images => shown(serde_json::to_value(context.runtime.list_images())),
        Question::Sandboxes => shown(serde_json::to_value(context.runtime.list().sandboxes)),
        Question::Containers => shown(serde_json::to_value(context.runtime.list().containers)),
        Question::Services => shown(serde_json::to_value(services(with_dataplane(context)?))),
        Question::Policies => shown(serde_json::to_value(context.policies.list().await?)),
        Question::Counters => {
            let counters = with_dataplane(context)?.with(|dataplane| dataplane.counters());
            let counters = counters.map_err(|error| chain(&error))?;
            let named = crate::kubelet_api::DATAPLANE_COUNTERS.iter().filter_map(|(number, name)| {
                Some(((*name).to_owned(), json!(counters.get(*number as usize)?)))
            });
            Ok(Value::Object(named.collect()))
        }
    }
}

fn with_dataplane(context: &Context) -> Result<&Dataplane, String> {
    context.dataplane.as_ref().ok_or_else(|| "services are not translated by this agent".to_owned())
}

fn services(dataplane: &Dataplane) -> Vec<Frontend> {
    let mut all = dataplane.with(|dataplane| dataplane.list());
    all.sort_by_key(|(frontend, _)| *frontend);
    let shown = |(frontend, target): (dataplane::Frontend, dataplane::Target)| Frontend {
        address: std::net::SocketAddr::new(frontend.address, frontend.port).to_string(),
        protocol: match frontend.protocol {
            dataplane::Protocol::Tcp => "TCP".to_owned(),
            dataplane::Protocol::Udp => "UDP".to_owned(),
            dataplane::Protocol::Sctp => "SCTP".to_owned(),
        },
        endpoints: shares(&target.inside),
        outside: (target.outside != target.inside).then(|| shares(&target.outside)),
        affinity_seconds: target.affinity_seconds,
        scheduler: scheduler(target.scheduler),
        sources: target.sources.map(|ranges| ranges.iter().map(ToString::to_string).collect()),
    };
    all.into_iter().map(shown).collect()
}

/// Each endpoint once, and how many shares of the new connections it has, if those are several. `endpoints` are sorted.
fn shares(endpoints: &[std::net::SocketAddr]) -> Vec<String> {
    let same = endpoints.chunk_by(|one, next| one == next);
    let shown = same.filter_map(|all| match all {
        [one] => Some(one.to_string()),
        [one, ..] => Some(format!("{one} x{}", all.len())),
        [] => None,
    });
    shown.collect()
}

/// As the annotation names it; `wrr` is `rr` with shares.
fn scheduler(scheduler: dataplane::Scheduler) -> Option<&'static str> {
    match scheduler {
        dataplane::Scheduler::Random => None,
        dataplane::Scheduler::RoundRobin => Some("rr"),
        dataplane::Scheduler::LeastConnection => Some("lc"),
        dataplane::Scheduler::SourceHash => Some("sh"),
        dataplane::Scheduler::Maglev => Some("mh"),
    }
}

/// Asks the agent that listens on `socket`, from a program without an asynchronous runtime.
pub fn ask(socket: &Path, question: Question) -> Result<Value, AskError> {
    use std::io::{Read, Write};
    let failed = |operation| move |source| AskError::Io { operation, path: socket.to_owned(), source };
    let mut stream =
        std::os::unix::net::UnixStream::connect(socket).map_err(failed("connect to the agent at"))?;
    let line = format!("{}\n", question.as_str());
    stream.write_all(line.as_bytes()).map_err(failed("ask the agent at"))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed("read the answer of the agent at"))?;
    let mut document: Value = serde_json::from_str(&text).map_err(|source| AskError::Malformed { source })?;
    match document.get_mut("ok") {
        Some(value) => Ok(value.take()),
        None => Err(AskError::Refused { reason: document["error"].as_str().unwrap_or_default().to_owned() }),
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("{operation} {path}: is orlop-agent running on this node?")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the agent's answer is not JSON")]
    Malformed { source: serde_json::Error },
    #[error("{reason}")]
    Refused { reason: String },
}

#[cfg(test)]
mod tests {
    use super::Question;

    #[test]
    fn every_question_has_a_name_of_its_own() {
        for (question, name) in Question::ALL {
            assert_eq!((question.as_str(), Question::parse(name)), (name, Some(question)));
        }
        assert_eq!(Question::parse("secrets"), None);
    }
}
