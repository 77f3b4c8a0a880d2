//! The uplink programs as a table: packet in, verdict and packet out, run by the kernel without a network (prog-test-run).
//! And what the verifier had to look at, against `budget.txt`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::process::Command;

use aya::maps::{HashMap, Map, MapData};
use aya::programs::ProgramInfo;
use dataplane::Protocol::{Sctp, Tcp, Udp};
use dataplane::policy::{self, Change, Isolation, PodLink, PortRange, Ports, RulesetId};
use dataplane::{Acceleration, Target};
use dataplane_abi::{Ended, NatKey, NatValue, PathMtu, capacity, counter, geneve, map, nat};

use crate::node::{NODE, Node, OUTSIDE, PLACES, POD, V4, V6, at, frontend, ip, link, run as run_tool};
use crate::tun::Tun;

pub const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;
/// One without ports.
const GRE: u8 = 47;
const SCTP_CHECKSUM: usize = 8;
/// Kinds of SCTP's chunks: the first of an association, and one in its middle.
const INIT: u8 = 1;
const DATA: u8 = 0;
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

pub const ETHERNET: usize = 14;
/// Where the next header of IPv6 stands.
const NEXT_HEADER: usize = 6;
pub const HOP_LIMIT: usize = 7;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;

/// What ICMP says, whatever the family's number for it is.
#[derive(Clone, Copy)]
pub enum Icmp {
    Echo,
    Reply,
    Error,
}

/// An Ethernet frame with IPv4 or IPv6, for the tests to vary.
#[derive(Clone)]
pub struct Frame {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// ICMP stands for that of either family.
    pub protocol: u8,
    pub tcp_flags: u8,
    pub icmp: Icmp,
    /// As the fragment field of IPv4 has it; 0 with `atomic` is IPv6's header of a packet that is its only fragment.
    pub fragment: u16,
    pub atomic: bool,
    /// Words of IPv4's options, or headers of IPv6's.
    pub options: u8,
    pub has_checksum: bool,
}

pub fn frame(protocol: u8, source: (impl Into<IpAddr>, u16), destination: (impl Into<IpAddr>, u16)) -> Frame {
    Frame {
        source: at(source.0, source.1),
        destination: at(destination.0, destination.1),
        protocol,
        tcp_flags: SYN,
        icmp: Icmp::Echo,
        fragment: 0,
        atomic: false,
        options: 0,
        has_checksum: true,
    }
}

impl Frame {
    pub fn bytes(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        if self.protocol == ICMP {
            let [v4, v6] = match self.icmp {
                Icmp::Echo => [8, 128],
                Icmp::Reply => [0, 129],
                Icmp::Error => [3, 1],
            };
            transport.extend([if self.source.is_ipv4() { v4 } else { v6 }, 0, 0, 0]);
            transport.extend(self.source.port().to_be_bytes());
            transport.extend([0, 1]);
        } else {
            transport.extend(self.source.port().to_be_bytes());
            transport.extend(self.destination.port().to_be_bytes());
        }
        match self.protocol {
            TCP => transport.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, self.tcp_flags, 4, 0, 0, 0, 0, 0]),
            UDP => transport.extend([0, 16, 0, 0]),
            SCTP => {
                let chunk = if self.tcp_flags == SYN { INIT } else { DATA };
                transport.extend([0, 0, 0, 1, 0, 0, 0, 0, chunk, 0, 0, 12]);
            }
            _ => {}
        }
        transport.extend(*b"payload!");
        if self.protocol == SCTP && self.has_checksum {
            let sum = crc32c(&transport);
            transport[SCTP_CHECKSUM..SCTP_CHECKSUM + 4].copy_from_slice(&sum);
        }
        let place = checksum_place(self.protocol).filter(|_| self.protocol != UDP || self.has_checksum);
        if let Some(place) = place {
            let sum = !self.transport_sum(self.source.ip(), self.destination.ip(), &transport);
            transport[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([8, 0]);
                bytes.extend(self.header_v4(source, destination, transport.len()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([0x86, 0xdd]);
                bytes.extend(self.header_v6(source, destination, transport.len()));
            }
            _ => panic!("{} to {}", self.source, self.destination),
        }
        bytes.extend(transport);
        bytes
    }

    fn header_v4(&self, source: Ipv4Addr, destination: Ipv4Addr, payload: usize) -> Vec<u8> {
        let length = self.header_length();
        let mut header = vec![0x40 | (length / 4) as u8, 0];
        header.extend(((length + payload) as u16).to_be_bytes());
        header.extend([0, 7]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([64, self.protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.resize(length, 1);
        let sum = !sum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn header_v6(&self, source: Ipv6Addr, destination: Ipv6Addr, payload: usize) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(((self.header_length() - 40 + payload) as u16).to_be_bytes());
        header.extend([0, 64]);
        header.extend(source.octets());
        header.extend(destination.octets());
        let mut next = NEXT_HEADER;
        for number in 0..self.options {
            header[next] = if number == 0 { HOP_BY_HOP } else { OPTIONS };
            next = header.len();
            // Sixteen bytes: the header, and a padding of the rest.
            header.extend([0, 1, 1, 12]);
            header.extend([0; 12]);
        }
        if self.fragment != 0 || self.atomic {
            header[next] = FRAGMENT;
            next = header.len();
            // The offset is further up here, and "more fragments" is the lowest bit.
            let field = (self.fragment << 3) | (self.fragment >> 13 & 1);
            header.extend([0, 0]);
            header.extend(field.to_be_bytes());
            header.extend([0, 0, 0, 7]);
        }
        header[next] = if self.protocol == ICMP { ICMPV6 } else { self.protocol };
        assert_eq!(header.len(), self.header_length());
        header
    }

    pub fn header_length(&self) -> usize {
        let options = usize::from(self.options);
        match self.source {
            SocketAddr::V4(_) => 20 + options * 4,
            SocketAddr::V6(_) => 40 + options * 16 + if self.fragment != 0 || self.atomic { 8 } else { 0 },
        }
    }

    /// What came out, taken apart again; panics if a checksum is wrong.
    pub fn read(&self, bytes: &[u8]) -> (SocketAddr, SocketAddr) {
        let (header, transport) = bytes[ETHERNET..].split_at(self.header_length());
        let (source, destination) = addresses(header);
        if self.protocol == SCTP {
            let mut whole = transport.to_vec();
            let sum: Vec<u8> = whole.splice(SCTP_CHECKSUM..SCTP_CHECKSUM + 4, [0; 4]).collect();
            let right = if self.has_checksum { crc32c(&whole) } else { [0; 4] };
            assert_eq!(sum, right, "the checksum of the whole");
        } else if self.protocol != UDP || self.has_checksum {
            assert_eq!(self.transport_sum(source, destination, transport), 0xffff, "the payload's checksum");
        } else {
            assert_eq!(transport[6..8], [0, 0], "no checksum stays none");
        }
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        let ports = if self.protocol == ICMP { (port(4), 0) } else { (port(0), port(2)) };
        (at(source, ports.0), at(destination, ports.1))
    }

    /// With the addresses, where the protocol covers them.
    fn transport_sum(&self, source: IpAddr, destination: IpAddr, transport: &[u8]) -> u16 {
        let mut covered = Vec::new();
        let protocol = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                covered.extend([source.octets(), destination.octets()].concat());
                self.protocol
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                covered.extend([source.octets(), destination.octets()].concat());
                if self.protocol == ICMP { ICMPV6 } else { self.protocol }
            }
            _ => panic!("{source} to {destination}"),
        };
        covered.extend([0, protocol]);
        covered.extend((transport.len() as u16).to_be_bytes());
        if protocol == ICMP {
            covered.clear();
        }
        covered.extend(transport);
        sum(&covered)
    }
}

/// Bytes of the transport that every router quotes.
const QUOTED: usize = 8;
const MTU: u16 = 1300;

/// An ICMP error: the packet is too large for a link of [`MTU`].
struct TooBig {
    from: IpAddr,
    to: IpAddr,
    about: Frame,
}

impl TooBig {
    fn outer(&self) -> Frame {
        frame(ICMP, (self.from, 0), (self.to, 0))
    }

    fn quoted(&self) -> usize {
        self.about.header_length() + QUOTED
    }

    fn bytes(&self) -> Vec<u8> {
        let outer = self.outer();
        let quoted = &self.about.bytes()[ETHERNET..][..self.quoted()];
        let [high, low] = MTU.to_be_bytes();
        let kind = if self.from.is_ipv4() { [3, 4] } else { [2, 0] };
        let mut message = [&kind[..], &[0, 0, 0, 0, high, low], quoted].concat();
        let sum = !outer.transport_sum(self.from, self.to, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        // An error about a frame of the same family: only the payload's length is another one.
        let mut bytes = outer.bytes();
        bytes.truncate(ETHERNET);
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => bytes.extend(outer.header_v4(from, to, message.len())),
            (IpAddr::V6(from), IpAddr::V6(to)) => bytes.extend(outer.header_v6(from, to, message.len())),
            _ => panic!("{} to {}", self.from, self.to),
        }
        bytes.extend(message);
        bytes
    }

    /// What came out: who tells whom, about a packet from where to where; panics if a checksum is wrong or anything else has changed.
    fn read(&self, bytes: &[u8]) -> (IpAddr, IpAddr, SocketAddr, SocketAddr) {
        let (before, outer) = (self.bytes(), self.outer());
        assert_eq!(bytes.len(), before.len());
        let (header, message) = bytes[ETHERNET..].split_at(outer.header_length());
        let (from, to) = addresses(header);
        assert_eq!(outer.transport_sum(from, to, message), 0xffff, "the message's checksum");
        assert_eq!(message[..2], before[ETHERNET + header.len()..][..2], "type and code");
        assert_eq!(message[6..8], MTU.to_be_bytes());
        let (header, transport) = message[8..].split_at(self.about.header_length());
        let (source, destination) = addresses(header);
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        let ports = if self.about.protocol == ICMP { (port(4), 0) } else { (port(0), port(2)) };
        (from, to, at(source, ports.0), at(destination, ports.1))
    }
}

/// Of a header; panics if its checksum is wrong.
fn addresses(header: &[u8]) -> (IpAddr, IpAddr) {
    if header[0] >> 4 == 4 {
        assert_eq!(sum(header), 0xffff, "the header's checksum");
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).unwrap());
        (address(12), address(16))
    } else {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&header[at..at + 16]).unwrap());
        (address(8), address(24))
    }
}

fn checksum_place(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP => Some(2),
        _ => None,
    }
}

/// Bit by bit, as RFC 9260 defines it, of a packet whose own is 0.
fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let mut register = u32::MAX;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = (register >> 1) ^ if register & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!register).to_le_bytes()
}

/// The ones' complement sum of RFC 1071.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += (u32::from(pair[0]) << 8) | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The program's verdict, and the packet as it left it.
pub fn run(program: u64, packet: &[u8]) -> (u32, Vec<u8>) {
    run_as(program, packet, &[], "1").0
}

/// The same with a context, if that is not empty, again and again; and how long one run took, in nanoseconds.
pub fn run_as(program: u64, packet: &[u8], context: &[u8], times: &str) -> ((u32, Vec<u8>), u64) {
    let folder = std::env::temp_dir();
    // Process ids are alike in all private hosts; a program's id is the machine's.
    let place = |name: &str| folder.join(format!("orlop-packet-{program}-{name}"));
    let (input, output) = (place("in"), place("out"));
    std::fs::write(&input, packet).unwrap();
    let mut run = Command::new("bpftool");
    run.args(["-j", "prog", "run", "id", &program.to_string(), "data_in"]).arg(&input);
    run.arg("data_out").arg(&output).args(["repeat", times]);
    let given = place("context");
    if !context.is_empty() {
        std::fs::write(&given, context).unwrap();
        run.arg("ctx_in").arg(&given);
    }
    let ran = run.output().unwrap();
    let shown = String::from_utf8_lossy(&ran.stdout).into_owned();
    let result: serde_json::Value = serde_json::from_str(&shown).unwrap_or_else(|_| panic!("{shown}"));
    let left = std::fs::read(&output).unwrap();
    std::fs::remove_file(input).unwrap();
    std::fs::remove_file(output).unwrap();
    if !context.is_empty() {
        std::fs::remove_file(given).unwrap();
    }
    let number = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{shown}"));
    ((number("retval") as u32, left), number("duration"))
}

/// A node whose uplink leads nowhere: only its programs matter.
struct Bench {
    node: Node,
    _overlay: Option<Tun>,
}

impl Bench {
    fn new() -> Self {
        harness::private_host::require();
        ip("link add uplink type veth peer name other");
        Self { node: Node::with_uplink(), _overlay: None }
    }

    /// All programs for uplinks: beside the uplink a link without Ethernet.
    fn of_all_programs() -> Self {
        harness::private_host::require();
        ip("link add uplink type veth peer name other");
        let overlay = Some(Tun::make("overlay"));
        Self { node: Node::accelerating(Acceleration::EvenVeth, &["uplink", "overlay"]), _overlay: overlay }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        ip("link del uplink");
    }
}

enum After {
    Same,
    /// The packet's ends.
    Ends(SocketAddr, SocketAddr),
    /// From this address of the node, from a masquerading port.
    Masqueraded(IpAddr),
    /// From its own address, from another port.
    ByAnotherPort(SocketAddr),
    /// Only addresses are other ones.
    Addresses(IpAddr, IpAddr),
}

struct Case {
    name: &'static str,
    frame: Frame,
    verdict: u32,
    after: After,
    counter: Option<u32>,
}

fn check(node: &Node, program: &str, cases: Vec<Case>) {
    let program = node.attachments()[program].program;
    for Case { name, frame, verdict, after, counter } in cases {
        let count = || counter.map_or(0, |counter| node.counter(counter));
        let (before, packet) = (count(), frame.bytes());
        let (seen, left) = run(program, &packet);
        assert_eq!(seen, verdict, "{name}");
        assert_eq!(count() - before, u64::from(counter.is_some()), "{name}: the counter");
        match after {
            After::Same => assert_eq!(left, packet, "{name}"),
            After::Ends(source, destination) => {
                assert_eq!(frame.read(&left), (source, destination), "{name}");
            }
            After::Addresses(source, destination) => {
                let (header, rest) = left[ETHERNET..].split_at(frame.header_length());
                assert_eq!(addresses(header), (source, destination), "{name}");
                assert_eq!(rest, &packet[ETHERNET + header.len()..], "{name}");
            }
            After::ByAnotherPort(expected) => {
                let (source, destination) = frame.read(&left);
                assert_eq!((source.ip(), destination), (frame.source.ip(), expected), "{name}");
                assert!(source.port() >= nat::FIRST_PORT, "{name}: {source}");
            }
            After::Masqueraded(node) => {
                let (source, destination) = frame.read(&left);
                assert_eq!(source.ip(), node, "{name}");
                assert!(source.port() >= nat::FIRST_PORT, "{name}: {source}");
                assert_eq!(destination.ip(), frame.destination.ip(), "{name}");
            }
        }
    }
}

#[test]
fn packets_that_come_in() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    for place in PLACES {
        let pod = at(place.pod, 8080);
        for port in [30080, 30082] {
            node.set(frontend(place.node, port, Tcp), &[pod]);
        }
        node.set(frontend(place.node, 30080, Udp), &[pod]);
        node.set(frontend(place.node, 30080, Sctp), &[pod]);
        node.set(frontend(place.node, 30081, Tcp), &[]);
        let to =
            |protocol, client: u16, port: u16| frame(protocol, (place.outside, client), (place.node, port));
        let translated = |client: u16| After::Ends(at(place.outside, client), pod);
        let case = |name, frame, verdict, after, counter| Case { name, frame, verdict, after, counter };
        let began = Some(counter::NODE_PORT_TRANSLATED);
        let cases = vec![
            case("a connection", to(TCP, 1001, 30080), NEXT, translated(1001), began),
            case(
                "its next packet",
                Frame { tcp_flags: ACK, ..to(TCP, 1001, 30080) },
                NEXT,
                translated(1001),
                None,
            ),
            case("a datagram", to(UDP, 1002, 30080), NEXT, translated(1002), began),
            case(
                "a datagram without a checksum",
                Frame { has_checksum: false, ..to(UDP, 1003, 30080) },
                NEXT,
                translated(1003),
                began,
            ),
            case("IP options", Frame { options: 2, ..to(TCP, 1004, 30080) }, NEXT, translated(1004), began),
            case(
                "the last part of a packet that did not begin",
                Frame { fragment: 4, ..to(UDP, 1005, 30080) },
                NEXT,
                After::Same,
                Some(counter::FRAGMENT),
            ),
            case(
                "a packet's first part",
                Frame { fragment: 0x2000, ..to(UDP, 1005, 30080) },
                NEXT,
                translated(1005),
                began,
            ),
            case(
                "its last part",
                Frame { fragment: 4, ..to(UDP, 1005, 30080) },
                NEXT,
                After::Addresses(place.outside, pod.ip()),
                None,
            ),
            case("an association", to(SCTP, 1010, 30080), NEXT, translated(1010), began),
            case(
                "its next packet",
                Frame { tcp_flags: ACK, ..to(SCTP, 1010, 30080) },
                NEXT,
                translated(1010),
                None,
            ),
            case(
                "one whose checksum is left to the device",
                Frame { has_checksum: false, ..to(SCTP, 1011, 30080) },
                NEXT,
                translated(1011),
                began,
            ),
            case("IP options", Frame { options: 2, ..to(SCTP, 1012, 30080) }, NEXT, translated(1012), began),
            case(
                "the middle of an unknown association",
                Frame { tcp_flags: ACK, ..to(SCTP, 1013, 30080) },
                NEXT,
                After::Same,
                Some(counter::NODE_PORT_NO_FLOW),
            ),
            case(
                "a fragment of SCTP",
                Frame { fragment: 0x2000, ..to(SCTP, 1014, 30080) },
                NEXT,
                After::Same,
                Some(counter::FRAGMENT),
            ),
            case("no backend", to(TCP, 1006, 30081), DROP, After::Same, Some(counter::NODE_PORT_NO_BACKEND)),
            case(
                "the middle of an unknown connection",
                Frame { tcp_flags: ACK, ..to(TCP, 1007, 30080) },
                NEXT,
                After::Same,
                Some(counter::NODE_PORT_NO_FLOW),
            ),
            case(
                "a second way to the same pod",
                to(TCP, 1001, 30082),
                NEXT,
                After::ByAnotherPort(pod),
                began,
            ),
            case("another port of the node", to(TCP, 1008, 22), NEXT, After::Same, None),
            case("a ping", to(ICMP, 1009, 0), NEXT, After::Same, None),
        ];
        check(node, "orlop_ingress", cases);
    }
    // What IPv6 alone has.
    let pod = at(V6.pod, 8080);
    let to = |client: u16| frame(TCP, (V6.outside, client), (V6.node, 30080));
    let case = |name, frame, after, counter| Case { name, frame, verdict: NEXT, after, counter };
    let translated = |client: u16| After::Ends(at(V6.outside, client), pod);
    let began = Some(counter::NODE_PORT_TRANSLATED);
    let all_headers = Frame { options: 4, atomic: true, ..to(1102) };
    let cases = vec![
        case(
            "a packet that is its only fragment",
            Frame { atomic: true, ..to(1101) },
            translated(1101),
            began,
        ),
        case("as many headers as are looked through", all_headers, translated(1102), began),
        case("more headers", Frame { options: 6, ..to(1103) }, After::Same, None),
    ];
    check(node, "orlop_ingress", cases);
    let mapped = |address: IpAddr| match address {
        IpAddr::V4(address) => IpAddr::V6(address.to_ipv6_mapped()),
        other => other,
    };
    let pretends = frame(TCP, (mapped(V4.outside), 1104), (mapped(V4.node), 30080));
    check(node, "orlop_ingress", vec![case("IPv4 in the header of IPv6", pretends, After::Same, None)]);
}

#[test]
fn packets_that_go_out() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    for place in PLACES {
        let from = |protocol, port: u16| frame(protocol, (place.pod, port), (place.outside, 53));
        let case = |name, frame, verdict, after, counter| Case { name, frame, verdict, after, counter };
        let translated = || After::Masqueraded(place.node);
        let masqueraded = Some(counter::MASQUERADED);
        let impossible = Some(counter::MASQUERADE_IMPOSSIBLE);
        let cases = vec![
            case("a connection", from(TCP, 2001), NEXT, translated(), masqueraded),
            case("its next packet", Frame { tcp_flags: ACK, ..from(TCP, 2001) }, NEXT, translated(), None),
            case("a datagram", from(UDP, 2002), NEXT, translated(), masqueraded),
            case(
                "a datagram without a checksum",
                Frame { has_checksum: false, ..from(UDP, 2003) },
                NEXT,
                translated(),
                masqueraded,
            ),
            case("IP options", Frame { options: 1, ..from(UDP, 2004) }, NEXT, translated(), masqueraded),
            case("a ping", from(ICMP, 2005), NEXT, translated(), masqueraded),
            case(
                "an answer to a ping that never came",
                Frame { icmp: Icmp::Reply, ..from(ICMP, 2006) },
                DROP,
                After::Same,
                Some(counter::MASQUERADE_NO_FLOW),
            ),
            case(
                "an ICMP error",
                Frame { icmp: Icmp::Error, ..from(ICMP, 2007) },
                DROP,
                After::Same,
                impossible,
            ),
            case(
                "the last part of a packet that did not begin",
                Frame { fragment: 4, ..from(UDP, 2008) },
                DROP,
                After::Same,
                impossible,
            ),
            case(
                "a packet's first part",
                Frame { fragment: 0x2000, ..from(UDP, 2008) },
                NEXT,
                translated(),
                masqueraded,
            ),
            case(
                "its last part",
                Frame { fragment: 4, ..from(UDP, 2008) },
                NEXT,
                After::Addresses(place.node, place.outside),
                None,
            ),
            case("a protocol without our ports", from(GRE, 2009), DROP, After::Same, impossible),
            case("an association", from(SCTP, 2013), NEXT, translated(), masqueraded),
            case("its next packet", Frame { tcp_flags: ACK, ..from(SCTP, 2013) }, NEXT, translated(), None),
            case(
                "the middle of an unknown connection",
                Frame { tcp_flags: ACK, ..from(TCP, 2010) },
                DROP,
                After::Same,
                Some(counter::MASQUERADE_NO_FLOW),
            ),
            case(
                "to another node's pod",
                frame(UDP, (place.pod, 2011), (place.remote, 53)),
                NEXT,
                After::Same,
                None,
            ),
            case(
                "from the node itself",
                frame(UDP, (place.node, 2012), (place.outside, 53)),
                NEXT,
                After::Same,
                None,
            ),
        ];
        check(node, "orlop_egress", cases);
    }
    let program = node.attachments()["orlop_egress"].program;
    let neighbourly = neighbourly(135, 255, V6.outside);
    assert_eq!(run(program, &neighbourly), (DROP, neighbourly), "a pod's address would leave");
    let options = Frame { options: 1, ..frame(UDP, (V6.pod, 2101), (V6.outside, 53)) };
    let dropped = |packet: &[u8]| assert_eq!(run(program, packet), (DROP, packet.to_vec()));
    dropped(&options.bytes()[..ETHERNET + 40]);
    let IpAddr::V4(pod) = V4.pod else { panic!("{}", V4.pod) };
    dropped(&frame(UDP, (pod.to_ipv6_mapped(), 2102), (V6.outside, 53)).bytes());
    assert_eq!(node.counter(counter::MASQUERADE_IMPOSSIBLE), 9);
}

/// What tells another node of a flow: all that stands before the packet, behind its Ethernet header.
fn told(place: &crate::node::Place, inner: &[u8], service: u16) -> Vec<u8> {
    let port = |port: u16| port.to_be_bytes();
    let data = [octets(place.node), port(service).to_vec(), vec![0, 0]].concat();
    let (kind, words) = if place.node.is_ipv4() { (0x0800_u16, 2) } else { (0x86dd, 5) };
    // RFC 8926, 3.4 and 3.5: the options' length, that they are critical, and one of the class for experiments.
    let geneve = [&[words + 1, 0x40][..], &port(kind), &[0; 4], &[0xff, 0x4f, 0x81, words], &data].concat();
    let length = 8 + geneve.len() + inner.len();
    let from = frame(UDP, (place.node, 4101), (place.remote, 6081));
    let mut header = match (place.node, place.remote) {
        (IpAddr::V4(node), IpAddr::V4(remote)) => {
            let mut header = from.header_v4(node, remote, length);
            // No identification, not to be fragmented.
            header[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            header[10..12].fill(0);
            let sum = !sum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(node), IpAddr::V6(remote)) => from.header_v6(node, remote, length),
        other => panic!("{other:?}"),
    };
    header.extend([port(4101), port(6081), port(length as u16), [0, 0]].concat());
    header.extend(geneve);
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[test]
fn packets_that_tell_another_node_of_their_flow() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    let attached = node.attachments();
    let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
    for place in PLACES {
        let endpoint = at(place.remote, 8080);
        let target = Target { direct_return: true, ..Target::all([endpoint]) };
        for protocol in [Tcp, Udp, Sctp] {
            node.lead(frontend(place.node, 30080, protocol), &target);
        }
        for protocol in [TCP, UDP, SCTP] {
            let asks = frame(protocol, (place.outside, 4101), (place.node, 30080));
            let goes = frame(protocol, (place.outside, 4101), (place.remote, 8080));
            let answers = frame(protocol, (place.remote, 8080), (place.outside, 4101));
            let (verdict, led) = run(ingress, &asks.bytes());
            assert_eq!((verdict, asks.read(&led)), (NEXT, (at(place.outside, 4101), endpoint)));
            // On the way to the other node.
            let (verdict, sent) = run(egress, &led);
            let header = told(&place, &led[ETHERNET..], 30080);
            assert_eq!((verdict, &sent[..ETHERNET]), (NEXT, &led[..ETHERNET]));
            assert_eq!(sent[ETHERNET..][..header.len()], header, "{protocol} of {place:?}");
            assert_eq!(sent[ETHERNET + header.len()..], led[ETHERNET..]);
            let later = |of: &Frame| Frame { tcp_flags: ACK, ..of.clone() };
            let next = later(&goes).bytes();
            if protocol != UDP {
                assert_eq!(run(egress, &next), (NEXT, next.clone()), "the other node knows");
            }
            node.rewrite_flows(map::INBOUND, |_| None);
            // There. Nobody else is believed, and nothing else that a node sends there is taken for it.
            let arrives = |believed: &[IpAddr], node: &mut Node, packet: &[u8]| {
                node.dataplane.as_mut().unwrap().set_peers(believed).unwrap();
                run(ingress, packet)
            };
            assert_eq!(arrives(&[place.outside, place.remote], node, &sent), (NEXT, sent.clone()));
            let spoiled =
                (0..12).map(|byte| ETHERNET + header.len() - octets(place.node).len() - 4 - 12 + byte);
            for byte in spoiled {
                let mut other = sent.clone();
                other[byte] ^= 0x10;
                assert_eq!(arrives(&[place.node], node, &other), (NEXT, other.clone()), "{byte}");
            }
            let answer = answers.bytes();
            assert_eq!(run(egress, &answer), (NEXT, answer.clone()), "nothing was told");
            assert_eq!(arrives(&[place.node], node, &sent), (NEXT, led.clone()));
            let (verdict, left) = run(egress, &answer);
            assert_eq!(verdict, NEXT);
            assert_eq!(answers.read(&left), (at(place.node, 30080), at(place.outside, 4101)));
            // Nobody is believed any more: it goes on, and nothing is told of others.
            assert_eq!(arrives(&[], node, &sent), (NEXT, sent.clone()));
            let (verdict, left) = run(egress, &later(&answers).bytes());
            assert_eq!((verdict, answers.read(&left).0), (NEXT, at(place.node, 30080)));
            // Told again, as datagrams are each time, and its first packet where that is sent again.
            assert_eq!(arrives(&[place.node], node, &sent), (NEXT, led.clone()));
            // The same client's port by another node's service: the answers could not be told apart.
            let mut other = sent.clone();
            other[ETHERNET + header.len() - 4] ^= 1;
            let collisions = node.counter(counter::NODE_PORT_COLLISION);
            assert_eq!(arrives(&[place.node], node, &other), (DROP, led.clone()));
            assert_eq!(node.counter(counter::NODE_PORT_COLLISION), collisions + 1);
            // Once the first is over, also where nobody masquerades pods, it is the client's port again.
            if protocol == TCP {
                for masqueraded in [true, false] {
                    let families = if masqueraded { vec![place.masquerade()] } else { Vec::new() };
                    node.dataplane.as_mut().unwrap().set_masquerade(&families).unwrap();
                    let [first, second] = if masqueraded { [&sent, &other] } else { [&other, &sent] };
                    assert_eq!(arrives(&[place.node], node, first).0, NEXT);
                    let end = |of: &Frame| Frame { tcp_flags: FIN | ACK, ..of.clone() }.bytes();
                    run(egress, &end(&answers));
                    assert_eq!(arrives(&[place.node], node, second).0, DROP, "half of it goes on");
                    assert_eq!(run(ingress, &end(&goes)), (NEXT, end(&goes)));
                    assert_eq!(arrives(&[place.node], node, second), (NEXT, led.clone()));
                }
                node.masquerade();
            }
            // The client asked here before, where its port is still known to lead elsewhere.
            if protocol == TCP {
                assert_eq!(arrives(&[place.node], node, &sent).0, NEXT);
                let flows = node.flow_keys(map::INBOUND).len();
                node.set(frontend(place.node, 30080, Tcp), &[at(place.neighbour, 8080)]);
                run(ingress, &asks.bytes());
                assert_eq!(node.flow_keys(map::INBOUND).len(), flows + 2);
                let (verdict, left) = run(egress, &later(&answers).bytes());
                assert_eq!((verdict, later(&answers).read(&left).0), (NEXT, at(place.node, 30080)));
            }
            // Whom this node masquerades could not be told from it.
            node.dataplane.as_mut().unwrap().set_peers(&[place.outside]).unwrap();
            let impossible = node.counter(counter::MASQUERADE_IMPOSSIBLE);
            let pretends = frame(UDP, (place.pod, 4103), (place.outside, 6081)).bytes();
            assert_eq!(run(egress, &pretends), (DROP, pretends));
            assert_eq!(node.counter(counter::MASQUERADE_IMPOSSIBLE), impossible + 1);
            let elsewhere = frame(UDP, (place.pod, 4103), (place.neighbour, 6081));
            let (verdict, left) = run(egress, &elsewhere.bytes());
            assert_eq!((verdict, elsewhere.read(&left).0.ip()), (NEXT, place.node));
            // To somebody else than the packet around it.
            let strays = frame(protocol, (place.outside, 4102), (place.pod, 8080)).bytes();
            let strays = [&sent[..ETHERNET + header.len()], &strays[ETHERNET..]].concat();
            assert_eq!(arrives(&[place.node], node, &strays).0, DROP);
            let cut = &sent[..ETHERNET + header.len() + 10];
            assert_eq!(arrives(&[place.node], node, cut).0, DROP, "not even a header");
            node.rewrite_flows(map::INBOUND, |_| None);
        }
    }
}

/// The kernel has no socket for what this node tells others, and so takes no notice of an error about it.
#[test]
fn what_is_too_long_for_the_path_to_another_node_goes_on_under_this_nodes_address() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    let attached = node.attachments();
    let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
    node.dataplane.as_mut().unwrap().serve_packets(&other()).unwrap();
    let from_pod = node.attachment("orlop_vip_in", "other", "ingress").unwrap().program;
    for place in PLACES {
        let target = Target { direct_return: true, ..Target::all([at(place.remote, 8080)]) };
        node.lead(frontend(place.node, 30080, Udp), &target);
        let begins = |port: u16| {
            let asks = frame(UDP, (place.outside, port), (place.node, 30080));
            run(ingress, &asks.bytes()).1
        };
        let room = told(&place, &begins(4200)[ETHERNET..], 30080).len();
        // So long that it just fits the path with what is put before it, or is too long by a byte.
        let datagram = |port: u16, more: usize| {
            let mut datagram = begins(port);
            datagram.resize(ETHERNET + usize::from(MTU) - room + more, 0);
            datagram
        };
        let shown = |packet: &[u8]| {
            let (verdict, left) = run(egress, packet);
            assert_eq!(verdict, NEXT);
            let header = if place.node.is_ipv4() { 20 } else { 40 };
            let (from, _) = addresses(&left[ETHERNET..][..header]);
            (from, left.len() > packet.len())
        };
        let wrapped = (place.node, true);
        let under_the_nodes = (place.node, false);
        assert_eq!(shown(&datagram(4200, 1)), wrapped, "nobody complained yet");
        let error = |about: Frame| TooBig { from: place.neighbour, to: about.source.ip(), about }.bytes();
        let told = frame(UDP, (place.node, 4200), (place.remote, geneve::PORT));
        let complains = |program: u64, error: Vec<u8>| {
            assert_eq!(run(program, &error), (NEXT, error), "the node's own");
        };
        complains(ingress, error(frame(UDP, (place.node, 4200), (place.remote, geneve::PORT + 1))));
        complains(ingress, error(frame(UDP, (place.outside, 4200), (place.remote, geneve::PORT))));
        complains(ingress, TooBig { from: place.neighbour, to: place.outside, about: told.clone() }.bytes());
        complains(from_pod, error(told.clone()));
        ip(&format!("link set lo mtu {MTU}"));
        complains(ingress, error(told.clone()));
        ip("link set lo mtu 65536");
        assert_eq!(shown(&datagram(4200, 1)), wrapped, "it is not about what this node told, or nothing new");
        complains(ingress, error(frame(UDP, (place.node, 4200), (place.outside, geneve::PORT))));
        let narrow = node.counter(counter::PATH_NARROW);
        complains(ingress, error(told));
        assert_eq!(node.counter(counter::PATH_NARROW), narrow + 1);
        assert_eq!(shown(&datagram(4201, 0)), wrapped, "there is room");
        assert_eq!(shown(&datagram(4201, 1)), under_the_nodes, "whether or not it was told of");
        assert_eq!(shown(&datagram(4200, 1)), under_the_nodes, "what was lost");
        assert_eq!(shown(&datagram(4200, 0)), under_the_nodes, "and so the flow goes on");
        // The path may be another one by and by.
        let data = MapData::from_pin(node.pins().join(map::PATHS)).unwrap();
        let mut paths: HashMap<MapData, [u8; 16], [u8; 8]> =
            HashMap::try_from(Map::LruHashMap(data)).unwrap();
        assert_eq!(paths.keys().count(), 1, "nobody was told of another endpoint");
        let (endpoint, path) = paths.iter().next().unwrap().unwrap();
        let PathMtu { mtu, since } = PathMtu::from_bytes(path);
        assert_eq!(mtu, u32::from(MTU));
        let since = since.wrapping_sub(geneve::PATH_TICKS);
        paths.insert(endpoint, PathMtu { mtu, since }.to_bytes(), 0).unwrap();
        assert_eq!(shown(&datagram(4202, 1)), wrapped);
        paths.remove(&endpoint).unwrap();
        for map in [map::INBOUND, map::NAT] {
            node.rewrite_flows(map, |_| None);
        }
    }
}

/// Entries of ended connections would push out those of silent ones, of which the kernel knows no better.
#[test]
fn a_connection_that_is_over_leaves_when_others_end_later() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    let attached = node.attachments();
    let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
    for place in PLACES {
        let pod = at(place.pod, 8080);
        node.set(frontend(place.node, 30080, Tcp), &[pod]);
        // A client's packets to the node port, and the pod's to a host outside, which shows them with a port of the node.
        let asks = |port: u16, tcp_flags| Frame {
            tcp_flags,
            ..frame(TCP, (place.outside, port), (place.node, 30080))
        };
        let answers = |port: u16, tcp_flags| Frame {
            tcp_flags,
            ..frame(TCP, (place.pod, 8080), (place.outside, port))
        };
        let leaves =
            |port: u16, tcp_flags| Frame { tcp_flags, ..frame(TCP, (place.pod, port), (place.outside, 53)) };
        let passes = |program, frame: &Frame| {
            let (verdict, left) = run(program, &frame.bytes());
            assert_eq!(verdict, NEXT);
            frame.read(&left)
        };
        let begins = |port: u16| {
            passes(ingress, &asks(port, SYN));
            passes(egress, &answers(port, SYN | ACK));
            let (shown, _) = passes(egress, &leaves(port, SYN));
            let back = move |tcp_flags| Frame {
                tcp_flags,
                ..frame(TCP, (place.outside, 53), (shown.ip(), shown.port()))
            };
            passes(ingress, &back(SYN | ACK));
            back
        };
        let closes = |port: u16, back: &dyn Fn(u8) -> Frame| {
            passes(ingress, &asks(port, FIN | ACK));
            passes(egress, &answers(port, FIN | ACK));
            passes(egress, &leaves(port, FIN | ACK));
            passes(ingress, &back(FIN | ACK));
        };
        let ports = |node: &Node| {
            let of = |map| {
                let keys = node.flow_keys(map).into_iter();
                let ports =
                    keys.flat_map(|key| [key.source_port_be, key.destination_port_be].map(u16::from_be));
                let mut ports: Vec<u16> = ports.filter(|port| (6001..6007).contains(port)).collect();
                ports.sort_unstable();
                ports
            };
            (of(map::INBOUND), of(map::NAT))
        };
        node.forget_ends();
        // One for each direction; what comes back to a masqueraded one has the node's port.
        let [closed, reset, silent, again, reset_back, half] = [6001, 6002, 6003, 6004, 6005, 6006];
        let backs = [closed, reset, silent, again, reset_back, half].map(begins);
        let all = vec![closed, reset, silent, again, reset_back, half];
        let twice = |ports: &[u16]| ports.iter().flat_map(|port| [*port; 2]).collect::<Vec<_>>();
        closes(closed, &backs[0]);
        passes(ingress, &asks(reset, RST));
        passes(egress, &leaves(reset, RST));
        closes(again, &backs[3]);
        passes(ingress, &asks(again, SYN));
        passes(egress, &leaves(again, SYN));
        passes(egress, &answers(reset_back, RST));
        passes(ingress, &backs[4](RST));
        passes(ingress, &asks(half, FIN | ACK));
        passes(egress, &leaves(half, FIN | ACK));
        let mut last = 7000;
        let mut end_others = || {
            for _ in 0..8 {
                last += 1;
                passes(ingress, &asks(last, SYN));
                passes(ingress, &asks(last, RST));
            }
        };
        end_others();
        assert_eq!(ports(node), (twice(&all), all.clone()), "their last packets may be sent again");
        node.let_time_pass();
        end_others();
        let mut doubted = all;
        doubted.retain(|port| *port != closed);
        assert_eq!(ports(node), (twice(&doubted), doubted), "a reset alone may not have been believed");
        // Somebody speaks after a reset, which it did not believe; and after its end.
        passes(egress, &answers(reset, ACK));
        passes(ingress, &backs[4](ACK));
        node.let_ticks_pass(nat::DOUBTED_LIMIT + 1);
        end_others();
        assert_eq!(
            ports(node),
            (twice(&[reset, silent, again, half]), vec![silent, again, reset_back, half])
        );
        node.forget_ends();
        // The client's port asks another pod, since its first one went.
        let back = begins(closed);
        closes(closed, &back);
        node.set(frontend(place.node, 30080, Tcp), &[at(place.remote, 8080)]);
        passes(ingress, &asks(closed, SYN));
        node.let_time_pass();
        end_others();
        let (_, led) = run(ingress, &asks(closed, ACK).bytes());
        assert_eq!(asks(closed, ACK).read(&led).1, at(place.remote, 8080), "it is another flow's by now");
        node.set(frontend(place.node, 30080, Tcp), &[pod]);
        for map in [map::INBOUND, map::NAT] {
            node.rewrite_flows(map, |_| None);
        }
    }
}

/// Whether the flow of a client's port to a node port is known.
fn is_known(node: &Node, port: u16) -> bool {
    node.flow_keys(map::INBOUND).iter().any(|key| key.source_port_be == port.to_be())
}

/// Nobody but the one who sent it knows whether a reset has the right sequence number, and of a flow with direct return only the client's end is seen.
#[test]
fn what_may_be_over_leaves_after_minutes_of_silence() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    let attached = node.attachments();
    let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
    for place in PLACES {
        node.set(frontend(place.node, 30080, Tcp), &[at(place.pod, 8080)]);
        let target = Target { direct_return: true, ..Target::all([at(place.remote, 8080)]) };
        node.lead(frontend(place.node, 30081, Tcp), &target);
        let asks = |port: u16, service: u16, tcp_flags| {
            let asks = Frame { tcp_flags, ..frame(TCP, (place.outside, port), (place.node, service)) };
            assert_eq!(run(ingress, &asks.bytes()).0, NEXT);
        };
        let answers = |port: u16, tcp_flags| {
            let answers = frame(TCP, (place.pod, 8080), (place.outside, port));
            assert_eq!(run(egress, &Frame { tcp_flags, ..answers }.bytes()).0, NEXT);
        };
        let mut last = 7100;
        let mut end_another = || {
            last += 1;
            asks(last, 30080, SYN);
            asks(last, 30080, RST);
        };
        node.forget_ends();
        let [both, closed, reset, told, talks] = [6101, 6102, 6103, 6104, 6105];
        for port in [both, closed, reset] {
            asks(port, 30080, SYN);
            answers(port, SYN | ACK);
        }
        for port in [told, talks] {
            asks(port, 30081, SYN);
            asks(port, 30081, FIN | ACK);
        }
        // What the other side says to it leaves no doubt.
        asks(both, 30080, RST);
        answers(both, RST);
        answers(closed, FIN | ACK);
        asks(closed, 30080, RST);
        asks(reset, 30080, RST);
        let known = |node: &Node| [both, closed, reset, told, talks].map(|port| is_known(node, port));
        node.let_time_pass();
        (0..4).for_each(|_| end_another());
        assert_eq!(known(node), [false, false, true, true, true]);
        // The client hears its answers yet, and says so.
        node.let_ticks_pass(60);
        asks(talks, 30081, ACK);
        node.let_ticks_pass(60);
        (0..4).for_each(|_| end_another());
        assert_eq!(known(node), [false, false, false, true, true], "who is half-closed may think for longer");
        node.let_ticks_pass(nat::HALF_CLOSED_LIMIT - 122);
        (0..4).for_each(|_| end_another());
        assert_eq!(known(node), [false, false, false, false, true]);
        // Behind those that ended meanwhile.
        node.let_ticks_pass(65);
        (0..4).for_each(|_| end_another());
        assert_eq!(known(node), [false; 5]);

        // One flow waits once, whatever it says.
        node.forget_ends();
        for flags in [SYN, RST, ACK, RST, SYN, RST, RST].repeat(4) {
            asks(6110, 30080, flags);
        }
        let mut waiting = node.ended(map::DOUBTED);
        assert_eq!(std::iter::from_fn(|| waiting.pop(0).ok()).count(), 1);

        // Where too many wait, the first ones leave that have been silent for a moment.
        let end_surely = |port| {
            asks(port, 30080, SYN);
            asks(port, 30080, FIN | ACK);
            answers(port, FIN | ACK);
        };
        let end_doubted = |port| {
            asks(port, 30080, SYN);
            asks(port, 30080, RST);
        };
        let queues: [(_, _, &dyn Fn(u16)); 2] =
            [(map::ENDED, capacity::ENDED, &end_surely), (map::DOUBTED, capacity::DOUBTED, &end_doubted)];
        for (queue, room, end) in queues {
            node.forget_ends();
            let [first, second, third, fourth] = [6106, 6107, 6108, 6109];
            [first, second].into_iter().for_each(end);
            let mut waiting = node.ended(queue);
            let nobody = [0; size_of::<Ended>()];
            let more = std::iter::from_fn(|| waiting.push(nobody, 0).ok()).count();
            assert_eq!(more + 2, room);
            // In the future: no tick more or less decides.
            node.let_ticks_pass(10_u32.wrapping_neg());
            end(third);
            assert!(is_known(node, first), "a moment after its end");
            node.let_ticks_pass(20);
            asks(second, 30080, RST);
            node.let_ticks_pass(9_u32.wrapping_neg());
            end(fourth);
            assert_eq!(
                [first, second].map(|port| is_known(node, port)),
                [false, true],
                "that one was heard of"
            );
        }
        node.forget_ends();
        node.rewrite_flows(map::INBOUND, |_| None);
    }
}

#[test]
fn one_family_may_be_masqueraded_alone() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    for (masqueraded, plain) in [(V4, V6), (V6, V4)] {
        node.dataplane.as_mut().unwrap().set_masquerade(&[masqueraded.masquerade()]).unwrap();
        let case = |place: crate::node::Place, after, counter| Case {
            name: "a datagram",
            frame: frame(UDP, (place.pod, 2001), (place.outside, 53)),
            verdict: NEXT,
            after,
            counter,
        };
        let shown = After::Masqueraded(masqueraded.node);
        let cases =
            vec![case(masqueraded, shown, Some(counter::MASQUERADED)), case(plain, After::Same, None)];
        check(node, "orlop_egress", cases);
        node.rewrite_flows(map::NAT, |_| None);
    }
}

#[test]
fn errors_about_packets_reach_whom_they_concern() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    let attached = node.attachments();
    let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
    let told = |program, error: &TooBig| {
        let (verdict, left) = run(program, &error.bytes());
        assert_eq!(verdict, NEXT, "{} to {}", error.from, error.to);
        error.read(&left)
    };
    let again = |from: SocketAddr, to: SocketAddr, of: &Frame| Frame {
        tcp_flags: ACK,
        ..frame(of.protocol, (from.ip(), from.port()), (to.ip(), to.port()))
    };
    for place in PLACES {
        let router = place.neighbour;
        // Of what a pod sends to the world.
        for (protocol, port) in [(TCP, 53), (UDP, 53), (SCTP, 53), (ICMP, 0)] {
            let sent = frame(protocol, (place.pod, 4001), (place.outside, port));
            let (shown, outside) = sent.read(&run(egress, &sent.bytes()).1);
            let error = TooBig { from: router, to: place.node, about: again(shown, outside, &sent) };
            assert_eq!(told(ingress, &error), (router, place.pod, sent.source, sent.destination));
        }
        // Of what the world sends to a node port, and of its answers.
        let (node_port, pod) = (at(place.node, 30080), at(place.pod, 8080));
        for service in [Tcp, Udp, Sctp] {
            node.set(frontend(place.node, 30080, service), &[pod]);
        }
        for protocol in [TCP, UDP, SCTP] {
            let client = at(place.outside, 4101);
            let asked = frame(protocol, (client.ip(), client.port()), (place.node, 30080));
            assert_eq!(asked.read(&run(ingress, &asked.bytes()).1), (client, pod));
            let about = again(client, pod, &asked);
            for (from, shown) in [(place.pod, place.node), (place.gateway, place.node), (router, router)] {
                let error = TooBig { from, to: client.ip(), about: about.clone() };
                assert_eq!(told(egress, &error), (shown, client.ip(), client, node_port));
            }
            let error = TooBig { from: router, to: place.node, about: again(node_port, client, &asked) };
            assert_eq!(told(ingress, &error), (router, place.pod, pod, client));
        }
        assert_eq!(node.counter(counter::ICMP_ERROR_TRANSLATED), if place.node.is_ipv4() { 16 } else { 32 });
        // Of what nobody knows.
        let unknown = frame(UDP, (place.node, 4201), (place.outside, 53));
        let error = TooBig { from: router, to: place.node, about: unknown };
        assert_eq!(run(ingress, &error.bytes()), (NEXT, error.bytes()));
        let unknown = frame(UDP, (place.outside, 4202), (place.pod, 53));
        let error = TooBig { from: place.pod, to: place.outside, about: unknown };
        assert_eq!(run(egress, &error.bytes()), (DROP, error.bytes()));
        // A pod that is asked by its own address answers with it, and so do its errors.
        let direct = frame(UDP, (place.outside, 4301), (place.pod, 53));
        assert_eq!(run(ingress, &direct.bytes()), (NEXT, direct.bytes()));
        let error = TooBig { from: place.pod, to: place.outside, about: direct };
        assert_eq!(run(egress, &error.bytes()), (NEXT, error.bytes()));
    }
}

/// One client port and one backend, by two services and straight: the backend sees three ports, the client its own.
#[test]
fn several_ways_from_one_port_to_one_backend() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    let attached = node.attachments();
    let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
    let pass = |program, frame: &Frame| {
        let (verdict, left) = run(program, &frame.bytes());
        assert_eq!(verdict, NEXT, "{} to {}", frame.source, frame.destination);
        frame.read(&left)
    };
    for (place, protocol) in
        PLACES.into_iter().flat_map(|place| [TCP, UDP, SCTP].map(|protocol| (place, protocol)))
    {
        let (pod, client) = (at(place.pod, 8080), at(place.outside, 5001));
        let packet = |from: SocketAddr, to: SocketAddr| {
            frame(protocol, (from.ip(), from.port()), (to.ip(), to.port()))
        };
        let answer = |to| Frame { tcp_flags: SYN | ACK, ..packet(pod, to) };
        let node_ports = [30080, 30082, 30083].map(|port| at(place.node, port));
        for node_port in node_ports {
            for service in [Tcp, Udp, Sctp] {
                node.set(frontend(node_port.ip(), node_port.port(), service), &[pod]);
            }
        }
        let ways = [node_ports[0], node_ports[1], node_ports[2], pod];
        let seen = ways.map(|way| {
            let (source, destination) = pass(ingress, &packet(client, way));
            assert_eq!((source.ip(), destination), (client.ip(), pod));
            source
        });
        assert_eq!(seen[0], client);
        let different: std::collections::BTreeSet<SocketAddr> = seen.into();
        assert_eq!(different.len(), ways.len(), "{seen:?}");
        // Either half may be evicted; the other one brings it back.
        for forgotten in [None, Some(nat::IN), Some(nat::OUT)] {
            if let Some(direction) = forgotten {
                node.forget_flows(map::INBOUND, |key| key.direction == direction && key.protocol == protocol);
            }
            let both = |way: SocketAddr, source| {
                let next = Frame { tcp_flags: ACK, ..packet(client, way) };
                if forgotten != Some(nat::IN) {
                    assert_eq!(pass(ingress, &next), (source, pod), "{way} {forgotten:?}");
                }
                assert_eq!(pass(egress, &answer(source)), (way, client), "{way} {forgotten:?}");
                assert_eq!(pass(ingress, &next), (source, pod), "{way} {forgotten:?}");
            };
            ways.into_iter().zip(seen).for_each(|(way, source)| both(way, source));
        }
        for (way, source) in ways.into_iter().zip(seen) {
            let about = |from, to| Frame { tcp_flags: ACK, ..packet(from, to) };
            let told = |program, from, to, about| {
                let error = TooBig { from, to, about };
                let (verdict, left) = run(program, &error.bytes());
                assert_eq!(verdict, NEXT, "{way}");
                error.read(&left)
            };
            let router = place.neighbour;
            let of_answer = told(ingress, router, way.ip(), about(way, client));
            let of_question = told(egress, router, client.ip(), about(source, pod));
            assert_eq!(of_answer, (router, place.pod, pod, source), "{way}");
            assert_eq!(of_question, (router, client.ip(), client, way), "{way}");
        }
        // Parts of a packet go as the whole does.
        if protocol == UDP {
            let part = |fragment, frame| Frame { fragment, ..frame };
            assert_eq!(pass(ingress, &part(0x2000, packet(client, ways[1]))), (seen[1], pod));
            check(
                node,
                "orlop_ingress",
                vec![Case {
                    name: "the last part",
                    frame: part(4, packet(client, ways[1])),
                    verdict: NEXT,
                    after: After::Addresses(client.ip(), pod.ip()),
                    counter: None,
                }],
            );
            assert_eq!(pass(egress, &part(0x2000, answer(seen[1]))), (ways[1], client));
        }
        node.forget_flows(map::INBOUND, |_| true);
    }
}

/// A client's port is a new connection's own again when the service's flow that held it is over.
#[test]
fn a_port_that_is_free_again_is_kept() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    let ingress = node.attachments()["orlop_ingress"].program;
    for (place, protocol) in PLACES.into_iter().flat_map(|place| [(place, TCP), (place, SCTP)]) {
        let (pod, client, vip) = (at(place.pod, 8080), at(place.outside, 5002), at(place.node, 30080));
        let pass = |flags, to: SocketAddr| {
            let frame = frame(protocol, (client.ip(), client.port()), (to.ip(), to.port()));
            frame.read(&run(ingress, &Frame { tcp_flags: flags, ..frame.clone() }.bytes()).1)
        };
        for service in [Tcp, Sctp] {
            node.set(frontend(vip.ip(), vip.port(), service), &[pod]);
        }
        assert_eq!(pass(SYN, vip), (client, pod));
        let (shown, _) = pass(SYN, pod);
        assert_ne!(shown, client);
        assert_eq!(pass(ACK, pod), (shown, pod));
        // Both are over, and the client asks once more by the same port.
        node.forget_flows(map::INBOUND, |key| key.direction == nat::OUT);
        for flags in [SYN, ACK, ACK] {
            assert_eq!(pass(flags, pod), (client, pod), "{protocol}");
        }
        node.forget_flows(map::INBOUND, |_| true);
    }
}

/// Silence for less than a flow may be silent takes no port from it.
#[test]
fn a_flow_that_is_silent_for_a_while_keeps_its_port() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    let (ingress, egress) = {
        let attached = node.attachments();
        (attached["orlop_ingress"].program, attached["orlop_egress"].program)
    };
    for place in PLACES {
        let (pod, client) = (at(place.pod, 8080), at(place.outside, 5003));
        let ways = [30080, 30082].map(|port| at(place.node, port));
        let pass = |program, from: SocketAddr, to: SocketAddr| {
            let frame = frame(UDP, (from.ip(), from.port()), (to.ip(), to.port()));
            frame.read(&run(program, &frame.bytes()).1)
        };
        for way in ways {
            node.set(frontend(way.ip(), way.port(), Udp), &[pod]);
        }
        let silent = |node: &Node, ticks| {
            node.rewrite_flows(map::INBOUND, |flow| {
                Some(NatValue { used: flow.used.wrapping_sub(ticks), ..flow })
            });
        };
        assert_eq!(pass(ingress, client, ways[0]), (client, pod));
        silent(node, 20);
        let (shown, _) = pass(ingress, client, ways[1]);
        assert_ne!(shown, client, "the first way's answer may be on its way");
        assert_eq!(pass(egress, pod, client), (ways[0], client));
        assert_eq!(pass(egress, pod, shown), (ways[1], client));
        assert_eq!(pass(ingress, client, ways[1]), (shown, pod));
        // The first one's is over: the second way's client has its own port again when it begins anew.
        silent(node, 200);
        node.forget_flows(map::INBOUND, |key| key.direction == nat::IN);
        assert_eq!(pass(ingress, client, ways[1]), (client, pod));
        node.forget_flows(map::INBOUND, |_| true);
    }
}

/// Also where the pod's answers to this client keep their address, and nothing else is noted of straight flows.
#[test]
fn a_straight_flow_of_a_client_that_is_not_masqueraded_gets_its_own_port_too() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    for place in PLACES {
        let mut masquerade = place.masquerade();
        masquerade.excluded.push(place.outside.into());
        node.dataplane.as_mut().unwrap().set_masquerade(&[masquerade]).unwrap();
        let attached = node.attachments();
        let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
        let (pod, client, vip) = (at(place.pod, 8080), at(place.outside, 5004), at(place.node, 30080));
        let pass = |program, flags, from: SocketAddr, to: SocketAddr| {
            let frame = frame(TCP, (from.ip(), from.port()), (to.ip(), to.port()));
            frame.read(&run(program, &Frame { tcp_flags: flags, ..frame.clone() }.bytes()).1)
        };
        node.set(frontend(vip.ip(), vip.port(), Tcp), &[pod]);
        assert_eq!(pass(ingress, SYN, client, vip), (client, pod));
        let (shown, _) = pass(ingress, SYN, client, pod);
        assert_ne!(shown, client);
        assert_eq!(pass(egress, SYN | ACK, pod, shown), (pod, client));
        assert_eq!(pass(egress, SYN | ACK, pod, client), (vip, client));
        assert_eq!(pass(ingress, ACK, client, pod), (shown, pod));
    }
}

#[test]
fn a_client_that_has_every_port_in_use_gets_no_other() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    let ingress = node.attachments()["orlop_ingress"].program;
    for place in PLACES {
        for port in [30080, 30082] {
            node.set(frontend(place.node, port, Tcp), &[at(place.pod, 8080)]);
        }
        let to = |client, port| frame(TCP, (place.outside, client), (place.node, port));
        assert_eq!(run(ingress, &to(5001, 30080).bytes()).0, NEXT);
        // As if they had come from all other ports too.
        node.copy_flows(map::INBOUND, |key| {
            let ports = nat::FIRST_PORT..=nat::LAST_PORT;
            let ports = ports.filter(move |_| key.direction == nat::OUT);
            ports.map(move |port| NatKey { destination_port_be: port.to_be(), ..key })
        });
        let full = Case {
            name: "no port left",
            frame: to(5001, 30082),
            verdict: DROP,
            after: After::Same,
            counter: Some(counter::NODE_PORT_COLLISION),
        };
        check(node, "orlop_ingress", vec![full]);
        node.forget_flows(map::INBOUND, |_| true);
    }
}

/// The kernel always finds room in an LRU table, in quiet times: plain ones that are full stand in for it.
#[test]
fn flows_that_the_kernel_has_no_room_for() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.crash();
    for name in [map::NAT, map::INBOUND] {
        fill_up(&node.pins().join(name), name);
    }
    node.reopen();
    node.set(frontend(NODE, 30080, Tcp), &[at(POD, 8080)]);
    node.masquerade();
    let dropped = |name, frame| Case {
        name,
        frame,
        verdict: DROP,
        after: After::Same,
        counter: Some(counter::NAT_INSERT_FAILED),
    };
    let to_node_port = frame(TCP, (OUTSIDE, 3001), (NODE, 30080));
    check(node, "orlop_ingress", vec![dropped("a connection to a node port", to_node_port)]);
    let from_pod = frame(UDP, (POD, 3002), (OUTSIDE, 53));
    check(node, "orlop_egress", vec![dropped("a datagram of a pod", from_pod)]);
    assert_eq!(node.counter(counter::NODE_PORT_TRANSLATED) + node.counter(counter::MASQUERADED), 0);
}

/// Puts a table without a free element in the place of a pinned one.
fn fill_up(pin: &std::path::Path, name: &str) {
    std::fs::remove_file(pin).unwrap();
    let (pin_shown, entries) = (pin.display(), capacity::NAT);
    const { assert!(capacity::NAT == capacity::INBOUND) };
    const KEY: usize = size_of::<NatKey>();
    const VALUE: usize = size_of::<NatValue>();
    let sizes = format!("key {KEY} value {VALUE} entries {entries}");
    run_tool("bpftool", &format!("map create {pin_shown} type hash {sizes} name {name} flags 1"));
    let data = MapData::from_pin(pin).unwrap();
    let mut table: HashMap<MapData, [u8; KEY], [u8; VALUE]> = HashMap::try_from(Map::HashMap(data)).unwrap();
    for number in 0..entries as u64 {
        let mut key = [0; KEY];
        key[..8].copy_from_slice(&number.to_ne_bytes());
        table.insert(key, [0; VALUE], 0).unwrap();
    }
}

#[test]
fn a_node_ports_flow_to_another_nodes_pod_goes_on_under_the_nodes_address() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    for place in PLACES {
        let remote = at(place.remote, 8080);
        for protocol in [Tcp, Udp, Sctp] {
            node.set(frontend(place.node, 30080, protocol), &[remote]);
        }
        let attached = node.attachments();
        let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
        let pass = |program, frame: &Frame| {
            let (verdict, left) = run(program, &frame.bytes());
            assert_eq!(verdict, NEXT, "{} to {}", frame.source, frame.destination);
            frame.read(&left)
        };
        let packet = |protocol, from: SocketAddr, to: SocketAddr| {
            frame(protocol, (from.ip(), from.port()), (to.ip(), to.port()))
        };
        let node_port = at(place.node, 30080);
        for (protocol, port) in [(TCP, 3001), (UDP, 3002), (SCTP, 3004)] {
            let client = at(place.outside, port);
            let asked = pass(ingress, &packet(protocol, client, node_port));
            assert_eq!(asked, (client, remote));
            let (shown, target) = pass(egress, &packet(protocol, asked.0, asked.1));
            assert_eq!((shown.ip(), target), (place.node, remote), "the pod must see the node");
            assert!(shown.port() >= nat::FIRST_PORT, "{shown:?}");
            let answer = |from, to| Frame { tcp_flags: SYN | ACK, ..packet(protocol, from, to) };
            let back = pass(ingress, &answer(remote, shown));
            assert_eq!(back, (remote, client));
            let seen = pass(egress, &answer(back.0, back.1));
            assert_eq!(seen, (node_port, client), "the client must see the node port");
            // The next packet of the flow keeps the port.
            let next = Frame { tcp_flags: ACK, ..packet(protocol, client, remote) };
            assert_eq!(pass(egress, &next), (shown, remote));
        }
        // What merely passes through is nobody's business.
        let other = packet(TCP, at(place.outside, 3003), remote);
        assert_eq!(pass(egress, &other), (other.source, other.destination));
    }
}

/// A client that is not answered in time asks again, and may be led to another backend then: the first one's answer comes late.
#[test]
fn a_connection_that_was_led_elsewhere_hears_nothing_of_the_first_backend() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.masquerade();
    for place in PLACES {
        let case = |name, frame, verdict, after, counter| Case { name, frame, verdict, after, counter };
        let (first, second) = (at(place.pod, 8081), at(place.pod, 8082));
        let (client, node_port) = (at(place.outside, 1201), at(place.node, 30080));
        let asks = |protocol| frame(protocol, (place.outside, 1201), (place.node, 30080));
        let led = |backend| After::Ends(client, backend);
        let began = Some(counter::NODE_PORT_TRANSLATED);
        for backend in [first, second] {
            for protocol in [Tcp, Udp] {
                node.set(frontend(place.node, 30080, protocol), &[backend]);
            }
            let cases = [TCP, UDP].map(|protocol| case("asks", asks(protocol), NEXT, led(backend), began));
            check(node, "orlop_ingress", cases.into());
        }
        let answer = |protocol, port| {
            let answer = frame(protocol, (place.pod, port), (place.outside, 1201));
            Frame { tcp_flags: SYN | ACK, ..answer }
        };
        let answered = || After::Ends(node_port, client);
        let cases = vec![
            case("late", answer(TCP, 8081), DROP, After::Same, Some(counter::MASQUERADE_NO_FLOW)),
            case("in time", answer(TCP, 8082), NEXT, answered(), None),
            case("a late datagram", answer(UDP, 8081), NEXT, answered(), None),
            case("a datagram", answer(UDP, 8082), NEXT, answered(), None),
        ];
        check(node, "orlop_egress", cases);
    }
}

/// What may leave a pod that a policy selects, the loopback standing in for its link.
#[test]
fn packets_of_a_selected_pod() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    let rules = RulesetId(NonZeroU32::MIN);
    let link = PodLink { index: 1, name: "lo".to_owned(), netns: None };
    let isolation = Isolation { ingress: None, egress: Some(rules) };
    let range = |protocol, port| PortRange { protocol, first: port, last: port };
    let some = Ports::new([range(policy::Protocol::Udp, 53), range(policy::Protocol::Sctp, 5000)]);
    let allow = |peer: IpAddr, ports| Change::Allow { ruleset: rules, network: peer.into(), ports };
    let mut changes = Vec::new();
    for place in PLACES {
        changes.extend([allow(place.outside, some.clone()), allow(place.neighbour, Ports::All)]);
    }
    node.dataplane.as_mut().unwrap().change_policies(&changes).unwrap();
    node.dataplane.as_mut().unwrap().isolate(&link, isolation).unwrap();
    let program = node.attachment("orlop_from_pod", "lo", "ingress").unwrap().program;
    let denied = |node: &Node| node.counter(counter::POLICY_EGRESS_DENIED);
    let check = |node: &Node, name: &str, packet: &[u8], passes: bool| {
        let before = denied(node);
        let expected = if passes { NEXT } else { DROP };
        assert_eq!(run(program, packet), (expected, packet.to_vec()), "{name}");
        assert_eq!(denied(node) - before, u64::from(!passes), "{name}: the counter");
    };
    for place in PLACES {
        let to = |protocol, port| frame(protocol, (place.pod, 2001), (place.outside, port));
        let near = |protocol, port| frame(protocol, (place.pod, 2001), (place.neighbour, port));
        let rows = [
            ("an allowed port", to(UDP, 53), true),
            ("another port", to(UDP, 54), false),
            ("the port of another protocol", to(TCP, 53), false),
            ("SCTP at an allowed port", to(SCTP, 5000), true),
            ("SCTP at another port", to(SCTP, 5001), false),
            ("another peer", frame(UDP, (place.pod, 2001), (place.remote, 53)), false),
            ("a ping, where ports are named", to(ICMP, 0), false),
            ("a ping, where everything may pass", near(ICMP, 0), true),
            ("an answer to a ping that never came", Frame { icmp: Icmp::Reply, ..to(ICMP, 0) }, false),
            ("the middle of an unknown connection", Frame { tcp_flags: ACK, ..to(TCP, 80) }, false),
            ("the same where it might begin", Frame { tcp_flags: ACK, ..near(TCP, 80) }, true),
            ("the last part of a packet that did not begin", Frame { fragment: 4, ..to(UDP, 53) }, false),
            ("a packet's first part", Frame { fragment: 0x2000, ..to(UDP, 53) }, true),
            ("its last part", Frame { fragment: 4, ..to(UDP, 53) }, true),
            ("the first part at another port", Frame { fragment: 0x2000, ..to(UDP, 54) }, false),
            ("its last part", Frame { fragment: 4, ..to(UDP, 54) }, false),
            ("a last part where everything may pass", Frame { fragment: 4, ..near(UDP, 53) }, true),
            ("an error about nothing that is known", Frame { icmp: Icmp::Error, ..to(ICMP, 0) }, false),
            ("IP options", Frame { options: 1, ..to(UDP, 53) }, true),
        ];
        for (name, frame, passes) in rows {
            check(node, name, &frame.bytes(), passes);
        }
        let about = frame(UDP, (place.outside, 4001), (place.pod, 4002));
        let error = TooBig { from: place.pod, to: place.outside, about };
        check(node, "an error about a packet that did not come", &error.bytes(), false);
        let answered = frame(UDP, (place.outside, 53), (place.pod, 2001));
        let error = TooBig { from: place.pod, to: place.outside, about: answered };
        check(node, "an error about an answer", &error.bytes(), true);
    }
    let of_kind = |kind: u16| {
        let mut bytes = frame(UDP, (V4.pod, 2001), (V4.outside, 53)).bytes();
        bytes[12..14].copy_from_slice(&kind.to_be_bytes());
        bytes
    };
    check(node, "ARP", &of_kind(0x0806), true);
    check(node, "a VLAN's frame", &of_kind(0x8100), false);
    let group: IpAddr = "ff02::1:ff00:9".parse().unwrap();
    for (name, kind, hops, to, passes) in [
        ("a question for a neighbour", 135, 255, group, true),
        ("a question that somebody passed on", 135, 254, group, false),
        ("whether a neighbour is still there", 135, 255, V6.gateway, true),
        ("a report of a group's listener", 143, 1, group, true),
        ("one for others", 143, 64, group, false),
        ("a name's question", 139, 255, group, false),
    ] {
        check(node, name, &neighbourly(kind, hops, to), passes);
    }
    node.masquerade();
    check(node, "a question for somebody far away", &neighbourly(135, 255, V6.outside), false);
    check(node, "a question for a neighbour", &neighbourly(135, 255, V6.gateway), true);
    let mut of_v4 = frame(ICMPV6, (V4.pod, 0), (V4.outside, 0)).bytes();
    of_v4[ETHERNET + 20] = 135;
    check(node, "the same by IPv4", &of_v4, false);
    let known = frame(UDP, (V4.outside, 53), (V4.pod, 2001));
    let elsewhere = TooBig { from: V4.pod, to: V4.remote, about: known.clone() };
    check(node, "an error that is told to somebody else", &elsewhere.bytes(), false);
    let told = TooBig { from: V4.pod, to: V4.outside, about: known };
    check(node, "an error that is told to whom it concerns", &told.bytes(), true);
    let reset = Frame { tcp_flags: RST, ..frame(TCP, (V4.pod, 80), (V4.outside, 2001)) };
    check(node, "a reset of what could have come in", &reset.bytes(), true);
    let cut_off = &frame(UDP, (V4.pod, 2001), (V4.outside, 53)).bytes()[..ETHERNET + 20];
    check(node, "a packet without its ports", cut_off, false);
    // What is not isolated in this direction may send what it likes.
    let isolation = Isolation { ingress: Some(rules), egress: None };
    node.dataplane.as_mut().unwrap().isolate(&link, isolation).unwrap();
    check(node, "a VLAN's frame of an open pod", &of_kind(0x8100), true);
}

/// A message of a pod by which hosts find each other.
fn neighbourly(kind: u8, hops: u8, to: IpAddr) -> Vec<u8> {
    let mut bytes = frame(ICMP, (V6.pod, 0), (to, 0)).bytes();
    bytes[ETHERNET + HOP_LIMIT] = hops;
    bytes[ETHERNET + 40] = kind;
    bytes
}

/// The link that is no uplink, as a pod's.
fn other() -> PodLink {
    let index = std::fs::read_to_string("/sys/class/net/other/ifindex").unwrap().trim().parse().unwrap();
    PodLink { index, name: "other".into(), netns: None }
}

/// One that is open goes on, and so does a flow of datagrams, which begins only once.
#[test]
fn a_connection_of_a_pods_packets_that_begins_anew_is_held_to_source_ranges() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.dataplane.as_mut().unwrap().serve_packets(&other()).unwrap();
    let from_pod = node.attachment("orlop_vip_in", "other", "ingress").unwrap().program;
    for (place, (protocol, number, anew)) in
        PLACES.into_iter().flat_map(|place| [(Tcp, TCP, DROP), (Udp, UDP, NEXT)].map(|case| (place, case)))
    {
        let mut admit = |address: IpAddr| {
            let sources = Some([address.into()].into());
            let target = Target { sources, ..Target::all([at(place.remote, 8080)]) };
            node.lead(frontend(place.cluster_ip, 80, protocol), &target);
        };
        let asks = |tcp_flags| {
            let asks = Frame { tcp_flags, ..frame(number, (place.pod, 4001), (place.cluster_ip, 80)) };
            run(from_pod, &asks.bytes()).0
        };
        admit(place.pod);
        assert_eq!([asks(SYN), asks(ACK)], [NEXT; 2]);
        admit(place.outside);
        assert_eq!([asks(ACK), asks(SYN)], [NEXT, anew], "{protocol:?}");
        admit(place.pod);
        assert_eq!(asks(SYN), NEXT);
    }
}

/// At the link of a pod whose other packets are its sockets'.
#[test]
fn of_a_pod_that_is_led_over_sctp_nothing_else_is() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.dataplane.as_mut().unwrap().serve_sctp(&other()).unwrap();
    let [enter, leave] = [("orlop_sctp_in", "ingress"), ("orlop_sctp_out", "egress")]
        .map(|(program, direction)| node.attachment(program, "other", direction).unwrap().program);
    for place in PLACES {
        let (vip, endpoint, pod) = (at(place.cluster_ip, 80), at(place.outside, 8080), at(place.pod, 4001));
        for protocol in [Tcp, Udp, Sctp] {
            node.set(frontend(vip.ip(), vip.port(), protocol), &[endpoint]);
        }
        let packet = |protocol: u8, from: SocketAddr, to: SocketAddr| {
            frame(protocol, (from.ip(), from.port()), (to.ip(), to.port()))
        };
        let later = |from, to| Frame { tcp_flags: ACK, ..packet(SCTP, from, to) };
        // From the pod to the service, and back.
        for asked in [packet(SCTP, pod, vip), later(pod, vip)] {
            let (verdict, left) = run(enter, &asked.bytes());
            assert_eq!((verdict, asked.read(&left)), (NEXT, (pod, endpoint)));
        }
        let answer = later(endpoint, pod);
        let (verdict, left) = run(leave, &answer.bytes());
        assert_eq!((verdict, answer.read(&left)), (NEXT, (vip, pod)));
        // A router refuses what the pod knows as sent to the service.
        let error = TooBig { from: place.neighbour, to: pod.ip(), about: later(pod, endpoint) };
        let (verdict, left) = run(leave, &error.bytes());
        assert_eq!((verdict, error.read(&left)), (NEXT, (place.neighbour, pod.ip(), pod, vip)));
        // The pod refuses what it knows as come from the service.
        let error = TooBig { from: pod.ip(), to: vip.ip(), about: later(vip, pod) };
        assert_eq!(run(enter, &error.bytes()).0, NEXT);
        // To a service whose endpoint is gone: as of any pod that is led by packets.
        node.set(frontend(vip.ip(), 81, Sctp), &[]);
        assert_eq!(run(enter, &packet(SCTP, pod, at(vip.ip(), 81)).bytes()).0, DROP);
        // All else is not touched, whatever is known: here each would be led, or is an answer of what was.
        for protocol in [TCP, UDP] {
            node.copy_flows(map::NAT, |key| std::iter::once(NatKey { protocol, ..key }));
            let sent = packet(protocol, pod, vip).bytes();
            assert_eq!(run(enter, &sent), (NEXT, sent));
            let answer = packet(protocol, endpoint, pod).bytes();
            assert_eq!(run(leave, &answer), (NEXT, answer));
            let about = Frame { tcp_flags: ACK, ..packet(protocol, pod, endpoint) };
            let error = TooBig { from: place.neighbour, to: pod.ip(), about }.bytes();
            assert_eq!(run(leave, &error), (NEXT, error));
        }
        let parts = [
            Frame { fragment: 0x2000, ..packet(SCTP, pod, vip) },
            Frame { fragment: 0x2000, ..packet(UDP, pod, vip) },
            frame(ICMP, (pod.ip(), 7), (vip.ip(), 0)),
            frame(GRE, (pod.ip(), 0), (vip.ip(), 0)),
        ];
        for sent in parts.map(|part| part.bytes()) {
            assert_eq!(run(enter, &sent), (NEXT, sent));
        }
    }
    let mut no_ip = frame(SCTP, (POD, 4001), (V4.cluster_ip, 80)).bytes();
    no_ip[12..ETHERNET].copy_from_slice(&[8, 6]);
    assert_eq!(run(enter, &no_ip), (NEXT, no_ip));
}

#[test]
fn the_verifier_stays_within_its_budget() {
    let mut bench = Bench::of_all_programs();
    // Those for services by packets are loaded for the first link that has them.
    bench.node.dataplane.as_mut().unwrap().serve_packets(&other()).unwrap();
    bench.node.dataplane.as_mut().unwrap().serve_sctp(&other()).unwrap();
    // And the one that hears of failures, for the first service that wants to know.
    let mindful = Target { set_aside_after: std::num::NonZeroU8::new(1), ..Target::default() };
    bench.node.lead(frontend(NODE, 30080, Tcp), &mindful);
    let mut rows = include_str!("budget.txt").lines().filter(|line| !line.starts_with('#'));
    let columns = rows.next().unwrap().split_whitespace().skip(1).map(version);
    // A kernel between two of the table is counted as the older one.
    let own = version(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap());
    let column = columns.take_while(|column| *column <= own).count();
    assert!(column > 0, "tests/bpf/budget.txt has no column for kernel {own:?}, nor for an older one");
    let mut over = Vec::new();
    for row in rows {
        let row: Vec<&str> = row.split_whitespace().collect();
        let name = row[0];
        let limit: u32 = row[column].parse().unwrap();
        let on_uplink = bench.node.attachments().remove(name);
        let id = on_uplink.or_else(|| link(&bench.node.pins().join(format!("link_{name}"))));
        // Those for pods are loaded, and not attached yet: the instructions of others are the same.
        let is_it = |program: &ProgramInfo| match &id {
            Some(attached) => u64::from(program.id()) == attached.program,
            None => program.name_as_str() == Some(name),
        };
        let program = aya::programs::loaded_programs().filter_map(Result::ok).find(is_it).unwrap();
        let verified = program.verified_instruction_count().expect("a kernel from 5.16 on");
        println!("{name}: {verified} verified instructions, {limit} allowed");
        if verified > limit {
            over.push(name);
        }
    }
    assert!(over.is_empty(), "{over:?} grew beyond tests/bpf/budget.txt");
    drop(bench);
}

/// A kernel's first two numbers.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(['.', '-']).map(str::parse);
    let mut next = || numbers.next().unwrap().unwrap();
    (next(), next())
}
