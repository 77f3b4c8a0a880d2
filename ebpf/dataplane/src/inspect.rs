//! What people ask about services, read from the kernel's maps. Changes nothing.
//!
//! While a caller holds the [`Dataplane`], nobody writes to services: what changes under a look are the programs' own counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use dataplane_abi::select::{self, Elements, Reads};
use dataplane_abi::{
    Address, Affinity, AffinityKey, ClientAddresses, NatKey, NatValue, Origin, Scheduler, Selection, Service,
    ServiceCounts, nat,
};

use crate::kernel::{Kernel, MapError};
use crate::model::{socket_address, to_key};
use crate::trace::{self, Asked, Client, Endpoint, NANOS_PER_SECOND, Source, Trace};
use crate::{Dataplane, Frontend, sys};

/// What the kernel holds for a frontend.
#[derive(Debug, Clone)]
pub struct Programmed {
    pub slot: u32,
    pub service: Service,
    pub counts: ServiceCounts,
    /// By [`Origin`].
    pub tables: [Table; 2],
}

/// A selection, and whom its table names: each endpoint with its places.
#[derive(Debug, Clone)]
pub struct Table {
    pub selection: Selection,
    pub endpoints: Vec<(Endpoint, u32)>,
}

/// An endpoint's element.
#[derive(Debug, Clone)]
pub struct Backend {
    pub endpoint: Endpoint,
    /// Sockets that are connected to it through services that count them.
    pub connections: i32,
    /// Whether there is such a service.
    pub counts: bool,
    /// Connections that came not about since one did, through services that set failing endpoints aside.
    pub failures: u32,
    /// For how many seconds yet it is set aside.
    pub aside_seconds: Option<u32>,
    /// Whose tables name it.
    pub listed: Vec<Frontend>,
    /// For whose clients it still serves, though new ones are led elsewhere.
    pub draining: Vec<Frontend>,
}

/// A client that is led to its last endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Stays {
    pub frontend: Frontend,
    pub origin: Origin,
    pub client: Address,
    pub endpoint: Endpoint,
    /// How long yet, if it does not come back.
    pub seconds: u64,
}

impl Stays {
    /// Of a client outside.
    pub fn address(&self) -> IpAddr {
        socket_address(self.client, 0).ip()
    }

    /// Of a client on the node whose sockets are led: the cookie of its network namespace.
    pub fn netns(&self) -> u64 {
        let [_, _, high, low] = self.client.words_be;
        u64::from(high) << 32 | u64::from(low)
    }

    /// Of a pod whose packets are led: its address.
    pub fn packets(&self) -> Option<IpAddr> {
        let [first, second, _, _] = self.client.words_be;
        // A cookie fills two words, and its upper one is small: no mapped address.
        (self.client.is_v4() || (first, second) != (0, 0)).then(|| self.address())
    }
}

impl Dataplane {
    /// What was counted for each frontend that a flow asked for.
    pub fn service_counts(&self) -> Vec<(Frontend, ServiceCounts)> {
        let all = self.model.slots().map(|(frontend, slot)| (frontend, self.kernel.counts(slot)));
        all.filter(|(_, counts)| *counts != ServiceCounts::default()).collect()
    }

    /// Lets the counts of a frontend begin anew, for another service that has it now. What is counted at this moment may be either's.
    pub fn begin_counts(&mut self, frontend: Frontend) {
        if let Some(slot) = self.model.slot(frontend) {
            self.kernel.begin_counts(slot);
        }
    }

    /// What the kernel holds for a frontend; `None` where its key leads nowhere.
    pub fn programmed(&self, frontend: Frontend) -> Result<Option<Programmed>, MapError> {
        let Some((slot, service)) = self.look_up(frontend)? else { return Ok(None) };
        let tables = [service.inside, service.outside].map(|word| self.table(Selection::unpack(word)));
        Ok(Some(Programmed { slot, service, counts: self.kernel.counts(slot), tables }))
    }

    /// The backends of the frontends, or all, in the order of their addresses.
    pub fn backends(&self, of: Option<&[Frontend]>) -> Vec<Backend> {
        let numbers: BTreeSet<u32> = match of {
            Some(frontends) => {
                frontends.iter().flat_map(|frontend| self.model.backends_of(*frontend)).collect()
            }
            None => self.model.backend_numbers().collect(),
        };
        let each = numbers.into_iter().filter_map(|number| Some((number, self.backend(number)?)));
        let mut all: BTreeMap<u32, Backend> = each.collect();
        // One tells all that list it, whoever was asked about.
        for (frontend, _) in self.model.slots() {
            let listed = self.model.listed_by(frontend);
            let counts = self.model.scheduler(frontend) == Some(Scheduler::LeastConnection);
            for number in self.model.backends_of(frontend) {
                let Some(backend) = all.get_mut(&number) else { continue };
                let is_listed = listed.contains(&number);
                (if is_listed { &mut backend.listed } else { &mut backend.draining }).push(frontend);
                backend.counts |= counts && is_listed;
            }
        }
        let mut all: Vec<Backend> = all.into_values().collect();
        for backend in &mut all {
            backend.listed.sort_unstable();
            backend.draining.sort_unstable();
        }
        all.sort_by_key(|backend| backend.endpoint.address);
        all
    }

    fn backend(&self, number: u32) -> Option<Backend> {
        let found = self.kernel.backend(number)?;
        Some(Backend {
            endpoint: endpoint(&self.kernel, number)?,
            connections: found.connections,
            counts: false,
            failures: found.failures,
            aside_seconds: aside_seconds(found.aside_until),
            listed: Vec::new(),
            draining: Vec::new(),
        })
    }

    /// The clients that session affinity leads to their last endpoint.
    pub fn staying(&self) -> Result<Vec<Stays>, MapError> {
        let frontends: HashMap<u32, Frontend> =
            self.model.slots().map(|(frontend, slot)| (slot, frontend)).collect();
        let mut all = Vec::new();
        for origin in Origin::ALL {
            for (key, held) in self.kernel.affinities(origin)? {
                let Some(frontend) = frontends.get(&key.slot) else { continue };
                let client = AnyClient { origin, address: key.client, hash: [None; 2], known: None };
                let mut view = View::of(&self.kernel, key.slot, client);
                let (seconds, flags) = (view.service.affinity_seconds, view.service.flags);
                let kept = select::keep(&mut view, held, sys::now(), seconds, flags);
                let Some(kept) = kept else { continue };
                let Some(endpoint) = endpoint(&self.kernel, kept.id) else { continue };
                let gone = sys::now().saturating_sub(held.used) / NANOS_PER_SECOND;
                let seconds = u64::from(seconds).saturating_sub(gone);
                all.push(Stays { frontend: *frontend, origin, client: key.client, endpoint, seconds });
            }
        }
        Ok(all)
    }

    /// What the programs would do with a new flow, step by step.
    pub fn trace(&self, frontend: Frontend, client: Client) -> Result<Trace, MapError> {
        let found = self.look_up(frontend)?;
        let of = [Scheduler::SourceHash, Scheduler::Maglev].map(|scheduler| trace::hash(client, scheduler));
        let known = match client {
            Client::Inside { netns } => self.kernel.client(netns)?,
            Client::Outside { .. } => None,
        };
        let client_of = AnyClient { origin: client.origin(), address: client.address(), hash: of, known };
        let mut view = View::of(&self.kernel, found.map_or(0, |(slot, _)| slot), client_of);
        let node_netns = self.kernel.read_config()?.node_netns;
        let trace = trace::walk(&mut view, Asked { client, frontend, node_netns }, found);
        view.failed.map_or(Ok(trace), Err)
    }

    /// How many endpoints the frontends lead to, together.
    pub fn endpoints_of(&self, frontends: &[Frontend]) -> usize {
        let all: BTreeSet<u32> =
            frontends.iter().flat_map(|frontend| self.model.listed_by(*frontend)).collect();
        all.len()
    }

    /// Whether clients on the node find no endpoint there.
    pub fn inside_is_empty(&self, frontend: Frontend) -> bool {
        self.model.is_empty_inside(frontend)
    }

    /// The frontends at the same address, in order.
    pub fn neighbours(&self, frontend: Frontend) -> Vec<Frontend> {
        let all = self.model.frontends();
        let mut same: Vec<Frontend> = all.filter(|other| other.address == frontend.address).collect();
        same.sort_unstable();
        same
    }

    /// As a program does: the slot of the key, if the key stands in it.
    fn look_up(&self, frontend: Frontend) -> Result<Option<(u32, Service)>, MapError> {
        let key = to_key(frontend);
        let Some(slot) = self.kernel.slot(&key)? else { return Ok(None) };
        let service = self.kernel.service(slot);
        Ok((service.flags != 0 && service.key == key).then_some((slot, service)))
    }

    fn table(&self, selection: Selection) -> Table {
        let mut places: BTreeMap<u32, u32> = BTreeMap::new();
        let end = selection.offset.saturating_add(u32::from(selection.length));
        for number in (selection.offset..end).filter_map(|index| self.kernel.table(index)) {
            *places.entry(number).or_default() += 1;
        }
        let named = places.into_iter();
        let mut endpoints: Vec<(Endpoint, u32)> =
            named.filter_map(|(number, places)| Some((endpoint(&self.kernel, number)?, places))).collect();
        endpoints.sort_by_key(|(endpoint, _)| endpoint.address);
        Table { selection, endpoints }
    }
}

/// What is left of a time in ticks; 0 is none.
fn aside_seconds(until: u32) -> Option<u32> {
    let left = until.wrapping_sub(ticks()).cast_signed();
    let seconds = (u64::from(left.cast_unsigned()) << nat::TICK_SHIFT).div_ceil(NANOS_PER_SECOND);
    (until != 0 && left > 0).then(|| u32::try_from(seconds).unwrap_or(u32::MAX))
}

fn endpoint(kernel: &Kernel, number: u32) -> Option<Endpoint> {
    let found = kernel.backend(number)?;
    let address: SocketAddr = socket_address(found.address, found.port_be);
    Some(Endpoint { number, generation: found.generation, address })
}

/// A client, as the maps know it.
#[derive(Clone, Copy)]
struct AnyClient {
    origin: Origin,
    address: Address,
    /// By source, and by source and port.
    hash: [Option<u32>; 2],
    /// Of one inside: its addresses.
    known: Option<ClientAddresses>,
}

/// The maps behind one service, as a program reads them for one client.
struct View<'a> {
    kernel: &'a Kernel,
    service: Service,
    client: AnyClient,
    /// The first thing that could not be read: what follows from it means nothing.
    failed: Option<MapError>,
}

impl<'a> View<'a> {
    fn of(kernel: &'a Kernel, slot: u32, client: AnyClient) -> Self {
        Self { kernel, service: kernel.service(slot), client, failed: None }
    }

    fn or_failed<T>(&mut self, read: Result<T, MapError>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed.get_or_insert(error);
                None
            }
        }
    }
}

impl Elements for View<'_> {
    fn table(&mut self, index: u32) -> Option<u32> {
        self.kernel.table(index)
    }

    fn backend(&mut self, id: u32) -> Option<dataplane_abi::Backend> {
        self.kernel.backend(id)
    }

    /// Nothing here is left to chance: whoever may be taken at random is a candidate.
    fn random(&mut self) -> u32 {
        0
    }

    fn ticks(&mut self) -> u32 {
        ticks()
    }
}

/// The programs' clock.
fn ticks() -> u32 {
    (sys::now() >> nat::TICK_SHIFT) as u32
}

impl Reads for View<'_> {
    fn selection(&mut self) -> u64 {
        match self.client.origin {
            Origin::Inside => self.service.inside,
            Origin::Outside => self.service.outside,
        }
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

    /// The next one's; a look is no turn.
    fn turn(&mut self) -> u32 {
        self.service.turns[self.client.origin as usize]
    }

    fn hash(&mut self, scheduler: Scheduler) -> Option<u32> {
        let [by_source, by_port] = self.client.hash;
        if scheduler == Scheduler::Maglev { by_port } else { by_source }
    }

    fn sources(&mut self) -> u32 {
        self.service.sources
    }

    fn holds(&mut self, set: u32) -> bool {
        let (kernel, AnyClient { origin, address: own, known, .. }) = (self.kernel, self.client);
        let mut holds = |address| self.or_failed(kernel.holds(set, address)).unwrap_or(false);
        match origin {
            Origin::Inside => select::holds_one_of(known.as_ref(), |address| holds(*address)),
            Origin::Outside => holds(own),
        }
    }
}

impl Source for View<'_> {
    fn knows_client(&mut self) -> bool {
        self.client.origin == Origin::Outside || self.client.known.is_some()
    }

    fn now(&mut self) -> u64 {
        sys::now()
    }

    fn affinity(&mut self, key: &AffinityKey) -> Option<Affinity> {
        let held = self.kernel.affinity(self.client.origin, key);
        self.or_failed(held).flatten()
    }

    fn flow(&mut self, began: Origin, key: &NatKey) -> Option<NatValue> {
        let entry = self.kernel.flow(began, key);
        self.or_failed(entry).flatten()
    }
}
