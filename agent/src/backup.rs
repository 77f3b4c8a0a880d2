//! A copy of the control plane's store, asked of the API server while it runs, as `etcdctl snapshot save` does with etcd.
//!
//! In: a client with an administrator's identity, and a path. Out: a file there, whole or not at all, for its owner only: it
//! holds every Secret. Does not look into it; `orlop-server store check` does.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use futures::AsyncReadExt;
use tempfile::NamedTempFile;

use crate::api::chain;

const STORE: &str = "/orlop/v1/store/backup";
/// Bytes that are read from the API server at a time.
const CHUNK: usize = 64 << 10;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("ask the API server for a backup: {reason}")]
    Refused { reason: String },
    #[error("receive the backup")]
    Receive { source: io::Error },
    #[error("{operation} {path}", path = path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
}

/// Saves a backup at `to`, replacing what is there; gives its length in bytes.
pub async fn save(client: &kube::Client, to: &Path) -> Result<u64, BackupError> {
    let failed = |operation| move |source| BackupError::File { operation, path: to.to_owned(), source };
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Before anything is asked for: a path that cannot be written to is told at once.
    let mut file = NamedTempFile::new_in(folder).map_err(failed("make a temporary file for"))?;
    let request = http::Request::get(STORE).body(Vec::new());
    let request = request.map_err(|error| BackupError::Refused { reason: error.to_string() })?;
    let answer = client.request_stream(request).await;
    let body = answer.map_err(|error| BackupError::Refused { reason: chain(&error) })?;
    let mut body = std::pin::pin!(body);
    let (mut chunk, mut length) = (vec![0; CHUNK], 0);
    loop {
        let count = body.read(&mut chunk).await.map_err(|source| BackupError::Receive { source })?;
        if count == 0 {
            break;
        }
        file.write_all(&chunk[..count]).map_err(failed("write"))?;
        length += count as u64;
    }
    file.as_file().sync_all().map_err(failed("sync"))?;
    file.persist(to).map_err(|error| failed("rename to")(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder of"))?;
    Ok(length)
}

#[cfg(test)]
mod tests;
