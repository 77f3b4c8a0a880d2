//! What becomes of each map of an older layout. Pure.
//!
//! In: the maps as an older build pinned them and as this one wants them. Out: a [`Fate`] for each, or the map without which nothing can be
//! carried over. A map that did not change is kept: the very map, with all that is in it, which the earlier programs go on writing to
//! until ours take their place. Of one that changed, the elements are converted.
//!
//! The tables of services and policies name each other's elements, and flows name theirs: they are carried over all or not at all. A map of
//! flows that cannot be carried over begins empty, and the others are none the worse for it.

use std::collections::BTreeMap;
use std::ops::Range;

use dataplane_abi::map;

use super::layout::{Conversion, Mismatch, Shape};

/// The kernel's numbers of the types of maps that can be read and written element by element.
mod kind {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const LRU_HASH: u32 = 9;
    pub const LPM_TRIE: u32 = 11;
}

/// A map, but for what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub kind: u32,
    pub flags: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub capacity: u32,
    pub key: Shape,
    pub value: Shape,
}

/// What happens to a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is ours too.
    Kept,
    Copied(Recipe),
    Lost(Loss),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// None: an array's indices stay.
    pub key: Option<Conversion>,
    pub value: Conversion,
    /// Where in a new value stands when it was used last.
    pub used: Option<Range<usize>>,
    /// Where in a new value programs count up and down.
    pub sums: Vec<Range<usize>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    #[error("its keys changed")]
    Key(#[source] Mismatch),
    #[error("its values changed")]
    Value(#[source] Mismatch),
    #[error("its keys changed, which are networks")]
    Networks,
    #[error("it is of another type than it was")]
    Kind,
    #[error("the kernel does not list what such a map holds")]
    Unlisted,
    #[error("its type information cannot be read")]
    Unknown,
    #[error("it is not there")]
    Missing,
}

/// Why nothing can be carried over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the earlier map {map} cannot be carried over")]
pub struct Refused {
    pub map: String,
    pub source: Loss,
}

/// Every layout has these. One that does not was never complete.
const IN_ALL: &[&str] = &[map::FRONTENDS, map::SERVICES, map::TABLES, map::BACKENDS];

/// Without these the others say nothing.
const TABLES: &[&str] = &[
    map::FRONTENDS,
    map::SERVICES,
    map::TABLES,
    map::BACKENDS,
    map::SOURCES,
    map::CONFIG,
    map::PODS,
    map::RULES,
    map::PORTS,
];

/// How many sockets a backend has.
const CONNECTIONS: &str = "connections";

/// Whether nobody misses what a map holds after a moment.
pub fn is_transient(name: &str) -> bool {
    const PASSING: &[&str] = &[
        map::COUNTERS,
        map::FRAGMENTS,
        map::TRIED,
        map::ENDED,
        map::DOUBTED,
        map::ENDING,
        map::PATHS,
        map::HOLD,
    ];
    PASSING.contains(&name)
}

pub fn is_table(name: &str) -> bool {
    TABLES.contains(&name)
}

/// What is lost with a map.
pub fn worth(name: &str) -> &'static str {
    match name {
        map::NAT => "connections of pods to the outside, and to services by packets, break",
        map::INBOUND => "connections from outside break",
        map::AFFINITY | map::AFFINITY_OUTSIDE => "clients with session affinity may be led elsewhere",
        map::CLIENTS => "source ranges hold nobody on the node back until the agent has told of them",
        map::PEERS => "open TCP connections show the backend as their peer",
        map::CONNECTED => "connected UDP sockets are not told when their backend goes",
        map::FLOWS | map::SOCKETS => "open UDP sockets see the backend as their peer",
        map::COUNTED => "open connections do not count when the fewest are looked for",
        map::ALLOWED => "flows that policies allowed are judged anew",
        _ => "what it counted",
    }
}

/// Whether there is an older layout at all, by the names of its maps.
pub fn check_complete(is_there: impl Fn(&str) -> bool) -> Result<(), Refused> {
    match IN_ALL.iter().find(|name| !is_there(name)) {
        Some(missing) => Err(Refused { map: (*missing).to_owned(), source: Loss::Missing }),
        None => Ok(()),
    }
}

/// The fate of each map that both know. A map that cannot be described is `None`.
pub fn fates(
    old: &BTreeMap<&'static str, Option<Described>>,
    new: &BTreeMap<&'static str, Option<Described>>,
) -> Result<BTreeMap<&'static str, Fate>, Refused> {
    let known = old.iter().filter_map(|(name, old)| Some((*name, (old, new.get(name)?))));
    let of_both = known.map(|(name, maps)| match maps {
        (Some(old), Some(new)) => (name, fate(name, old, new)),
        _ => (name, Fate::Lost(Loss::Unknown)),
    });
    let mut fates: BTreeMap<_, _> = of_both.collect();
    // Connections that nobody would take off again.
    if matches!(fates.get(map::COUNTED), Some(Fate::Lost(_)))
        && let (Some(Some(old)), Some(Some(new))) = (old.get(map::BACKENDS), new.get(map::BACKENDS))
    {
        fates.insert(map::BACKENDS, copied(map::BACKENDS, old, new, &[CONNECTIONS]));
    }
    let refused = fates.iter().find_map(|(name, fate)| match fate {
        Fate::Lost(loss) if is_table(name) => Some(Refused { map: (*name).to_owned(), source: loss.clone() }),
        _ => None,
    });
    refused.map_or(Ok(fates), Err)
}

fn fate(name: &str, old: &Described, new: &Described) -> Fate {
    if old == new { Fate::Kept } else { copied(name, old, new, &[]) }
}

fn copied(name: &str, old: &Described, new: &Described, forget: &[&str]) -> Fate {
    match recipe(name, old, new, forget) {
        Ok(recipe) => Fate::Copied(recipe),
        Err(loss) => Fate::Lost(loss),
    }
}

fn recipe(name: &str, old: &Described, new: &Described, forget: &[&str]) -> Result<Recipe, Loss> {
    use kind::{ARRAY, HASH, LPM_TRIE, LRU_HASH};
    let key = match (old.kind, new.kind) {
        (HASH | LRU_HASH, HASH | LRU_HASH) => {
            Some(Conversion::between(&old.key, &new.key, &[]).map_err(Loss::Key)?)
        }
        (ARRAY, ARRAY) => None,
        // The length of a prefix counts the bits of the whole key.
        (LPM_TRIE, LPM_TRIE) if old.key != new.key => return Err(Loss::Networks),
        (LPM_TRIE, LPM_TRIE) => None,
        (before, now) if before != now => return Err(Loss::Kind),
        _ => return Err(Loss::Unlisted),
    };
    let value = Conversion::between(&old.value, &new.value, forget).map_err(Loss::Value)?;
    let used = new.value.words().find(|(field, _)| *field == "used").map(|(_, place)| place);
    let counts = |field: &str| is_sum(name, field) && !forget.contains(&field);
    let sums = new.value.words().filter(|(field, _)| counts(field)).map(|(_, place)| place).collect();
    Ok(Recipe { key, value, used, sums })
}

/// Whether a field is what programs add to, so that what two of them counted can be put together.
fn is_sum(name: &str, field: &str) -> bool {
    match name {
        map::BACKENDS => field == CONNECTIONS,
        map::COUNTS => true,
        _ => false,
    }
}

/// Whether elements that are zero are as good as none.
pub fn is_array(map: &Described) -> bool {
    map.kind == kind::ARRAY
}

#[cfg(test)]
mod tests;
