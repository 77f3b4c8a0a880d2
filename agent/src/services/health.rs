//! Health check ports: what a load balancer asks a node before it sends the traffic of a Service with a Local policy there.
//!
//! In: which Services have such a port, and how many endpoints on this node are ready. Out: HTTP on that port of every address,
//! in kube-proxy's words: 200 while there is such an endpoint, 503 otherwise. Decides nothing: `plan` counts.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::Shutdown;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::plan::{HealthCheck, Key};

#[cfg(test)]
mod tests;

/// By which load balancers share out traffic among nodes.
const ENDPOINT_WEIGHT: &str = "x-load-balancing-endpoint-weight";
/// Connections to one port at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How many wait there.
const BACKLOG: i32 = 128;
/// How long a connection may last: a check is one request.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors), so that it is not tried in a tight loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The ports that are open. Dropped, they are closed.
pub struct Servers {
    address: IpAddr,
    open: HashMap<Key, Open>,
}

struct Open {
    port: u16,
    /// Who accepts holds it too, and lets go of it when it is that task's turn.
    listener: Arc<TcpListener>,
    /// Of this node, ready.
    endpoints: Arc<AtomicUsize>,
    _serving: AbortOnDropHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // A socket that listens no more is in nobody's way: the next Service may have the port at once.
        let closed = nix::sys::socket::shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        debug_assert!(closed.is_ok(), "{closed:?}");
    }
}

impl Servers {
    /// `address`: where the ports are opened.
    fn new(address: IpAddr) -> Self {
        Self { address, open: HashMap::new() }
    }

    /// At every address of the node, of IPv6 too where the kernel has that.
    pub fn everywhere() -> Self {
        let has_ipv6 = Socket::new(Domain::IPV6, Type::STREAM, None).is_ok();
        Self::new(if has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() })
    }

    /// Closes the port of a Service that is to have another one or none, so that others may have it.
    pub fn make_way(&mut self, service: &Key, wanted: Option<HealthCheck>) {
        let port = wanted.map(|check| check.port);
        if self.open.get(service).is_some_and(|open| Some(open.port) != port) {
            self.open.remove(service);
        }
    }

    /// Opens, closes or changes what is answered for a Service. After an error its port is closed.
    pub fn set(&mut self, service: &Key, wanted: Option<HealthCheck>) -> io::Result<()> {
        let Some(HealthCheck { port, local_endpoints }) = wanted else {
            self.open.remove(service);
            return Ok(());
        };
        if let Some(open) = self.open.get(service).filter(|open| open.port == port) {
            open.endpoints.store(local_endpoints, Ordering::Relaxed);
            return Ok(());
        }
        self.open.remove(service);
        let listener = Arc::new(listen(SocketAddr::new(self.address, port))?);
        let endpoints = Arc::new(AtomicUsize::new(local_endpoints));
        let serving = tokio::spawn(accept(listener.clone(), Arc::new(service.clone()), endpoints.clone()));
        let open = Open { port, listener, endpoints, _serving: AbortOnDropHandle::new(serving) };
        self.open.insert(service.clone(), open);
        Ok(())
    }
}

/// The unspecified address of IPv6 takes connections of IPv4 too.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
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

/// Runs until it is aborted, and its connections with it.
async fn accept(listener: Arc<TcpListener>, service: Arc<Key>, endpoints: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections
                    .spawn(timeout(CONNECTION_LIMIT, serve(stream, service.clone(), endpoints.clone())));
            }
            Err(error) => {
                tracing::warn!(%service, %error, "accept a connection of a health check port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, service: Arc<Key>, endpoints: Arc<AtomicUsize>) {
    let respond = service_fn(move |_request| {
        let response = answer(&service, endpoints.load(Ordering::Relaxed));
        async move { Ok::<_, Infallible>(response) }
    });
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), respond);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection of a health check port ended");
    }
}

fn answer(service: &Key, local_endpoints: usize) -> Response<Full<Bytes>> {
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(body.to_string().into()));
    if local_endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert(ENDPOINT_WEIGHT, http::HeaderValue::from(local_endpoints));
    headers.insert(X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    response
}
