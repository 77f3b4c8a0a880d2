//! Choosing a backend for a virtual address, and whether an earlier choice still holds. Changes nothing but what is remembered of
//! clients of services with session affinity, and whose turn it is.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use dataplane_abi::select::{self, Elements, Reads};
use dataplane_abi::{
    Address, Affinity, AffinityKey, Backend, FrontendKey, NetworkKey, Origin, Outcome, Scheduler, Selection,
    Service, nat, protocol, service_flag,
};

use crate::maps::{
    ORLOP_AFF_OUT, ORLOP_AFFINITY, ORLOP_BACKENDS, ORLOP_CLIENTS, ORLOP_COUNTS, ORLOP_FRONTENDS,
    ORLOP_SERVICES, ORLOP_SOURCES, ORLOP_TABLES, fetch_add,
};

/// What a lookup of a virtual address gave. Of a service that refuses, its slot.
pub enum Choice {
    /// No service answers there: leave the traffic alone.
    NoService,
    /// A service without an endpoint: refuse.
    NoBackend(u32),
    /// A service of the node's own address that nobody gets an answer from: the node's kernel refuses in its words.
    LeftToNode(u32),
    /// A service that this client may not ask.
    Forbidden(u32),
    /// And the service's flags.
    Backend(Chosen, u32),
}

/// A backend, and which service's table named it.
#[derive(Clone, Copy)]
pub struct Chosen {
    pub address: Address,
    pub port_be: u16,
    pub pick: Pick,
}

/// Who asks: an address, or what stands in [`AffinityKey`] for a client on the node, and the port, where that is known.
#[derive(Clone, Copy)]
pub struct Client {
    pub address: Address,
    pub port_be: u16,
    /// Of a socket, which may have no address yet: the cookie of its network namespace.
    pub netns: Option<u64>,
}

/// What a flow remembers of its choice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    pub id: u32,
    pub generation: u32,
    pub slot: u32,
    pub selection: u64,
}

/// Looks `key` up and picks one of its backends: the client's last one, where the service wants that, else as its scheduler says.
#[inline(always)]
pub fn select(key: &FrontendKey, origin: Origin, client: impl Fn() -> Client) -> Choice {
    let Some((slot, service)) = look_up(key) else { return Choice::NoService };
    let mut maps = Maps::of(service, origin, &client);
    if !select::may_ask(&mut maps) {
        return Choice::Forbidden(slot);
    }
    // SAFETY: array elements live as long as the map.
    let (affinity_seconds, flags) =
        unsafe { (core::ptr::read_volatile(&raw const (*service).affinity_seconds), (*service).flags) };
    let mut remembered = None;
    if affinity_seconds != 0 {
        let key = AffinityKey { client: client().address, slot };
        if let Some(kept) = keep(&mut maps, &key, affinity_seconds, flags) {
            return Choice::Backend(chosen(slot, kept), flags);
        }
        remembered = Some(key);
    }
    match select::choose(&mut maps, flags) {
        select::Choice::NoBackend if origin == Origin::Outside && is_left_to_node(service) => {
            Choice::LeftToNode(slot)
        }
        select::Choice::NoBackend => Choice::NoBackend(slot),
        select::Choice::Backend(any) => {
            if let Some(key) = remembered {
                remember(origin, &key, any);
            }
            Choice::Backend(chosen(slot, any), flags)
        }
    }
}

#[inline(always)]
fn chosen(slot: u32, of: select::Chosen) -> Chosen {
    let select::Chosen { id, address, port_be, generation, selection } = of;
    Chosen { address, port_be, pick: Pick { id, generation, slot, selection } }
}

/// The choice brought up to date, if its backend lives and still is one of `key`'s, and the client may still ask ([`may_go_on`]). That another
/// service lists the backend does not count.
#[inline(always)]
pub fn still_there(
    key: &FrontendKey,
    origin: Origin,
    client: impl Fn() -> Client,
    pick: Pick,
) -> Option<Pick> {
    if ORLOP_BACKENDS.get(pick.id)?.generation != pick.generation {
        return None;
    }
    let maps = |service| Maps::of(service, origin, &client);
    if let Some(mut maps) = service(pick.slot, key).map(maps)
        && maps.selection() == pick.selection
    {
        return may_go_on(&mut maps, key).then_some(pick);
    }
    let (slot, service) = look_up(key)?;
    let mut maps = maps(service);
    let selection = select::find(&mut maps, pick.id)?;
    may_go_on(&mut maps, key).then_some(Pick { slot, selection, ..pick })
}

/// Whether nothing has changed that the choice depends on: its backend lives, `key`'s service has the very list that it was made from, and the client may
/// still ask.
#[inline(always)]
pub fn is_unchanged(key: &FrontendKey, origin: Origin, client: impl Fn() -> Client, pick: Pick) -> bool {
    let is_alive = ORLOP_BACKENDS.get(pick.id).is_some_and(|backend| backend.generation == pick.generation);
    let Some(service) = service(pick.slot, key).filter(|_| is_alive) else { return false };
    let mut maps = Maps::of(service, origin, &client);
    maps.selection() == pick.selection && select::may_ask(&mut maps)
}

/// Counts a new flow for the service of a slot.
#[inline(always)]
pub fn count(slot: u32, outcome: Outcome) {
    orlop_count(slot, outcome as u32);
}

/// Whether a client may ask that did so before. For a pod's packets the stack has no room to look here: those of a connection, which begins anew where this is asked,
/// are looked at by whoever chooses, and a flow of datagrams was when it began.
#[inline(always)]
fn may_go_on<C: Fn() -> Client>(maps: &mut Maps<'_, C>, key: &FrontendKey) -> bool {
    let is_pods_packet = maps.origin == Origin::Inside && (maps.client)().netns.is_none();
    match is_pods_packet {
        true => !protocol::has_connections(key.protocol) || maps.sources() == 0,
        false => select::may_ask(maps),
    }
}

/// Whether a service answers there.
#[inline(always)]
pub fn is_service(key: &FrontendKey) -> bool {
    look_up(key).is_some()
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

/// With a Local policy and an endpoint elsewhere, what comes from outside is to be dropped instead.
#[inline(always)]
fn is_left_to_node(service: *const Service) -> bool {
    // SAFETY: array elements live as long as the map.
    let (flags, inside) =
        unsafe { ((*service).flags, core::ptr::read_volatile(&raw const (*service).inside)) };
    flags & service_flag::OWN_ADDRESS != 0 && Selection::unpack(inside).length == 0
}

/// Leads a client back to its last backend, if it may stay there.
#[inline(always)]
fn keep<C: Fn() -> Client>(
    maps: &mut Maps<'_, C>,
    key: &AffinityKey,
    affinity_seconds: u32,
    flags: u32,
) -> Option<select::Chosen> {
    let held = maps.affinity(key)?;
    let now = now();
    // SAFETY: the kernel gave this element to this run. If it is recycled under us, the backend is still looked for in this
    // service's table, and another client stays with its own a little longer.
    unsafe {
        let kept = select::keep(maps, held.read_volatile(), now, affinity_seconds, flags)?;
        (&raw mut (*held).selection).write_volatile(kept.selection);
        (&raw mut (*held).used).write_volatile(now);
        Some(kept)
    }
}

/// Where the kernel has no room for a moment, the client's next choice is a new one.
#[inline(always)]
fn remember(origin: Origin, key: &AffinityKey, of: select::Chosen) {
    let select::Chosen { id, generation, selection, .. } = of;
    let value = Affinity { selection, used: now(), backend: id, generation };
    let _ = match origin {
        Origin::Inside => ORLOP_AFFINITY.insert(key, &value, 0),
        Origin::Outside => ORLOP_AFF_OUT.insert(key, &value, 0),
    };
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and has no effect but its result.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The maps behind one service, for one client.
struct Maps<'a, C> {
    service: *const Service,
    origin: Origin,
    client: &'a C,
}

impl<'a, C: Fn() -> Client> Maps<'a, C> {
    #[inline(always)]
    fn of(service: *const Service, origin: Origin, client: &'a C) -> Self {
        Self { service, origin, client }
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<*mut Affinity> {
        match self.origin {
            Origin::Inside => ORLOP_AFFINITY.get_ptr_mut(key),
            Origin::Outside => ORLOP_AFF_OUT.get_ptr_mut(key),
        }
    }
}

impl<C: Fn() -> Client> Elements for Maps<'_, C> {
    #[inline(always)]
    fn table(&mut self, index: u32) -> Option<u32> {
        Some(orlop_entry(index)).filter(|id| *id != NO_ENTRY)
    }

    #[inline(always)]
    fn backend(&mut self, id: u32) -> Option<Backend> {
        Shared.backend(id)
    }

    #[inline(always)]
    fn random(&mut self) -> u32 {
        Shared.random()
    }

    #[inline(always)]
    fn ticks(&mut self) -> u32 {
        Shared.ticks()
    }
}

impl<C: Fn() -> Client> Reads for Maps<'_, C> {
    #[inline(always)]
    fn selection(&mut self) -> u64 {
        // SAFETY: array elements live as long as the map. Volatile: each call reads the word anew, once.
        unsafe {
            core::ptr::read_volatile(match self.origin {
                Origin::Inside => &raw const (*self.service).inside,
                Origin::Outside => &raw const (*self.service).outside,
            })
        }
    }

    #[inline(always)]
    fn least(&mut self, offset: u32, length: u32, flags: u32) -> u32 {
        // Two functions: their stacks have no room for the difference.
        if service_flag::set_aside_after(flags) == 0 {
            orlop_least(offset, length)
        } else {
            orlop_least_well(offset, length)
        }
    }

    #[inline(always)]
    fn narrow(&mut self, offset: u32, id: u32, bounds: u64) -> u64 {
        orlop_narrow(offset, id, bounds)
    }

    #[inline(always)]
    fn spare(&mut self, offset: u32, length: u32, meant: u32) -> u32 {
        orlop_spare(offset, length, meant)
    }

    #[inline(always)]
    fn turn(&mut self) -> u32 {
        // SAFETY: array elements live as long as the map; only programs write this field while the slot is in use.
        unsafe { fetch_add((&raw const (*self.service).turns[self.origin as usize]).cast_mut(), 1) }
    }

    #[inline(always)]
    fn hash(&mut self, scheduler: Scheduler) -> Option<u32> {
        let Client { address, port_be, .. } = (self.client)();
        match scheduler {
            // A socket that connects has no port yet.
            Scheduler::Maglev if port_be == 0 => None,
            Scheduler::Maglev => Some(select::hash(address, port_be)),
            _ => Some(select::hash(address, 0)),
        }
    }

    #[inline(always)]
    fn sources(&mut self) -> u32 {
        // SAFETY: array elements live as long as the map. Volatile: each call reads the number anew.
        unsafe { core::ptr::read_volatile(&raw const (*self.service).sources) }
    }

    #[inline(always)]
    fn holds(&mut self, set: u32) -> bool {
        match (self.client)() {
            Client { netns: Some(netns), .. } => orlop_holds(set, netns) != 0,
            Client { address, .. } => holds(set, &address),
        }
    }
}

/// Whether a set of source ranges holds an address.
#[inline(always)]
fn holds(set: u32, address: &Address) -> bool {
    let [a, b, c, d] = address.words_be;
    ORLOP_SOURCES.get(&Key::new(NetworkKey::WHOLE, [set, a, b, c, d])).is_some()
}

/// The maps of no service in particular.
struct Shared;

impl Elements for Shared {
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

    #[inline(always)]
    fn ticks(&mut self) -> u32 {
        (now() >> nat::TICK_SHIFT) as u32
    }
}

/// What [`orlop_entry`] gives where the table ends.
const NO_ENTRY: u32 = u32::MAX;

// Global, and so verified once, for whatever numbers: kernel 6.1 would follow each way to choose a place, and each outcome of each step, through
// all others.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_entry(index: u32) -> u32 {
    Shared.table(index).unwrap_or(NO_ENTRY)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_least(offset: u32, length: u32) -> u32 {
    select::least(&mut Shared, offset, length, 0)
}

/// Of those that are not set aside.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_least_well(offset: u32, length: u32) -> u32 {
    select::least(&mut Shared, offset, length, 1 << service_flag::SET_ASIDE_SHIFT)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_narrow(offset: u32, id: u32, bounds: u64) -> u64 {
    select::narrow(&mut Shared, offset, id, bounds)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_spare(offset: u32, length: u32, meant: u32) -> u32 {
    select::spare(&mut Shared, offset, length, meant)
}

/// Whether a set of source ranges holds a client on this node, as a number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_holds(set: u32, netns: u64) -> u32 {
    // SAFETY: of an element that is recycled meanwhile, another client's addresses decide once.
    let client = unsafe { ORLOP_CLIENTS.get(&netns) };
    select::holds_one_of(client, |address| holds(set, address)) as u32
}

/// Always 0: a global function gives something.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_count(slot: u32, outcome: u32) -> u32 {
    let Some(counts) = ORLOP_COUNTS.get_ptr(slot) else { return 0 };
    let counts = counts.cast_mut();
    // SAFETY: array elements live as long as the map; only programs write this one while the slot is in use.
    unsafe {
        let count = match outcome {
            LED => &raw mut (*counts).led,
            FORBIDDEN => &raw mut (*counts).forbidden,
            _ => &raw mut (*counts).no_backend,
        };
        fetch_add(count, 1);
    }
    0
}

const LED: u32 = Outcome::Led as u32;
const FORBIDDEN: u32 = Outcome::Forbidden as u32;
