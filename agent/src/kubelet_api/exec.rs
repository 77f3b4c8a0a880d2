//! Processes in containers, with their streams on a WebSocket.
//!
//! In: a request for a container and a command (or for the container's own process). Out: output frames, at last the status
//! frame with the exit code. Every buffer is bounded and every step waits for the next one, so that a slow client slows the
//! process down and nothing else.
//!
//! ```text
//! Streaming --process ended, output read to its end--> Ending --status and close frame sent--> done
//! Streaming --client closed or went away, its input written--> done (the streams are dropped; a terminal hangs up)
//! ```

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::future::FusedFuture;
use futures::{FutureExt, Stream, StreamExt};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use runtime::{ExecConfig, ExecSession, ReadStream, Resizer};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use super::Context;
use super::answer::{Answer, not_found, text};
use super::channels::{self, Ending, Input, Protocol};
use super::frames;
use super::query::{self, StreamOptions};
use super::route::Target;
use super::websocket::{self, Receiver, Socket};
use crate::api::chain;
use crate::pods::ContainerRef;

#[cfg(test)]
mod tests;

/// Frames that wait for the client.
const QUEUE_FRAMES: usize = 4;
/// Pieces of input that wait for the process: while they fit, the client's other frames are seen.
const QUEUE_INPUTS: usize = 16;
/// How long a process may take to read what a client sent before it went away.
const INPUT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last frames may take to reach a client.
const ENDING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to answer the close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a command in a container.
pub fn exec(context: Context, target: &Target, request: Request<Incoming>) -> Answer {
    let options = match query::stream_options(request.uri().query().unwrap_or_default()) {
        Ok(options) => options,
        Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
    };
    if options.command.is_empty() {
        return text(StatusCode::BAD_REQUEST, "you must specify at least one command for the container");
    }
    let container = match running_container(&context, target) {
        Ok(container) => container,
        Err(answer) => return *answer,
    };
    websocket::upgrade(request, channels::PROTOCOLS, move |socket, protocol| async move {
        let StreamOptions { command, stdin, stdout, stderr, tty } = options.clone();
        let session = context.runtime.exec(&container.id, ExecConfig { command, stdin, stdout, stderr, tty });
        serve(socket, protocol, &options, session).await;
    })
}

/// Connects to the streams of a container's own process.
pub fn attach(context: Context, target: &Target, request: Request<Incoming>) -> Answer {
    let mut options = match query::stream_options(request.uri().query().unwrap_or_default()) {
        Ok(options) => options,
        Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let container = match running_container(&context, target) {
        Ok(container) => container,
        Err(answer) => return *answer,
    };
    if options.tty && !container.tty {
        let message = format!("container {} does not have a terminal", container.name);
        return text(StatusCode::BAD_REQUEST, message);
    }
    // A container without an open stdin has nothing that input could go to.
    options.stdin &= container.stdin;
    websocket::upgrade(request, channels::PROTOCOLS, move |socket, protocol| async move {
        let session = context.runtime.attach(&container.id, options.stdin);
        serve(socket, protocol, &options, session).await;
    })
}

fn running_container(context: &Context, target: &Target) -> Result<ContainerRef, Box<Answer>> {
    let name = Some(target.container.as_str());
    match context.pods.container(&target.namespace, &target.pod, name, false) {
        Ok(container) if container.running => Ok(container),
        Ok(container) => {
            let message = format!("container {} is not running", container.name);
            Err(Box::new(text(StatusCode::BAD_REQUEST, message)))
        }
        Err(error) => Err(Box::new(not_found(&error))),
    }
}

/// Streams until one side ends.
async fn serve(
    socket: Socket,
    protocol: Protocol,
    options: &StreamOptions,
    session: impl Future<Output = Result<ExecSession, runtime::Error>>,
) {
    let (sink, mut source) = socket.split();
    let (sender, queue) = mpsc::channel(QUEUE_FRAMES);
    let mut writing = pin!(frames::send_all(sink, queue));
    let ending = match session.await {
        Ok(session) => {
            // Dropping an unfinished future drops its streams, which is how the other side learns of the end.
            tokio::select! {
                ending = stream(session, &mut source, protocol, options, &sender) => ending,
                _ = &mut writing => None,
            }
        }
        Err(error) => {
            let reason = format!("error executing command in container: {}", chain(&error));
            Some(Ending::Failed { reason })
        }
    };
    let Some(ending) = ending else { return };
    let last = async move {
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // A client that is gone needs no ending.
        let _gone = sender.send(Message::Binary(ending.encode())).await;
        let _gone = sender.send(Message::Close(Some(close))).await;
    };
    if timeout(ENDING_TIMEOUT, futures::future::join(last, writing)).await.is_err() {
        tracing::debug!("a client did not take the end of its stream in time");
        return;
    }
    // The client answers the close frame when it has read everything before it. Dropping the connection earlier could cost
    // it the status.
    let answered = async { while let Some(Ok(_)) = source.next().await {} };
    if timeout(CLOSE_TIMEOUT, answered).await.is_err() {
        tracing::debug!("a client did not answer the close frame in time");
    }
}

/// Copies both ways. `None`: the client ended it.
async fn stream<'a>(
    mut session: ExecSession,
    source: &mut Receiver,
    protocol: Protocol,
    options: &'a StreamOptions,
    sender: &mpsc::Sender<Message>,
) -> Option<Ending<'a>> {
    let resizer = match session.resizer() {
        Ok(resizer) => resizer,
        Err(error) => return Some(Ending::Failed { reason: chain(&error) }),
    };
    let input = read_frames(source, protocol, session.stdin.take(), resizer);
    let stdout = session.stdout.take().filter(|_| options.stdout);
    let stderr = session.stderr.take().filter(|_| options.stderr);
    let output = async {
        hello(options, sender).await;
        let out = copy_output(stdout, channels::STDOUT, sender);
        let err = copy_output(stderr, channels::STDERR, sender);
        futures::future::join(out, err).await;
        match session.wait().await {
            Ok(code) => Ending::Exited { command: &options.command, code },
            Err(error) => Ending::Failed { reason: chain(&error) },
        }
    };
    tokio::select! {
        ending = output => Some(ending),
        () = input => None,
    }
}

/// An empty frame tells clients that the stream stands.
async fn hello(options: &StreamOptions, sender: &mpsc::Sender<Message>) {
    let channel = match (options.stdout, options.stderr) {
        (true, _) => channels::STDOUT,
        (false, true) => channels::STDERR,
        (false, false) => channels::STATUS,
    };
    let _gone = sender.send(Message::Binary(channels::encode(channel, &[]))).await;
}

async fn copy_output(stream: Option<ReadStream>, channel: u8, sender: &mpsc::Sender<Message>) {
    if let Some(stream) = stream {
        frames::copy_stream(stream, |data| channels::encode(channel, data), sender).await;
    }
}

/// Returns when the client has closed the connection or is gone, and what it sent before is written. Beside the frames, input
/// is written: a process that does not read holds back input and, before the queue is full, neither the news of the client's
/// end nor a new size.
async fn read_frames(
    source: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
    protocol: Protocol,
    stdin: Option<impl AsyncWrite + Unpin>,
    resizer: Option<Resizer>,
) {
    let (queue, inputs) = mpsc::channel(QUEUE_INPUTS);
    let queue = stdin.is_some().then_some(queue);
    let mut writing = pin!(write_inputs(stdin, inputs).fuse());
    let mut reading = pin!(take_frames(source, protocol, queue, resizer));
    loop {
        tokio::select! {
            () = &mut reading => break,
            // The process closed its stdin, or the client did; output goes on.
            () = &mut writing, if !writing.is_terminated() => {}
        }
    }
    if !writing.is_terminated() && timeout(INPUT_TIMEOUT, writing).await.is_err() {
        tracing::debug!("a process did not read the input of a client that is gone");
    }
}

async fn write_inputs(stdin: Option<impl AsyncWrite + Unpin>, mut inputs: mpsc::Receiver<Bytes>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(data) = inputs.recv().await {
        if let Err(error) = stdin.write_all(&data).await {
            return tracing::debug!(%error, "write a process's input");
        }
    }
}

async fn take_frames(
    source: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
    protocol: Protocol,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    resizer: Option<Resizer>,
) {
    while let Some(data) = frames::next_binary(source).await {
        match channels::decode(protocol, data) {
            Input::Data { channel: channels::STDIN, data } => {
                if let Some(open) = &stdin
                    && open.send(data).await.is_err()
                {
                    stdin = None;
                }
            }
            Input::Data { channel: channels::RESIZE, data } => resize(resizer.as_ref(), &data),
            Input::Closed { channel: channels::STDIN } => stdin = None,
            Input::Data { .. } | Input::Resize(_) | Input::Closed { .. } | Input::Nothing => {}
        }
    }
}

fn resize(resizer: Option<&Resizer>, data: &[u8]) {
    let (Some(resizer), Input::Resize(size)) = (resizer, channels::decode_size(data)) else { return };
    if let Err(error) = resizer.resize(size.width, size.height) {
        tracing::debug!(error = chain(&error), "resize a terminal");
    }
}
