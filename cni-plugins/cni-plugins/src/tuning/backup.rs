//! What a link was before it was tuned, on disk.
//!
//! Owns one file for each attachment, `<dataDir>/<container id>_<link>.json`, in the reference plugin's format with three
//! keys more, by which GC knows whose it is. The file is whole before anything is changed, and replaced as a whole: a kill
//! leaves the old values or the new ones. It is read by the reference plugin, and reads that one's, which may be cut short:
//! from such a file nothing can be restored, whosever it is, and its name says whether it is still somebody's.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use cni::{
    ErrorReply, code,
    json::{Object, parse_object},
    read_limited,
};
use serde_json::{Map, Value, json};

use super::properties::Properties;
use crate::{
    kept_file,
    plugin::{Request, Valid},
};

/// The file of one attachment.
pub(super) struct Backup<'a> {
    request: &'a Request,
    path: PathBuf,
}

/// What the file was before a plugin of the chain added to it; none where there was no file, or none that says anything.
pub(super) struct Earlier(Option<Vec<u8>>);

impl<'a> Backup<'a> {
    pub(super) fn of(request: &'a Request, folder: &Path) -> Self {
        let path = folder.join(file_name(&request.container_id, &request.ifname));
        Self { request, path }
    }

    /// Keeps these. What is in the file already is older, and stays: two plugins of a chain may tune one link.
    pub(super) fn write(&self, before: &Properties) -> Result<Earlier, ErrorReply> {
        let earlier = read_limited(&self.path).ok().and_then(|text| Some((properties(&text)?, text)));
        let oldest = earlier.as_ref().map_or(*before, |(oldest, _)| oldest.or(*before));
        let mut document = oldest.write();
        document.insert("network".to_owned(), json!(self.request.network));
        document.insert("containerID".to_owned(), json!(self.request.container_id));
        document.insert("ifname".to_owned(), json!(self.request.ifname));
        self.write_text(format!("{:#}", Value::Object(document)).as_bytes())?;
        Ok(Earlier(earlier.map(|(_, text)| text)))
    }

    /// Undoes [`Backup::write`].
    pub(super) fn put_back(&self, earlier: Earlier) -> Result<(), ErrorReply> {
        match earlier.0 {
            Some(text) => self.write_text(&text),
            None => self.remove(),
        }
    }

    fn write_text(&self, text: &[u8]) -> Result<(), ErrorReply> {
        kept_file::write(&self.path, text).map_err(|error| failed("failed to save file", &self.path, &error))
    }

    /// None when there is nothing to restore.
    pub(super) fn read(&self) -> Option<Properties> {
        properties(&read_limited(&self.path).ok()?)
    }

    pub(super) fn remove(&self) -> Result<(), ErrorReply> {
        remove(&self.path)
    }
}

fn file_name(container_id: &str, ifname: &str) -> String {
    format!("{container_id}_{ifname}.json")
}

fn properties(text: &[u8]) -> Option<Properties> {
    Properties::read(&Object::root(&parse_object(text).ok()?)).ok()
}

/// Removes the files of this network's attachments that are not to be kept, and unreadable ones of which there are no such
/// attachments. One that does not say whose it is stays.
pub(super) fn collect(folder: &Path, network: &str, keep: &Valid) -> Result<(), ErrorReply> {
    let names = kept_file::names(folder).map_err(|error| failed("failed to read", folder, &error))?;
    let kept: HashSet<String> = keep.iter().map(|(id, ifname)| file_name(id, ifname)).collect();
    let collect = |name: String| {
        let path = folder.join(&name);
        let is_unwanted = match read_limited(&path).ok().and_then(|text| parse_object(&text).ok()) {
            Some(document) => {
                whose(&document).is_some_and(|(of, attachment)| of == network && !keep.contains(&attachment))
            }
            None => is_file_name(&name) && !kept.contains(&name),
        };
        if is_unwanted { remove(&path) } else { Ok(()) }
    };
    ErrorReply::first_of(names.into_iter().map(collect))
}

/// The network, and the container's id and the link's name; none where the document does not say.
fn whose(document: &Map<String, Value>) -> Option<(String, (String, String))> {
    let text = |key: &str| Some(document.get(key)?.as_str()?.to_owned());
    Some((text("network")?, (text("containerID")?, text("ifname")?)))
}

/// Whether an attachment's file could have this name. Both the container's id and the link's name may have the divider in it.
fn is_file_name(name: &str) -> bool {
    let stem = name.strip_suffix(".json").unwrap_or_default();
    let mut parts = stem.match_indices('_').map(|(at, divider)| (&stem[..at], &stem[at + divider.len()..]));
    parts.any(|(id, ifname)| cni::container_id(id).is_ok() && cni::interface_name(ifname).is_ok())
}

fn remove(path: &Path) -> Result<(), ErrorReply> {
    kept_file::remove(path).map_err(|error| failed("failed to remove file", path, &error))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> ErrorReply {
    ErrorReply::new(code::IO_FAILURE, format!("{what} {}: {error}", path.display()))
}
