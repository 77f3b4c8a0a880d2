//! Small servers of HTTP/1.1 without TLS: what load balancers, probes and scrapers ask.
//!
//! In: a listening socket, and a function from a request's path to its answer. Out: answers, on [`MAX_CONNECTIONS`] connections at a
//! time, none of which lasts longer than [`CONNECTION_LIMIT`]. Reads no bodies and keeps nothing.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections to one port at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How many wait there.
const BACKLOG: i32 = 128;
/// How long a connection may last: a check is one request.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors), so that it is not tried in a tight loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub type Answer = Response<Full<Bytes>>;

/// What is to be taken for what it says it is.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The unspecified address of IPv6 takes connections of IPv4 too.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Answers each path until it is dropped, and its connections with it.
pub async fn serve<F>(listener: &TcpListener, respond: F)
where
    F: Fn(&str) -> Answer + Clone + Send + Sync + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(timeout(CONNECTION_LIMIT, talk(stream, respond.clone())));
            }
            Err(error) => {
                tracing::warn!(address = ?listener.local_addr(), %error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn talk(stream: TcpStream, respond: impl Fn(&str) -> Answer) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let response = respond(request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended");
    }
}
