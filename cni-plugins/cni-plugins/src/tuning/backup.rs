//! What a link was before it was tuned, on disk.
//!
//! Owns one file for each attachment, `<dataDir>/<container id>_<link>.json`, in the reference plugin's format with three
//! keys more, by which GC knows whose it is. The file is whole before anything is changed: one that a kill cut short
//! says that nothing was. It is read by the reference plugin, and reads that one's.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cni::{
    ErrorReply, code,
    json::{Object, parse_object},
    read_limited,
};
use serde_json::{Value, json};

use super::properties::Properties;
use crate::plugin::{Request, Valid};

const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The file of one attachment.
pub(super) struct Backup<'a> {
    request: &'a Request,
    path: PathBuf,
}

impl<'a> Backup<'a> {
    pub(super) fn of(request: &'a Request, folder: &Path) -> Self {
        let name = format!("{}_{}.json", request.container_id, request.ifname);
        Self { request, path: folder.join(name) }
    }

    /// Keeps these. What is in the file already is older, and stays: two plugins of a chain may tune one link.
    pub(super) fn write(&self, before: &Properties) -> Result<(), ErrorReply> {
        let oldest = self.read().unwrap_or_default().or(*before);
        let mut document = oldest.write();
        document.insert("network".to_owned(), json!(self.request.network));
        document.insert("containerID".to_owned(), json!(self.request.container_id));
        document.insert("ifname".to_owned(), json!(self.request.ifname));
        let text = format!("{:#}", Value::Object(document));
        self.write_text(&text).map_err(|error| failed("failed to save file", &self.path, &error))
    }

    fn write_text(&self, text: &str) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(FILE_MODE).open(&self.path)?;
        file.write_all(text.as_bytes())
    }

    /// None when there is nothing to restore.
    pub(super) fn read(&self) -> Option<Properties> {
        let document = parse_object(&read_limited(&self.path).ok()?).ok()?;
        Properties::read(&Object::root(&document)).ok()
    }

    pub(super) fn remove(&self) -> Result<(), ErrorReply> {
        remove(&self.path)
    }
}

/// Removes the files of this network's attachments that are not to be kept. One that does not say whose it is stays.
pub(super) fn collect(folder: &Path, network: &str, keep: &Valid) -> Result<(), ErrorReply> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| failed("failed to read", folder, &error))?,
    };
    for entry in entries {
        let path = entry.map_err(|error| failed("failed to read", folder, &error))?.path();
        if is_unwanted(&path, network, keep).unwrap_or(false) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// None where the file does not say.
fn is_unwanted(path: &Path, network: &str, keep: &Valid) -> Option<bool> {
    let document = parse_object(&read_limited(path).ok()?).ok()?;
    let text = |key: &str| Some(document.get(key)?.as_str()?.to_owned());
    let attachment = (text("containerID")?, text("ifname")?);
    Some(text("network")? == network && !keep.contains(&attachment))
}

fn remove(path: &Path) -> Result<(), ErrorReply> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("failed to remove file", path, &error))
        }
        _ => Ok(()),
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> ErrorReply {
    ErrorReply::new(code::IO_FAILURE, format!("{what} {}: {error}", path.display()))
}
