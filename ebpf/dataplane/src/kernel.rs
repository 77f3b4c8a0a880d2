//! The maps in the kernel: arrays written through shared memory, hashes by system call.

mod array;
mod reading;

use std::io;
use std::os::fd::AsFd;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use dataplane_abi::{
    Address, Affinity, AffinityKey, Backend, ClientAddresses, Config, Connected, FrontendKey, NatKey,
    NatValue, NetworkKey, Origin, PodPolicy, PortKey, Selection, Service, ServiceCounts, capacity, counter,
    map,
};

use crate::attach::Maps;
use crate::model::{Found, Write};
use crate::sys::maps::Elements;
use crate::{policy, sys};
use array::MappedArray;
use reading::read_all;

/// A map that could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("{operation} map {map}")]
    Map { operation: &'static str, map: &'static str, source: aya::maps::MapError },
    #[error("{operation}")]
    System { operation: String, source: std::io::Error },
}

const SERVICE_SIZE: usize = size_of::<Service>();
const COUNTS_SIZE: usize = size_of::<ServiceCounts>();
const BACKEND_SIZE: usize = size_of::<Backend>();
const CONFIG_SIZE: usize = size_of::<Config>();
const CLIENT_SIZE: usize = size_of::<ClientAddresses>();
const CONNECTED_SIZE: usize = size_of::<Connected>();
const AFFINITY_KEY_SIZE: usize = size_of::<AffinityKey>();
const AFFINITY_SIZE: usize = size_of::<Affinity>();
const NAT_KEY_SIZE: usize = size_of::<NatKey>();
const NAT_SIZE: usize = size_of::<NatValue>();
const POD_SIZE: usize = size_of::<PodPolicy>();
const KEY_SIZE: usize = size_of::<FrontendKey>();

pub struct Kernel {
    frontends: HashMap<MapData, [u8; KEY_SIZE], u32>,
    /// The same map, to be written many at a time.
    all_frontends: Elements,
    sources: LpmTrie<MapData, [u32; 5], u32>,
    clients: HashMap<MapData, u64, [u8; CLIENT_SIZE]>,
    connected: HashMap<MapData, u64, [u8; CONNECTED_SIZE]>,
    /// The same map, to be read as a whole.
    all_connected: MapData,
    /// By [`Origin`], as the next ones.
    affinity: [HashMap<MapData, [u8; AFFINITY_KEY_SIZE], [u8; AFFINITY_SIZE]>; 2],
    all_affinity: [MapData; 2],
    flows: [HashMap<MapData, [u8; NAT_KEY_SIZE], [u8; NAT_SIZE]>; 2],
    services: MappedArray<SERVICE_SIZE>,
    counts: MappedArray<COUNTS_SIZE>,
    tables: MappedArray<4>,
    backends: MappedArray<BACKEND_SIZE>,
    config: Array<MapData, [u8; CONFIG_SIZE]>,
    counters: PerCpuArray<MapData, u64>,
    pods: HashMap<MapData, u32, [u8; POD_SIZE]>,
    rules: LpmTrie<MapData, [u32; 5], u32>,
    ports: LpmTrie<MapData, [u32; 2], u32>,
}

impl Kernel {
    pub fn open(maps: Maps) -> Result<Self, MapError> {
        let [inside, outside] = maps.affinity;
        let all_affinity = [twin(map::AFFINITY, &inside)?, twin(map::AFFINITY_OUTSIDE, &outside)?];
        let [nat, inbound] = maps.flows;
        Ok(Self {
            all_connected: twin(map::CONNECTED, &maps.connected)?,
            affinity: [
                typed(map::AFFINITY, HashMap::try_from(inside))?,
                typed(map::AFFINITY_OUTSIDE, HashMap::try_from(outside))?,
            ],
            all_affinity,
            flows: [
                typed(map::NAT, HashMap::try_from(nat))?,
                typed(map::INBOUND, HashMap::try_from(inbound))?,
            ],
            all_frontends: elements(map::FRONTENDS, &maps.frontends)?,
            frontends: typed(map::FRONTENDS, HashMap::try_from(maps.frontends))?,
            sources: typed(map::SOURCES, LpmTrie::try_from(maps.sources))?,
            clients: typed(map::CLIENTS, HashMap::try_from(maps.clients))?,
            connected: typed(map::CONNECTED, HashMap::try_from(maps.connected))?,
            services: MappedArray::map(maps.services, capacity::FRONTENDS)?,
            counts: MappedArray::map(maps.counts, capacity::FRONTENDS)?,
            tables: MappedArray::map(maps.tables, capacity::TABLE_ENTRIES)?,
            backends: MappedArray::map(maps.backends, capacity::BACKENDS)?,
            config: typed(map::CONFIG, Array::try_from(maps.config))?,
            counters: typed(map::COUNTERS, PerCpuArray::try_from(maps.counters))?,
            pods: typed(map::PODS, HashMap::try_from(maps.pods))?,
            rules: typed(map::RULES, LpmTrie::try_from(maps.rules))?,
            ports: typed(map::PORTS, LpmTrie::try_from(maps.ports))?,
        })
    }

    /// Everything that an earlier process left in the maps.
    pub fn read(&mut self) -> Result<Found, MapError> {
        let mut found = Found::default();
        for element in self.frontends.iter() {
            let (key, slot) = typed_operation("read", map::FRONTENDS, element)?;
            found.frontends.push((FrontendKey::from_bytes(key), slot));
        }
        for key in self.sources.keys() {
            found.sources.push(network_key(&typed_operation("read", map::SOURCES, key)?));
        }
        for slot in 0..capacity::FRONTENDS as u32 {
            let service = Service::from_bytes(self.services.read(slot));
            if service.flags != 0 {
                for word in [service.inside, service.outside] {
                    let table = Selection::unpack(word);
                    let end = table.offset.saturating_add(u32::from(table.length) + table.lookup_size());
                    if end as usize <= capacity::TABLE_ENTRIES {
                        let ids =
                            (table.offset..end).map(|index| u32::from_ne_bytes(self.tables.read(index)));
                        found.tables.insert(word, ids.collect());
                    }
                }
                found.services.push((slot, service));
            }
        }
        for id in 0..capacity::BACKENDS as u32 {
            let backend = Backend::from_bytes(self.backends.read(id));
            found.last_generation = found.last_generation.max(backend.last_generation);
            if backend.generation != 0 {
                found.backends.push((id, backend));
            }
        }
        Ok(found)
    }

    /// What an earlier process left of policies.
    pub fn read_policies(&self) -> Result<policy::model::Found, MapError> {
        let mut found = policy::model::Found::default();
        for key in self.rules.keys() {
            found.rules.push(network_key(&typed_operation("read", map::RULES, key)?));
        }
        for key in self.ports.keys() {
            let key = typed_operation("read", map::PORTS, key)?;
            let [list, word] = key.data();
            let [protocol, reserved, first, second] = word.to_ne_bytes();
            let port_be = u16::from_ne_bytes([first, second]);
            found.ports.push(PortKey { prefix: key.prefix_len(), list, protocol, reserved, port_be });
        }
        Ok(found)
    }

    pub fn apply_policy(&mut self, write: &policy::model::Write) -> Result<(), MapError> {
        match write {
            policy::model::Write::Rule { key, list } => {
                typed_operation("insert into", map::RULES, self.rules.insert(&trie_key(*key), list, 0))
            }
            policy::model::Write::RuleRemove { key } => {
                removed(map::RULES, self.rules.remove(&trie_key(*key)))
            }
            policy::model::Write::Port { key } => {
                typed_operation("insert into", map::PORTS, self.ports.insert(&port_key(*key), 1, 0))
            }
            policy::model::Write::PortRemove { key } => {
                removed(map::PORTS, self.ports.remove(&port_key(*key)))
            }
        }
    }

    /// What holds for the pods that a policy selects, by the index of their links.
    pub fn policed(&self) -> Result<Vec<(u32, PodPolicy)>, MapError> {
        let pods = self.pods.iter().map(|pod| typed_operation("read", map::PODS, pod));
        pods.map(|pod| pod.map(|(link, value)| (link, PodPolicy::from_bytes(value)))).collect()
    }

    /// In one write: a program sees all of the old or all of the new.
    pub fn set_pod(&mut self, link: u32, pod: PodPolicy) -> Result<(), MapError> {
        typed_operation("insert into", map::PODS, self.pods.insert(link, pod.to_bytes(), 0))
    }

    pub fn remove_pod(&mut self, link: u32) -> Result<(), MapError> {
        removed(map::PODS, self.pods.remove(&link))
    }

    /// Lets a slot's counts begin at nothing.
    pub fn begin_counts(&mut self, slot: u32) {
        self.counts.write(slot, ServiceCounts::default().to_bytes());
    }

    pub fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        match write {
            Write::Backend { id, value } => self.write_backend(*id, *value),
            Write::Table { offset, ids } => {
                for (index, id) in (*offset..).zip(ids) {
                    self.tables.write(index, id.to_ne_bytes());
                }
            }
            Write::Service { slot, value } => {
                // Nobody counts there: no program still reads the slot as its last service's.
                self.begin_counts(*slot);
                self.services.write(*slot, value.to_bytes());
            }
            Write::Clear { slot } => {
                let [flags, inside, outside] = [
                    std::mem::offset_of!(Service, flags),
                    std::mem::offset_of!(Service, inside),
                    std::mem::offset_of!(Service, outside),
                ];
                for field in [flags, inside, outside] {
                    self.services.store_word(*slot, field, 0);
                }
            }
            Write::Select { slot, origin, selection } => {
                let field = match origin {
                    Origin::Inside => std::mem::offset_of!(Service, inside),
                    Origin::Outside => std::mem::offset_of!(Service, outside),
                };
                self.services.store_word(*slot, field, selection.pack());
            }
            Write::Sources { slot, set } => {
                self.services.store_number(*slot, std::mem::offset_of!(Service, sources), *set);
            }
            Write::SourceInsert { key } => {
                let inserted = self.sources.insert(&trie_key(*key), 1, 0);
                typed_operation("insert into", map::SOURCES, inserted)?;
            }
            Write::SourceRemove { key } => removed(map::SOURCES, self.sources.remove(&trie_key(*key)))?,
            Write::Options { slot, flags, affinity_seconds } => {
                let word = u64::from(*flags) | u64::from(*affinity_seconds) << 32;
                self.services.store_word(*slot, std::mem::offset_of!(Service, flags), word);
            }
            Write::FrontendInsert { key, slot } => {
                let inserted = self.frontends.insert(key.to_bytes(), slot, 0);
                typed_operation("insert into", map::FRONTENDS, inserted)?;
            }
            Write::FrontendRemove { key } => {
                removed(map::FRONTENDS, self.frontends.remove(&key.to_bytes()))?;
            }
        }
        Ok(())
    }

    /// With as few system calls as the kernel allows. After an error some may be there.
    pub fn insert_frontends(
        &self,
        frontends: impl Iterator<Item = (FrontendKey, u32)>,
    ) -> Result<(), MapError> {
        let (mut keys, mut slots) = (Vec::new(), Vec::new());
        for (key, slot) in frontends {
            keys.extend(key.to_bytes());
            slots.extend(slot.to_ne_bytes());
        }
        let inserted = self.all_frontends.write(&mut keys, &mut slots);
        inserted.map_err(|source| MapError::System {
            operation: format!("insert into map {}", map::FRONTENDS),
            source,
        })
    }

    /// The generation is what readers go by: it goes away first and comes last. The number's last generation is stored
    /// together with it: a process that dies between two of these stores leaves no number without its history.
    fn write_backend(&mut self, id: u32, value: Backend) {
        let place = std::mem::offset_of!(Backend, generation);
        let last_generation = u64::from(value.last_generation) << 32;
        self.backends.store_word(id, place, last_generation);
        if value.generation != 0 {
            let bytes = value.to_bytes();
            let (before, _) = bytes[..place].as_chunks();
            for (index, word) in before.iter().enumerate() {
                self.backends.store_word(id, index * size_of::<u64>(), u64::from_ne_bytes(*word));
            }
            self.backends.store_word(id, place, u64::from(value.generation) | last_generation);
        }
    }

    pub fn read_config(&self) -> Result<Config, MapError> {
        typed_operation("read", map::CONFIG, self.config.get(&0, 0)).map(Config::from_bytes)
    }

    pub fn write_config(&mut self, config: &Config) -> Result<(), MapError> {
        typed_operation("write", map::CONFIG, self.config.set(0, config.to_bytes(), 0))
    }

    /// In one write: a program sees all of the old or all of the new.
    pub fn set_client(&mut self, netns: u64, client: ClientAddresses) -> Result<(), MapError> {
        typed_operation("insert into", map::CLIENTS, self.clients.insert(netns, client.to_bytes(), 0))
    }

    pub fn forget_client(&mut self, netns: u64) -> Result<(), MapError> {
        removed(map::CLIENTS, self.clients.remove(&netns))
    }

    /// The network namespaces whose addresses are known.
    pub fn clients(&self) -> Result<Vec<u64>, MapError> {
        self.clients.keys().map(|netns| typed_operation("read", map::CLIENTS, netns)).collect()
    }

    /// UDP sockets that connected to a virtual address, by cookie. Those that come or go meanwhile may be there or not.
    pub fn connected(&self) -> Result<Vec<(u64, Connected)>, MapError> {
        let all = read_all(map::CONNECTED, &self.all_connected)?;
        let each = all.into_iter();
        Ok(each.map(|(cookie, value)| (u64::from_ne_bytes(cookie), Connected::from_bytes(value))).collect())
    }

    /// Forgets a socket, unless it has connected anew.
    pub fn forget_connected(&mut self, cookie: u64, known: Connected) -> Result<(), MapError> {
        match self.connected.get(&cookie, 0) {
            Ok(now) if Connected::from_bytes(now) == known => {}
            Ok(_) | Err(aya::maps::MapError::KeyNotFound) => return Ok(()),
            Err(error) => return typed_operation("read", map::CONNECTED, Err(error)),
        }
        removed(map::CONNECTED, self.connected.remove(&cookie))
    }

    pub fn counters(&self) -> Result<Vec<u64>, MapError> {
        (0..counter::COUNT)
            .map(|index| {
                let values = typed_operation("read", map::COUNTERS, self.counters.get(&index, 0))?;
                Ok(values.iter().sum())
            })
            .collect()
    }
}

/// Returns when every program that was running at the call has ended.
pub fn wait_for_readers() -> Result<(), MapError> {
    sys::wait_for_readers().map_err(|source| MapError::System {
        operation: "wait for BPF programs to end (membarrier)".into(),
        source,
    })
}

/// What is not there any more is removed.
fn removed(map: &'static str, result: Result<(), aya::maps::MapError>) -> Result<(), MapError> {
    match result {
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        result => typed_operation("remove from", map, result),
    }
}

/// Another handle of a map of frontends, for system calls of our own.
fn elements(name: &str, map: &Map) -> Result<Elements, MapError> {
    let again = || -> io::Result<Elements> {
        let Map::HashMap(data) = map else { return Err(io::ErrorKind::InvalidInput.into()) };
        Elements::of(data.fd().as_fd().try_clone_to_owned()?)
    };
    again().map_err(|source| MapError::System { operation: format!("open map {name} again"), source })
}

/// Another handle of a hash map.
fn twin(name: &str, map: &Map) -> Result<MapData, MapError> {
    let again = || -> io::Result<MapData> {
        let Map::LruHashMap(data) = map else { return Err(io::ErrorKind::InvalidInput.into()) };
        MapData::from_fd(data.fd().as_fd().try_clone_to_owned()?).map_err(io::Error::other)
    };
    again().map_err(|source| MapError::System { operation: format!("open map {name} again"), source })
}

fn network_key(key: &Key<[u32; 5]>) -> NetworkKey {
    let [set, a, b, c, d] = key.data();
    NetworkKey { prefix: key.prefix_len(), set, address: Address { words_be: [a, b, c, d] } }
}

fn port_key(PortKey { prefix, list, protocol, port_be, .. }: PortKey) -> Key<[u32; 2]> {
    Key::new(prefix, PortKey::words(list, protocol, port_be))
}

fn trie_key(NetworkKey { prefix, set, address }: NetworkKey) -> Key<[u32; 5]> {
    let [a, b, c, d] = address.words_be;
    Key::new(prefix, [set, a, b, c, d])
}

fn typed<T>(map: &'static str, opened: Result<T, aya::maps::MapError>) -> Result<T, MapError> {
    typed_operation("open", map, opened)
}

fn typed_operation<T>(
    operation: &'static str,
    map: &'static str,
    result: Result<T, aya::maps::MapError>,
) -> Result<T, MapError> {
    result.map_err(|source| MapError::Map { operation, map, source })
}
