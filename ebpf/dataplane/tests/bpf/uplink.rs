//! Node ports and masquerading: packets that cross the uplink.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use dataplane::Protocol::{Tcp, Udp};
use dataplane::{Masquerade, Overlay, UplinkHook};
use dataplane_abi::{NatValue, counter, map, nat};

use crate::node::{
    LIMIT, Links, NODE, Node, OUTSIDE, POD, ask_tcp, ask_udp, frontend, inside, serve_tcp, serve_udp,
};
use crate::tun::Tun;

pub const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

pub fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

pub fn masquerade(node: &mut Node) {
    let masquerade = Masquerade {
        pods: "10.244.0.0/24".parse().unwrap(),
        address: NODE,
        excluded: vec!["10.244.0.0/16".parse().unwrap()],
        overlay: None,
    };
    node.dataplane.as_mut().unwrap().set_masquerade(Some(&masquerade)).unwrap();
}

#[test]
fn a_node_port_leads_from_outside_to_the_pod_and_back() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    masquerade(&mut node);
    inside("pod", || (serve_tcp(at(ANY, 8080), "pod"), serve_udp(at(ANY, 8080), "pod"))).join().unwrap();
    node.set(frontend(NODE.octets(), 30080, Tcp), &[at(POD, 8080)]);
    node.set(frontend(NODE.octets(), 30080, Udp), &[at(POD, 8080)]);
    let (tcp, udp) = inside("outside", || {
        let socket = UdpSocket::bind(at(ANY, 0)).unwrap();
        (ask_tcp(at(NODE, 30080)), ask_udp(&socket, at(NODE, 30080)))
    })
    .join()
    .unwrap();
    // The pod sees the client, the client sees the node.
    assert_eq!(tcp.unwrap(), "pod saw 192.0.2.9");
    assert_eq!(udp.unwrap(), ("pod saw 192.0.2.9".into(), "192.0.2.1:30080".into()));
}

#[test]
fn a_flow_of_datagrams_moves_on_when_its_backend_goes() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    inside("pod", || (serve_udp(at(ANY, 1111), "old"), serve_udp(at(ANY, 2222), "new"))).join().unwrap();
    let service = frontend(NODE.octets(), 30053, Udp);
    node.set(service, &[at(POD, 1111)]);
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let (answer, answered) = std::sync::mpsc::channel();
    let client = inside("outside", move || {
        let socket = UdpSocket::bind(at(ANY, 0)).unwrap();
        while asked.recv().is_ok() {
            answer.send(ask_udp(&socket, at(NODE, 30053)).unwrap().0).unwrap();
        }
    });
    ask.send(()).unwrap();
    assert_eq!(answered.recv().unwrap(), "old saw 192.0.2.9");
    node.set(service, &[at(POD, 2222)]);
    ask.send(()).unwrap();
    assert_eq!(answered.recv().unwrap(), "new saw 192.0.2.9");
    drop(ask);
    client.join().unwrap();
}

#[test]
fn pods_show_the_node_address_outside() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    masquerade(&mut node);
    inside("outside", || (serve_tcp(at(ANY, 7000), "out"), serve_udp(at(ANY, 7000), "out"))).join().unwrap();
    let (tcp, udp, ping) = inside("pod", || {
        let socket = UdpSocket::bind(at(ANY, 0)).unwrap();
        let ping =
            Command::new("busybox").args(["ping", "-c", "2", "-W", "3", &OUTSIDE.to_string()]).output();
        (ask_tcp(at(OUTSIDE, 7000)), ask_udp(&socket, at(OUTSIDE, 7000)), ping.unwrap())
    })
    .join()
    .unwrap();
    assert_eq!(tcp.unwrap(), "out saw 192.0.2.1");
    assert_eq!(udp.unwrap().0, "out saw 192.0.2.1");
    assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
}

#[test]
fn without_masquerading_pods_keep_their_address() {
    let _links = Links::make();
    let _node = Node::with_uplink();
    crate::node::ip("-n outside route add 10.244.0.0/24 via 192.0.2.1");
    inside("outside", || serve_tcp(at(ANY, 7000), "out")).join().unwrap();
    let answer = inside("pod", || ask_tcp(at(OUTSIDE, 7000))).join().unwrap();
    assert_eq!(answer.unwrap(), "out saw 10.244.0.2");
}

#[test]
fn what_reaches_a_pod_directly_is_answered_by_the_pod() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    masquerade(&mut node);
    crate::node::ip("-n outside route add 10.244.0.0/24 via 192.0.2.1");
    inside("pod", || (serve_tcp(at(ANY, 8080), "pod"), serve_udp(at(ANY, 8080), "pod"))).join().unwrap();
    let (tcp, udp) = inside("outside", || {
        let socket = UdpSocket::bind(at(ANY, 0)).unwrap();
        (ask_tcp(at(POD, 8080)), ask_udp(&socket, at(POD, 8080)))
    })
    .join()
    .unwrap();
    assert_eq!(tcp.unwrap(), "pod saw 192.0.2.9");
    assert_eq!(udp.unwrap().1, "10.244.0.2:8080");
}

#[test]
fn a_node_port_that_nobody_serves_is_not_translated() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    inside("pod", || serve_tcp(at(ANY, 8080), "pod")).join().unwrap();
    serve_tcp(at(ANY, 30080), "node");
    let service = frontend(NODE.octets(), 30080, Tcp);
    let ask = || inside("outside", || ask_tcp(at(NODE, 30080))).join().unwrap();
    node.set(service, &[at(POD, 8080)]);
    assert_eq!(ask().unwrap(), "pod saw 192.0.2.9");
    node.dataplane.as_mut().unwrap().remove(service).unwrap();
    assert_eq!(ask().unwrap(), "node saw 192.0.2.9");
}

/// More flows than there are ports for one peer: ports of flows that are over are given away again.
#[test]
fn masqueraded_ports_come_back() {
    const ROUNDS: u16 = 6;
    const FLOWS: u16 = 1000;
    /// Ticks: longer than any silence of a datagram flow.
    const LONG: u32 = 1000;
    const { assert!(ROUNDS * FLOWS > nat::LAST_PORT - nat::FIRST_PORT + 1) };
    let _links = Links::make();
    let mut node = Node::with_uplink();
    masquerade(&mut node);
    inside("outside", || serve_udp(at(ANY, 7000), "out")).join().unwrap();
    for round in 0..ROUNDS {
        let answers: Result<Vec<_>, _> = inside("pod", move || {
            (0..FLOWS)
                .map(|flow| {
                    let socket = UdpSocket::bind(at(ANY, 20_000 + round * FLOWS + flow))?;
                    ask_udp(&socket, at(OUTSIDE, 7000))
                })
                .collect()
        })
        .join()
        .unwrap();
        let answers = answers.unwrap();
        assert!(answers.iter().all(|(answer, _)| answer == "out saw 192.0.2.1"));
        node.rewrite_flows(map::NAT, |flow| Some(NatValue { used: flow.used.wrapping_sub(LONG), ..flow }));
    }
    assert_eq!(node.counter(counter::MASQUERADED), u64::from(ROUNDS * FLOWS));
    assert_eq!(node.counter(counter::MASQUERADE_NO_PORT), 0);
}

#[test]
fn the_middle_of_an_unknown_connection_begins_no_flow() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    let listener = inside("pod", || TcpListener::bind(at(ANY, 8080)).unwrap()).join().unwrap();
    node.set(frontend(NODE.octets(), 30080, Tcp), &[at(POD, 8080)]);
    let mut client = inside("outside", || TcpStream::connect_timeout(&at(NODE, 30080).into(), LIMIT))
        .join()
        .unwrap()
        .unwrap();
    let _server = listener.accept().unwrap();
    node.rewrite_flows(map::INBOUND, |_| None);
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(b"?").unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(node.counter(counter::NODE_PORT_NO_FLOW) > 0);
    assert_eq!(node.counter(counter::NODE_PORT_TRANSLATED), 1);
}

/// The answer would not come back by the way of the question if that showed the node's address.
#[test]
fn a_node_ports_flow_leaves_by_the_overlay_under_its_address() {
    const OVERLAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 0);
    const REMOTE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 244, 7, 7), 8080);
    for hook in [UplinkHook::Newest, UplinkHook::Clsact] {
        let _links = Links::make();
        let mut tun = Tun::make("overlay");
        for line in ["addr add 10.244.0.0/32 dev overlay", "route add 10.244.7.0/24 dev overlay"] {
            crate::node::ip(line);
        }
        let mut node = Node::with_uplinks(&["uplink", "overlay"], hook);
        let index = std::fs::read_to_string("/sys/class/net/overlay/ifindex").unwrap();
        let link = index.trim().parse().unwrap();
        let masquerade = Masquerade {
            pods: "10.244.0.0/24".parse().unwrap(),
            address: NODE,
            excluded: vec!["10.244.0.0/16".parse().unwrap()],
            overlay: Some(Overlay { link, address: OVERLAY }),
        };
        node.dataplane.as_mut().unwrap().set_masquerade(Some(&masquerade)).unwrap();
        node.set(frontend(NODE.octets(), 30080, Udp), &[REMOTE]);
        let client = inside("outside", || {
            let socket = UdpSocket::bind(at(ANY, 0)).unwrap();
            ask_udp(&socket, at(NODE, 30080))
        });
        let (source, destination) = tun.turn_round();
        assert_eq!((*source.ip(), destination), (OVERLAY, REMOTE), "{hook:?}");
        assert_eq!(client.join().unwrap().unwrap(), ("?".into(), "192.0.2.1:30080".into()), "{hook:?}");
    }
}

/// Nothing leaves under a pod's own address because it could not be translated.
#[test]
fn what_cannot_be_masqueraded_does_not_leave() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    masquerade(&mut node);
    let (listener, datagrams) = inside("outside", || {
        let datagrams = UdpSocket::bind(at(ANY, 7000)).unwrap();
        datagrams.set_nonblocking(true).unwrap();
        (TcpListener::bind(at(ANY, 7000)).unwrap(), datagrams)
    })
    .join()
    .unwrap();
    let mut client = inside("pod", || TcpStream::connect_timeout(&at(OUTSIDE, 7000).into(), LIMIT))
        .join()
        .unwrap()
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    node.rewrite_flows(map::NAT, |_| None);
    client.write_all(b"?").unwrap();
    wait_until(|| node.counter(counter::MASQUERADE_NO_FLOW) > 0);
    inside("pod", || {
        let socket = UdpSocket::bind(at(ANY, 0)).unwrap();
        socket.send_to(&[0; 4000], at(OUTSIDE, 7000)).unwrap();
    })
    .join()
    .unwrap();
    wait_until(|| node.counter(counter::MASQUERADE_IMPOSSIBLE) >= 3);
    // Both would be here by now: the counters saw every packet dropped.
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(datagrams.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

pub fn wait_until(condition: impl Fn() -> bool) {
    harness::wait::until("a counter", LIMIT, || condition().then_some(()).ok_or_else(|| "it stays".into()));
}
