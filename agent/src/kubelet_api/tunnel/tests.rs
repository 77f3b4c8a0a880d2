use std::net::Ipv4Addr;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::*;
use crate::kubelet_api::place::tests::silent_port;

const LIMIT: Duration = Duration::from_secs(5);
const LONG: &[u8] = &[7; spdy::MAX_DATA_BYTES];

/// A session, and what its client reads.
struct Client {
    session: Session,
    queue: mpsc::Receiver<Message>,
    decoder: Decoder,
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn wish(kind: &str, port: u16, request: &str) -> Headers {
    headers(&[("streamtype", kind), ("port", &port.to_string()), ("requestid", request)])
}

impl Client {
    fn new() -> Self {
        let (sender, queue) = mpsc::channel(64);
        Self { session: Session::new(Place::node(), sender), queue, decoder: Decoder::new() }
    }

    async fn open(&mut self, id: u32, headers: Headers) {
        self.session.take(Frame::SynStream { id, fin: false, headers }).await;
    }

    async fn data(&mut self, id: u32, data: &'static [u8]) {
        self.session.take(Frame::Data { id, fin: false, data: Bytes::from_static(data) }).await;
    }

    async fn next(&mut self) -> Frame {
        let frame = timeout(LIMIT, self.queue.recv()).await;
        let Ok(Some(Message::Binary(bytes))) = frame else { panic!("no frame: {frame:?}") };
        self.decoder.push(&bytes);
        self.decoder.next_frame().expect("a good frame").expect("a whole frame")
    }

    /// Reads the answers to two streams that were accepted.
    async fn accepted(&mut self) {
        for _ in 0..2 {
            assert_eq!(self.next().await, Frame::Other { kind: 2 });
        }
    }

    async fn ended(&mut self, ids: &[u32]) {
        for id in ids {
            assert_eq!(self.next().await, Frame::Data { id: *id, fin: true, data: Bytes::new() });
        }
    }
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

#[tokio::test]
async fn two_connections_side_by_side_to_their_ends() {
    let (listener, port) = listener().await;
    let mut client = Client::new();
    // In both orders of the halves.
    client.open(1, wish("error", port, "0")).await;
    client.open(3, wish("data", port, "0")).await;
    client.accepted().await;
    let (mut first, _) = listener.accept().await.expect("the first connection");
    client.open(5, wish("data", port, "1")).await;
    client.open(7, wish("error", port, "1")).await;
    client.accepted().await;
    let (mut second, _) = listener.accept().await.expect("the second connection");
    client.data(3, b"one").await;
    client.data(5, b"two").await;
    let mut read = [0; 3];
    first.read_exact(&mut read).await.expect("its input");
    assert_eq!(&read, b"one");
    second.read_exact(&mut read).await.expect("its input");
    assert_eq!(&read, b"two");
    second.write_all(b"answer").await.expect("its output");
    assert_eq!(client.next().await, Frame::Data { id: 5, fin: false, data: Bytes::from_static(b"answer") });
    // The end of the client's input is passed on, and the output goes on after it.
    client.session.take(Frame::Data { id: 5, fin: true, data: Bytes::new() }).await;
    assert_eq!(second.read(&mut read).await.expect("the end"), 0);
    second.write_all(b"more").await.expect("its output");
    assert_eq!(client.next().await, Frame::Data { id: 5, fin: false, data: Bytes::from_static(b"more") });
    drop(second);
    client.ended(&[7, 5]).await;
    first.write_all(b"still").await.expect("its output");
    assert_eq!(client.next().await, Frame::Data { id: 3, fin: false, data: Bytes::from_static(b"still") });
}

#[tokio::test]
async fn a_port_that_refuses_is_told_on_the_error_stream() {
    let (closed, port) = listener().await;
    drop(closed);
    let mut client = Client::new();
    client.open(1, wish("error", port, "0")).await;
    client.open(3, wish("data", port, "0")).await;
    client.accepted().await;
    let Frame::Data { id: 1, fin: false, data } = client.next().await else { panic!("no reason") };
    let text = String::from_utf8_lossy(&data);
    assert!(text.starts_with(&format!("error forwarding port {port} to pod default/p: ")), "{text}");
    client.ended(&[1, 3]).await;
}

#[tokio::test]
async fn a_reset_stream_ends_its_connection_and_leaves_nothing() {
    let (listener, port) = listener().await;
    let mut client = Client::new();
    client.open(1, wish("error", port, "0")).await;
    client.open(3, wish("data", port, "0")).await;
    client.accepted().await;
    let (mut backend, _) = listener.accept().await.expect("a connection");
    client.session.take(Frame::Reset { id: 3 }).await;
    client.ended(&[1]).await;
    assert!(client.session.connections.join_next().await.is_some_and(|ended| ended.is_err()));
    let end = backend.read(&mut [0; 1]).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(client.session.streams.is_empty() && client.session.halves.is_empty());
}

#[tokio::test]
async fn streams_that_make_no_sense_are_reset() {
    let mut client = Client::new();
    let bad = [
        headers(&[]),
        headers(&[("streamtype", "data"), ("port", "0"), ("requestid", "0")]),
        headers(&[("streamtype", "data"), ("port", "80")]),
        wish("other", 80, "0"),
    ];
    for (id, headers) in (1..).step_by(2).zip(bad) {
        client.open(id, headers).await;
        assert_eq!(client.next().await, Frame::Reset { id });
    }
    client.open(21, wish("data", 80, "9")).await;
    assert_eq!(client.next().await, Frame::Other { kind: 2 });
    // The same half twice, another port, the same stream again.
    for (id, headers) in
        [(23, wish("data", 80, "9")), (25, wish("error", 81, "9")), (21, wish("error", 80, "9"))]
    {
        client.open(id, headers).await;
        assert_eq!(client.next().await, Frame::Reset { id });
    }
    // Data while the other half is missing.
    client.data(21, b"x").await;
    assert_eq!(client.next().await, Frame::Reset { id: 21 });
    assert!(client.session.streams.is_empty() && client.session.waiting.is_empty());
    client.session.take(Frame::Ping { id: 5 }).await;
    assert_eq!(client.next().await, Frame::Ping { id: 5 });
}

#[tokio::test]
async fn streams_are_limited() {
    let mut client = Client::new();
    for index in 0..MAX_STREAMS as u32 {
        client.open(2 * index + 1, wish("error", 80, &index.to_string())).await;
        assert_eq!(client.next().await, Frame::Other { kind: 2 });
    }
    client.open(9_999, wish("error", 80, "x")).await;
    assert_eq!(client.next().await, Frame::Reset { id: 9_999 });
}

#[tokio::test]
async fn what_waits_for_backends_has_one_budget_and_does_not_hold_up_others() {
    let (_full, _first, silent) = silent_port().await;
    let (listener, port) = listener().await;
    let mut client = Client::new();
    for (id, port) in [(1, silent), (5, port)] {
        client.open(id, wish("error", port, &id.to_string())).await;
        client.open(id + 2, wish("data", port, &id.to_string())).await;
        client.accepted().await;
    }
    let (mut backend, _) = listener.accept().await.expect("a connection");
    for _ in 0..8 {
        timeout(LIMIT, client.data(3, &LONG[..LONG.len() / 4])).await.expect("within the budget");
    }
    client.data(7, b"other").await;
    let mut read = [0; 5];
    backend.read_exact(&mut read).await.expect("its input");
    assert_eq!(&read, b"other");
    assert!(client.session.budget.available_permits() < BUDGET_BYTES / 2);
    client.session.take(Frame::Reset { id: 3 }).await;
    client.ended(&[1]).await;
    assert!(client.session.connections.join_next().await.is_some_and(|ended| ended.is_err()));
    // What is written, or dropped with its connection, is given back.
    assert_eq!(client.session.budget.available_permits(), BUDGET_BYTES);
}

#[tokio::test]
async fn the_backend_that_holds_most_of_the_budget_is_given_up() {
    let (_full, _first, silent) = silent_port().await;
    let mut client = Client::new();
    client.session.stall_timeout = Duration::from_millis(1);
    for id in [1, 5] {
        client.open(id, wish("error", silent, &id.to_string())).await;
        client.open(id + 2, wish("data", silent, &id.to_string())).await;
        client.accepted().await;
    }
    client.data(7, LONG).await;
    for _ in 0..3 {
        timeout(LIMIT, client.data(3, LONG)).await.expect("the reader goes on");
    }
    let Frame::Data { id: 1, fin: false, data } = client.next().await else { panic!("no reason") };
    let text = String::from_utf8_lossy(&data);
    assert!(text.ends_with(": the port takes no data"), "{text}");
    client.ended(&[1]).await;
    assert_eq!(client.next().await, Frame::Reset { id: 3 });
    assert!(!client.session.streams.contains_key(&3) && client.session.streams.contains_key(&7));
    client.session.take(Frame::Ping { id: 5 }).await;
    assert_eq!(client.next().await, Frame::Ping { id: 5 });
}

#[tokio::test]
async fn a_stream_whose_other_half_does_not_come_is_ended() {
    let mut client = Client::new();
    client.open(1, wish("error", 80, "0")).await;
    client.open(3, wish("data", 80, "1")).await;
    client.accepted().await;
    let opened = Instant::now();
    client.session.end_overdue(opened).await;
    assert_eq!(client.session.halves.len(), 2);
    client.session.end_overdue(opened + HALF_TIMEOUT).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(client.next().await);
    }
    let data = Bytes::from_static(b"(request=0) timed out waiting for streams");
    for answer in [Frame::Data { id: 1, fin: false, data }, Frame::Reset { id: 1 }, Frame::Reset { id: 3 }] {
        assert!(answers.contains(&answer), "{answer:?} in {answers:?}");
    }
    let Session { streams, halves, waiting, .. } = &client.session;
    assert!(streams.is_empty() && halves.is_empty() && waiting.is_empty());
}
