//! The node's own question desk: a unix socket on which `orlopctl` asks what this agent holds.
//!
//! In: one line per connection, a [`Question`]. Out: one JSON document, `{"ok": …}` or `{"error": "…"}`. Only root can open the socket.
//! Answers are read-only. `question` says what can be asked, `services` answers about Services, `trace` puts a trace into words, `pods` knows
//! this node's pods as clients.

mod pods;
mod question;
mod services;
mod trace;

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use pods::Pods;
pub use question::{Address, Client, Namespace, Question, ServiceName, Unclear};
pub use services::Desk;

use crate::api::chain;
use crate::policies::Guard;
use crate::services::{Dataplane, Directory};

/// How long one conversation may take.
const CONVERSATION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read, bytes: twenty thousand Services with long names take half.
const MAX_ANSWER_BYTES: u64 = 32 << 20;

/// What the answers come from.
#[derive(Clone)]
pub struct Context {
    /// None: somebody else runs the pods.
    pub runtime: Option<runtime::Runtime>,
    pub dataplane: Option<Dataplane>,
    pub directory: Directory,
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

/// Binds the socket. One that an earlier agent left is replaced: there is one agent per state folder.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |operation| move |source| Error { operation, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(failed("remove"))?,
        Ok(_) => {
            let reason = io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there");
            return Err(failed("listen on")(reason));
        }
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
    let mut line = Vec::new();
    // One byte more than is allowed, to tell.
    let limit = question::MAX_BYTES as u64 + 1;
    BufReader::new((&mut stream).take(limit)).read_until(b'\n', &mut line).await?;
    let answer = match Question::parse(line.trim_ascii_end()) {
        Ok(question) => answer(question, context).await,
        Err(reason) => Err(reason),
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
        Question::Images => shown(serde_json::to_value(with_runtime(context)?.list_images())),
        Question::Sandboxes => shown(serde_json::to_value(with_runtime(context)?.list().sandboxes)),
        Question::Containers => shown(serde_json::to_value(with_runtime(context)?.list().containers)),
        Question::Policies => shown(serde_json::to_value(context.policies.list().await?)),
        Question::Counters => {
            let counters = with_dataplane(context)?.with(|dataplane| dataplane.counters());
            let counters = counters.map_err(|error| chain(&error))?;
            let named = crate::kubelet_api::DATAPLANE_COUNTERS.iter().filter_map(|(number, name)| {
                Some(((*name).to_owned(), json!(counters.get(*number as usize)?)))
            });
            Ok(Value::Object(named.collect()))
        }
        Question::Drops => services::drops(with_dataplane(context)?),
        Question::Services { namespace } => look(context, move |desk| desk.list(namespace.as_ref())).await,
        Question::Service { of } => look(context, move |desk| desk.get(&of)).await,
        Question::Backends { of } => look(context, move |desk| desk.backends(of.as_ref())).await,
        Question::Affinity { of } => look(context, move |desk| desk.affinity(of.as_ref())).await,
        Question::Trace { to, from } => look(context, move |desk| desk.trace(&to, &from)).await,
    }
}

/// On a thread that may block: maps are read, and namespaces of pods are looked into.
async fn look(
    context: &Context,
    work: impl FnOnce(&Desk<'_>) -> Result<Value, String> + Send + 'static,
) -> Result<Value, String> {
    let dataplane = with_dataplane(context)?.clone();
    let directory = context.directory.clone();
    let sandboxes = context.runtime.as_ref().map(|runtime| runtime.list().sandboxes);
    let looking = tokio::task::spawn_blocking(move || {
        let pods = Pods::new(sandboxes);
        work(&Desk { directory: &directory, dataplane: &dataplane, pods: &pods })
    });
    looking.await.map_err(|error| error.to_string())?
}

fn with_dataplane(context: &Context) -> Result<&Dataplane, String> {
    context.dataplane.as_ref().ok_or_else(|| {
        "this agent leads no Services (--service-proxy none): ask the one that does, with --socket".to_owned()
    })
}

fn with_runtime(context: &Context) -> Result<&runtime::Runtime, String> {
    let none =
        "this is the service proxy alone: images, sandboxes and containers are the container runtime's";
    context.runtime.as_ref().ok_or_else(|| none.to_owned())
}

/// Asks the agent that listens on `socket`, from a program without an asynchronous runtime.
pub fn ask(socket: &Path, question: &Question) -> Result<Value, AskError> {
    use std::io::{Read, Write};
    let failed = |operation| move |source| AskError::Io { operation, path: socket.to_owned(), source };
    let mut stream =
        std::os::unix::net::UnixStream::connect(socket).map_err(failed("connect to the agent at"))?;
    let mut line = serde_json::to_string(question).map_err(|source| AskError::Malformed { source })?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(failed("ask the agent at"))?;
    let mut text = String::new();
    let whole = stream
        .take(MAX_ANSWER_BYTES)
        .read_to_string(&mut text)
        .map_err(failed("read the answer of the agent at"))?;
    if whole as u64 == MAX_ANSWER_BYTES {
        return Err(AskError::TooLong { limit: MAX_ANSWER_BYTES });
    }
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
    #[error("the agent's answer is longer than {limit} bytes: ask about one namespace or Service")]
    TooLong { limit: u64 },
    #[error("the agent's answer is not JSON")]
    Malformed { source: serde_json::Error },
    #[error("{reason}")]
    Refused { reason: String },
}

#[cfg(test)]
mod tests;
