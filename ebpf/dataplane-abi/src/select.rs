//! How a reader picks a backend while user space may be changing the service: pure, the reads are the caller's.
//!
//! The writer switches the selection word first and frees backends afterwards. So a reader that finds a freed backend has
//! read an older word, and the present word leads to living ones. Where a reader is so slow that changes overtake it each time, it
//! takes the backend that was freed: it was the service's a moment ago, and its number is not used again while a program runs.

use crate::{Affinity, Backend, Selection};

/// How often a reader looks for a living backend. Each further try needs one more change of the same service during the one before.
pub const TRIES: u32 = 4;

/// What a service offers a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A service without an endpoint: refuse.
    NoBackend,
    Backend(Chosen),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub id: u32,
    pub backend: Backend,
    /// The packed [`Selection`] that named it.
    pub selection: u64,
}

/// The maps as a reader sees them at the moment of each call.
pub trait Reads {
    /// The service's selection word for clients of this origin.
    fn selection(&mut self) -> u64;
    /// The backend number at `index` of the tables map.
    fn table(&mut self, index: u32) -> Option<u32>;
    /// The backend of this number, whatever it holds.
    fn backend(&mut self, id: u32) -> Option<Backend>;
    fn random(&mut self) -> u32;
    /// The number of the service's set of source ranges; 0: none.
    fn sources(&mut self) -> u32;
    /// Whether a set holds the client's address.
    fn holds(&mut self, set: u32) -> bool;
}

/// Whether the service's source ranges hold the client's address. The writer switches the number before it empties the old set: a
/// reader that finds nothing looks whether it read an old number.
#[inline(always)]
pub fn may_ask(reads: &mut impl Reads) -> bool {
    for _ in 0..TRIES {
        let set = reads.sources();
        if set == 0 || reads.holds(set) {
            return true;
        }
        if reads.sources() == set {
            return false;
        }
    }
    false
}

/// Picks one of the service's backends at random. [`Choice::NoBackend`] means an empty list.
#[inline(always)]
pub fn choose(reads: &mut impl Reads) -> Choice {
    for attempt in 1..=TRIES {
        let selection = reads.selection();
        let table = Selection::unpack(selection);
        if table.length == 0 {
            return Choice::NoBackend;
        }
        // Multiply and shift instead of a division: even enough for at most 65,535 backends.
        let place = (reads.random() as u64 * table.length as u64) >> 32;
        let Some(id) = reads.table(table.offset.wrapping_add(place as u32)) else { continue };
        let Some(found) = reads.backend(id) else { continue };
        if found.generation != 0 || attempt == TRIES {
            let backend = Backend { generation: found.last_generation, ..found };
            return Choice::Backend(Chosen { id, backend, selection });
        }
    }
    Choice::NoBackend
}

/// The backend that a client was led to before, if it may stay there: it came back in time, and the backend lives and is the
/// service's. `now` and `held` are of the same clock.
#[inline(always)]
pub fn keep(reads: &mut impl Reads, held: Affinity, now: u64, affinity_seconds: u32) -> Option<Chosen> {
    if now.saturating_sub(held.used) > affinity_seconds as u64 * NANOS_PER_SECOND {
        return None;
    }
    let backend = reads.backend(held.backend)?;
    if backend.generation != held.generation {
        return None;
    }
    let selection = match reads.selection() {
        unchanged if unchanged == held.selection => unchanged,
        _ => find(reads, held.backend)?,
    };
    Some(Chosen { id: held.backend, backend, selection })
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Steps of the search in [`find`]: enough for the longest table.
const FIND_STEPS: u32 = 17;

/// The packed selection whose table names backend `id` now. A table's numbers stand in ascending order.
#[inline(always)]
pub fn find(reads: &mut impl Reads, id: u32) -> Option<u64> {
    let selection = reads.selection();
    let table = Selection::unpack(selection);
    let (mut low, mut high) = (0, table.length as u32);
    for _ in 0..FIND_STEPS {
        if low >= high {
            return None;
        }
        let middle = (low + high) / 2;
        let found = reads.table(table.offset.wrapping_add(middle))?;
        if found == id {
            return Some(selection);
        }
        if found < id {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    None
}
