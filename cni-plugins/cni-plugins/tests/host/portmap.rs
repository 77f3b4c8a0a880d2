//! `portmap` after `bridge`: who reaches a published port.

mod upkeep;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use serde_json::{Value, json};

use super::{
    node::{Call, Container, Node, PACKET_LIMIT, nft},
    outside::{HOST, OUTSIDE, Outside},
};

const HOST_PORT: u16 = 8080;
const INSIDE_PORT: u16 = 80;

fn run(plugin: &str, verb: &str, config: &Value, container: &Container) -> Value {
    let answer = Call::new(verb, config, container).run(plugin);
    answer.unwrap_or_else(|error| panic!("{plugin} {verb}: {error}"))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}

/// A container on the bridge, with `portmap`'s configuration for it.
struct Published<'a> {
    container: &'a Container,
    bridge: Value,
    portmap: Value,
    addresses: [IpAddr; 2],
}

impl<'a> Published<'a> {
    /// `keys` go over the configuration, which publishes a TCP and a UDP port.
    fn new(node: &Node, container: &'a Container, version: &str, keys: Value) -> Self {
        let mut bridge = node.config(version);
        // Where a bridge's frames pass the packet filter too (br_netfilter), they turn round in the bridge.
        bridge["hairpinMode"] = json!(true);
        let result = run("bridge", "ADD", &bridge, container);
        let mapping = |protocol: &str| json!({"hostPort": HOST_PORT, "containerPort": INSIDE_PORT, "protocol": protocol});
        let mut portmap = json!({
            "cniVersion": version, "name": "pods", "type": "portmap", "backend": "nftables",
            "runtimeConfig": {"portMappings": [mapping("tcp"), mapping("udp")]}, "prevResult": result,
        });
        for (key, value) in keys.as_object().into_iter().flatten() {
            portmap[key] = value.clone();
        }
        let ips = |index: usize| {
            let text = if version < "0.3.0" {
                &result[["ip4", "ip6"][index]]["ip"]
            } else {
                &result["ips"][index]["address"]
            };
            address(text.as_str().and_then(|text| text.split('/').next()).expect("an address"))
        };
        let published = Self { container, bridge, addresses: [ips(0), ips(1)], portmap };
        assert_eq!(run("portmap", "ADD", &published.portmap, container), result);
        published
    }

    /// The container's own network, as DEL gets it: without a result.
    fn withdraw(&mut self) {
        self.portmap.as_object_mut().expect("an object").remove("prevResult");
        run("portmap", "DEL", &self.portmap, self.container);
    }

    fn detach(mut self) {
        self.withdraw();
        run("bridge", "DEL", &self.bridge, self.container);
    }

    /// Sends a greeting over TCP and over UDP to a published port, and returns who sent it as the container sees it.
    fn hears(&self, from: Option<&Container>, to: &str, host_port: u16) -> IpAddr {
        let to = SocketAddr::new(address(to), host_port);
        let own = self.addresses[usize::from(to.is_ipv6())];
        let at = SocketAddr::new(own, INSIDE_PORT);
        let serve = || (TcpListener::bind(at).expect("a listener"), UdpSocket::bind(at).expect("a socket"));
        let (listener, datagrams) = self.container.netns.run(serve).expect("a thread");
        listener.set_nonblocking(true).expect("a switch");
        let mut client = connect(from, to).unwrap_or_else(|error| panic!("{to}: {error}"));
        let (mut served, peer) = harness::wait::until("the connection", PACKET_LIMIT, || {
            listener.accept().map_err(|error| error.to_string())
        });
        client.write_all(b"hello").expect("a write");
        served.set_nonblocking(false).expect("a switch");
        served.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
        let mut greeting = [0; 5];
        served.read_exact(&mut greeting).expect("the greeting");

        datagrams.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
        let client = within(from, || {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            let socket = UdpSocket::bind((any, 0)).expect("a socket");
            socket.connect(to).expect("a way");
            socket
        });
        client.send(b"hello").expect("a datagram");
        let (length, sender) = datagrams.recv_from(&mut greeting).expect("the datagram");
        assert_eq!((length, sender.ip()), (5, peer.ip()));
        datagrams.send_to(b"bye", sender).expect("an answer");
        client.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
        assert_eq!(client.recv(&mut greeting).expect("the answer, from where it was sent to"), 3);
        peer.ip().to_canonical()
    }
}

fn within<T: Send>(netns: Option<&Container>, work: impl FnOnce() -> T + Send) -> T {
    match netns {
        Some(container) => container.netns.run(work).expect("a thread"),
        None => work(),
    }
}

fn connect(from: Option<&Container>, to: SocketAddr) -> std::io::Result<TcpStream> {
    within(from, || TcpStream::connect_timeout(&to, PACKET_LIMIT))
}

/// The host answers by itself: nobody listens.
fn is_refused(from: Option<&Container>, to: &str, port: u16) {
    let refused = connect(from, SocketAddr::new(address(to), port)).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
}

/// The rules of containers.
fn rules() -> Vec<String> {
    let text = nft(&["list", "ruleset"]);
    let lines = text.lines().map(str::trim).filter(|line| line.contains(" comment "));
    lines.map(str::to_owned).collect()
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    let node = Node::new();
    let outside = Outside::new();
    let a = Container::new("a");
    let published = Published::new(&node, &a, "1.0.0", json!({}));
    // From the host itself; the loopback address would mean the container there.
    assert_eq!(published.hears(None, "127.0.0.1", HOST_PORT), address("10.97.0.1"));
    for (host, other) in HOST.into_iter().zip(OUTSIDE) {
        assert_eq!(published.hears(None, host, HOST_PORT), address(host));
        assert_eq!(published.hears(Some(&outside.machine), host, HOST_PORT), address(other));
    }
    // From the container to itself, by way of the host.
    assert_eq!(published.hears(Some(&a), HOST[0], HOST_PORT), address("10.97.0.1"));
    assert_eq!(published.hears(Some(&a), HOST[1], HOST_PORT), address("fd97::1"));
    published.detach();
    is_refused(Some(&outside.machine), HOST[0], HOST_PORT);
}

#[test]
fn an_address_of_the_host_bounds_a_mapping() {
    let node = Node::new();
    let outside = Outside::new();
    let a = Container::new("a");
    let mapping = |port: u16, ip: &str| json!({"hostPort": port, "containerPort": INSIDE_PORT, "protocol": "tcp", "hostIP": ip});
    let udp = |port: u16, ip: &str| json!({"hostPort": port, "containerPort": INSIDE_PORT, "protocol": "udp", "hostIP": ip});
    let mappings = json!([
        mapping(81, HOST[0]),
        udp(81, HOST[0]),
        mapping(82, "127.0.0.1"),
        udp(82, "127.0.0.1"),
        mapping(83, HOST[1]),
        udp(83, HOST[1]),
        mapping(84, "0.0.0.0"),
        udp(84, "0.0.0.0"),
        mapping(85, "::"),
        udp(85, "::"),
    ]);
    let published = Published::new(&node, &a, "1.0.0", json!({"runtimeConfig": {"portMappings": mappings}}));
    let other = Some(&outside.machine);
    published.hears(other, HOST[0], 81);
    is_refused(None, "127.0.0.1", 81);
    is_refused(other, HOST[1], 81);
    published.hears(None, "127.0.0.1", 82);
    is_refused(other, HOST[0], 82);
    published.hears(other, HOST[1], 83);
    is_refused(other, HOST[0], 83);
    published.hears(other, HOST[0], 84);
    published.hears(None, "127.0.0.1", 84);
    is_refused(other, HOST[1], 84);
    published.hears(other, HOST[1], 85);
    is_refused(other, HOST[0], 85);
    published.detach();
}

#[test]
fn containers_keep_their_ports_when_others_go() {
    let node = Node::new();
    let outside = Outside::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let mut of_a = Published::new(&node, &a, "1.0.0", json!({}));
    let mapping =
        |protocol: &str| json!({"hostPort": 9090, "containerPort": INSIDE_PORT, "protocol": protocol});
    let mappings = json!({"portMappings": [mapping("tcp"), mapping("udp")]});
    let shared = || {
        ["hostports_all", "prerouting", "output"]
            .map(|chain| nft(&["-a", "list", "chain", "ip", "cni_hostport", chain]))
    };
    let before = shared();
    let of_b = Published::new(&node, &b, "1.0.0", json!({"runtimeConfig": mappings}));
    // With their numbers: what is right already is not made anew.
    assert_eq!(shared(), before);
    let other = Some(&outside.machine);
    of_a.hears(other, HOST[0], HOST_PORT);
    of_b.hears(other, HOST[0], 9090);
    for _ in 0..2 {
        of_a.withdraw();
        is_refused(other, HOST[0], HOST_PORT);
        of_b.hears(other, HOST[0], 9090);
    }
    assert!(
        !rules().is_empty() && rules().iter().all(|rule| rule.ends_with(" comment \"b\"")),
        "{:?}",
        rules()
    );
    of_b.detach();
    of_a.detach();
    assert_eq!(rules(), Vec::<String>::new());
}

#[test]
fn without_masquerading_only_others_are_answered() {
    let node = Node::new();
    let outside = Outside::new();
    let a = Container::new("a");
    let published = Published::new(&node, &a, "1.0.0", json!({"snat": false}));
    published.hears(Some(&outside.machine), HOST[0], HOST_PORT);
    assert!(!nft(&["list", "ruleset"]).contains("masquerad"));
    let switch = std::fs::read_to_string("/proc/sys/net/ipv4/conf/cni0/route_localnet").expect("the switch");
    assert_eq!(switch.trim(), "0");
    published.detach();
}

#[test]
fn masquerading_all_serves_neighbours_too() {
    let node = Node::new();
    let _outside = Outside::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let published = Published::new(&node, &a, "1.0.0", json!({"masqAll": true}));
    let bridge = node.config("1.0.0");
    run("bridge", "ADD", &bridge, &b);
    assert_eq!(published.hears(Some(&b), HOST[0], HOST_PORT), address("10.97.0.1"));
    assert_eq!(published.hears(Some(&b), HOST[1], HOST_PORT), address("fd97::1"));
    let everybody = rules().into_iter().filter(|rule| rule.contains("masquerade")).collect::<Vec<_>>();
    assert_eq!(
        everybody,
        [
            "ip saddr 0.0.0.0/0 ip daddr 10.97.0.2 masquerade comment \"a\"",
            "ip6 saddr ::/0 ip6 daddr fd97::2 masquerade comment \"a\"",
        ]
    );
    run("bridge", "DEL", &bridge, &b);
    published.detach();
}

#[test]
fn conditions_bound_who_reaches_a_port() {
    let node = Node::new();
    let outside = Outside::new();
    let a = Container::new("a");
    let keys = json!({"backend": "iptables", "conditionsV4": ["-s", OUTSIDE[0]], "conditionsV6": ["!", "-s", OUTSIDE[1]]});
    let published = Published::new(&node, &a, "1.0.0", keys);
    published.hears(Some(&outside.machine), HOST[0], HOST_PORT);
    is_refused(None, HOST[0], HOST_PORT);
    is_refused(Some(&outside.machine), HOST[1], HOST_PORT);
    published.hears(None, HOST[1], HOST_PORT);
    published.detach();
}

#[test]
fn who_sent_to_the_port_before_reaches_the_container() {
    let node = Node::new();
    let outside = Outside::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    // From the first mapping on, the kernel remembers flows.
    let other = json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "udp"}]});
    let first = Published::new(&node, &a, "1.0.0", json!({"runtimeConfig": other}));
    for (host, any) in HOST.into_iter().zip(["0.0.0.0", "::"]) {
        let before = UdpSocket::bind((any, HOST_PORT)).expect("a socket");
        before.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
        let sender = outside.machine.netns.run(|| UdpSocket::bind((any, 4321)).expect("a socket"));
        let sender = sender.expect("a thread");
        let to = SocketAddr::new(address(host), HOST_PORT);
        sender.send_to(b"hello", to).expect("a datagram");
        let mut text = [0; 5];
        before.recv(&mut text).expect("the host has it");

        let published = Published::new(&node, &b, "1.0.0", json!({}));
        let at = SocketAddr::new(published.addresses[usize::from(to.is_ipv6())], INSIDE_PORT);
        let after = b.netns.run(|| UdpSocket::bind(at).expect("a socket")).expect("a thread");
        after.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
        sender.send_to(b"again", to).expect("a datagram");
        after.recv(&mut text).expect("the container has it");
        assert_eq!(&text, b"again");
        published.detach();
    }
    first.detach();
}
