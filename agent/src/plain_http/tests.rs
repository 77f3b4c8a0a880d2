use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// No timer of the server's gets this far.
const NEVER: Duration = Duration::from_secs(3600);
/// What an answer may take on a machine that is busy with other things.
const DEADLINE: Duration = Duration::from_secs(10);

/// A server until the handle is dropped, and its address.
fn start(limits: Limits) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let respond = |path: &str| answer(StatusCode::OK, "text/plain", path.to_owned());
    let server = async move { serve_within(limits, &listener, respond).await };
    (address, AbortOnDropHandle::new(tokio::spawn(server)))
}

/// All that comes until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut text)).await.expect("closed").unwrap();
    String::from_utf8(text).unwrap()
}

async fn ask(address: SocketAddr) -> String {
    let mut stream = timeout(DEADLINE, TcpStream::connect(address)).await.expect("connected").unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
    rest(&mut stream).await
}

#[tokio::test]
async fn probes_are_answered_while_silent_connections_are_held_and_renewed() {
    let limits = Limits { asking: NEVER, connection: NEVER, ..LIMITS };
    let (address, _server) = start(limits);
    let mut silent = Vec::new();
    for _ in 0..3 {
        for _ in 0..limits.connections + 1 {
            silent.push(timeout(DEADLINE, TcpStream::connect(address)).await.expect("connected").unwrap());
        }
        let answered = ask(address).await;
        assert!(answered.starts_with("HTTP/1.1 200 ") && answered.ends_with("/livez"), "{answered}");
    }
    // No more than the limit are kept, and those are the newest.
    let oldest = silent.len() - limits.connections;
    for stream in &mut silent[..oldest] {
        assert_eq!(rest(stream).await, "");
    }
    let newest = silent.last_mut().unwrap();
    newest.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
    assert!(rest(newest).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn who_asks_nothing_is_cut_off() {
    let (address, _server) = start(Limits { asking: Duration::from_millis(1), connection: NEVER, ..LIMITS });
    for begun in ["", "GET /livez HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        assert_eq!(rest(&mut stream).await, "", "{begun:?}");
    }
}
