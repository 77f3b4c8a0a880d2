//! What was attached, on disk: `<cache_dir>/results/<network>-<container>-<ifname>`, in the format of libcni.
//!
//! Owns those files. An entry is written before the first plugin of an ADD runs, without a result, and again with the
//! result after the last one, each time by a rename: after a crash at any point, DEL finds with which configuration
//! the attachment was begun. It refuses to write more than it would read again. It refuses nothing that libcni wrote, and ignores
//! files that are no entries.

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::{
    args::CniArgs,
    json::{DOCUMENT_LIMIT, JsonError, Object, as_object, parse_object},
    read_limited,
};

const KIND: &str = "cniCacheV1";
const FOLDER_MODE: u32 = 0o700;

/// An attachment as the cache knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub network: String,
    pub container_id: String,
    pub ifname: String,
    pub netns: String,
    /// The network's document, as it was when the attachment was begun.
    pub config: Vec<u8>,
    pub args: CniArgs,
    pub capability_args: Map<String, Value>,
    /// None while ADD runs, or when it was cut off.
    pub result: Option<Map<String, Value>>,
}

/// A cache file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} cached attachment {path}: {error}")]
pub struct CacheError {
    operation: &'static str,
    path: PathBuf,
    error: io::Error,
}

/// The folder of entries.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn new(cache_dir: &Path) -> Self {
        Self { dir: cache_dir.join("results") }
    }

    pub(crate) fn store(&self, entry: &Entry) -> Result<(), CacheError> {
        let path = self.path(entry);
        let failed = |error| CacheError { operation: "write", path: path.clone(), error };
        let document = entry.to_json().to_string();
        if document.len() > DOCUMENT_LIMIT {
            let message = format!("{} bytes, expected at most {DOCUMENT_LIMIT}", document.len());
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, message)));
        }
        // Configurations and arguments may have secrets in them, and who made the folder may not have thought of it.
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.dir).map_err(failed)?;
        fs::set_permissions(&self.dir, Permissions::from_mode(FOLDER_MODE)).map_err(failed)?;
        let unfinished = self.unfinished(entry);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(failed)?;
        file.write_all(document.as_bytes()).map_err(failed)?;
        fs::rename(&unfinished, &path).map_err(failed)
    }

    /// Removes the entry, and before it what a killed process left of one.
    pub(crate) fn forget(&self, entry: &Entry) -> Result<(), CacheError> {
        for path in [self.unfinished(entry), self.path(entry)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CacheError { operation: "remove", path, error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The entries of one attachment, whatever their network.
    pub(crate) fn find(&self, container_id: &str, ifname: &str) -> Result<Vec<Entry>, CacheError> {
        let suffix = format!("-{container_id}-{ifname}");
        let entries = self.read_all(|name| name.ends_with(&suffix))?.into_iter();
        Ok(entries.filter(|entry| entry.container_id == container_id && entry.ifname == ifname).collect())
    }

    /// The entries of one network.
    pub(crate) fn of_network(&self, network: &str) -> Result<Vec<Entry>, CacheError> {
        let prefix = format!("{network}-");
        let entries = self.read_all(|name| name.starts_with(&prefix))?.into_iter();
        Ok(entries.filter(|entry| entry.network == network).collect())
    }

    fn read_all(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Entry>, CacheError> {
        let failed = |path: &Path, error| CacheError { operation: "read", path: path.to_owned(), error };
        let files = match fs::read_dir(&self.dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.dir, error)),
        };
        let mut entries = Vec::new();
        for file in files {
            let file = file.map_err(|error| failed(&self.dir, error))?;
            let name = file.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.') && wanted(name)) else {
                continue;
            };
            let path = self.dir.join(name);
            match read_limited(&path) {
                Ok(bytes) => match Entry::from_json(&bytes) {
                    Ok(entry) => entries.push(entry),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "not a cached attachment"),
                },
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    tracing::warn!(path = %path.display(), %error, "not a cached attachment");
                }
                // Another process finished with it in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(&path, error)),
            }
        }
        Ok(entries)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(file_name(entry))
    }

    /// A dot keeps the unfinished file from being read as an entry; the name is as unique as the entry's.
    fn unfinished(&self, entry: &Entry) -> PathBuf {
        self.dir.join(format!(".{}", file_name(entry)))
    }
}

fn file_name(entry: &Entry) -> String {
    format!("{}-{}-{}", entry.network, entry.container_id, entry.ifname)
}

impl Entry {
    fn to_json(&self) -> Value {
        let args: Vec<[&str; 2]> =
            self.args.keys().map(|key| [key, self.args.get(key).unwrap_or_default()]).collect();
        json!({
            "kind": KIND,
            "containerId": self.container_id,
            "config": STANDARD.encode(&self.config),
            "ifName": self.ifname,
            "networkName": self.network,
            "netns": self.netns,
            "cniArgs": args,
            "capabilityArgs": self.capability_args,
            "result": self.result,
        })
    }

    fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        let map = parse_object(bytes)?;
        let root = Object::root(&map);
        if root.string("kind")? != Some(KIND) {
            return Err(JsonError::key("kind", format!("expected {KIND:?}")));
        }
        let text = |key: &str| -> Result<String, JsonError> {
            Ok(root.required(key, root.string(key)?)?.to_owned())
        };
        let config = STANDARD.decode(text("config")?).map_err(|error| JsonError::key("config", error))?;
        let object = |key: &str| root.value(key).map(|value| as_object(value, key)).transpose();
        Ok(Self {
            network: text("networkName")?,
            container_id: text("containerId")?,
            ifname: text("ifName")?,
            netns: root.string("netns")?.unwrap_or_default().to_owned(),
            config,
            args: read_args(&root)?,
            capability_args: object("capabilityArgs")?.cloned().unwrap_or_default(),
            result: object("result")?.cloned(),
        })
    }
}

fn read_args(root: &Object<'_>) -> Result<CniArgs, JsonError> {
    let each = root.array("cniArgs")?.into_iter().map(|(place, pair)| {
        let texts: Vec<&str> = pair.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match texts.as_slice() {
            [key, value] => Ok(((*key).to_owned(), (*value).to_owned())),
            _ => Err(JsonError::key(place, "expected a pair of strings")),
        }
    });
    each.collect()
}

/// See [`crate::fuzz`].
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(entry) = Entry::from_json(bytes) {
        drop(entry.to_json());
    }
}

#[cfg(test)]
mod tests;
