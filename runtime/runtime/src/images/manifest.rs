//! Manifests, indexes and configs: parsing them, and choosing the platform of this machine.

use std::path::Path;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};

use super::{MAX_DOCUMENT_BYTES, MAX_LAYERS, blobs, reference};
use crate::error::ImageError;

#[cfg(test)]
mod tests;

/// Compressed bytes of one image.
const MAX_IMAGE_BYTES: u64 = 1 << 40;
/// Documents from a name down to its manifest, that included.
pub const MAX_DOCUMENTS: usize = 3;

/// A digest with what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `sha256:…`
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// An image as its manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// What the name stands for: an index or a manifest.
    pub target: Part,
    /// All documents that lead from the target to the manifest, both included.
    pub documents: Vec<String>,
    /// The config.
    pub config: Part,
    /// Compressed layers, the lowest first.
    pub layers: Vec<Part>,
    /// Uncompressed digests, in the same order.
    pub diff_ids: Vec<String>,
    /// `User` of the config.
    pub user: String,
}

impl Content {
    /// Bytes of everything that a registry would send.
    pub fn size(&self) -> u64 {
        total(self.layers.iter().chain([&self.config]))
    }
}

/// Bytes of all parts, as foreign documents declare them.
pub fn total<'a>(parts: impl IntoIterator<Item = &'a Part>) -> u64 {
    parts.into_iter().fold(0, |sum, part| sum.saturating_add(part.size))
}

/// What a document is.
pub enum Document {
    /// A list of manifests.
    Index(Box<ImageIndex>),
    /// A manifest.
    Manifest(Box<ImageManifest>),
}

fn malformed(name: &str, reason: impl std::fmt::Display) -> ImageError {
    ImageError::Malformed { reference: name.into(), reason: reason.to_string() }
}

/// Tells index and manifest apart by their fields, as media types are optional in old documents.
pub fn parse_document(name: &str, bytes: &[u8]) -> Result<Document, ImageError> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| malformed(name, format_args!("manifest: {error}")))?;
    if value.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
        return Err(malformed(name, "manifest: docker schema 1 is not supported any more"));
    }
    if value.get("manifests").is_some() {
        let index =
            serde_json::from_value(value).map_err(|error| malformed(name, format_args!("index: {error}")))?;
        return Ok(Document::Index(Box::new(index)));
    }
    let manifest: ImageManifest =
        serde_json::from_value(value).map_err(|error| malformed(name, format_args!("manifest: {error}")))?;
    if manifest.layers().len() > MAX_LAYERS {
        let count = manifest.layers().len();
        return Err(malformed(name, format_args!("manifest: {count} layers are more than {MAX_LAYERS}")));
    }
    Ok(Document::Manifest(Box::new(manifest)))
}

/// Parses a config.
pub fn parse_config(name: &str, bytes: &[u8]) -> Result<ImageConfiguration, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| malformed(name, format_args!("image config: {error}")))
}

/// A descriptor's digest and size, when the digest is of a kind that we verify.
pub fn part(name: &str, descriptor: &Descriptor) -> Result<Part, ImageError> {
    let digest = descriptor.digest().to_string();
    if !reference::is_digest(&digest) {
        return Err(malformed(name, format_args!("digest \"{digest}\" is not sha256")));
    }
    Ok(Part { digest, size: descriptor.size() })
}

/// The entry of an index for this machine.
pub fn choose(index: &ImageIndex) -> Option<&Descriptor> {
    let arch = Arch::default();
    let fits = |descriptor: &&Descriptor| match descriptor.platform() {
        Some(platform) => *platform.os() == Os::Linux && *platform.architecture() == arch,
        None => index.manifests().len() == 1,
    };
    index.manifests().iter().find(fits)
}

/// Follows a digest through the blobs that are here down to a manifest.
pub fn resolve(root: &Path, name: &str, target: Part) -> Result<(Vec<String>, ImageManifest), ImageError> {
    let mut documents = Vec::new();
    let mut current = target;
    for _ in 0..MAX_DOCUMENTS {
        let bytes = blobs::read(root, &current.digest)?;
        documents.push(current.digest);
        match parse_document(name, &bytes)? {
            Document::Manifest(manifest) => return Ok((documents, *manifest)),
            Document::Index(index) => {
                let entry =
                    choose(&index).ok_or_else(|| ImageError::NoPlatform { reference: name.into() })?;
                current = part(name, entry)?;
            }
        }
    }
    Err(nested_too_deep(name))
}

/// The error for an index that leads to no manifest within [`MAX_DOCUMENTS`].
pub fn nested_too_deep(name: &str) -> ImageError {
    malformed(name, format_args!("index: no manifest within {MAX_DOCUMENTS} documents"))
}

/// The config's digest and size, when it is not longer than configs are.
pub fn config_part(name: &str, manifest: &ImageManifest) -> Result<Part, ImageError> {
    let part = part(name, manifest.config())?;
    if part.size > MAX_DOCUMENT_BYTES {
        return Err(malformed(
            name,
            format_args!("image config: {} bytes are more than {MAX_DOCUMENT_BYTES}", part.size),
        ));
    }
    Ok(part)
}

/// Puts together what manifest and config say, when they fit.
pub fn content(
    name: &str,
    target: Part,
    documents: Vec<String>,
    manifest: &ImageManifest,
    config: &[u8],
) -> Result<Content, ImageError> {
    let parsed = parse_config(name, config)?;
    let diff_ids = parsed.rootfs().diff_ids().clone();
    if diff_ids.len() != manifest.layers().len() {
        let (layers, ids) = (manifest.layers().len(), diff_ids.len());
        return Err(malformed(name, format_args!("manifest has {layers} layers, config has {ids} diff ids")));
    }
    if let Some(odd) = diff_ids.iter().find(|diff_id| !reference::is_digest(diff_id)) {
        return Err(malformed(name, format_args!("diff id \"{odd}\" is not sha256")));
    }
    let content = Content {
        target,
        documents,
        config: config_part(name, manifest)?,
        layers: manifest.layers().iter().map(|layer| part(name, layer)).collect::<Result<_, _>>()?,
        diff_ids,
        user: parsed.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default(),
    };
    match content.size() {
        size if size > MAX_IMAGE_BYTES => {
            Err(malformed(name, format_args!("manifest: {size} bytes are more than {MAX_IMAGE_BYTES}")))
        }
        _ => Ok(content),
    }
}
