//! `kubectl port-forward`: SPDY/3.1 inside of a WebSocket, many connections into one pod.
//!
//! In: a socket whose binary messages are the bytes of one SPDY connection, in pieces of any size. Out: a connection into the
//! pod for each pair of streams. A pair has one request id; its error stream carries why the connection failed, its data
//! stream the bytes. One task reads and knows all streams; each connection is a task of its own, and all of them write through
//! one bounded queue. What waits for backends is copied out of the client's messages and counted against one budget of bytes:
//! backends that do not read hold the reader back when the budget is used up, not before, and then only for a time: the one
//! that most of it waits for is given up.
//!
//! ```text
//! SYN_STREAM error, SYN_STREAM data (any order) --both there--> connecting
//!                                               --data before, or no other half in time--> the stream is reset
//! connecting --refused--> reason on the error stream, both streams ended
//! connecting --connected--> copying --backend ended--> both streams ended
//!                                   --client resets the data stream, or is gone--> connection dropped
//!                                   --backend does not read--> reason on the error stream, connection dropped
//! ```

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::frames;
use super::place::Place;
use super::spdy::{self, Decoder, Frame, HeaderWriter, Headers, Reset};
use super::websocket::Socket;

#[cfg(test)]
mod tests;

/// The name of the protocol, as clients offer it.
pub const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Streams of one tunnel; a connection has two.
const MAX_STREAMS: usize = 1024;
/// Frames that wait for the client, over all connections.
const QUEUE_FRAMES: usize = 16;
/// Bytes that wait for all backends of a tunnel. The longest data of a frame fits in several times.
const BUDGET_BYTES: usize = 4 * spdy::MAX_DATA_BYTES;
/// What a piece costs beside its bytes, so that tiny ones cannot fill memory either.
const PIECE_BYTES: usize = 128;
/// How long a stream waits for its other half, as in upstream's kubelet.
const HALF_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the reader waits for room in the budget before it gives the backend up that holds most of it.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client that broke the protocol may take to read the farewell.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Which half of a pair a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Error,
    Data,
}

/// What a SYN_STREAM asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    role: Role,
    port: u16,
    request: String,
}

impl Wish {
    fn of(headers: &Headers) -> Option<Self> {
        let role = match headers.get("streamtype")? {
            "error" => Role::Error,
            "data" => Role::Data,
            _ => return None,
        };
        let port = headers.get("port")?.parse().ok().filter(|port| *port != 0)?;
        Some(Self { role, port, request: headers.get("requestid")?.to_owned() })
    }
}

/// A pair of which one half is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Half {
    role: Role,
    id: u32,
    port: u16,
    deadline: Instant,
}

/// Both streams of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    error: u32,
    data: u32,
    port: u16,
}

/// Data on its way to a backend.
struct Piece {
    data: Bytes,
    /// Given back when the piece is written, or nobody wants it any more.
    _budget: OwnedSemaphorePermit,
    /// The same for the stream's own count.
    _room: OwnedSemaphorePermit,
}

/// What is known of a stream.
struct Stream {
    /// To the backend; `None` on an error stream, and once the client has ended the stream. The budget bounds the queue.
    input: Option<mpsc::UnboundedSender<Piece>>,
    /// How much of the budget the stream does not hold; as large as the budget.
    room: Arc<Semaphore>,
    /// Set once both halves are there.
    connection: Option<Connection>,
}

#[derive(Clone)]
struct Connection {
    pair: Pair,
    task: AbortHandle,
}

struct Session {
    place: Arc<Place>,
    sender: mpsc::Sender<Message>,
    headers: HeaderWriter,
    streams: HashMap<u32, Stream>,
    halves: HashMap<String, Half>,
    /// The backends' ends of data streams whose other half is missing.
    waiting: HashMap<u32, mpsc::UnboundedReceiver<Piece>>,
    budget: Arc<Semaphore>,
    stall_timeout: Duration,
    connections: JoinSet<Pair>,
    last: u32,
}

/// Serves a tunnel until the client is gone or breaks the protocol.
pub async fn serve(socket: Socket, place: Place) {
    let (sink, mut source) = socket.split();
    let (sender, queue) = mpsc::channel(QUEUE_FRAMES);
    let mut session = Session::new(place, sender.clone());
    let mut writing = pin!(frames::send_all(sink, queue));
    let broken = tokio::select! {
        _ = &mut writing => None,
        broken = session.run(&mut source) => broken,
    };
    let Some(error) = broken else { return };
    tracing::debug!(%error, "a port-forward client broke the protocol");
    let farewell = spdy::go_away(session.last);
    // Ends the connections, which hold senders of the queue.
    drop(session);
    let last = async move {
        let _gone = sender.send(Message::Binary(farewell)).await;
        let _gone = sender.send(Message::Close(None)).await;
    };
    if timeout(FAREWELL_TIMEOUT, futures::future::join(last, writing)).await.is_err() {
        tracing::debug!("a port-forward client did not take the end in time");
    }
}

impl Session {
    fn new(place: Place, sender: mpsc::Sender<Message>) -> Self {
        Self {
            place: Arc::new(place),
            sender,
            headers: HeaderWriter::new(),
            streams: HashMap::new(),
            halves: HashMap::new(),
            waiting: HashMap::new(),
            budget: Arc::new(Semaphore::new(BUDGET_BYTES)),
            stall_timeout: STALL_TIMEOUT,
            connections: JoinSet::new(),
            last: 0,
        }
    }

    /// Returns when the client is gone, or with what it did wrong.
    async fn run(&mut self, source: &mut super::websocket::Receiver) -> Option<spdy::Error> {
        let mut decoder = Decoder::new();
        loop {
            let first_deadline = self.halves.values().map(|half| half.deadline).min();
            tokio::select! {
                // Cancel safe: the deadline is known again the next time.
                () = sleep_until(first_deadline.unwrap_or_else(Instant::now)), if first_deadline.is_some() => {
                    self.end_overdue(Instant::now()).await;
                }
                // Cancel safe: see `next_binary`.
                message = frames::next_binary(source) => {
                    decoder.push(&message?);
                    loop {
                        match decoder.next_frame() {
                            Ok(Some(frame)) => self.take(frame).await,
                            Ok(None) => break,
                            Err(error) => return Some(error),
                        }
                    }
                }
                // Cancel safe: a finished task stays in the set until it is taken.
                Some(ended) = self.connections.join_next() => {
                    if let Ok(pair) = ended {
                        self.streams.remove(&pair.error);
                        self.streams.remove(&pair.data);
                    }
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { id, fin, headers } => self.open(id, fin, &headers).await,
            Frame::Data { id, fin, data } => self.pass_on(id, fin, &data).await,
            Frame::Reset { id } => self.drop_stream(id).await,
            Frame::Ping { id } => self.send(spdy::ping(id)).await,
            Frame::GoAway | Frame::Other { .. } => {}
        }
    }

    async fn open(&mut self, id: u32, fin: bool, headers: &Headers) {
        self.last = self.last.max(id);
        if self.streams.contains_key(&id) {
            return self.send(spdy::reset(id, Reset::ProtocolError)).await;
        }
        let Some(wish) = Wish::of(headers) else {
            return self.send(spdy::reset(id, Reset::ProtocolError)).await;
        };
        if self.streams.len() >= MAX_STREAMS {
            tracing::warn!(MAX_STREAMS, "a port-forward client opens too many streams");
            return self.send(spdy::reset(id, Reset::RefusedStream)).await;
        }
        let pair = match pair(&mut self.halves, id, wish.clone()) {
            Ok(pair) => pair,
            Err(()) => return self.send(spdy::reset(id, Reset::ProtocolError)).await,
        };
        let (input, pieces) = mpsc::unbounded_channel();
        if wish.role == Role::Data {
            self.waiting.insert(id, pieces);
        }
        let input = (wish.role == Role::Data && !fin).then_some(input);
        self.streams
            .insert(id, Stream { input, room: Arc::new(Semaphore::new(BUDGET_BYTES)), connection: None });
        let reply = spdy::syn_reply(id, &mut self.headers);
        self.send(reply).await;
        if let Some(pair) = pair {
            self.connect(pair);
        }
    }

    /// Ends the streams whose other half did not come in time.
    async fn end_overdue(&mut self, now: Instant) {
        let overdue: Vec<_> = self.halves.extract_if(|_, half| half.deadline <= now).collect();
        for (request, half) in overdue {
            if half.role == Role::Error {
                let text = format!("(request={request}) timed out waiting for streams");
                self.send(spdy::data(half.id, text.as_bytes())).await;
            }
            self.drop_stream(half.id).await;
            self.send(spdy::reset(half.id, Reset::Cancel)).await;
        }
    }

    fn connect(&mut self, pair: Pair) {
        let Some(pieces) = self.waiting.remove(&pair.data) else { return };
        let (place, sender) = (self.place.clone(), self.sender.clone());
        let task = self.connections.spawn(async move {
            forward(&place, pair, pieces, &sender).await;
            pair
        });
        for id in [pair.error, pair.data] {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.connection = Some(Connection { pair, task: task.clone() });
            }
        }
    }

    async fn pass_on(&mut self, id: u32, fin: bool, data: &[u8]) {
        // A stream that ended on our side may still be on its way here.
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.input.is_some() && !data.is_empty() {
            if stream.connection.is_none() {
                // Nobody would read it before the other half is there; clients open both before they send.
                self.drop_stream(id).await;
                return self.send(spdy::reset(id, Reset::RefusedStream)).await;
            }
            self.queue(id, data).await;
        }
        if fin && let Some(stream) = self.streams.get_mut(&id) {
            // Dropping the sender sends the end of the stream into the pod.
            stream.input = None;
        }
    }

    /// Hands data to a backend once the budget has room for it.
    async fn queue(&mut self, id: u32, data: &[u8]) {
        // The decoder lets no data through that is longer than the budget.
        let cost = (data.len() + PIECE_BYTES) as u32;
        let budget = loop {
            match timeout(self.stall_timeout, self.budget.clone().acquire_many_owned(cost)).await {
                Ok(Ok(budget)) => break budget,
                // Never closed as long as the session lives.
                Ok(Err(_closed)) => return,
                Err(_elapsed) => self.give_up_slowest().await,
            }
        };
        let Some(stream) = self.streams.get(&id) else { return };
        // What the budget has room for, each stream's own count has.
        if let (Some(input), Ok(room)) = (&stream.input, stream.room.clone().try_acquire_many_owned(cost)) {
            // A copy: a slice would keep the whole message that it came in. An error means that the backend takes nothing more.
            let _gone =
                input.send(Piece { data: Bytes::copy_from_slice(data), _budget: budget, _room: room });
        }
    }

    /// Ends the connection that most of the budget waits for.
    async fn give_up_slowest(&mut self) {
        let connected =
            self.streams.values().filter_map(|stream| Some((stream, stream.connection.as_ref()?)));
        let slowest = connected.min_by_key(|(stream, _)| stream.room.available_permits());
        let Some(pair) = slowest.map(|(_, connection)| connection.pair) else { return };
        let error = io::Error::new(io::ErrorKind::TimedOut, "the port takes no data");
        let text = self.place.failure_text(pair.port, &error);
        self.send(spdy::data(pair.error, text.as_bytes())).await;
        self.drop_stream(pair.data).await;
        self.send(spdy::reset(pair.data, Reset::Cancel)).await;
    }

    /// The client wants nothing more of a stream, and so of its connection.
    async fn drop_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        self.waiting.remove(&id);
        self.halves.retain(|_, half| half.id != id);
        let Some(Connection { pair, task }) = stream.connection else { return };
        task.abort();
        self.streams.remove(&pair.data);
        if self.streams.remove(&pair.error).is_some() {
            // The client still waits for what the error stream says.
            self.send(spdy::end(pair.error)).await;
        }
    }

    async fn send(&self, frame: Bytes) {
        // A client that is gone ends the session elsewhere.
        let _gone = self.sender.send(Message::Binary(frame)).await;
    }
}

/// Finds the other half of a stream, or remembers this one. An error is a second half of the same kind, or for another port.
fn pair(halves: &mut HashMap<String, Half>, id: u32, wish: Wish) -> Result<Option<Pair>, ()> {
    let Wish { role, port, request } = wish;
    let Some(half) = halves.get(&request).copied() else {
        halves.insert(request, Half { role, id, port, deadline: Instant::now() + HALF_TIMEOUT });
        return Ok(None);
    };
    if half.role == role || half.port != port {
        return Err(());
    }
    halves.remove(&request);
    let (error, data) = if role == Role::Data { (half.id, id) } else { (id, half.id) };
    Ok(Some(Pair { error, data, port }))
}

/// One connection into the pod, from its beginning to its end.
async fn forward(
    place: &Place,
    pair: Pair,
    pieces: mpsc::UnboundedReceiver<Piece>,
    sender: &mpsc::Sender<Message>,
) {
    let send = async |frame: Bytes| sender.send(Message::Binary(frame)).await.is_ok();
    match place.connect(pair.port).await {
        Ok(stream) => copy(stream, pair.data, pieces, sender).await,
        Err(error) => {
            let text = place.failure_text(pair.port, &error);
            send(spdy::data(pair.error, text.as_bytes())).await;
        }
    }
    // The client reads the error stream to its end before it believes that all went well.
    let _gone = send(spdy::end(pair.error)).await && send(spdy::end(pair.data)).await;
}

/// Copies both ways until the backend has said everything. The client's end is passed on and ends nothing else.
async fn copy(
    stream: TcpStream,
    id: u32,
    pieces: mpsc::UnboundedReceiver<Piece>,
    sender: &mpsc::Sender<Message>,
) {
    let (read, write) = stream.into_split();
    let input = async {
        copy_input(write, pieces).await;
        std::future::pending::<()>().await;
    };
    // Cancel safe: what is left of the input has nobody to read it.
    tokio::select! {
        () = frames::copy_stream(read, |data| spdy::data(id, data), sender) => {}
        () = input => {}
    }
}

async fn copy_input(mut stream: OwnedWriteHalf, mut pieces: mpsc::UnboundedReceiver<Piece>) {
    while let Some(piece) = pieces.recv().await {
        if let Err(error) = stream.write_all(&piece.data).await {
            return tracing::debug!(%error, "write to a forwarded port");
        }
    }
    if let Err(error) = stream.shutdown().await {
        tracing::debug!(%error, "end the input of a forwarded port");
    }
}
