use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::*;
use crate::model::{Capacity, Model, to_key};
use crate::{Frontend, Protocol, Target};

fn frontend(number: u8) -> Frontend {
    Frontend { address: Ipv4Addr::new(10, 96, 0, number).into(), port: 80, protocol: Protocol::Tcp }
}

const ENDPOINT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)), 8080);

/// The maps that can refuse a write, and whether they do.
#[derive(Default)]
struct Frontends {
    keys: BTreeMap<FrontendKey, u32>,
    ranges: BTreeSet<NetworkKey>,
    broken: bool,
    calls: usize,
}

impl Frontends {
    fn write(&mut self, write: &Write) -> Result<(), &'static str> {
        if written(write).is_none() {
            return Ok(());
        }
        self.calls += 1;
        if self.broken {
            return Err("no memory");
        }
        match write {
            Write::FrontendInsert { key, slot } => drop(self.keys.insert(*key, *slot)),
            Write::FrontendRemove { key } => drop(self.keys.remove(key)),
            Write::SourceInsert { key } => drop(self.ranges.insert(*key)),
            Write::SourceRemove { key } => drop(self.ranges.remove(key)),
            other => unreachable!("{other:?} cannot fail"),
        }
        Ok(())
    }
}

struct Both {
    model: Model,
    unapplied: Unapplied,
    map: Frontends,
}

impl Both {
    fn new() -> Self {
        Self {
            model: Model::new(Capacity::default()),
            unapplied: Unapplied::default(),
            map: Frontends::default(),
        }
    }

    fn set(&mut self, number: u8) -> Result<(), &'static str> {
        let writes = self.model.set(frontend(number), &Target::all([ENDPOINT])).unwrap();
        self.unapplied.apply(to_key(frontend(number)), &writes, |write| self.map.write(write))
    }

    fn set_with_ranges(&mut self, number: u8, ranges: &[&str]) -> Result<(), &'static str> {
        let sources = Some(ranges.iter().map(|range| range.parse().unwrap()).collect());
        let target = Target { sources, ..Target::all([ENDPOINT]) };
        let writes = self.model.set(frontend(number), &target).unwrap();
        self.unapplied.apply(to_key(frontend(number)), &writes, |write| self.map.write(write))
    }

    fn remove(&mut self, number: u8) -> Result<(), &'static str> {
        let writes = self.model.remove(frontend(number));
        self.unapplied.apply(to_key(frontend(number)), &writes, |write| self.map.write(write))
    }

    fn present(&self, number: u8) -> bool {
        self.map.keys.contains_key(&to_key(frontend(number)))
    }
}

#[test]
fn setting_again_what_failed_repairs_it() {
    let mut both = Both::new();
    both.map.broken = true;
    assert_eq!(both.set(1), Err("no memory"));
    assert_eq!(both.set(1), Err("no memory"), "an unchanged list does not hide the failure");
    both.map.broken = false;
    assert_eq!(both.set(1), Ok(()));
    assert!(both.present(1));
    let calls = both.map.calls;
    assert_eq!(both.set(1), Ok(()));
    assert_eq!(both.map.calls, calls, "nothing is left to do");
}

#[test]
fn what_fails_for_one_frontend_leaves_the_others_alone_and_is_repaired_by_them() {
    let mut both = Both::new();
    both.set(1).unwrap();
    both.map.broken = true;
    both.remove(1).unwrap_err();
    both.map.broken = false;
    both.set(2).unwrap();
    assert!(both.present(2) && !both.present(1));
}

#[test]
fn setting_again_repairs_source_ranges_and_says_when_it_does_not() {
    let mut both = Both::new();
    let ranges = ["192.0.2.0/24", "198.51.100.0/24"];
    both.map.broken = true;
    both.set_with_ranges(1, &ranges).unwrap_err();
    assert_eq!(both.set_with_ranges(1, &ranges), Err("no memory"));
    both.map.broken = false;
    both.set_with_ranges(1, &ranges).unwrap();
    assert_eq!(both.map.ranges.len(), 2);
    // Ranges that could not be taken away are of no set that is given again.
    both.map.broken = true;
    both.set_with_ranges(1, &ranges[..1]).unwrap_err();
    both.model.release();
    both.map.broken = false;
    both.set_with_ranges(1, &ranges[1..]).unwrap();
    assert_eq!(both.map.ranges.len(), 1, "{:?}", both.map.ranges);
}

#[test]
fn the_newest_write_of_a_key_wins() {
    let mut both = Both::new();
    both.map.broken = true;
    both.set(1).unwrap_err();
    both.map.broken = false;
    both.remove(1).unwrap();
    both.set(2).unwrap();
    assert!(!both.present(1) && both.present(2));
}

#[test]
fn one_call_tries_a_bounded_number_and_all_get_their_turn() {
    let mut both = Both::new();
    both.map.broken = true;
    for number in 1..=100 {
        both.set(number).unwrap_err();
    }
    let calls = both.map.calls;
    both.set(200).unwrap_err();
    assert!(both.map.calls - calls <= 2 + OTHERS_PER_CALL);
    both.map.broken = false;
    for _ in 0..10 {
        both.set(200).unwrap();
    }
    assert!((1..=100).all(|number| both.present(number)));
}

#[test]
fn an_error_names_the_frontend_as_services_are_written() {
    assert_eq!(frontend(10).to_string(), "10.96.0.10:80/TCP");
}
