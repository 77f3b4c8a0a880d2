//! The cluster's certificates: one CA, one serving certificate, one client certificate per identity, made once and
//! kept in the data directory.
//!
//! Input: a directory and the names the server answers to. Output: PEM files (mode 0600) and kubeconfig files. A file
//! appears whole or not at all and outlives a power cut, and one lock file orders processes that make them at the same time. A kept
//! certificate is used only while it fits its key, the CA and the names that are wanted. Refuses to replace a CA that is damaged,
//! or missing beside certificates that it signed: that would cut off every node.

mod kubeconfig;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::files::{self, FileError};
pub use kubeconfig::Kubeconfig;

/// Clocks of nodes may be behind ours by this much before they refuse a new certificate.
const CLOCK_SKEW: time::Duration = time::Duration::hours(1);
const CA_LIFETIME: time::Duration = time::Duration::days(3650);
const LEAF_LIFETIME: time::Duration = time::Duration::days(3650);

/// Why a certificate could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("parse {path}: {reason}; move the file away to have a new one made", path = path.display())]
    Parse { path: PathBuf, reason: String },
    #[error("open the certificate authority {path}: {reason}; restore it from a backup, since no node or client knows another one", path = path.display())]
    Authority { path: PathBuf, reason: String },
    #[error("make certificate {name}")]
    Make { name: String, source: rcgen::Error },
    #[error("subject alternative name {value:?}: not a DNS name or an IP address")]
    Name { value: String },
    #[error(
        "server address unknown: start the server once with this data directory, or pass --server https://ADDRESS:PORT"
    )]
    NoServerAddress,
}

/// A certificate chain and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub certificate: String,
    pub key: String,
}

impl Credentials {
    /// The DER forms that rustls takes.
    pub fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let broken = |reason: String| PkiError::Parse { path: PathBuf::from("(in memory)"), reason };
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| broken(error.to_string()))?;
        let key =
            PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| broken(error.to_string()))?;
        Ok((chain, key))
    }
}

/// Who a client certificate is for: organization (groups) and common name (user), as upstream names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity<'a> {
    Admin,
    Scheduler,
    Controllers,
    /// The API server towards the kubelet API of a node.
    ServerToKubelet,
    Node(&'a str),
}

impl Identity<'_> {
    fn subject(self) -> (String, Option<&'static str>) {
        match self {
            Identity::Admin => ("kubernetes-admin".into(), Some("system:masters")),
            Identity::Scheduler => ("system:kube-scheduler".into(), None),
            Identity::Controllers => ("system:kube-controller-manager".into(), None),
            Identity::ServerToKubelet => ("kube-apiserver-kubelet-client".into(), Some("system:masters")),
            Identity::Node(name) => (format!("system:node:{name}"), Some("system:nodes")),
        }
    }

    fn file_stem(self) -> String {
        match self {
            Identity::Admin => "admin".into(),
            Identity::Scheduler => "scheduler".into(),
            Identity::Controllers => "controllers".into(),
            Identity::ServerToKubelet => "kubelet-client".into(),
            Identity::Node(name) => format!("node-{name}"),
        }
    }
}

/// What a leaf certificate says.
struct Leaf<'a> {
    common_name: &'a str,
    organization: Option<&'a str>,
    names: &'a [String],
    usage: ExtendedKeyUsagePurpose,
}

/// The certificate authority of one data directory.
pub struct Pki {
    directory: PathBuf,
    ca_certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Opens `<data_dir>/pki`, making the directory and the CA when they are not there.
    pub fn open(data_dir: &Path) -> Result<Self, PkiError> {
        let directory = data_dir.join("pki");
        files::make_private_directory(&directory)?;
        let _lock = files::lock(&directory)?;
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        // The key is written first: a certificate without its key would be a CA that cannot sign.
        if !certificate_path.exists() {
            if files::any_certificate(&directory)? {
                let reason = "it is missing, and certificates that it signed are here".to_owned();
                return Err(PkiError::Authority { path: certificate_path, reason });
            }
            let ca = make_ca()?;
            files::write_atomically(&key_path, ca.key.as_bytes())?;
            files::write_atomically(&certificate_path, ca.certificate.as_bytes())?;
        }
        let ca_certificate = files::read(&certificate_path)?;
        let key_pem = files::read(&key_path)?;
        let broken = |path: &Path, reason: String| PkiError::Authority { path: path.to_owned(), reason };
        let key = KeyPair::from_pem(&key_pem).map_err(|error| broken(&key_path, error.to_string()))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_certificate, key)
            .map_err(|error| broken(&certificate_path, error.to_string()))?;
        let pki = Pki { directory, ca_certificate, issuer };
        let ca = Credentials { certificate: pki.ca_certificate.clone(), key: key_pem };
        if !pki.fits(&certificate_path, &ca, &[])? {
            let reason = format!("it is not the certificate of {}, or no longer valid", key_path.display());
            return Err(broken(&certificate_path, reason));
        }
        Ok(pki)
    }

    /// The CA's certificate, PEM.
    pub fn ca_certificate(&self) -> &str {
        &self.ca_certificate
    }

    /// The client certificate of `identity`, made at the first call and kept.
    pub fn client(&self, identity: Identity<'_>) -> Result<Credentials, PkiError> {
        let (common_name, organization) = identity.subject();
        let leaf = Leaf {
            common_name: &common_name,
            organization,
            names: &[],
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        };
        self.ensure(&identity.file_stem(), &leaf)
    }

    /// The API server's serving certificate for `names` (DNS names and IP addresses). Made again when the kept one does
    /// not carry all of them.
    pub fn server(&self, names: &[String]) -> Result<Credentials, PkiError> {
        let leaf = Leaf {
            common_name: "kube-apiserver",
            organization: None,
            names,
            usage: ExtendedKeyUsagePurpose::ServerAuth,
        };
        self.ensure("server", &leaf)
    }

    /// The serving certificate of a node's kubelet API.
    pub fn kubelet_server(&self, node: &str, address: IpAddr) -> Result<Credentials, PkiError> {
        let common_name = format!("system:node:{node}");
        let leaf = Leaf {
            common_name: &common_name,
            organization: Some("system:nodes"),
            names: &[node.to_owned(), address.to_string()],
            usage: ExtendedKeyUsagePurpose::ServerAuth,
        };
        self.ensure(&format!("kubelet-{node}"), &leaf)
    }

    fn ensure(&self, stem: &str, leaf: &Leaf<'_>) -> Result<Credentials, PkiError> {
        let _lock = files::lock(&self.directory)?;
        let certificate_path = self.directory.join(format!("{stem}.crt"));
        let key_path = self.directory.join(format!("{stem}.key"));
        if certificate_path.exists() && key_path.exists() {
            let kept =
                Credentials { certificate: files::read(&certificate_path)?, key: files::read(&key_path)? };
            if self.fits(&certificate_path, &kept, leaf.names)? {
                return Ok(kept);
            }
        }
        let made = self.sign(leaf)?;
        files::write_atomically(&key_path, made.key.as_bytes())?;
        files::write_atomically(&certificate_path, made.certificate.as_bytes())?;
        Ok(made)
    }

    /// Whether the certificate at `path` belongs to its key, is signed by this authority, is valid now, and carries every one of `names`.
    fn fits(&self, path: &Path, kept: &Credentials, names: &[String]) -> Result<bool, PkiError> {
        let broken = |reason: String| PkiError::Parse { path: path.to_owned(), reason };
        let (chain, _) = kept.der().map_err(|error| broken(error.to_string()))?;
        let first = chain.first().ok_or_else(|| broken("no certificate in it".into()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(first).map_err(|error| broken(error.to_string()))?;
        let key = KeyPair::from_pem(&kept.key).map_err(|error| broken(error.to_string()))?;
        let authority = self.issuer.key().subject_public_key_info();
        let (_, authority) = x509_parser::prelude::SubjectPublicKeyInfo::from_der(&authority)
            .map_err(|error| broken(error.to_string()))?;
        let own = parsed.public_key().raw == key.subject_public_key_info();
        Ok(own
            && parsed.verify_signature(Some(&authority)).is_ok()
            && parsed.validity().is_valid()
            && carries(&parsed, names))
    }

    fn sign(&self, leaf: &Leaf<'_>) -> Result<Credentials, PkiError> {
        let failed = |source| PkiError::Make { name: leaf.common_name.to_owned(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(leaf.common_name, leaf.organization);
        params.subject_alt_names =
            leaf.names.iter().map(|name| alternative_name(name)).collect::<Result<_, _>>()?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![leaf.usage.clone()];
        (params.not_before, params.not_after) = lifetime(LEAF_LIFETIME);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Credentials { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// The names that every API server certificate carries.
pub fn server_names(advertise: IpAddr, service_address: IpAddr, extra: &[String]) -> Vec<String> {
    let fixed = [
        "127.0.0.1",
        "::1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut names: BTreeSet<String> = fixed.iter().map(|name| (*name).to_owned()).collect();
    names.insert(advertise.to_string());
    names.insert(service_address.to_string());
    names.extend(extra.iter().cloned());
    names.into_iter().collect()
}

/// Writes `contents` to `path`, whole or not at all, readable by the owner only.
pub fn write_private_file(path: &Path, contents: &str) -> Result<(), PkiError> {
    Ok(files::write_atomically(path, contents.as_bytes())?)
}

/// Everything that a node needs to join: written by [`write_node_credentials`].
#[derive(Clone, Debug)]
pub struct NodeCredentials<'a> {
    pub node: &'a str,
    pub address: IpAddr,
    pub server: &'a str,
    pub out: &'a Path,
}

/// Writes `kubeconfig`, `kubelet.crt`, `kubelet.key` and `client-ca.crt` into `request.out`.
pub fn write_node_credentials(pki: &Pki, request: &NodeCredentials<'_>) -> Result<(), PkiError> {
    files::make_private_directory(request.out)?;
    let client = pki.client(Identity::Node(request.node))?;
    let serving = pki.kubelet_server(request.node, request.address)?;
    let user = format!("system:node:{}", request.node);
    let kubeconfig =
        Kubeconfig { server: request.server, ca: pki.ca_certificate(), user: &user, client: &client };
    files::write_atomically(&request.out.join("kubelet.key"), serving.key.as_bytes())?;
    files::write_atomically(&request.out.join("kubelet.crt"), serving.certificate.as_bytes())?;
    files::write_atomically(&request.out.join("client-ca.crt"), pki.ca_certificate().as_bytes())?;
    Ok(files::write_atomically(&request.out.join("kubeconfig"), kubeconfig.render().as_bytes())?)
}

/// Remembers the address that node kubeconfigs of this data directory point to.
pub fn remember_server_url(data_dir: &Path, url: &str) -> Result<(), PkiError> {
    Ok(files::write_atomically(&data_dir.join("server-url"), url.as_bytes())?)
}

/// The address remembered by the last start of the server.
pub fn remembered_server_url(data_dir: &Path) -> Result<String, PkiError> {
    let path = data_dir.join("server-url");
    if !path.exists() {
        return Err(PkiError::NoServerAddress);
    }
    Ok(files::read(&path)?.trim().to_owned())
}

fn make_ca() -> Result<Credentials, PkiError> {
    let failed = |source| PkiError::Make { name: "kubernetes-ca".into(), source };
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("kubernetes", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = lifetime(CA_LIFETIME);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Credentials { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn subject(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn alternative_name(value: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = value.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let name = value.try_into().map_err(|_| PkiError::Name { value: value.to_owned() })?;
    Ok(SanType::DnsName(name))
}

fn lifetime(length: time::Duration) -> (time::OffsetDateTime, time::OffsetDateTime) {
    let now = time::OffsetDateTime::now_utc();
    (now - CLOCK_SKEW, now + length)
}

/// Whether `certificate` carries every one of `names`.
fn carries(certificate: &X509Certificate<'_>, names: &[String]) -> bool {
    let mut present = BTreeSet::new();
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                x509_parser::extensions::GeneralName::DNSName(dns) => {
                    present.insert((*dns).to_owned());
                }
                x509_parser::extensions::GeneralName::IPAddress(raw) => {
                    present.extend(address_text(raw));
                }
                _ => {}
            }
        }
    }
    names.iter().all(|name| present.contains(name))
}

fn address_text(raw: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(raw) {
        return Some(IpAddr::from(four).to_string());
    }
    <[u8; 16]>::try_from(raw).ok().map(|sixteen| IpAddr::from(sixteen).to_string())
}

#[cfg(test)]
mod tests;
