//! Unpacked layers: a directory each, complete when it has its name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::unpack::{self, Unpacked};
use super::{blobs, store_error};
use crate::error::ImageError;

/// Digits of a diff id that name its directory: short, since mount options have to fit into a page. The full id is kept beside it and compared.
const NAME_DIGITS: usize = 16;
const PARTIAL: &str = ".partial-";

static COUNTER: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    diff_id: String,
    bytes: u64,
    inodes: u64,
}

/// A layer that is unpacked and has no name yet. Dropping it removes it.
#[derive(Debug)]
pub struct Pending {
    directory: PathBuf,
    diff_id: String,
    unpacked: Unpacked,
    kept: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.kept {
            remove_tree(&self.directory);
        }
    }
}

/// Directory name of a layer.
pub fn name(diff_id: &str) -> String {
    diff_id.trim_start_matches("sha256:").chars().take(NAME_DIGITS).collect()
}

/// Whether the layer is there. Another layer whose diff id begins alike counts as absent, and its place as taken: see [`publish`].
pub fn exists(root: &Path, diff_id: &str) -> bool {
    let directory = root.join("layers").join(name(diff_id));
    directory.is_dir() && read_meta(root, &name(diff_id)).is_some_and(|meta| meta.diff_id == diff_id)
}

fn read_meta(root: &Path, name: &str) -> Option<Meta> {
    serde_json::from_slice(&fs::read(root.join("layers").join(format!("{name}.json"))).ok()?).ok()
}

/// Unpacks a layer's blob beside its place, verifying its diff id.
pub fn unpack(root: &Path, image: &str, blob: &str, diff_id: &str) -> Result<Pending, ImageError> {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let directory = root.join("layers").join(format!("{PARTIAL}{}-{number}", std::process::id()));
    fs::create_dir(&directory).map_err(store_error(format!("make {}", directory.display())))?;
    let mut pending =
        Pending { directory, diff_id: diff_id.to_owned(), unpacked: Unpacked::default(), kept: false };
    let file = File::open(blobs::path(root, blob)).map_err(store_error(format!("open blob {blob}")))?;
    let malformed = |reason: String| ImageError::Malformed {
        reference: image.into(),
        reason: format!("failed to extract layer {diff_id}: {reason}"),
    };
    let plain = unpack::decompress(file).map_err(|error| malformed(error.to_string()))?;
    let mut hashed = Hashing { inner: plain, hasher: Sha256::new() };
    pending.unpacked =
        unpack::unpack(&mut hashed, &pending.directory).map_err(|error| malformed(error.to_string()))?;
    std::io::copy(&mut hashed, &mut std::io::sink()).map_err(|error| malformed(error.to_string()))?;
    let actual = blobs::hex(hashed.hasher);
    if actual != diff_id {
        return Err(ImageError::DigestMismatch {
            reference: image.into(),
            what: "layer".into(),
            expected: diff_id.into(),
            actual,
        });
    }
    Ok(pending)
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Gives layers their names, after everything that was written for them is on the disk: a name promises complete content, also after a power cut.
pub fn publish(root: &Path, pending: Vec<Pending>) -> Result<(), ImageError> {
    if pending.is_empty() {
        return Ok(());
    }
    let directory = root.join("layers");
    File::open(&directory)
        .and_then(|file| rustix::fs::syncfs(&file).map_err(Into::into))
        .map_err(store_error(format!("syncfs {}", directory.display())))?;
    for mut layer in pending {
        let name = name(&layer.diff_id);
        let target = directory.join(&name);
        if exists(root, &layer.diff_id) {
            // Somebody else was faster.
            continue;
        }
        if target.exists() {
            return Err(ImageError::Store {
                operation: format!("publish layer {}", layer.diff_id),
                source: std::io::Error::other(format!("{} is another layer", target.display())),
            });
        }
        let meta = Meta {
            diff_id: layer.diff_id.clone(),
            bytes: layer.unpacked.bytes,
            inodes: layer.unpacked.inodes,
        };
        let bytes = serde_json::to_vec(&meta).unwrap_or_default();
        linux::files::replace(&directory.join(format!("{name}.json")), &bytes)
            .and_then(|()| fs::rename(&layer.directory, &target))
            .map_err(store_error(format!("publish layer {}", layer.diff_id)))?;
        layer.kept = true;
    }
    File::open(&directory)
        .and_then(|file| file.sync_all())
        .map_err(store_error(format!("sync {}", directory.display())))
}

/// Removes what an earlier process did not finish.
pub fn remove_partial(root: &Path) {
    for entry in entries(root) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let orphan =
            name.strip_suffix(".json").is_some_and(|layer| !root.join("layers").join(layer).is_dir());
        if name.starts_with(PARTIAL) || orphan || name.contains(".new-") {
            remove_tree(&entry.path());
        }
    }
}

/// Takes the names of all but the named ones, and leaves alone what is being unpacked; the trees in `doomed` are then to be removed.
pub fn retain(root: &Path, names: &BTreeSet<String>, doomed: &mut Vec<PathBuf>) -> Result<(), ImageError> {
    for entry in entries(root) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PARTIAL) || name.ends_with(".json") || names.contains(&name) {
            continue;
        }
        // In one step: a directory with a name is complete.
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let nameless = root.join("layers").join(format!("{PARTIAL}removed-{}-{number}", std::process::id()));
        fs::rename(entry.path(), &nameless).map_err(store_error(format!("remove layer {name}")))?;
        doomed.push(nameless);
        let _ = fs::remove_file(root.join("layers").join(format!("{name}.json")));
    }
    Ok(())
}

/// Bytes and inodes of all.
pub fn total(root: &Path) -> (u64, u64) {
    let names = entries(root).filter_map(|entry| entry.file_name().into_string().ok());
    let metas = names.filter_map(|name| read_meta(root, name.strip_suffix(".json")?));
    metas.fold((0, 0), |(bytes, inodes), meta| (bytes + meta.bytes, inodes + meta.inodes))
}

fn entries(root: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(root.join("layers")).into_iter().flatten().flatten()
}

/// Removes what has no name any more; what cannot be removed is left for the next start.
pub fn remove_tree(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "leftover of a layer cannot be removed");
    }
}
