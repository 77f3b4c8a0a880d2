//! Copies what a map of the older layout holds, and afterwards what the earlier programs changed in it meanwhile.
//!
//! In: the two maps and the recipe. A table that is no array is brought up to date element by element ([`is_theirs`], pure): the older map's counts where ours is
//! still what was copied, and else the one that was used later; of an array, what was counted since is added to what ours counted.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;

use super::plan::{self, Recipe};
use crate::sys::maps::Elements;

/// A map of which the elements are copied.
pub struct Changed {
    pub name: &'static str,
    pub recipe: Recipe,
    pub is_array: bool,
    pub old: Elements,
    pub new: Elements,
    /// What was copied, where this process did it.
    pub copied: Option<Copied>,
}

/// What elements were when they were copied, by our keys.
#[derive(Default)]
pub struct Copied {
    /// Of a table that is no array, the values' digests; none: an earlier process copied that one.
    values: HashMap<Vec<u8>, Option<u64>>,
    /// Of an array, what was counted.
    sums: HashMap<Vec<u8>, Vec<u64>>,
}

impl Changed {
    /// Whether programs count in it what user space relies on.
    pub fn is_counting(&self) -> bool {
        !self.recipe.sums.is_empty()
    }

    /// Fills the new map, which is empty.
    pub fn copy_all(&mut self) -> io::Result<()> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let (mut copied, mut elements, mut unfit) = (Copied::default(), 0_usize, 0_usize);
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
            values.extend_from_slice(&value);
            elements += 1;
            if !self.is_array {
                copied.values.insert(key, Some(digest(&value)));
            } else if self.is_counting() {
                copied.sums.insert(key, self.sums(&value));
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

    /// Adds what was counted in the older array since it was copied. No program works on it any more.
    pub fn add_counted(&self) -> io::Result<()> {
        // What was counted before an earlier process copied it is in both, and nobody knows what of it.
        let Some(copied) = self.copied.as_ref().filter(|_| self.is_counting()) else { return Ok(()) };
        let shared = self.new.share()?;
        self.old.read(|key, value| {
            let index = key.first_chunk().map(|index| u32::from_ne_bytes(*index));
            let (Some(index), Some(value)) = (index, self.recipe.value.apply(value)) else { return Ok(()) };
            let before = copied.sums.get(key);
            for (number, (place, sum)) in self.recipe.sums.iter().zip(self.sums(&value)).enumerate() {
                let change = sum.wrapping_sub(before.map_or(0, |before| before[number]));
                if change != 0 {
                    shared.add(index, place, change)?;
                }
            }
            Ok(())
        })
    }

    /// Copies what came to the older table, which is no array, or changed there, since this was done last. Programs may work on it.
    pub fn catch_up(&mut self) -> io::Result<()> {
        let mut known = match self.copied.take() {
            Some(copied) => copied.values,
            None => self.present()?,
        };
        let (mut added, mut replaced) = (0_usize, 0_usize);
        self.old.read(|key, value| {
            let Some((key, theirs)) = self.converted(key, value) else { return Ok(()) };
            let before = known.get(&key).copied();
            if before == Some(Some(digest(&theirs))) {
                return Ok(());
            }
            if before.is_none() && self.new.add(&key, &theirs)? {
                added += 1;
                known.insert(key, Some(digest(&theirs)));
                return Ok(());
            }
            // Ours may have removed it, which then holds.
            let Some(ours) = self.new.get(&key)? else { return Ok(()) };
            let ours_is_copied = before == Some(Some(digest(&ours)));
            if is_theirs(ours_is_copied, self.recipe.used.as_ref(), &theirs, &ours) {
                replaced += usize::from(self.new.replace(&key, &theirs)?);
                known.insert(key, Some(digest(&theirs)));
            }
            Ok(())
        })?;
        tracing::debug!(map = self.name, added, replaced, "copied what came meanwhile");
        self.copied = Some(Copied { values: known, sums: HashMap::new() });
        Ok(())
    }

    /// The keys of the new map.
    fn present(&self) -> io::Result<HashMap<Vec<u8>, Option<u64>>> {
        let mut present = HashMap::new();
        self.new.read(|key, _| {
            present.insert(key.to_vec(), None);
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

    /// What a new value counts.
    fn sums(&self, value: &[u8]) -> Vec<u64> {
        self.recipe.sums.iter().map(|place| number(value, place)).collect()
    }

    fn worth(&self) -> &'static str {
        plan::worth(self.name)
    }

    pub fn tell_lost(&self, error: &io::Error) {
        let error = error as &dyn std::error::Error;
        tracing::warn!(map = self.name, error, "not carried over whole: {}", self.worth());
    }
}

/// Whether the older map's value holds, of two that differ: where `ours_is_copied`, our programs did not change it.
fn is_theirs(ours_is_copied: bool, used: Option<&Range<usize>>, theirs: &[u8], ours: &[u8]) -> bool {
    ours_is_copied || used.is_some_and(|place| number(theirs, place) > number(ours, place))
}

/// A number of 4 or 8 bytes.
fn number(value: &[u8], place: &Range<usize>) -> u64 {
    let bytes = value.get(place.clone()).unwrap_or_default();
    match (bytes.first_chunk::<8>(), bytes.first_chunk::<4>()) {
        (Some(long), _) => u64::from_ne_bytes(*long),
        (None, Some(short)) => u32::from_ne_bytes(*short).into(),
        (None, None) => 0,
    }
}

fn digest(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
