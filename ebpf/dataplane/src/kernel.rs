//! The maps in the kernel: arrays written through shared memory, hashes by system call.

mod array;

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use dataplane_abi::{Backend, Config, FrontendKey, Selection, Service, capacity, counter, map};

use crate::attach::Maps;
use crate::model::{Found, Write};
use crate::sys;
use array::MappedArray;

/// A map that could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("{operation} map {map}")]
    Map { operation: &'static str, map: &'static str, source: aya::maps::MapError },
    #[error("{operation}")]
    System { operation: String, source: std::io::Error },
}

const SERVICE_SIZE: usize = size_of::<Service>();
const BACKEND_SIZE: usize = size_of::<Backend>();
const CONFIG_SIZE: usize = size_of::<Config>();
const KEY_SIZE: usize = size_of::<FrontendKey>();

pub struct Kernel {
    frontends: HashMap<MapData, [u8; KEY_SIZE], u32>,
    services: MappedArray<SERVICE_SIZE>,
    tables: MappedArray<4>,
    backends: MappedArray<BACKEND_SIZE>,
    config: Array<MapData, [u8; CONFIG_SIZE]>,
    counters: PerCpuArray<MapData, u64>,
}

impl Kernel {
    pub fn open(maps: Maps) -> Result<Self, MapError> {
        Ok(Self {
            frontends: typed(map::FRONTENDS, HashMap::try_from(maps.frontends))?,
            services: MappedArray::map(maps.services, capacity::FRONTENDS)?,
            tables: MappedArray::map(maps.tables, capacity::TABLE_ENTRIES)?,
            backends: MappedArray::map(maps.backends, capacity::BACKENDS)?,
            config: typed(map::CONFIG, Array::try_from(maps.config))?,
            counters: typed(map::COUNTERS, PerCpuArray::try_from(maps.counters))?,
        })
    }

    /// Everything that an earlier process left in the maps.
    pub fn read(&mut self) -> Result<Found, MapError> {
        let mut found = Found::default();
        for element in self.frontends.iter() {
            let (key, slot) = typed_operation("read", map::FRONTENDS, element)?;
            found.frontends.push((FrontendKey::from_bytes(key), slot));
        }
        for slot in 0..capacity::FRONTENDS as u32 {
            let service = Service::from_bytes(self.services.read(slot));
            if service.flags != 0 {
                let table = Selection::unpack(service.selection);
                let end = table.offset.saturating_add(u32::from(table.length));
                if end as usize <= capacity::TABLE_ENTRIES {
                    let ids = (table.offset..end).map(|index| u32::from_ne_bytes(self.tables.read(index)));
                    found.tables.insert(slot, ids.collect());
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

    pub fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        match write {
            Write::Backend { id, value } => self.write_backend(*id, *value),
            Write::Table { offset, ids } => {
                for (index, id) in (*offset..).zip(ids) {
                    self.tables.write(index, id.to_ne_bytes());
                }
            }
            Write::Service { slot, value } => self.services.write(*slot, value.to_bytes()),
            Write::Select { slot, selection } => {
                let field = std::mem::offset_of!(Service, selection);
                self.services.store_word(*slot, field, selection.pack());
            }
            Write::FrontendInsert { key, slot } => {
                let inserted = self.frontends.insert(key.to_bytes(), slot, 0);
                typed_operation("insert into", map::FRONTENDS, inserted)?;
            }
            Write::FrontendRemove { key } => match self.frontends.remove(&key.to_bytes()) {
                Err(aya::maps::MapError::KeyNotFound) => {}
                removed => typed_operation("remove from", map::FRONTENDS, removed)?,
            },
        }
        Ok(())
    }

    /// The generation is what readers go by: it goes away first and comes last. The number's last generation is stored
    /// together with it: a process that dies between two of these stores leaves no number without its history.
    fn write_backend(&mut self, id: u32, value: Backend) {
        let place = std::mem::offset_of!(Backend, generation);
        let last_generation = u64::from(value.last_generation) << 32;
        self.backends.store_word(id, place, last_generation);
        if value.generation != 0 {
            let bytes = value.to_bytes();
            let (address, _) = bytes.split_first_chunk().expect("a backend has two words");
            self.backends.store_word(id, 0, u64::from_ne_bytes(*address));
            self.backends.store_word(id, place, u64::from(value.generation) | last_generation);
        }
    }

    pub fn write_config(&mut self, config: &Config) -> Result<(), MapError> {
        typed_operation("write", map::CONFIG, self.config.set(0, config.to_bytes(), 0))
    }

    pub fn counters(&self) -> Result<Vec<u64>, MapError> {
        (0..counter::COUNT)
            .map(|index| {
                let values = typed_operation("read", map::COUNTERS, self.counters.get(&index, 0))?;
                Ok(values.iter().sum())
            })
            .collect()
    }

    pub fn wait_for_readers(&self) -> Result<(), MapError> {
        sys::wait_for_readers().map_err(|source| MapError::System {
            operation: "wait for BPF programs to end (membarrier)".into(),
            source,
        })
    }
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
