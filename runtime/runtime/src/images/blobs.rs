//! Content by digest: written beside its place while it is hashed, renamed when the digest is right and it is on the disk, read back whole for
//! documents. A name promises complete content, also after a power cut.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::{MAX_DOCUMENT_BYTES, store_error};
use crate::error::ImageError;

/// Marks files that are not complete.
const PARTIAL: &str = ".partial-";

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Where a digest's content is. The digest has been checked by whoever parsed it.
pub fn path(root: &Path, digest: &str) -> PathBuf {
    root.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}

/// A blob that is being written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    temporary: PathBuf,
    hasher: Sha256,
    written: u64,
    kept: bool,
}

impl Writer {
    /// Begins.
    pub fn new(root: &Path) -> io::Result<Writer> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = root.join("blobs/sha256").join(format!("{PARTIAL}{}-{number}", std::process::id()));
        let file = File::options().write(true).create_new(true).open(&temporary)?;
        Ok(Writer { file, temporary, hasher: Sha256::new(), written: 0, kept: false })
    }

    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Gives it its name when its digest is `expected`; the digest that it has otherwise. Waits for the disk.
    pub fn finish(mut self, root: &Path, expected: &str) -> io::Result<Result<(), String>> {
        let actual = hex(std::mem::take(&mut self.hasher));
        if actual != expected {
            return Ok(Err(actual));
        }
        self.file.sync_data()?;
        fs::rename(&self.temporary, path(root, expected))?;
        self.kept = true;
        Ok(Ok(()))
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// `sha256:…` of what was hashed.
pub fn hex(hasher: Sha256) -> String {
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in hasher.finalize() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// `sha256:…` of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    hex(hasher)
}

/// Writes a document whose digest is computed here.
pub fn put(root: &Path, bytes: &[u8]) -> Result<String, ImageError> {
    let digest = digest_of(bytes);
    let written = Writer::new(root).and_then(|mut writer| {
        writer.write_all(bytes)?;
        writer.finish(root, &digest)
    });
    written.map_err(store_error(format!("write blob {digest}")))?.map(|()| digest).map_err(|actual| {
        ImageError::Store {
            operation: format!("write blob {actual}"),
            source: io::Error::other("content changed"),
        }
    })
}

/// Whether it is there.
pub fn exists(root: &Path, digest: &str) -> bool {
    path(root, digest).exists()
}

/// Reads a document.
pub fn read(root: &Path, digest: &str) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    File::open(path(root, digest))
        .and_then(|file| file.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes))
        .map_err(store_error(format!("read blob {digest}")))?;
    Ok(bytes)
}

/// Whether a document is there and is what its digest says. One that is not is removed, so that a pull fetches it again.
pub fn verify(root: &Path, digest: &str) -> bool {
    match read(root, digest) {
        Ok(bytes) if digest_of(&bytes) == digest => true,
        Ok(_) => {
            tracing::warn!(digest, "blob is damaged and removed");
            let _ = fs::remove_file(path(root, digest));
            false
        }
        Err(_) => false,
    }
}

/// Makes the names of all blobs durable.
pub fn sync_names(root: &Path) -> Result<(), ImageError> {
    let directory = root.join("blobs/sha256");
    File::open(&directory)
        .and_then(|file| file.sync_all())
        .map_err(store_error(format!("sync {}", directory.display())))
}

/// Removes what an earlier process did not finish.
pub fn remove_partial(root: &Path) {
    for entry in entries(root) {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes all but the named ones, and leaves alone what is being written.
pub fn retain(root: &Path, digests: &BTreeSet<&str>) -> Result<(), ImageError> {
    for entry in entries(root) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(PARTIAL) && !digests.contains(format!("sha256:{name}").as_str()) {
            fs::remove_file(entry.path()).map_err(store_error(format!("remove blob {name}")))?;
        }
    }
    Ok(())
}

/// Bytes of all.
pub fn total(root: &Path) -> u64 {
    entries(root).filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn entries(root: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(root.join("blobs/sha256")).into_iter().flatten().flatten()
}
