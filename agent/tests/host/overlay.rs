//! Packets between the pods of three nodes, and what they look like on the way, for each network backend.

use std::io::Read;
use std::net::IpAddr;
use std::process::Command;

use agent::network::lease::{self, End};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cluster::{Agent, Cluster, LIMIT, ask, inside, ip, pod_addresses, shown};

const ADDRESSES: [&str; 3] = ["10.85.0.11", "10.85.0.12", "10.85.0.13"];
/// Something to look for in packets.
const MARK: &[u8] = b"nobody on the way should read this, if it is encrypted";
const ETH_P_ALL: u16 = 3;
const ETHERNET: usize = 14;

/// Where a packet is in a frame, and of which UDP port the one around it.
struct Wrapping {
    overhead: u32,
    port: Option<u16>,
    encrypted: bool,
}

/// Every pod reaches every other one, and is seen under its own address.
fn everybody_is_reached() {
    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            reached(from, to);
        }
    }
}

fn reached(from: u8, to: u8) {
    let source = format!("pod-{from}");
    for (own, address) in pod_addresses(from).into_iter().zip(pod_addresses(to)) {
        let seen = harness::wait::until("a pod of another node", LIMIT, || ask(&source, address, b"?"));
        assert_eq!(seen, (own, b"?".to_vec()));
    }
}

/// The frames on the nodes' network while `work` is done, and whole ones.
fn on_the_wire(work: impl FnOnce()) -> Vec<Vec<u8>> {
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
    socket.set_recv_buffer_size(8 << 20).unwrap();
    socket.set_nonblocking(true).unwrap();
    work();
    let mut frames = Vec::new();
    let mut buffer = vec![0; 70_000];
    while let Ok(length) = socket.read(&mut buffer) {
        frames.push(buffer[..length].to_vec());
    }
    frames
}

fn contains(frame: &[u8], part: &[u8]) -> bool {
    frame.windows(part.len()).any(|window| window == part)
}

/// Packets of this namespace that were divided.
fn fragments(namespace: &str) -> u64 {
    let count = || {
        let counters = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut lines = counters.lines().filter(|line| line.starts_with("Ip:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let place = names.split(' ').position(|name| name == "FragCreates").unwrap();
        values.split(' ').nth(place).unwrap().parse::<u64>().unwrap()
    };
    inside(namespace, count).join().unwrap()
}

fn mtu_of(node: u8, link: &str) -> u32 {
    let all: serde_json::Value =
        serde_json::from_str(&shown(node, &format!("-j link show dev {link}"))).unwrap();
    u32::try_from(all[0]["mtu"].as_u64().unwrap()).unwrap()
}

/// The largest packets of pods pass whole, and look on the way as they should.
fn packets_fit(agents: &[Agent], wrapping: &Wrapping) {
    for agent in agents {
        assert_eq!(agent.mtu, 1500 - wrapping.overhead);
    }
    let question = MARK.repeat(20_000);
    let nodes = ["node-1", "node-2", "node-3"];
    let before = nodes.map(fragments);
    let frames = on_the_wire(|| {
        for to in pod_addresses(2) {
            let (_, answer) = ask("pod-1", to, &question).unwrap();
            assert!(answer == question, "{to}: something else came back");
        }
    });
    assert_eq!(nodes.map(fragments), before);
    let readable = frames.iter().any(|frame| contains(frame, MARK));
    assert_eq!(readable, !wrapping.encrypted);
    let ports = |frame: &Vec<u8>| u16::from_be_bytes([frame[ETHERNET + 22], frame[ETHERNET + 23]]);
    let is_udp = |frame: &&Vec<u8>| {
        frame.len() > ETHERNET + 28 && frame[12..14] == [8, 0] && frame[ETHERNET + 9] == 17
    };
    let wrapped = frames.iter().filter(is_udp).filter(|frame| Some(ports(frame)) == wrapping.port).count();
    let IpAddr::V4(pod) = pod_addresses(1)[0] else { unreachable!("the first is IPv4") };
    let plain =
        frames.iter().filter(|frame| frame[12..14] == [8, 0] && frame[ETHERNET + 12..][..4] == pod.octets());
    match wrapping.port {
        Some(_) => assert_eq!((wrapped > 10, plain.count()), (true, 0)),
        None => assert!(plain.count() > 10),
    }
}

fn has_kind(kind: &str) -> bool {
    let made = Command::new("ip").args(["link", "add", "probe", "type", kind]).output().unwrap();
    if made.status.success() {
        ip("link del probe");
    }
    made.status.success()
}

fn routes(node: u8) -> String {
    shown(node, "route show proto 79") + &shown(node, "-6 route show proto 79")
}

/// The life of a cluster.
fn nodes_come_go_and_move(backend: &'static str, wrapping: &Wrapping) {
    let cluster = Cluster::new(backend);
    let mut agents = Vec::new();
    for (node, address) in (1..).zip(ADDRESSES) {
        agents.push(cluster.start(node, address));
    }
    everybody_is_reached();
    packets_fit(&agents, wrapping);
    if let Some(link) = agents[0].link {
        let name = if backend == "vxlan" { "orlop-vxlan" } else { "orlop-wg" };
        assert_eq!(mtu_of(1, name), agents[0].mtu);
        // Another agent takes over what this one leaves.
        let (first, key) = (shown(1, &format!("link show dev {name}")), routes(1));
        drop(agents.remove(0));
        reached(1, 2);
        agents.insert(0, cluster.start(1, ADDRESSES[0]));
        assert_eq!(agents[0].link, Some(link));
        assert_eq!((shown(1, &format!("link show dev {name}")), routes(1)), (first, key));
        reached(2, 1);
    }

    // A node leaves, and nothing of it stays.
    drop(agents.pop());
    cluster.delete(3);
    harness::wait::until("the third node's part is gone", LIMIT, || {
        let left = [routes(1), shown(1, "neigh show nud permanent"), shown(1, "-6 neigh show nud permanent")]
            .concat();
        let gone = !left.contains("10.244.3.") && !left.contains("fd00:244:0:3:");
        gone.then_some(()).ok_or(left)
    });
    reached(1, 2);

    // It comes back with another address, at which the others find it.
    agents.push(cluster.start(3, "10.85.0.33"));
    everybody_is_reached();
    // And moves while it is known.
    drop(agents.pop());
    agents.push(cluster.start(3, "10.85.0.34"));
    everybody_is_reached();
}

#[test]
fn by_routes_alone() {
    nodes_come_go_and_move("host-gw", &Wrapping { overhead: 0, port: None, encrypted: false });
}

#[test]
fn by_vxlan() {
    nodes_come_go_and_move("vxlan", &Wrapping { overhead: 50, port: Some(8472), encrypted: false });
}

#[test]
fn by_wireguard() {
    harness::private_host::require();
    if !has_kind("wireguard") {
        return harness::skip::skip("the kernel has no WireGuard");
    }
    nodes_come_go_and_move("wireguard", &Wrapping { overhead: 60, port: Some(51820), encrypted: true });
}

/// The link of the backend before goes, and with it what was there.
#[test]
fn a_cluster_changes_its_backend() {
    let mut cluster = Cluster::new("vxlan");
    let wrapped = [cluster.start(1, ADDRESSES[0]), cluster.start(2, ADDRESSES[1])];
    reached(1, 2);
    drop(wrapped);
    cluster.backend = "host-gw";
    let plain = [cluster.start(1, ADDRESSES[0]), cluster.start(2, ADDRESSES[1])];
    assert_eq!(plain[0].link, None);
    assert!(!shown(1, "link show").contains("orlop-vxlan"));
    reached(1, 2);
    reached(2, 1);
    drop(plain);
}

/// A node that says what the kernel does not take, or claims another's end, keeps nobody else from being reached.
#[test]
fn others_are_reached_whatever_a_node_says() {
    let cluster = Cluster::new("vxlan");
    let agents = [cluster.start(1, ADDRESSES[0]), cluster.start(2, ADDRESSES[1])];
    reached(1, 2);
    let victim = cluster.annotations(2);
    let odd = End::Vxlan("0a:00:00:00:00:67".parse().unwrap());
    cluster.add("aaa", "10.85.0.66", "10.244.66.0/24", victim);
    cluster.add("bbb", "224.0.0.1", "10.244.67.0/24", lease::annotations(Some(odd), [0, 0, 0, 0].into()));
    harness::wait::until("what the newcomer's part is", LIMIT, || {
        let found = shown(1, "neigh show nud permanent");
        found.contains("10.244.67.0").then_some(()).ok_or(found)
    });
    assert!(!routes(1).contains("10.244.66."), "{}", routes(1));
    drop(agents);
    let again = [cluster.start(1, ADDRESSES[0]), cluster.start(2, ADDRESSES[1])];
    reached(1, 2);
    reached(2, 1);
    drop(again);
}

/// The agent ends when its link is removed, so that the next one makes it anew.
#[test]
fn an_overlay_that_is_removed_ends_the_agent() {
    let cluster = Cluster::new("vxlan");
    let first = cluster.start(1, ADDRESSES[0]);
    ip("-n node-1 link del orlop-vxlan");
    harness::wait::until("the agent's part ends", LIMIT, || {
        first.has_ended().then_some(()).ok_or_else(|| "it goes on".to_owned())
    });
    drop(first);
    let agents = [cluster.start(1, ADDRESSES[0]), cluster.start(2, ADDRESSES[1])];
    reached(1, 2);
    drop(agents);
}
