//! XDP on uplinks: a packet of a known flow leaves as the programs behind would have made it, any other comes to them as it was. How the program gets onto a
//! link and off again, and a connection that goes by it, or not.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use dataplane::Protocol::{Tcp, Udp};
use dataplane::{Acceleration, Target};
use dataplane_abi::{NatKey, NatValue, counter, map, nat};

use crate::node::{
    LIMIT, Links, NODE, Node, PLACES, POD, Place, V4, ask_tcp, ask_udp, at, await_address, frontend, inside,
    ip, serve_tcp, serve_udp,
};
use crate::offloads;
use crate::packets::{self, ACK, ETHERNET, Frame, HOP_LIMIT, ICMP, NEXT, SCTP, SYN, TCP, UDP, frame, run};

const PASS: u32 = 2;
const TX: u32 = 3;

/// Where frames of these tests go, and where those that leave go.
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The other link's.
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 11];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 9];
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 10];
/// Where IPv4's header has its hops and checksum.
const TTL: usize = ETHERNET + 8;
const SUM: usize = ETHERNET + 10;
const LENGTH: usize = ETHERNET + 2;
const LENGTH_V6: usize = ETHERNET + 4;
/// A frame that begins like this has a VLAN's tag.
const TAG: [u8; 4] = [0x81, 0, 0, 100];

/// A node whose uplink has routes and neighbours, but nobody there.
struct Bench {
    node: Node,
    uplink: u32,
}

impl Bench {
    fn new() -> Self {
        harness::private_host::require();
        for line in [
            "link add uplink type veth peer name other",
            "link set uplink address 02:00:00:00:00:01",
            "link set other address 02:00:00:00:00:0b",
            "link set other up",
            "link set uplink up",
            "addr add 192.0.2.1/24 dev uplink",
            "addr add 2001:db8::1/64 dev uplink nodad",
            // Another link that leads out.
            "addr add 198.51.100.1/24 dev other",
            "addr add 2001:db8:1::1/64 dev other nodad",
            "neigh add 198.51.100.9 lladdr 02:00:00:00:00:0a dev other",
            "neigh add 2001:db8:1::9 lladdr 02:00:00:00:00:0a dev other",
        ] {
            ip(line);
        }
        for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            set_forwarding(forwarding, "1");
        }
        for place in PLACES {
            await_address(&[], place.node);
            ip(&format!("neigh add {} lladdr 02:00:00:00:00:09 dev uplink", place.outside));
            ip(&format!("neigh add {} lladdr 02:00:00:00:00:0a dev uplink", place.neighbour));
            ip(&format!("route add {} via {}", place.remote, place.neighbour));
        }
        let mut node = Node::accelerating(Acceleration::EvenVeth, &["uplink"]);
        node.masquerade();
        Self { node, uplink: index("uplink") }
    }

    fn program(&self, name: &str) -> u64 {
        self.node.attachments()[name].program
    }

    /// The accelerator's verdict on a packet that comes in by the uplink.
    fn accelerate(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        packets::run_as(self.program("orlop_xdp"), packet, &self.context(packet), "1").0
    }

    /// `struct xdp_md`.
    fn context(&self, packet: &[u8]) -> Vec<u8> {
        [0, packet.len() as u32, 0, self.uplink, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    /// What the programs behind make of it, both of them.
    fn lead(&self, packet: &[u8]) -> Vec<u8> {
        let (verdict, led) = run(self.program("orlop_ingress"), packet);
        assert_eq!(verdict, NEXT);
        let (verdict, left) = run(self.program("orlop_egress"), &led);
        assert_eq!(verdict, NEXT);
        left
    }

    /// What both tables hold of flows, and whether their packets were noted since [`Self::forget_times`].
    fn flows(&self) -> BTreeMap<[u8; size_of::<NatKey>()], NatValue> {
        let all = [map::NAT, map::INBOUND].into_iter().flat_map(|map| self.node.known_flows(map));
        all.map(|(key, value)| (key, NatValue { used: u32::from(value.used != 0), ..value })).collect()
    }

    fn forget_times(&self) {
        for map in [map::NAT, map::INBOUND] {
            self.node.rewrite_flows(map, |entry| Some(NatValue { used: 0, state: 0, ..entry }));
        }
    }

    fn forget_flows(&self) {
        for map in [map::NAT, map::INBOUND] {
            self.node.rewrite_flows(map, |_| None);
        }
    }

    /// Whether it is passed as it came, and nothing is noted of it.
    fn passes(&self, name: &str, packet: &[u8]) {
        self.forget_times();
        let (flows, count) = (self.flows(), self.node.counter(counter::ACCELERATED));
        assert_eq!(self.accelerate(packet), (PASS, packet.to_vec()), "{name}");
        assert_eq!(self.flows(), flows, "{name}");
        assert_eq!(self.node.counter(counter::ACCELERATED), count, "{name}");
    }

    /// Whether it leaves as the programs behind would have made it, towards a neighbour, and is noted as they would have.
    fn is_sent_on(&self, name: &str, asks: &Frame, to: [u8; 6]) -> (SocketAddr, SocketAddr) {
        let packet = asks.bytes();
        self.forget_times();
        let expected = routed(&self.lead(&packet), to);
        let flows = self.flows();
        self.forget_times();
        let count = self.node.counter(counter::ACCELERATED);
        let (verdict, left) = self.accelerate(&packet);
        assert_eq!((verdict, &left), (TX, &expected), "{name}");
        assert_eq!(self.flows(), flows, "{name}");
        assert_eq!(self.node.counter(counter::ACCELERATED), count + 1, "{name}");
        asks.read(&left)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        ip("link del uplink");
    }
}

fn index(link: &str) -> u32 {
    std::fs::read_to_string(format!("/sys/class/net/{link}/ifindex")).unwrap().trim().parse().unwrap()
}

fn set_forwarding(of: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{of}"), value).unwrap();
}

/// As it leaves a router by the link it came in by.
fn routed(packet: &[u8], to: [u8; 6]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[..6].copy_from_slice(&to);
    packet[6..12].copy_from_slice(&OWN);
    if packet[ETHERNET] >> 4 == 4 {
        packet[TTL] -= 1;
        mend(&mut packet);
    } else {
        packet[ETHERNET + HOP_LIMIT] -= 1;
    }
    packet
}

/// Makes the checksum of IPv4's header.
fn mend(packet: &mut [u8]) {
    packet[SUM..SUM + 2].fill(0);
    let sum = !packets::sum(&packet[ETHERNET..][..20]);
    packet[SUM..SUM + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A node port's flow from outside to another node's pod, with a packet of each direction.
struct Flow {
    asks: Frame,
    answers: Frame,
}

impl Bench {
    /// Begins it by the programs behind.
    fn begin(&self, protocol: u8, place: &Place, client: u16) -> Flow {
        let begins = frame(protocol, (place.outside, client), (place.node, 30080));
        let (shown, remote) = begins.read(&self.lead(&begins.bytes()));
        assert_eq!((shown.ip(), remote), (place.node, at(place.remote, 8080)));
        let ack = |frame| Frame { tcp_flags: ACK, ..frame };
        let answers = frame(protocol, (remote.ip(), remote.port()), (shown.ip(), shown.port()));
        Flow { asks: ack(begins), answers: ack(answers) }
    }
}

#[test]
fn packets_of_known_flows_leave_at_once_both_ways() {
    let mut bench = Bench::new();
    for place in PLACES {
        for protocol in [Tcp, Udp] {
            bench.node.set(frontend(place.node, 30080, protocol), &[at(place.remote, 8080)]);
        }
        let (client, service) = (at(place.outside, 4001), at(place.node, 30080));
        for (name, protocol, has_checksum) in
            [("TCP", TCP, true), ("UDP", UDP, true), ("UDP without a checksum", UDP, false)]
        {
            let Flow { asks, answers } = bench.begin(protocol, &place, client.port());
            let (asks, answers) = (Frame { has_checksum, ..asks }, Frame { has_checksum, ..answers });
            let went = bench.is_sent_on(name, &asks, ROUTER);
            assert_eq!(went, (answers.destination, answers.source), "{name}");
            let back = bench.is_sent_on(name, &answers, HOST);
            assert_eq!(back, (service, client), "{name}");
            for tcp_flags in [ACK | SYN, 0] {
                bench.is_sent_on(name, &Frame { tcp_flags, ..answers.clone() }, HOST);
                if tcp_flags != ACK | SYN {
                    bench.is_sent_on(name, &Frame { tcp_flags, ..asks.clone() }, ROUTER);
                }
            }
            // The end of a connection is noted, where there is room for that.
            for tcp_flags in [ACK | packets::FIN, packets::RST] {
                for frame in [&asks, &answers].into_iter().filter(|frame| frame.protocol == TCP) {
                    bench.passes(name, &Frame { tcp_flags, ..frame.clone() }.bytes());
                }
            }
        }
        // One that is 0 after all changes is written as its other form, which a datagram without one must not look like.
        let Flow { asks, .. } = bench.begin(UDP, &place, 4002);
        let checksum = ETHERNET + asks.header_length() + 6;
        let led = bench.lead(&asks.bytes());
        let mut packet = asks.bytes();
        let sum = |packet: &[u8]| u16::from_be_bytes([packet[checksum], packet[checksum + 1]]);
        // Raises the payload's last word by what the sum lacks to all ones.
        let last = packet.len() - 2;
        let word = u16::from_be_bytes([packet[last], packet[last + 1]]);
        let raised = packets::sum(&[word.to_be_bytes(), sum(&led).to_be_bytes()].concat());
        packet[last..].copy_from_slice(&raised.to_be_bytes());
        let lower = packets::sum(&[sum(&packet).to_be_bytes(), (!sum(&led)).to_be_bytes()].concat());
        packet[checksum..checksum + 2].copy_from_slice(&lower.to_be_bytes());
        let (verdict, left) = bench.accelerate(&packet);
        assert_eq!((verdict, sum(&left)), (TX, 0xffff));
        asks.read(&left);
        bench.forget_flows();
    }
}

/// Of a backend that the connection was led away from: the programs behind drop it.
#[test]
fn a_late_answer_is_passed() {
    let mut bench = Bench::new();
    for place in PLACES {
        bench.node.set(frontend(place.node, 30080, Tcp), &[at(place.remote, 8080)]);
        let Flow { answers, .. } = bench.begin(TCP, &place, 4001);
        bench.is_sent_on("an answer in time", &answers, HOST);
        bench.node.set(frontend(place.node, 30080, Tcp), &[at(place.neighbour, 8080)]);
        bench.lead(&frame(TCP, (place.outside, 4001), (place.node, 30080)).bytes());
        bench.passes("a late answer", &answers.bytes());
        bench.forget_flows();
    }
}

#[test]
fn what_another_node_answers_itself_keeps_its_clients_address() {
    let mut bench = Bench::new();
    for place in PLACES {
        let (client, endpoint) = (at(place.outside, 4001), at(place.remote, 8080));
        let target = Target { direct_return: true, ..Target::all([endpoint]) };
        for protocol in [Tcp, Udp] {
            bench.node.lead(frontend(place.node, 30080, protocol), &target);
        }
        let asks = |protocol| frame(protocol, (place.outside, 4001), (place.node, 30080));
        bench.lead(&asks(TCP).bytes());
        bench.lead(&asks(UDP).bytes());
        let next = Frame { tcp_flags: ACK, ..asks(TCP) };
        assert_eq!(bench.is_sent_on("the next packet", &next, ROUTER), (client, endpoint));
        bench.passes("a connection that begins again", &asks(TCP).bytes());
        bench.passes("a datagram, which tells the other node", &asks(UDP).bytes());
        // What comes from outside under a pod's address would leave under the node's.
        let target = Target { direct_return: true, ..Target::all([at(place.neighbour, 8080)]) };
        bench.node.lead(frontend(place.node, 30081, Tcp), &target);
        let spoofed = frame(TCP, (place.pod, 4001), (place.node, 30081));
        run(bench.program("orlop_ingress"), &spoofed.bytes());
        bench.passes("a pod's address", &Frame { tcp_flags: ACK, ..spoofed }.bytes());
        let known = frame(TCP, (place.outside, 4001), (place.node, 30081));
        run(bench.program("orlop_ingress"), &known.bytes());
        bench.is_sent_on("another's", &Frame { tcp_flags: ACK, ..known }, ROUTER);
        for missing in [nat::IN, nat::OUT] {
            bench.forget_flows();
            bench.lead(&asks(TCP).bytes());
            bench.node.forget_flows(map::INBOUND, |key| key.direction == missing);
            bench.passes("half a flow", &next.bytes());
        }
        bench.forget_flows();
        // What had no room to tell it goes on under this node's address.
        let long = Frame { fragment: 0x2000, ..asks(UDP) };
        let (_, led) = run(bench.program("orlop_ingress"), &long.bytes());
        let (verdict, left) = run(bench.program("orlop_egress"), &led);
        assert_eq!(verdict, NEXT);
        let source = left[ETHERNET..][..long.header_length()].to_vec();
        assert_ne!(source, led[ETHERNET..][..long.header_length()]);
        let (shown, remote) = bench.is_sent_on("under the node's address", &asks(UDP), ROUTER);
        assert_eq!((shown.ip(), remote), (place.node, endpoint));
        let answers = frame(UDP, (remote.ip(), remote.port()), (shown.ip(), shown.port()));
        let answered = bench.is_sent_on("its answer", &answers, HOST);
        assert_eq!(answered, (at(place.node, 30080), client));
        bench.forget_flows();
    }
}

#[test]
fn whatever_is_not_plain_is_passed_as_it_came() {
    let mut bench = Bench::new();
    for place in PLACES {
        for protocol in [Tcp, Udp] {
            bench.node.set(frontend(place.node, 30080, protocol), &[at(place.remote, 8080)]);
            bench.node.set(frontend(place.node, 30081, protocol), &[at(place.pod, 8080)]);
        }
        let tcp = bench.begin(TCP, &place, 4001);
        let udp = bench.begin(UDP, &place, 4001);
        for Flow { asks, answers } in [&tcp, &udp] {
            bench.is_sent_on("what is plain", asks, ROUTER);
            bench.is_sent_on("what is plain", answers, HOST);
            for plain in [asks, answers] {
                let change = |change: &dyn Fn(&mut Frame)| {
                    let mut frame = plain.clone();
                    change(&mut frame);
                    frame.bytes()
                };
                let rows: [(&str, Vec<u8>); 9] = [
                    ("a fragment", change(&|frame| frame.fragment = 0x2000)),
                    ("a later one", change(&|frame| frame.fragment = 4)),
                    ("options", change(&|frame| frame.options = 1)),
                    ("ICMP", change(&|frame| frame.protocol = ICMP)),
                    ("SCTP", change(&|frame| frame.protocol = SCTP)),
                    ("another port", change(&|frame| frame.source.set_port(9))),
                    ("another address", change(&|frame| frame.source.set_ip(place.neighbour))),
                    ("another port here", change(&|frame| frame.destination.set_port(9))),
                    ("another address here", change(&|frame| frame.destination.set_ip(place.gateway))),
                ];
                for (name, packet) in rows {
                    bench.passes(name, &packet);
                }
                let edit = |edit: &dyn Fn(&mut Vec<u8>)| {
                    let mut packet = plain.bytes();
                    edit(&mut packet);
                    packet
                };
                let hops = if place.node.is_ipv4() { TTL } else { ETHERNET + HOP_LIMIT };
                for last in [0, 1] {
                    bench.passes("no hop left", &edit(&|packet| packet[hops] = last));
                }
                bench.passes("for another host", &edit(&|packet| packet[5] ^= 1));
                bench.passes("for all hosts", &edit(&|packet| packet[..6].fill(0xff)));
                bench.passes("a VLAN's", &edit(&|packet| drop(packet.splice(12..12, TAG))));
                bench.passes("no IP", &edit(&|packet| packet[12] ^= 1));
                bench.passes("another version", &edit(&|packet| packet[ETHERNET] ^= 0x10));
                let ports = ETHERNET + plain.header_length();
                for length in [ETHERNET, ports - 1, ports, ports + 4, ports + 7] {
                    bench.passes("cut off", &edit(&|packet| packet.truncate(length)));
                }
            }
        }
        bench.passes("a connection that begins", &Frame { tcp_flags: SYN, ..tcp.asks.clone() }.bytes());
        bench.passes("one the other way", &Frame { tcp_flags: SYN, ..tcp.answers.clone() }.bytes());
        // An endpoint here, and a pod's own flow.
        let near = Frame { tcp_flags: SYN, ..frame(TCP, (place.outside, 4001), (place.node, 30081)) };
        run(bench.program("orlop_ingress"), &near.bytes());
        bench.passes("to a pod of this node", &Frame { tcp_flags: ACK, ..near }.bytes());
        let out = frame(UDP, (place.pod, 5000), (place.outside, 53));
        let (shown, to) = out.read(&run(bench.program("orlop_egress"), &out.bytes()).1);
        let answer = frame(UDP, (to.ip(), to.port()), (shown.ip(), shown.port()));
        bench.passes("an answer to a pod", &answer.bytes());
        bench.forget_flows();
    }
}

#[test]
fn addresses_of_ipv4_in_ipv6_are_none() {
    let mut bench = Bench::new();
    bench.node.set(frontend(V4.node, 30080, Tcp), &[at(V4.remote, 8080)]);
    let Flow { asks, answers } = bench.begin(TCP, &V4, 4001);
    for plain in [asks, answers] {
        let mapped = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => at(ip.to_ipv6_mapped(), address.port()),
            IpAddr::V6(_) => panic!("{address}"),
        };
        let packet = Frame { source: mapped(plain.source), destination: mapped(plain.destination), ..plain };
        bench.passes("as they stand in the tables", &packet.bytes());
    }
}

/// All four entries of a flow have to be there, and to say what the others do.
#[test]
fn flows_that_are_not_known_whole_are_passed() {
    let mut bench = Bench::new();
    for place in PLACES {
        for protocol in [Tcp, Udp] {
            bench.node.set(frontend(place.node, 30080, protocol), &[at(place.remote, 8080)]);
        }
        let tables = [map::NAT, map::INBOUND];
        let entries = tables.into_iter().flat_map(|map| [(map, nat::IN), (map, nat::OUT)]);
        for (map, direction) in entries {
            for protocol in [TCP, UDP] {
                let Flow { asks, answers } = bench.begin(protocol, &place, 4001);
                bench.node.forget_flows(map, |key| key.direction == direction);
                bench.passes("a question of half a flow", &asks.bytes());
                bench.passes("an answer of half a flow", &answers.bytes());
                bench.forget_flows();
            }
        }
        let Flow { asks, answers } = bench.begin(UDP, &place, 4001);
        let say = |map: &str, change: &dyn Fn(&mut NatValue), name: &str, packets: &[&Frame]| {
            bench.node.rewrite_flows(map, |mut entry| {
                change(&mut entry);
                Some(entry)
            });
            for packet in packets {
                bench.passes(name, &packet.bytes());
            }
            // As it was.
            bench.forget_flows();
        };
        let again = || bench.begin(UDP, &place, 4001);
        say(
            map::INBOUND,
            &|entry| entry.client_port_be = 9,
            "another port of the client",
            &[&asks, &answers],
        );
        let Flow { asks, answers } = again();
        say(
            map::INBOUND,
            &|entry| entry.kind = nat::STRAIGHT,
            "a flow straight to a pod",
            &[&asks, &answers],
        );
        let Flow { asks, .. } = again();
        say(map::INBOUND, &|entry| entry.generation += 1, "another backend of the number", &[&asks]);
        let Flow { asks, .. } = again();
        say(map::INBOUND, &|entry| entry.slot += 1, "another service", &[&asks]);
        let Flow { asks, answers } = again();
        // One half alone, which the other one leads to: what stands where the service's port does, or the client's.
        let other = |entry: &mut NatValue, port: u16| {
            if entry.port_be == port.to_be() {
                entry.port_be ^= 1;
            }
        };
        say(map::INBOUND, &|entry| other(entry, 30080), "another service's answers", &[&asks, &answers]);
        let Flow { asks, answers } = again();
        say(map::NAT, &|entry| other(entry, 4001), "another flow's port", &[&asks, &answers]);
        // A pod at the other end whose own flow has these ends comes first.
        let Flow { answers, .. } = again();
        let led = run(bench.program("orlop_ingress"), &answers.bytes()).1;
        let (source, destination) = answers.read(&led);
        bench.node.copy_flows(map::NAT, |key| {
            let own = NatKey { direction: nat::OUT, ..key_of(source, destination, key.protocol) };
            std::iter::once(own)
        });
        bench.passes("an answer that is a question", &answers.bytes());
        bench.forget_flows();
    }
}

fn key_of(source: SocketAddr, destination: SocketAddr, protocol: u8) -> NatKey {
    let address = |address: IpAddr| match address {
        IpAddr::V4(ip) => dataplane_abi::Address::from_v4(u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => dataplane_abi::Address::from_bytes(ip.octets()),
    };
    NatKey {
        source: address(source.ip()),
        destination: address(destination.ip()),
        source_port_be: source.port().to_be(),
        destination_port_be: destination.port().to_be(),
        protocol,
        direction: nat::OUT,
        reserved: 0,
    }
}

/// A flow of datagrams does not stay with a backend that is no longer the service's: whether it is, the programs behind find out.
#[test]
fn datagrams_of_a_service_that_changed_are_passed_until_their_flow_was_looked_at() {
    let mut bench = Bench::new();
    for place in PLACES {
        let service = frontend(place.node, 30080, Udp);
        let (stays, comes) = (at(place.remote, 8080), at(place.remote, 8081));
        bench.node.set(service, &[stays]);
        let Flow { asks, answers } = bench.begin(UDP, &place, 4001);
        bench.node.set(service, &[stays, comes]);
        bench.passes("another list", &asks.bytes());
        bench.is_sent_on("an answer", &answers, HOST);
        bench.lead(&asks.bytes());
        bench.is_sent_on("the list that was looked at", &asks, ROUTER);
        let among = |ranges: &[&str]| Target {
            sources: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
            ..Target::all([stays, comes])
        };
        bench.node.lead(service, &among(&[&place.outside.to_string()]));
        bench.is_sent_on("a source range", &asks, ROUTER);
        bench.node.lead(service, &among(&[&place.neighbour.to_string()]));
        bench.passes("others' source range", &asks.bytes());
        bench.node.set(service, &[comes]);
        bench.passes("an endpoint that went", &asks.bytes());
        bench.node.dataplane.as_mut().unwrap().remove(service).unwrap();
        bench.passes("a service that went", &asks.bytes());
        bench.forget_flows();
    }
}

#[test]
fn what_the_kernel_would_not_route_back_out_of_the_uplink_is_passed() {
    let mut bench = Bench::new();
    for (place, forwarding) in PLACES.into_iter().zip(["ipv4/conf/uplink", "ipv6/conf/uplink"]) {
        bench.node.set(frontend(place.node, 30080, Tcp), &[at(place.remote, 8080)]);
        let Flow { asks, .. } = bench.begin(TCP, &place, 4001);
        let Place { remote, neighbour, .. } = place;
        let elsewhere = if place.node.is_ipv4() { "198.51.100.9" } else { "2001:db8:1::9" };
        let unknown = if place.node.is_ipv4() { "192.0.2.77" } else { "2001:db8::77" };
        let packet = asks.bytes();
        let route = |way: &str| ip(&format!("route replace {way}"));
        route(&format!("{remote} via {elsewhere}"));
        bench.passes("by another link", &packet);
        let to_that = [&OTHER, &packet[6..]].concat();
        bench.passes("by another link that it is for", &to_that);
        route(&format!("{remote} via {unknown}"));
        bench.passes("to a neighbour that is not known", &packet);
        UdpSocket::bind(at(place.any, 0))
            .unwrap()
            .send_to(b"?", at(unknown.parse::<IpAddr>().unwrap(), 9))
            .unwrap();
        bench.passes("to a neighbour that is asked for", &packet);
        ip(&format!("route del {remote}"));
        bench.passes("without a route", &packet);
        ip(&format!("route add blackhole {remote}"));
        bench.passes("into a black hole", &packet);
        ip(&format!("route del {remote}"));
        ip(&format!("route add {remote} via {neighbour} mtu lock 1280"));
        let mut long = packet.clone();
        let length = if place.node.is_ipv4() { LENGTH } else { LENGTH_V6 };
        long[length..length + 2].copy_from_slice(&1300_u16.to_be_bytes());
        if place.node.is_ipv4() {
            mend(&mut long);
        }
        bench.passes("longer than the route takes", &long);
        bench.is_sent_on("what has room", &asks, ROUTER);
        set_forwarding(&format!("{forwarding}/forwarding"), "0");
        bench.passes("where nothing is forwarded", &packet);
        set_forwarding(&format!("{forwarding}/forwarding"), "1");
        bench.is_sent_on("as before", &asks, ROUTER);
        bench.forget_flows();
    }
}

/// Lets the host outside be another node's pods too, behind the same link, which XDP can send back to.
fn move_remote_pods_outside() {
    for place in PLACES {
        let (length, flags) = if place.node.is_ipv4() { (32, "") } else { (128, " nodad") };
        ip(&format!("-n outside addr add {}/{length} dev lo{flags}", place.remote));
        ip(&format!("route add {} via {}", place.remote, place.outside));
        await_address(&["-n", "outside"], place.remote);
    }
    inside("outside", || offloads::make_whole_checksums("eth0")).join().unwrap();
}

#[test]
fn connections_go_on_with_and_without() {
    let _links = Links::make();
    move_remote_pods_outside();
    let mut node = Node::accelerating(Acceleration::EvenVeth, &["uplink"]);
    node.masquerade();
    // A pair's end takes what the other end sends back by XDP where it has a program itself. This one knows no flow there.
    let program = node.accelerator("uplink").unwrap().program;
    ip(&format!("netns exec outside bpftool net attach xdpdrv id {program} dev eth0"));
    for place in PLACES {
        let (endpoint, service) = (at(place.remote, 8080), at(place.node, 30080));
        for protocol in [Tcp, Udp] {
            node.set(frontend(place.node, 30080, protocol), &[endpoint]);
        }
        let listener = inside("outside", move || {
            serve_udp(endpoint, "far");
            TcpListener::bind(endpoint).unwrap()
        });
        let listener = listener.join().unwrap();
        let connect = move || {
            let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
            (TcpStream::connect_timeout(&service, LIMIT).unwrap(), socket)
        };
        let (mut client, socket) = inside("outside", connect).join().unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), place.node);
        client.set_read_timeout(Some(LIMIT)).unwrap();
        server.set_read_timeout(Some(LIMIT)).unwrap();
        // More than a segment, each way.
        let mut talk = || {
            let sent = [7; 20_000];
            let mut heard = [0; 20_000];
            client.write_all(&sent).unwrap();
            server.read_exact(&mut heard).unwrap();
            assert_eq!(heard, sent);
            server.write_all(&sent).unwrap();
            client.read_exact(&mut heard).unwrap();
            assert_eq!(heard, sent);
            let answer = ask_udp(&socket, service).unwrap();
            assert_eq!(answer, (format!("far saw {}", place.node), service.to_string()));
        };
        let accelerated = |node: &Node| node.counter(counter::ACCELERATED);
        talk();
        let before = accelerated(&node);
        talk();
        // Two datagrams, and at least a segment each way.
        assert!(accelerated(&node) >= before + 4, "{} {before}", accelerated(&node));
        node.crash();
        talk();
        node.options().uplink_acceleration = Acceleration::Disabled;
        node.reopen();
        let before = accelerated(&node);
        talk();
        assert_eq!(accelerated(&node), before);
        node.options().uplink_acceleration = Acceleration::EvenVeth;
        node.reopen();
        talk();
        assert!(accelerated(&node) > before);
    }
}

/// A link whose driver has XDP, and takes whole checksums.
struct Tap(&'static str);

impl Tap {
    fn make(name: &'static str) -> Self {
        harness::private_host::require();
        ip(&format!("tuntap add dev {name} mode tap"));
        ip(&format!("link set {name} up"));
        Self(name)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.0));
    }
}

fn refused(node: &mut Node) -> String {
    use std::error::Error;
    let error = node.try_reopen().unwrap_err();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn a_driver_that_can_has_the_program_until_that_is_not_wanted() {
    let _tap = Tap::make("uplink");
    let mut node = Node::accelerating(Acceleration::Native, &["uplink"]);
    let first = node.accelerator("uplink").unwrap();
    node.crash();
    assert_eq!(node.accelerator("uplink").as_ref(), Some(&first), "it outlives the process");
    node.reopen();
    assert_eq!(node.accelerator("uplink").as_ref(), Some(&first), "and is left alone");
    node.crash();
    for entry in std::fs::read_dir(node.pins()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("ORLOP_") {
            std::fs::remove_file(path).unwrap();
        }
    }
    node.reopen();
    let second = node.accelerator("uplink").unwrap();
    assert_eq!(second.held_by, first.held_by, "one of other maps is replaced in place");
    assert_ne!(second.program, first.program);
    node.options().uplink_acceleration = Acceleration::Disabled;
    node.reopen();
    assert_eq!(node.accelerator("uplink"), None);
    assert!(!has_xdp("uplink"));
    node.options().uplink_acceleration = Acceleration::BestEffort;
    node.reopen();
    assert!(has_xdp("uplink"));
    node.options().uplinks.clear();
    node.reopen();
    assert!(!has_xdp("uplink"), "it is no uplink any more");
}

/// Whether anybody's program is there, as others' tools tell it.
fn has_xdp(link: &str) -> bool {
    let shown = std::process::Command::new("ip").args(["-d", "link", "show", "dev", link]).output().unwrap();
    String::from_utf8_lossy(&shown.stdout).contains("prog/xdp")
}

#[test]
fn a_link_that_was_made_anew_has_the_program_again() {
    let tap = Tap::make("uplink");
    let mut node = Node::accelerating(Acceleration::Native, &["uplink"]);
    drop(tap);
    let _tap = Tap::make("uplink");
    assert!(!has_xdp("uplink"));
    node.reopen();
    assert!(has_xdp("uplink"));
    node.remove();
    assert!(!has_xdp("uplink"), "nothing is left");
}

/// The dot in its name stands in no pin's.
#[test]
fn a_link_may_be_called_like_a_vlan() {
    let _tap = Tap::make("uplink.100");
    let mut node = Node::accelerating(Acceleration::Native, &["uplink.100"]);
    let first = node.accelerator("uplink.100");
    assert!(first.is_some());
    node.reopen();
    assert_eq!(node.accelerator("uplink.100"), first);
}

#[test]
fn links_that_cannot_are_named_or_left_out() {
    let _links = Links::make();
    let mut node = Node::accelerating(Acceleration::Native, &[]);
    node.options().uplinks = vec!["uplink".into()];
    let remedy = "(`best-effort` leaves out what cannot be, `disabled` all)";
    assert_eq!(
        refused(&mut node),
        format!(
            "accelerate uplink uplink {remedy}: it is a veth link: the checksums of its packets may have to be made yet, and XDP would \
             spoil them"
        )
    );
    ip("tuntap add dev guest0 mode tap vnet_hdr");
    node.options().uplinks = vec!["guest0".into()];
    let error = refused(&mut node);
    assert!(error.contains("it is a TAP link as virtual machines have (vnet_hdr): the checksums"), "{error}");
    ip("link del guest0");
    ip("link add bridge0 type bridge");
    node.options().uplinks = vec!["bridge0".into()];
    let no_xdp = format!("accelerate uplink bridge0 {remedy}: its driver, bridge, has no XDP");
    assert_eq!(refused(&mut node), no_xdp);
    ip("link del bridge0");
    // A tunnel has no driver.
    ip("link add tunnel0 type vxlan id 7 dev uplink dstport 8472");
    node.options().uplinks = vec!["tunnel0".into()];
    node.reopen();
    assert_eq!(node.accelerator("tunnel0"), None);
    node.crash();
    ip("link del tunnel0");
    // The best effort leads as always.
    node.options().uplinks = vec!["uplink".into()];
    node.options().uplink_acceleration = Acceleration::BestEffort;
    node.reopen();
    assert_eq!(node.accelerator("uplink"), None);
    assert!(!has_xdp("uplink"));
    inside("pod", || serve_tcp(at(Ipv4Addr::UNSPECIFIED, 8080), "pod")).join().unwrap();
    node.set(frontend(NODE, 30080, Tcp), &[at(POD, 8080)]);
    let answer = inside("outside", || ask_tcp(at(NODE, 30080))).join().unwrap();
    assert_eq!(answer.unwrap(), "pod saw 192.0.2.9");
}

/// As if the driver took an earlier build's program, and refuses this one's.
#[test]
fn a_link_that_cannot_be_given_the_program_is_named_or_left_out() {
    let _tap = Tap::make("uplink");
    let mut node = Node::accelerating(Acceleration::Disabled, &["uplink"]);
    offloads::pin_other_xdp(index("uplink"), &node.pins().join("link_orlop_xdp_uplink"));
    let other = node.accelerator("uplink");
    assert!(other.is_some() && has_xdp("uplink"));
    node.options().uplink_acceleration = Acceleration::Native;
    let error = refused(&mut node);
    assert!(
        error.starts_with("accelerate uplink uplink (`best-effort` leaves out what cannot be"),
        "{error}"
    );
    assert_eq!(node.accelerator("uplink"), other, "a start that failed changes nothing");
    node.options().uplink_acceleration = Acceleration::BestEffort;
    node.reopen();
    assert_eq!(node.accelerator("uplink"), None);
    assert!(!has_xdp("uplink"), "an earlier program on other maps is worse than none");
}

#[test]
fn another_program_stays_and_is_named() {
    let _tap = Tap::make("uplink");
    let somebody = Node::accelerating(Acceleration::Native, &["uplink"]);
    let kept = somebody.accelerator("uplink");
    let mut node = Node::of_another("another", &[]);
    node.options().uplinks = vec!["uplink".into()];
    node.options().uplink_acceleration = Acceleration::Native;
    let error = refused(&mut node);
    assert!(
        error.ends_with("another XDP program, which `ip link set dev uplink xdp off` removes"),
        "{error}"
    );
    node.options().uplink_acceleration = Acceleration::BestEffort;
    node.reopen();
    node.remove();
    assert_eq!(somebody.accelerator("uplink"), kept);
}
