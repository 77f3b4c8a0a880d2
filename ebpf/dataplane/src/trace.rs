//! What the programs would do with a new flow, step by step. Pure: what is read is the caller's.
//!
//! The order is the programs': a packet's flow that is known, the service's slot, source ranges, the client's last backend, the scheduler. What
//! each decides is decided by the very functions that the programs run (`dataplane_abi::select`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use dataplane_abi::select::{self, Choice, Chosen, Reads};
use dataplane_abi::{
    Address, Affinity, AffinityKey, NatKey, NatValue, Origin, Scheduler, Selection, Service, nat,
    service_flag,
};

use crate::model::{socket_address, to_address, to_key};
use crate::{Frontend, Protocol};

#[cfg(test)]
mod tests;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A host whose packets come in by an uplink, and its port, where that is known.
    Outside { address: IpAddr, port: Option<u16> },
    /// A socket of this node, by the cookie of its network namespace.
    Inside { netns: u64 },
}

impl Client {
    pub fn origin(self) -> Origin {
        match self {
            Self::Outside { .. } => Origin::Outside,
            Self::Inside { .. } => Origin::Inside,
        }
    }

    /// What stands in [`AffinityKey`], and is hashed.
    pub fn address(self) -> Address {
        match self {
            Self::Outside { address, .. } => to_address(address),
            Self::Inside { netns } => Address { words_be: [0, 0, (netns >> 32) as u32, netns as u32] },
        }
    }

    pub fn port(self) -> Option<u16> {
        match self {
            Self::Outside { port, .. } => port,
            Self::Inside { .. } => None,
        }
    }
}

/// The [`select::hash`] of a client, as the programs have it.
pub fn hash(client: Client, scheduler: Scheduler) -> Option<u32> {
    match (scheduler, client.port()) {
        (Scheduler::Maglev, None | Some(0)) => None,
        (Scheduler::Maglev, Some(port)) => Some(select::hash(client.address(), port.to_be())),
        _ => Some(select::hash(client.address(), 0)),
    }
}

/// The maps, for one client of one service.
pub trait Source: Reads {
    /// Whether the client's addresses are known.
    fn knows_client(&mut self) -> bool;
    /// By the clock of [`Affinity::used`].
    fn now(&mut self) -> u64;
    fn affinity(&mut self, key: &AffinityKey) -> Option<Affinity>;
    /// A flow that clients of this origin began.
    fn flow(&mut self, began: Origin, key: &NatKey) -> Option<NatValue>;
}

/// An endpoint, as the maps know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    pub number: u32,
    pub generation: u32,
    pub address: SocketAddr,
}

/// What one step found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// No flow between this client's port and the address is known: it would be a new one.
    NewFlow,
    /// A flow is known, and leads there. One that does not stay is led anew when it begins anew, as each of its datagrams does.
    KnownFlow {
        endpoint: Endpoint,
        stays: bool,
    },
    /// The service's slot, and its word for clients of this origin.
    Slot {
        slot: u32,
        selection: Selection,
    },
    /// Everybody may ask.
    NoSourceRanges,
    SourceRanges {
        set: u32,
        hold: bool,
    },
    /// There are some, and nobody has told of this client's addresses: it may ask.
    UnknownClient {
        set: u32,
    },
    NoAffinity,
    /// The client was not led here before, or was forgotten.
    NotRemembered {
        seconds: u32,
    },
    /// The client was led there `ago` seconds ago.
    Remembered {
        seconds: u32,
        ago: u64,
        endpoint: Endpoint,
        stays: bool,
    },
    /// What a new choice is made by.
    Scheduler {
        scheduler: Scheduler,
    },
}

/// An endpoint of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub endpoint: Endpoint,
    /// Of as many as there are places in the table; 0: it would not be taken now.
    pub shares: u32,
    /// Sockets that count.
    pub connections: i32,
    /// It failed, and the service sets such ones aside for a while.
    pub is_aside: bool,
}

/// Why an endpoint is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Flow,
    Affinity,
    Hash,
}

/// What becomes of the flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The packet is the answer to a flow that a pod began, and goes to it.
    Answer {
        pod: SocketAddr,
    },
    /// No service: the packet or socket goes on as it is.
    NotLed,
    /// There, only the node's own sockets find services.
    Loopback,
    /// The kernel tells of no socket of this protocol: packets alone are led.
    PacketsAlone,
    /// No source range holds the client.
    Forbidden,
    /// There is no endpoint: refused for a socket, dropped for a packet.
    NoEndpoint,
    /// There is no endpoint, and the address is the node's own: its kernel refuses.
    LeftToNode,
    Led {
        endpoint: Endpoint,
        by: By,
    },
    /// One of these that have shares, of `places` in all; in turn, the next one.
    OneOf {
        candidates: Vec<Candidate>,
        places: u32,
        next: Option<Endpoint>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub steps: Vec<Step>,
    pub verdict: Verdict,
}

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub client: Client,
    pub frontend: Frontend,
    /// The cookie of the node's own network namespace.
    pub node_netns: u64,
}

impl Asked {
    /// The kernel drops what comes from elsewhere to its loopback, and a pod's is its own.
    fn is_of_another_loopback(&self) -> bool {
        self.frontend.address.is_loopback() && self.client != Client::Inside { netns: self.node_netns }
    }
}

/// Goes the programs' way. `service` is what the frontend's key leads to, if it leads anywhere.
pub fn walk(source: &mut impl Source, asked: Asked, service: Option<(u32, Service)>) -> Trace {
    let Asked { client, frontend, .. } = asked;
    let mut steps = Vec::new();
    let verdict =
        known_flow(source, client, frontend, service.is_some(), &mut steps).unwrap_or_else(
            || match service {
                _ if asked.is_of_another_loopback() => Verdict::Loopback,
                Some(_) if client.origin() == Origin::Inside && frontend.protocol == Protocol::Sctp => {
                    Verdict::PacketsAlone
                }
                None => Verdict::NotLed,
                Some((slot, service)) => select_one(source, client, slot, &service, &mut steps),
            },
        );
    Trace { steps, verdict }
}

/// What a packet's flow says; `None`: nothing, or not of a flow that begins.
fn known_flow(
    source: &mut impl Source,
    client: Client,
    frontend: Frontend,
    is_service: bool,
    steps: &mut Vec<Step>,
) -> Option<Verdict> {
    let Client::Outside { address, port: Some(port) } = client else { return None };
    let key = to_key(frontend);
    let key = NatKey {
        source: to_address(address),
        destination: key.address,
        source_port_be: port.to_be(),
        destination_port_be: key.port_be,
        protocol: key.protocol,
        direction: nat::IN,
        reserved: 0,
    };
    if let Some(entry) = source.flow(Origin::Inside, &key) {
        return Some(Verdict::Answer { pod: socket_address(entry.address, entry.port_be) });
    }
    // One straight to an endpoint is no service's.
    let Some(entry) = source.flow(Origin::Outside, &key).filter(|entry| entry.kind != nat::STRAIGHT) else {
        steps.push(Step::NewFlow);
        return None;
    };
    let NatValue { address, port_be, backend, generation, .. } = entry;
    let endpoint = Endpoint { number: backend, generation, address: socket_address(address, port_be) };
    let stays = is_service && still_there(source, &entry);
    steps.push(Step::KnownFlow { endpoint, stays });
    stays.then_some(Verdict::Led { endpoint, by: By::Flow })
}

/// Whether a flow that may begin anew stays with its backend.
fn still_there(source: &mut impl Source, entry: &NatValue) -> bool {
    let lives = source.backend(entry.backend).is_some_and(|found| found.generation == entry.generation);
    let listed = |source: &mut _| {
        Reads::selection(source) == entry.selection || select::find(source, entry.backend).is_some()
    };
    lives && listed(source) && select::may_ask(source)
}

fn select_one(
    source: &mut impl Source,
    client: Client,
    slot: u32,
    service: &Service,
    steps: &mut Vec<Step>,
) -> Verdict {
    steps.push(Step::Slot { slot, selection: Selection::unpack(source.selection()) });
    let hold = select::may_ask(source);
    steps.push(match source.sources() {
        0 => Step::NoSourceRanges,
        set if source.knows_client() => Step::SourceRanges { set, hold },
        set => Step::UnknownClient { set },
    });
    if !hold {
        return Verdict::Forbidden;
    }
    if let Some(kept) = kept(source, client, slot, service, steps) {
        return Verdict::Led { endpoint: endpoint(&kept), by: By::Affinity };
    }
    let scheduler = Scheduler::of(service.flags);
    steps.push(Step::Scheduler { scheduler });
    let is_left = service.flags & service_flag::OWN_ADDRESS != 0
        && Selection::unpack(service.inside).length == 0
        && client.origin() == Origin::Outside;
    match select::choose(source, service.flags) {
        Choice::NoBackend if is_left => Verdict::LeftToNode,
        Choice::NoBackend => Verdict::NoEndpoint,
        Choice::Backend(chosen) if scheduler.is_hashed() && source.hash(scheduler).is_some() => {
            Verdict::Led { endpoint: endpoint(&chosen), by: By::Hash }
        }
        Choice::Backend(chosen) => {
            let next = (scheduler == Scheduler::RoundRobin).then(|| endpoint(&chosen));
            let (candidates, places) = candidates(source, service.flags);
            Verdict::OneOf { candidates, places, next }
        }
    }
}

fn kept(
    source: &mut impl Source,
    client: Client,
    slot: u32,
    service: &Service,
    steps: &mut Vec<Step>,
) -> Option<Chosen> {
    let seconds = service.affinity_seconds;
    if seconds == 0 {
        steps.push(Step::NoAffinity);
        return None;
    }
    let Some(held) = source.affinity(&AffinityKey { client: client.address(), slot }) else {
        steps.push(Step::NotRemembered { seconds });
        return None;
    };
    let now = source.now();
    let kept = select::keep(source, held, now, seconds, service.flags);
    let found = source.backend(held.backend);
    let address = found.map(|backend| socket_address(backend.address, backend.port_be));
    let address = address.unwrap_or_else(|| socket_address(Address::NONE, 0));
    let endpoint = Endpoint { number: held.backend, generation: held.generation, address };
    let ago = now.saturating_sub(held.used) / NANOS_PER_SECOND;
    steps.push(Step::Remembered { seconds, ago, endpoint, stays: kept.is_some() });
    kept
}

pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

fn endpoint(Chosen { id, address, port_be, generation, .. }: &Chosen) -> Endpoint {
    Endpoint { number: *id, generation: *generation, address: socket_address(*address, *port_be) }
}

/// Who may be taken, and of how many places. With the fewest connections, each place that the search may begin at counts for whom it finds; what
/// is set aside leaves its places to others.
fn candidates(source: &mut impl Source, flags: u32) -> (Vec<Candidate>, u32) {
    let table = Selection::unpack(source.selection());
    let places = u32::from(table.length);
    let minds = service_flag::set_aside_after(flags) != 0;
    let mut shares: BTreeMap<u32, u32> = BTreeMap::new();
    for place in 0..places {
        let mut taken = match Scheduler::of(flags) {
            Scheduler::LeastConnection => select::least_from(source, table.offset, places, flags, place),
            _ => place,
        };
        if minds {
            taken = select::spare(source, table.offset, places, taken);
        }
        if let Some(id) = source.table(table.offset.wrapping_add(place)) {
            shares.entry(id).or_default();
        }
        if let Some(id) = source.table(table.offset.wrapping_add(taken)) {
            *shares.entry(id).or_default() += 1;
        }
    }
    let candidate = |(id, shares)| {
        let backend = source.backend(id)?;
        let address = socket_address(backend.address, backend.port_be);
        let endpoint = Endpoint { number: id, generation: backend.generation, address };
        let is_aside = minds && select::is_aside(source, &backend);
        Some(Candidate { endpoint, shares, connections: backend.connections, is_aside })
    };
    (shares.into_iter().filter_map(candidate).collect(), places)
}
