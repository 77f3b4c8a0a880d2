//! Small servers of HTTP/1.1 without TLS: what load balancers, probes and scrapers ask.
//!
//! In: a listening socket, and a function from a request's path to its answer. Out: answers, one on each connection, on as many connections
//! at a time as [`LIMITS`] says. Reads no bodies and keeps nothing.
//!
//! Everybody who reaches a node may connect, and none of them may keep a probe from its answer: nobody waits for a connection of somebody
//! else to end. When there are too many, the oldest gives way, whatever it was doing. Who asks at once is answered long before it is that.

use std::collections::VecDeque;
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
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

#[cfg(test)]
mod tests;

const LIMITS: Limits =
    Limits { connections: 64, asking: Duration::from_secs(2), connection: Duration::from_secs(10) };
/// Connections that wait in the kernel's queue until they are accepted, which is soon.
const BACKLOG: i32 = 128;
/// Pause after a failed accept (out of descriptors), so that it is not tried in a tight loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub type Answer = Response<Full<Bytes>>;

/// What one port spends on who connects to it.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// At a time.
    connections: usize,
    /// How long a request may take to come.
    asking: Duration,
    /// How long a connection may last: the answer has to be read, too.
    connection: Duration,
}

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
    serve_within(LIMITS, listener, respond).await;
}

async fn serve_within<F>(limits: Limits, listener: &TcpListener, respond: F)
where
    F: Fn(&str) -> Answer + Clone + Send + Sync + 'static,
{
    // The oldest first.
    let mut connections = VecDeque::with_capacity(limits.connections);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.retain(|connection: &AbortOnDropHandle<_>| !connection.is_finished());
                while connections.len() >= limits.connections {
                    drop(connections.pop_front());
                }
                let talk = talk(stream, limits.asking, respond.clone());
                connections.push_back(AbortOnDropHandle::new(tokio::spawn(timeout(limits.connection, talk))));
                // In a burst too each connection has its turn before others push it out, and who was pushed out is closed.
                yield_now().await;
            }
            Err(error) => {
                tracing::warn!(address = ?listener.local_addr(), %error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One request and its answer.
async fn talk(stream: TcpStream, asking_limit: Duration, respond: impl Fn(&str) -> Answer) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let response = respond(request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(asking_limit)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended");
    }
}
