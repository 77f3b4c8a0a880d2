//! A server to test and a minimal HTTP client: one connection per request.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use apiserver::bootstrap::{self, Options, Running};
use apiserver::http::serve;
use apiserver::pki::{Credentials, Identity};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

pub type Stream = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

pub struct Server {
    pub running: Running,
    pub stop: CancellationToken,
    data_dir: PathBuf,
    _directory: Option<tempfile::TempDir>,
}

/// An answer that was read to its end.
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn reason(&self) -> (u16, &str) {
        (self.code, self.body["reason"].as_str().unwrap_or(""))
    }

    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or("")
    }
}

pub async fn server() -> Server {
    let directory = tempfile::tempdir().unwrap();
    let mut server = server_in(directory.path()).await;
    server._directory = Some(directory);
    server
}

pub fn options_in(data_dir: &Path) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        bind: "127.0.0.1:0".parse().unwrap(),
        advertise: "127.0.0.1".parse().unwrap(),
        extra_names: vec![],
        service_ranges: vec!["10.96.0.0/24".parse().unwrap()],
        node_ports: 30000..=30010,
        tolerations: Default::default(),
    }
}

pub async fn server_in(data_dir: &Path) -> Server {
    let options = options_in(data_dir);
    let stop = CancellationToken::new();
    let running = bootstrap::start(&options, stop.clone()).await.unwrap();
    Server::of(running, stop, data_dir)
}

impl Server {
    pub fn of(running: Running, stop: CancellationToken, data_dir: &Path) -> Self {
        Server { running, stop, data_dir: data_dir.to_owned(), _directory: None }
    }

    pub fn tls(&self, identity: Option<Identity<'_>>) -> rustls::ClientConfig {
        let pki = &self.running.pki;
        let credentials = pki.client(identity.unwrap_or(Identity::Admin)).unwrap();
        if identity.is_some() {
            return serve::client_config(&credentials, pki.ca_certificate()).unwrap();
        }
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pki.ca_certificate().as_bytes()).unwrap()).unwrap();
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    pub async fn connect(&self, identity: Option<Identity<'_>>) -> Stream {
        self.connect_with(self.tls(identity)).await
    }

    async fn connect_with(&self, tls: rustls::ClientConfig) -> Stream {
        let stream = TcpStream::connect(self.running.address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(tls));
        TokioIo::new(connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap())
    }

    /// Sends a request; the body of the answer is still a stream.
    pub async fn open(
        &self,
        identity: Option<Identity<'_>>,
        request: Request<Full<Bytes>>,
    ) -> http::Response<Incoming> {
        exchange(self.connect(identity).await, request).await
    }

    pub async fn send(&self, identity: Option<Identity<'_>>, request: Request<Full<Bytes>>) -> Answer {
        read(self.open(identity, request).await).await
    }

    /// Sends a request as a user whose certificate is made for it.
    pub async fn send_as(&self, user: &User<'_>, request: Request<Full<Bytes>>) -> Answer {
        let ca = self.running.pki.ca_certificate();
        let tls = serve::client_config(&user.certificate(ca, &self.data_dir), ca).unwrap();
        read(exchange(self.connect_with(tls).await, request).await).await
    }

    async fn admin(&self, method: &str, path: &str, media: &str, body: Option<&Value>) -> Answer {
        let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
        self.send(Some(Identity::Admin), request(method, path, media, bytes)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.admin("GET", path, "", None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.admin("POST", path, "application/json", Some(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.admin("PUT", path, "application/json", Some(body)).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        self.admin("PATCH", path, &format!("application/{kind}-patch+json"), Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.admin("DELETE", path, "", None).await
    }
}

async fn exchange(stream: Stream, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

async fn read(response: http::Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

/// A user that is none of the control plane's, in a group or not.
pub struct User<'a> {
    pub name: &'a str,
    pub group: Option<&'a str>,
}

impl User<'_> {
    /// Signed with the key that the server keeps.
    fn certificate(&self, ca: &str, data_dir: &Path) -> Credentials {
        let key = std::fs::read_to_string(data_dir.join("pki/ca.key")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(ca, rcgen::KeyPair::from_pem(&key).unwrap()).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(group) = self.group {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        }
        params.distinguished_name.push(rcgen::DnType::CommonName, self.name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Credentials { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

pub fn request(method: &str, path: &str, media: &str, body: Bytes) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(path).header("host", "localhost");
    if !media.is_empty() {
        builder = builder.header("content-type", media);
    }
    builder.body(Full::new(body)).unwrap()
}
