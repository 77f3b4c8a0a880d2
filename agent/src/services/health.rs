//! Health check ports: what a load balancer asks a node before it sends the traffic of a Service with a Local policy there.
//!
//! In: which Services have such a port, and how many endpoints on this node are ready. Out: HTTP on that port of every address,
//! in kube-proxy's words: 200 while there is such an endpoint, 503 otherwise. Decides nothing: `plan` counts.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderValue, StatusCode};
use nix::sys::socket::Shutdown;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::plan::{HealthCheck, Key};
use crate::plain_http::{self, Answer};

#[cfg(test)]
mod tests;

/// By which load balancers share out traffic among nodes.
const ENDPOINT_WEIGHT: &str = "x-load-balancing-endpoint-weight";

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
        let listener = Arc::new(plain_http::listen(SocketAddr::new(self.address, port))?);
        let endpoints = Arc::new(AtomicUsize::new(local_endpoints));
        let serving = tokio::spawn(accept(listener.clone(), Arc::new(service.clone()), endpoints.clone()));
        let open = Open { port, listener, endpoints, _serving: AbortOnDropHandle::new(serving) };
        self.open.insert(service.clone(), open);
        Ok(())
    }
}

/// Runs until it is aborted, and its connections with it.
async fn accept(listener: Arc<TcpListener>, service: Arc<Key>, endpoints: Arc<AtomicUsize>) {
    plain_http::serve(&listener, move |_path| answer(&service, endpoints.load(Ordering::Relaxed))).await;
}

fn answer(service: &Key, local_endpoints: usize) -> Answer {
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": true,
    });
    let status = if local_endpoints == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let mut response = plain_http::answer(status, "application/json", body.to_string());
    response.headers_mut().insert(ENDPOINT_WEIGHT, HeaderValue::from(local_endpoints));
    response
}
