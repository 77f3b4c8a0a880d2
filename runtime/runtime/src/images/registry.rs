//! Pulls: a name is resolved at a registry or one of its mirrors, documents and missing layers are fetched, verified and unpacked.
//!
//! Input: a normalised name and credentials; output: an image, or an error that says which of absent, forbidden, unreachable and corrupt it was.
//! Only what may pass is tried again: a connection that failed, a busy or failing server; at most [`MAX_ATTEMPTS`] times per server.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::sync::mpsc;

use super::manifest::{self, Content, Document, Part};
use super::reference::Name;
use super::{Hold, Store, blobs, layers};
use crate::config::{Endpoint, Registries};
use crate::error::ImageError;
use crate::image::{AuthConfig, Image, PullProgress};

/// Tries per server and document.
pub const MAX_ATTEMPTS: u32 = 3;
/// Layers that are fetched at a time, as containerd.
const PARALLEL_LAYERS: usize = 3;
/// First pause before another try; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Bytes between two progress messages.
const PROGRESS_BYTES: u64 = 1 << 20;

const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One pull.
pub struct Pull<'a> {
    /// Where it goes.
    pub store: Arc<Store>,
    /// How registries are reached.
    pub registries: &'a Registries,
    /// What.
    pub name: Name,
    /// As whom.
    pub auth: Option<AuthConfig>,
    /// Who wants to know.
    pub progress: Option<mpsc::Sender<PullProgress>>,
}

/// A server with the name that the image has there.
struct Source {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Pull<'_> {
    /// Pulls and unpacks.
    pub async fn run(self) -> Result<Image, ImageError> {
        self.report(PullProgress::Resolving);
        let auth = self.registry_auth()?;
        let mut last = None;
        for endpoint in self.endpoints() {
            let source = self.source(&endpoint, auth.clone())?;
            match self.from(&source).await {
                Ok(image) => return Ok(image),
                Err(error) => {
                    tracing::debug!(server = endpoint.host, %error, "pull failed");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| ImageError::NotFound { reference: self.name.canonical() }))
    }

    fn report(&self, progress: PullProgress) {
        if let Some(sender) = &self.progress {
            // A reader that is slow misses some.
            let _ = sender.try_send(progress);
        }
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let host = self.registries.hosts.iter().find(|host| host.name == self.name.registry);
        let origin = Endpoint { host: self.name.registry.clone(), plain_http: false };
        match host {
            Some(host) => {
                host.mirrors.iter().cloned().chain([host.endpoint.clone().unwrap_or(origin)]).collect()
            }
            None => vec![origin],
        }
    }

    fn registry_auth(&self) -> Result<RegistryAuth, ImageError> {
        let configured = self.registries.hosts.iter().find(|host| host.name == self.name.registry);
        let Some(auth) = self.auth.as_ref().or(configured.and_then(|host| host.auth.as_ref())) else {
            return Ok(RegistryAuth::Anonymous);
        };
        let unusable = |reason: &str| ImageError::Unauthorized {
            reference: self.name.canonical(),
            reason: format!("credentials for {}: {reason}", self.name.registry),
        };
        if !auth.registry_token.is_empty() {
            return Ok(RegistryAuth::Bearer(auth.registry_token.clone()));
        }
        if !auth.username.is_empty() || !auth.password.is_empty() {
            return Ok(RegistryAuth::Basic(auth.username.clone(), auth.password.clone()));
        }
        if !auth.auth.is_empty() {
            let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim());
            let text = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let (user, password) = text
                .as_deref()
                .and_then(|text| text.split_once(':'))
                .ok_or_else(|| unusable("auth is not base64 of user:password"))?;
            return Ok(RegistryAuth::Basic(user.into(), password.trim_end_matches('\0').into()));
        }
        if !auth.identity_token.is_empty() {
            return Err(unusable("identity tokens are not supported"));
        }
        Ok(RegistryAuth::Anonymous)
    }

    fn source(&self, endpoint: &Endpoint, auth: RegistryAuth) -> Result<Source, ImageError> {
        let mut certificates = Vec::new();
        for path in &self.registries.ca_files {
            let data = std::fs::read(path).map_err(super::store_error(format!("read {}", path.display())))?;
            certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
        let protocol = match endpoint.plain_http {
            true => ClientProtocol::HttpsExcept(vec![endpoint.host.clone()]),
            false => ClientProtocol::Https,
        };
        let config = ClientConfig {
            protocol,
            extra_root_certificates: certificates,
            connect_timeout: Some(self.registries.connect_timeout),
            read_timeout: Some(self.registries.read_timeout),
            user_agent: concat!("orlop/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let (registry, repository) = (endpoint.host.clone(), self.name.repository.clone());
        let reference = match (&self.name.digest, &self.name.tag) {
            (Some(digest), _) => Reference::with_digest(registry, repository, digest.clone()),
            (None, tag) => {
                Reference::with_tag(registry, repository, tag.clone().unwrap_or_else(|| "latest".into()))
            }
        };
        Ok(Source { client: Client::new(config), reference, auth })
    }

    async fn from(&self, source: &Source) -> Result<Image, ImageError> {
        let mut hold = self.store.hold(Vec::new());
        let content = self.resolve(source, &mut hold).await?;
        content.diff_ids.iter().for_each(|diff_id| hold.add(diff_id));
        content.layers.iter().for_each(|layer| hold.add(&layer.digest));
        self.fetch_layers(source, &content).await?;
        let store = Arc::clone(&self.store);
        let (label, progress) = (self.name.canonical(), self.progress.clone());
        let mut names = vec![self.name.clone()];
        if self.name.digest.is_some() && self.name.tag.is_some() {
            names = vec![self.name.with_digest(&content.target.digest)];
        }
        blocking(&label.clone(), move || {
            unpack_layers(&store, &label, &content, progress.as_ref())?;
            let image = store.commit(&names, &content)?;
            drop(hold);
            store.sweep()?;
            Ok(image)
        })
        .await
    }

    /// Fetches documents down to the manifest of this platform, and its config; each is held before it is looked for.
    async fn resolve(&self, source: &Source, hold: &mut Hold) -> Result<Content, ImageError> {
        let label = self.name.canonical();
        let mut documents = Vec::new();
        let mut reference = source.reference.clone();
        let mut target = None;
        loop {
            let bytes = self.document(source, &reference).await?;
            let digest = self.keep(&bytes, reference.digest(), hold)?;
            target.get_or_insert_with(|| Part { digest: digest.clone(), size: bytes.len() as u64 });
            documents.push(digest);
            match manifest::parse_document(&label, &bytes)? {
                Document::Index(index) if documents.len() < manifest::MAX_DOCUMENTS => {
                    let entry = manifest::choose(&index)
                        .ok_or_else(|| ImageError::NoPlatform { reference: label.clone() })?;
                    let part = manifest::part(&label, entry)?;
                    reference = reference.clone_with_digest(part.digest);
                }
                Document::Index(_) => return Err(manifest::nested_too_deep(&label)),
                Document::Manifest(parsed) => {
                    let part = manifest::config_part(&label, &parsed)?;
                    hold.add(&part.digest);
                    if !blobs::exists(self.store.root(), &part.digest) {
                        self.blob(source, &part, &AtomicU64::new(0), 0).await?;
                    }
                    let config = blobs::read(self.store.root(), &part.digest)?;
                    let target = target.unwrap_or(part);
                    return manifest::content(&label, target, documents, &parsed, &config);
                }
            }
        }
    }

    fn keep(&self, bytes: &[u8], expected: Option<&str>, hold: &mut Hold) -> Result<String, ImageError> {
        let actual = blobs::digest_of(bytes);
        match expected {
            Some(expected) if expected != actual => Err(ImageError::DigestMismatch {
                reference: self.name.canonical(),
                what: "manifest".into(),
                expected: expected.into(),
                actual,
            }),
            _ => {
                hold.add(&actual);
                blobs::put(self.store.root(), bytes)
            }
        }
    }

    async fn document(&self, source: &Source, reference: &Reference) -> Result<Vec<u8>, ImageError> {
        let mut attempt = 0;
        loop {
            let answer = source.client.pull_manifest_raw(reference, &source.auth, &MANIFEST_TYPES).await;
            match answer.map_err(|error| self.explain(&error)) {
                Ok((bytes, _)) => return Ok(bytes.to_vec()),
                Err(error) => self.pause_or_fail(&mut attempt, error).await?,
            }
        }
    }

    /// Waits before another try, or returns the error when it will not pass or was tried often enough.
    async fn pause_or_fail(&self, attempt: &mut u32, error: ImageError) -> Result<(), ImageError> {
        *attempt += 1;
        if !matches!(error, ImageError::Unreachable { .. }) || *attempt >= MAX_ATTEMPTS {
            return Err(error);
        }
        tokio::time::sleep(RETRY_PAUSE * (1 << (*attempt - 1))).await;
        Ok(())
    }

    async fn fetch_layers(&self, source: &Source, content: &Content) -> Result<(), ImageError> {
        let root = self.store.root();
        let mut seen = BTreeSet::new();
        // Owned, so that the futures below borrow nothing that the stream hands out.
        let missing: Vec<Part> = content
            .layers
            .iter()
            .zip(&content.diff_ids)
            .filter(|(layer, diff_id)| !layers::exists(root, diff_id) && !blobs::exists(root, &layer.digest))
            .map(|(layer, _)| layer)
            .filter(|layer| seen.insert(&layer.digest))
            .cloned()
            .collect();
        let total = manifest::total(&missing);
        let done = AtomicU64::new(0);
        let done = &done;
        futures::stream::iter(missing)
            .map(|layer| async move { self.blob(source, &layer, done, total).await })
            .buffer_unordered(PARALLEL_LAYERS)
            .try_collect::<Vec<()>>()
            .await
            .map(|_| ())
    }

    async fn blob(
        &self,
        source: &Source,
        part: &Part,
        done: &AtomicU64,
        total: u64,
    ) -> Result<(), ImageError> {
        let mut attempt = 0;
        loop {
            match self.try_blob(source, part, done, total).await {
                Ok(()) => return Ok(()),
                Err(error) => self.pause_or_fail(&mut attempt, error).await?,
            }
        }
    }

    async fn try_blob(
        &self,
        source: &Source,
        part: &Part,
        done: &AtomicU64,
        total: u64,
    ) -> Result<(), ImageError> {
        let label = self.name.canonical();
        let failed =
            |operation: &str| super::store_error(format!("{operation} blob {} of {label}", part.digest));
        let stream = source.client.pull_blob_stream(&source.reference, part.digest.as_str()).await;
        let mut stream = stream.map_err(|error| self.explain(&error))?;
        let mut writer = blobs::Writer::new(self.store.root()).map_err(failed("create"))?;
        let mut reported = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                // The client verifies, too, and ends the stream with an error of its own; ours is worded below.
                Err(error) if is_digest_error(&error) => break,
                Err(error) => return Err(self.unreachable(error)),
            };
            if writer.written() + chunk.len() as u64 > part.size {
                return Err(ImageError::Malformed {
                    reference: label,
                    reason: format!("blob {} is longer than its {} bytes", part.digest, part.size),
                });
            }
            writer.write_all(&chunk).map_err(failed("write"))?;
            let so_far = done.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
            if total > 0 && so_far - reported >= PROGRESS_BYTES {
                reported = so_far;
                self.report(PullProgress::Downloading { done: so_far, total });
            }
        }
        let (store, digest, failed) = (Arc::clone(&self.store), part.digest.clone(), failed("write"));
        let finish = move || writer.finish(store.root(), &digest).map_err(failed);
        blocking(&label, finish).await?.map_err(|actual| ImageError::DigestMismatch {
            reference: self.name.canonical(),
            what: "blob".into(),
            expected: part.digest.clone(),
            actual,
        })
    }

    fn unreachable(&self, reason: impl std::fmt::Display) -> ImageError {
        ImageError::Unreachable { reference: self.name.canonical(), reason: reason.to_string() }
    }

    fn explain(&self, error: &OciDistributionError) -> ImageError {
        let reference = self.name.canonical();
        let denied = |detail: &str| ImageError::Unauthorized {
            reference: self.name.canonical(),
            reason: format!(
                "pull access denied, repository does not exist or may require authorization: authorization failed: {detail}"
            ),
        };
        match error {
            OciDistributionError::UnauthorizedError { url } => denied(url),
            OciDistributionError::AuthenticationFailure(detail) => denied(detail),
            OciDistributionError::ImageManifestNotFoundError(_) => ImageError::NotFound { reference },
            OciDistributionError::RegistryError { envelope, url } => {
                match envelope.errors.first().map(|e| &e.code) {
                    Some(
                        OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::BlobUnknown,
                    ) => ImageError::NotFound { reference },
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => denied(url),
                    _ => self.unreachable(format_args!("{url}: {envelope}")),
                }
            }
            OciDistributionError::ServerError { code: 401 | 403, url, .. } => denied(url),
            OciDistributionError::ServerError { code: 404, .. } => ImageError::NotFound { reference },
            OciDistributionError::ServerError { code, url, .. } => {
                self.unreachable(format_args!("unexpected status from GET request to {url}: {code}"))
            }
            OciDistributionError::DigestError(error) => ImageError::Malformed {
                reference,
                reason: format!("the registry's digest is wrong: {error}"),
            },
            OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => {
                self.unreachable(format_args!("failed to do request: {}", chain(error)))
            }
            other => ImageError::Malformed { reference, reason: other.to_string() },
        }
    }
}

fn unpack_layers(
    store: &Store,
    label: &str,
    content: &Content,
    progress: Option<&mpsc::Sender<PullProgress>>,
) -> Result<(), ImageError> {
    let total = content.layers.len();
    let mut pending = Vec::new();
    for (index, (layer, diff_id)) in content.layers.iter().zip(&content.diff_ids).enumerate() {
        if let Some(sender) = progress {
            let _ = sender.try_send(PullProgress::Unpacking { done: index, total });
        }
        if !layers::exists(store.root(), diff_id) {
            pending.push(layers::unpack(store.root(), label, &layer.digest, diff_id)?);
        }
    }
    layers::publish(store.root(), pending)
}

/// Runs file work where it may block.
pub async fn blocking<T: Send + 'static>(
    label: &str,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::Store {
            operation: format!("process image \"{label}\""),
            source: std::io::Error::other(error),
        }),
    }
}

fn is_digest_error(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<oci_client::errors::DigestError>())
}

/// reqwest says what it did, and only its sources say what happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        text.push_str(": ");
        text.push_str(&next.to_string());
        source = next.source();
    }
    text
}
