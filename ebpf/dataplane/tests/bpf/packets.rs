//! The uplink programs as a table: packet in, verdict and packet out, run by the kernel without a network (prog-test-run).
//! And what the verifier had to look at, against `budget.txt`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use aya::maps::{HashMap, Map, MapData};
use dataplane::Protocol::{Tcp, Udp};
use dataplane::{Masquerade, UplinkHook};
use dataplane_abi::{capacity, counter, map, nat};

use crate::node::{NODE, Node, OUTSIDE, POD, frontend, ip, link, run as run_tool};
use crate::tun::Tun;

const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// An Ethernet frame with IPv4, for the tests to vary.
#[derive(Clone)]
struct Frame {
    source: SocketAddrV4,
    destination: SocketAddrV4,
    protocol: u8,
    /// TCP flags, or the ICMP type.
    kind: u8,
    /// The IPv4 header's fragment field.
    fragment: u16,
    /// Words of IP options.
    options: u8,
    udp_checksum: bool,
}

fn frame(protocol: u8, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Frame {
    Frame {
        source: SocketAddrV4::new(source.0, source.1),
        destination: SocketAddrV4::new(destination.0, destination.1),
        protocol,
        kind: if protocol == TCP { SYN } else { 8 },
        fragment: 0,
        options: 0,
        udp_checksum: true,
    }
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        if self.protocol == ICMP {
            transport.extend([self.kind, 0, 0, 0]);
            transport.extend(self.source.port().to_be_bytes());
            transport.extend([0, 1]);
        } else {
            transport.extend(self.source.port().to_be_bytes());
            transport.extend(self.destination.port().to_be_bytes());
        }
        match self.protocol {
            TCP => transport.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, self.kind, 4, 0, 0, 0, 0, 0]),
            UDP => transport.extend([0, 16, 0, 0]),
            _ => {}
        }
        transport.extend(*b"payload!");
        let header = 20 + usize::from(self.options) * 4;
        let mut packet = vec![0x40 | (header / 4) as u8, 0];
        packet.extend(((header + transport.len()) as u16).to_be_bytes());
        packet.extend([0, 7]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(self.source.ip().octets());
        packet.extend(self.destination.ip().octets());
        packet.resize(header, 1);
        let sum = !sum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        if let Some(place) = checksum_place(self.protocol)
            && (self.protocol != UDP || self.udp_checksum)
        {
            let sum = !transport_sum(&packet, &transport);
            transport[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        bytes.extend(packet);
        bytes.extend(transport);
        bytes
    }

    /// What came out, taken apart again; panics if a checksum is wrong.
    fn read(&self, bytes: &[u8]) -> (SocketAddrV4, SocketAddrV4) {
        let (header, transport) = bytes[14..].split_at(20 + usize::from(self.options) * 4);
        assert_eq!(sum(header), 0xffff, "the header's checksum");
        if self.protocol != UDP || self.udp_checksum {
            assert_eq!(transport_sum(header, transport), 0xffff, "the payload's checksum");
        } else {
            assert_eq!(transport[6..8], [0, 0], "no checksum stays none");
        }
        let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&header[at..at + 4]).unwrap());
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        let ports = if self.protocol == ICMP { (port(4), 0) } else { (port(0), port(2)) };
        (SocketAddrV4::new(address(12), ports.0), SocketAddrV4::new(address(16), ports.1))
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

/// The ones' complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += (u32::from(pair[0]) << 8) | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn transport_sum(header: &[u8], transport: &[u8]) -> u16 {
    let mut covered = Vec::new();
    if header[9] != ICMP {
        covered.extend(&header[12..20]);
        covered.extend([0, header[9]]);
        covered.extend((transport.len() as u16).to_be_bytes());
    }
    covered.extend(transport);
    sum(&covered)
}

/// The program's verdict, and the packet as it left it.
fn run(program: u64, packet: &[u8]) -> (u32, Vec<u8>) {
    let folder = std::env::temp_dir();
    // Process ids are alike in all private hosts; a program's id is the machine's.
    let place = |name: &str| folder.join(format!("orlop-packet-{program}-{name}"));
    let (input, output) = (place("in"), place("out"));
    std::fs::write(&input, packet).unwrap();
    let ran = Command::new("bpftool")
        .args(["-j", "prog", "run", "id", &program.to_string(), "data_in"])
        .arg(&input)
        .arg("data_out")
        .arg(&output)
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&ran.stdout).into_owned();
    let result: serde_json::Value = serde_json::from_str(&shown).unwrap_or_else(|_| panic!("{shown}"));
    let left = std::fs::read(&output).unwrap();
    std::fs::remove_file(input).unwrap();
    std::fs::remove_file(output).unwrap();
    (result["retval"].as_u64().unwrap_or_else(|| panic!("{shown}")) as u32, left)
}

/// A node whose uplink leads nowhere: only its programs matter.
struct Bench {
    node: Node,
    _overlay: Option<Tun>,
}

impl Bench {
    fn new() -> Self {
        ip("link add uplink type veth peer name other");
        Self { node: Node::with_uplink(), _overlay: None }
    }

    /// Beside the uplink a link without Ethernet.
    fn with_overlay() -> Self {
        ip("link add uplink type veth peer name other");
        let overlay = Some(Tun::make("overlay"));
        Self { node: Node::with_uplinks(&["uplink", "overlay"], UplinkHook::Newest), _overlay: overlay }
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
    Ends((Ipv4Addr, u16), (Ipv4Addr, u16)),
    /// From the node, from a masquerading port.
    Masqueraded,
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
                let wanted =
                    (SocketAddrV4::new(source.0, source.1), SocketAddrV4::new(destination.0, destination.1));
                assert_eq!(frame.read(&left), wanted, "{name}");
            }
            After::Masqueraded => {
                let (source, destination) = frame.read(&left);
                assert_eq!(*source.ip(), NODE, "{name}");
                assert!(source.port() >= nat::FIRST_PORT, "{name}: {source}");
                assert_eq!(destination.ip(), frame.destination.ip(), "{name}");
            }
        }
    }
}

fn masquerade() -> Masquerade {
    Masquerade {
        pods: "10.244.0.0/24".parse().unwrap(),
        address: NODE,
        excluded: vec!["10.244.0.0/16".parse().unwrap()],
        overlay: None,
    }
}

#[test]
fn packets_that_come_in() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    let pod = (POD, 8080);
    for port in [30080, 30082] {
        node.set(frontend(NODE.octets(), port, Tcp), &[SocketAddrV4::new(POD, 8080)]);
    }
    node.set(frontend(NODE.octets(), 30080, Udp), &[SocketAddrV4::new(POD, 8080)]);
    node.set(frontend(NODE.octets(), 30081, Tcp), &[]);
    let to = |protocol, client: u16, port: u16| frame(protocol, (OUTSIDE, client), (NODE, port));
    let translated = |client: u16| After::Ends((OUTSIDE, client), pod);
    let case = |name, frame, verdict, after, counter| Case { name, frame, verdict, after, counter };
    let began = Some(counter::NODE_PORT_TRANSLATED);
    let cases = vec![
        case("a connection", to(TCP, 1001, 30080), NEXT, translated(1001), began),
        case("its next packet", Frame { kind: ACK, ..to(TCP, 1001, 30080) }, NEXT, translated(1001), None),
        case("a datagram", to(UDP, 1002, 30080), NEXT, translated(1002), began),
        case(
            "a datagram without a checksum",
            Frame { udp_checksum: false, ..to(UDP, 1003, 30080) },
            NEXT,
            translated(1003),
            began,
        ),
        case("IP options", Frame { options: 2, ..to(TCP, 1004, 30080) }, NEXT, translated(1004), began),
        case(
            "a fragment",
            Frame { fragment: 0x2000, ..to(UDP, 1005, 30080) },
            NEXT,
            After::Same,
            Some(counter::FRAGMENT),
        ),
        case("no backend", to(TCP, 1006, 30081), DROP, After::Same, Some(counter::NODE_PORT_NO_BACKEND)),
        case(
            "the middle of an unknown connection",
            Frame { kind: ACK, ..to(TCP, 1007, 30080) },
            NEXT,
            After::Same,
            Some(counter::NODE_PORT_NO_FLOW),
        ),
        case(
            "a second way to the same pod",
            to(TCP, 1001, 30082),
            DROP,
            After::Same,
            Some(counter::NODE_PORT_COLLISION),
        ),
        case("another port of the node", to(TCP, 1008, 22), NEXT, After::Same, None),
        case("a ping", to(ICMP, 1009, 0), NEXT, After::Same, None),
    ];
    check(node, "orlop_ingress", cases);
}

#[test]
fn packets_that_go_out() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.dataplane.as_mut().unwrap().set_masquerade(Some(&masquerade())).unwrap();
    let from = |protocol, port: u16| frame(protocol, (POD, port), (OUTSIDE, 53));
    let case = |name, frame, verdict, after, counter| Case { name, frame, verdict, after, counter };
    let masqueraded = Some(counter::MASQUERADED);
    let impossible = Some(counter::MASQUERADE_IMPOSSIBLE);
    let cases = vec![
        case("a connection", from(TCP, 2001), NEXT, After::Masqueraded, masqueraded),
        case("its next packet", Frame { kind: ACK, ..from(TCP, 2001) }, NEXT, After::Masqueraded, None),
        case("a datagram", from(UDP, 2002), NEXT, After::Masqueraded, masqueraded),
        case(
            "a datagram without a checksum",
            Frame { udp_checksum: false, ..from(UDP, 2003) },
            NEXT,
            After::Masqueraded,
            masqueraded,
        ),
        case("IP options", Frame { options: 1, ..from(UDP, 2004) }, NEXT, After::Masqueraded, masqueraded),
        case("a ping", from(ICMP, 2005), NEXT, After::Masqueraded, masqueraded),
        case(
            "an answer to a ping that never came",
            Frame { kind: 0, ..from(ICMP, 2006) },
            DROP,
            After::Same,
            Some(counter::MASQUERADE_NO_FLOW),
        ),
        case("an ICMP error", Frame { kind: 3, ..from(ICMP, 2007) }, DROP, After::Same, impossible),
        case("a fragment", Frame { fragment: 0x2000, ..from(UDP, 2008) }, DROP, After::Same, impossible),
        case("its last part", Frame { fragment: 0x0004, ..from(UDP, 2008) }, DROP, After::Same, impossible),
        case("a protocol without our ports", from(SCTP, 2009), DROP, After::Same, impossible),
        case(
            "the middle of an unknown connection",
            Frame { kind: ACK, ..from(TCP, 2010) },
            DROP,
            After::Same,
            Some(counter::MASQUERADE_NO_FLOW),
        ),
        case(
            "to another node's pod",
            frame(UDP, (POD, 2011), (Ipv4Addr::new(10, 244, 7, 7), 53)),
            NEXT,
            After::Same,
            None,
        ),
        case("from the node itself", frame(UDP, (NODE, 2012), (OUTSIDE, 53)), NEXT, After::Same, None),
    ];
    check(node, "orlop_egress", cases);
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
    node.set(frontend(NODE.octets(), 30080, Tcp), &[SocketAddrV4::new(POD, 8080)]);
    node.dataplane.as_mut().unwrap().set_masquerade(Some(&masquerade())).unwrap();
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
    run_tool(
        "bpftool",
        &format!("map create {pin_shown} type hash key 16 value 32 entries {entries} name {name} flags 1"),
    );
    let data = MapData::from_pin(pin).unwrap();
    let mut table: HashMap<MapData, [u8; 16], [u8; 32]> = HashMap::try_from(Map::HashMap(data)).unwrap();
    for number in 0..entries as u128 {
        table.insert(number.to_ne_bytes(), [0; 32], 0).unwrap();
    }
}

#[test]
fn a_node_ports_flow_to_another_nodes_pod_goes_on_under_the_nodes_address() {
    let mut bench = Bench::new();
    let node = &mut bench.node;
    node.dataplane.as_mut().unwrap().set_masquerade(Some(&masquerade())).unwrap();
    let remote = (Ipv4Addr::new(10, 244, 7, 7), 8080);
    for protocol in [Tcp, Udp] {
        node.set(frontend(NODE.octets(), 30080, protocol), &[SocketAddrV4::new(remote.0, remote.1)]);
    }
    let attached = node.attachments();
    let (ingress, egress) = (attached["orlop_ingress"].program, attached["orlop_egress"].program);
    let pass = |program, frame: &Frame| {
        let (verdict, left) = run(program, &frame.bytes());
        assert_eq!(verdict, NEXT, "{} to {}", frame.source, frame.destination);
        frame.read(&left)
    };
    for (protocol, client) in [(TCP, (OUTSIDE, 3001)), (UDP, (OUTSIDE, 3002))] {
        let ends =
            |(from, to): (SocketAddrV4, SocketAddrV4)| ((*from.ip(), from.port()), (*to.ip(), to.port()));
        let asked = ends(pass(ingress, &frame(protocol, client, (NODE, 30080))));
        assert_eq!(asked, (client, remote));
        let (shown, target) = ends(pass(egress, &frame(protocol, asked.0, asked.1)));
        assert_eq!((shown.0, target), (NODE, remote), "the pod must see the node");
        assert!(shown.1 >= nat::FIRST_PORT, "{shown:?}");
        let answer = |from, to| Frame { kind: SYN | ACK, ..frame(protocol, from, to) };
        let back = ends(pass(ingress, &answer(remote, shown)));
        assert_eq!(back, (remote, client));
        let seen = ends(pass(egress, &answer(back.0, back.1)));
        assert_eq!(seen, ((NODE, 30080), client), "the client must see the node port");
        // The next packet of the flow keeps the port.
        let next = Frame { kind: ACK, ..frame(protocol, client, remote) };
        assert_eq!(ends(pass(egress, &next)), (shown, remote));
    }
    // What merely passes through is nobody's business.
    let other = frame(TCP, (OUTSIDE, 3003), remote);
    assert_eq!(pass(egress, &other), (other.source, other.destination));
}

#[test]
fn the_verifier_stays_within_its_budget() {
    let bench = Bench::with_overlay();
    let budget = include_str!("budget.txt").lines().filter(|line| !line.starts_with('#'));
    let mut over = Vec::new();
    for line in budget {
        let (name, limit) = line.split_once(' ').unwrap();
        let limit: u32 = limit.parse().unwrap();
        let on_uplink = bench.node.attachments().remove(name);
        let socket = || link(&bench.node.pins().join(format!("link_{name}"))).unwrap();
        let id = on_uplink.unwrap_or_else(socket).program;
        let program = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .find(|program| u64::from(program.id()) == id)
            .unwrap();
        let verified = program.verified_instruction_count().expect("a kernel from 5.16 on");
        println!("{name}: {verified} verified instructions, {limit} allowed");
        if verified > limit {
            over.push(name);
        }
    }
    assert!(over.is_empty(), "{over:?} grew beyond tests/bpf/budget.txt");
    drop(bench);
}
