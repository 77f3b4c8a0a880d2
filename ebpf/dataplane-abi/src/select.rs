//! How a reader picks a backend while user space may be changing the service: pure, the reads are the caller's.
//!
//! The writer switches the selection word first and frees backends afterwards. So a reader that finds a freed backend has
//! read an older word, and the present word leads to living ones. Where a reader is so slow that changes overtake it each time, it
//! takes the backend that was freed: it was the service's a moment ago, and its number is not used again while a program runs.

use crate::{Backend, Selection};

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
    /// The service's selection word.
    fn selection(&mut self) -> u64;
    /// The backend number at `index` of the tables map.
    fn table(&mut self, index: u32) -> Option<u32>;
    /// The backend of this number, whatever it holds.
    fn backend(&mut self, id: u32) -> Option<Backend>;
    fn random(&mut self) -> u32;
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

/// How many entries of a table [`find`] looks at. A flow of a larger service may have to choose again after a change.
pub const FIND_LIMIT: u32 = 128;

/// The packed selection whose table names backend `id` now.
#[inline(always)]
pub fn find(reads: &mut impl Reads, id: u32) -> Option<u64> {
    let selection = reads.selection();
    let table = Selection::unpack(selection);
    for place in 0..FIND_LIMIT {
        if place >= table.length as u32 {
            return None;
        }
        if reads.table(table.offset.wrapping_add(place))? == id {
            return Some(selection);
        }
    }
    None
}
