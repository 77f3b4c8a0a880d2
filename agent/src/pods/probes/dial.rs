//! One question to a container over the network: TCP connect, HTTP GET, gRPC health check.
//!
//! In: an endpoint with its address and port already chosen. Out: an answer, or why there is none, in words. Certificates are not verified,
//! as the kubelet does not; redirects to another host are an answer, not followed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of a body that are read (kubelet: `maxRespBodyLength`).
const BODY_BYTES: usize = 10 * 1024;
/// Redirects that are followed (Go's http client).
const REDIRECTS: usize = 10;

/// Where an HTTP question goes.
#[derive(Clone, Debug)]
pub struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
    path: String,
    headers: HeaderMap,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The beginning of its body.
    pub body: String,
}

impl Endpoint {
    /// Of an httpGet action.
    ///
    /// # Errors
    /// A port name that the container does not have, or no address.
    pub fn http(
        action: &HTTPGetAction,
        container: &Container,
        ip: Option<IpAddr>,
    ) -> Result<Endpoint, String> {
        let mut headers = HeaderMap::new();
        for header in action.http_headers.iter().flatten() {
            if let (Ok(name), Ok(value)) =
                (header.name.parse::<HeaderName>(), HeaderValue::from_str(&header.value))
            {
                headers.append(name, value);
            }
        }
        let path = action.path.clone().unwrap_or_default();
        Ok(Endpoint {
            tls: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: host(action.host.as_deref(), ip)?,
            port: port(&action.port, container)?,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers,
        })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The endpoint that a redirect leads to, when it is on the same host.
    fn redirected(&self, location: &str) -> Option<Endpoint> {
        let uri: Uri = location.parse().ok()?;
        let mut next = self.clone();
        if let Some(host) = uri.host() {
            if host.trim_matches(['[', ']']) != self.host {
                return None;
            }
            next.tls = uri.scheme_str() == Some("https");
            next.port = uri.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
        }
        next.path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
        Some(next)
    }
}

/// Address and port of a tcpSocket action.
///
/// # Errors
/// A port name that the container does not have, or no address.
pub fn tcp_target(
    action: &TCPSocketAction,
    container: &Container,
    ip: Option<IpAddr>,
) -> Result<(String, u16), String> {
    Ok((host(action.host.as_deref(), ip)?, port(&action.port, container)?))
}

fn host(named: Option<&str>, ip: Option<IpAddr>) -> Result<String, String> {
    match named.filter(|host| !host.is_empty()) {
        Some(host) => Ok(host.to_owned()),
        None => ip.map(|ip| ip.to_string()).ok_or_else(|| "the pod has no address".to_owned()),
    }
}

fn port(wanted: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match wanted {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name.as_str()))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    let number = number.ok_or_else(|| {
        let text = match wanted {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(name) => name.clone(),
        };
        format!("couldn't find port: {text} in container {}", container.name)
    })?;
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// Connects.
///
/// # Errors
/// In words.
pub async fn tcp(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    within(timeout, connect(host, port)).await.map(drop)
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| format!("dial tcp {host}:{port}: {error}"))
}

async fn within<T>(timeout: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into()),
    }
}

/// Asks with GET.
///
/// # Errors
/// In words.
pub async fn http(endpoint: &Endpoint, timeout: Duration) -> Result<Answer, String> {
    let url = format!(
        "{}://{}{}",
        if endpoint.tls { "https" } else { "http" },
        endpoint.authority(),
        endpoint.path
    );
    let asked = async {
        let mut endpoint = endpoint.clone();
        for _ in 0..REDIRECTS {
            let (answer, location) = get(&endpoint).await?;
            let next = location.and_then(|location| endpoint.redirected(&location));
            match next {
                Some(next) => endpoint = next,
                None => return Ok(answer),
            }
        }
        Err(format!("stopped after {REDIRECTS} redirects"))
    };
    within(timeout, asked).await.map_err(|error| format!("Get \"{url}\": {error}"))
}

async fn get(endpoint: &Endpoint) -> Result<(Answer, Option<String>), String> {
    let stream = connect(&endpoint.host, endpoint.port).await?;
    if !endpoint.tls {
        return exchange(endpoint, stream).await;
    }
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(tls_config()?);
    exchange(endpoint, connector.connect(name, stream).await.map_err(|error| error.to_string())?).await
}

async fn exchange(
    endpoint: &Endpoint,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(Answer, Option<String>), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let _driver = Driver(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let mut request = Request::builder().method(Method::GET).uri(&endpoint.path);
    if !endpoint.headers.contains_key(http::header::HOST) {
        request = request.header(http::header::HOST, endpoint.authority());
    }
    if !endpoint.headers.contains_key(http::header::USER_AGENT) {
        request = request.header(http::header::USER_AGENT, "kube-probe/1.36");
    }
    if !endpoint.headers.contains_key(http::header::ACCEPT) {
        request = request.header(http::header::ACCEPT, "*/*");
    }
    let mut request = request.body(Full::<Bytes>::new(Bytes::new())).map_err(|error| error.to_string())?;
    request.headers_mut().extend(endpoint.headers.clone());
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let location = (status.is_redirection() && status != StatusCode::NOT_MODIFIED)
        .then(|| response.headers().get(http::header::LOCATION)?.to_str().ok().map(str::to_owned))
        .flatten();
    // A longer body is no failure: its status has been said.
    let body = match Limited::new(response.into_body(), BODY_BYTES).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => String::new(),
    };
    Ok((Answer { status: status.as_u16(), body }, location))
}

/// The task that moves a connection's bytes; it ends with the question.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks `grpc.health.v1.Health/Check` whether a service is SERVING.
///
/// # Errors
/// In words; another status is an error too.
pub async fn grpc(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    within(timeout, check(host, port, service)).await
}

async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let stream = connect(host, port).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let _driver = Driver(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(http::header::USER_AGENT, "kube-probe/1.36")
        .body(Full::new(health_request(service)))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status_of = |headers: &HeaderMap| {
        headers
            .get("grpc-status")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse::<u32>().ok())
    };
    let early = status_of(response.headers());
    let body =
        Limited::new(response.into_body(), BODY_BYTES).collect().await.map_err(|error| error.to_string())?;
    let status = body.trailers().and_then(status_of).or(early).unwrap_or(2);
    if status != 0 {
        return Err(format!("service unhealthy (responded with gRPC status {status})"));
    }
    match health_status(&body.to_bytes()) {
        Some(1) => Ok(()),
        other => {
            let name = match other {
                Some(0) | None => "UNKNOWN",
                Some(2) => "NOT_SERVING",
                Some(3) => "SERVICE_UNKNOWN",
                Some(_) => "unknown",
            };
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
    }
}

/// A gRPC frame with HealthCheckRequest { service = 1 }.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length as u8 & 0x7f) | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// The status in a gRPC frame with HealthCheckResponse { status = 1 }.
pub(super) fn health_status(frame: &[u8]) -> Option<u8> {
    let (header, message) = frame.split_at_checked(5)?;
    if header[0] != 0 {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

/// TLS without verification: a probe asks for an answer, not for an identity.
fn tls_config() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.clone()));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
