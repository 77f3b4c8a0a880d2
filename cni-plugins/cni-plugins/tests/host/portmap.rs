//! `portmap` after `bridge`: who reaches a published port, and what is left of it.

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
    let of_b = Published::new(&node, &b, "1.0.0", json!({"runtimeConfig": mappings}));
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
fn the_tables_are_the_references() {
    let node = Node::new();
    let a = Container::new("a");
    let mapping = |host: u16, inside: u16, protocol: &str, ip: &str| json!({"hostPort": host, "containerPort": inside, "protocol": protocol, "hostIP": ip});
    let mappings = json!({"portMappings": [
        mapping(8080, 80, "tcp", ""), mapping(8080, 81, "udp", ""), mapping(8088, 88, "sctp", ""),
        mapping(8083, 83, "tcp", "192.168.0.2"), mapping(8084, 84, "tcp", "0.0.0.0"),
        mapping(8085, 85, "tcp", "2001:db8:a::1"), mapping(8086, 86, "tcp", "::"),
    ]});
    let keys = json!({"runtimeConfig": mappings, "conditionsV4": ["ip", "saddr", "!=", "10.5.0.0/16"]});
    let published = Published::new(&node, &a, "1.0.0", keys);
    let of_family = |family: &str| nft(&["list", "table", family, "cni_hostport"]);
    assert_eq!(
        of_family("ip"),
        "table ip cni_hostport {
\tcomment \"CNI portmap plugin\"
\tchain hostports {
\t\ttcp dport 8080 dnat to 10.97.0.2:80 comment \"a\"
\t\tudp dport 8080 dnat to 10.97.0.2:81 comment \"a\"
\t\tsctp dport 8088 dnat to 10.97.0.2:88 comment \"a\"
\t\tip daddr 192.168.0.2 tcp dport 8083 dnat to 10.97.0.2:83 comment \"a\"
\t\ttcp dport 8084 dnat to 10.97.0.2:84 comment \"a\"
\t}

\tchain hostip_hostports {
\t}

\tchain hostports_all {
\t\tjump hostip_hostports
\t\tjump hostports
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tip saddr != 10.5.0.0/16 fib daddr type local jump hostports_all
\t}

\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tip saddr != 10.5.0.0/16 fib daddr type local jump hostports_all
\t}

\tchain masquerading {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr 10.97.0.2 ip daddr 10.97.0.2 masquerade comment \"a\"
\t\tip saddr 127.0.0.1 ip daddr 10.97.0.2 masquerade comment \"a\"
\t}
}
"
    );
    assert_eq!(
        of_family("ip6"),
        "table ip6 cni_hostport {
\tcomment \"CNI portmap plugin\"
\tchain hostports {
\t\ttcp dport 8080 dnat to [fd97::2]:80 comment \"a\"
\t\tudp dport 8080 dnat to [fd97::2]:81 comment \"a\"
\t\tsctp dport 8088 dnat to [fd97::2]:88 comment \"a\"
\t\tip6 daddr 2001:db8:a::1 tcp dport 8085 dnat to [fd97::2]:85 comment \"a\"
\t\ttcp dport 8086 dnat to [fd97::2]:86 comment \"a\"
\t}

\tchain hostip_hostports {
\t}

\tchain hostports_all {
\t\tjump hostip_hostports
\t\tjump hostports
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tfib daddr type local jump hostports_all
\t}

\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tfib daddr type local jump hostports_all
\t}

\tchain masquerading {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip6 saddr fd97::2 ip6 daddr fd97::2 masquerade comment \"a\"
\t}
}
"
    );
    let switch = std::fs::read_to_string("/proc/sys/net/ipv4/conf/cni0/route_localnet").expect("the switch");
    assert_eq!(switch.trim(), "1");
    published.detach();
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

#[test]
fn every_version_passes_its_result_on() {
    let node = Node::new();
    let a = Container::new("a");
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let published = Published::new(&node, &a, version, json!({}));
        assert_eq!(rules().len(), 7, "{version}: {:?}", rules());
        if version >= "0.4.0" {
            assert_eq!(run("portmap", "CHECK", &published.portmap, &a), Value::Null);
        }
        if version >= "1.1.0" {
            assert_eq!(run("portmap", "STATUS", &published.portmap, &a), Value::Null);
        }
        published.detach();
        assert_eq!(rules(), Vec::<String>::new(), "{version}");
    }
}

#[test]
fn without_mappings_nothing_is_made() {
    let node = Node::new();
    let a = Container::new("a");
    let published = Published::new(&node, &a, "1.0.0", json!({"runtimeConfig": {}}));
    assert_eq!(nft(&["list", "ruleset"]), "");
    assert_eq!(run("portmap", "CHECK", &published.portmap, &a), Value::Null);
    let mut alone = published.portmap.clone();
    alone["prevResult"] = Value::Null;
    let message = |verb: &str, config: &Value| {
        let error = Call::new(verb, config, &a).run("portmap").expect_err("no result");
        (error["code"].clone(), error["msg"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(message("ADD", &alone), (json!(999), "must be called as chained plugin".to_owned()));
    assert_eq!(message("CHECK", &alone), (json!(999), "Required prevResult missing".to_owned()));
    alone["markMasqBit"] = json!(40);
    assert_eq!(message("ADD", &alone).1, "failed to parse config: MasqMarkBit must be between 0 and 31");
    assert_eq!(run("portmap", "DEL", &alone, &a), Value::Null);
    published.detach();
}

#[test]
fn check_counts_the_rules() {
    let node = Node::new();
    let a = Container::new("a");
    let published = Published::new(&node, &a, "1.0.0", json!({}));
    let message = || {
        let error = Call::new("CHECK", &published.portmap, &a).run("portmap").expect_err("a rule is missing");
        error["msg"].as_str().unwrap_or_default().to_owned()
    };
    nft(&["flush", "chain", "ip6", "cni_hostport", "masquerading"]);
    assert_eq!(message(), "missing hostport rules in \"masquerading\" chain");
    nft(&["flush", "chain", "ip", "cni_hostport", "hostports"]);
    assert_eq!(message(), "missing hostport rules in \"hostports\" chain");
    nft(&["flush", "ruleset"]);
    assert_eq!(message(), "missing hostport rules in \"hostports\" chain");
    published.detach();
}

#[test]
fn gc_deletes_lost_ports_of_its_network_only() {
    let node = Node::new();
    let containers = ["a", "b", "c"].map(Container::new);
    let [a, b, c] = &containers;
    let mut of_a = Published::new(&node, a, "1.1.0", json!({}));
    let of_b = Published::new(&node, b, "1.1.0", json!({}));
    let of_c = Published::new(&node, c, "1.1.0", json!({"name": "other"}));
    // As the reference plugin writes it: of which network cannot be told.
    nft(&["add rule ip cni_hostport hostports tcp dport 7 dnat to 10.97.0.7:7 comment \"z\""]);
    of_a.portmap["cni.dev/valid-attachments"] =
        json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "a", "ifname": "eth1"}]);
    run("portmap", "GC", &of_a.portmap, a);
    let count =
        |id: &str| rules().iter().filter(|rule| rule.ends_with(&format!(" comment \"{id}\""))).count();
    assert_eq!(["a", "b", "c", "z"].map(count), [0, 7, 7, 1]);
    // Another network's attachment of the same container is not taken along.
    let mut elsewhere = of_c.portmap.clone();
    elsewhere["name"] = json!("pods");
    run("portmap", "DEL", &elsewhere, c);
    assert_eq!(count("c"), 7);
    let reference = Call { container_id: "z", ..Call::new("DEL", &of_a.portmap, a) };
    assert_eq!(reference.run("portmap"), Ok(Value::Null));
    assert_eq!(count("z"), 0);
    for published in [of_a, of_b, of_c] {
        published.detach();
    }
    assert_eq!(rules(), Vec::<String>::new());
}

#[test]
fn many_at_once_keep_to_their_own_ports() {
    let node = Node::new();
    let containers: Vec<Container> = (0..12).map(|index| Container::new(&format!("c{index}"))).collect();
    let node = &node;
    let published: Vec<Published<'_>> = std::thread::scope(|scope| {
        let publish = |container| scope.spawn(move || Published::new(node, container, "1.1.0", json!({})));
        let adding: Vec<_> = containers.iter().map(publish).collect();
        adding.into_iter().map(|thread| thread.join().expect("an attachment")).collect()
    });
    assert_eq!(rules().len(), 7 * containers.len());
    let mut collecting = published[0].portmap.clone();
    collecting["cni.dev/valid-attachments"] = json!([]);
    std::thread::scope(|scope| {
        scope.spawn(|| run("portmap", "GC", &collecting, &containers[0]));
        for published in published {
            scope.spawn(|| published.detach());
        }
    });
    assert_eq!(rules(), Vec::<String>::new());
}
