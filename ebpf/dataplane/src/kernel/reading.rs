//! What the programs look at, read for whoever explains what they do. Changes nothing: a look from here keeps no entry from eviction.

use aya::maps::MapData;
use aya::maps::lpm_trie::Key;
use dataplane_abi::{
    Address, Affinity, AffinityKey, Backend, ClientAddresses, FrontendKey, NatKey, NatValue, NetworkKey,
    Origin, Service, ServiceCounts, capacity, map,
};

use super::{Kernel, MapError, typed_operation};
use crate::sys;

impl Kernel {
    /// The slot that a frontend's key leads to.
    pub fn slot(&self, key: &FrontendKey) -> Result<Option<u32>, MapError> {
        found(map::FRONTENDS, self.frontends.get(&key.to_bytes(), 0))
    }

    pub fn service(&self, slot: u32) -> Service {
        Service::from_bytes(self.services.read(slot))
    }

    pub fn counts(&self, slot: u32) -> ServiceCounts {
        let count = |field| self.counts.load_word(slot, field);
        ServiceCounts {
            led: count(std::mem::offset_of!(ServiceCounts, led)),
            no_backend: count(std::mem::offset_of!(ServiceCounts, no_backend)),
            forbidden: count(std::mem::offset_of!(ServiceCounts, forbidden)),
        }
    }

    /// `None` where the table ends, as for a program.
    pub fn table(&self, index: u32) -> Option<u32> {
        ((index as usize) < capacity::TABLE_ENTRIES).then(|| u32::from_ne_bytes(self.tables.read(index)))
    }

    pub fn backend(&self, id: u32) -> Option<Backend> {
        ((id as usize) < capacity::BACKENDS).then(|| Backend::from_bytes(self.backends.read(id)))
    }

    /// Whether a set of source ranges holds an address.
    pub fn holds(&self, set: u32, address: Address) -> Result<bool, MapError> {
        let [a, b, c, d] = address.words_be;
        let key = Key::new(NetworkKey::WHOLE, [set, a, b, c, d]);
        Ok(found(map::SOURCES, self.sources.get(&key, 0))?.is_some())
    }

    /// The addresses of a client on the node, if they are known.
    pub fn client(&self, netns: u64) -> Result<Option<ClientAddresses>, MapError> {
        Ok(found(map::CLIENTS, self.clients.get(&netns, 0))?.map(ClientAddresses::from_bytes))
    }

    pub fn affinity(&self, origin: Origin, key: &AffinityKey) -> Result<Option<Affinity>, MapError> {
        let name = affinity_map(origin);
        let held = found(name, self.affinity[origin as usize].get(&key.to_bytes(), 0))?;
        Ok(held.map(Affinity::from_bytes))
    }

    /// Every client that is remembered.
    pub fn affinities(&self, origin: Origin) -> Result<Vec<(AffinityKey, Affinity)>, MapError> {
        let all = read_all(affinity_map(origin), &self.all_affinity[origin as usize])?;
        let each = all.into_iter();
        Ok(each.map(|(key, value)| (AffinityKey::from_bytes(key), Affinity::from_bytes(value))).collect())
    }

    /// A flow that is known: of those that clients outside begin, or of the pods'.
    pub fn flow(&self, began: Origin, key: &NatKey) -> Result<Option<NatValue>, MapError> {
        let name = [map::NAT, map::INBOUND][began as usize];
        let entry = found(name, self.flows[began as usize].get(&key.to_bytes(), 0))?;
        Ok(entry.map(NatValue::from_bytes))
    }
}

fn affinity_map(origin: Origin) -> &'static str {
    [map::AFFINITY, map::AFFINITY_OUTSIDE][origin as usize]
}

type Element<const KEY: usize, const VALUE: usize> = ([u8; KEY], [u8; VALUE]);

/// A whole hash map.
pub fn read_all<const KEY: usize, const VALUE: usize>(
    name: &str,
    map: &MapData,
) -> Result<Vec<Element<KEY, VALUE>>, MapError> {
    let failed = |source| MapError::System { operation: format!("read map {name}"), source };
    sys::read_hash(map).map_err(failed)
}

fn found<T>(map: &'static str, result: Result<T, aya::maps::MapError>) -> Result<Option<T>, MapError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(None),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(None)
        }
        result => typed_operation("read", map, result).map(Some),
    }
}
