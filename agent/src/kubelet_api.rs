//! The kubelet's HTTPS API: what the API server asks this node for logs, exec, attach, port forwarding and figures.
//!
//! In: TLS connections on the node's address and on the loopback. Out: answers in the kubelet's words. Every caller shows a
//! client certificate of the configured authority; only the API server's identity and `system:masters` may go on. Streams
//! come over WebSockets only (SPDY for port forwarding inside of one): plain SPDY is refused with a sentence. Holds no state: pods and containers are asked of their owners.

mod answer;
mod channels;
mod exec;
mod frames;
mod handler;
mod identity;
mod log_format;
mod log_stream;
mod metrics;
mod place;
mod port_forward;
mod query;
mod route;
mod spdy;
mod stats;
mod tls;
mod tunnel;
mod websocket;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::chain;
use crate::events::Recorder;
use crate::metrics::Metrics;
use crate::pods;
use crate::services::{Dataplane, Directory};
use crate::settings::Settings;
use identity::Caller;

pub use metrics::{
    CONTENT_TYPE as METRICS_CONTENT_TYPE, DATAPLANE_COUNTERS, build as register_build,
    dropped_events as register_dropped_events, register_dataplane,
};

/// Connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;
/// A client that does not finish its handshake or its headers in this time is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open connections may go on when the agent ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept (out of descriptors), so that it is not tried in a tight loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What requests are answered from. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub settings: Arc<Settings>,
    pub runtime: runtime::Runtime,
    pub pods: pods::Handle,
    /// For the count of Events that were dropped.
    pub recorder: Recorder,
    pub dataplane: Option<Dataplane>,
    pub directory: Directory,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
}

/// Why the API does not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {what} {path}: {reason}")]
    Pem { what: &'static str, path: PathBuf, reason: String },
    #[error("prepare TLS of the kubelet API")]
    Tls(#[source] rustls::Error),
    #[error("prepare the check of client certificates: {reason}")]
    Verifier { reason: String },
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// Bound sockets that nobody answers yet.
pub struct Server {
    context: Context,
    acceptor: TlsAcceptor,
    listeners: Vec<TcpListener>,
}

impl Server {
    /// Reads certificates and binds the ports.
    pub async fn bind(context: Context) -> Result<Self, Error> {
        let acceptor = TlsAcceptor::from(tls::config(&context.settings)?);
        let port = context.settings.port;
        let mut listeners = Vec::new();
        for ip in [context.settings.node_ips.v4, Ipv4Addr::LOCALHOST] {
            let address = SocketAddr::new(IpAddr::V4(ip), port);
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|source| Error::Listen { address, source })?);
        }
        Ok(Self { context, acceptor, listeners })
    }

    /// Answers until shutdown, then lets open connections end for a short while.
    pub async fn run(self) {
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let shutdown = self.context.shutdown.clone();
        let accepting = self.listeners.into_iter().map(|listener| {
            accept(listener, self.acceptor.clone(), self.context.clone(), slots.clone(), connections.clone())
        });
        // Cancel-safe: a connection is taken and handed over in one step.
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = futures::future::join_all(accepting) => {}
        }
        connections.close();
        if timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::info!(open = connections.len(), "closing connections of the kubelet API");
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    context: Context,
    slots: Arc<Semaphore>,
    connections: TaskTracker,
) {
    loop {
        // The semaphore is never closed, so there is always a permit in the end.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let served = serve(stream, peer, acceptor.clone(), context.clone());
                connections.spawn(async move {
                    served.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection of the kubelet API");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, context: Context) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "set TCP_NODELAY");
    }
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_elapsed) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let caller = Arc::new(Caller::of_certificates(stream.get_ref().1.peer_certificates()));
    let service = service_fn(move |request| {
        let (context, caller) = (context.clone(), caller.clone());
        async move { Ok::<_, Infallible>(handler::answer(context, &caller, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%peer, error = chain(&error), "connection of the kubelet API ended");
    }
}
