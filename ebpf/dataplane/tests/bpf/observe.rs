//! What is told about services: counts of real flows, and traces that say where real ones go.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::num::{NonZeroU8, NonZeroU32};

use dataplane::Protocol::{Tcp, Udp};
use dataplane::trace::{By, Client, Step, Verdict};
use dataplane::{Frontend, Origin, Scheduler, ServiceCounts, Target};
use dataplane_abi::map;
use linux::netns::Netns;

use crate::node::{Links, Node, PLACES, Place, ask_tcp, ask_udp, at, frontend, inside, serve_tcp, serve_udp};
use crate::schedulers::{led, name};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn counts(node: &Node, frontend: Frontend) -> (u64, u64, u64) {
    let all: BTreeMap<Frontend, ServiceCounts> =
        node.dataplane.as_ref().unwrap().service_counts().into_iter().collect();
    let ServiceCounts { led, no_backend, forbidden } = all.get(&frontend).copied().unwrap_or_default();
    (led, no_backend, forbidden)
}

fn slot(node: &Node, frontend: Frontend) -> u32 {
    node.dataplane.as_ref().unwrap().programmed(frontend).unwrap().unwrap().slot
}

fn verdict(node: &Node, frontend: Frontend, client: Client) -> Verdict {
    node.dataplane.as_ref().unwrap().trace(frontend, client).unwrap().verdict
}

/// Where a trace says that the client is led.
fn told(node: &Node, frontend: Frontend, client: Client) -> (SocketAddr, By) {
    match verdict(node, frontend, client) {
        Verdict::Led { endpoint, by } => (endpoint.address, by),
        other => panic!("{other:?}"),
    }
}

/// A socket of this test.
fn here() -> Client {
    Client::Inside { netns: Netns::current().unwrap().cookie().unwrap() }
}

#[test]
fn each_new_flow_of_a_socket_is_counted_for_its_service() {
    let mut node = Node::open();
    for place in PLACES {
        let (tcp, udp) = (frontend(place.cluster_ip, 80, Tcp), frontend(place.cluster_ip, 80, Udp));
        let endpoint = serve_tcp(at(place.localhost, 0), "a");
        node.set(tcp, &[endpoint]);
        node.set(udp, &[serve_udp(at(place.localhost, 0), "a")]);
        for _ in 0..3 {
            ask_tcp(at(place.cluster_ip, 80)).unwrap();
        }
        let socket = UdpSocket::bind(at(place.localhost, 0)).unwrap();
        ask_udp(&socket, at(place.cluster_ip, 80)).unwrap();
        ask_udp(&socket, at(place.cluster_ip, 80)).unwrap();
        assert_eq!((counts(&node, tcp), counts(&node, udp)), ((3, 0, 0), (1, 0, 0)));
        // A new process counts on, and other endpoints change nothing of what was.
        node.reopen();
        node.set(tcp, &[]);
        assert!(TcpStream::connect(at(place.cluster_ip, 80)).is_err());
        assert_eq!(counts(&node, tcp), (3, 1, 0));
    }
}

#[test]
fn a_slot_that_goes_to_another_service_begins_at_zero() {
    let mut node = Node::open();
    let place = PLACES[0];
    let endpoint = serve_tcp(at(place.localhost, 0), "a");
    let (old, new) = (frontend(place.cluster_ip, 80, Tcp), frontend(place.cluster_ip, 81, Tcp));
    node.set(old, &[endpoint]);
    let its_slot = slot(&node, old);
    ask_tcp(at(place.cluster_ip, 80)).unwrap();
    assert_eq!(counts(&node, old), (1, 0, 0));
    node.dataplane.as_mut().unwrap().remove(old).unwrap();
    node.reopen();
    node.set(new, &[endpoint]);
    assert_eq!((slot(&node, new), counts(&node, new)), (its_slot, (0, 0, 0)));
    ask_tcp(at(place.cluster_ip, 81)).unwrap();
    assert_eq!(counts(&node, new), (1, 0, 0));
    // The address goes to another service, which leads to the same endpoints: nothing is written but this.
    node.dataplane.as_mut().unwrap().begin_counts(new);
    node.set(new, &[endpoint]);
    assert_eq!(counts(&node, new), (0, 0, 0));
    ask_tcp(at(place.cluster_ip, 81)).unwrap();
    assert_eq!(counts(&node, new), (1, 0, 0));
}

#[test]
fn flows_from_outside_are_counted_and_so_is_who_may_not_ask() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    for place in PLACES {
        let endpoint = inside("pod", move || serve_udp(at(place.pod, 0), "a")).join().unwrap();
        let node_port = frontend(place.node, 30053, Udp);
        node.set(node_port, &[endpoint]);
        led(place, &[20_000, 20_001, 20_000]);
        assert_eq!(counts(&node, node_port), (2, 0, 0), "a flow that goes on is not a new one");
        let nobody: ipnetwork::IpNetwork = place.neighbour.into();
        let sources = Some([nobody].into());
        node.lead(node_port, &Target { sources, ..Target::all([endpoint]) });
        assert!(!is_answered(place));
        node.lead(node_port, &Target { own_address: true, ..Target::default() });
        assert!(!is_answered(place));
        assert_eq!(counts(&node, node_port), (2, 1, 1));
    }
}

/// Whether a new flow from outside is: one that is not answered at once, but refused or dropped.
fn is_answered(place: Place) -> bool {
    let client = inside("outside", move || {
        let socket = UdpSocket::bind(at(place.outside, 0)).unwrap();
        socket.connect(at(place.node, 30053)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        socket.send(b"?").unwrap();
        socket.recv(&mut [0; 64]).is_ok()
    });
    client.join().unwrap()
}

#[test]
fn a_trace_of_a_socket_says_where_it_is_led_by_source() {
    let mut node = Node::open();
    for place in PLACES {
        let endpoints = NAMES.map(|name| serve_tcp(at(place.localhost, 0), name));
        let vip = frontend(place.cluster_ip, 80, Tcp);
        for some in [&endpoints[..], &endpoints[..2], &endpoints[1..], &endpoints[2..]] {
            node.lead(vip, &Target { scheduler: Scheduler::SourceHash, ..Target::all(some) });
            let (address, by) = told(&node, vip, here());
            let real = name(&ask_tcp(at(place.cluster_ip, 80)).unwrap());
            let place_of = endpoints.iter().position(|endpoint| *endpoint == address).unwrap();
            assert_eq!((NAMES[place_of], by), (real.to_string().as_str(), By::Hash));
        }
    }
}

#[test]
fn a_trace_tells_whose_turn_it_is() {
    let mut node = Node::open();
    let place = PLACES[0];
    let endpoints = NAMES.map(|name| serve_tcp(at(place.localhost, 0), name));
    let vip = frontend(place.cluster_ip, 80, Tcp);
    node.lead(vip, &Target { scheduler: Scheduler::RoundRobin, ..Target::all(endpoints) });
    for _ in 0..5 {
        let Verdict::OneOf { next: Some(next), .. } = verdict(&node, vip, here()) else { panic!() };
        let real = name(&ask_tcp(at(place.cluster_ip, 80)).unwrap());
        let place_of = endpoints.iter().position(|endpoint| *endpoint == next.address).unwrap();
        assert_eq!(NAMES[place_of], real.to_string());
    }
}

#[test]
fn a_trace_of_a_client_outside_says_where_it_is_led_by_address_and_port() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    for place in PLACES {
        let serve = move || NAMES.map(|name| serve_udp(at(place.pod, 0), name));
        let endpoints = inside("pod", serve).join().unwrap();
        let node_port = frontend(place.node, 30053, Udp);
        node.lead(node_port, &Target { scheduler: Scheduler::Maglev, ..Target::all(endpoints) });
        let client = |port| Client::Outside { address: place.outside, port: Some(port) };
        let name_of =
            |address: SocketAddr| NAMES[endpoints.iter().position(|endpoint| *endpoint == address).unwrap()];
        let ports: Vec<u16> = (20_000..20_020).collect();
        let before: Vec<_> = ports.iter().map(|port| told(&node, node_port, client(*port))).collect();
        assert!(before.iter().all(|(_, by)| *by == By::Hash));
        let real = led(place, &ports);
        for (port, (address, _)) in ports.iter().zip(before) {
            assert_eq!(name_of(address), real[port].to_string());
            // From here on the flow is known.
            assert_eq!(told(&node, node_port, client(*port)), (address, By::Flow));
        }
        // Its endpoint goes: the flow is led anew, as the trace says.
        let gone = endpoints[0];
        node.lead(node_port, &Target { scheduler: Scheduler::Maglev, ..Target::all(&endpoints[1..]) });
        let told: Vec<_> = ports.iter().map(|port| told(&node, node_port, client(*port)).0).collect();
        assert!(!told.contains(&gone));
        let real = led(place, &ports);
        for (port, address) in ports.iter().zip(told) {
            assert_eq!(name_of(address), real[port].to_string());
        }
    }
}

#[test]
fn a_trace_and_a_list_tell_where_a_client_stays() {
    let mut node = Node::open();
    for place in PLACES {
        let endpoints = NAMES.map(|name| serve_tcp(at(place.localhost, 0), name));
        let vip = frontend(place.cluster_ip, 80, Tcp);
        node.lead(vip, &Target { affinity_seconds: NonZeroU32::new(60), ..Target::all(endpoints) });
        let trace = node.dataplane.as_ref().unwrap().trace(vip, here()).unwrap();
        assert!(trace.steps.contains(&Step::NotRemembered { seconds: 60 }), "{trace:?}");
        let real = name(&ask_tcp(at(place.cluster_ip, 80)).unwrap()).to_string();
        let (address, by) = told(&node, vip, here());
        let its = endpoints[NAMES.iter().position(|name| *name == real).unwrap()];
        assert_eq!((address, by), (its, By::Affinity));
        let staying = node.dataplane.as_ref().unwrap().staying().unwrap();
        let [one] = staying.as_slice() else { panic!("{staying:?}") };
        assert_eq!((one.frontend, one.origin, one.endpoint.address), (vip, Origin::Inside, its));
        assert_eq!(Client::Inside { netns: one.netns() }, here());
        assert!((55..=60).contains(&one.seconds), "{one:?}");
        // It was away for too long.
        node.rewrite_affinities(Origin::Inside, |held| held.used = 0);
        assert!(node.dataplane.as_ref().unwrap().staying().unwrap().is_empty());
        assert!(matches!(verdict(&node, vip, here()), Verdict::OneOf { .. }));
        node.dataplane.as_mut().unwrap().remove(vip).unwrap();
    }
}

#[test]
fn a_trace_of_a_client_outside_tells_of_source_ranges_affinity_and_what_the_node_answers() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    let place = PLACES[0];
    let serve = move || NAMES.map(|name| serve_udp(at(place.pod, 0), name));
    let endpoints = inside("pod", serve).join().unwrap();
    let node_port = frontend(place.node, 30053, Udp);
    let client = Client::Outside { address: place.outside, port: None };
    let affine = Target { affinity_seconds: NonZeroU32::new(60), ..Target::all(endpoints) };
    node.lead(node_port, &affine);
    let real = led(place, &[20_000])[&20_000].to_string();
    let (address, by) = told(&node, node_port, client);
    assert_eq!(by, By::Affinity);
    assert_eq!(endpoints.iter().position(|e| *e == address), NAMES.iter().position(|n| *n == real));
    let sources = Some([ipnetwork::IpNetwork::from(place.neighbour)].into());
    node.lead(node_port, &Target { sources, ..affine });
    assert_eq!(verdict(&node, node_port, client), Verdict::Forbidden);
    let allowed = Client::Outside { address: place.neighbour, port: None };
    assert!(matches!(verdict(&node, node_port, allowed), Verdict::OneOf { .. }));
    node.lead(node_port, &Target { own_address: true, ..Target::default() });
    assert_eq!(verdict(&node, node_port, client), Verdict::LeftToNode);
    let nothing = frontend(place.node, 30054, Udp);
    assert_eq!(verdict(&node, nothing, client), Verdict::NotLed);
    assert_eq!(node.dataplane.as_ref().unwrap().neighbours(nothing), [node_port]);
    node.rewrite_flows(map::INBOUND, |_| None);
}

#[test]
fn a_trace_and_a_list_tell_of_an_endpoint_that_is_set_aside() {
    let mut node = Node::open();
    let place = PLACES[0];
    let living = serve_tcp(at(place.localhost, 0), "a");
    // Nobody listens there.
    let dead = at(place.localhost, 9);
    let vip = frontend(place.cluster_ip, 80, Tcp);
    let scheduler = Scheduler::RoundRobin;
    let set_aside_after = NonZeroU8::new(1);
    node.lead(vip, &Target { scheduler, set_aside_after, ..Target::all([living, dead]) });
    let led = |node: &Node| match verdict(node, vip, here()) {
        Verdict::OneOf { candidates, .. } => {
            candidates.iter().map(|one| (one.endpoint.address, one.shares)).collect::<BTreeMap<_, _>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(led(&node), BTreeMap::from([(living, 1), (dead, 1)]));
    let failed = (0..2).filter(|_| ask_tcp(at(place.cluster_ip, 80)).is_err()).count();
    assert_eq!(failed, 1);
    assert_eq!(led(&node), BTreeMap::from([(living, 2), (dead, 0)]));
    let all = node.dataplane.as_ref().unwrap().backends(Some(&[vip]));
    let told = |address| {
        let found = all.iter().find(|backend| backend.endpoint.address == address).unwrap();
        (found.failures, found.aside_seconds.is_some())
    };
    assert_eq!((told(living), told(dead)), ((0, false), (1, true)));
    assert!(
        all.iter().filter_map(|backend| backend.aside_seconds).all(|seconds| (20..=31).contains(&seconds))
    );
}

#[test]
fn backends_say_who_lists_them_and_how_many_sockets_count() {
    let mut node = Node::open();
    let place = PLACES[0];
    let endpoints = NAMES.map(|name| serve_tcp(at(place.localhost, 0), name));
    let [first, second] = [80, 81].map(|port| frontend(place.cluster_ip, port, Tcp));
    node.lead(first, &Target { scheduler: Scheduler::LeastConnection, ..Target::all(&endpoints[..1]) });
    node.set(second, &endpoints);
    let open = TcpStream::connect(at(place.cluster_ip, 80)).unwrap();
    let told = |node: &Node, of: Option<&[Frontend]>| -> Vec<(SocketAddr, Vec<Frontend>, i32, bool)> {
        let all = node.dataplane.as_ref().unwrap().backends(of);
        all.into_iter().map(|b| (b.endpoint.address, b.listed, b.connections, b.counts)).collect()
    };
    let one = (endpoints[0], vec![first, second], 1, true);
    assert_eq!(told(&node, Some(&[first])), std::slice::from_ref(&one));
    let all = told(&node, None);
    assert_eq!(all.len(), 3);
    assert!(all.contains(&one) && all.contains(&(endpoints[2], vec![second], 0, false)), "{all:?}");
    drop(open);
    assert_eq!(told(&node, Some(&[first]))[0].2, 0);
}
