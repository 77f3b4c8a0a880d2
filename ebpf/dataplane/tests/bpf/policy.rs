//! NetworkPolicy at a pod's link: real packets between the pod and a host outside, and rows of packets for what is hard to send.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use aya::maps::{Array, HashMap, Map, MapData};
use dataplane::policy::{Change, Isolation, PodLink, PortRange, Ports, Protocol, RulesetId};
use dataplane::{Dataplane, PolicyError, UplinkHook, wait_for_readers};
use dataplane_abi::{Allowed, AllowedKey, Config, counter, map, policy};
use linux::netlink::Netlink;
use linux::netns::{self, Netns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};

use crate::node::{
    LIMIT, Links, Node, PLACES, Place, V4, V6, ask_long, ask_tcp, ask_udp, at, inside, ip, serve_tcp,
    serve_udp,
};
use crate::uplink::wait_until;

const HTTP: u16 = 8080;

pub fn ruleset(number: u32) -> RulesetId {
    RulesetId(NonZeroU32::new(number).unwrap())
}

pub fn port(protocol: Protocol, port: u16) -> Ports {
    Ports::new([PortRange { protocol, first: port, last: port }])
}

pub fn allow(ruleset: RulesetId, peer: IpAddr, ports: Ports) -> Change {
    Change::Allow { ruleset, network: peer.into(), ports }
}

/// As from a pod of another node.
fn links() -> Links {
    let links = Links::make();
    ip("-n outside route add 10.244.0.0/24 via 192.0.2.1");
    ip("-n outside route add fd00:244::/64 via 2001:db8::1");
    links
}

/// The node's end of the link of the pod.
pub fn pod_link() -> PodLink {
    let here = Netns::current().unwrap();
    let link = netns::in_netns_async(here.as_fd(), || async { Netlink::open().unwrap().link("pod0").await });
    let link = link.unwrap().unwrap();
    assert!(link.peer_netns.is_some());
    PodLink { index: link.index, name: link.name, netns: link.peer_netns }
}

fn isolated(ingress: Option<u32>, egress: Option<u32>) -> Isolation {
    Isolation { ingress: ingress.map(ruleset), egress: egress.map(ruleset) }
}

pub trait Policed {
    fn change(&mut self, changes: &[Change]);
    fn isolate(&mut self, ingress: Option<u32>, egress: Option<u32>);
    fn denied(&self) -> (u64, u64);
}

impl Policed for Node {
    fn change(&mut self, changes: &[Change]) {
        self.dataplane.as_mut().unwrap().change_policies(changes).unwrap();
    }

    fn isolate(&mut self, ingress: Option<u32>, egress: Option<u32>) {
        self.dataplane.as_mut().unwrap().isolate(&pod_link(), isolated(ingress, egress)).unwrap();
    }

    /// On the way in to the pod, and out.
    fn denied(&self) -> (u64, u64) {
        (self.counter(counter::POLICY_INGRESS_DENIED), self.counter(counter::POLICY_EGRESS_DENIED))
    }
}

/// Asks from a namespace by TCP and expects that the packets end at the pod's link.
fn refused_tcp(node: &Node, from: &'static str, address: SocketAddr) {
    let before = node.denied();
    let pending = inside(from, move || {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
        let begun = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address));
        assert_eq!(begun.unwrap_err(), nix::errno::Errno::EINPROGRESS);
        socket
    });
    let socket = pending.join().unwrap();
    wait_until(|| node.denied() != before);
    drop(socket);
}

/// Sends a datagram from a namespace and expects that it ends at the pod's link.
fn refused_udp(node: &Node, from: &'static str, address: SocketAddr) {
    let before = node.denied();
    let any = if address.is_ipv4() { V4.any } else { V6.any };
    inside(from, move || UdpSocket::bind(at(any, 0)).unwrap().send_to(b"?", address))
        .join()
        .unwrap()
        .unwrap();
    wait_until(|| node.denied() != before);
}

fn tcp_from(from: &'static str, address: SocketAddr) -> std::io::Result<String> {
    inside(from, move || ask_tcp(address)).join().unwrap()
}

fn udp_from(from: &'static str, address: SocketAddr) -> std::io::Result<String> {
    let any = if address.is_ipv4() { V4.any } else { V6.any };
    let asked = inside(from, move || ask_udp(&UdpSocket::bind(at(any, 0)).unwrap(), address));
    Ok(asked.join().unwrap()?.0)
}

fn ping_from(from: &'static str, address: IpAddr) -> bool {
    let ping =
        move || Command::new("busybox").args(["ping", "-c", "1", "-W", "1", &address.to_string()]).output();
    inside(from, ping).join().unwrap().unwrap().status.success()
}

/// TCP and UDP servers on both sides.
fn serve_all(place: Place) {
    let (pod, outside) = (place.pod, place.outside);
    for port in [HTTP, 8081] {
        inside("pod", move || (serve_tcp(at(pod, port), "pod"), serve_udp(at(pod, port), "pod")))
            .join()
            .unwrap();
        inside("outside", move || (serve_tcp(at(outside, port), "out"), serve_udp(at(outside, port), "out")))
            .join()
            .unwrap();
    }
}

#[test]
fn only_what_a_rule_allows_comes_in() {
    only_what_a_rule_allows_comes_in_by(UplinkHook::Newest);
}

#[test]
fn only_what_a_rule_allows_comes_in_by_a_filter() {
    only_what_a_rule_allows_comes_in_by(UplinkHook::Clsact);
}

fn only_what_a_rule_allows_comes_in_by(hook: UplinkHook) {
    let _links = links();
    let mut node = Node::with_hook(hook);
    for place in PLACES {
        serve_all(place);
        let one = ruleset(1);
        node.change(&[allow(one, place.outside, port(Protocol::Tcp, HTTP))]);
        node.isolate(Some(1), None);

        let pod = |port| at(place.pod, port);
        assert_eq!(tcp_from("outside", pod(HTTP)).unwrap(), format!("pod saw {}", place.outside));
        refused_tcp(&node, "outside", pod(8081));
        refused_udp(&node, "outside", pod(HTTP));
        assert!(!ping_from("outside", place.pod));
        // What the pod begins is open, and so are its answers.
        assert!(tcp_from("pod", at(place.outside, HTTP)).is_ok());
        assert!(udp_from("pod", at(place.outside, HTTP)).is_ok());
        assert!(ping_from("pod", place.outside));
        // The node itself may always.
        assert!(ask_tcp(pod(8081)).is_ok());
        assert!(ask_udp(&UdpSocket::bind(at(place.any, 0)).unwrap(), pod(8081)).is_ok());
        assert!(node.denied().1 == 0, "{:?}", node.denied());
        node.change(&[allow(one, place.outside, Ports::All)]);
        assert!(tcp_from("outside", pod(8081)).is_ok() && udp_from("outside", pod(8081)).is_ok());
        assert!(ping_from("outside", place.pod));
        node.isolate(None, None);
        node.change(&[Change::Drop { ruleset: one }]);
        assert!(tcp_from("outside", pod(8081)).is_ok());
    }
    assert_eq!(attached(&node), ["orlop_egress", "orlop_ingress"]);
}

#[test]
fn only_what_a_rule_allows_leaves() {
    let _links = links();
    let mut node = Node::with_uplink();
    for place in PLACES {
        serve_all(place);
        let one = ruleset(1);
        node.change(&[allow(one, place.outside, port(Protocol::Udp, HTTP))]);
        node.isolate(None, Some(1));

        let outside = move |port| at(place.outside, port);
        assert_eq!(udp_from("pod", outside(HTTP)).unwrap(), format!("out saw {}", place.pod));
        // In several fragments, of which only the first has ports.
        let ask = move || ask_long(&UdpSocket::bind(at(place.any, 0)).unwrap(), outside(HTTP));
        assert!(inside("pod", ask).join().unwrap());
        refused_udp(&node, "pod", outside(8081));
        refused_tcp(&node, "pod", outside(HTTP));
        assert!(!ping_from("pod", place.outside));
        // Answers to what others begin.
        assert!(tcp_from("outside", at(place.pod, HTTP)).is_ok());
        assert!(udp_from("outside", at(place.pod, 8081)).is_ok());
        assert!(ping_from("outside", place.pod));
        assert!(ask_tcp(at(place.pod, HTTP)).is_ok());
        assert_eq!(node.denied().0, 0);
        node.isolate(None, None);
        node.change(&[Change::Drop { ruleset: one }]);
        assert!(tcp_from("pod", outside(HTTP)).is_ok());
    }
}

/// Empties the table of known flows, as many other flows would.
fn forget_flows(node: &Node) -> usize {
    let data = MapData::from_pin(node.pins().join(map::ALLOWED)).unwrap();
    let mut flows: HashMap<MapData, [u8; size_of::<AllowedKey>()], [u8; size_of::<Allowed>()]> =
        HashMap::try_from(Map::LruHashMap(data)).unwrap();
    let keys: Vec<_> = flows.keys().collect::<Result<_, _>>().unwrap();
    keys.iter().for_each(|key| flows.remove(key).unwrap());
    keys.len()
}

/// As if all known flows had been silent for long.
fn age_flows(node: &Node) {
    let data = MapData::from_pin(node.pins().join(map::ALLOWED)).unwrap();
    let mut flows: HashMap<MapData, [u8; size_of::<AllowedKey>()], [u8; size_of::<Allowed>()]> =
        HashMap::try_from(Map::LruHashMap(data)).unwrap();
    let all: Vec<_> = flows.iter().collect::<Result<_, _>>().unwrap();
    for (key, value) in all {
        let flow = Allowed::from_bytes(value);
        let aged = Allowed { used: flow.used.wrapping_sub(policy::IDLE_LIMIT as u32 + 2), ..flow };
        flows.insert(key, aged.to_bytes(), 0).unwrap();
    }
}

#[test]
fn a_flow_of_datagrams_that_was_silent_is_over_and_a_connection_is_not() {
    let _links = links();
    let mut node = Node::with_uplink();
    node.isolate(Some(1), None);
    let bind = |namespace, address: IpAddr| {
        inside(namespace, move || UdpSocket::bind(at(address, 0)).unwrap()).join().unwrap()
    };
    let (asker, asked) = (bind("pod", V4.pod), bind("outside", V4.outside));
    let (to_asked, to_asker) = (asked.local_addr().unwrap(), asker.local_addr().unwrap());
    let (mut client, mut server) = connect("pod", "outside", at(V4.outside, 0));
    passes(&mut client, &mut server);
    let answered = || {
        asked.send_to(b"!", to_asker).unwrap();
        asker.set_read_timeout(Some(LIMIT)).unwrap();
        asker.recv(&mut [0; 8]).unwrap();
    };
    asker.send_to(b"?", to_asked).unwrap();
    answered();
    age_flows(&node);
    let before = node.denied();
    asked.send_to(b"!", to_asker).unwrap();
    wait_until(|| node.denied() != before);
    passes(&mut server, &mut client);
    asker.send_to(b"?", to_asked).unwrap();
    answered();
}

/// A connection between two namespaces: the end that began it, and the other one.
fn connect(from: &'static str, to: &'static str, address: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = inside(to, move || TcpListener::bind(address).unwrap()).join().unwrap();
    let bound = listener.local_addr().unwrap();
    let client = inside(from, move || TcpStream::connect_timeout(&bound, LIMIT).unwrap()).join().unwrap();
    let (server, _) = listener.accept().unwrap();
    // Whoever listens goes on to do so.
    std::mem::forget(listener);
    (client, server)
}

fn passes(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"word").unwrap();
    to.set_read_timeout(Some(LIMIT)).unwrap();
    let mut word = [0; 4];
    to.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"word");
}

fn is_stopped(node: &Node, from: &mut TcpStream, to: &mut TcpStream) {
    let before = node.denied();
    from.write_all(b"lost").unwrap();
    wait_until(|| node.denied() != before);
    to.set_nonblocking(true).unwrap();
    assert_eq!(to.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn connections_from_before_a_policy_go_on_if_they_might_begin_now() {
    let _links = links();
    let mut node = Node::with_uplink();
    for (place, protocol) in PLACES.into_iter().zip([1, 3]) {
        let (mut client, mut server) = connect("pod", "outside", at(place.outside, 0));
        let (mut asker, mut asked) = connect("outside", "pod", at(place.pod, 0));
        // The pod may begin everything, and nobody may begin anything with it.
        node.change(&[allow(ruleset(protocol), place.neighbour, Ports::All)]);
        node.isolate(Some(protocol), None);

        passes(&mut server, &mut client);
        passes(&mut client, &mut server);
        is_stopped(&node, &mut asker, &mut asked);
        // Where the table has room for others only.
        assert!(forget_flows(&node) > 0);
        passes(&mut server, &mut client);
        // The other way round.
        let (mut asker, mut asked) = connect_again(&mut node, place);
        node.change(&[allow(ruleset(protocol + 1), place.neighbour, Ports::All)]);
        node.isolate(None, Some(protocol + 1));

        passes(&mut asked, &mut asker);
        passes(&mut asker, &mut asked);
        is_stopped(&node, &mut client, &mut server);
        forget_flows(&node);
        passes(&mut asked, &mut asker);
        node.isolate(None, None);
    }
}

fn connect_again(node: &mut Node, place: Place) -> (TcpStream, TcpStream) {
    node.isolate(None, None);

    connect("outside", "pod", at(place.pod, 0))
}

/// A change that leaves a flow allowed does not disturb it, and one that does not ends it, whichever side speaks next.
#[test]
fn a_change_ends_the_flows_that_it_forbids() {
    let _links = links();
    let mut node = Node::with_uplink();
    let place = V4;
    let (one, two) = (ruleset(1), ruleset(2));
    node.change(&[allow(one, place.outside, Ports::All)]);
    node.isolate(Some(1), None);

    let (mut client, mut server) = connect("outside", "pod", at(place.pod, 0));
    passes(&mut client, &mut server);
    node.change(&[allow(two, place.outside, port(Protocol::Tcp, server.local_addr().unwrap().port()))]);
    node.isolate(Some(2), None);
    node.change(&[Change::Drop { ruleset: one }]);
    wait_for_readers().unwrap();
    node.dataplane.as_mut().unwrap().release_policies().unwrap();
    passes(&mut server, &mut client);
    passes(&mut client, &mut server);
    assert_eq!(node.denied(), (0, 0));
    node.change(&[Change::Forget { ruleset: two, network: place.outside.into() }]);
    is_stopped(&node, &mut server, &mut client);
    assert_eq!(node.denied().0, 0, "the answer itself is refused");
    is_stopped(&node, &mut client, &mut server);
}

/// Which judgement of a flow that goes on is still good.
fn generation(node: &Node) -> u32 {
    let data = MapData::from_pin(node.pins().join(map::CONFIG)).unwrap();
    let config: Array<MapData, [u8; size_of::<Config>()]> = Array::try_from(Map::Array(data)).unwrap();
    Config::from_bytes(config.get(&0, 0).unwrap()).policy_generation
}

#[test]
fn flows_are_judged_again_for_policies_and_the_nodes_own_addresses_alone() {
    harness::private_host::require();
    let mut node = Node::open();
    let mut last = generation(&node);
    let mut judges_again = |node: &Node| std::mem::replace(&mut last, generation(node)) != last;
    let dataplane = |node: &mut Node, work: fn(&mut Dataplane) -> Result<(), PolicyError>| {
        work(node.dataplane.as_mut().unwrap()).unwrap();
    };
    let one = ruleset(1);
    node.change(&[allow(one, V4.outside, port(Protocol::Tcp, 80))]);
    assert!(judges_again(&node));
    dataplane(&mut node, |dataplane| dataplane.set_node_addresses(&[V4.node]));
    assert!(judges_again(&node));
    // A list of ports is retired.
    node.change(&[allow(one, V4.outside, Ports::All)]);
    assert!(judges_again(&node));
    dataplane(&mut node, |dataplane| {
        wait_for_readers().unwrap();
        assert!(dataplane.has_retired_policies());
        dataplane.release_policies()
    });
    dataplane(&mut node, |dataplane| dataplane.set_peers(&[V4.neighbour, V6.neighbour]));
    assert!(!judges_again(&node), "other nodes came");
    dataplane(&mut node, |dataplane| dataplane.set_peers(&[V6.neighbour]));
    dataplane(&mut node, |dataplane| dataplane.set_peers(&[]));
    assert!(!judges_again(&node), "other nodes went");
    node.change(&[Change::Forget { ruleset: one, network: V4.outside.into() }]);
    assert!(judges_again(&node));
}

#[test]
fn refusals_reach_whom_they_concern() {
    let _links = links();
    let mut node = Node::with_uplink();
    for place in PLACES {
        // Nobody serves there: the other side says so by an ICMP error, which no rule names.
        let one = ruleset(1);
        node.change(&[allow(one, place.outside, port(Protocol::Udp, 9))]);
        node.isolate(Some(1), Some(1));

        for (from, to) in [("pod", place.outside), ("outside", place.pod)] {
            let refused = inside(from, move || {
                let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
                socket.set_read_timeout(Some(LIMIT)).unwrap();
                socket.connect(at(to, 9)).unwrap();
                socket.send(b"?").unwrap();
                socket.recv(&mut [0; 8]).unwrap_err().kind()
            });
            assert_eq!(refused.join().unwrap(), ErrorKind::ConnectionRefused, "{from}");
        }
        node.isolate(None, None);
        node.change(&[Change::Drop { ruleset: one }]);
    }
}

#[test]
fn policies_hold_while_nobody_works_on_them() {
    policies_hold_while_nobody_works_on_them_by(UplinkHook::Newest);
}

#[test]
fn policies_hold_while_nobody_works_on_them_by_a_filter() {
    policies_hold_while_nobody_works_on_them_by(UplinkHook::Clsact);
}

fn policies_hold_while_nobody_works_on_them_by(hook: UplinkHook) {
    let _links = links();
    let mut node = Node::with_hook(hook);
    serve_all(V4);
    let pod = at(V4.pod, HTTP);
    node.change(&[allow(ruleset(5), V4.neighbour, Ports::All)]);
    node.isolate(Some(5), None);

    refused_tcp(&node, "outside", pod);
    node.crash();
    let silent = inside("outside", move || {
        TcpStream::connect_timeout(&pod, std::time::Duration::from_millis(300)).unwrap_err().kind()
    });
    assert_eq!(silent.join().unwrap(), ErrorKind::TimedOut);
    node.reopen();
    refused_tcp(&node, "outside", pod);
    assert_eq!(node.dataplane.as_ref().unwrap().first_ruleset(), ruleset(6));
    // The new process gets to know what is wanted, and takes away the rest.
    node.change(&[allow(ruleset(6), V4.outside, Ports::All)]);
    node.isolate(Some(6), None);

    assert!(tcp_from("outside", pod).is_ok());
    let dataplane = node.dataplane.as_mut().unwrap();
    dataplane.retain_policies().unwrap();
    wait_for_readers().unwrap();
    dataplane.release_policies().unwrap();
    assert_eq!(attached(&node).len(), 4);
    assert_eq!(elements(&node, map::RULES), 2, "one, and that nothing else of IPv4 is allowed");
    assert!(tcp_from("outside", pod).is_ok());
    node.reopen();
    node.dataplane.as_mut().unwrap().retain_policies().unwrap();
    assert_eq!(attached(&node), ["orlop_egress", "orlop_ingress"]);
    assert!(tcp_from("outside", pod).is_ok());
}

fn attached(node: &Node) -> Vec<&'static str> {
    node.attachments().into_keys().collect()
}

/// As others' tools tell it.
fn elements(node: &Node, map: &str) -> usize {
    let pin = node.pins().join(map);
    let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin).output().unwrap();
    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap().as_array().unwrap().len()
}

#[test]
fn a_link_that_goes_takes_its_programs_with_it() {
    let _links = links();
    let mut node = Node::with_uplink();
    node.change(&[allow(ruleset(1), V4.neighbour, Ports::All)]);
    node.isolate(Some(1), None);
    let gone = pod_link();
    ip("link del pod0");
    // An agent that begins meanwhile.
    node.reopen();
    assert!(!node.pins().join("link_orlop_to_pod_pod0").exists());
    let dataplane = node.dataplane.as_mut().unwrap();
    dataplane.isolate(&gone, Isolation::default()).unwrap();
    dataplane.isolate(&gone, isolated(Some(1), None)).unwrap_err();
    dataplane.retain_policies().unwrap();
    assert_eq!(elements(&node, map::PODS), 0);
    ip("link add pod0 type veth peer name eth0 netns pod");
    node.change(&[allow(ruleset(2), V4.neighbour, Ports::All)]);
    node.isolate(Some(2), None);
    assert_eq!(attached(&node).len(), 4);
}

/// A ruleset that allows nothing has no element by which a later process could find its number.
#[test]
fn numbers_of_rulesets_do_not_come_again() {
    let _links = links();
    let mut node = Node::with_uplink();
    node.change(&[allow(ruleset(3), V4.outside, Ports::All)]);
    node.isolate(Some(3), Some(4));
    node.reopen();
    assert_eq!(node.dataplane.as_ref().unwrap().first_ruleset(), ruleset(5));
}

#[test]
fn a_ruleset_goes_when_no_pod_has_it() {
    let _links = links();
    let mut node = Node::with_uplink();
    serve_all(V4);
    let pod = at(V4.pod, HTTP);
    node.change(&[allow(ruleset(1), V4.outside, Ports::All)]);
    node.isolate(Some(1), None);
    node.change(&[Change::Drop { ruleset: ruleset(1) }]);
    let release = |node: &mut Node| {
        wait_for_readers().unwrap();
        node.dataplane.as_mut().unwrap().release_policies().unwrap();
    };
    release(&mut node);
    assert!(tcp_from("outside", pod).is_ok());
    node.change(&[allow(ruleset(2), V4.outside, Ports::All)]);
    node.isolate(Some(2), None);
    release(&mut node);
    assert!(tcp_from("outside", pod).is_ok());
    assert_eq!(elements(&node, map::RULES), 2);
}

/// The listener may be gone by then, so that the pod looks like the side that began.
#[test]
fn a_flow_that_a_change_forbids_does_not_come_back_the_other_way() {
    let _links = links();
    let mut node = Node::with_uplink();
    node.change(&[allow(ruleset(1), V4.outside, Ports::All)]);
    node.isolate(Some(1), None);
    let listener = inside("pod", || TcpListener::bind(at(V4.pod, 0)).unwrap()).join().unwrap();
    let bound = listener.local_addr().unwrap();
    let mut client = inside("outside", move || TcpStream::connect(bound).unwrap()).join().unwrap();
    let (mut server, _) = listener.accept().unwrap();
    drop(listener);
    passes(&mut client, &mut server);
    node.masquerade();
    node.change(&[Change::Forget { ruleset: ruleset(1), network: V4.outside.into() }]);
    is_stopped(&node, &mut server, &mut client);
    is_stopped(&node, &mut server, &mut client);
    is_stopped(&node, &mut client, &mut server);
}

#[test]
fn what_the_node_began_before_a_policy_goes_on() {
    let _links = links();
    let mut node = Node::with_uplink();
    let dataplane = node.dataplane.as_mut().unwrap();
    dataplane.set_node_addresses(&[V4.gateway]).unwrap();
    assert_eq!(dataplane.rulesets(), [], "nobody takes them for rules that are not wanted");
    let listener = inside("pod", || TcpListener::bind(at(V4.pod, 0)).unwrap()).join().unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    node.isolate(Some(1), Some(1));
    passes(&mut server, &mut client);
    passes(&mut client, &mut server);
    // The other way is open too.
    let node_server = serve_tcp(at(V4.gateway, 0), "node");
    assert!(tcp_from("pod", node_server).is_ok());
    assert_eq!(node.denied(), (0, 0));
}
