//! Carries what an older layout's maps hold into ours, so that an upgrade that changes the layout ends no connection.
//!
//! In: the folder of the newest older layout, and the maps that our object wants. `plan` (pure) says what becomes of each map: one that did
//! not change is kept, of one that did the elements are copied, converted by the names of fields that the kernel's type information tells.
//! The caller loads the programs between [`stage`] and [`Migration::carry`] and puts them in the place of the earlier ones between
//! [`Migration::take_over`] and [`Migration::finish`]. A process may be killed at any point:
//!
//! ```text
//! v8                the older layout, at work
//!  | stage          makes our maps in `next`: kept ones are pinned there too, of the others the tables are copied
//! v8, next          -- killed: `next` goes, all begins again
//!  | carry          copies the flows; `next` becomes v9, and says in it where it comes from
//! v8, v9/from_v8    -- killed: the next process goes on here
//!  | take_over      v8's links and filters become v9's, and still run the earlier programs
//!  | (caller)       replaces the programs in place, one after the other
//!  | finish         copies what the earlier programs wrote since `carry`, then v8 goes, then the note
//! v9
//! ```
//!
//! Whatever fails here is logged, and the agent goes on: where the tables cannot be carried over, with empty maps beside the older layout,
//! which then goes after the first full sync; where some flows cannot, without these. A newer layout is never carried over.
//!
//! Where flows are copied, one that begins between `carry` and `finish` and goes on in that time may meet a program of ours that does not know it
//! yet; and which flows were used last is forgotten: a full map makes room among all of them.

mod btf;
mod layout;
mod plan;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use aya::Ebpf;

use super::{
    OBJECT, OpenError, PINNED_MAPS, filters, layouts, links, load_object, remove_folder, remove_layout,
};
use crate::sys;
use crate::sys::maps::{Elements, MapInfo};
use btf::Btf;
use plan::{Described, Fate, Recipe, Refused};

/// Our maps until they are complete. No layout's name.
const STAGING: &str = "next";
/// What a folder is called in ours that came from it, until it is gone.
const NOTE: &str = "from_";

/// Why nothing is carried over.
#[derive(Debug, thiserror::Error)]
enum MigrateError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("read our own maps from the BPF object")]
    Object(#[source] aya_obj::ParseError),
    #[error("copy map {map}")]
    Copy { map: &'static str, source: io::Error },
}

/// An older layout that is being carried over.
pub struct Migration {
    older: PathBuf,
    ours: PathBuf,
    /// Where our maps are until they are complete; none: an earlier process completed them.
    staged: Option<PathBuf>,
    changed: Vec<Changed>,
    begun: Instant,
    /// Since then what the earlier programs write has to be copied again.
    carried: Instant,
}

/// A map of which the elements are copied.
struct Changed {
    name: &'static str,
    recipe: Recipe,
    is_array: bool,
    old: Elements,
    new: Elements,
    /// The keys that were copied, where this process did it.
    copied: Option<HashSet<Vec<u8>>>,
}

/// An older layout, and where our maps are or will be.
struct Found {
    older: PathBuf,
    folder: PathBuf,
    is_new: bool,
}

/// Looks for an older layout and makes our maps of it: those, with the programs that are to work on them. `None`: there is nothing to carry
/// over, or it cannot be.
pub fn stage(pin_root: &Path, ours: &Path) -> Result<Option<(Migration, Ebpf)>, OpenError> {
    remove_folder(&pin_root.join(STAGING))?;
    let Some(found) = find(pin_root, ours)? else { return Ok(None) };
    let older = found.older.clone();
    let begun = Instant::now();
    match Migration::stage(found, ours, begun) {
        Ok(staged) => staged.map(Some),
        Err(error) => {
            give_up(&older, &error);
            remove_folder(&pin_root.join(STAGING)).map(|()| None)
        }
    }
}

fn give_up(older: &Path, error: &MigrateError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(
        path = %older.display(),
        error,
        "nothing of the earlier layout is carried over: its connections break when it is removed after the first full sync"
    );
}

fn find(pin_root: &Path, ours: &Path) -> Result<Option<Found>, OpenError> {
    if ours.exists() {
        let unfinished = unfinished(pin_root, ours).map_err(|source| OpenError::File {
            operation: "read",
            path: ours.into(),
            source,
        })?;
        return Ok(unfinished.map(|older| Found { older, folder: ours.to_owned(), is_new: false }));
    }
    let newest = layouts(pin_root)?.into_iter().max_by_key(|layout| number(layout));
    let Some(newest) = newest else { return Ok(None) };
    if number(&newest) > number(ours) {
        tracing::info!(path = %newest.display(), "a newer layout is not carried over: its connections begin anew");
        return Ok(None);
    }
    Ok(Some(Found { older: newest, folder: pin_root.join(STAGING), is_new: true }))
}

/// The layout that an earlier process did not finish to carry over into ours. Notes of others, which are gone, go.
fn unfinished(pin_root: &Path, ours: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(ours)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(older) = name.to_str().and_then(|name| name.strip_prefix(NOTE)) else { continue };
        let older = pin_root.join(older);
        if older.exists() {
            return Ok(Some(older));
        }
        // It says nothing any more.
        let _stays = fs::remove_dir(entry.path());
    }
    Ok(None)
}

/// The number of a layout by its folder.
fn number(layout: &Path) -> Option<u32> {
    layout.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

fn note(ours: &Path, older: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(NOTE);
    name.push(older.file_name().unwrap_or_default());
    ours.join(name)
}

impl Migration {
    /// The inner error is the agent's too: another try may do better.
    fn stage(
        Found { older, folder, is_new }: Found,
        ours: &Path,
        begun: Instant,
    ) -> Result<Result<(Self, Ebpf), OpenError>, MigrateError> {
        let old = open_maps(&older)?;
        if is_new {
            plan::check_complete(|name| old.contains_key(name))?;
        }
        let described = |(name, map): (&&'static str, &Opened)| (*name, map.described.clone());
        let fates = plan::fates(&old.iter().map(described).collect(), &wanted()?)?;
        if is_new {
            let failed = |source| MigrateError::File { operation: "create", path: folder.clone(), source };
            fs::create_dir(&folder).map_err(failed)?;
            for (name, _) in fates.iter().filter(|(_, fate)| **fate == Fate::Kept) {
                let path = folder.join(name);
                let pinned = sys::object_pin(old[name].map.as_fd(), &path);
                pinned.map_err(|source| MigrateError::File { operation: "pin", path, source })?;
            }
        }
        let programs = match load_object(&folder) {
            Ok(programs) => programs,
            Err(error) => return Ok(Err(error)),
        };
        let mut changed = changed(old, fates, &folder)?;
        if is_new {
            for map in changed.iter_mut().filter(|map| plan::is_table(map.name)) {
                map.copy_all().map_err(|source| MigrateError::Copy { map: map.name, source })?;
            }
        }
        let staged = is_new.then_some(folder);
        Ok(Ok((Self { older, ours: ours.to_owned(), staged, changed, begun, carried: begun }, programs)))
    }

    /// The folder of the older layout.
    pub fn older(&self) -> &Path {
        &self.older
    }

    /// Copies the flows, and makes our maps the ones that the next process finds. `false`, with everything as it was before: they are not.
    pub fn carry(&mut self) -> Result<bool, OpenError> {
        let Some(staged) = self.staged.take() else { return Ok(true) };
        self.carried = Instant::now();
        // Programs count in arrays' elements: once more, as these are by now.
        for map in self.changed.iter_mut().filter(|map| map.is_array || !plan::is_table(map.name)) {
            if let Err(error) = map.copy_all() {
                map.tell_lost(&error);
            }
        }
        let note = note(&staged, &self.older);
        let completed = fs::create_dir(note).and_then(|()| fs::rename(&staged, &self.ours));
        if let Err(source) = completed {
            let path = self.ours.clone();
            give_up(&self.older, &MigrateError::File { operation: "complete", path, source });
            return remove_folder(&staged).map(|()| false);
        }
        Ok(true)
    }

    /// Makes the links and filters of the older layout ours. They go on running the earlier programs.
    pub fn take_over(&self) {
        let links = links::move_all(&self.older, &self.ours);
        let filters = filters::move_all(&self.older, &self.ours);
        for error in [links, filters].into_iter().filter_map(Result::err) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "a program of the earlier layout is not taken over, and goes with it");
        }
    }

    /// Copies what the earlier programs, which run no more, wrote meanwhile, and removes what is left of the older layout.
    pub fn finish(mut self) {
        if let Err(error) = self.catch_up() {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "connections that began during the change of the layout may break");
        }
        let window = self.carried.elapsed();
        let older = self.older.as_path();
        let removed = filters::remove(|place| place.folder == older).and_then(|()| remove_layout(older));
        if let Err(error) = removed {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(path = %older.display(), error, "remove the earlier layout");
            return;
        }
        // Of a layout that is gone it says nothing.
        let _stays = fs::remove_dir(note(&self.ours, older));
        let elapsed = self.begun.elapsed();
        tracing::info!(path = %older.display(), ?elapsed, ?window, "carried the earlier layout over");
    }

    fn catch_up(&mut self) -> io::Result<()> {
        let mut changed = self.changed.iter_mut().filter(|map| !map.is_array).peekable();
        if changed.peek().is_none() {
            return Ok(());
        }
        sys::wait_for_readers()?;
        let mut result = Ok(());
        for map in changed {
            result = map.copy_missing().and(result);
        }
        result
    }
}

impl Changed {
    /// Fills the new map, which is empty.
    fn copy_all(&mut self) -> io::Result<()> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let (mut copied, mut elements, mut unfit) = (HashSet::new(), 0_usize, 0_usize);
        self.old.read(|key, value| {
            // Elements of an array are all there, and zero.
            if self.is_array && value.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            let Some((key, value)) = self.converted(key, value) else {
                unfit += 1;
                return Ok(());
            };
            keys.extend_from_slice(&key);
            values.extend(value);
            elements += 1;
            if !self.is_array {
                copied.insert(key);
            }
            if self.new.is_batch(&keys) { self.new.write(&mut keys, &mut values) } else { Ok(()) }
        })?;
        self.new.write(&mut keys, &mut values)?;
        if unfit > 0 {
            tracing::warn!(
                map = self.name,
                unfit,
                "elements have no place in the new layout: {}",
                self.worth()
            );
            if plan::is_table(self.name) {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        tracing::info!(map = self.name, elements, "copied into the new layout");
        self.copied = Some(copied);
        Ok(())
    }

    /// Adds what the new map does not have.
    fn copy_missing(&mut self) -> io::Result<()> {
        let present = match self.copied.take() {
            Some(copied) => copied,
            None => self.present()?,
        };
        let mut added = 0_usize;
        self.old.read(|key, value| {
            if let Some(key) = self.converted_key(key)
                && !present.contains(&key)
                && let Some(value) = self.recipe.value.apply(value)
            {
                added += usize::from(self.new.add(&key, &value)?);
            }
            Ok(())
        })?;
        tracing::debug!(map = self.name, added, "copied what came meanwhile");
        Ok(())
    }

    /// The keys of the new map.
    fn present(&self) -> io::Result<HashSet<Vec<u8>>> {
        let mut present = HashSet::new();
        self.new.read(|key, _| {
            present.insert(key.to_vec());
            Ok(())
        })?;
        Ok(present)
    }

    fn converted(&self, key: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        Some((self.converted_key(key)?, self.recipe.value.apply(value)?))
    }

    fn converted_key(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.recipe.key.as_ref().map_or_else(|| Some(key.to_vec()), |conversion| conversion.apply(key))
    }

    fn worth(&self) -> &'static str {
        plan::worth(self.name)
    }

    fn tell_lost(&self, error: &io::Error) {
        let error = error as &dyn std::error::Error;
        tracing::warn!(map = self.name, error, "not carried over whole: {}", self.worth());
    }
}

/// A pinned map, and what the kernel tells of it.
struct Opened {
    map: OwnedFd,
    described: Option<Described>,
}

/// The maps in a folder that we know.
fn open_maps(folder: &Path) -> Result<BTreeMap<&'static str, Opened>, MigrateError> {
    let mut types: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut opened = BTreeMap::new();
    for name in PINNED_MAPS {
        let path = folder.join(name);
        let failed = |operation| {
            let path = path.clone();
            move |source| MigrateError::File { operation, path, source }
        };
        let map = match sys::object_get(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            map => map.map_err(failed("open"))?,
        };
        let described = describe(&map, &mut types).map_err(failed("read"))?;
        opened.insert(*name, Opened { map, described });
    }
    Ok(opened)
}

/// `None` if its type information says nothing.
fn describe(map: &OwnedFd, types: &mut HashMap<u32, Vec<u8>>) -> io::Result<Option<Described>> {
    let info = sys::maps::map_info(map.as_fd())?;
    if info.types == 0 {
        return Ok(None);
    }
    let bytes = match types.entry(info.types) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => unknown.insert(sys::maps::types(info.types)?),
    };
    let Ok(types) = Btf::parse(bytes) else { return Ok(None) };
    Ok(described(&info, &types))
}

fn described(info: &MapInfo, types: &Btf<'_>) -> Option<Described> {
    let shape = |id, size| types.shape(id).ok().filter(|shape| shape.size() == Some(size as usize));
    Some(Described {
        kind: info.kind,
        flags: info.flags,
        key_size: info.key_size,
        value_size: info.value_size,
        capacity: info.capacity,
        key: shape(info.key_type, info.key_size)?,
        value: shape(info.value_type, info.value_size)?,
    })
}

/// The maps that our object wants.
fn wanted() -> Result<BTreeMap<&'static str, Option<Described>>, MigrateError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(MigrateError::Object)?;
    let types = object.btf.as_ref().map(aya_obj::btf::Btf::to_bytes).unwrap_or_default();
    let types = Btf::parse(&types).ok();
    let describe = |name: &&'static str| {
        let map = object.maps.get(*name)?;
        let aya_obj::Map::Btf(typed) = map else { return Some((*name, None)) };
        let info = MapInfo {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            capacity: map.max_entries(),
            flags: map.map_flags(),
            key_type: typed.def.btf_key_type_id,
            value_type: typed.def.btf_value_type_id,
            types: 0,
        };
        Some((*name, types.as_ref().and_then(|types| described(&info, types))))
    };
    Ok(PINNED_MAPS.iter().filter_map(describe).collect())
}

/// What is to be copied, and what is lost said.
fn changed(
    mut old: BTreeMap<&'static str, Opened>,
    fates: BTreeMap<&'static str, Fate>,
    folder: &Path,
) -> Result<Vec<Changed>, MigrateError> {
    let mut changed = Vec::new();
    for (name, fate) in fates {
        match (fate, old.remove(name)) {
            (Fate::Copied(_), _) if plan::is_transient(name) => {}
            (Fate::Copied(recipe), Some(Opened { map, described })) => {
                let failed = |source| MigrateError::Copy { map: name, source };
                let new = sys::object_get(&folder.join(name)).and_then(Elements::of).map_err(failed)?;
                let old = Elements::of(map).map_err(failed)?;
                let is_array = described.as_ref().is_some_and(plan::is_array);
                changed.push(Changed { name, recipe, is_array, old, new, copied: None });
            }
            (Fate::Lost(loss), _) if !plan::is_transient(name) => {
                let error = &loss as &dyn std::error::Error;
                tracing::warn!(map = name, error, "not carried over: {}", plan::worth(name));
            }
            _ => {}
        }
    }
    Ok(changed)
}
