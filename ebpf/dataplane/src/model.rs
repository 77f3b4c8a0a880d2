//! What the maps hold, and the writes that turn one state into the next. Pure: no kernel, no clock.
//!
//! The order of the writes is the protocol with the programs that read meanwhile: backends first, then a selection table in
//! unused space, then the one word that switches the service, and only then what nobody refers to any more. Freed numbers
//! wait until [`Model::release`]: a program that read the old word may still be on its way through the old table.

mod pool;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use dataplane_abi::{
    Backend, Config, FrontendKey, Network, Selection, Service, capacity, protocol, service_flag,
};
use ipnetwork::Ipv4Network;
use pool::{Numbers, Ranges};

use crate::{Frontend, Masquerade, Protocol, WriteError};

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
    /// Switches a service that is in use; a single store.
    Select {
        slot: u32,
        selection: Selection,
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
    pub tables: HashMap<u32, Vec<u32>>,
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
    pub backends: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: capacity::FRONTENDS as u32,
            table_entries: capacity::TABLE_ENTRIES as u32,
            backends: capacity::BACKENDS as u32,
        }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    slot: u32,
    selection: Selection,
    /// One per endpoint, in table order.
    backends: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    address: SocketAddrV4,
    generation: u32,
    /// How many table entries name this backend.
    references: usize,
}

#[derive(Debug)]
pub struct Model {
    capacity: Capacity,
    entries: HashMap<Frontend, Entry>,
    by_address: HashMap<SocketAddrV4, u32>,
    uses: HashMap<u32, Use>,
    slots: Numbers,
    ids: Numbers,
    ranges: Ranges,
    last_generation: u32,
    last_selection: u16,
}

impl Model {
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            entries: HashMap::new(),
            by_address: HashMap::new(),
            uses: HashMap::new(),
            slots: Numbers::new(capacity.frontends),
            ids: Numbers::new(capacity.backends),
            ranges: Ranges::new(capacity.table_entries),
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
        let selections = services.values().map(|service| Selection::unpack(service.selection).generation);
        model.last_selection = selections.max().unwrap_or(0);
        let mut leftovers = Vec::new();
        for (key, slot) in &found.frontends {
            let adopted = services
                .get(slot)
                .filter(|service| service.key == *key)
                .and_then(|service| model.adopt_one(*key, *slot, service, &found.tables, &backends));
            if adopted.is_none() {
                leftovers.push(Write::FrontendRemove { key: *key });
            }
        }
        for (slot, _) in services.iter().filter(|(slot, _)| !model.slots.is_taken(**slot)) {
            leftovers.push(Write::Service { slot: *slot, value: empty_service() });
        }
        for (id, backend) in found.backends.iter().filter(|(id, _)| !model.ids.is_taken(*id)) {
            leftovers.push(Write::Backend { id: *id, value: freed(*backend) });
        }
        model.slots.settle();
        model.ids.settle();
        (model, leftovers)
    }

    fn adopt_one(
        &mut self,
        key: FrontendKey,
        slot: u32,
        service: &Service,
        tables: &HashMap<u32, Vec<u32>>,
        backends: &HashMap<u32, Backend>,
    ) -> Option<()> {
        let frontend = from_key(key)?;
        let selection = Selection::unpack(service.selection);
        let ids = if selection.length == 0 { Vec::new() } else { tables.get(&slot)?.clone() };
        if ids.iter().any(|id| !backends.contains_key(id)) || self.slots.is_taken(slot) {
            return None;
        }
        if !self.ranges.take(selection.offset, u32::from(selection.length)) {
            return None;
        }
        self.slots.take(slot);
        for id in &ids {
            let backend = backends[id];
            let address = SocketAddrV4::new(address(backend.addr_be), u16::from_be(backend.port_be));
            self.ids.take(*id);
            self.by_address.insert(address, *id);
            let used = Use { address, generation: backend.generation, references: 0 };
            self.uses.entry(*id).or_insert(used).references += 1;
        }
        self.entries.insert(frontend, Entry { slot, selection, backends: ids });
        Some(())
    }

    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        self.entries.keys().copied()
    }

    pub fn endpoints(&self, frontend: Frontend) -> Vec<SocketAddrV4> {
        let entry = self.entries.get(&frontend);
        entry.into_iter().flat_map(|entry| &entry.backends).map(|id| self.uses[id].address).collect()
    }

    /// The writes that make `frontend` lead to `endpoints`: none if it already does. On an error nothing has changed.
    pub fn set(&mut self, frontend: Frontend, endpoints: &[SocketAddrV4]) -> Result<Vec<Write>, Full> {
        if let Some(entry) = self.entries.get(&frontend)
            && entry.backends.len() == endpoints.len()
            && entry.backends.iter().zip(endpoints).all(|(id, address)| self.uses[id].address == *address)
        {
            return Ok(Vec::new());
        }
        self.check_room(frontend, endpoints)?;
        let mut writes = Vec::new();
        let ids: Vec<u32> =
            endpoints.iter().map(|address| self.take_backend(*address, &mut writes)).collect();
        let offset = self.ranges.allocate(ids.len() as u32).unwrap_or(0);
        if !ids.is_empty() {
            writes.push(Write::Table { offset, ids: ids.clone() });
        }
        let length = ids.len() as u16;
        let old = self.entries.remove(&frontend);
        // One count for all services: a slot that is used again shows another word than the flows of its last service know.
        self.last_selection = self.last_selection.wrapping_add(1);
        let selection = Selection { offset, length, generation: self.last_selection };
        let slot = match &old {
            Some(old) => {
                writes.push(Write::Select { slot: old.slot, selection });
                old.slot
            }
            None => self.new_slot(frontend, selection, &mut writes),
        };
        self.entries.insert(frontend, Entry { slot, selection, backends: ids });
        if let Some(old) = old {
            self.ranges.free(old.selection.offset, u32::from(old.selection.length));
            self.drop_backends(&old.backends, &mut writes);
        }
        Ok(writes)
    }

    pub fn remove(&mut self, frontend: Frontend) -> Vec<Write> {
        let Some(old) = self.entries.remove(&frontend) else { return Vec::new() };
        let mut writes = vec![
            Write::FrontendRemove { key: to_key(frontend) },
            Write::Service { slot: old.slot, value: empty_service() },
        ];
        self.slots.free(old.slot);
        self.ranges.free(old.selection.offset, u32::from(old.selection.length));
        self.drop_backends(&old.backends, &mut writes);
        writes
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
    fn check_room(&self, frontend: Frontend, endpoints: &[SocketAddrV4]) -> Result<(), Full> {
        let full = |resource, limit| Err(Full { resource, limit });
        if endpoints.len() > MAX_ENDPOINTS {
            return full(Resource::EndpointsOfOneService, MAX_ENDPOINTS);
        }
        if !self.entries.contains_key(&frontend) && self.slots.available() == 0 {
            return full(Resource::Frontends, self.capacity.frontends as usize);
        }
        let fresh: HashSet<_> =
            endpoints.iter().filter(|address| !self.by_address.contains_key(address)).collect();
        if fresh.len() > self.ids.available() as usize {
            return full(Resource::Backends, self.capacity.backends as usize);
        }
        if !self.ranges.has_room(endpoints.len() as u32) {
            return full(Resource::TableEntries, self.capacity.table_entries as usize);
        }
        Ok(())
    }

    fn new_slot(&mut self, frontend: Frontend, selection: Selection, writes: &mut Vec<Write>) -> u32 {
        let slot = self.slots.allocate().expect("room was checked");
        let key = to_key(frontend);
        let value = Service { key, selection: selection.pack(), flags: service_flag::IN_USE, reserved: 0 };
        writes.push(Write::Service { slot, value });
        writes.push(Write::FrontendInsert { key, slot });
        slot
    }

    fn take_backend(&mut self, address: SocketAddrV4, writes: &mut Vec<Write>) -> u32 {
        if let Some(id) = self.by_address.get(&address) {
            self.uses.get_mut(id).expect("every known address is in use").references += 1;
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
            let used = self.uses.get_mut(id).expect("every table entry is in use");
            used.references -= 1;
            if used.references == 0 {
                let value = freed(backend(used.address, used.generation));
                self.by_address.remove(&used.address);
                self.uses.remove(id);
                self.ids.free(*id);
                writes.push(Write::Backend { id: *id, value });
            }
        }
    }
}

/// The settings of the uplink programs.
pub fn config(masquerade: Option<&Masquerade>) -> Result<Config, WriteError> {
    let Some(masquerade) = masquerade else { return Ok(Config::default()) };
    let (count, limit) = (masquerade.excluded.len(), capacity::UNMASQUERADED);
    if count > limit {
        return Err(WriteError::TooManyExcluded { count, limit });
    }
    let mut config = Config {
        pods: network(masquerade.pods),
        masquerade_be: u32::from_ne_bytes(masquerade.address.octets()),
        unmasqueraded_count: count as u32,
        ..Config::default()
    };
    if let Some(overlay) = masquerade.overlay {
        config.overlay_link = overlay.link;
        config.overlay_be = u32::from_ne_bytes(overlay.address.octets());
    }
    for (place, excluded) in config.unmasqueraded.iter_mut().zip(&masquerade.excluded) {
        *place = network(*excluded);
    }
    Ok(config)
}

fn network(network: Ipv4Network) -> Network {
    Network {
        network_be: u32::from_ne_bytes(network.network().octets()),
        mask_be: u32::from_ne_bytes(network.mask().octets()),
    }
}

pub fn to_key(frontend: Frontend) -> FrontendKey {
    let protocol = match frontend.protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
    };
    let addr_be = u32::from_ne_bytes(frontend.address.octets());
    FrontendKey { addr_be, port_be: frontend.port.to_be(), protocol, scope: 0 }
}

fn from_key(key: FrontendKey) -> Option<Frontend> {
    let protocol = match key.protocol {
        protocol::TCP => Protocol::Tcp,
        protocol::UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Frontend { address: address(key.addr_be), port: u16::from_be(key.port_be), protocol })
}

fn address(addr_be: u32) -> Ipv4Addr {
    Ipv4Addr::from(addr_be.to_ne_bytes())
}

fn empty_service() -> Service {
    let key = FrontendKey { addr_be: 0, port_be: 0, protocol: 0, scope: 0 };
    Service { key, selection: 0, flags: 0, reserved: 0 }
}

fn backend(address: SocketAddrV4, generation: u32) -> Backend {
    let addr_be = u32::from_ne_bytes(address.ip().octets());
    Backend { addr_be, port_be: address.port().to_be(), reserved: 0, generation, last_generation: generation }
}

/// A free number: what it was stays behind, for readers that are on their way to it.
fn freed(backend: Backend) -> Backend {
    Backend { generation: 0, ..backend }
}
