//! What an image is to a caller: CRI v1's image messages in Rust types. Only data; the store is in `images`.

use serde::{Deserialize, Serialize};

/// Image.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…` of the image config.
    pub id: String,
    /// Names with a tag (`docker.io/library/busybox:latest`).
    pub repo_tags: Vec<String>,
    /// Names with a digest (`docker.io/library/busybox@sha256:…`).
    pub repo_digests: Vec<String>,
    /// Bytes of the compressed content.
    pub size: u64,
    /// Numeric user of the config, when it is one.
    pub uid: Option<i64>,
    /// Named user of the config, when it is one.
    pub username: String,
    /// Never removed by garbage collection when true.
    pub pinned: bool,
}

/// AuthConfig.
#[derive(Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct AuthConfig {
    /// User name for basic authentication, also towards a token server.
    pub username: String,
    /// Its password.
    pub password: String,
    /// Base64 of `username:password`; used when the two are empty.
    pub auth: String,
    /// A bearer token that is sent as it is.
    pub registry_token: String,
    /// Exchanged for a token. Not supported: refused with a clear error.
    pub identity_token: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Where a pull is. Sent at most a few times a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullProgress {
    /// Asking for manifests.
    Resolving,
    /// Fetching blobs.
    Downloading {
        /// Bytes so far.
        done: u64,
        /// Bytes of all blobs that are not here yet.
        total: u64,
    },
    /// Unpacking layers.
    Unpacking {
        /// Layers so far.
        done: usize,
        /// Layers of the image.
        total: usize,
    },
}

/// Use of the store's file system.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct DiskUsage {
    /// Nanoseconds since 1970.
    pub timestamp: i64,
    /// Bytes used by blobs and layers.
    pub used_bytes: u64,
    /// Inodes used by blobs and layers.
    pub inodes_used: u64,
    /// Size of the file system that holds them, bytes.
    pub capacity_bytes: u64,
    /// Bytes of it that are free for use.
    pub available_bytes: u64,
}
