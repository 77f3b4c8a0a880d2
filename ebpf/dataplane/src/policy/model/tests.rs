use std::collections::BTreeMap;
use std::num::NonZeroU32;

use dataplane_abi::Address;
use proptest::prelude::*;

use super::super::NODE;
use super::*;

/// The kernel's two maps, and what its programs would find in them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Image {
    rules: BTreeMap<NetworkKey, u32>,
    ports: BTreeSet<PortKey>,
}

impl Image {
    fn apply(&mut self, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::Rule { key, list } => {
                    let is_there = list == policy::ALL_PORTS
                        || list == policy::NO_PORTS
                        || self.ports.iter().any(|port| port.list == list);
                    assert!(is_there, "a rule leads to list {list} before that is there");
                    self.rules.insert(key, list);
                }
                Write::RuleRemove { key } => assert!(self.rules.remove(&key).is_some(), "{key:?}"),
                Write::Port { key } => assert!(self.ports.insert(key), "{key:?}"),
                Write::PortRemove { key } => {
                    assert!(self.ports.remove(&key), "{key:?}");
                    assert!(!self.rules.values().any(|list| *list == key.list), "{key:?} is in use");
                }
            }
        }
    }

    /// The kernel's longest prefix match, twice.
    fn allows(&self, RulesetId(set): RulesetId, peer: &str, protocol: u8, port: u16) -> bool {
        let address = to_address(peer.parse().unwrap());
        let rule = self
            .rules
            .iter()
            .filter(|(key, _)| key.set == set.get())
            .filter(|(key, _)| common_bits(&key.address, &address) + NetworkKey::SET_BITS >= key.prefix)
            .max_by_key(|(key, _)| key.prefix);
        let Some((_, &list)) = rule else { return false };
        let holds = |key: &PortKey| {
            let bits = key.prefix - PortKey::BEFORE_PORT;
            let differs = u32::from(u16::from_be(key.port_be) ^ port);
            key.list == list && key.protocol == protocol && differs >> (u16::BITS - bits) == 0
        };
        list == policy::ALL_PORTS || self.ports.iter().any(holds)
    }
}

fn common_bits(one: &Address, other: &Address) -> u32 {
    let number = |address: &Address| u128::from_be_bytes(address.to_bytes());
    (number(one) ^ number(other)).leading_zeros()
}

fn ruleset(number: u32) -> RulesetId {
    RulesetId(NonZeroU32::new(number).unwrap())
}

fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn tcp(first: u16, last: u16) -> Ports {
    Ports::new([PortRange { protocol: Protocol::Tcp, first, last }])
}

const ROOM: Capacity = Capacity { rules: 1000, ports: 1000 };

/// Plans, and what was planned until something had no room.
trait Planned {
    fn allowed(&mut self, set: RulesetId, network: IpNetwork, ports: &Ports) -> Vec<Write>;
    fn forgotten(&mut self, set: RulesetId, network: IpNetwork) -> Vec<Write>;
}

impl Planned for Model {
    fn allowed(&mut self, set: RulesetId, network: IpNetwork, ports: &Ports) -> Vec<Write> {
        let mut writes = Vec::new();
        self.allow(set, network, ports, &mut writes).unwrap();
        writes
    }

    fn forgotten(&mut self, set: RulesetId, network: IpNetwork) -> Vec<Write> {
        let mut writes = Vec::new();
        self.forget(set, network, &mut writes).unwrap();
        writes
    }
}

fn model() -> Model {
    Model::adopt(Found::default(), ROOM)
}

#[test]
fn the_smallest_network_counts() {
    let (mut model, mut image, one) = (model(), Image::default(), ruleset(1));
    let rows = [
        ("10.0.0.0/8", tcp(80, 80)),
        ("10.1.0.0/16", Ports::none()),
        ("10.1.2.3/32", Ports::All),
        ("fd00::/64", tcp(1, 65535)),
    ];
    for (text, ports) in rows {
        image.apply(model.allowed(one, network(text), &ports));
    }
    assert!(image.allows(one, "10.9.0.1", protocol::TCP, 80));
    assert!(!image.allows(one, "10.9.0.1", protocol::TCP, 81));
    assert!(!image.allows(one, "10.9.0.1", protocol::UDP, 80));
    assert!(!image.allows(one, "10.1.0.1", protocol::TCP, 80));
    assert!(image.allows(one, "10.1.2.3", protocol::ICMP, 0));
    assert!(image.allows(one, "fd00::1", protocol::TCP, 65535));
    assert!(!image.allows(one, "fd01::1", protocol::TCP, 80));
    assert!(!image.allows(ruleset(2), "10.9.0.1", protocol::TCP, 80));
}

#[test]
fn all_of_ipv6_is_nothing_of_ipv4() {
    let (mut model, mut image, one) = (model(), Image::default(), ruleset(1));
    image.apply(model.allowed(one, network("::/0"), &Ports::All));
    assert!(image.allows(one, "2001:db8::1", protocol::UDP, 53));
    assert!(!image.allows(one, "192.0.2.1", protocol::UDP, 53));
    image.apply(model.allowed(one, network("0.0.0.0/0"), &tcp(80, 80)));
    assert!(image.allows(one, "192.0.2.1", protocol::TCP, 80));
    image.apply(model.forgotten(one, network("0.0.0.0/0")));
    assert!(!image.allows(one, "192.0.2.1", protocol::TCP, 80));
}

#[test]
fn a_full_map_is_refused_and_what_was_planned_before_counts() {
    let mut model = Model::adopt(Found::default(), Capacity { rules: 4, ports: 2 });
    let (mut image, one) = (Image::default(), ruleset(1));
    image.apply(model.allowed(one, network("10.0.0.1/32"), &tcp(1, 1)));
    let mut writes = Vec::new();
    let full = model.allow(one, network("10.0.0.2/32"), &tcp(3, 4), &mut writes).unwrap_err();
    assert_eq!((full.resource, writes.as_slice()), (Resource::PolicyPorts, &[][..]));
    // A new ruleset comes with a network of its own, which keeps IPv4 apart from IPv6.
    let full = model.allow(ruleset(2), network("::/0"), &tcp(3, 4), &mut writes).unwrap_err();
    assert_eq!((full.resource, writes.len()), (Resource::PolicyPorts, 1));
    image.apply(std::mem::take(&mut writes));
    image.apply(model.allowed(one, network("10.0.0.2/32"), &tcp(1, 1)));
    let full = model.allow(one, network("10.0.0.3/32"), &tcp(1, 1), &mut writes).unwrap_err();
    assert_eq!((full.resource, full.limit), (Resource::PolicyRules, 4));
    assert!(model.allow(ruleset(3), network("10.0.0.3/32"), &Ports::All, &mut writes).is_err());
    assert_eq!(writes, []);
    model.drop_ruleset(ruleset(2));
    image.apply(model.release_retired());
    assert_eq!(image.rules.len(), 3);
    image.apply(model.allowed(one, network("10.0.0.3/32"), &tcp(1, 1)));
    assert!(image.allows(one, "10.0.0.3", protocol::TCP, 1));
}

#[test]
fn a_ruleset_that_is_replaced_says_nothing_else() {
    let (mut model, mut image, one) = (model(), Image::default(), ruleset(1));
    image.apply(model.allowed(one, network("10.0.0.1/32"), &Ports::All));
    image.apply(model.allowed(one, network("10.0.0.2/32"), &tcp(1, 1)));
    let entries = [(network("10.0.0.2/32"), tcp(1, 1)), (network("10.0.0.3/32"), Ports::All)].into();
    let mut writes = Vec::new();
    model.replace(one, &entries, &mut writes).unwrap();
    assert_eq!(writes.len(), 2, "what stands is not written again: {writes:?}");
    image.apply(writes);
    let allowed = |peer| image.allows(one, peer, protocol::TCP, 1);
    assert_eq!(["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(allowed), [false, true, true]);
}

#[test]
fn the_nodes_own_addresses_are_taken_over() {
    let (mut earlier, mut image) = (model(), Image::default());
    image.apply(earlier.allowed(NODE, network("10.0.0.1/32"), &Ports::All));
    image.apply(earlier.allowed(NODE, network("10.0.0.2/32"), &Ports::All));
    let found = Found { rules: image.rules.keys().copied().collect(), ports: Vec::new() };
    let mut model = Model::adopt(found, ROOM);
    model.drop_found();
    assert!(!model.has_retired());
    let mut writes = Vec::new();
    model.replace(NODE, &[(network("10.0.0.2/32"), Ports::All)].into(), &mut writes).unwrap();
    image.apply(writes);
    let allowed = |peer| image.allows(NODE, peer, protocol::ICMP, 0);
    assert_eq!(["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(allowed), [false, true, false]);
}

#[test]
fn what_an_earlier_process_left_goes_and_its_numbers_are_not_used_again() {
    let (mut earlier, mut image) = (model(), Image::default());
    image.apply(earlier.allowed(ruleset(7), network("10.0.0.1/32"), &tcp(80, 90)));
    let found =
        Found { rules: image.rules.keys().copied().collect(), ports: image.ports.iter().copied().collect() };
    // It has room of its own.
    let mut model = Model::adopt(found, Capacity { rules: 2, ..ROOM });
    image.apply(model.allowed(ruleset(8), network("10.0.0.1/32"), &tcp(80, 90)));
    assert!(image.allows(ruleset(7), "10.0.0.1", protocol::TCP, 85));
    model.drop_found();
    image.apply(model.release_retired());
    assert!(!image.allows(ruleset(7), "10.0.0.1", protocol::TCP, 85));
    assert!(image.allows(ruleset(8), "10.0.0.1", protocol::TCP, 85));
    model.drop_ruleset(ruleset(8));
    image.apply(model.release_retired());
    assert_eq!((image, model.rules, model.ports), (Image::default(), 0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Allow(u32, IpNetwork, Ports),
    Forget(u32, IpNetwork),
    Drop(u32),
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let networks =
        ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "10.0.0.2/32", "::/0", "fd00::/64", "fd00::1/128"];
    let network = || prop::sample::select(networks.map(network).to_vec());
    let ports = || {
        prop_oneof![
            Just(Ports::All),
            Just(Ports::none()),
            (1..10_u16, 0..5_u16).prop_map(|(first, more)| tcp(first, first + more)),
        ]
    };
    let step = prop_oneof![
        6 => (1..4_u32, network(), ports()).prop_map(|(set, network, ports)| Step::Allow(set, network, ports)),
        3 => (1..4_u32, network()).prop_map(|(set, network)| Step::Forget(set, network)),
        1 => (1..4_u32).prop_map(Step::Drop),
        1 => Just(Step::Release),
    ];
    prop::collection::vec(step, 1..60)
}

/// The image with the numbers of lists replaced by what stands in them.
fn meaning(image: &Image) -> Vec<(NetworkKey, u32, Vec<PortKey>)> {
    let of = |list: u32| image.ports.iter().filter(move |key| key.list == list);
    let rules = image.rules.iter().map(|(key, list)| {
        let special = if [policy::ALL_PORTS, policy::NO_PORTS].contains(list) { *list } else { 1 };
        (*key, special, of(*list).map(|key| PortKey { list: 0, ..*key }).collect())
    });
    rules.collect()
}

proptest! {
    #[test]
    fn after_any_changes_the_maps_are_as_if_built_from_scratch(steps in steps()) {
        let (mut model, mut image) = (model(), Image::default());
        let mut wanted: BTreeMap<u32, BTreeMap<IpNetwork, Ports>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Allow(set, network, ports) => {
                    image.apply(model.allowed(ruleset(set), network, &ports));
                    wanted.entry(set).or_default().insert(network, ports);
                }
                Step::Forget(set, network) => {
                    image.apply(model.forgotten(ruleset(set), network));
                    if let Some(rules) = wanted.get_mut(&set) {
                        rules.remove(&network);
                    }
                }
                Step::Drop(set) => {
                    model.drop_ruleset(ruleset(set));
                    // A number that goes is not used again before it has gone.
                    image.apply(model.release_retired());
                    wanted.remove(&set);
                }
                Step::Release => image.apply(model.release_retired()),
            }
        }
        image.apply(model.release_retired());
        let (mut fresh, mut scratch) = (self::model(), Image::default());
        for (set, rules) in wanted {
            // One that says nothing is there too.
            scratch.apply(fresh.allowed(ruleset(set), every_v4(), &Ports::none()));
            for (network, ports) in rules {
                scratch.apply(fresh.allowed(ruleset(set), network, &ports));
            }
        }
        prop_assert_eq!(meaning(&image), meaning(&scratch));
        prop_assert_eq!(image.ports.len(), scratch.ports.len());
        prop_assert_eq!((model.rules, model.ports), (image.rules.len(), image.ports.len()));
    }

    #[test]
    fn a_range_is_its_ports_and_no_others(first in any::<u16>(), length in 0..70_000_u32, port in any::<u16>()) {
        let last = (u32::from(first) + length).min(65_535) as u16;
        let (mut model, mut image, one) = (model(), Image::default(), ruleset(1));
        image.apply(model.allowed(one, network("10.0.0.1/32"), &tcp(first, last)));
        prop_assert!(image.ports.len() <= 30);
        for port in [port, first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
            let holds = (first..=last).contains(&port);
            prop_assert_eq!(image.allows(one, "10.0.0.1", protocol::TCP, port), holds, "{}", port);
        }
    }
}
