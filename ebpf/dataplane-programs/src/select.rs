//! Choosing a backend for a virtual address. Reads maps, changes nothing.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use dataplane_abi::select::{self, Reads};
use dataplane_abi::{Backend, FrontendKey, Service, service_flag};

pub use dataplane_abi::select::Chosen;

use crate::maps::{ORLOP_BACKENDS, ORLOP_FRONTENDS, ORLOP_SERVICES, ORLOP_TABLES};

/// What a lookup of a virtual address gave.
pub enum Choice {
    /// No service answers there: leave the traffic alone.
    NoService,
    /// A service without an endpoint: refuse.
    NoBackend,
    Backend(Chosen),
}

/// Looks `key` up and picks one of its backends at random.
#[inline(always)]
pub fn select(key: &FrontendKey) -> Choice {
    // SAFETY: the slot number is copied at once; a number read from a recycled element is caught by the key in the slot.
    let Some(slot) = (unsafe { ORLOP_FRONTENDS.get(key) }).copied() else { return Choice::NoService };
    let Some(service) = service(slot, key) else { return Choice::NoService };
    match select::choose(&mut Maps { service }) {
        select::Choice::NoBackend => Choice::NoBackend,
        select::Choice::Backend(chosen) => Choice::Backend(chosen),
    }
}

/// The slot's service, if `key` is the one that uses it.
#[inline(always)]
fn service(slot: u32, key: &FrontendKey) -> Option<*const Service> {
    let service = ORLOP_SERVICES.get_ptr(slot)?;
    // SAFETY: array elements live as long as the map; what can change under us is read once.
    let (found, flags) = unsafe { ((*service).key, (*service).flags) };
    (flags & service_flag::IN_USE != 0 && found == *key).then_some(service)
}

/// The maps behind one service.
struct Maps {
    service: *const Service,
}

impl Reads for Maps {
    #[inline(always)]
    fn selection(&mut self) -> u64 {
        // SAFETY: array elements live as long as the map. Volatile: each call reads the word anew, once.
        unsafe { core::ptr::read_volatile(&raw const (*self.service).selection) }
    }

    #[inline(always)]
    fn table(&mut self, index: u32) -> Option<u32> {
        ORLOP_TABLES.get(index).copied()
    }

    #[inline(always)]
    fn backend(&mut self, id: u32) -> Option<Backend> {
        ORLOP_BACKENDS.get(id).copied()
    }

    #[inline(always)]
    fn random(&mut self) -> u32 {
        // SAFETY: the helper takes nothing and has no effect but its result.
        unsafe { bpf_get_prandom_u32() }
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
