//! Whether a change of the layout that was interrupted can begin anew.
//!
//! In: the two folders. It can while none of our programs is at work, which is told by the maps that only our folder has: then the older
//! layout's maps alone tell how things are, and what ours hold of it is of an earlier moment. Its links and filters that are ours already go back.
//! Where an older build has run once more meanwhile, it attached its own in the place of those that were ours: then ours go.

use std::collections::HashSet;
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::loaded_programs;

use super::super::filters::{self, Place};
use super::super::{OpenError, PINNED_MAPS, links};

/// Gives the older layout back what is attached in ours. `false`: a program of ours is at work, and all stays as it is.
pub fn give_back(older: &Path, ours: &Path) -> Result<bool, OpenError> {
    let at_work = programs_on(&own_maps(older, ours)?);
    let filters_of_older = filters::placed(older)?;
    let links = links::programs(ours)?.into_iter().filter(|(name, _)| !older.join(name).exists());
    let filters = filters::placed(ours)?.into_iter().filter(|(place, _)| !is_among(&filters_of_older, place));
    let mut attached = links.map(|(_, program)| program).chain(filters.filter_map(|(_, program)| program));
    if attached.any(|program| at_work.contains(&program)) {
        return Ok(false);
    }
    remove_doubled(older, ours)?;
    links::move_all(ours, older)?;
    filters::move_all(ours, older)?;
    Ok(true)
}

/// Removes the links and filters of ours that the older layout has too.
pub fn remove_doubled(older: &Path, ours: &Path) -> Result<(), OpenError> {
    for (name, _) in links::programs(ours)? {
        if older.join(&name).exists() {
            links::remove(&ours.join(&name))?;
        }
    }
    let filters_of_older = filters::placed(older)?;
    if filters_of_older.is_empty() {
        return Ok(());
    }
    filters::remove(|place| place.folder == ours && is_among(&filters_of_older, place))
}

/// Whether there is a filter at a place but for its folder.
fn is_among(filters: &[(Place, Option<u32>)], place: &Place) -> bool {
    filters.iter().any(|(other, _)| Place { folder: place.folder.clone(), ..other.clone() } == *place)
}

/// The maps that only our folder has.
fn own_maps(older: &Path, ours: &Path) -> Result<HashSet<u32>, OpenError> {
    let (older, ours) = (maps(older)?, maps(ours)?);
    Ok(ours.difference(&older).copied().collect())
}

fn maps(folder: &Path) -> Result<HashSet<u32>, OpenError> {
    let mut maps = HashSet::new();
    for path in PINNED_MAPS.iter().map(|name| folder.join(name)).filter(|path| path.exists()) {
        let info = MapInfo::from_pin(&path)
            .map_err(|source| OpenError::PinnedMap { path: path.clone(), source: Box::new(source) })?;
        maps.insert(info.id());
    }
    Ok(maps)
}

/// The programs that work on any of the maps.
fn programs_on(maps: &HashSet<u32>) -> HashSet<u32> {
    let loaded = loaded_programs().filter_map(Result::ok);
    let works = loaded.filter(|program| {
        let found = program.map_ids().ok().flatten().unwrap_or_default();
        found.iter().any(|map| maps.contains(map))
    });
    works.map(|program| program.id()).collect()
}
