//! What the maps hold, and the writes that turn one state into the next. Pure: no kernel, no clock.
//!
//! The order of the writes is the protocol with the programs that read meanwhile: backends first, then a selection table in
//! unused space, then the one word that switches the service, and only then what nobody refers to any more. Freed numbers
//! wait until [`Model::release`]: a program that read the old word may still be on its way through the old table.

mod maglev;
mod pool;

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};
use std::sync::Arc;

use dataplane_abi::{
    Address, Backend, Config, FrontendKey, LOOKUP_SIZES, Network, NetworkKey, Origin, Scheduler, Selection,
    Service, capacity, protocol, service_flag,
};
use ipnetwork::IpNetwork;
use pool::{ByNumber, Numbers, Ranges};

use crate::identity::{Identity, Names};
use crate::{Frontend, Masquerade, Protocol, Target, WriteError};

#[cfg(test)]
mod tests;

/// Endpoints of one frontend: the length field of a selection has 16 bits.
pub const MAX_ENDPOINTS: usize = u16::MAX as usize;

/// A change of one map element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Backend {
        id: u32,
        value: Backend,
    },
    Table {
        offset: u32,
        ids: Vec<u32>,
    },
    Service {
        slot: u32,
        value: Service,
    },
    /// Empties a slot: first it is nobody's, then it leads nowhere. What else it says stays for readers on their way.
    Clear {
        slot: u32,
    },
    /// Switches a service that is in use, for clients of one origin; a single store.
    Select {
        slot: u32,
        origin: Origin,
        selection: Selection,
    },
    /// What else there is to say of a service that is in use; a single store.
    Options {
        slot: u32,
        flags: u32,
        affinity_seconds: u32,
    },
    /// Switches a service that is in use to another set of source ranges; a single store.
    Sources {
        slot: u32,
        set: u32,
    },
    SourceInsert {
        key: NetworkKey,
    },
    SourceRemove {
        key: NetworkKey,
    },
    FrontendInsert {
        key: FrontendKey,
        slot: u32,
    },
    FrontendRemove {
        key: FrontendKey,
    },
}

/// What ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Frontends,
    TableEntries,
    Backends,
    EndpointsOfOneService,
    SourceRanges,
    PolicyRules,
    PolicyPorts,
    PolicyPods,
}

/// A map is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for more {resource:?}: at most {limit}")]
pub struct Full {
    pub resource: Resource,
    pub limit: usize,
}

/// The maps as they were found: what an earlier process left.
#[derive(Debug, Default)]
pub struct Found {
    pub frontends: Vec<(FrontendKey, u32)>,
    pub services: Vec<(u32, Service)>,
    pub sources: Vec<NetworkKey>,
    /// The backend numbers of each packed [`Selection`]: of its list, and of the lookup table behind that.
    pub tables: HashMap<u64, Vec<u32>>,
    /// Those in use.
    pub backends: Vec<(u32, Backend)>,
    /// The highest generation that any backend, used or freed, ever had.
    pub last_generation: u32,
}

/// How many elements the maps have.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    pub frontends: u32,
    pub table_entries: u32,
    /// Of these, how many may be for looking up by hash: the rest is for what every service needs.
    pub lookup_entries: u32,
    pub backends: u32,
    pub sources: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: capacity::FRONTENDS as u32,
            table_entries: capacity::TABLE_ENTRIES as u32,
            lookup_entries: capacity::LOOKUP_ENTRIES as u32,
            backends: capacity::BACKENDS as u32,
            sources: capacity::SOURCES as u32,
        }
    }
}

/// What adopted services are made of.
struct Parts<'a> {
    tables: &'a HashMap<u64, Vec<u32>>,
    backends: &'a HashMap<u32, Backend>,
    sources: &'a HashMap<u32, Vec<IpNetwork>>,
}

#[derive(Debug)]
struct Entry {
    slot: u32,
    inside: List,
    /// None: as inside, with the same table.
    outside: Option<List>,
    flags: u32,
    affinity_seconds: u32,
    sources: Option<Sources>,
    /// Of no table, ascending: they still serve.
    draining: Vec<u32>,
}

/// The networks that may ask from outside, under their number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sources {
    set: NonZeroU32,
    networks: Arc<[IpNetwork]>,
}

impl Sources {
    fn keys(&self) -> impl Iterator<Item = NetworkKey> {
        self.networks.iter().map(|network| NetworkKey {
            prefix: NetworkKey::SET_BITS + mapped_prefix(*network),
            set: self.set.get(),
            address: to_address(network.network()),
        })
    }
}

impl Entry {
    fn list(&self, origin: Origin) -> &List {
        match (origin, &self.outside) {
            (Origin::Outside, Some(outside)) => outside,
            _ => &self.inside,
        }
    }

    /// The number of its source ranges, as it stands in the slot.
    fn set(&self) -> u32 {
        self.sources.as_ref().map_or(0, |sources| sources.set.get())
    }

    fn networks(&self) -> Option<&Arc<[IpNetwork]>> {
        self.sources.as_ref().map(|sources| &sources.networks)
    }

    /// Each table once.
    fn lists(&self) -> impl Iterator<Item = &List> {
        std::iter::once(&self.inside).chain(&self.outside)
    }
}

/// The stores that turn a slot of one entry into one of another.
fn differences(old: &Entry, new: &Entry) -> Vec<Write> {
    let slot = old.slot;
    let select = |origin: Origin| {
        let selection = new.list(origin).selection;
        (old.list(origin).selection != selection).then_some(Write::Select { slot, origin, selection })
    };
    let mut writes: Vec<Write> = Origin::ALL.into_iter().filter_map(select).collect();
    let Entry { flags, affinity_seconds, .. } = *new;
    if (old.flags, old.affinity_seconds) != (flags, affinity_seconds) {
        writes.push(Write::Options { slot, flags, affinity_seconds });
    }
    if old.set() != new.set() {
        writes.push(Write::Sources { slot, set: new.set() });
    }
    writes
}

/// A selection table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct List {
    selection: Selection,
    /// One per share of an endpoint, ascending: readers search it.
    backends: Vec<u32>,
    /// Of the lookup table.
    digest: u32,
    /// What the lookup table was compared with last, as [`Fresh::digest`] tells it, and whether it is that: to make one takes milliseconds.
    compared: Cell<Option<(u64, bool)>>,
}

/// How many entries a table takes.
fn footprint(selection: Selection) -> u32 {
    u32::from(selection.length) + selection.lookup_size()
}

/// What is to become a table.
#[derive(Debug, Clone, Copy, Default)]
struct Fresh<'a> {
    endpoints: &'a [SocketAddr],
    names: Option<&'a Names>,
    /// As in [`Selection`].
    lookup: u8,
}

impl<'a> Fresh<'a> {
    fn of(target: &'a Target, origin: Origin) -> Self {
        let endpoints = target.endpoints(origin);
        let lookup = if target.scheduler.is_hashed() { maglev::size_class(endpoints.len()) } else { 0 };
        Self { endpoints, names: target.names.as_deref(), lookup }
    }

    fn turns(&self) -> Vec<maglev::Turn> {
        let name = |address| self.names.and_then(|names| names.of(address));
        let identity = |address| name(address).unwrap_or_else(|| Identity::of_address(address));
        maglev::turns(self.endpoints.iter().map(|address| (identity(*address), *address)))
    }

    /// Tells whether two lookup tables of one size are made of the same, which is sooner known than whether they are the same.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.turns().hash(&mut hasher);
        hasher.finish()
    }

    /// Where it will stand, but for the place and what tells it from others.
    fn shape(&self) -> Selection {
        Selection { offset: 0, length: self.endpoints.len() as u16, lookup: self.lookup, generation: 0 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Use {
    address: SocketAddr,
    generation: u32,
    /// How many table entries name this backend.
    references: usize,
}

#[derive(Debug)]
pub struct Model {
    capacity: Capacity,
    entries: HashMap<Frontend, Entry>,
    by_address: HashMap<SocketAddr, u32>,
    uses: ByNumber<Use>,
    slots: Numbers,
    ids: Numbers,
    ranges: Ranges,
    /// The number that the last set of source ranges got. None comes twice: a range that could not be removed yet lies in no other
    /// service's set.
    last_set: u32,
    /// How many source ranges there are.
    sources: usize,
    /// How many entries are for looking up by hash.
    lookups: u32,
    /// Backends of no table that were there at the adoption: some may still serve, which the first full sync will say.
    held: Vec<u32>,
    /// A service let a backend of datagrams go since [`Model::let_go`].
    let_go: bool,
    last_generation: u32,
    last_selection: u16,
}

impl Model {
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            entries: HashMap::new(),
            by_address: HashMap::new(),
            uses: ByNumber::default(),
            slots: Numbers::new(capacity.frontends),
            ids: Numbers::new(capacity.backends),
            ranges: Ranges::new(capacity.table_entries),
            last_set: 0,
            held: Vec::new(),
            sources: 0,
            lookups: 0,
            let_go: false,
            last_generation: 0,
            last_selection: 0,
        }
    }

    /// The model of what was found, and the writes that remove what makes no sense in it.
    pub fn adopt(found: &Found, capacity: Capacity) -> (Self, Vec<Write>) {
        let mut model = Self::new(capacity);
        let services: HashMap<u32, Service> = found.services.iter().copied().collect();
        let backends: HashMap<u32, Backend> = found.backends.iter().copied().collect();
        let living = found.backends.iter().map(|(_, backend)| backend.generation).max().unwrap_or(0);
        model.last_generation = living.max(found.last_generation);
        let words = services.values().flat_map(|service| [service.inside, service.outside]);
        model.last_selection = words.map(|word| Selection::unpack(word).generation).max().unwrap_or(0);
        let mut sources: HashMap<u32, Vec<IpNetwork>> = HashMap::new();
        for key in &found.sources {
            sources.entry(key.set).or_default().extend(from_network_key(*key));
        }
        let found_parts = Parts { tables: &found.tables, backends: &backends, sources: &sources };
        let mut leftovers = Vec::new();
        for (key, slot) in &found.frontends {
            let adopted = services
                .get(slot)
                .filter(|service| service.key == *key)
                .and_then(|service| model.adopt_one(*key, *slot, service, &found_parts));
            if adopted.is_none() {
                leftovers.push(Write::FrontendRemove { key: *key });
            }
        }
        for (slot, _) in services.iter().filter(|(slot, _)| !model.slots.is_taken(**slot)) {
            leftovers.push(Write::Clear { slot: *slot });
        }
        for (id, backend) in &found.backends {
            if !model.ids.is_taken(*id) && !model.hold(*id, *backend) {
                leftovers.push(Write::Backend { id: *id, value: freed(*backend) });
            }
        }
        let in_use: HashSet<u32> = model.entries.values().map(Entry::set).collect();
        let known = |key: &NetworkKey| key.set != 0 && in_use.contains(&key.set);
        for key in found.sources.iter().filter(|key| !known(key)) {
            leftovers.push(Write::SourceRemove { key: *key });
        }
        let sets = services.values().map(|service| service.sources);
        model.last_set = sets.chain(found.sources.iter().map(|key| key.set)).max().unwrap_or(0);
        model.slots.settle();
        model.ids.settle();
        (model, leftovers)
    }

    fn adopt_one(
        &mut self,
        key: FrontendKey,
        slot: u32,
        service: &Service,
        Parts { tables, backends, sources }: &Parts<'_>,
    ) -> Option<()> {
        let frontend = from_key(key)?;
        if self.slots.is_taken(slot) {
            return None;
        }
        let list = |word: u64| {
            let selection = Selection::unpack(word);
            if selection.length == 0 {
                return Some(List { selection, backends: Vec::new(), digest: 0, compared: Cell::default() });
            }
            let (ids, places) = tables.get(&word)?.split_at_checked(usize::from(selection.length))?;
            let sound = ids.is_sorted() && ids.iter().all(|id| backends.contains_key(id));
            let digest = maglev::digest(places);
            sound.then(|| List { selection, backends: ids.to_vec(), digest, compared: Cell::default() })
        };
        let inside = list(service.inside)?;
        let outside = if service.outside == service.inside { None } else { Some(list(service.outside)?) };
        let sources = NonZeroU32::new(service.sources).map(|set| {
            let mut networks = sources.get(&set.get()).cloned().unwrap_or_default();
            networks.sort_unstable();
            Sources { set, networks: networks.into() }
        });
        let place = |list: &List| (list.selection.offset, footprint(list.selection));
        let (first, second) = (place(&inside), outside.as_ref().map_or((0, 0), place));
        if !self.ranges.take(first.0, first.1) {
            return None;
        }
        if !self.ranges.take(second.0, second.1) {
            self.ranges.free(first.0, first.1);
            return None;
        }
        self.slots.take(slot);
        let lists = std::iter::once(&inside).chain(&outside);
        self.lookups += lists.map(|list| list.selection.lookup_size()).sum::<u32>();
        for id in inside.backends.iter().chain(outside.iter().flat_map(|list| &list.backends)) {
            self.refer(*id, backends[id]);
        }
        if let Some(sources) = &sources {
            self.sources += sources.networks.len();
        }
        let Service { flags, affinity_seconds, .. } = *service;
        // What drains stands nowhere: it is held until somebody says.
        let draining = Vec::new();
        self.entries
            .insert(frontend, Entry { slot, inside, outside, flags, affinity_seconds, sources, draining });
        Some(())
    }

    fn refer(&mut self, id: u32, backend: Backend) {
        let address = socket_address(backend.address, backend.port_be);
        self.ids.take(id);
        self.by_address.insert(address, id);
        let used = Use { address, generation: backend.generation, references: 0 };
        self.uses.get_or_insert(id, used).references += 1;
    }

    /// Keeps a backend of no table, unless another one has its address.
    fn hold(&mut self, id: u32, backend: Backend) -> bool {
        if self.by_address.contains_key(&socket_address(backend.address, backend.port_be)) {
            return false;
        }
        self.refer(id, backend);
        self.held.push(id);
        true
    }

    /// Frees the backends that were held at the adoption and that nobody has asked for since.
    pub fn release_held(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        let held = std::mem::take(&mut self.held);
        self.let_go |= !held.is_empty();
        self.drop_backends(&held, &mut writes);
        writes
    }

    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        self.entries.keys().copied()
    }

    pub fn slot(&self, frontend: Frontend) -> Option<u32> {
        self.entries.get(&frontend).map(|entry| entry.slot)
    }

    /// Every frontend, with its slot.
    pub fn slots(&self) -> impl Iterator<Item = (Frontend, u32)> {
        self.entries.iter().map(|(frontend, entry)| (*frontend, entry.slot))
    }

    /// The numbers of all backends.
    pub fn backend_numbers(&self) -> impl Iterator<Item = u32> {
        self.uses.numbers()
    }

    /// The backends that one frontend's tables name.
    pub fn listed_by(&self, frontend: Frontend) -> BTreeSet<u32> {
        let lists = self.entries.get(&frontend).into_iter().flat_map(Entry::lists);
        lists.flat_map(|list| list.backends.iter().copied()).collect()
    }

    /// These, and those of no table that still serve its clients.
    pub fn backends_of(&self, frontend: Frontend) -> BTreeSet<u32> {
        let mut all = self.listed_by(frontend);
        all.extend(self.entries.get(&frontend).into_iter().flat_map(|entry| &entry.draining));
        all
    }

    pub fn is_empty_inside(&self, frontend: Frontend) -> bool {
        self.entries.get(&frontend).is_none_or(|entry| entry.inside.backends.is_empty())
    }

    pub fn scheduler(&self, frontend: Frontend) -> Option<Scheduler> {
        self.entries.get(&frontend).map(|entry| Scheduler::of(entry.flags))
    }

    /// Every frontend, and where it leads; endpoints in the order of their addresses, without names.
    pub fn list(&self) -> impl Iterator<Item = (Frontend, Target)> {
        self.entries.iter().map(|(frontend, entry)| {
            let inside: Arc<[SocketAddr]> = self.endpoints(&entry.inside.backends);
            let outside = entry.outside.as_ref();
            let outside = outside.map_or_else(|| inside.clone(), |list| self.endpoints(&list.backends));
            let affinity_seconds = NonZeroU32::new(entry.affinity_seconds);
            let sources = entry.networks().cloned();
            let draining = self.endpoints(&entry.draining);
            let has = |flag: u32| entry.flags & flag != 0;
            let target = Target {
                inside,
                outside,
                affinity_seconds,
                sources,
                draining,
                own_address: has(service_flag::OWN_ADDRESS),
                direct_return: has(service_flag::DIRECT_RETURN),
                set_aside_after: set_aside_after(entry.flags),
                scheduler: Scheduler::of(entry.flags),
                names: None,
            };
            (*frontend, target)
        })
    }

    fn endpoints(&self, ids: &[u32]) -> Arc<[SocketAddr]> {
        let mut endpoints: Vec<_> =
            ids.iter().filter_map(|id| self.uses.get(*id)).map(|used| used.address).collect();
        endpoints.sort_unstable();
        endpoints.into()
    }

    /// The writes that make `frontend` lead to `target`: none if it already does. On an error nothing has changed.
    pub fn set(&mut self, frontend: Frontend, target: &Target) -> Result<Vec<Write>, Full> {
        let before = self.entries.get(&frontend);
        let affinity_seconds = target.affinity_seconds.map_or(0, NonZeroU32::get);
        let own_address = if target.own_address { service_flag::OWN_ADDRESS } else { 0 };
        let direct_return = if target.direct_return { service_flag::DIRECT_RETURN } else { 0 };
        let set_aside = u32::from(target.set_aside_after.map_or(0, NonZeroU8::get));
        let set_aside = set_aside << service_flag::SET_ASIDE_SHIFT;
        let flags = service_flag::IN_USE | own_address | direct_return | target.scheduler.flags() | set_aside;
        // One table serves both origins where they are equal.
        let same = target.inside == target.outside;
        let fresh = Origin::ALL.map(|origin| {
            let fresh = Fresh::of(target, origin);
            let is_there = || before.is_some_and(|entry| self.leads_to(entry.list(origin), fresh));
            let has_own = origin == Origin::Inside || !same;
            (has_own && !is_there()).then_some(fresh)
        });
        let same_sources = before.is_some_and(|entry| entry.networks() == target.sources.as_ref());
        let draining = self.draining(target);
        let unchanged = |entry: &Entry| {
            entry.outside.is_none() == same
                && (entry.flags, entry.affinity_seconds) == (flags, affinity_seconds)
                && entry.draining == draining
        };
        if fresh.iter().all(Option::is_none) && same_sources && before.is_some_and(unchanged) {
            return Ok(Vec::new());
        }
        let new_sources = target.sources.as_ref().filter(|_| !same_sources);
        self.check_room(frontend, fresh, new_sources)?;
        let fresh = self.within_budget(fresh);
        let offsets = self.allocate_tables(fresh)?;
        let old = self.entries.remove(&frontend);
        let mut writes = Vec::new();
        let mut list = |origin: Origin| {
            let place = origin as usize;
            match (fresh[place], &old) {
                (None, Some(old)) => old.list(origin).clone(),
                (fresh, _) => self.new_list(fresh.unwrap_or_default(), offsets[place], &mut writes),
            }
        };
        let inside = list(Origin::Inside);
        let outside = (!same).then(|| list(Origin::Outside));
        let sources = match (new_sources, &old) {
            (Some(networks), _) => Some(self.new_sources(networks, &mut writes)),
            (None, Some(old)) if same_sources => old.sources.clone(),
            (None, _) => None,
        };
        for id in &draining {
            self.uses.get_mut(*id).expect("it has a number").references += 1;
        }
        let mut entry = Entry { slot: 0, inside, outside, flags, affinity_seconds, sources, draining };
        match &old {
            Some(old) => {
                entry.slot = old.slot;
                writes.extend(differences(old, &entry));
            }
            None => entry.slot = self.new_slot(frontend, &entry, &mut writes),
        }
        if let Some(old) = &old {
            let is_gone = |old: &&List| entry.lists().all(|list| list.selection != old.selection);
            old.lists().filter(is_gone).for_each(|list| self.drop_list(list, &mut writes));
            if old.set() != entry.set() {
                self.drop_sources(old, &mut writes);
            }
            self.drop_backends(&old.draining, &mut writes);
            self.let_go |= frontend.protocol == Protocol::Udp
                && (old.inside != entry.inside || old.draining != entry.draining);
        }
        self.entries.insert(frontend, entry);
        Ok(writes)
    }

    pub fn remove(&mut self, frontend: Frontend) -> Vec<Write> {
        let Some(old) = self.entries.remove(&frontend) else { return Vec::new() };
        let mut writes =
            vec![Write::FrontendRemove { key: to_key(frontend) }, Write::Clear { slot: old.slot }];
        self.slots.free(old.slot);
        for list in old.lists() {
            self.drop_list(list, &mut writes);
        }
        self.drop_sources(&old, &mut writes);
        self.drop_backends(&old.draining, &mut writes);
        self.let_go |= frontend.protocol == Protocol::Udp;
        writes
    }

    /// Whether a backend of datagrams may have been let go since the last call.
    pub fn let_go(&mut self) -> bool {
        std::mem::take(&mut self.let_go)
    }

    /// The numbers of endpoints that still serve, of those that clients may have been led to.
    fn draining(&self, target: &Target) -> Vec<u32> {
        let mut ids: Vec<u32> =
            target.draining.iter().filter_map(|address| self.by_address.get(address).copied()).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether a table names just these endpoints, and can be looked up as wanted.
    fn leads_to(&self, list: &List, fresh: Fresh<'_>) -> bool {
        let endpoints = fresh.endpoints;
        // One that had no room for a lookup table waits for that.
        let lookup = if list.selection.lookup == 0 && !self.may_look_up(fresh.shape().lookup_size()) {
            0
        } else {
            fresh.lookup
        };
        if list.backends.len() != endpoints.len() || list.selection.lookup != lookup {
            return false;
        }
        let ids = endpoints.iter().map(|address| self.by_address.get(address).copied());
        let same = ids.collect::<Option<Vec<u32>>>().is_some_and(|mut ids| {
            ids.sort_unstable();
            ids == list.backends
        });
        same && (lookup == 0 || self.looks_up(list, fresh))
    }

    /// Whether a lookup table over just these endpoints is as wanted: an address may be another pod's now, and an earlier process may have filled
    /// the table by other rules. One that is not stays where there is no room for the other beside it.
    fn looks_up(&self, list: &List, fresh: Fresh<'_>) -> bool {
        let wanted = fresh.digest();
        let is_that = match list.compared.get() {
            Some((with, is_that)) if with == wanted => is_that,
            _ => list.digest == maglev::digest(&self.lookup_table(fresh)),
        };
        list.compared.set(Some((wanted, is_that)));
        is_that || !self.may_look_up(fresh.shape().lookup_size())
    }

    /// Tells whether clients on the node that the service of a slot led to a backend of this number and generation may stay.
    pub fn serves(&self) -> impl Fn(u32, u32, u32) -> bool {
        let by_slot: HashMap<u32, &Entry> = self.entries.values().map(|entry| (entry.slot, entry)).collect();
        move |slot, backend, generation| {
            let listed = by_slot.get(&slot).is_some_and(|entry| {
                [&entry.inside.backends, &entry.draining]
                    .iter()
                    .any(|ids| ids.binary_search(&backend).is_ok())
            });
            listed && self.uses.get(backend).is_some_and(|used| used.generation == generation)
        }
    }

    /// Whether freed numbers wait for [`Self::release`].
    pub fn release_pending(&self) -> bool {
        self.slots.waiting() || self.ids.waiting() || self.ranges.waiting()
    }

    /// Called when no program can refer to freed numbers any more.
    pub fn release(&mut self) {
        self.slots.release();
        self.ids.release();
        self.ranges.release();
    }

    /// Counts before anything is taken, so that a full map leaves no half of a service.
    fn check_room(
        &self,
        frontend: Frontend,
        fresh: [Option<Fresh<'_>>; 2],
        new_sources: Option<&Arc<[IpNetwork]>>,
    ) -> Result<(), Full> {
        let full = |resource, limit| Err(Full { resource, limit });
        let lists = || fresh.into_iter().flatten().map(|fresh| fresh.endpoints);
        if lists().any(|endpoints| endpoints.len() > MAX_ENDPOINTS) {
            return full(Resource::EndpointsOfOneService, MAX_ENDPOINTS);
        }
        if !self.entries.contains_key(&frontend) && self.slots.available() == 0 {
            return full(Resource::Frontends, self.capacity.frontends as usize);
        }
        let unknown = || lists().flatten().filter(|address| !self.by_address.contains_key(address));
        let room = self.ids.available() as usize;
        // One that stands there several times takes one number: looked at only where it matters.
        if lists().flatten().count() > room && unknown().collect::<HashSet<_>>().len() > room {
            return full(Resource::Backends, self.capacity.backends as usize);
        }
        let sources = self.capacity.sources as usize;
        if new_sources.is_some_and(|networks| self.sources + networks.len() > sources) {
            return full(Resource::SourceRanges, sources);
        }
        Ok(())
    }

    /// Whether so many entries more may be for looking up by hash.
    fn may_look_up(&self, entries: u32) -> bool {
        self.lookups + entries <= self.capacity.lookup_entries
    }

    /// The lists, without lookup tables for which there is no room: clients are then led by hash over the list itself.
    fn within_budget<'a>(&self, fresh: [Option<Fresh<'a>>; 2]) -> [Option<Fresh<'a>>; 2] {
        let mut taken = 0;
        fresh.map(|fresh| {
            let fresh = fresh?;
            let entries = fresh.shape().lookup_size();
            if !self.may_look_up(taken + entries) {
                return Some(Fresh { lookup: 0, ..fresh });
            }
            taken += entries;
            Some(fresh)
        })
    }

    /// Whether a frontend has to do without a lookup table that its scheduler wants.
    pub fn lacks_lookup(&self, frontend: Frontend) -> bool {
        self.entries.get(&frontend).is_some_and(|entry| {
            let lacks = |list: &List| list.selection.lookup == 0 && !list.backends.is_empty();
            Scheduler::of(entry.flags).is_hashed() && entry.lists().any(lacks)
        })
    }

    /// Room for the tables of all lists, or for none.
    fn allocate_tables(&mut self, fresh: [Option<Fresh<'_>>; 2]) -> Result<[u32; 2], Full> {
        let [first, second] = fresh.map(|fresh| fresh.map_or(0, |fresh| footprint(fresh.shape())));
        let limit = self.capacity.table_entries as usize;
        let full = Full { resource: Resource::TableEntries, limit };
        let offset = self.ranges.allocate(first).ok_or(full)?;
        match self.ranges.allocate(second) {
            Some(other) => Ok([offset, other]),
            None => {
                self.ranges.give_back(offset, first);
                Err(full)
            }
        }
    }

    fn new_list(&mut self, fresh: Fresh<'_>, offset: u32, writes: &mut Vec<Write>) -> List {
        let mut backends: Vec<u32> =
            fresh.endpoints.iter().map(|address| self.take_backend(*address, writes)).collect();
        backends.sort_unstable();
        // One count for all services: a slot that is used again shows another word than the flows of its last service know.
        self.last_selection = self.last_selection.wrapping_add(1);
        let selection = Selection { offset, generation: self.last_selection, ..fresh.shape() };
        let has_lookup = selection.lookup != 0;
        let lookup = if has_lookup { self.lookup_table(fresh) } else { Vec::new() };
        if !backends.is_empty() {
            self.lookups += selection.lookup_size();
            writes.push(Write::Table { offset, ids: [backends.as_slice(), &lookup].concat() });
        }
        let compared = Cell::new(has_lookup.then(|| (fresh.digest(), true)));
        List { selection, backends, digest: maglev::digest(&lookup), compared }
    }

    /// The backends' numbers, place by place. All nodes have the same endpoint in the same place, whatever its number.
    fn lookup_table(&self, fresh: Fresh<'_>) -> Vec<u32> {
        let turns = fresh.turns();
        let ids: Vec<u32> = turns.iter().map(|(_, address)| self.by_address[address]).collect();
        let places = maglev::table(&turns, LOOKUP_SIZES[usize::from(fresh.lookup) - 1]);
        places.into_iter().map(|place| ids[place as usize]).collect()
    }

    fn drop_list(&mut self, list: &List, writes: &mut Vec<Write>) {
        self.ranges.free(list.selection.offset, footprint(list.selection));
        self.lookups -= list.selection.lookup_size();
        self.drop_backends(&list.backends, writes);
    }

    fn new_sources(&mut self, networks: &Arc<[IpNetwork]>, writes: &mut Vec<Write>) -> Sources {
        self.last_set = self.last_set.wrapping_add(1).max(1);
        let set = NonZeroU32::new(self.last_set).unwrap_or(NonZeroU32::MIN);
        let sources = Sources { set, networks: networks.clone() };
        writes.extend(sources.keys().map(|key| Write::SourceInsert { key }));
        self.sources += networks.len();
        sources
    }

    fn drop_sources(&mut self, entry: &Entry, writes: &mut Vec<Write>) {
        let Some(sources) = &entry.sources else { return };
        writes.extend(sources.keys().map(|key| Write::SourceRemove { key }));
        self.sources -= sources.networks.len();
    }

    fn new_slot(&mut self, frontend: Frontend, entry: &Entry, writes: &mut Vec<Write>) -> u32 {
        let slot = self.slots.allocate().expect("room was checked");
        let key = to_key(frontend);
        let [inside, outside] = Origin::ALL.map(|origin| entry.list(origin).selection.pack());
        let Entry { flags, affinity_seconds, .. } = *entry;
        let value =
            Service { key, sources: entry.set(), inside, outside, flags, affinity_seconds, turns: [0; 2] };
        writes.push(Write::Service { slot, value });
        writes.push(Write::FrontendInsert { key, slot });
        slot
    }

    fn take_backend(&mut self, address: SocketAddr, writes: &mut Vec<Write>) -> u32 {
        if let Some(id) = self.by_address.get(&address) {
            self.uses.get_mut(*id).expect("every known address is in use").references += 1;
            return *id;
        }
        let id = self.ids.allocate().expect("room was checked");
        self.last_generation = self.last_generation.wrapping_add(1).max(1);
        let value = backend(address, self.last_generation);
        writes.push(Write::Backend { id, value });
        self.by_address.insert(address, id);
        self.uses.insert(id, Use { address, generation: self.last_generation, references: 1 });
        id
    }

    fn drop_backends(&mut self, ids: &[u32], writes: &mut Vec<Write>) {
        for id in ids {
            let used = self.uses.get_mut(*id).expect("every table entry is in use");
            used.references -= 1;
            if used.references == 0 {
                let value = freed(backend(used.address, used.generation));
                self.by_address.remove(&used.address);
                self.uses.remove(*id);
                self.ids.free(*id);
                writes.push(Write::Backend { id: *id, value });
            }
        }
    }
}

/// The settings with other masquerades.
pub fn config(before: Config, families: &[Masquerade]) -> Result<Config, WriteError> {
    let mut config = Config {
        node_netns: before.node_netns,
        policy_generation: before.policy_generation,
        ..Config::default()
    };
    for family in families {
        let pods = family.pods;
        let is_of_family = |address: &IpAddr| address.is_ipv4() == pods.is_ipv4();
        let mut shown = std::iter::once(family.address).chain(family.overlay.map(|overlay| overlay.address));
        if let Some(address) = shown.find(|address| !is_of_family(address)) {
            return Err(WriteError::MixedFamilies { address, pods });
        }
        let excluded = family.excluded.iter().filter(|network| network.is_ipv4() == pods.is_ipv4());
        let (count, limit) = (excluded.clone().count(), capacity::UNMASQUERADED);
        if count > limit {
            return Err(WriteError::TooManyExcluded { count, limit });
        }
        let settings = if pods.is_ipv4() { &mut config.v4 } else { &mut config.v6 };
        settings.pods = to_network(pods);
        settings.shown = to_address(family.address);
        for (place, excluded) in settings.unmasqueraded.iter_mut().zip(excluded) {
            *place = to_network(*excluded);
        }
        if let Some(overlay) = family.overlay {
            settings.overlay = to_address(overlay.address);
            config.overlay_link = overlay.link;
        }
    }
    Ok(config)
}

fn to_network(network: IpNetwork) -> Network {
    let mask = u128::MAX.checked_shl(Address::BITS - mapped_prefix(network)).unwrap_or(0);
    Network { network: to_address(network.network()), mask: Address::from_bytes(mask.to_be_bytes()) }
}

/// The length of the network's prefix where IPv4 is mapped.
pub fn mapped_prefix(network: IpNetwork) -> u32 {
    let before = if network.is_ipv4() { Address::MAPPED_BITS } else { 0 };
    before + u32::from(network.prefix())
}

pub fn to_key(frontend: Frontend) -> FrontendKey {
    let protocol = match frontend.protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    };
    let address = to_address(frontend.address);
    FrontendKey { address, port_be: frontend.port.to_be(), protocol, reserved: 0 }
}

fn from_key(key: FrontendKey) -> Option<Frontend> {
    let protocol = match key.protocol {
        protocol::TCP => Protocol::Tcp,
        protocol::UDP => Protocol::Udp,
        protocol::SCTP => Protocol::Sctp,
        _ => return None,
    };
    Some(Frontend { address: address(key.address), port: u16::from_be(key.port_be), protocol })
}

/// `None` for a key that we would not write.
pub fn from_network_key(key: NetworkKey) -> Option<IpNetwork> {
    let address = address(key.address);
    let before = if address.is_ipv4() { Address::MAPPED_BITS } else { 0 };
    let prefix = key.prefix.checked_sub(NetworkKey::SET_BITS)?.checked_sub(before)?;
    IpNetwork::new(address, u8::try_from(prefix).ok()?).ok()
}

pub fn socket_address(of: Address, port_be: u16) -> SocketAddr {
    SocketAddr::new(address(of), u16::from_be(port_be))
}

/// An IPv6 address that maps one of IPv4 is that one.
pub fn to_address(address: IpAddr) -> Address {
    Address::from_bytes(match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    })
}

fn address(address: Address) -> IpAddr {
    Ipv6Addr::from(address.to_bytes()).to_canonical()
}

fn set_aside_after(flags: u32) -> Option<NonZeroU8> {
    NonZeroU8::new(service_flag::set_aside_after(flags) as u8)
}

fn backend(address: SocketAddr, generation: u32) -> Backend {
    Backend {
        address: to_address(address.ip()),
        port_be: address.port().to_be(),
        reserved: 0,
        connections: 0,
        failures: 0,
        aside_until: 0,
        generation,
        last_generation: generation,
    }
}

/// A free number: what it was stays behind, for readers that are on their way to it.
fn freed(backend: Backend) -> Backend {
    Backend { generation: 0, ..backend }
}
