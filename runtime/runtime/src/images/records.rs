//! Which names there are and what they stand for: one small file per name, replaced by rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::Content;
use super::reference::Name;
use super::{blobs, layers, store_error};
use crate::error::ImageError;
use crate::image::Image;

/// A name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Canonical.
    pub name: String,
    /// `docker.io/library/busybox`
    pub repository: String,
    /// Digest of the index or manifest.
    pub target: String,
    /// Digest of the config: the image id.
    pub config_digest: String,
    /// Documents that must stay.
    pub blobs: Vec<String>,
    /// Layers, the lowest first.
    pub diff_ids: Vec<String>,
    /// Bytes of the compressed content.
    pub size: u64,
    /// `User` of the config.
    pub user: String,
}

impl Record {
    /// For one name of an image.
    pub fn new(name: &Name, content: &Content) -> Record {
        let mut kept = content.documents.clone();
        kept.push(content.config.digest.clone());
        Record {
            name: name.canonical(),
            repository: name.familiar_repository(),
            target: content.target.digest.clone(),
            config_digest: content.config.digest.clone(),
            blobs: kept,
            diff_ids: content.diff_ids.clone(),
            size: content.size(),
            user: content.user.clone(),
        }
    }
}

fn path(root: &Path, name: &str) -> PathBuf {
    let digest = blobs::digest_of(name.as_bytes());
    root.join("images").join(format!("{}.json", digest.trim_start_matches("sha256:")))
}

/// Makes a name visible.
pub fn save(root: &Path, record: &Record) -> Result<(), ImageError> {
    let target = path(root, &record.name);
    let bytes = serde_json::to_vec(record).unwrap_or_default();
    linux::files::replace(&target, &bytes).map_err(store_error(format!("write {}", target.display())))
}

/// Removes a name. Fine when it is gone.
pub fn delete(root: &Path, name: &str) -> Result<(), ImageError> {
    match fs::remove_file(path(root, name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(store_error(format!("remove image \"{name}\""))(error))
        }
        _ => Ok(()),
    }
}

/// All names. Records that do not parse, whose config is gone or damaged or whose layers are gone are removed: the image can be pulled again.
pub fn load(root: &Path) -> Result<BTreeMap<String, Record>, ImageError> {
    let directory = root.join("images");
    let mut records = BTreeMap::new();
    let entries = fs::read_dir(&directory).map_err(store_error(format!("list {}", directory.display())))?;
    for entry in entries.flatten() {
        let record =
            fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let usable = |record: &Record| {
            blobs::verify(root, &record.config_digest)
                && record.diff_ids.iter().all(|diff_id| layers::exists(root, diff_id))
        };
        match record.filter(usable) {
            Some(record) => {
                records.insert(record.name.clone(), record);
            }
            None => {
                tracing::warn!(file = %entry.path().display(), "image record is unusable and removed");
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    Ok(records)
}

/// Names grouped into images.
pub fn images(records: &BTreeMap<String, Record>) -> Vec<Image> {
    let mut images: BTreeMap<&str, (Image, BTreeSet<String>)> = BTreeMap::new();
    for record in records.values() {
        let (image, digests) =
            images.entry(&record.config_digest).or_insert_with(|| (empty(record), BTreeSet::new()));
        if !record.name.contains('@') {
            image.repo_tags.push(record.name.clone());
        }
        digests.insert(format!("{}@{}", record.repository, record.target));
    }
    let finish = |(mut image, digests): (Image, BTreeSet<String>)| {
        image.repo_digests = digests.into_iter().collect();
        image
    };
    images.into_values().map(finish).collect()
}

fn empty(record: &Record) -> Image {
    let user = record.user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() { Some(0) } else { user.parse().ok() };
    Image {
        id: record.config_digest.clone(),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        size: record.size,
        uid,
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        pinned: false,
    }
}
