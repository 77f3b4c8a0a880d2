use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dataplane_abi::Affinity;
use dataplane_abi::select::{self, Choice, Elements, Reads, choose, find, keep, may_ask};
use proptest::prelude::*;

use std::net::Ipv4Addr;

use super::*;
use crate::Overlay;

/// The maps as a program would see them after some writes.
#[derive(Clone, Default)]
struct Maps {
    frontends: BTreeMap<[u8; size_of::<FrontendKey>()], u32>,
    services: HashMap<u32, Service>,
    tables: Vec<u32>,
    backends: HashMap<u32, Backend>,
    sources: BTreeSet<NetworkKey>,
}

impl Maps {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Backend { id, value } => drop(self.backends.insert(*id, *value)),
            Write::Table { offset, ids } => {
                let (first, end) = (*offset as usize, *offset as usize + ids.len());
                self.tables.resize(self.tables.len().max(end), u32::MAX);
                self.tables[first..end].copy_from_slice(ids);
            }
            Write::Service { slot, value } => {
                [value.inside, value.outside].into_iter().for_each(|word| self.check_lookup(word));
                self.services.insert(*slot, *value);
            }
            Write::Clear { slot } => {
                let service = self.services.get_mut(slot).expect("a service in use");
                *service = Service { flags: 0, inside: 0, outside: 0, ..*service };
            }
            Write::Select { slot, origin, selection } => {
                self.check_lookup(selection.pack());
                let service = self.services.get_mut(slot).expect("a service in use");
                *word_of(service, *origin) = selection.pack();
            }
            Write::Options { slot, flags, affinity_seconds } => {
                let service = self.services.get_mut(slot).expect("a service in use");
                (service.flags, service.affinity_seconds) = (*flags, *affinity_seconds);
            }
            Write::Sources { slot, set } => {
                self.services.get_mut(slot).expect("a service in use").sources = *set;
            }
            Write::SourceInsert { key } => assert!(self.sources.insert(*key), "a set is filled once"),
            Write::SourceRemove { key } => drop(self.sources.remove(key)),
            Write::FrontendInsert { key, slot } => drop(self.frontends.insert(key.to_bytes(), *slot)),
            Write::FrontendRemove { key } => drop(self.frontends.remove(&key.to_bytes())),
        }
    }

    /// What a lookup of `frontend` can lead to; `None` if nothing answers there.
    fn look_up(&self, frontend: Frontend) -> Option<Target> {
        let key = to_key(frontend);
        let service = *self.services.get(self.frontends.get(&key.to_bytes())?)?;
        assert_eq!(service.key, key);
        let [inside, outside] = [service.inside, service.outside].map(|word| {
            let ids = self.table(word);
            assert!(ids.is_sorted(), "readers search a table");
            ids.into_iter().map(|id| self.backend(id)).collect()
        });
        let affinity_seconds = NonZeroU32::new(service.affinity_seconds);
        let of_set = self.sources.iter().filter(|key| key.set == service.sources);
        let sources = (service.sources != 0)
            .then(|| of_set.map(|key| from_network_key(*key).expect("a network")).collect());
        let own_address = service.flags & service_flag::OWN_ADDRESS != 0;
        let target = Target {
            inside,
            outside,
            affinity_seconds,
            sources,
            draining: Arc::default(),
            own_address,
            direct_return: service.flags & service_flag::DIRECT_RETURN != 0,
            set_aside_after: set_aside_after(service.flags),
            scheduler: Scheduler::of(service.flags),
            names: None,
        };
        Some(sorted(&target))
    }

    fn table(&self, word: u64) -> Vec<u32> {
        let table = Selection::unpack(word);
        self.tables[table.offset as usize..][..usize::from(table.length)].to_vec()
    }

    /// Of the lookup table behind the list.
    fn places(&self, word: u64) -> &[u32] {
        let selection = Selection::unpack(word);
        let first = selection.offset as usize + usize::from(selection.length);
        &self.tables[first..][..selection.lookup_size() as usize]
    }

    /// Each place of a lookup table leads to a backend of the list.
    fn check_lookup(&self, word: u64) {
        let (selection, ids, places) = (Selection::unpack(word), self.table(word), self.places(word));
        let led: BTreeSet<u32> = places.iter().copied().collect();
        assert!(selection.lookup == 0 || led == ids.into_iter().collect(), "{led:?}");
    }

    fn backend(&self, id: u32) -> SocketAddr {
        let backend = self.backends[&id];
        assert_ne!(backend.generation, 0, "a table names a free backend");
        socket_address(backend.address, backend.port_be)
    }

    fn found(&self) -> Found {
        let in_use = |service: &Service| service.flags != 0;
        let services = self.services.values().filter(|service| in_use(service));
        let words = services.flat_map(|service| [service.inside, service.outside]);
        let tables = words.map(|word| (word, [&self.table(word), self.places(word)].concat()));
        Found {
            frontends: self
                .frontends
                .iter()
                .map(|(key, slot)| (FrontendKey::from_bytes(*key), *slot))
                .collect(),
            services: self.services.iter().filter(|(_, s)| in_use(s)).map(|(slot, s)| (*slot, *s)).collect(),
            tables: tables.collect(),
            backends: self
                .backends
                .iter()
                .filter(|(_, b)| b.generation != 0)
                .map(|(id, b)| (*id, *b))
                .collect(),
            sources: self.sources.iter().copied().collect(),
            last_generation: self.backends.values().map(|b| b.last_generation).max().unwrap_or(0),
        }
    }
}

fn word_of(service: &mut Service, origin: Origin) -> &mut u64 {
    match origin {
        Origin::Inside => &mut service.inside,
        Origin::Outside => &mut service.outside,
    }
}

/// The order of endpoints means nothing.
fn sorted(target: &Target) -> Target {
    let list = |endpoints: &[SocketAddr]| {
        let mut endpoints = endpoints.to_vec();
        endpoints.sort_unstable();
        endpoints.into()
    };
    let (inside, outside) = (list(&target.inside), list(&target.outside));
    // What drains stands in no table, and names are in none.
    Target { inside, outside, draining: Arc::default(), names: None, ..target.clone() }
}

/// A program's lookup, while a writer is at work: some of the writes happen before each of its reads.
struct Reader<'a> {
    maps: &'a mut Maps,
    writes: VecDeque<Write>,
    /// How many writes happen before each read.
    paces: &'a [u8],
    reads: usize,
    slot: u32,
    origin: Origin,
    /// Whether source ranges hold the client: this one's is meant.
    network: u8,
}

impl Reader<'_> {
    fn pause(&mut self) {
        let pace = self.paces[self.reads % self.paces.len()];
        self.reads += 1;
        for _ in 0..pace {
            if let Some(write) = self.writes.pop_front() {
                self.maps.apply(&write);
            }
        }
    }

    /// `None` for no service; otherwise the endpoint, if there is one.
    fn look_up(&mut self, frontend: Frontend) -> Option<Option<SocketAddr>> {
        let key = to_key(frontend);
        self.pause();
        self.slot = *self.maps.frontends.get(&key.to_bytes())?;
        self.pause();
        let service = self.maps.services.get(&self.slot)?;
        if service.key != key || service.flags == 0 {
            return None;
        }
        match choose(self, service.flags) {
            Choice::NoBackend => Some(None),
            Choice::Backend(chosen) => Some(Some(socket_address(chosen.address, chosen.port_be))),
        }
    }

    fn finish(mut self) {
        self.writes.drain(..).for_each(|write| self.maps.apply(&write));
    }
}

impl Elements for Reader<'_> {
    fn table(&mut self, index: u32) -> Option<u32> {
        self.pause();
        self.maps.tables.get(index as usize).copied()
    }

    fn backend(&mut self, id: u32) -> Option<Backend> {
        self.pause();
        self.maps.backends.get(&id).copied()
    }

    fn random(&mut self) -> u32 {
        (self.reads as u32).wrapping_mul(0x9e37_79b9)
    }

    fn ticks(&mut self) -> u32 {
        NOW
    }
}

impl Reads for Reader<'_> {
    fn selection(&mut self) -> u64 {
        self.pause();
        let mut service = self.maps.services[&self.slot];
        *word_of(&mut service, self.origin)
    }

    fn turn(&mut self) -> u32 {
        self.reads as u32
    }

    fn hash(&mut self, scheduler: Scheduler) -> Option<u32> {
        let random = self.random();
        (scheduler == Scheduler::SourceHash || !random.is_multiple_of(3)).then_some(random)
    }

    fn sources(&mut self) -> u32 {
        self.pause();
        self.maps.services[&self.slot].sources
    }

    fn holds(&mut self, set: u32) -> bool {
        self.pause();
        let wanted = Some(network(self.network));
        self.maps.sources.iter().any(|key| key.set == set && from_network_key(*key) == wanted)
    }

    fn least(&mut self, offset: u32, length: u32, flags: u32) -> u32 {
        select::least(self, offset, length, flags)
    }

    fn spare(&mut self, offset: u32, length: u32, meant: u32) -> u32 {
        select::spare(self, offset, length, meant)
    }

    fn narrow(&mut self, offset: u32, id: u32, bounds: u64) -> u64 {
        select::narrow(self, offset, id, bounds)
    }
}

fn frontend(number: u8) -> Frontend {
    let protocol = if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    Frontend { address: address_of(number, 0x0a60_0000), port: 80, protocol }
}

fn endpoint(number: u8) -> SocketAddr {
    SocketAddr::new(address_of(number, 0x0af4_0000), 8080)
}

/// Of either family: every third is of IPv6, with the bits of an IPv4 address that others have.
fn address_of(number: u8, network: u32) -> IpAddr {
    if number.is_multiple_of(3) {
        Ipv6Addr::from(0xfd00 << 112 | 0xffff << 32 | u128::from(network | u32::from(number ^ 1))).into()
    } else {
        Ipv4Addr::from(network | u32::from(number)).into()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, Target),
    Remove(u8),
    Release,
    Restart,
    /// A change of which only so many writes are done when the process dies.
    Crash(u8, Option<Target>, usize),
}

fn network(number: u8) -> IpNetwork {
    let network = address_of(number, 0xc000_0200);
    IpNetwork::new(network, if network.is_ipv4() { 32 } else { 128 }).unwrap()
}

fn target(numbers: &[u8]) -> Target {
    Target::all(numbers.iter().copied().map(endpoint).collect::<Vec<_>>())
}

fn targets(endpoints: std::ops::Range<u8>, most: usize) -> impl Strategy<Value = Target> {
    let list = prop::collection::vec(endpoints, 0..most);
    let sources = prop::option::of(prop::collection::btree_set(0_u8..6, 0..4));
    let draining = prop::collection::btree_set(0_u8..12, 0..3);
    let scheduler = prop_oneof![
        8 => Just(Scheduler::Random),
        1 => Just(Scheduler::RoundRobin),
        1 => Just(Scheduler::LeastConnection),
        1 => Just(Scheduler::SourceHash),
        1 => Just(Scheduler::Maglev),
    ];
    let parts = (list.clone(), prop::option::of(list), 0_u32..3, sources, draining, scheduler);
    parts.prop_map(|(inside, outside, affinity, sources, draining, scheduler)| Target {
        scheduler,
        affinity_seconds: NonZeroU32::new(affinity),
        own_address: affinity > 1,
        direct_return: affinity == 1,
        set_aside_after: NonZeroU8::new(affinity as u8),
        sources: sources.map(|numbers| {
            let networks: BTreeSet<IpNetwork> = numbers.into_iter().map(network).collect();
            networks.into_iter().collect()
        }),
        draining: draining.into_iter().map(endpoint).collect(),
        outside: target(outside.as_ref().unwrap_or(&inside)).outside,
        ..target(&inside)
    })
}

impl Step {
    /// Of a step that only changes a frontend: which, and where it is to lead.
    fn change(self) -> Option<(u8, Option<Target>)> {
        match self {
            Self::Set(f, target) => Some((f, Some(target))),
            Self::Remove(f) => Some((f, None)),
            _ => None,
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..6, targets(0..12, 8)).prop_map(|(f, e)| Step::Set(f, e)),
        2 => (0u8..6).prop_map(Step::Remove),
        1 => Just(Step::Release),
        1 => Just(Step::Restart),
        1 => (0u8..6, prop::option::of(targets(0..12, 8)), 0usize..12)
            .prop_map(|(f, e, n)| Step::Crash(f, e, n)),
    ];
    prop::collection::vec(step, 0..60)
}

/// The model, the maps it writes, and what they should lead to.
struct World {
    model: Model,
    maps: Maps,
    wanted: BTreeMap<u8, Target>,
    /// Every pair of a backend's number and generation that ever was.
    generations: BTreeSet<(u32, u32)>,
}

impl World {
    fn new() -> Self {
        Self {
            model: new_model(),
            maps: Maps::default(),
            wanted: BTreeMap::new(),
            generations: BTreeSet::new(),
        }
    }

    /// Plans a change of `number`; the writes are still to be done.
    fn plan(&mut self, number: u8, target: Option<Target>) -> Vec<Write> {
        match target {
            Some(target) => {
                let writes = self.model.set(frontend(number), &target).unwrap();
                self.wanted.insert(number, sorted(&target));
                writes
            }
            None => {
                self.wanted.remove(&number);
                self.model.remove(frontend(number))
            }
        }
    }

    fn apply(&mut self, write: &Write) {
        if let Write::Backend { id, value } = write
            && value.generation != 0
        {
            let new = self.generations.insert((*id, value.generation));
            assert!(new, "a generation came twice: {write:?}");
        }
        self.maps.apply(write);
    }

    fn change(&mut self, number: u8, endpoints: &[u8]) {
        let writes = self.plan(number, Some(target(endpoints)));
        writes.iter().for_each(|write| self.apply(write));
    }

    /// A new process takes over and is in sync. What it finds may be from the middle of a change.
    fn restart(&mut self) -> Vec<Write> {
        let (adopted, leftovers) = Model::adopt(&self.maps.found(), Capacity::default());
        self.model = adopted;
        leftovers.iter().for_each(|write| self.maps.apply(write));
        self.model.release_held().iter().for_each(|write| self.maps.apply(write));
        leftovers
    }

    fn check(&self) {
        for number in 0..6 {
            assert_eq!(self.maps.look_up(frontend(number)).as_ref(), self.wanted.get(&number));
        }
        let lists = self.wanted.values().flat_map(|target| [&target.inside, &target.outside]);
        let draining = self.model.list().flat_map(|(_, target)| target.draining.to_vec());
        let in_use: BTreeSet<_> = lists.flat_map(|list| list.iter().copied()).chain(draining).collect();
        let living = self.maps.backends.values().filter(|backend| backend.generation != 0).count();
        assert_eq!(living, in_use.len());
        let sources: usize = self.wanted.values().flat_map(|target| &target.sources).map(|s| s.len()).sum();
        assert_eq!(self.maps.sources.len(), sources);
    }

    /// A frontend that was fully written can be looked up by hash if its scheduler does that.
    fn check_hashed(&self, number: u8) {
        let service = self.maps.services[&self.maps.frontends[&to_key(frontend(number)).to_bytes()]];
        for table in [service.inside, service.outside].map(Selection::unpack) {
            let wants = Scheduler::of(service.flags).is_hashed() && table.length != 0;
            assert_eq!(table.lookup != 0, wants, "{service:?}");
        }
    }
}

/// Whether each part of what a lookup led to is one that was wanted before or is wanted now.
fn of_either(seen: Option<&Target>, before: Option<&Target>, after: Option<&Target>) -> bool {
    let Some(seen) = seen else { return before.is_none() || after.is_none() };
    let either = || before.into_iter().chain(after);
    either().any(|target| target.inside == seen.inside)
        && either().any(|target| target.outside == seen.outside)
        && either().any(|target| {
            (
                target.own_address,
                target.direct_return,
                target.affinity_seconds,
                target.scheduler,
                target.set_aside_after,
            ) == (
                seen.own_address,
                seen.direct_return,
                seen.affinity_seconds,
                seen.scheduler,
                seen.set_aside_after,
            )
        })
        && either().any(|target| target.sources == seen.sources)
}

fn new_model() -> Model {
    Model::new(Capacity::default())
}

/// Bit by bit, as RFC 9260 defines it.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut register = u32::MAX;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = (register >> 1) ^ if register & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !register
}

proptest! {
    #[test]
    fn what_other_ports_change_in_a_crc(packet in prop::collection::vec(any::<u8>(), 4..3000), ports: [u8; 4]) {
        prop_assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of the catalogue");
        let mut changed = packet.clone();
        changed[..4].copy_from_slice(&ports);
        let first = |packet: &[u8]| u32::from_le_bytes(packet[..4].try_into().unwrap());
        let difference = dataplane_abi::crc32c::change(first(&packet) ^ first(&changed), packet.len() as u16);
        prop_assert_eq!(crc32c(&packet) ^ difference, crc32c(&changed));
    }
}

proptest! {
    /// After every single write each frontend leads to a list that was wanted before or is wanted now; and a process that
    /// dies between any two of them leaves maps that the next one makes whole.
    #[test]
    fn every_write_leaves_each_frontend_at_its_old_or_its_new_list(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            let before = world.wanted.clone();
            let set = if let Step::Set(f, _) = &step { Some(*f) } else { None };
            let writes = match step {
                Step::Set(f, target) => world.plan(f, Some(target)),
                Step::Remove(f) => world.plan(f, None),
                Step::Release => {
                    world.model.release();
                    Vec::new()
                }
                Step::Restart => {
                    let leftovers = world.restart();
                    prop_assert!(leftovers.is_empty(), "{leftovers:?}");
                    Vec::new()
                }
                Step::Crash(f, numbers, done) => {
                    let writes = world.plan(f, numbers);
                    writes.iter().take(done).for_each(|write| world.apply(write));
                    world.restart();
                    let seen = world.maps.look_up(frontend(f));
                    prop_assert!(
                        of_either(seen.as_ref(), before.get(&f), world.wanted.get(&f)),
                        "{f} leads to {seen:?} after {done} of {writes:?}"
                    );
                    match seen {
                        Some(seen) => world.wanted.insert(f, seen),
                        None => world.wanted.remove(&f),
                    };
                    Vec::new()
                }
            };
            for write in &writes {
                world.apply(write);
                for number in 0..6 {
                    let seen = world.maps.look_up(frontend(number));
                    prop_assert!(
                        of_either(seen.as_ref(), before.get(&number), world.wanted.get(&number)),
                        "{number} leads to {seen:?} after {write:?}"
                    );
                }
            }
            world.check();
            set.into_iter().for_each(|f| world.check_hashed(f));
        }
    }

    /// However slow a reader is while a service changes, it finds an endpoint of the old or of the new list; it finds none
    /// only if one of the lists is empty.
    #[test]
    fn a_reader_amid_a_change_finds_an_endpoint_of_either_list(
        steps in steps(),
        paces in prop::collection::vec(0u8..5, 1..20),
        outside in any::<bool>(),
    ) {
        let origin = Origin::ALL[usize::from(outside)];
        let mut world = World::new();
        for step in steps {
            let Some((f, target)) = step.change() else {
                world.model.release();
                continue;
            };
            let before = world.wanted.get(&f).cloned();
            let writes = world.plan(f, target).into();
            let mut reader =
                Reader { maps: &mut world.maps, writes, paces: &paces, reads: 0, slot: 0, origin, network: 0 };
            let seen = reader.look_up(frontend(f));
            reader.finish();
            let lists = [before.as_ref(), world.wanted.get(&f)]
                .map(|target| target.map(|target| target.endpoints(origin)));
            let fits = |list: &Option<&[SocketAddr]>| match (&seen, list) {
                (None, None) => true,
                (Some(None), Some(list)) => list.is_empty(),
                (Some(Some(endpoint)), Some(list)) => list.contains(endpoint),
                _ => false,
            };
            // A service that is being removed may show an empty list for a moment: it refuses, as the address will.
            let emptied = lists[1].is_none() && seen == Some(None);
            prop_assert!(lists.iter().any(fits) || emptied, "{seen:?} is of neither of {lists:?}");
            world.check();
        }
    }

    /// However slow a reader is, a client that may ask before and after a change may ask amid it, and one that never may never
    /// does.
    #[test]
    fn a_reader_amid_a_change_lets_in_who_may_ask(steps in steps(), paces in prop::collection::vec(0u8..5, 1..20)) {
        let mut world = World::new();
        for step in steps {
            let Some((f, target)) = step.change() else {
                world.model.release();
                continue;
            };
            let Some(before) = world.wanted.get(&f).cloned() else {
                world.plan(f, target).iter().for_each(|write| world.maps.apply(write));
                continue;
            };
            let writes = world.plan(f, target.clone());
            let mut afterwards = world.maps.clone();
            writes.iter().for_each(|write| afterwards.apply(write));
            let slot = world.maps.frontends[&to_key(frontend(f)).to_bytes()];
            for number in 0..6 {
                let mut maps = world.maps.clone();
                let writes = writes.clone().into();
                let (maps, origin) = (&mut maps, Origin::Outside);
                let mut reader =
                    Reader { maps, writes, paces: &paces, reads: 0, slot, origin, network: number };
                let seen = may_ask(&mut reader);
                let holds = |networks: &Arc<[IpNetwork]>| networks.contains(&network(number));
                let allows = |target: &Target| target.sources.as_ref().is_none_or(holds);
                // A service that goes may refuse while it does, and lets nobody in who might not ask before.
                let (old, new) = (allows(&before), target.as_ref().is_some_and(allows));
                prop_assert!(seen == old || seen == new, "{number}: {seen}, before {old}, after {new}");
            }
            world.maps = afterwards;
        }
    }

    /// With maps that are nearly full, a change either happens or says what ran out, and releasing makes the room that
    /// was freed usable.
    #[test]
    fn small_maps_are_used_up_and_given_back(changes in prop::collection::vec(
        (0u8..4, prop::option::of(targets(0..8, 5))), 0..80,
    )) {
        let capacity = Capacity { frontends: 3, table_entries: 12, lookup_entries: 0, backends: 6, sources: 5 };
        let mut model = Model::new(capacity);
        let mut maps = Maps::default();
        let mut wanted: BTreeMap<u8, Target> = BTreeMap::new();
        for (number, target) in changes {
            let Some(target) = target else {
                model.remove(frontend(number)).iter().for_each(|write| maps.apply(write));
                wanted.remove(&number);
                continue;
            };
            let planned = model.set(frontend(number), &target).or_else(|_| {
                model.release();
                model.set(frontend(number), &target)
            });
            match planned {
                Ok(writes) => {
                    writes.iter().for_each(|write| maps.apply(write));
                    wanted.insert(number, sorted(&target));
                }
                Err(full) => {
                    let drained: Vec<_> = model.list().flat_map(|(_, target)| target.draining.to_vec()).collect();
                    let all = wanted.values().chain([&target]);
                    let listed = all.flat_map(|target| target.inside.iter().chain(&*target.outside));
                    let used: BTreeSet<_> = listed.chain(&drained).collect();
                    match full.resource {
                        Resource::Frontends => {
                            prop_assert!(wanted.len() == 3 && !wanted.contains_key(&number));
                        }
                        Resource::Backends => prop_assert!(used.len() > 6, "{used:?}"),
                        Resource::TableEntries => {
                            prop_assert!(!target.inside.is_empty() || !target.outside.is_empty());
                        }
                        Resource::SourceRanges => {
                            // The old ranges stay until the new ones are in use.
                            let all = wanted.values().chain([&target]);
                            let ranges: usize = all.flat_map(|target| &target.sources).map(|s| s.len()).sum();
                            prop_assert!(ranges > 5, "{ranges}");
                        }
                        Resource::EndpointsOfOneService
                        | Resource::PolicyRules
                        | Resource::PolicyPorts
                        | Resource::PolicyPods => return Err(TestCaseError::fail(full.to_string())),
                    }
                }
            }
            for number in 0..4 {
                let seen = maps.look_up(frontend(number));
                prop_assert_eq!(seen.as_ref(), wanted.get(&number));
            }
            prop_assert!(maps.services.keys().all(|slot| *slot < capacity.frontends));
            prop_assert!(maps.backends.keys().all(|id| *id < capacity.backends));
            prop_assert!(maps.tables.len() <= capacity.table_entries as usize);
        }
    }
}

/// Endpoints as a Service may have them: some are pods' names, which may come twice, at one port of a few, and so often.
fn named() -> impl Strategy<Value = Vec<Named>> {
    let one = (prop::option::weighted(0.8, 0_u8..12), 0_u16..2, 1_usize..4);
    prop::collection::vec(one, 1..12).prop_map(|all| {
        let numbered = all.into_iter().zip(1..);
        numbered.map(|((name, port, shares), number)| Named { name, number, port, shares }).collect()
    })
}

#[derive(Debug, Clone, Copy)]
struct Named {
    name: Option<u8>,
    number: u8,
    port: u16,
    shares: usize,
}

impl Named {
    fn address(&self) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, self.number], 8080 + self.port))
    }
}

fn of_names(endpoints: &[Named], scheduler: Scheduler) -> Target {
    let list = endpoints.iter().flat_map(|one| std::iter::repeat_n(one.address(), one.shares));
    let named = endpoints.iter().filter_map(|one| Some((one.address(), pod(one.name?))));
    Target { scheduler, names: Names::new(named).map(Arc::new), ..Target::all(list.collect::<Vec<_>>()) }
}

fn pod(name: u8) -> Identity {
    Identity::of_pod("default", &format!("web-{name}"))
}

impl World {
    fn lead(&mut self, target: &Target) -> Vec<Write> {
        let writes = self.plan(1, Some(target.clone()));
        writes.iter().for_each(|write| self.apply(write));
        writes
    }

    /// The endpoint in each place of the lookup table.
    fn looked_up(&self) -> Vec<SocketAddr> {
        let slot = self.maps.frontends[&to_key(frontend(1)).to_bytes()];
        let places = self.maps.places(self.maps.services[&slot].inside);
        places.iter().map(|id| self.maps.backend(*id)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever else is there, one that is away and comes back under its name has what it had, wherever it is now.
    #[test]
    fn one_that_comes_back_under_its_name_has_its_places(
        endpoints in named(),
        which in any::<prop::sample::Index>(),
        restarts in any::<bool>(),
    ) {
        let mut world = World::new();
        let which = which.index(endpoints.len());
        let name_of = |all: &[Named], address: &SocketAddr| {
            let one = all.iter().find(|one| one.address() == *address).unwrap();
            one.name.map(|name| (name, one.port)).ok_or(one.number)
        };
        let names = |all: &[Named], world: &World| -> Vec<_> {
            world.looked_up().iter().map(|address| name_of(all, address)).collect()
        };
        world.lead(&of_names(&endpoints, Scheduler::Maglev));
        let before = names(&endpoints, &world);
        let mut rest = endpoints.clone();
        let gone = rest.remove(which);
        world.lead(&of_names(&rest, Scheduler::Maglev));
        if restarts {
            world.restart();
        }
        world.model.release();
        let number = if gone.name.is_some() { 200 } else { gone.number };
        // The order in which slices tell means nothing.
        rest.insert(0, Named { number, ..gone });
        world.lead(&of_names(&rest, Scheduler::Maglev));
        prop_assert_eq!(names(&rest, &world), before);
        // Another node never knew the earlier address, and numbers its backends in an order of its own.
        let mut other = World::new();
        rest.reverse();
        other.lead(&of_names(&rest, Scheduler::Maglev));
        prop_assert_eq!(other.looked_up(), world.looked_up());
    }
}

#[test]
fn two_of_one_name_have_a_part_each() {
    let one = |number: u8, port: u16| Named { name: Some(3), number, port, shares: 1 };
    let other = Named { name: Some(4), ..one(9, 0) };
    for twins in [[one(1, 0), one(2, 0)], [one(1, 0), one(1, 1)], [one(1, 1), one(2, 0)]] {
        let mut world = World::new();
        world.lead(&of_names(&[twins[0], other, twins[1]], Scheduler::Maglev));
        let places = world.looked_up();
        for endpoint in [twins[0], twins[1], other] {
            let share = places.iter().filter(|address| **address == endpoint.address()).count();
            assert!((5460..=5461).contains(&share), "{share} for {endpoint:?} of {twins:?}");
        }
    }
}

#[test]
fn the_port_is_no_part_of_a_name_that_has_one() {
    let one = |name: u8, port: u16| Named { name: Some(name), number: name, port, shares: 1 };
    let mut world = World::new();
    world.lead(&of_names(&[one(1, 0), one(2, 0), one(3, 0)], Scheduler::Maglev));
    let ips = |world: &World| world.looked_up().iter().map(SocketAddr::ip).collect::<Vec<_>>();
    let before = ips(&world);
    world.lead(&of_names(&[one(1, 0), one(2, 1), one(3, 0)], Scheduler::Maglev));
    assert_eq!(ips(&world), before);
    // Of two ports of one pod each keeps its places when the other comes and goes with another address.
    world.lead(&of_names(&[one(1, 0), one(2, 0), one(2, 1)], Scheduler::Maglev));
    let before = world.looked_up();
    world.lead(&of_names(&[Named { number: 7, ..one(1, 0) }, one(2, 0), one(2, 1)], Scheduler::Maglev));
    let stay = |places: &[SocketAddr]| {
        places.iter().map(|at| (at.ip() == one(2, 0).address().ip()).then_some(*at)).collect::<Vec<_>>()
    };
    assert_eq!(stay(&world.looked_up()), stay(&before));
}

#[test]
fn an_address_that_is_another_pods_now_has_that_ones_places() {
    let one = |name: u8, number: u8| Named { name: Some(name), number, port: 0, shares: 1 };
    let mut world = World::new();
    world.lead(&of_names(&[one(1, 1), one(2, 2), one(3, 3)], Scheduler::Maglev));
    let before = world.looked_up();
    // Two change their addresses with each other.
    let swapped = of_names(&[one(1, 2), one(2, 1), one(3, 3)], Scheduler::Maglev);
    let writes = world.lead(&swapped);
    assert!(
        matches!(writes[..], [Write::Table { .. }, Write::Select { .. }, Write::Select { .. }]),
        "{writes:?}"
    );
    let swap = |at: &SocketAddr| match at.ip() {
        ip if ip == one(1, 1).address().ip() => one(1, 2).address(),
        ip if ip == one(2, 2).address().ip() => one(2, 1).address(),
        _ => *at,
    };
    assert_eq!(world.looked_up(), before.iter().map(swap).collect::<Vec<_>>());
    assert_eq!(world.lead(&swapped), []);
    // Who looks nothing up by hash asks for no names.
    let at_random = |endpoints: &[Named]| of_names(endpoints, Scheduler::Random);
    world.lead(&at_random(&[one(1, 1), one(2, 2)]));
    assert_eq!(world.lead(&at_random(&[one(2, 1), one(1, 2)])), []);
}

#[test]
fn a_new_process_fills_a_table_anew_that_other_rules_filled() {
    let mut world = World::new();
    let target = of_names(
        &[1, 2, 3].map(|name| Named { name: Some(name), number: name, port: 0, shares: 1 }),
        Scheduler::Maglev,
    );
    world.lead(&target);
    let before = world.looked_up();
    world.restart();
    assert_eq!(world.lead(&target), [], "as this one does");
    let selection = Selection::unpack(world.maps.services[&0].inside);
    let first = selection.offset as usize + usize::from(selection.length);
    world.maps.tables[first..][..selection.lookup_size() as usize].rotate_left(1);
    world.restart();
    assert!(matches!(
        world.lead(&target)[..],
        [Write::Table { .. }, Write::Select { .. }, Write::Select { .. }]
    ));
    assert_eq!(world.looked_up(), before);
}

#[test]
fn a_lookup_table_is_made_once_for_the_same_endpoints() {
    let mut world = World::new();
    let named = |numbers: [u8; 3]| {
        let endpoints = [1, 2, 3].map(|name| Named {
            name: Some(name),
            number: numbers[name as usize - 1],
            port: 0,
            shares: 1,
        });
        Target { outside: Arc::default(), ..of_names(&endpoints, Scheduler::Maglev) }
    };
    let made_by = |world: &mut World, target: &Target| {
        let before = maglev::MADE.get();
        world.lead(target);
        maglev::MADE.get() - before
    };
    let first = named([1, 2, 3]);
    assert_eq!(made_by(&mut world, &first), 1);
    let affinity_seconds = NonZeroU32::new(10);
    let others =
        Target { affinity_seconds, direct_return: true, scheduler: Scheduler::SourceHash, ..first.clone() };
    for target in [&first, &others, &first] {
        assert_eq!(made_by(&mut world, target), 0, "nothing that it is made of changed");
    }
    // An earlier process's is compared once, whatever else changes then.
    world.restart();
    assert_eq!([&others, &first, &others].map(|target| made_by(&mut world, target)), [1, 0, 0]);
    assert!(made_by(&mut world, &named([2, 1, 3])) > 0, "names changed");
    assert_eq!(made_by(&mut world, &named([2, 1, 3])), 0);
}

#[test]
fn a_reader_that_changes_always_overtake_finds_an_endpoint_of_a_moment_ago() {
    let mut world = World::new();
    world.change(1, &[1]);
    let writes: VecDeque<Write> =
        (0..20).flat_map(|change| world.plan(1, Some(target(&[1 + (change + 1) % 2])))).collect();
    // Between any two of its reads the service changes as a whole.
    let origin = Origin::Inside;
    let mut reader =
        Reader { maps: &mut world.maps, writes, paces: &[5], reads: 0, slot: 0, origin, network: 0 };
    let seen = reader.look_up(frontend(1));
    assert!(matches!(seen, Some(Some(found)) if found == endpoint(1) || found == endpoint(2)), "{seen:?}");
    assert!(!reader.writes.is_empty(), "a change for each read");
}

#[test]
fn a_generation_does_not_come_back_after_a_restart() {
    let mut world = World::new();
    world.change(1, &[1, 2]);
    world.change(1, &[1]);
    world.restart();
    world.model.release();
    // The number that endpoint 2 had is given again; `apply` refuses a generation that came before.
    world.change(1, &[1, 3]);
    assert_eq!(world.maps.backends.len(), 2);
}

#[test]
fn what_is_free_at_the_adoption_waits_before_it_is_used() {
    let mut world = World::new();
    world.change(1, &[1, 2]);
    world.change(1, &[2]);
    world.restart();
    let taken: Vec<u32> = world
        .plan(1, Some(target(&[2, 3])))
        .iter()
        .filter_map(|write| match write {
            Write::Backend { id, value } if value.generation != 0 => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(taken, [2], "0 was freed just now, 1 is in use");
}

#[test]
fn adopting_many_numbers_costs_one_look_at_each() {
    let mut numbers = Numbers::new(1 << 18);
    // From the highest down: the order in which a list of free numbers would be searched each time.
    (0..1 << 18).rev().step_by(2).for_each(|number| numbers.take(number));
    numbers.settle();
    numbers.release();
    assert_eq!(numbers.available(), 1 << 17);
    assert!(numbers.allocate().unwrap().is_multiple_of(2), "the odd ones are taken");
}

#[test]
fn an_unchanged_list_writes_nothing() {
    let mut model = new_model();
    assert_eq!(model.set(frontend(1), &target(&[1, 2])).unwrap().len(), 5);
    assert!(model.set(frontend(1), &target(&[1, 2])).unwrap().is_empty());
    assert!(model.set(frontend(1), &target(&[2, 1])).unwrap().is_empty(), "the order means nothing");
    let split = Target { outside: target(&[1]).outside, ..target(&[1, 2]) };
    assert!(matches!(
        model.set(frontend(1), &split).unwrap()[..],
        [Write::Table { .. }, Write::Select { origin: Origin::Outside, .. }]
    ));
    assert!(model.set(frontend(1), &split).unwrap().is_empty());
    let sticky = Target { affinity_seconds: NonZeroU32::new(9), ..split };
    assert_eq!(
        model.set(frontend(1), &sticky).unwrap(),
        [Write::Options { slot: 0, flags: 1, affinity_seconds: 9 }]
    );
}

#[test]
fn one_more_endpoint_costs_its_backend_a_table_and_a_word_for_each_origin() {
    let mut model = new_model();
    model.set(frontend(1), &target(&[1])).unwrap();
    let writes = model.set(frontend(1), &target(&[1, 2])).unwrap();
    let select = |write: &Write| matches!(write, Write::Select { slot: 0, .. });
    assert!(
        matches!(&writes[..], [Write::Backend { .. }, Write::Table { offset: 1, .. }, selects @ ..]
            if selects.len() == 2 && selects.iter().all(select)),
        "{writes:?}"
    );
}

#[test]
fn freed_space_is_not_reused_before_it_is_released() {
    let mut model = new_model();
    model.set(frontend(1), &target(&[1])).unwrap();
    model.set(frontend(1), &target(&[2])).unwrap();
    let table = |writes: Vec<Write>| {
        writes.into_iter().find_map(|write| match write {
            Write::Table { offset, .. } => Some(offset),
            _ => None,
        })
    };
    assert_eq!(table(model.set(frontend(1), &target(&[3])).unwrap()), Some(2));
    assert!(model.release_pending());
    model.release();
    assert_eq!(table(model.set(frontend(1), &target(&[4])).unwrap()), Some(0));
}

#[test]
fn a_service_that_is_too_large_changes_nothing() {
    let mut model = new_model();
    let many: Vec<SocketAddr> =
        (0..=MAX_ENDPOINTS).map(|n| SocketAddr::from((Ipv4Addr::from(n as u32), 1))).collect();
    let error = model.set(frontend(1), &Target::all(many)).unwrap_err();
    assert_eq!(error.to_string(), "no room for more EndpointsOfOneService: at most 65535");
    assert_eq!(model.frontends().count(), 0);
}

#[test]
fn adopting_removes_what_makes_no_sense() {
    let key = to_key(frontend(1));
    let service = Service { flags: 1, ..Service::from_bytes([0; size_of::<Service>()]) };
    let backend = backend(endpoint(1), 7);
    let found = Found {
        frontends: vec![(key, 3)],
        services: vec![(3, service)],
        tables: HashMap::new(),
        sources: vec![NetworkKey { prefix: 56, set: 4, address: Address::NONE }],
        backends: vec![(9, backend)],
        last_generation: 7,
    };
    let (mut model, leftovers) = Model::adopt(&found, Capacity::default());
    assert_eq!(model.frontends().count(), 0);
    assert_eq!(
        leftovers,
        [
            Write::FrontendRemove { key },
            Write::Clear { slot: 3 },
            Write::SourceRemove { key: found.sources[0] },
        ]
    );
    assert_eq!(model.release_held(), [Write::Backend { id: 9, value: freed(backend) }]);
}

#[test]
fn masquerade_settings_are_network_order() {
    let excluded: Vec<IpNetwork> = ["10.244.0.0/16", "fd00:244::/48", "224.0.0.0/4"].map(network_of).into();
    let family = |pods, address: &str, overlay: &str| Masquerade {
        pods: network_of(pods),
        address: address.parse().unwrap(),
        excluded: excluded.clone(),
        overlay: Some(Overlay { link: 9, address: overlay.parse().unwrap() }),
    };
    let v4 = family("10.244.1.7/24", "192.168.0.2", "10.244.1.0");
    let v6 = family("fd00:244:0:1::7/60", "2001:db8::2", "fd00:244::");
    let before = Config { node_netns: 7, overlay_link: 3, ..Config::default() };
    assert_eq!(config(before, &[]).unwrap(), Config { node_netns: 7, ..Config::default() });
    let both = config(before, &[v4.clone(), v6.clone()]).unwrap();
    assert_eq!((both.node_netns, both.overlay_link), (7, 9));
    assert_eq!(both.v4, config(before, &[v4]).unwrap().v4);

    let octets = |address: &str| address.parse::<Ipv6Addr>().unwrap().octets();
    let is = |found: Address, wanted: &str| assert_eq!(found.to_bytes(), octets(wanted));
    is(both.v4.pods.network, "::ffff:10.244.1.0");
    is(both.v4.pods.mask, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    is(both.v4.shown, "::ffff:192.168.0.2");
    is(both.v4.overlay, "::ffff:10.244.1.0");
    assert_eq!(both.v4.unmasqueraded[..2], ["10.244.0.0/16", "224.0.0.0/4"].map(network_of).map(to_network));
    is(both.v6.pods.network, "fd00:244::");
    is(both.v6.pods.mask, "ffff:ffff:ffff:fff0::");
    is(both.v6.shown, "2001:db8::2");
    is(both.v6.overlay, "fd00:244::");
    assert_eq!(both.v6.unmasqueraded[..2], [to_network(network_of("fd00:244::/48")), Network::default()]);

    let error = config(before, &[Masquerade { address: Ipv4Addr::LOCALHOST.into(), ..v6 }]).unwrap_err();
    assert_eq!(error.to_string(), "masquerade: 127.0.0.1 is not of the family of fd00:244:0:1::7/60");
}

fn network_of(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

#[test]
fn a_network_holds_addresses_of_its_family_alone() {
    let cases = [
        ("10.244.1.0/24", "10.244.1.255", true),
        ("10.244.1.0/24", "10.244.2.0", false),
        ("10.244.1.0/24", "::10.244.1.1", false),
        ("0.0.0.0/0", "203.0.113.7", true),
        ("0.0.0.0/0", "fd00::1", false),
        ("10.244.1.1/32", "10.244.1.1", true),
        ("10.244.1.1/32", "10.244.1.0", false),
        ("fd00:244::/60", "fd00:244:0:f::1", true),
        ("fd00:244::/60", "fd00:244:0:10::1", false),
        ("fd00::1/128", "fd00::1", true),
        ("fd00::1/128", "fd00::3", false),
    ];
    for (of, address, holds) in cases {
        let address = to_address(address.parse().unwrap());
        assert_eq!(to_network(network_of(of)).contains(&address), holds, "{of} {address:?}");
    }
    assert!(!Network::default().contains(&Address::NONE));
}

#[test]
fn a_backend_that_drains_keeps_its_number_until_it_serves_no_more() {
    let mut model = new_model();
    model.set(frontend(1), &target(&[1, 2])).unwrap();
    let (id, generation) = (model.by_address[&endpoint(1)], 1);
    let draining = Target { draining: [endpoint(1)].into(), ..target(&[2]) };
    assert!(!model.let_go());
    let writes = model.set(frontend(1), &draining).unwrap();
    assert!(!writes.iter().any(|write| matches!(write, Write::Backend { .. })), "{writes:?}");
    assert!(model.let_go() && model.serves()(0, id, generation));
    assert_eq!(model.set(frontend(1), &draining).unwrap(), []);
    assert!(!model.let_go());
    let writes = model.set(frontend(1), &target(&[2])).unwrap();
    assert!(
        matches!(writes[..], [Write::Backend { id: freed, value }] if freed == id && value.generation == 0)
    );
    assert!(model.let_go() && !model.serves()(0, id, generation));
    // One that nobody was ever led to has no number to keep.
    let stranger = Target { draining: [endpoint(9)].into(), ..target(&[2]) };
    assert_eq!(model.set(frontend(1), &stranger).unwrap(), []);
}

#[test]
fn a_backend_that_drains_keeps_its_number_when_a_new_process_takes_over() {
    let mut world = World::new();
    world.change(1, &[1, 2]);
    let draining = Target { draining: [endpoint(1)].into(), ..target(&[2]) };
    world.plan(1, Some(draining.clone())).iter().for_each(|write| world.maps.apply(write));
    let id = world.model.by_address[&endpoint(1)];
    let (mut model, leftovers) = Model::adopt(&world.maps.found(), Capacity::default());
    assert_eq!(leftovers, []);
    assert_eq!(model.set(frontend(1), &draining).unwrap(), []);
    assert_eq!(model.release_held(), []);
    assert!(model.serves()(0, id, 1));
}

#[test]
fn a_backend_is_found_in_the_table_of_its_own_service_alone() {
    let mut world = World::new();
    world.change(1, &[1, 2]);
    world.change(3, &[2, 3]);
    let id = |number: u8| world.model.by_address[&endpoint(number)];
    let (shared, first, second) = (id(2), id(1), id(3));
    let slots = [1, 3].map(|number| world.maps.frontends[&to_key(frontend(number)).to_bytes()]);
    let mut found = |slot: u32, id: u32| {
        let writes = VecDeque::new();
        let origin = Origin::Outside;
        let mut reader =
            Reader { maps: &mut world.maps, writes, paces: &[0], reads: 0, slot, origin, network: 0 };
        find(&mut reader, id).is_some()
    };
    assert!(found(slots[0], first) && found(slots[0], shared) && !found(slots[0], second));
    assert!(!found(slots[1], first) && found(slots[1], shared) && found(slots[1], second));
}

#[test]
fn a_slot_that_is_used_again_has_another_selection() {
    let mut world = World::new();
    let word = |world: &World| world.maps.services[&0].inside;
    world.change(1, &[1]);
    let first = word(&world);
    let writes = world.plan(1, None);
    writes.iter().for_each(|write| world.apply(write));
    world.model.release();
    world.change(2, &[2]);
    let (before, after) = (Selection::unpack(first), Selection::unpack(word(&world)));
    assert_eq!((after.offset, after.length), (before.offset, before.length), "the same place");
    assert_ne!(after.generation, before.generation);
}

#[test]
fn a_flow_may_be_silent_for_as_long_as_its_state_allows() {
    use dataplane_abi::nat::{
        ANSWERED, DIRECT_RETURN, FIN_IN, FIN_OUT, NODE_PORT, RESET, idle_limit, is_over, may_be_over,
        scarce_idle_limit,
    };
    const RESET_IN: u8 = RESET | dataplane_abi::nat::RESET_IN;
    const RESET_OUT: u8 = RESET | dataplane_abi::nat::RESET_OUT;
    let tcp = |state| idle_limit(protocol::TCP, state);
    assert_eq!([0, ANSWERED, ANSWERED | FIN_IN, ANSWERED | FIN_OUT].map(tcp), [240, 7440, 240, 240]);
    assert_eq!([FIN_IN | FIN_OUT, FIN_IN | RESET_OUT, RESET_IN | RESET_OUT].map(tcp), [10, 2, 2]);
    // What anybody could have said who knows addresses and ports.
    let alone = [RESET_IN, RESET_OUT, FIN_IN | RESET_IN, FIN_OUT | RESET_OUT].map(|state| ANSWERED | state);
    assert_eq!(alone.map(tcp), [112; 4]);
    assert_eq!(alone.map(|state| scarce_idle_limit(protocol::TCP, state)), [2; 4]);
    for state in alone {
        assert!(!is_over(protocol::TCP, state) && may_be_over(protocol::TCP, NODE_PORT, state));
    }
    let closed = |kind| may_be_over(protocol::TCP, kind, ANSWERED | FIN_IN);
    assert_eq!([NODE_PORT, DIRECT_RETURN].map(closed), [false, true], "the other side is not heard");
    assert_eq!([0, ANSWERED].map(|state| idle_limit(protocol::UDP, state)), [30, 120]);
    // A shortage of ports ends no connection that is open.
    assert_eq!(scarce_idle_limit(protocol::TCP, ANSWERED), 7440);
    assert_eq!(scarce_idle_limit(protocol::UDP, ANSWERED), 5);
}

#[test]
fn every_number_of_a_long_table_is_found() {
    let mut world = World::new();
    let all: Vec<SocketAddr> = (1..=MAX_ENDPOINTS as u32)
        .map(|number| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 1)))
        .collect();
    for length in [1, 2, 3, 1000, MAX_ENDPOINTS] {
        let writes = world.plan(1, Some(Target::all(&all[..length])));
        writes.iter().for_each(|write| world.apply(write));
        let ids = world.maps.table(world.maps.services[&0].inside);
        let (writes, origin) = (VecDeque::new(), Origin::Inside);
        let mut reader =
            Reader { maps: &mut world.maps, writes, paces: &[0], reads: 0, slot: 0, origin, network: 0 };
        assert!(ids.iter().all(|id| find(&mut reader, *id).is_some()), "{length}");
        assert_eq!(find(&mut reader, u32::MAX), None);
    }
}

#[test]
fn a_client_stays_while_it_comes_back_in_time_and_its_backend_is_the_services() {
    const SECOND: u64 = 1_000_000_000;
    let mut world = World::new();
    world.change(1, &[1, 2]);
    let id = world.model.by_address[&endpoint(2)];
    let generation = world.maps.backends[&id].generation;
    let selection = world.maps.services[&0].inside;
    let held = Affinity { selection, used: 100 * SECOND, backend: id, generation };
    let kept = |world: &mut World, now: u64| {
        let (writes, origin) = (VecDeque::new(), Origin::Inside);
        let mut reader =
            Reader { maps: &mut world.maps, writes, paces: &[0], reads: 0, slot: 0, origin, network: 0 };
        keep(&mut reader, held, now, 10, 0).map(|chosen| (chosen.id, chosen.selection))
    };
    assert_eq!(kept(&mut world, 110 * SECOND), Some((id, selection)));
    assert_eq!(kept(&mut world, 110 * SECOND + 1), None);
    assert_eq!(kept(&mut world, 99 * SECOND), Some((id, selection)), "another processor was ahead");
    world.change(1, &[2, 3, 4]);
    let renewed = world.maps.services[&0].inside;
    assert_ne!(renewed, selection);
    assert_eq!(kept(&mut world, 101 * SECOND), Some((id, renewed)));
    // Another service keeps the backend alive.
    world.change(3, &[2]);
    world.change(1, &[3, 4]);
    assert_eq!(kept(&mut world, 101 * SECOND), None);
    // The number comes back with another generation.
    world.change(3, &[]);
    world.model.release();
    world.change(1, &[3, 4, 5]);
    assert_eq!(world.model.by_address[&endpoint(5)], id);
    assert_eq!(kept(&mut world, 101 * SECOND), None);
}

/// The endpoints that so many choices in a row lead to, and how often each.
fn chosen(world: &mut World, scheduler: Scheduler, choices: usize) -> Vec<(SocketAddr, usize)> {
    chosen_by(world, scheduler.flags(), choices)
}

fn chosen_by(world: &mut World, flags: u32, choices: usize) -> Vec<(SocketAddr, usize)> {
    let mut reader = Turns { maps: &world.maps, word: world.maps.services[&0].inside, turn: 0, hash: 0 };
    let mut found = Vec::new();
    for number in 0..choices {
        reader.hash = select::hash(Address::from_v4((number as u32).to_be()), 0);
        let Choice::Backend(chosen) = choose(&mut reader, flags) else { panic!("no backend") };
        found.push(socket_address(chosen.address, chosen.port_be));
    }
    let mut counts: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    found.into_iter().for_each(|endpoint| *counts.entry(endpoint).or_default() += 1);
    counts.into_iter().collect()
}

/// The time that readers see, in ticks.
const NOW: u32 = 1000;

/// A reader of maps at rest.
struct Turns<'a> {
    maps: &'a Maps,
    word: u64,
    turn: u32,
    hash: u32,
}

impl Elements for Turns<'_> {
    fn table(&mut self, index: u32) -> Option<u32> {
        self.maps.tables.get(index as usize).copied()
    }

    fn backend(&mut self, id: u32) -> Option<Backend> {
        self.maps.backends.get(&id).copied()
    }

    fn random(&mut self) -> u32 {
        self.turn = self.turn.wrapping_add(0x9e37_79b9);
        self.turn
    }

    fn ticks(&mut self) -> u32 {
        NOW
    }
}

impl Reads for Turns<'_> {
    fn selection(&mut self) -> u64 {
        self.word
    }

    fn turn(&mut self) -> u32 {
        self.turn += 1;
        self.turn - 1
    }

    fn hash(&mut self, _: Scheduler) -> Option<u32> {
        Some(self.hash)
    }

    fn sources(&mut self) -> u32 {
        0
    }

    fn holds(&mut self, _: u32) -> bool {
        true
    }

    fn least(&mut self, offset: u32, length: u32, flags: u32) -> u32 {
        select::least(self, offset, length, flags)
    }

    fn spare(&mut self, offset: u32, length: u32, meant: u32) -> u32 {
        select::spare(self, offset, length, meant)
    }

    fn narrow(&mut self, offset: u32, id: u32, bounds: u64) -> u64 {
        select::narrow(self, offset, id, bounds)
    }
}

#[test]
fn in_turn_each_place_comes_once_before_any_comes_again() {
    for endpoints in [&[1, 2, 3][..], &[1, 1, 1, 2], &[1], &[1, 2, 3, 4, 5, 6, 7]] {
        let mut world = World::new();
        world.change(1, endpoints);
        for (endpoint, times) in chosen(&mut world, Scheduler::RoundRobin, endpoints.len() * 10) {
            let shares =
                endpoints.iter().filter(|number| super::tests::endpoint(**number) == endpoint).count();
            assert_eq!(times, shares * 10, "{endpoint} of {endpoints:?}");
        }
    }
}

#[test]
fn the_fewest_connections_are_chosen_of_those_looked_at() {
    let mut world = World::new();
    world.change(1, &[1, 2, 3, 4]);
    let busy = |world: &mut World, number: u8, connections: i32| {
        let id = world.model.by_address[&endpoint(number)];
        world.maps.backends.get_mut(&id).unwrap().connections = connections;
    };
    for (number, connections) in [(1, 5), (2, 3), (3, 4), (4, 3)] {
        busy(&mut world, number, connections);
    }
    let found = chosen(&mut world, Scheduler::LeastConnection, 100);
    let mut fewest = [endpoint(2), endpoint(4)];
    fewest.sort_unstable();
    assert_eq!(found.iter().map(|(endpoint, _)| *endpoint).collect::<Vec<_>>(), fewest, "{found:?}");
    // One that took itself off for an earlier backend of the number.
    busy(&mut world, 1, -1);
    assert_eq!(chosen(&mut world, Scheduler::LeastConnection, 9), [(endpoint(1), 9)]);
}

#[test]
fn what_is_set_aside_is_spared_while_there_are_others() {
    let aside = |world: &mut World, number: u8, until: u32| {
        let id = world.model.by_address[&endpoint(number)];
        world.maps.backends.get_mut(&id).unwrap().aside_until = until;
    };
    let schedulers = [
        Scheduler::Random,
        Scheduler::RoundRobin,
        Scheduler::LeastConnection,
        Scheduler::SourceHash,
        Scheduler::Maglev,
    ];
    // Of the last list more shares are aside than are looked at.
    let many: Vec<u8> = [1; 60].into_iter().chain([2; 60]).chain([3; 60]).collect();
    for (scheduler, endpoints) in schedulers.into_iter().flat_map(|one| [(one, &[1, 2, 3][..]), (one, &many)])
    {
        let mut world = World::new();
        let spares = Target { scheduler, set_aside_after: NonZeroU8::new(3), ..target(endpoints) };
        world.plan(1, Some(spares)).iter().for_each(|write| world.apply(write));
        let flags = world.maps.services[&0].flags;
        let led = |world: &mut World, flags| -> Vec<SocketAddr> {
            chosen_by(world, flags, 600).into_iter().map(|(endpoint, _)| endpoint).collect()
        };
        aside(&mut world, 1, NOW + 1);
        assert_eq!(led(&mut world, flags), [endpoint(2), endpoint(3)], "{scheduler:?}");
        assert_eq!(led(&mut world, flags), led(&mut world, flags), "{scheduler:?}: by whom");
        aside(&mut world, 2, NOW + 28);
        assert_eq!(led(&mut world, flags), [endpoint(3)], "{scheduler:?}");
        // Who has few connections because it fails is not the one with the fewest.
        if scheduler == Scheduler::LeastConnection && endpoints.len() == 3 {
            for (number, connections) in [(1, 0), (2, 7), (3, 5)] {
                let id = world.model.by_address[&endpoint(number)];
                world.maps.backends.get_mut(&id).unwrap().connections = connections;
            }
            aside(&mut world, 2, 0);
            assert_eq!(led(&mut world, flags), [endpoint(3)]);
            world.maps.backends.values_mut().for_each(|backend| backend.connections = 0);
            aside(&mut world, 2, NOW + 28);
        }
        // Another service of the same endpoints does not care.
        assert_eq!(led(&mut world, scheduler.flags()).len(), 3, "{scheduler:?}");
        // None is refused because all fail, and what is over is over.
        aside(&mut world, 3, NOW + 1);
        assert_eq!(led(&mut world, flags).len(), 3, "{scheduler:?}");
        for (number, past) in [(1, 0), (2, NOW), (3, NOW - 5)] {
            aside(&mut world, number, past);
        }
        assert_eq!(led(&mut world, flags).len(), 3, "{scheduler:?}");
    }
}

#[test]
fn by_hash_a_client_is_led_to_the_same_endpoint_and_clients_to_all() {
    let mut world = World::new();
    let hashed = Target { scheduler: Scheduler::SourceHash, ..target(&[1, 2, 3, 4]) };
    world.plan(1, Some(hashed)).iter().for_each(|write| world.apply(write));
    let found = chosen(&mut world, Scheduler::SourceHash, 4000);
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|(_, times)| (850..1150).contains(times)), "{found:?}");
    assert_eq!(found, chosen(&mut world, Scheduler::SourceHash, 4000));
    // A table that is not there yet: the list.
    world.change(1, &[1, 2, 3, 4]);
    assert_eq!(chosen(&mut world, Scheduler::SourceHash, 4000).len(), 4);
}

#[test]
fn another_scheduler_takes_effect_and_an_unchanged_one_writes_nothing() {
    let mut world = World::new();
    world.change(1, &[1, 2]);
    let with = |scheduler| Target { scheduler, ..target(&[1, 2]) };
    let flags = |scheduler: Scheduler| service_flag::IN_USE | scheduler.flags();
    let writes = world.plan(1, Some(with(Scheduler::RoundRobin)));
    assert_eq!(
        writes,
        [Write::Options { slot: 0, flags: flags(Scheduler::RoundRobin), affinity_seconds: 0 }],
        "the table is the same"
    );
    let writes = world.plan(1, Some(with(Scheduler::Maglev)));
    assert!(
        matches!(&writes[..], [Write::Table { ids, .. }, Write::Select { .. }, Write::Select { .. }, Write::Options { .. }]
            if ids.len() == 2 + 16_381),
        "{writes:?}"
    );
    assert_eq!(world.plan(1, Some(with(Scheduler::Maglev))), []);
    // Both look the same table up.
    assert!(matches!(world.plan(1, Some(with(Scheduler::SourceHash)))[..], [Write::Options { .. }]));
}

#[test]
fn lookup_tables_leave_room_for_what_every_service_needs() {
    let mut world = World::new();
    let hashed = |endpoints: &[u8]| Target { scheduler: Scheduler::Maglev, ..target(endpoints) };
    let limit = capacity::LOOKUP_ENTRIES as u32 / LOOKUP_SIZES[0];
    let service = |number: u32| Frontend { port: number as u16, ..frontend(1) };
    let set = |world: &mut World, number: u32, wanted: &Target| {
        let writes = world.model.set(service(number), wanted).unwrap();
        writes.iter().for_each(|write| world.maps.apply(write));
        (!writes.is_empty(), world.model.lacks_lookup(service(number)))
    };
    for number in 0..limit {
        assert_eq!(set(&mut world, number, &hashed(&[1, 2])), (true, false));
    }
    assert_eq!(set(&mut world, limit, &hashed(&[1, 2])), (true, true));
    assert_eq!(set(&mut world, limit, &hashed(&[1, 2])), (false, true), "it goes on as it is");
    assert_eq!(set(&mut world, limit + 1, &target(&[1, 2])), (true, false), "there is room for lists");
    let renamed = Target { names: Names::new([(endpoint(1), pod(1))]).map(Arc::new), ..hashed(&[1, 2]) };
    assert_eq!(set(&mut world, 1, &renamed), (false, false), "better by other names than by none");
    // One goes, and so does its table.
    let writes = world.model.remove(service(0));
    writes.iter().for_each(|write| world.maps.apply(write));
    assert_eq!(set(&mut world, limit, &hashed(&[1, 2])), (true, false));
    world.model.remove(service(2)).iter().for_each(|write| world.maps.apply(write));
    assert_eq!(set(&mut world, 1, &renamed), (true, false), "now there is room beside it");
    assert_eq!(set(&mut world, 2, &hashed(&[1, 2])), (true, false));
    // A new process counts what it finds.
    world.restart();
    assert_eq!(set(&mut world, limit + 2, &hashed(&[1, 2])), (true, true));
}

#[test]
fn a_selection_is_one_word() {
    let whole = Selection { offset: (1 << 28) - 1, length: u16::MAX, lookup: 2, generation: 0xabcd };
    assert_eq!(Selection::unpack(whole.pack()), whole);
    let none = Selection { offset: 1, length: 2, lookup: 0, generation: 3 };
    assert_eq!((Selection::unpack(none.pack()), none.lookup_size()), (none, 0));
}
