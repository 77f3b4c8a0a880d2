//! The server side of TLS: certificate, key, and who may sign clients.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::Error;
use crate::settings::Settings;

/// TLS 1.2 and 1.3 with a client certificate required.
pub fn config(settings: &Settings) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client CA", &settings.client_ca_file)? {
        roots.add(certificate).map_err(|error| pem("client CA", &settings.client_ca_file, &error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Error::Verifier { reason: error.to_string() })?;
    let chain = certificates("serving certificate", &settings.tls_cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&settings.tls_private_key_file)
        .map_err(|error| pem("private key", &settings.tls_private_key_file, &error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(Error::Tls)?;
    // Upgrades to WebSocket need HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| pem(what, path, &error))?.collect();
    let all = all.map_err(|error| pem(what, path, &error))?;
    if all.is_empty() {
        return Err(pem(what, path, &"there is no certificate in it"));
    }
    Ok(all)
}

fn pem(what: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::Pem { what, path: path.to_owned(), reason: reason.to_string() }
}
