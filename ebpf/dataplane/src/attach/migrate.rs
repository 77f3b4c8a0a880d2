//! Carries what an older layout's maps hold into ours, so that an upgrade that changes the layout ends no connection.
//!
//! In: the folder of the newest older layout, and the maps that our object wants. `plan` (pure) says what becomes of each map: one that did
//! not change is kept, of one that did the elements are copied, converted by the names of fields that the kernel's type information tells.
//! The caller loads the programs between [`stage`] and [`Migration::carry`] and puts them in the place of the earlier ones between
//! [`Migration::take_over`] and [`Migration::finish`], with a [`Migration::catch_up`] after each direction. A process may be killed at any point:
//!
//! ```text
//! v8                the older layout, at work
//!  | stage          makes our maps in `next`: kept ones are pinned there too, of the others the tables are copied
//! v8, next          -- killed: `next` goes, all begins again
//!  | carry          copies the flows; `next` becomes v9, and says in it where it comes from
//! v8, v9/from_v8    -- killed: see below
//!  | take_over      v8's links and filters become v9's, and still run the earlier programs; no flow begins any more
//!  | (caller)       replaces the programs that begin flows in place
//!  | catch_up       copies what the earlier programs wrote since `carry`
//!  | (caller)       replaces the programs that answers pass
//!  | catch_up       copies what the earlier programs wrote since then
//!  | finish         flows begin again; what was counted is added up, then the note goes, then v8
//! v9                -- killed before v8 went: it has no programs, and goes after the first full sync
//! ```
//!
//! A process that finds the note begins anew where it can (`resume`): while no program of ours is at work, v8 gets its links and filters
//! back, and all is copied into `next` again, in whose favour v9 goes. So what the earlier programs, or an earlier build that ran once more,
//! wrote meanwhile is not lost. Else it goes on, and of two values for one flow that was used last holds.
//!
//! Whatever fails here is logged, and the agent goes on: where the tables cannot be carried over, with empty maps beside the older layout,
//! which then goes after the first full sync; where some flows cannot, without these; and where an interrupted change cannot be made good,
//! with what was carried over until then. A newer layout is never carried over.
//!
//! A packet between `take_over` and `finish` that would begin a flow, or is of one that is not copied yet, is dropped, and sent again: a new connection takes
//! a second then. That lasts [`HOLD_AT_MOST`] where the process dies. Which flows were used last is forgotten: a full map makes room among all of them. What the programs count is added up, but where
//! the process was killed while it replaced them: then what the earlier ones counted between `carry` and that is lost. That a backend
//! was set aside in that time is forgotten too.

mod btf;
mod copy;
mod layout;
mod plan;
mod resume;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, MapError};
use dataplane_abi::map;

use super::{
    OBJECT, OpenError, PINNED_MAPS, filters, layouts, links, load_object, remove_folder, remove_layout,
};
use crate::sys;
use crate::sys::maps::{Elements, MapInfo};
use btf::Btf;
use copy::Changed;
use layout::Shape;
use plan::{Described, Fate, Refused};

/// Our maps until they are complete. No layout's name.
const STAGING: &str = "next";
/// Maps that were ours until others took their place. No layout's name.
const PAST: &str = "past";
/// What a folder is called in ours that came from it, until all that was in it is ours.
const NOTE: &str = "from_";
/// How long no flow begins at most, whatever becomes of this process.
const HOLD_AT_MOST: Duration = Duration::from_secs(5);

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

/// An older layout.
struct Found {
    older: PathBuf,
    /// Whether an earlier process began to carry it over.
    is_begun: bool,
}

/// Looks for an older layout and makes our maps of it: those, with the programs that are to work on them. `None`: there is nothing to carry
/// over, or it cannot be.
pub fn stage(pin_root: &Path, ours: &Path) -> Result<Option<(Migration, Ebpf)>, OpenError> {
    let staging = pin_root.join(STAGING);
    remove_folder(&staging)?;
    remove_folder(&pin_root.join(PAST))?;
    let Some(Found { older, is_begun }) = find(pin_root, ours)? else { return Ok(None) };
    if is_begun && !may_begin_anew(&older, ours) {
        return Migration::resume(older, ours).map(Some);
    }
    match Migration::stage(&older, ours, staging.clone()) {
        Ok(staged) => staged.map(Some),
        Err(error) if is_begun => {
            tell_unfinished(&older, &error);
            remove_folder(&staging)?;
            Migration::resume(older, ours).map(Some)
        }
        Err(error) => {
            give_up(&older, &error);
            remove_folder(&staging).map(|()| None)
        }
    }
}

fn may_begin_anew(older: &Path, ours: &Path) -> bool {
    resume::give_back(older, ours).unwrap_or_else(|error| {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "the change of the layout that was interrupted goes on: it cannot begin anew");
        false
    })
}

fn tell_unfinished(older: &Path, error: &MigrateError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(
        path = %older.display(),
        error,
        "what the earlier programs wrote since the change of the layout was interrupted is not carried over: connections that began or were \
         led elsewhere since then may break, restart the pods whose connections hang"
    );
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
        return Ok(unfinished.map(|older| Found { older, is_begun: true }));
    }
    let newest = layouts(pin_root)?.into_iter().max_by_key(|layout| number(layout));
    let Some(newest) = newest else { return Ok(None) };
    if number(&newest) > number(ours) {
        tracing::info!(path = %newest.display(), "a newer layout is not carried over: its connections begin anew");
        return Ok(None);
    }
    Ok(Some(Found { older: newest, is_begun: false }))
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
        older: &Path,
        ours: &Path,
        folder: PathBuf,
    ) -> Result<Result<(Self, Ebpf), OpenError>, MigrateError> {
        let begun = Instant::now();
        let old = open_maps(older)?;
        plan::check_complete(|name| old.contains_key(name))?;
        let fates = fates(&old)?;
        let failed = |source| MigrateError::File { operation: "create", path: folder.clone(), source };
        fs::create_dir(&folder).map_err(failed)?;
        for (name, _) in fates.iter().filter(|(_, fate)| **fate == Fate::Kept) {
            let path = folder.join(name);
            let pinned = sys::object_pin(old[name].map.as_fd(), &path);
            pinned.map_err(|source| MigrateError::File { operation: "pin", path, source })?;
        }
        let programs = match load_object(&folder) {
            Ok(programs) => programs,
            Err(error) => return Ok(Err(error)),
        };
        let mut changed = changed(old, fates, &folder)?;
        for map in changed.iter_mut().filter(|map| plan::is_table(map.name) && !map.is_counting()) {
            map.copy_all().map_err(|source| MigrateError::Copy { map: map.name, source })?;
        }
        let (older, ours) = (older.to_owned(), ours.to_owned());
        Ok(Ok((Self { older, ours, staged: Some(folder), changed, begun, carried: begun }, programs)))
    }

    /// What an earlier process carried over, and the programs that it may have begun to put in their places.
    fn resume(older: PathBuf, ours: &Path) -> Result<(Self, Ebpf), OpenError> {
        let begun = Instant::now();
        let programs = load_object(ours)?;
        let changed = Self::unfinished(&older, ours).unwrap_or_else(|error| {
            tell_unfinished(&older, &error);
            Vec::new()
        });
        Ok((Self { older, ours: ours.to_owned(), staged: None, changed, begun, carried: begun }, programs))
    }

    fn unfinished(older: &Path, ours: &Path) -> Result<Vec<Changed>, MigrateError> {
        let old = open_maps(older)?;
        let fates = fates(&old)?;
        changed(old, fates, ours)
    }

    /// The folder of the older layout.
    pub fn older(&self) -> &Path {
        &self.older
    }

    /// Copies the flows and what is counted, and makes our maps the ones that the next process finds. `false`, with everything as it was
    /// before: they are not.
    pub fn carry(&mut self) -> Result<bool, OpenError> {
        let Some(staged) = self.staged.take() else { return Ok(true) };
        self.carried = Instant::now();
        if let Err(error) = self.copy_and_complete(&staged) {
            give_up(&self.older, &error);
            let path = self.ours.clone();
            self.put_aside().map_err(|source| OpenError::File { operation: "put aside", path, source })?;
            return remove_folder(&staged).map(|()| false);
        }
        Ok(true)
    }

    /// What an earlier process made ours, if one did: nothing is attached there.
    fn put_aside(&self) -> io::Result<()> {
        match fs::rename(&self.ours, self.ours.with_file_name(PAST)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn copy_and_complete(&mut self, staged: &Path) -> Result<(), MigrateError> {
        // Programs write these at any time.
        let late = |map: &&mut Changed| map.is_counting() || !plan::is_table(map.name);
        for map in self.changed.iter_mut().filter(late) {
            match map.copy_all() {
                Err(source) if plan::is_table(map.name) => {
                    return Err(MigrateError::Copy { map: map.name, source });
                }
                Err(error) => map.tell_lost(&error),
                Ok(()) => {}
            }
        }
        let complete = || {
            fs::create_dir(note(staged, &self.older))?;
            self.put_aside()?;
            // Killed here: all begins again.
            fs::rename(staged, &self.ours)
        };
        let path = self.ours.clone();
        complete().map_err(|source| MigrateError::File { operation: "complete", path, source })
    }

    /// Makes the links and filters of the older layout ours, which go on running the earlier programs. From now on a packet of a flow that
    /// ours do not know is dropped, so that its sender tries again: the earlier ones may know it.
    pub fn take_over(&self) {
        if self.changed.iter().any(|map| !map.is_array) {
            let held = self.hold(sys::now().saturating_add(HOLD_AT_MOST.as_nanos() as u64));
            if let Err(error) = held {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "connections that begin during the change of the layout may break");
            }
        }
        let doubled = resume::remove_doubled(&self.older, &self.ours);
        let links = links::move_all(&self.older, &self.ours);
        let filters = filters::move_all(&self.older, &self.ours);
        for error in [doubled, links, filters].into_iter().filter_map(Result::err) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "a program of the earlier layout is not taken over, and goes with it");
        }
    }

    fn hold(&self, until: u64) -> Result<(), MapError> {
        let pinned = Map::Array(MapData::from_pin(self.ours.join(map::HOLD))?);
        Array::<MapData, u64>::try_from(pinned)?.set(0, until, 0)
    }

    /// Copies the flows that the earlier programs, of which those that were replaced run no more, wrote meanwhile.
    pub fn catch_up(&mut self) {
        let mut flows: Vec<_> = self.changed.iter_mut().filter(|map| !map.is_array).collect();
        if flows.is_empty() {
            return;
        }
        let mut result = sys::wait_for_readers();
        for map in &mut flows {
            result = map.catch_up().and(result);
        }
        if let Err(error) = result {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "connections that began during the change of the layout may break");
        }
    }

    /// Lets flows begin again, all of whose packets our programs have now, adds what the earlier ones counted, and removes what is left of the older layout.
    pub fn finish(self) {
        let freed = self.hold(0);
        let window = self.carried.elapsed();
        if let Err(error) = freed {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, most = ?HOLD_AT_MOST, "connections begin again when that time is over");
        }
        for map in self.changed.iter().filter(|map| map.is_array) {
            if let Err(error) = map.add_counted() {
                map.tell_lost(&error);
            }
        }
        let older = self.older.as_path();
        // From now on it would say too much: what user space writes is in our maps alone.
        let _stays = fs::remove_dir(note(&self.ours, older));
        let removed = filters::remove(|place| place.folder == older)
            .and_then(|()| remove_layout(older))
            .and_then(|()| remove_folder(&self.ours.with_file_name(PAST)));
        if let Err(error) = removed {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(path = %older.display(), error, "remove the earlier layout");
            return;
        }
        let elapsed = self.begun.elapsed();
        tracing::info!(path = %older.display(), ?elapsed, ?window, "carried the earlier layout over");
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
    if info.types == 0 || info.key_size == 0 {
        return Ok(untyped(&info));
    }
    let bytes = match types.entry(info.types) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => unknown.insert(sys::maps::types(info.types)?),
    };
    let Ok(types) = Btf::parse(bytes) else { return Ok(None) };
    Ok(described(&info, &types))
}

/// A map without keys, of which the kernel keeps no type information: two of one name and size are alike.
fn untyped(info: &MapInfo) -> Option<Described> {
    let bytes = |size: u32| Shape::Array {
        element: Box::new(Shape::Number { size: 1, is_signed: false }),
        length: size as usize,
    };
    (info.key_size == 0).then(|| Described {
        kind: info.kind,
        flags: info.flags,
        key_size: info.key_size,
        value_size: info.value_size,
        capacity: info.capacity,
        key: bytes(info.key_size),
        value: bytes(info.value_size),
    })
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

/// What becomes of each.
fn fates(old: &BTreeMap<&'static str, Opened>) -> Result<BTreeMap<&'static str, Fate>, MigrateError> {
    let described = |(name, map): (&&'static str, &Opened)| (*name, map.described.clone());
    Ok(plan::fates(&old.iter().map(described).collect(), &wanted()?)?)
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
        let typed = || types.as_ref().and_then(|types| described(&info, types));
        Some((*name, untyped(&info).or_else(typed)))
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
