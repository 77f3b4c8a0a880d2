//! Connections: TLS with optional client certificates, HTTP/1.1 and h2, draining at the end.
//!
//! Input: a listener and the TLS configuration. A connection that fails its handshake in time is closed. At shutdown
//! no new connection is accepted, open ones finish their requests; watches and streams are cut after a grace period.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::places::{self, Place, Places};
use crate::api::Api;
use crate::auth::User;
use crate::pki::{Credentials, PkiError};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the first request, and until the next one of a connection that waits for it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Open connections, and streams that upgrades made of them, at most; the next one waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// Streams of one h2 connection, at most (upstream's limit).
const MAX_STREAMS: u32 = 250;
/// A peer that vanished without a word is noticed after these two.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const DRAIN: Duration = Duration::from_secs(2);
/// After an error of accept (no file descriptors, for example).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("configure TLS")]
    Rustls { source: rustls::Error },
    #[error("configure TLS: client certificates: {reason}")]
    Verifier { reason: String },
    #[error(transparent)]
    Pki(#[from] PkiError),
}

fn roots(ca: &str) -> Result<RootCertStore, TlsError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|error| TlsError::Verifier { reason: error.to_string() })?;
        store.add(certificate).map_err(|source| TlsError::Rustls { source })?;
    }
    Ok(store)
}

/// The server's TLS: its certificate, and client certificates of the CA, which a client may leave out.
pub fn server_config(credentials: &Credentials, ca: &str) -> Result<rustls::ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Verifier { reason: error.to_string() })?;
    let (chain, key) = credentials.der()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
        .map_err(|source| TlsError::Rustls { source })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The server's TLS towards kubelets.
pub fn client_config(credentials: &Credentials, ca: &str) -> Result<rustls::ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (chain, key) = credentials.der()?;
    let roots = roots(ca)?;
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
        .map_err(|source| TlsError::Rustls { source })
}

/// Serves until `stop` is cancelled.
pub async fn serve(listener: TcpListener, tls: rustls::ServerConfig, api: Arc<Api>, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Places::new(MAX_CONNECTIONS);
    while let Some(accepted) = next(&listener, &places, &stop).await {
        match accepted {
            Ok((stream, peer, place)) => {
                let client = Client { stream, peer, place: place.clone() };
                let connection = connection(client, acceptor.clone(), api.clone(), stop.clone());
                tokio::spawn(async move {
                    // What is cut is dropped; a write that the store has got is done all the same.
                    tokio::select! {
                        () = connection => {}
                        () = place.cut() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    places.drain(DRAIN).await;
}

/// The next connection, once there is a place for it; none at the end.
async fn next(listener: &TcpListener, places: &Places, stop: &CancellationToken) -> Option<Accepted> {
    // Both may be dropped: see `accept`, and the token keeps its state.
    tokio::select! {
        accepted = places.accept(listener) => Some(accepted),
        () = stop.cancelled() => None,
    }
}

type Accepted = std::io::Result<(TcpStream, SocketAddr, Place)>;

struct Client {
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
}

async fn connection(client: Client, acceptor: TlsAcceptor, api: Arc<Api>, stop: CancellationToken) {
    let Client { stream, peer, place } = client;
    if let Err(error) = stream.set_nodelay(true).and_then(|()| places::keep_alive(&stream)) {
        tracing::debug!(%peer, %error, "set socket options");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(|first| User::from_certificate(first));
    let user = user.map(Arc::new);
    let asked = CancellationToken::new();
    let first = asked.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (api, user) = (api.clone(), user.clone());
        first.cancel();
        request.extensions_mut().insert(place.clone());
        async move { Ok::<_, std::convert::Infallible>(super::handle(api, user, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    http2.keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = silence(&asked, HEADER_TIMEOUT) => {
            tracing::debug!(%peer, "a connection without a request is closed");
            return;
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, error = %error, "connection ended");
    }
}

/// Ends when nothing was asked in time: until it knows which protocol a client speaks, hyper waits without any limit.
async fn silence(asked: &CancellationToken, limit: Duration) {
    if tokio::time::timeout(limit, asked.cancelled()).await.is_ok() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    //! The end of the accept loop, and of a connection that asks nothing.

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_full_server_stops() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (places, stop) = (Places::new(0), CancellationToken::new());
        assert!(next(&listener, &places, &stop).now_or_never().is_none(), "no place");
        stop.cancel();
        assert!(matches!(next(&listener, &places, &stop).now_or_never(), Some(None)));
    }

    #[tokio::test]
    async fn silence_ends_only_when_nothing_is_asked() {
        let (asked, limit) = (CancellationToken::new(), Duration::from_millis(5));
        silence(&asked, limit).await;
        asked.cancel();
        assert!(tokio::time::timeout(4 * limit, silence(&asked, limit)).await.is_err());
    }
}
