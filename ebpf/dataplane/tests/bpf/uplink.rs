//! Node ports and masquerading: packets that cross the uplink.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use dataplane::Protocol::{Tcp, Udp};
use dataplane::{Masquerade, Origin, Overlay, Target, UplinkHook, WriteError};
use dataplane_abi::{NatValue, counter, map, nat};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};

use crate::node::{
    LIMIT, Links, NODE, Node, OUTSIDE, PLACES, POD, V4, ask_long, ask_tcp, ask_udp, at, frontend, inside,
    serve_tcp, serve_udp,
};
use crate::tun::Tun;

/// For what is not answered.
const SHORT: Duration = Duration::from_millis(500);
pub const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

#[test]
fn a_node_port_leads_from_outside_to_the_pod_and_back() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    node.masquerade();
    for place in PLACES {
        let server = at(place.pod, 8080);
        inside("pod", move || (serve_tcp(server, "pod"), serve_udp(server, "pod"))).join().unwrap();
        node.set(frontend(place.node, 30080, Tcp), &[server]);
        node.set(frontend(place.node, 30080, Udp), &[server]);
        let node_port = at(place.node, 30080);
        let (tcp, udp) = inside("outside", move || {
            let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
            assert!(ask_long(&socket, node_port), "in several fragments");
            (ask_tcp(node_port), ask_udp(&socket, node_port))
        })
        .join()
        .unwrap();
        // The pod sees the client, the client sees the node.
        let answer = format!("pod saw {}", place.outside);
        assert_eq!(tcp.unwrap(), answer);
        assert_eq!(udp.unwrap(), (answer, node_port.to_string()));
    }
}

/// One client address and port asks a hundred services of one endpoint at the same time, and that itself.
#[test]
fn one_port_reaches_one_endpoint_by_a_hundred_services() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    node.masquerade();
    for place in PLACES {
        let server = at(place.pod, 8080);
        inside("pod", move || (serve_tcp(server, "pod"), serve_udp(server, "pod"))).join().unwrap();
        crate::node::ip(&format!("-n outside route add {} via {}", place.pod, place.node));
        let mut ways: Vec<SocketAddr> = (30000..30100).map(|port| at(place.node, port)).collect();
        for service in &ways {
            node.set(frontend(service.ip(), service.port(), Tcp), &[server]);
            node.set(frontend(service.ip(), service.port(), Udp), &[server]);
        }
        ways.push(server);
        ask_all("outside", at(place.outside, 4000), ways);
        assert_eq!(node.counter(counter::NODE_PORT_COLLISION), 0);
    }
}

/// Asks at each of `ways` from one port, all connections open at the same time.
pub fn ask_all(namespace: &str, client: SocketAddr, ways: Vec<SocketAddr>) {
    let asked = inside(namespace, move || {
        let socket = UdpSocket::bind(client).unwrap();
        for way in &ways {
            assert_eq!(ask_udp(&socket, *way).unwrap().1, way.to_string());
        }
        let mut streams: Vec<TcpStream> =
            ways.iter().map(|way| connect_from(client, *way).unwrap()).collect();
        for stream in &mut streams {
            let mut answer = String::new();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, format!("pod saw {}", client.ip()));
        }
    });
    asked.join().unwrap();
}

#[test]
fn a_client_outside_that_is_the_endpoint_itself_reaches_itself() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    node.masquerade();
    for place in PLACES {
        let server = at(place.outside, 8080);
        inside("outside", move || serve_tcp(server, "itself")).join().unwrap();
        node.set(frontend(place.node, 30080, Tcp), &[server]);
        let answer = inside("outside", move || ask_tcp(at(place.node, 30080))).join().unwrap();
        assert_eq!(answer.unwrap(), format!("itself saw {}", place.node));
    }
}

#[test]
fn a_flow_of_datagrams_moves_on_when_its_backend_goes() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    inside("pod", || (serve_udp(at(ANY, 1111), "old"), serve_udp(at(ANY, 2222), "new"))).join().unwrap();
    let service = frontend(NODE, 30053, Udp);
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
    node.masquerade();
    for place in PLACES {
        let server = at(place.outside, 7000);
        inside("outside", move || (serve_tcp(server, "out"), serve_udp(server, "out"))).join().unwrap();
        let (tcp, udp, ping) = inside("pod", move || {
            let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
            let outside = at(place.outside, 7000);
            assert!(ask_long(&socket, outside), "in several fragments");
            let ping = ["ping", "-c", "2", "-W", "3", &place.outside.to_string()];
            let ping = Command::new("busybox").args(ping).output();
            (ask_tcp(outside), ask_udp(&socket, outside), ping.unwrap())
        })
        .join()
        .unwrap();
        let answer = format!("out saw {}", place.node);
        assert_eq!(tcp.unwrap(), answer);
        assert_eq!(udp.unwrap().0, answer);
        assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
    }
}

/// The refusal of a host that nobody serves at is an ICMP error about the packet as it was on the wire.
#[test]
fn refusals_of_datagrams_come_back_through_the_translation() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    node.masquerade();
    for (place, translated) in PLACES.into_iter().zip([2, 4]) {
        node.set(frontend(place.node, 30080, Udp), &[at(place.pod, 8080)]);
        let refused = move |address: SocketAddr| {
            let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.connect(address).unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 8]).unwrap_err().kind()
        };
        let of_pod = inside("pod", move || refused(at(place.outside, 7000)));
        assert_eq!(of_pod.join().unwrap(), ErrorKind::ConnectionRefused);
        let of_client = inside("outside", move || refused(at(place.node, 30080)));
        assert_eq!(of_client.join().unwrap(), ErrorKind::ConnectionRefused);
        assert_eq!(node.counter(counter::ICMP_ERROR_TRANSLATED), translated);
    }
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
    node.masquerade();
    for place in PLACES {
        crate::node::ip(&format!("-n outside route add {} via {}", place.pod, place.node));
        let server = at(place.pod, 8080);
        inside("pod", move || (serve_tcp(server, "pod"), serve_udp(server, "pod"))).join().unwrap();
        let pod = at(place.pod, 8080);
        let (tcp, udp) = inside("outside", move || {
            let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
            (ask_tcp(pod), ask_udp(&socket, pod))
        })
        .join()
        .unwrap();
        assert_eq!(tcp.unwrap(), format!("pod saw {}", place.outside));
        assert_eq!(udp.unwrap().1, pod.to_string());
    }
}

#[test]
fn an_address_outside_stays_with_its_endpoint() {
    let links = Links::make();
    let mut node = Node::with_uplink();
    for place in PLACES {
        links.add_neighbour(&place);
        let ports = [8081, 8082, 8083, 8084];
        let names = ["a", "b", "c", "d"];
        inside("pod", move || {
            for (port, name) in ports.into_iter().zip(names) {
                serve_tcp(at(place.pod, port), name);
            }
        })
        .join()
        .unwrap();
        let target = Target {
            affinity_seconds: std::num::NonZeroU32::new(3600),
            ..Target::all(ports.map(|port| at(place.pod, port)))
        };
        node.lead(frontend(place.node, 30080, Tcp), &target);
        let node_port = at(place.node, 30080);
        let ask = |source: IpAddr| {
            let answers = inside("outside", move || {
                (0..20).map(|_| ask_tcp_from(source, node_port).unwrap()).collect::<BTreeSet<String>>()
            });
            answers.join().unwrap()
        };
        let (first, second) = (ask(place.outside), ask(place.neighbour));
        assert_eq!((first.len(), second.len()), (1, 1), "{first:?} {second:?}");
        let clients = node.rewrite_affinities(Origin::Outside, |_| {}).into_iter();
        let clients = clients.map(|client| address_of(client.client));
        let clients: BTreeSet<IpAddr> =
            clients.filter(|client| client.is_ipv4() == place.node.is_ipv4()).collect();
        assert_eq!(clients, BTreeSet::from([place.outside, place.neighbour]));
    }
}

fn address_of(address: dataplane_abi::Address) -> IpAddr {
    std::net::Ipv6Addr::from(address.to_bytes()).to_canonical()
}

fn ask_tcp_from(source: IpAddr, address: SocketAddr) -> std::io::Result<String> {
    let mut answer = String::new();
    connect_from(at(source, 0), address)?.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Connects from an address and a port that others of this client may use for other peers.
fn connect_from(source: SocketAddr, address: SocketAddr) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt};
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&client, sockopt::ReuseAddr, &true)?;
    bind(client.as_raw_fd(), &SockaddrStorage::from(source))?;
    connect(client.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(TcpStream::from(client))
}

#[test]
fn what_comes_from_outside_is_led_where_the_external_policy_says() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    inside("pod", || (serve_tcp(at(ANY, 8081), "in"), serve_tcp(at(ANY, 8082), "out"))).join().unwrap();
    let service = frontend(NODE, 30080, Tcp);
    let (near, far) = (Target::all([at(POD, 8081)]), Target::all([at(POD, 8082)]));
    node.lead(service, &Target { outside: far.outside.clone(), ..near.clone() });
    let ask = || inside("outside", || ask_tcp(at(NODE, 30080))).join().unwrap();
    assert_eq!(ask().unwrap(), "out saw 192.0.2.9");
    node.lead(service, &near);
    assert_eq!(ask().unwrap(), "in saw 192.0.2.9");
}

#[test]
fn without_an_endpoint_anywhere_the_node_refuses_at_its_own_address() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    let services = [Tcp, Udp].map(|protocol| frontend(NODE, 30080, protocol));
    let ask = |limit: Duration| {
        let errors = inside("outside", move || {
            let socket = UdpSocket::bind(at(ANY, 0)).unwrap();
            socket.set_read_timeout(Some(limit)).unwrap();
            socket.connect(at(NODE, 30080)).unwrap();
            socket.send(b"?").unwrap();
            [
                TcpStream::connect_timeout(&at(NODE, 30080), limit).unwrap_err().kind(),
                socket.recv(&mut [0; 64]).unwrap_err().kind(),
            ]
        });
        errors.join().unwrap()
    };
    let nobody = Target { own_address: true, ..Target::default() };
    services.iter().for_each(|service| node.lead(*service, &nobody));
    assert_eq!(ask(LIMIT), [ErrorKind::ConnectionRefused; 2]);
    // A load balancer in front goes by silence: with a Local policy another node may have an endpoint.
    let elsewhere = Target { inside: [at(POD, 8080)].into(), ..nobody };
    services.iter().for_each(|service| node.lead(*service, &elsewhere));
    assert_eq!(ask(SHORT), [ErrorKind::TimedOut, ErrorKind::WouldBlock]);
    assert!(node.counter(counter::NODE_PORT_NO_BACKEND) >= 4);
}

#[test]
fn source_ranges_keep_others_out() {
    let v4 = ["192.0.2.0/25", "198.51.100.0/24", "192.0.2.8/32", "0.0.0.0/0", "::/0"];
    let v6 = ["2001:db8::/65", "fd00::/8", "2001:db8::8/128", "::/0", "0.0.0.0/0"];
    let _links = Links::make();
    let mut node = Node::with_uplink();
    for (place, [wide, elsewhere, neighbour, everybody, other_family]) in PLACES.into_iter().zip([v4, v6]) {
        let before = node.counter(counter::SOURCE_REFUSED);
        let server = at(place.pod, 8080);
        inside("pod", move || (serve_tcp(server, "pod"), serve_udp(server, "pod"))).join().unwrap();
        let pod = Target::all([at(place.pod, 8080)]);
        let among = |ranges: &[&str]| Target {
            sources: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
            ..pod.clone()
        };
        let services = [Tcp, Udp].map(|protocol| frontend(place.node, 30080, protocol));
        let node_port = at(place.node, 30080);
        let ask = |limit: Duration| {
            let answers = inside("outside", move || {
                let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
                socket.set_read_timeout(Some(limit)).unwrap();
                socket.send_to(b"?", node_port).unwrap();
                [TcpStream::connect_timeout(&node_port, limit).map(drop), socket.recv(&mut [0; 64]).map(drop)]
            });
            answers.join().unwrap().map(|answer| answer.is_ok())
        };
        let mut lead = |target: &Target| services.iter().for_each(|service| node.lead(*service, target));
        lead(&among(&[wide, elsewhere]));
        assert_eq!(ask(LIMIT), [true; 2]);
        lead(&among(&[neighbour, elsewhere]));
        assert_eq!(ask(SHORT), [false; 2]);
        lead(&among(&[everybody]));
        assert_eq!(ask(LIMIT), [true; 2]);
        lead(&among(&[]));
        assert_eq!(ask(SHORT), [false; 2]);
        lead(&pod);
        assert_eq!(ask(LIMIT), [true; 2]);
        // Where IPv4 is mapped, `::/0` would hold all of it.
        let refused = node.dataplane.as_mut().unwrap().set(services[0], &among(&[other_family]));
        assert!(matches!(refused, Err(WriteError::OtherFamily { .. })), "{refused:?}");
        assert!(node.counter(counter::SOURCE_REFUSED) - before >= 4);
    }
}

#[test]
fn a_flow_of_datagrams_ends_when_its_source_range_goes() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    inside("pod", || serve_udp(at(ANY, 8080), "pod")).join().unwrap();
    let service = frontend(NODE, 30080, Udp);
    node.set(service, &[at(POD, 8080)]);
    let client = inside("outside", || UdpSocket::bind(at(ANY, 0)).unwrap()).join().unwrap();
    assert_eq!(ask_udp(&client, at(NODE, 30080)).unwrap().0, "pod saw 192.0.2.9");
    let elsewhere = ["198.51.100.0/24".parse().unwrap()].into();
    node.lead(service, &Target { sources: Some(elsewhere), ..Target::all([at(POD, 8080)]) });
    client.send_to(b"?", at(NODE, 30080)).unwrap();
    wait_until(|| node.counter(counter::SOURCE_REFUSED) == 1);
}

#[test]
fn a_node_port_that_nobody_serves_is_not_translated() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    inside("pod", || serve_tcp(at(ANY, 8080), "pod")).join().unwrap();
    serve_tcp(at(ANY, 30080), "node");
    let service = frontend(NODE, 30080, Tcp);
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
    node.masquerade();
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
    node.set(frontend(NODE, 30080, Tcp), &[at(POD, 8080)]);
    let mut client =
        inside("outside", || TcpStream::connect_timeout(&at(NODE, 30080), LIMIT)).join().unwrap().unwrap();
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
    const OVERLAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0));
    const REMOTE: SocketAddr = SocketAddr::new(V4.remote, 8080);
    for hook in [UplinkHook::Newest, UplinkHook::Clsact] {
        let _links = Links::make();
        let mut tun = Tun::make("overlay");
        for line in ["addr add 10.244.0.0/32 dev overlay", "route add 10.244.7.0/24 dev overlay"] {
            crate::node::ip(line);
        }
        let mut node = Node::with_uplinks(&["uplink", "overlay"], hook);
        let index = std::fs::read_to_string("/sys/class/net/overlay/ifindex").unwrap();
        let link = index.trim().parse().unwrap();
        let overlay = Some(Overlay { link, address: OVERLAY });
        let masquerade = Masquerade { overlay, ..V4.masquerade() };
        node.dataplane.as_mut().unwrap().set_masquerade(&[masquerade]).unwrap();
        node.set(frontend(NODE, 30080, Udp), &[REMOTE]);
        let client = inside("outside", || {
            let socket = UdpSocket::bind(at(ANY, 0)).unwrap();
            ask_udp(&socket, at(NODE, 30080))
        });
        let (source, destination) = tun.turn_round();
        assert_eq!((source.ip(), destination), (OVERLAY, REMOTE), "{hook:?}");
        assert_eq!(client.join().unwrap().unwrap(), ("?".into(), "192.0.2.1:30080".into()), "{hook:?}");
    }
}

/// Nothing leaves under a pod's own address because it could not be translated.
#[test]
fn what_cannot_be_masqueraded_does_not_leave() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    node.masquerade();
    let icmp = |flags| socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp).unwrap();
    let (listener, messages) =
        inside("outside", move || (TcpListener::bind(at(ANY, 7000)).unwrap(), icmp(SockFlag::SOCK_NONBLOCK)))
            .join()
            .unwrap();
    let mut client =
        inside("pod", || TcpStream::connect_timeout(&at(OUTSIDE, 7000), LIMIT)).join().unwrap().unwrap();
    let (mut server, _) = listener.accept().unwrap();
    node.rewrite_flows(map::NAT, |_| None);
    client.write_all(b"?").unwrap();
    wait_until(|| node.counter(counter::MASQUERADE_NO_FLOW) > 0);
    inside("pod", move || {
        // Asks for the time: no echo, whose identifier could be another one.
        let mut message = [0; 20];
        message[..4].copy_from_slice(&[13, 0, 0xf2, 0xff]);
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(OUTSIDE, 0));
        sendto(icmp(SockFlag::empty()).as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
    })
    .join()
    .unwrap();
    wait_until(|| node.counter(counter::MASQUERADE_IMPOSSIBLE) == 1);
    // Both would be here by now: the counters saw every packet dropped.
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let heard = recv(messages.as_raw_fd(), &mut [0; 64], MsgFlags::empty());
    assert_eq!(heard, Err(nix::errno::Errno::EAGAIN));
}

pub fn wait_until(condition: impl Fn() -> bool) {
    harness::wait::until("a counter", LIMIT, || condition().then_some(()).ok_or_else(|| "it stays".into()));
}
