//! Choosing a backend for a virtual address, and whether an earlier choice still holds. Reads maps, changes nothing.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use dataplane_abi::select::{self, Reads};
use dataplane_abi::{Backend, FrontendKey, Service, service_flag};

use crate::maps::{ORLOP_BACKENDS, ORLOP_FRONTENDS, ORLOP_SERVICES, ORLOP_TABLES};

/// What a lookup of a virtual address gave.
pub enum Choice {
    /// No service answers there: leave the traffic alone.
    NoService,
    /// A service without an endpoint: refuse.
    NoBackend,
    Backend(Chosen),
}

/// A backend, and which service's table named it.
#[derive(Clone, Copy)]
pub struct Chosen {
    pub addr_be: u32,
    pub port_be: u16,
    pub pick: Pick,
}

/// What a flow remembers of its choice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    pub id: u32,
    pub generation: u32,
    pub slot: u32,
    pub selection: u64,
}

/// Looks `key` up and picks one of its backends at random.
#[inline(always)]
pub fn select(key: &FrontendKey) -> Choice {
    let Some((slot, service)) = look_up(key) else { return Choice::NoService };
    match select::choose(&mut Maps { service }) {
        select::Choice::NoBackend => Choice::NoBackend,
        select::Choice::Backend(select::Chosen { id, backend, selection }) => Choice::Backend(Chosen {
            addr_be: backend.addr_be,
            port_be: backend.port_be,
            pick: Pick { id, generation: backend.generation, slot, selection },
        }),
    }
}

/// The choice brought up to date, if its backend lives and still is one of `key`'s. That another service lists the backend
/// does not count.
#[inline(always)]
pub fn still_there(key: &FrontendKey, pick: Pick) -> Option<Pick> {
    if ORLOP_BACKENDS.get(pick.id)?.generation != pick.generation {
        return None;
    }
    if let Some(service) = service(pick.slot, key)
        && (Maps { service }).selection() == pick.selection
    {
        return Some(pick);
    }
    let (slot, service) = look_up(key)?;
    let selection = select::find(&mut Maps { service }, pick.id)?;
    Some(Pick { slot, selection, ..pick })
}

#[inline(always)]
fn look_up(key: &FrontendKey) -> Option<(u32, *const Service)> {
    // SAFETY: the slot number is copied at once; a number read from a recycled element is caught by the key in the slot.
    let slot = *unsafe { ORLOP_FRONTENDS.get(key) }?;
    Some((slot, service(slot, key)?))
}

/// The slot's service, if `key` is the one that uses it.
#[inline(always)]
fn service(slot: u32, key: &FrontendKey) -> Option<*const Service> {
    let service = ORLOP_SERVICES.get_ptr(slot)?;
    // SAFETY: array elements live as long as the map; what can change under us is read once.
    let (found, flags) = unsafe { ((*service).key, (*service).flags) };
    if flags & service_flag::IN_USE != 0 && found == *key { Some(service) } else { None }
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
