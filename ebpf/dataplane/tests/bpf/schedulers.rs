//! How a service chooses among its endpoints: in turn, by the fewest connections, by hash of the client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use dataplane::Protocol::{Tcp, Udp};
use dataplane::{Frontend, Identity, Names, Scheduler, Target};
use dataplane_abi::map;

use crate::node::{Links, Node, PLACES, Place, ask_tcp, ask_udp, at, frontend, inside, serve_tcp, serve_udp};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Where the name stands in an answer.
pub fn name(answer: &str) -> char {
    answer.chars().next().unwrap()
}

fn service(node: &mut Node, frontend: Frontend, scheduler: Scheduler, endpoints: &[SocketAddr]) {
    node.lead(frontend, &Target { scheduler, ..Target::all(endpoints) });
}

fn tally(names: impl Iterator<Item = char>) -> BTreeMap<char, usize> {
    let mut tally = BTreeMap::new();
    names.for_each(|name| *tally.entry(name).or_default() += 1);
    tally
}

#[test]
fn in_turn_endpoints_get_the_same_number_of_connections_by_their_shares() {
    let mut node = Node::open();
    for place in PLACES {
        let [a, b, c] = NAMES.map(|name| serve_tcp(at(place.localhost, 0), name));
        let vip = frontend(place.cluster_ip, 80, Tcp);
        let ask = || tally((0..24).map(|_| name(&ask_tcp(at(place.cluster_ip, 80)).unwrap())));
        service(&mut node, vip, Scheduler::RoundRobin, &[a, b, c]);
        assert_eq!(ask(), BTreeMap::from([('a', 8), ('b', 8), ('c', 8)]));
        service(&mut node, vip, Scheduler::RoundRobin, &[a, a, a, b]);
        assert_eq!(ask(), BTreeMap::from([('a', 18), ('b', 6)]));
    }
}

/// A server that takes connections when it is asked.
fn hold(place: Place) -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind(at(place.localhost, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    (listener.local_addr().unwrap(), listener)
}

/// Who connected since the last call.
fn came(listener: &TcpListener) -> BTreeSet<SocketAddr> {
    std::iter::from_fn(|| listener.accept().ok()).map(|(_, peer)| peer).collect()
}

#[test]
fn the_endpoint_with_the_fewest_connections_gets_the_next_one() {
    let mut node = Node::open();
    for place in PLACES {
        let ((a, at_a), (b, at_b)) = (hold(place), hold(place));
        let vip = frontend(place.cluster_ip, 80, Tcp);
        service(&mut node, vip, Scheduler::LeastConnection, &[a, b]);
        let connect = || TcpStream::connect(at(place.cluster_ip, 80)).unwrap();
        let open: Vec<TcpStream> = (0..10).map(|_| connect()).collect();
        let (to_a, to_b) = (came(&at_a), came(&at_b));
        assert_eq!((to_a.len(), to_b.len()), (5, 5));
        // Those of one go: it gets what comes until it has as many again.
        let is_to_a = |stream: &TcpStream| to_a.contains(&stream.local_addr().unwrap());
        let (mut of_a, of_b): (Vec<_>, Vec<_>) = open.into_iter().partition(is_to_a);
        of_a.truncate(1);
        of_a.extend((0..4).map(|_| connect()));
        assert_eq!((came(&at_a).len(), came(&at_b).len()), (4, 0));
        // A new process counts on.
        node.reopen();
        drop(of_b);
        let later: Vec<TcpStream> = (0..5).map(|_| connect()).collect();
        assert_eq!((came(&at_a).len(), came(&at_b).len()), (0, 5));
        drop((of_a, later));
        service(&mut node, vip, Scheduler::LeastConnection, &[]);
    }
}

#[test]
fn a_socket_counts_once_wherever_it_connects_and_not_after_it_is_closed() {
    let mut node = Node::open();
    let place = PLACES[0];
    let [a, b] = ["a", "b"].map(|name| serve_udp(at(place.localhost, 0), name));
    let vip = frontend(place.cluster_ip, 53, Udp);
    let socket = UdpSocket::bind(at(place.localhost, 0)).unwrap();
    service(&mut node, vip, Scheduler::LeastConnection, &[a, b]);
    for _ in 0..6 {
        socket.connect(at(place.cluster_ip, 53)).unwrap();
        assert_eq!(node.connections(), 1);
    }
    let other = UdpSocket::bind(at(place.localhost, 0)).unwrap();
    other.connect(at(place.cluster_ip, 53)).unwrap();
    assert_eq!(node.connections(), 2);
    drop(socket);
    assert_eq!(node.connections(), 1);
    drop(other);
    assert_eq!(node.connections(), 0);
    // Services that do not count pay nothing for it.
    service(&mut node, vip, Scheduler::Random, &[a, b]);
    let socket = UdpSocket::bind(at(place.localhost, 0)).unwrap();
    socket.connect(at(place.cluster_ip, 53)).unwrap();
    assert_eq!(node.connections(), 0);
}

#[test]
fn a_socket_that_was_counted_for_an_earlier_backend_of_a_number_leaves_the_later_one_alone() {
    let mut node = Node::open();
    let place = PLACES[0];
    let (a, _at_a) = hold(place);
    let vip = frontend(place.cluster_ip, 80, Tcp);
    service(&mut node, vip, Scheduler::LeastConnection, &[a]);
    let stream = TcpStream::connect(at(place.cluster_ip, 80)).unwrap();
    assert_eq!(node.connections(), 1);
    node.dataplane.as_mut().unwrap().remove(vip).unwrap();
    // A new process may use the number again at once.
    node.reopen();
    let (b, _at_b) = hold(place);
    service(&mut node, vip, Scheduler::LeastConnection, &[b]);
    let later = TcpStream::connect(at(place.cluster_ip, 80)).unwrap();
    drop(stream);
    assert_eq!(node.connections(), 1);
    drop(later);
    assert_eq!(node.connections(), 0);
}

#[test]
fn by_source_a_client_of_the_node_stays_and_by_maglev_it_does_not() {
    let mut node = Node::open();
    for place in PLACES {
        let endpoints = NAMES.map(|name| serve_tcp(at(place.localhost, 0), name));
        let vip = frontend(place.cluster_ip, 80, Tcp);
        let mut ask = |scheduler| {
            service(&mut node, vip, scheduler, &endpoints);
            tally((0..60).map(|_| name(&ask_tcp(at(place.cluster_ip, 80)).unwrap()))).len()
        };
        assert_eq!(ask(Scheduler::SourceHash), 1);
        assert_eq!(ask(Scheduler::Maglev), 3, "its port is not known when it connects");
    }
}

/// Which endpoint each port of the host outside is led to by a node port.
pub fn led(place: Place, ports: &[u16]) -> BTreeMap<u16, char> {
    let ports = ports.to_vec();
    let client = inside("outside", move || {
        let one = |port: u16| {
            let socket = UdpSocket::bind(at(place.outside, port)).unwrap();
            (port, name(&ask_udp(&socket, at(place.node, 30053)).unwrap().0))
        };
        ports.into_iter().map(one).collect()
    });
    client.join().unwrap()
}

#[test]
fn from_outside_the_hash_of_address_and_port_decides_and_few_move_when_an_endpoint_goes() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    for place in PLACES {
        let serve = move || NAMES.map(|name| serve_udp(at(place.pod, 0), name));
        let endpoints = inside("pod", serve).join().unwrap();
        let service_port = frontend(place.node, 30053, Udp);
        let ports: Vec<u16> = (20_000..20_060).collect();
        let mut lead = |scheduler, endpoints: &[SocketAddr]| {
            service(&mut node, service_port, scheduler, endpoints);
            // As another node would see these flows, or this one much later.
            node.rewrite_flows(map::INBOUND, |_| None);
            led(place, &ports)
        };
        let before = lead(Scheduler::Maglev, &endpoints);
        assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3, "{before:?}");
        assert_eq!(lead(Scheduler::Maglev, &endpoints), before);
        let [a, b, _] = endpoints;
        let after = lead(Scheduler::Maglev, &[a, b]);
        let moved = before.iter().filter(|(port, name)| **name != 'c' && after[*port] != **name).count();
        // Each endpoint had a third of the places; that so many of the others' move is as likely as one in a million.
        assert!(moved <= 12, "{before:?} {after:?}");
        assert_eq!(lead(Scheduler::Maglev, &endpoints), before, "the endpoint is back");
        let by_source = lead(Scheduler::SourceHash, &endpoints);
        assert_eq!(by_source.values().collect::<BTreeSet<_>>().len(), 1, "{by_source:?}");
    }
}

#[test]
fn from_outside_flows_find_a_pod_that_comes_back_under_its_name_and_others_where_they_were() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    for place in PLACES {
        // The last is another server, which takes the name of the one before.
        let serve = move || ["a", "b", "c", "c"].map(|name| serve_udp(at(place.pod, 0), name));
        let [a, b, c, again] = inside("pod", serve).join().unwrap();
        let service_port = frontend(place.node, 30053, Udp);
        let ports: Vec<u16> = (20_000..20_060).collect();
        let mut lead = |endpoints: &[SocketAddr]| {
            let names = endpoints.iter().map(|endpoint| {
                let name = [(a, "a"), (b, "b"), (c, "c"), (again, "c")];
                let (_, name) = name.into_iter().find(|(of, _)| of == endpoint).unwrap();
                (*endpoint, Identity::of_pod("default", name))
            });
            let names = Names::new(names).map(Arc::new);
            node.lead(
                service_port,
                &Target { scheduler: Scheduler::Maglev, names, ..Target::all(endpoints) },
            );
            node.rewrite_flows(map::INBOUND, |_| None);
            led(place, &ports)
        };
        let before = lead(&[a, b, c]);
        assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3, "{before:?}");
        assert!(!lead(&[a, b]).values().any(|name| *name == 'c'));
        assert_eq!(lead(&[again, a, b]), before);
    }
}

#[test]
fn from_outside_endpoints_have_their_turns() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    let place = PLACES[0];
    let endpoints =
        inside("pod", move || NAMES.map(|name| serve_udp(at(place.pod, 0), name))).join().unwrap();
    service(&mut node, frontend(place.node, 30053, Udp), Scheduler::RoundRobin, &endpoints);
    let ports: Vec<u16> = (20_000..20_012).collect();
    assert_eq!(tally(led(place, &ports).into_values()), BTreeMap::from([('a', 4), ('b', 4), ('c', 4)]));
}
