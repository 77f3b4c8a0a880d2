//! Choosing a backend for a virtual address. Reads maps, changes nothing.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use dataplane_abi::{Backend, FrontendKey, Selection, service_flag};

use crate::maps::{ORLOP_BACKENDS, ORLOP_FRONTENDS, ORLOP_SERVICES, ORLOP_TABLES};

/// What a lookup of a virtual address gave.
pub enum Choice {
    /// No service answers there: leave the traffic alone.
    NoService,
    /// A service without an endpoint: refuse.
    NoBackend,
    Backend(Chosen),
}

#[derive(Clone, Copy)]
pub struct Chosen {
    pub id: u32,
    pub backend: Backend,
}

/// Looks `key` up and picks one of its backends at random.
#[inline(always)]
pub fn select(key: &FrontendKey) -> Choice {
    // SAFETY: the slot number is copied at once; a number read from a recycled element is caught by the key in the slot.
    let Some(slot) = (unsafe { ORLOP_FRONTENDS.get(key) }).copied() else { return Choice::NoService };
    let Some(service) = ORLOP_SERVICES.get_ptr(slot) else { return Choice::NoService };
    // SAFETY: array elements live as long as the map; the fields that can change under us are read once each.
    let (found, word, flags) = unsafe {
        ((*service).key, core::ptr::read_volatile(&raw const (*service).selection), (*service).flags)
    };
    if flags & service_flag::IN_USE == 0 || found != *key {
        return Choice::NoService;
    }
    let table = Selection::unpack(word);
    if table.length == 0 {
        return Choice::NoBackend;
    }
    // SAFETY: the helper takes nothing and has no effect but its result.
    let random = unsafe { bpf_get_prandom_u32() };
    // Multiply and shift instead of a division: even enough for at most 65,535 backends.
    let index = table.offset.wrapping_add(((random as u64 * table.length as u64) >> 32) as u32);
    let Some(id) = ORLOP_TABLES.get(index).copied() else { return Choice::NoBackend };
    match read(id) {
        Some(backend) => Choice::Backend(Chosen { id, backend }),
        None => Choice::NoBackend,
    }
}

/// The backend of this number, if it still is the one of this generation.
#[inline(always)]
pub fn still_there(id: u32, generation: u32) -> bool {
    matches!(read(id), Some(backend) if backend.generation == generation)
}

#[inline(always)]
fn read(id: u32) -> Option<Backend> {
    let backend = *ORLOP_BACKENDS.get(id)?;
    (backend.generation != 0).then_some(backend)
}
