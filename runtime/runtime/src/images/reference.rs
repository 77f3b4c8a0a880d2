//! Image names as people write them, and what they mean: the normalisation that Docker and containerd share
//! (`busybox` is `docker.io/library/busybox:latest`).

use crate::error::ImageError;

#[cfg(test)]
mod tests;

/// Digits of a SHA-256.
pub const DIGEST_DIGITS: usize = 64;
const MAX_REPOSITORY_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;
const DEFAULT_REGISTRY: &str = "docker.io";

/// A normalised name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `docker.io`, `127.0.0.1:5000`
    pub registry: String,
    /// `library/busybox`
    pub repository: String,
    /// `latest`; absent when only a digest was given.
    pub tag: Option<String>,
    /// `sha256:…`
    pub digest: Option<String>,
}

impl Name {
    /// Normalises.
    pub fn parse(text: &str) -> Result<Name, ImageError> {
        parse(text)
            .map_err(|reason| ImageError::InvalidReference { reference: text.into(), reason: reason.into() })
    }

    /// `docker.io/library/busybox`
    pub fn familiar_repository(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name under which the image is kept: by digest when there is one, else by tag.
    pub fn canonical(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.familiar_repository()),
            (None, tag) => format!("{}:{}", self.familiar_repository(), tag.as_deref().unwrap_or("latest")),
        }
    }

    /// The same repository by digest.
    pub fn with_digest(&self, digest: &str) -> Name {
        Name { tag: None, digest: Some(digest.to_owned()), ..self.clone() }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.canonical())
    }
}

/// The digits of an image id, given as `sha256:…` or as its first digits.
pub fn as_image_id(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    ((12..=DIGEST_DIGITS).contains(&digits.len()) && digits.bytes().all(hex)).then_some(digits)
}

/// Whether a text is a digest that this store can verify.
pub fn is_digest(text: &str) -> bool {
    text.starts_with("sha256:") && as_image_id(text).is_some_and(|digits| digits.len() == DIGEST_DIGITS)
}

fn parse(text: &str) -> Result<Name, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
        Some(_) => {
            return Err("invalid reference format: the digest is not sha256 with 64 hexadecimal digits");
        }
        None => (text, None),
    };
    let (rest, tag) = match rest.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => (before, Some(tag.to_owned())),
        _ => (rest, None),
    };
    if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
        return Err("invalid reference format: the tag has characters that are not allowed");
    }
    let (registry, path) = match rest.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path),
        _ => (DEFAULT_REGISTRY, rest),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let repository = match path {
        path if registry == DEFAULT_REGISTRY && !path.contains('/') => format!("library/{path}"),
        path => path.to_owned(),
    };
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    if path.is_empty() || !repository.split('/').all(is_path_component) {
        return Err("invalid reference format");
    }
    if repository.len() + registry.len() > MAX_REPOSITORY_BYTES {
        return Err("invalid reference format: repository name must not be more than 255 characters");
    }
    let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
    Ok(Name { registry: registry.to_owned(), repository, tag, digest })
}

fn is_registry(text: &str) -> bool {
    let host = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
    let marked = text.contains(['.', ':'])
        || text == "localhost"
        || text.bytes().any(|byte| byte.is_ascii_uppercase());
    host && marked
}

/// Lower-case words joined by `.`, `_`, `__` or dashes.
fn is_path_component(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !word(*first) || !word(*last) {
        return false;
    }
    let joints = text.split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit());
    joints
        .filter(|joint| !joint.is_empty())
        .all(|joint| matches!(joint, "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|first| word(*first))
        && bytes.len() <= MAX_TAG_BYTES
        && bytes.iter().all(|byte| word(*byte) || b".-".contains(byte))
}
