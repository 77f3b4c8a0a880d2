//! The folder of network configurations, `/etc/cni/net.d`.
//!
//! Owns: which files count (`.conflist`, `.conf`, `.json`), their order (by name), and the folder of additional plugin
//! objects that a list of 1.1 may have beside it. A broken file never hides the others: it is reported with its name
//! and its cause, and the rest is loaded.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{ConfigError, NetworkList, PluginConfig, json, read_limited};

const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// Files of one folder.
const FILE_LIMIT: usize = 1024;

/// What a folder holds.
#[derive(Debug, Default)]
pub struct ConfDir {
    /// In the order of their files' names.
    pub networks: Vec<NetworkList>,
    /// One for each file that cannot be used.
    pub broken: Vec<FileError>,
}

/// A file or folder that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    #[error("read network configuration {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("load network configuration {path}: {error}")]
    Load { path: PathBuf, error: ConfigError },
    #[error("read network configuration {path}: {count} files, expected at most {}", FILE_LIMIT)]
    TooMany { path: PathBuf, count: usize },
}

/// Loads the folder; one that does not exist is empty.
///
/// # Errors
/// When the folder itself cannot be read.
pub fn load_conf_dir(dir: &Path) -> Result<ConfDir, FileError> {
    let mut loaded = ConfDir::default();
    for path in files(dir, &EXTENSIONS)? {
        match load_file(&path, dir) {
            Ok(network) => loaded.networks.push(network),
            Err(error) => loaded.broken.push(error),
        }
    }
    Ok(loaded)
}

fn load_file(path: &Path, dir: &Path) -> Result<NetworkList, FileError> {
    let failed = |error| FileError::Load { path: path.to_owned(), error };
    let mut network = NetworkList::parse(&read(path)?).map_err(failed)?.with_source(path);
    let is_list = network.raw.contains_key("plugins");
    if is_list && !network.load_only_inlined_plugins {
        network.append(additional_plugins(&dir.join(&network.name))?);
    }
    network.check_length().map_err(failed)?;
    Ok(network)
}

fn additional_plugins(dir: &Path) -> Result<Vec<PluginConfig>, FileError> {
    let mut plugins = Vec::new();
    for path in files(dir, &["conf"])? {
        let failed = |error: json::JsonError| FileError::Load { path: path.clone(), error: error.into() };
        let raw = json::parse_object(&read(&path)?).map_err(failed)?;
        plugins.push(PluginConfig::from_object(&raw, "").map_err(failed)?);
    }
    Ok(plugins)
}

/// The folder's files with one of the extensions, by name.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, FileError> {
    let failed = |error| FileError::Read { path: dir.to_owned(), error };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| extensions.contains(&extension)) && path.is_file() {
            paths.push(path);
        }
    }
    if paths.len() > FILE_LIMIT {
        return Err(FileError::TooMany { path: dir.to_owned(), count: paths.len() });
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    read_limited(path).map_err(|error| FileError::Read { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests;
