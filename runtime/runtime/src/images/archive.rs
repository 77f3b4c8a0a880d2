//! Import of OCI layouts as tar archives, also compressed.
//!
//! The archive is read once, front to back: blobs go straight into the store (verified against their names), `index.json` is kept, and the images
//! that it names are resolved afterwards. Refuses archives of `docker save` without an OCI index.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex};
use tar::{Archive, Entry};

use super::bounded::{Bounded, Budget};
use super::manifest::{self, Content, Document, Part};
use super::reference::{self, Name};
use super::{Hold, MAX_DOCUMENT_BYTES, Store, blobs, layers, store_error, unpack};
use crate::error::ImageError;
use crate::image::Image;

/// Blobs in one archive.
const MAX_BLOBS: usize = 10_000;
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const OCI_NAME: &str = "org.opencontainers.image.ref.name";

/// What the archive brought.
struct Contents {
    index: Option<Vec<u8>>,
    blobs: Vec<String>,
}

/// Imports all images of an archive.
pub fn import(store: &Arc<Store>, archive: &Path, name: Option<&str>) -> Result<Vec<Image>, ImageError> {
    let label = archive.display().to_string();
    let name = name.map(Name::parse).transpose()?;
    let mut hold = store.hold(Vec::new());
    let contents = read_archive(store, archive, &label, &mut hold)?;
    let result = import_index(store, &label, &contents, name.as_ref());
    drop(hold);
    // Compressed layers are not needed any more, and neither is what an index did not name.
    store.sweep()?;
    result
}

fn read_archive(store: &Store, archive: &Path, label: &str, hold: &mut Hold) -> Result<Contents, ImageError> {
    let malformed = |error: std::io::Error| ImageError::Malformed {
        reference: label.into(),
        reason: format!("archive: {error}"),
    };
    let file = std::fs::File::open(archive).map_err(store_error(format!("open {label}")))?;
    let budget = Budget::new();
    let mut archive = Archive::new(Bounded::new(unpack::decompress(file).map_err(malformed)?, &budget));
    let mut contents = Contents { index: None, blobs: Vec::new() };
    for entry in archive.entries().map_err(malformed)? {
        let mut entry = entry.map_err(malformed)?;
        budget.enter(&mut entry).map_err(malformed)?;
        let path = entry.path().map_err(malformed)?.into_owned();
        let path: PathBuf =
            path.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect();
        if path == Path::new("index.json") {
            let mut bytes = Vec::new();
            entry.by_ref().take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes).map_err(malformed)?;
            contents.index = Some(bytes);
        } else if let Some(digest) = blob_digest(&path).filter(|_| entry.header().entry_type().is_file()) {
            if contents.blobs.len() >= MAX_BLOBS {
                return Err(malformed(std::io::Error::other(format!("more than {MAX_BLOBS} blobs"))));
            }
            hold.add(&digest);
            write_blob(store, label, &mut entry, &digest)?;
            contents.blobs.push(digest);
        }
    }
    Ok(contents)
}

fn blob_digest(path: &Path) -> Option<String> {
    let digits = path.strip_prefix("blobs/sha256").ok()?.to_str()?;
    let digest = format!("sha256:{digits}");
    reference::is_digest(&digest).then_some(digest)
}

fn write_blob<R: Read>(
    store: &Store,
    label: &str,
    entry: &mut Entry<'_, R>,
    digest: &str,
) -> Result<(), ImageError> {
    let failed = || store_error(format!("write blob {digest} of {label}"));
    let mut writer = blobs::Writer::new(store.root()).map_err(failed())?;
    std::io::copy(entry, &mut writer).map_err(failed())?;
    writer.flush().map_err(failed())?;
    writer.finish(store.root(), digest).map_err(failed())?.map_err(|actual| ImageError::DigestMismatch {
        reference: label.into(),
        what: "blob".into(),
        expected: digest.into(),
        actual,
    })
}

fn import_index(
    store: &Arc<Store>,
    label: &str,
    contents: &Contents,
    name: Option<&Name>,
) -> Result<Vec<Image>, ImageError> {
    let malformed = |reason: &str| ImageError::Malformed { reference: label.into(), reason: reason.into() };
    let bytes =
        contents.index.as_ref().ok_or_else(|| malformed("archive: no index.json, not an OCI layout"))?;
    let Document::Index(index) = manifest::parse_document(label, bytes)? else {
        return Err(malformed("archive: index.json is not an index"));
    };
    let entries = named_entries(&index, name).ok_or_else(|| {
        malformed(&format!(
            "archive: an image has no name in {CONTAINERD_NAME} or {OCI_NAME}, and none was given"
        ))
    })?;
    if entries.is_empty() {
        return Err(malformed("archive: index.json names no image"));
    }
    entries
        .into_iter()
        .map(|(names, descriptor)| import_one(store, label, contents, &names, descriptor))
        .collect()
}

/// Every entry of the index with its names; `None` when one has none.
fn named_entries<'a>(index: &'a ImageIndex, name: Option<&Name>) -> Option<Vec<(Vec<Name>, &'a Descriptor)>> {
    if let (Some(name), [only]) = (name, index.manifests().as_slice()) {
        return Some(vec![(vec![name.clone()], only)]);
    }
    let named = |descriptor: &'a Descriptor| {
        let annotations = descriptor.annotations().clone().unwrap_or_default();
        let full = annotations
            .get(CONTAINERD_NAME)
            .or_else(|| annotations.get(OCI_NAME).filter(|text| text.contains(['/', ':'])));
        let parsed = full.and_then(|text| Name::parse(text).ok());
        let tagged = || {
            let tag = annotations.get(OCI_NAME)?;
            Some(Name { tag: Some(tag.clone()), digest: None, ..name?.clone() })
        };
        Some((vec![parsed.or_else(tagged)?], descriptor))
    };
    index.manifests().iter().map(named).collect()
}

fn import_one(
    store: &Arc<Store>,
    label: &str,
    contents: &Contents,
    names: &[Name],
    descriptor: &Descriptor,
) -> Result<Image, ImageError> {
    let target = manifest::part(label, descriptor)?;
    let missing = |digest: &str| ImageError::Malformed {
        reference: label.into(),
        reason: format!("archive: blob {digest} is missing"),
    };
    if !contents.blobs.contains(&target.digest) {
        return Err(missing(&target.digest));
    }
    let (documents, parsed) = manifest::resolve(store.root(), label, target.clone())?;
    let config: Part = manifest::config_part(label, &parsed)?;
    if !blobs::exists(store.root(), &config.digest) {
        return Err(missing(&config.digest));
    }
    let config = blobs::read(store.root(), &config.digest)?;
    let content: Content = manifest::content(label, target, documents, &parsed, &config)?;
    let _layers = store.hold(content.diff_ids.clone());
    let mut pending = Vec::new();
    for (layer, diff_id) in content.layers.iter().zip(&content.diff_ids) {
        if layers::exists(store.root(), diff_id) {
            continue;
        }
        if !blobs::exists(store.root(), &layer.digest) {
            return Err(missing(&layer.digest));
        }
        pending.push(layers::unpack(store.root(), label, &layer.digest, diff_id)?);
    }
    layers::publish(store.root(), pending)?;
    store.commit(names, &content)
}
