use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::*;

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
        let Some(Message::Binary(bytes)) = self.queue.recv().await else { panic!("no frame") };
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
    client.data(5, b"early ").await;
    client.open(7, wish("error", port, "1")).await;
    client.accepted().await;
    let (mut second, _) = listener.accept().await.expect("the second connection");
    client.data(3, b"one").await;
    client.data(5, b"two").await;
    let mut read = [0; 9];
    first.read_exact(&mut read[..3]).await.expect("its input");
    assert_eq!(&read[..3], b"one");
    second.read_exact(&mut read).await.expect("its input");
    assert_eq!(&read, b"early two");
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
    // More than is kept for a stream whose other half is missing.
    for _ in 0..=QUEUE_PIECES {
        client.data(21, b"x").await;
    }
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
