//! How a reader picks a backend while user space may be changing the service: pure, the reads are the caller's.
//!
//! The writer switches the selection word first and frees backends afterwards. So a reader that finds a freed backend has
//! read an older word, and the present word leads to living ones. Where a reader is so slow that changes overtake it each time, it
//! takes the backend that was freed: it was the service's a moment ago, and its number is not used again while a program runs.

use crate::{Address, Affinity, Backend, ClientAddresses, Scheduler, Selection, service_flag};

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
    pub address: Address,
    pub port_be: u16,
    pub generation: u32,
    /// The packed [`Selection`] that named it.
    pub selection: u64,
}

/// What all services share, as a reader sees it at the moment of each call.
pub trait Elements {
    /// The backend number at `index` of the tables map.
    fn table(&mut self, index: u32) -> Option<u32>;
    /// The backend of this number, whatever it holds.
    fn backend(&mut self, id: u32) -> Option<Backend>;
    fn random(&mut self) -> u32;
    /// The time in ticks of [`crate::nat::TICK_SHIFT`].
    fn ticks(&mut self) -> u32;
}

/// The maps as a reader of one service sees them at the moment of each call.
pub trait Reads: Elements {
    /// The service's selection word for clients of this origin.
    fn selection(&mut self) -> u64;
    /// [`least`], for a program in a function that is verified alone.
    fn least(&mut self, offset: u32, length: u32, flags: u32) -> u32;
    /// The same of [`narrow`].
    fn narrow(&mut self, offset: u32, id: u32, bounds: u64) -> u64;
    /// The same of [`spare`].
    fn spare(&mut self, offset: u32, length: u32, meant: u32) -> u32;
    /// How many choices the service made in turn before this one, which counts.
    fn turn(&mut self) -> u32;
    /// The [`hash`] of the client; `None` for one whose port matters and that has none yet.
    fn hash(&mut self, scheduler: Scheduler) -> Option<u32>;
    /// The number of the service's set of source ranges; 0: none.
    fn sources(&mut self) -> u32;
    /// Whether a set holds the client's address; of one on this node, [`holds_one_of`].
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

/// Whether a set holds a client on this node: one of its addresses. Of one whose addresses nobody knows, any set does.
#[inline(always)]
pub fn holds_one_of(client: Option<&ClientAddresses>, mut holds: impl FnMut(&Address) -> bool) -> bool {
    let Some(client) = client else { return true };
    client.addresses.iter().any(|address| !address.is(&Address::NONE) && holds(address))
}

/// Picks one of the service's backends, as its [`service_flag`]s say. [`Choice::NoBackend`] means an empty list.
#[inline(always)]
pub fn choose(reads: &mut impl Reads, flags: u32) -> Choice {
    for attempt in 1..=TRIES {
        let selection = reads.selection();
        let table = Selection::unpack(selection);
        if table.length == 0 {
            return Choice::NoBackend;
        }
        let length = table.length as u32;
        // Whoever was overtaken by a change takes any: so the verifier need not follow each scheduler through all tries.
        let place = if attempt != 1 {
            share(reads.random(), length)
        } else {
            match place(reads, flags, table) {
                place if service_flag::set_aside_after(flags) == 0 => place,
                place => reads.spare(table.offset, length, place),
            }
        };
        let Some(id) = reads.table(table.offset.wrapping_add(place)) else { continue };
        let Some(found) = reads.backend(id) else { continue };
        if found.generation != 0 || attempt == TRIES {
            let Backend { address, port_be, last_generation: generation, .. } = found;
            return Choice::Backend(Chosen { id, address, port_be, generation, selection });
        }
    }
    Choice::NoBackend
}

/// Whether it is set aside just now, for services that mind.
#[inline(always)]
pub fn is_aside(reads: &mut impl Elements, backend: &Backend) -> bool {
    // Ticks go round: what is more than half a round ahead is past.
    let left = backend.aside_until.wrapping_sub(reads.ticks()) as i32;
    backend.aside_until != 0 && left > 0
}

/// How many places are looked at for a backend that is not set aside.
pub const SPARE_LOOKS: u32 = 8;

/// The place meant, if its backend is not set aside, else the first of others, spread over the list, of which that is true; that meant, if there
/// is none among those looked at: nobody is refused because all fail. The same for the same place.
#[inline(always)]
pub fn spare(reads: &mut impl Elements, offset: u32, length: u32, meant: u32) -> u32 {
    if length == 0 {
        return meant;
    }
    // The shares of one backend stand side by side.
    let stride = (length / SPARE_LOOKS).max(1);
    for look in 0..SPARE_LOOKS {
        let place = if look == 0 { meant } else { meant.wrapping_add(look * stride) % length };
        let Some(id) = reads.table(offset.wrapping_add(place)) else { break };
        let Some(backend) = reads.backend(id) else { break };
        if !is_aside(reads, &backend) {
            return place;
        }
    }
    meant
}

/// Which place of the table is meant, counted from its beginning. `table` is not empty.
#[inline(always)]
fn place(reads: &mut impl Reads, flags: u32, table: Selection) -> u32 {
    let length = table.length as u32;
    let scheduler = Scheduler::of(flags);
    match scheduler {
        Scheduler::Random => share(reads.random(), length),
        Scheduler::RoundRobin => (reads.turn() as u64 * STRIDE % length as u64) as u32,
        Scheduler::LeastConnection => reads.least(table.offset, length, flags),
        Scheduler::SourceHash | Scheduler::Maglev => {
            // A service that has just got this scheduler may have no such table yet.
            match (reads.hash(scheduler), table.lookup_size()) {
                (None, _) => share(reads.random(), length),
                (Some(hash), 0) => share(hash, length),
                (Some(hash), size) => length + share(hash, size),
            }
        }
    }
}

/// A number below `parts`. Multiply and shift instead of a division: even enough for as many as there are.
#[inline(always)]
fn share(of: u32, parts: u32) -> u32 {
    ((of as u64 * parts as u64) >> 32) as u32
}

/// From place to place in turn: a prime that divides no length, so that each place has its turn, and so large that a backend that stands in
/// several neighbouring places does not have all its turns in a row.
const STRIDE: u64 = 2_654_435_761;

/// How many places are looked at for the fewest connections: of a longer table as many, from a random one on. Each look doubles what the
/// verifier of kernel 6.1 has to follow.
pub const LEAST_LOOKS: u32 = 8;

/// The place of the backend with the fewest connections in the table of `length` from `offset` on; of several, the first from a random place on.
/// Of one that is set aside nobody knows how few it would have: it does not count, for services that mind.
#[inline(always)]
pub fn least(reads: &mut impl Elements, offset: u32, length: u32, flags: u32) -> u32 {
    if length == 0 {
        return 0;
    }
    let start = share(reads.random(), length);
    least_from(reads, offset, length, flags, start)
}

/// The same from the place `start` on.
#[inline(always)]
pub fn least_from(reads: &mut impl Elements, offset: u32, length: u32, flags: u32, start: u32) -> u32 {
    let is_mindful = service_flag::set_aside_after(flags) != 0;
    // The fewest connections, as a number without a sign, and at which look they were found: one number, for the stack's sake.
    let mut fewest = (u32::MAX as u64) << u32::BITS;
    for look in 0..LEAST_LOOKS {
        if look >= length {
            break;
        }
        let place = (start + look) % length;
        // Neither is ever missing: what follows is as good without.
        let Some(id) = reads.table(offset.wrapping_add(place)) else { break };
        let Some(backend) = reads.backend(id) else { break };
        let connections = (backend.connections as u32 ^ 1 << 31) as u64;
        let found = (connections << u32::BITS) | look as u64;
        if found < fewest && !(is_mindful && is_aside(reads, &backend)) {
            fewest = found;
        }
    }
    (start + fewest as u32) % length.max(1)
}

/// Of a client's address and port, the same on every node. The finish is that of MurmurHash3 (`fmix32`).
#[inline(always)]
pub fn hash(address: Address, port_be: u16) -> u32 {
    const FACTOR: u32 = 0x9e37_79b1;
    let [a, b, c, d] = address.words_be;
    let mut hash = u16::from_be(port_be) as u32;
    for word in [a, b, c, d] {
        hash = (hash.rotate_left(5) ^ u32::from_be(word)).wrapping_mul(FACTOR);
    }
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// The backend that a client was led to before, if it may stay there: it came back in time, and the backend lives and is the
/// service's. `now` and `held` are of the same clock.
#[inline(always)]
pub fn keep(
    reads: &mut impl Reads,
    held: Affinity,
    now: u64,
    affinity_seconds: u32,
    flags: u32,
) -> Option<Chosen> {
    if now.saturating_sub(held.used) > affinity_seconds as u64 * NANOS_PER_SECOND {
        return None;
    }
    let backend = reads.backend(held.backend)?;
    if backend.generation != held.generation
        || (service_flag::set_aside_after(flags) != 0 && is_aside(reads, &backend))
    {
        return None;
    }
    let selection = match reads.selection() {
        unchanged if unchanged == held.selection => unchanged,
        _ => find(reads, held.backend)?,
    };
    let Backend { address, port_be, generation, .. } = backend;
    Some(Chosen { id: held.backend, address, port_be, generation, selection })
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Steps of the search in [`find`]: enough for the longest table.
const FIND_STEPS: u32 = 17;

/// In the place of bounds: found.
const FOUND: u64 = u64::MAX;

/// The packed selection whose table names backend `id` now. A table's numbers stand in ascending order.
#[inline(always)]
pub fn find(reads: &mut impl Reads, id: u32) -> Option<u64> {
    let selection = reads.selection();
    let table = Selection::unpack(selection);
    let mut bounds = (table.length as u64) << u32::BITS;
    for _ in 0..FIND_STEPS {
        bounds = reads.narrow(table.offset, id, bounds);
        if bounds == FOUND {
            return Some(selection);
        }
    }
    None
}

/// One step of a binary search for `id` in the table from `offset` on. The lower half of `bounds` is the first place that may hold it, the
/// upper half the first that does not.
#[inline(always)]
pub fn narrow(reads: &mut impl Elements, offset: u32, id: u32, bounds: u64) -> u64 {
    let (low, high) = (bounds as u32, (bounds >> u32::BITS) as u32);
    if low >= high {
        return bounds;
    }
    let middle = low + (high - low) / 2;
    match reads.table(offset.wrapping_add(middle)) {
        Some(found) if found == id => FOUND,
        Some(found) if found < id => (bounds & !(u32::MAX as u64)) | (middle + 1) as u64,
        _ => ((middle as u64) << u32::BITS) | low as u64,
    }
}
