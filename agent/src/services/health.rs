//! Health check ports: what a load balancer asks a node before it sends the traffic of a Service with a Local policy there.
//!
//! In: which Services have such a port, how many endpoints on this node are ready, and whether the dataplane follows. Out: HTTP on that port of every
//! address, in kube-proxy's words: 200 while there is such an endpoint and it does, 503 otherwise. Decides nothing: `plan` counts, `progress` knows.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::{HeaderValue, StatusCode};
use nix::sys::socket::Shutdown;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::Progress;
use super::plan::{HealthCheck, Key};
use crate::plain_http::{self, Answer};

#[cfg(test)]
mod tests;

/// By which load balancers share out traffic among nodes.
const ENDPOINT_WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// The ports that are open. Dropped, they are closed.
pub struct Servers {
    address: IpAddr,
    progress: Progress,
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
    fn new(address: IpAddr, progress: Progress) -> Self {
        Self { address, progress, open: HashMap::new() }
    }

    /// At every address of the node, of IPv6 too where the kernel has that.
    pub fn everywhere(progress: Progress) -> Self {
        let has_ipv6 = Socket::new(Domain::IPV6, Type::STREAM, None).is_ok();
        let every = if has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Self::new(every, progress)
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
        let listener = Arc::new(plain_http::listen(SocketAddr::new(self.address, port))?);
        let endpoints = Arc::new(AtomicUsize::new(local_endpoints));
        let page =
            Page { service: service.clone(), endpoints: endpoints.clone(), progress: self.progress.clone() };
        let serving = tokio::spawn(accept(listener.clone(), Arc::new(page)));
        let open = Open { port, listener, endpoints, _serving: AbortOnDropHandle::new(serving) };
        self.open.insert(service.clone(), open);
        Ok(())
    }
}

/// What one port answers with.
struct Page {
    service: Key,
    endpoints: Arc<AtomicUsize>,
    progress: Progress,
}

/// Runs until it is aborted, and its connections with it.
async fn accept(listener: Arc<TcpListener>, page: Arc<Page>) {
    plain_http::serve(&listener, move |_path| page.answer(Instant::now())).await;
}

impl Page {
    fn answer(&self, now: Instant) -> Answer {
        let Key { namespace, name } = &self.service;
        let local_endpoints = self.endpoints.load(Ordering::Relaxed);
        let is_healthy = self.progress.health(now).is_healthy;
        let body = json!({
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": local_endpoints,
            "serviceProxyHealthy": is_healthy,
        });
        let takes = is_healthy && local_endpoints > 0;
        let status = if takes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut response = plain_http::answer(status, "application/json", body.to_string());
        response.headers_mut().insert(ENDPOINT_WEIGHT, HeaderValue::from(local_endpoints));
        response
    }
}
