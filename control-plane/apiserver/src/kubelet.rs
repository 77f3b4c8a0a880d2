//! The way to a node's kubelet API: logs, exec, attach, port forwarding.
//!
//! Input: a request for a kubelet. Output: the kubelet's answer, whatever it is; an upgraded connection is passed through as
//! raw bytes in both directions. The server shows its own client certificate and checks the kubelet's against the CA.
//! Refuses to read answers.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::Body;
use crate::http::places::{self, Upgrade};
use crate::object::{items, text};

/// How long a kubelet may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_KUBELET_PORT: u64 = 10250;

/// Connects to kubelets.
#[derive(Clone)]
pub struct KubeletClient {
    tls: Arc<rustls::ClientConfig>,
}

/// Where a kubelet listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletAddress {
    pub host: String,
    pub port: u16,
}

impl KubeletAddress {
    /// From a Node: the InternalIP (else ExternalIP, Hostname) and the port of its kubelet endpoint.
    pub fn of(node: &Value) -> Option<Self> {
        let addresses = items(node, "/status/addresses");
        let by_kind = |kind: &str| addresses.iter().find(|address| address["type"] == kind);
        let found = ["InternalIP", "ExternalIP", "Hostname"].into_iter().find_map(by_kind)?;
        let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
        let port = port.filter(|port| *port != 0).unwrap_or(DEFAULT_KUBELET_PORT);
        Some(KubeletAddress { host: text(found, "/address").to_owned(), port: u16::try_from(port).ok()? })
    }
}

impl fmt::Display for KubeletAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An IPv6 address stands in brackets before a port.
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a kubelet did not answer. The texts are those that upstream's clients see.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error("dial tcp {address}: connect: {}", errno_text(source))]
    Connect { address: KubeletAddress, source: io::Error },
    #[error("dial tcp {address}: i/o timeout")]
    Timeout { address: KubeletAddress },
    #[error("tls: {reason}")]
    Tls { reason: String },
    #[error("{reason}")]
    Request { reason: String },
}

/// "connection refused", as C and Go say it, without the number that Rust adds.
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// What to ask a kubelet.
pub struct KubeletRequest<'a> {
    pub address: KubeletAddress,
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: &'a HeaderMap,
    pub body: Incoming,
    /// The client's connection, when it asked to change protocols.
    pub upgrade: Option<Upgrade>,
}

/// Headers that belong to one connection or that a kubelet must not see.
const DROPPED: &[header::HeaderName] = &[header::HOST, header::AUTHORIZATION, header::CONTENT_LENGTH];

impl KubeletClient {
    pub fn new(tls: rustls::ClientConfig) -> Self {
        KubeletClient { tls: Arc::new(tls) }
    }

    /// Passes one request through.
    pub async fn proxy(&self, request: KubeletRequest<'_>) -> Result<Response<Body>, KubeletError> {
        let KubeletRequest { address, method, target, headers, body, upgrade } = request;
        let failed = |error: &dyn fmt::Display| KubeletError::Request { reason: error.to_string() };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(&address))
            .await
            .map_err(|_| KubeletError::Timeout { address: address.clone() })??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "kubelet connection ended");
            }
        });
        let mut outgoing = Request::builder().method(method).uri(target);
        if let Some(out) = outgoing.headers_mut() {
            out.extend(
                headers
                    .iter()
                    .filter(|(name, _)| !DROPPED.contains(name))
                    .map(|(n, v)| (n.clone(), v.clone())),
            );
        }
        let outgoing = outgoing.header(header::HOST, address.to_string());
        let outgoing = outgoing.body(body).map_err(|error| failed(&error))?;
        let mut response = sender.send_request(outgoing).await.map_err(|error| failed(&error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = upgrade
        {
            let node = hyper::upgrade::on(&mut response);
            tokio::spawn(join(client, node));
        }
        Ok(response.map(|body| body.map_err(std::io::Error::other).boxed_unsync()))
    }

    async fn connect(
        &self,
        address: &KubeletAddress,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, KubeletError> {
        let refused = |source| KubeletError::Connect { address: address.clone(), source };
        let failed = |error: &dyn fmt::Display| KubeletError::Tls { reason: error.to_string() };
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(refused)?;
        stream.set_nodelay(true).and_then(|()| places::keep_alive(&stream)).map_err(refused)?;
        let name = ServerName::try_from(address.host.clone()).map_err(|error| failed(&error))?;
        TlsConnector::from(self.tls.clone()).connect(name, stream).await.map_err(|error| failed(&error))
    }
}

/// Copies both ways until one side ends, or the server does. The client's place is held until then.
async fn join(client: Upgrade, node: hyper::upgrade::OnUpgrade) {
    let Upgrade { client, place } = client;
    let streams = async {
        let (client, node) = tokio::try_join!(client, node).map_err(std::io::Error::other)?;
        let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
        let result = tokio::io::copy_bidirectional(&mut client, &mut node).await;
        let _ = client.shutdown().await;
        let _ = node.shutdown().await;
        result
    };
    let cut = async {
        match &place {
            Some(place) => place.cut().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = streams => {
            if let Err(error) = result {
                tracing::debug!(%error, "stream ended");
            }
        }
        () = cut => {}
    }
}
