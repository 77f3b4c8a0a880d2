//! A connection to one shim: calls with their answers, and events.
//!
//! One task reads and one writes, so a caller that gives up never leaves half a frame behind. When the shim goes away every waiting call fails
//! and the events end with [`FromClient::Gone`].

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use shim_protocol::{Answer, Call, FailureKind, FromShim, Hello, Request, ShimEvent, VERSION};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;

/// Calls that wait to be written.
const QUEUE_CALLS: usize = 64;
/// Longest handshake.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
const CHUNK_BYTES: usize = 16 * 1024;

type Reply = Result<(Answer, Vec<OwnedFd>), Error>;

/// What a connection tells its owner.
#[derive(Debug)]
pub(crate) enum FromClient {
    /// An event of the shim.
    Event(ShimEvent),
    /// The shim is gone.
    Gone,
}

struct Waiting {
    reply: oneshot::Sender<Reply>,
    operation: &'static str,
}

struct Frame {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

#[derive(Default)]
struct Pending {
    calls: HashMap<u64, Waiting>,
    gone: bool,
}

/// A connected shim.
pub(crate) struct Client {
    /// The shim's pid.
    pub pid: i32,
    sandbox: String,
    next: AtomicU64,
    pending: Arc<Mutex<Pending>>,
    frames: mpsc::Sender<Frame>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("pid", &self.pid)
            .field("sandbox", &self.sandbox)
            .finish_non_exhaustive()
    }
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Client {
    /// Connects, greets, and starts the two tasks. Events go to `events`, unbounded: they are small, and their reader never waits for a shim.
    pub async fn connect(
        socket: &Path,
        sandbox: &str,
        events: mpsc::UnboundedSender<FromClient>,
    ) -> Result<Arc<Client>, Error> {
        let failed =
            |source| Error::Io { operation: format!("connect to the shim of sandbox \"{sandbox}\""), source };
        let stream = Arc::new(UnixStream::connect(socket).await.map_err(failed)?);
        let ours = Hello { version: VERSION, sandbox: sandbox.into(), pid: std::process::id().cast_signed() };
        let bytes = shim_protocol::encode(&ours).map_err(|error| failed(io::Error::other(error)))?;
        write_frame(&stream, Frame { bytes, fds: Vec::new() }).await.map_err(failed)?;
        let mut reader = Reader { stream: Arc::clone(&stream), buffer: Vec::new(), fds: Vec::new() };
        let theirs: Hello = match tokio::time::timeout(HELLO_LIMIT, reader.next()).await {
            Ok(hello) => hello.map_err(failed)?,
            Err(_) => {
                return Err(Error::Timeout { operation: format!("greet the shim of sandbox \"{sandbox}\"") });
            }
        };
        if theirs.version != VERSION || theirs.sandbox != sandbox {
            let message = format!("it speaks version {} for sandbox \"{}\"", theirs.version, theirs.sandbox);
            return Err(Error::Shim { operation: "greet the shim", message });
        }
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (frames, queue) = mpsc::channel(QUEUE_CALLS);
        tokio::spawn(write_all(Arc::clone(&stream), queue));
        tokio::spawn(read_all(reader, Arc::clone(&pending), sandbox.to_owned(), events));
        Ok(Arc::new(Client {
            pid: theirs.pid,
            sandbox: sandbox.into(),
            next: AtomicU64::new(0),
            pending,
            frames,
        }))
    }

    /// Whether the shim is gone. Says so before the events end.
    pub fn is_gone(&self) -> bool {
        lock(&self.pending).gone
    }

    /// Asks and waits for the answer.
    pub async fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Reply {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let operation = describe(&request);
        let gone = || Error::ShimGone { sandbox: self.sandbox.clone() };
        let bytes = shim_protocol::encode(&Call { id, request })
            .map_err(|error| Error::Shim { operation, message: error.to_string() })?;
        let (reply, answer) = oneshot::channel();
        {
            let mut pending = lock(&self.pending);
            if pending.gone {
                return Err(gone());
            }
            pending.calls.insert(id, Waiting { reply, operation });
        }
        if self.frames.send(Frame { bytes, fds }).await.is_err() {
            lock(&self.pending).calls.remove(&id);
            return Err(gone());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// What an error says was tried.
fn describe(request: &Request) -> &'static str {
    match request {
        Request::List => "list containers",
        Request::Start(_) => "start container",
        Request::Signal { .. } => "signal container",
        Request::Delete { .. } => "delete container",
        Request::Exec(_) => "exec in container",
        Request::SignalExec { .. } => "signal exec",
        Request::Attach { .. } => "attach to container",
        Request::ReopenLog { .. } => "reopen container log",
        Request::Shutdown => "stop sandbox",
    }
}

async fn write_all(stream: Arc<UnixStream>, mut queue: mpsc::Receiver<Frame>) {
    while let Some(frame) = queue.recv().await {
        if write_frame(&stream, frame).await.is_err() {
            return;
        }
    }
}

async fn write_frame(stream: &UnixStream, mut frame: Frame) -> io::Result<()> {
    let mut sent = 0;
    while sent < frame.bytes.len() {
        let fds: Vec<_> = frame.fds.iter().map(AsFd::as_fd).collect();
        let part = &frame.bytes[sent..];
        let count = stream
            .async_io(Interest::WRITABLE, || {
                linux::scm::send(stream, part, &fds).map_err(|error| error.source)
            })
            .await?;
        sent += count;
        frame.fds.clear();
    }
    Ok(())
}

struct Reader {
    stream: Arc<UnixStream>,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Reader {
    async fn next<T: serde::de::DeserializeOwned>(&mut self) -> io::Result<T> {
        loop {
            if let Some(message) = shim_protocol::take_frame(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(message);
            }
            let mut chunk = [0_u8; CHUNK_BYTES];
            let (stream, fds) = (&self.stream, &mut self.fds);
            let count = stream
                .async_io(Interest::READABLE, || {
                    linux::scm::receive(stream.as_ref(), &mut chunk, fds).map_err(|error| error.source)
                })
                .await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }
}

async fn read_all(
    mut reader: Reader,
    pending: Arc<Mutex<Pending>>,
    sandbox: String,
    events: mpsc::UnboundedSender<FromClient>,
) {
    while let Ok(message) = reader.next::<FromShim>().await {
        match message {
            FromShim::Event(event) => {
                let _ = events.send(FromClient::Event(event));
            }
            FromShim::Answer { id, result } => {
                let Some(waiting) = lock(&pending).calls.remove(&id) else { continue };
                let reply = result.map_err(|failure| explain(waiting.operation, failure)).map(|answer| {
                    let count = answer.descriptors().min(reader.fds.len());
                    (answer, reader.fds.drain(..count).collect())
                });
                let _ = waiting.reply.send(reply);
            }
        }
    }
    let mut left = lock(&pending);
    left.gone = true;
    for (_, waiting) in left.calls.drain() {
        let _ = waiting.reply.send(Err(Error::ShimGone { sandbox: sandbox.clone() }));
    }
    drop(left);
    let _ = events.send(FromClient::Gone);
}

fn explain(operation: &'static str, failure: shim_protocol::Failure) -> Error {
    match failure.kind {
        FailureKind::Start => Error::Start { message: failure.message },
        FailureKind::NotFound | FailureKind::State | FailureKind::Other => {
            Error::Shim { operation, message: failure.message }
        }
    }
}
