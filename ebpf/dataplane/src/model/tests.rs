use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The maps as a program would see them after some writes.
#[derive(Default)]
struct Maps {
    frontends: BTreeMap<[u8; 8], u32>,
    services: HashMap<u32, Service>,
    tables: HashMap<u32, u32>,
    backends: HashMap<u32, Backend>,
}

impl Maps {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Backend { id, value } => drop(self.backends.insert(*id, *value)),
            Write::Table { offset, ids } => {
                self.tables.extend(ids.iter().enumerate().map(|(index, id)| (offset + index as u32, *id)));
            }
            Write::Service { slot, value } => drop(self.services.insert(*slot, *value)),
            Write::Select { slot, selection } => {
                self.services.get_mut(slot).expect("a service in use").selection = selection.pack();
            }
            Write::FrontendInsert { key, slot } => drop(self.frontends.insert(key.to_bytes(), *slot)),
            Write::FrontendRemove { key } => drop(self.frontends.remove(&key.to_bytes())),
        }
    }

    /// What a lookup of `frontend` can lead to; `None` if nothing answers there.
    fn look_up(&self, frontend: Frontend) -> Option<Vec<SocketAddrV4>> {
        let key = to_key(frontend);
        let service = self.services.get(self.frontends.get(&key.to_bytes())?)?;
        assert_eq!(service.key, key);
        let table = Selection::unpack(service.selection);
        Some(
            (0..u32::from(table.length))
                .map(|index| self.backend(self.tables[&(table.offset + index)]))
                .collect(),
        )
    }

    fn backend(&self, id: u32) -> SocketAddrV4 {
        let backend = self.backends[&id];
        assert_ne!(backend.generation, 0, "a table names a free backend");
        SocketAddrV4::new(address(backend.addr_be), u16::from_be(backend.port_be))
    }

    fn found(&self) -> Found {
        let in_use = |service: &Service| service.flags != 0;
        let tables = self.services.iter().filter(|(_, service)| in_use(service)).map(|(slot, service)| {
            let table = Selection::unpack(service.selection);
            (*slot, (0..u32::from(table.length)).map(|index| self.tables[&(table.offset + index)]).collect())
        });
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
        }
    }
}

fn frontend(number: u8) -> Frontend {
    let protocol = if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    Frontend { address: Ipv4Addr::new(10, 96, 0, number), port: 80, protocol }
}

fn endpoint(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, number), 8080)
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, Vec<u8>),
    Remove(u8),
    Release,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..6, prop::collection::vec(0u8..12, 0..8)).prop_map(|(f, e)| Step::Set(f, e)),
        2 => (0u8..6).prop_map(Step::Remove),
        1 => Just(Step::Release),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// After every single write each frontend leads to a list that was wanted before or is wanted now.
    #[test]
    fn every_write_leaves_each_frontend_at_its_old_or_its_new_list(steps in steps()) {
        let mut model = Model::new();
        let mut maps = Maps::default();
        let mut wanted: BTreeMap<u8, Vec<SocketAddrV4>> = BTreeMap::new();
        for step in steps {
            let before = wanted.clone();
            let writes = match step {
                Step::Set(f, numbers) => {
                    let endpoints: Vec<_> = numbers.into_iter().map(endpoint).collect();
                    wanted.insert(f, endpoints.clone());
                    model.set(frontend(f), &endpoints).unwrap()
                }
                Step::Remove(f) => {
                    wanted.remove(&f);
                    model.remove(frontend(f))
                }
                Step::Release => {
                    model.release();
                    Vec::new()
                }
                Step::Restart => {
                    let (adopted, leftovers) = Model::adopt(&maps.found());
                    prop_assert!(leftovers.is_empty(), "{leftovers:?}");
                    model = adopted;
                    Vec::new()
                }
            };
            for write in &writes {
                maps.apply(write);
                for number in 0..6 {
                    let seen = maps.look_up(frontend(number));
                    prop_assert!(
                        seen.as_ref() == before.get(&number) || seen.as_ref() == wanted.get(&number),
                        "{number} leads to {seen:?} after {write:?}"
                    );
                }
            }
            for number in 0..6 {
                let seen = maps.look_up(frontend(number));
                prop_assert_eq!(seen.as_ref(), wanted.get(&number));
            }
            let in_use: std::collections::BTreeSet<_> = wanted.values().flatten().collect();
            prop_assert_eq!(maps.backends.values().filter(|b| b.generation != 0).count(), in_use.len());
        }
    }
}

#[test]
fn an_unchanged_list_writes_nothing() {
    let mut model = Model::new();
    assert_eq!(model.set(frontend(1), &[endpoint(1), endpoint(2)]).unwrap().len(), 5);
    assert!(model.set(frontend(1), &[endpoint(1), endpoint(2)]).unwrap().is_empty());
}

#[test]
fn one_more_endpoint_costs_its_backend_a_table_and_one_word() {
    let mut model = Model::new();
    model.set(frontend(1), &[endpoint(1)]).unwrap();
    let writes = model.set(frontend(1), &[endpoint(1), endpoint(2)]).unwrap();
    assert!(
        matches!(
            writes[..],
            [Write::Backend { .. }, Write::Table { offset: 1, .. }, Write::Select { slot: 0, .. }]
        ),
        "{writes:?}"
    );
}

#[test]
fn freed_space_is_not_reused_before_it_is_released() {
    let mut model = Model::new();
    model.set(frontend(1), &[endpoint(1)]).unwrap();
    model.set(frontend(1), &[endpoint(2)]).unwrap();
    let table = |writes: Vec<Write>| {
        writes.into_iter().find_map(|write| match write {
            Write::Table { offset, .. } => Some(offset),
            _ => None,
        })
    };
    assert_eq!(table(model.set(frontend(1), &[endpoint(3)]).unwrap()), Some(2));
    assert!(model.release_pending());
    model.release();
    assert_eq!(table(model.set(frontend(1), &[endpoint(4)]).unwrap()), Some(0));
}

#[test]
fn a_service_that_is_too_large_changes_nothing() {
    let mut model = Model::new();
    let many: Vec<SocketAddrV4> =
        (0..=MAX_ENDPOINTS).map(|n| SocketAddrV4::new(Ipv4Addr::from(n as u32), 1)).collect();
    let error = model.set(frontend(1), &many).unwrap_err();
    assert_eq!(error.to_string(), "no room for more EndpointsOfOneService: at most 65535");
    assert_eq!(model.frontends().count(), 0);
}

#[test]
fn adopting_removes_what_makes_no_sense() {
    let key = to_key(frontend(1));
    let service = Service { key: to_key(frontend(2)), selection: 0, flags: 1, reserved: 0 };
    let backend = Backend { addr_be: 1, port_be: 1, reserved: 0, generation: 7, reserved2: 0 };
    let found = Found {
        frontends: vec![(key, 3)],
        services: vec![(3, service)],
        tables: HashMap::new(),
        backends: vec![(9, backend)],
    };
    let (model, leftovers) = Model::adopt(&found);
    assert_eq!(model.frontends().count(), 0);
    assert_eq!(
        leftovers,
        [
            Write::FrontendRemove { key },
            Write::Service { slot: 3, value: empty_service() },
            Write::Backend { id: 9, value: empty_backend() },
        ]
    );
}

#[test]
fn masquerade_settings_are_network_order() {
    let masquerade = Masquerade {
        pods: "10.244.1.7/24".parse().unwrap(),
        address: Ipv4Addr::new(192, 168, 0, 2),
        excluded: vec!["10.244.0.0/16".parse().unwrap()],
    };
    let config = config(Some(&masquerade)).unwrap();
    assert_eq!(config.pods.network_be.to_ne_bytes(), [10, 244, 1, 0]);
    assert_eq!(config.pods.mask_be.to_ne_bytes(), [255, 255, 255, 0]);
    assert_eq!(config.masquerade_be.to_ne_bytes(), [192, 168, 0, 2]);
    assert_eq!(config.unmasqueraded_count, 1);
}
