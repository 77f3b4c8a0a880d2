use std::collections::BTreeMap;

use dataplane_abi::select::Elements;
use dataplane_abi::{Backend, ClientAddresses, FrontendKey};

use super::*;

const NODE: u64 = 7;
const SLOT: u32 = 3;

/// The maps behind one service that has three backends in places 10 to 12.
struct Fake {
    service: Service,
    origin: Origin,
    hash: Option<u32>,
    backends: BTreeMap<u32, Backend>,
    holds: bool,
    knows_client: bool,
    held: Option<Affinity>,
    flows: [Option<NatValue>; 2],
}

fn selection(length: u16) -> Selection {
    Selection { offset: 10, length, lookup: 0, generation: 5 }
}

fn backend(number: u32) -> Backend {
    let address = to_address(address(number).ip());
    let (port_be, connections) = (8080_u16.to_be(), number.cast_signed());
    let generation = 20 + number;
    Backend {
        address,
        port_be,
        reserved: 0,
        connections,
        failures: 0,
        aside_until: 0,
        generation,
        last_generation: generation,
    }
}

fn address(number: u32) -> SocketAddr {
    SocketAddr::from(([10, 244, 0, number as u8], 8080))
}

fn endpoint_of(number: u32) -> Endpoint {
    Endpoint { number, generation: 20 + number, address: address(number) }
}

fn fake(client: Client, scheduler: Scheduler) -> Fake {
    let key = FrontendKey { address: Address::NONE, port_be: 0, protocol: 0, reserved: 0 };
    let word = selection(3).pack();
    let flags = service_flag::IN_USE | scheduler.flags();
    let service =
        Service { key, sources: 0, inside: word, outside: word, flags, affinity_seconds: 0, turns: [1, 1] };
    Fake {
        service,
        origin: client.origin(),
        hash: hash(client, scheduler),
        backends: (1..=3).map(|number| (number, backend(number))).collect(),
        holds: false,
        knows_client: true,
        held: None,
        flows: [None; 2],
    }
}

impl Elements for Fake {
    fn table(&mut self, index: u32) -> Option<u32> {
        index.checked_sub(9)
    }
    fn backend(&mut self, id: u32) -> Option<Backend> {
        self.backends.get(&id).copied()
    }
    fn random(&mut self) -> u32 {
        0
    }
    fn ticks(&mut self) -> u32 {
        100
    }
}

impl Reads for Fake {
    fn selection(&mut self) -> u64 {
        [self.service.inside, self.service.outside][self.origin as usize]
    }
    fn least(&mut self, offset: u32, length: u32, flags: u32) -> u32 {
        select::least(self, offset, length, flags)
    }
    fn narrow(&mut self, offset: u32, id: u32, bounds: u64) -> u64 {
        select::narrow(self, offset, id, bounds)
    }
    fn spare(&mut self, offset: u32, length: u32, meant: u32) -> u32 {
        select::spare(self, offset, length, meant)
    }
    fn turn(&mut self) -> u32 {
        self.service.turns[self.origin as usize]
    }
    fn hash(&mut self, _scheduler: Scheduler) -> Option<u32> {
        self.hash
    }
    fn sources(&mut self) -> u32 {
        self.service.sources
    }
    fn holds(&mut self, _set: u32) -> bool {
        self.holds
    }
}

impl Source for Fake {
    fn knows_client(&mut self) -> bool {
        self.knows_client
    }
    fn now(&mut self) -> u64 {
        100 * NANOS_PER_SECOND
    }
    fn affinity(&mut self, _key: &AffinityKey) -> Option<Affinity> {
        self.held
    }
    fn flow(&mut self, began: Origin, _key: &NatKey) -> Option<NatValue> {
        self.flows[began as usize]
    }
}

const OUTSIDE: Client =
    Client::Outside { address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9)), port: Some(4000) };
const INSIDE: Client = Client::Inside { netns: NODE };

fn walk_to(source: &mut Fake, client: Client, address: [u8; 4]) -> Trace {
    let frontend = Frontend { address: address.into(), port: 80, protocol: Protocol::Tcp };
    let service = (SLOT, source.service);
    walk(source, Asked { client, frontend, node_netns: NODE }, Some(service))
}

fn walked(source: &mut Fake, client: Client) -> Trace {
    walk_to(source, client, [10, 96, 0, 1])
}

fn entry(number: u32, selection: u64) -> NatValue {
    NatValue {
        address: to_address(address(number).ip()),
        selection,
        used: 0,
        slot: SLOT as u16,
        client_port_be: 0,
        port_be: 8080_u16.to_be(),
        state: 0,
        kind: nat::NODE_PORT,
        backend: number,
        generation: 20 + number,
        link: 0,
    }
}

#[test]
fn a_random_choice_has_all_endpoints_by_their_shares() {
    let trace = walked(&mut fake(INSIDE, Scheduler::Random), INSIDE);
    assert_eq!(
        trace.steps,
        [
            Step::Slot { slot: SLOT, selection: selection(3) },
            Step::NoSourceRanges,
            Step::NoAffinity,
            Step::Scheduler { scheduler: Scheduler::Random }
        ]
    );
    let Verdict::OneOf { candidates, places: 3, next: None } = trace.verdict else { panic!("{trace:?}") };
    let numbers: Vec<(u32, u32)> = candidates.iter().map(|c| (c.endpoint.number, c.shares)).collect();
    assert_eq!(numbers, [(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn in_turn_the_next_one_is_told_and_with_the_fewest_connections_whoever_has_them() {
    let trace = walked(&mut fake(INSIDE, Scheduler::RoundRobin), INSIDE);
    let Verdict::OneOf { next: Some(next), .. } = trace.verdict else { panic!("{trace:?}") };
    // The stride in three places: 2,654,435,761 is one more than a multiple of three.
    assert_eq!(next, endpoint_of(2));
    let trace = walked(&mut fake(INSIDE, Scheduler::LeastConnection), INSIDE);
    let Verdict::OneOf { candidates, .. } = trace.verdict else { panic!("{trace:?}") };
    let told: Vec<(u32, i32)> = candidates.iter().map(|one| (one.shares, one.connections)).collect();
    assert_eq!(told, [(3, 1), (0, 2), (0, 3)]);
}

#[test]
fn a_hash_leads_to_one_endpoint_and_without_a_port_maglev_to_any() {
    for (scheduler, client) in [(Scheduler::SourceHash, INSIDE), (Scheduler::Maglev, OUTSIDE)] {
        let trace = walked(&mut fake(client, scheduler), client);
        assert!(matches!(trace.verdict, Verdict::Led { by: By::Hash, .. }), "{trace:?}");
    }
    let trace = walked(&mut fake(INSIDE, Scheduler::Maglev), INSIDE);
    assert!(matches!(trace.verdict, Verdict::OneOf { next: None, .. }), "{trace:?}");
}

#[test]
fn source_ranges_are_for_every_client() {
    for client in [OUTSIDE, INSIDE] {
        let mut source = fake(client, Scheduler::Random);
        assert!(walked(&mut source, client).steps.contains(&Step::NoSourceRanges));
        source.service.sources = 4;
        let trace = walked(&mut source, client);
        assert_eq!(trace.verdict, Verdict::Forbidden);
        assert_eq!(trace.steps.last(), Some(&Step::SourceRanges { set: 4, hold: false }));
        source.holds = true;
        let trace = walked(&mut source, client);
        assert!(trace.steps.contains(&Step::SourceRanges { set: 4, hold: true }), "{trace:?}");
        assert!(matches!(trace.verdict, Verdict::OneOf { .. }));
        source.knows_client = false;
        assert!(walked(&mut source, client).steps.contains(&Step::UnknownClient { set: 4 }));
    }
}

#[test]
fn a_set_holds_a_client_on_the_node_by_any_of_its_addresses() {
    let addresses = |some: &[[u8; 4]]| {
        let mut client = ClientAddresses::default();
        for (place, address) in client.addresses.iter_mut().zip(some) {
            *place = to_address(IpAddr::from(*address));
        }
        client
    };
    let is_one = |address: &Address| *address == to_address(IpAddr::from([10, 0, 0, 1]));
    let held = |client: &ClientAddresses| select::holds_one_of(Some(client), is_one);
    assert!(held(&addresses(&[[10, 0, 0, 1]])) && held(&addresses(&[[10, 0, 0, 2], [10, 0, 0, 1]])));
    assert!(!held(&addresses(&[[10, 0, 0, 2]])));
    // A set of everybody does not hold the places that are empty.
    assert!(!select::holds_one_of(Some(&addresses(&[])), |_| true));
    assert!(select::holds_one_of(None, |_| false), "nobody knows its addresses");
}

#[test]
fn a_client_stays_until_it_was_away_too_long_or_its_endpoint_goes() {
    let mut source = fake(INSIDE, Scheduler::Random);
    source.service.affinity_seconds = 60;
    let trace = walked(&mut source, INSIDE);
    assert!(trace.steps.contains(&Step::NotRemembered { seconds: 60 }), "{trace:?}");
    let used = 50 * NANOS_PER_SECOND;
    source.held = Some(Affinity { selection: selection(3).pack(), used, backend: 2, generation: 22 });
    let trace = walked(&mut source, INSIDE);
    assert_eq!(trace.verdict, Verdict::Led { endpoint: endpoint_of(2), by: By::Affinity });
    source.service.affinity_seconds = 49;
    let trace = walked(&mut source, INSIDE);
    let endpoint = endpoint_of(2);
    assert!(trace.steps.contains(&Step::Remembered { seconds: 49, ago: 50, endpoint, stays: false }));
    source.service.affinity_seconds = 60;
    source.backends.get_mut(&2).unwrap().generation = 0;
    assert!(matches!(walked(&mut source, INSIDE).verdict, Verdict::OneOf { .. }));
}

#[test]
fn a_known_flow_comes_first_and_stays_while_its_endpoint_is_the_services() {
    let mut source = fake(OUTSIDE, Scheduler::Random);
    source.flows[Origin::Outside as usize] = Some(entry(3, 0));
    let trace = walked(&mut source, OUTSIDE);
    assert_eq!(trace.steps, [Step::KnownFlow { endpoint: endpoint_of(3), stays: true }]);
    assert_eq!(trace.verdict, Verdict::Led { endpoint: endpoint_of(3), by: By::Flow });
    source.backends.get_mut(&3).unwrap().generation = 99;
    let trace = walked(&mut source, OUTSIDE);
    assert!(trace.steps.contains(&Step::KnownFlow { endpoint: endpoint_of(3), stays: false }), "{trace:?}");
    assert!(matches!(trace.verdict, Verdict::OneOf { .. }));
    // One straight to an endpoint is no service's.
    source.flows[Origin::Outside as usize] = Some(NatValue { kind: nat::STRAIGHT, ..entry(3, 0) });
    assert!(walked(&mut source, OUTSIDE).steps.contains(&Step::NewFlow));
    // Before all: what answers a pod.
    source.flows[Origin::Inside as usize] = Some(entry(1, 0));
    assert_eq!(walked(&mut source, OUTSIDE).verdict, Verdict::Answer { pod: address(1) });
}

#[test]
fn without_an_endpoint_the_node_refuses_for_its_own_address_alone() {
    let mut source = fake(OUTSIDE, Scheduler::Random);
    (source.service.inside, source.service.outside) = (selection(0).pack(), selection(0).pack());
    assert_eq!(walked(&mut source, OUTSIDE).verdict, Verdict::NoEndpoint);
    source.service.flags |= service_flag::OWN_ADDRESS;
    assert_eq!(walked(&mut source, OUTSIDE).verdict, Verdict::LeftToNode);
    source.service.inside = selection(3).pack();
    assert_eq!(walked(&mut source, OUTSIDE).verdict, Verdict::NoEndpoint);
}

#[test]
fn a_loopback_address_is_for_the_nodes_own_sockets() {
    let mut source = fake(INSIDE, Scheduler::Random);
    let mut verdict = |client| walk_to(&mut source, client, [127, 0, 0, 1]).verdict;
    assert!(matches!(verdict(INSIDE), Verdict::OneOf { .. }));
    assert_eq!(verdict(Client::Inside { netns: 8 }), Verdict::Loopback);
    assert_eq!(verdict(OUTSIDE), Verdict::Loopback);
}

#[test]
fn what_is_set_aside_leaves_its_share_to_others() {
    let mut source = fake(INSIDE, Scheduler::Random);
    source.service.flags |= 3 << service_flag::SET_ASIDE_SHIFT;
    source.backends.get_mut(&2).unwrap().aside_until = 101;
    let trace = walked(&mut source, INSIDE);
    let Verdict::OneOf { candidates, places: 3, .. } = trace.verdict else { panic!("{trace:?}") };
    let told: Vec<(u32, bool)> = candidates.iter().map(|one| (one.shares, one.is_aside)).collect();
    assert_eq!(told, [(1, false), (0, true), (2, false)]);
}

#[test]
fn sockets_of_sctp_are_not_led() {
    let verdict = |client| {
        let mut source = fake(client, Scheduler::Random);
        let frontend = Frontend { address: [10, 96, 0, 1].into(), port: 80, protocol: Protocol::Sctp };
        let service = (SLOT, source.service);
        walk(&mut source, Asked { client, frontend, node_netns: NODE }, Some(service)).verdict
    };
    assert_eq!(verdict(INSIDE), Verdict::PacketsAlone);
    assert!(matches!(verdict(OUTSIDE), Verdict::OneOf { .. }));
}
