//! Images: names, content, unpacked layers, and where they come from.
//!
//! ```text
//! root/blobs/sha256/<hex>      manifests, indexes, configs; layers only until they are unpacked
//! root/layers/<16 hex>/        one unpacked layer, named after its diff id; exists only when complete
//! root/layers/<16 hex>.json    its full diff id and size
//! root/images/<hex>.json       one name and what it stands for
//! ```
//! Layers are kept per diff id and not per chain id: an overlay puts unpacked layers on top of each other in any combination, so two images share
//! a layer whatever is below it. Input: archives and registries; output: [`Image`]s and [`UnpackedImage`]s. What arrives is verified while it
//! is written, is complete before it gets its name, and what nobody uses is swept.

pub(crate) mod archive;
pub(crate) mod blobs;
mod bounded;
pub(crate) mod layers;
pub(crate) mod manifest;
pub(crate) mod records;
pub(crate) mod reference;
pub(crate) mod registry;
mod unpack;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use oci_spec::image::ImageConfiguration;

use crate::error::ImageError;
use crate::image::{DiskUsage, Image};
use manifest::Content;
use records::Record;
use reference::Name;

/// Bytes of a manifest, an index or a config.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Layers of one image. The kernel takes more, but not in one page of mount options.
pub(crate) const MAX_LAYERS: usize = 200;

/// An image whose layers are there to be mounted.
#[derive(Debug)]
pub(crate) struct UnpackedImage {
    /// Digest of the config.
    pub id: String,
    /// `name@digest`, or the id.
    pub reference: String,
    /// The config.
    pub config: ImageConfiguration,
    /// Layer directories below [`Store::layers_dir`], the topmost first.
    pub layers: Vec<String>,
    /// Keeps those directories.
    pub hold: Hold,
}

/// The store. One per root directory.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By canonical name.
    records: BTreeMap<String, Record>,
    /// Digests of blobs, diff ids and names of layer directories that operations under way and containers rely on, counted.
    held: BTreeMap<String, usize>,
}

impl State {
    fn hold(&mut self, digest: &str) {
        *self.held.entry(digest.to_owned()).or_default() += 1;
    }
}

/// Keeps blobs and layers from being swept: while an operation runs, and as long as a container is on them. A sweep asks for what is held
/// under the same lock, so what is held when it begins cannot go.
#[derive(Debug)]
pub(crate) struct Hold {
    store: Arc<Store>,
    digests: Vec<String>,
}

impl Hold {
    /// Keeps one more.
    pub fn add(&mut self, digest: &str) {
        self.store.state().hold(digest);
        self.digests.push(digest.to_owned());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for digest in &self.digests {
            if let Some(count) = state.held.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(digest);
                }
            }
        }
    }
}

pub(crate) fn store_error(operation: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
    let operation = operation.into();
    move |source| ImageError::Store { operation, source }
}

impl Store {
    /// Opens the store and removes what interrupted operations left.
    pub fn open(root: &Path) -> Result<Store, ImageError> {
        for directory in ["blobs/sha256", "layers", "images"] {
            let path = root.join(directory);
            std::fs::create_dir_all(&path).map_err(store_error(format!("make {}", path.display())))?;
        }
        blobs::remove_partial(root);
        layers::remove_partial(root);
        let records = records::load(root)?;
        Ok(Store { root: root.to_path_buf(), state: Mutex::new(State { records, ..State::default() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Directory that layer names are relative to.
    pub fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn hold(self: &Arc<Self>, digests: Vec<String>) -> Hold {
        self.hold_with(&mut self.state(), digests)
    }

    fn hold_with(self: &Arc<Self>, state: &mut State, digests: Vec<String>) -> Hold {
        for digest in &digests {
            state.hold(digest);
        }
        Hold { store: Arc::clone(self), digests }
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Image> {
        records::images(&self.state().records)
    }

    fn matching(state: &State, text: &str) -> Result<Option<Record>, ImageError> {
        if let Some(id) = reference::as_image_id(text) {
            let found = state
                .records
                .values()
                .find(|record| record.config_digest.starts_with(&format!("sha256:{id}")));
            if found.is_some() || text.starts_with("sha256:") || id.len() == reference::DIGEST_DIGITS {
                return Ok(found.cloned());
            }
        }
        let name = Name::parse(text)?;
        Ok(state.records.get(&name.canonical()).cloned())
    }

    /// The image that a name or an id stands for.
    pub fn status(&self, text: &str) -> Result<Option<Image>, ImageError> {
        let Some(record) = Store::matching(&self.state(), text)? else { return Ok(None) };
        Ok(self.list().into_iter().find(|image| image.id == record.config_digest))
    }

    /// The image with everything that a container needs of it; its layers stay as long as the result's hold lives.
    pub fn unpacked(self: &Arc<Self>, text: &str) -> Result<UnpackedImage, ImageError> {
        let (record, hold, _config) = {
            let mut state = self.state();
            let record = Store::matching(&state, text)?;
            let record = record.ok_or_else(|| ImageError::Absent { reference: text.into() })?;
            let layers = self.hold_with(&mut state, record.diff_ids.clone());
            let config = self.hold_with(&mut state, vec![record.config_digest.clone()]);
            (record, layers, config)
        };
        let image = self.list().into_iter().find(|image| image.id == record.config_digest);
        let config = blobs::read(&self.root, &record.config_digest)?;
        let config = manifest::parse_config(text, &config)?;
        let layers = record.diff_ids.iter().rev().map(|diff_id| layers::name(diff_id)).collect();
        Ok(UnpackedImage {
            reference: image
                .and_then(|image| image.repo_digests.into_iter().next())
                .unwrap_or_else(|| record.config_digest.clone()),
            id: record.config_digest,
            config,
            layers,
            hold,
        })
    }

    /// Makes an image visible under its names, after the names of its blobs are durable. Its blobs and layers must be there and held.
    pub(crate) fn commit(&self, names: &[Name], content: &Content) -> Result<Image, ImageError> {
        blobs::sync_names(&self.root)?;
        let mut state = self.state();
        for name in names {
            let record = Record::new(name, content);
            records::save(&self.root, &record)?;
            state.records.insert(record.name.clone(), record);
        }
        let found =
            records::images(&state.records).into_iter().find(|image| image.id == content.config.digest);
        found.ok_or_else(|| ImageError::Absent { reference: content.config.digest.clone() })
    }

    /// Removes an image with all its names.
    pub fn remove(&self, text: &str) -> Result<(), ImageError> {
        let mut state = self.state();
        let Some(record) = Store::matching(&state, text)? else { return Ok(()) };
        let names: Vec<String> = state
            .records
            .values()
            .filter(|other| other.config_digest == record.config_digest)
            .map(|other| other.name.clone())
            .collect();
        for name in names {
            records::delete(&self.root, &name)?;
            state.records.remove(&name);
        }
        drop(state);
        self.sweep()
    }

    /// Removes blobs and layers that no image has and nobody holds.
    pub fn sweep(&self) -> Result<(), ImageError> {
        let mut doomed = Vec::new();
        let swept = self.unname(&mut doomed);
        // Without the lock: a tree of a hundred thousand files takes a while, and every container's end waits for the lock.
        doomed.iter().for_each(|layer| layers::remove_tree(layer));
        swept
    }

    /// Takes the names of layers that are not used, and removes blobs that are not.
    fn unname(&self, doomed: &mut Vec<PathBuf>) -> Result<(), ImageError> {
        let state = self.state();
        let mut digests: BTreeSet<&str> = state.held.keys().map(String::as_str).collect();
        let mut layers: BTreeSet<String> = state.held.keys().map(|digest| layers::name(digest)).collect();
        for record in state.records.values() {
            digests.extend(record.blobs.iter().map(String::as_str));
            layers.extend(record.diff_ids.iter().map(|diff_id| layers::name(diff_id)));
        }
        blobs::retain(&self.root, &digests)?;
        layers::retain(&self.root, &layers, doomed)
    }

    /// Bytes and inodes of everything that is kept.
    pub fn disk_usage(&self, timestamp: i64) -> Result<DiskUsage, ImageError> {
        let (layer_bytes, inodes) = layers::total(&self.root);
        let file_system = rustix::fs::statvfs(&self.root)
            .map_err(|errno| store_error(format!("statvfs {}", self.root.display()))(errno.into()))?;
        Ok(DiskUsage {
            timestamp,
            used_bytes: layer_bytes + blobs::total(&self.root),
            inodes_used: inodes,
            capacity_bytes: file_system.f_blocks * file_system.f_frsize,
            available_bytes: file_system.f_bavail * file_system.f_frsize,
        })
    }
}
