//! Cluster IPs: translation at the socket.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::{HashMap, Map, MapData};
use dataplane::Protocol::{Tcp, Udp};
use dataplane::trace::{Client, Verdict};
use dataplane::{Origin, Target, WriteError};
use dataplane_abi::{Address, FrontendKey, LAYOUT_VERSION, capacity, counter, map, protocol};
use linux::netns::Netns;

use crate::node::{
    LIMIT, Links, Node, PLACES, Place, V4, V6, ask_tcp, ask_udp, at, frontend, inside, ip, serve_tcp,
    serve_udp,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const SECOND: u64 = 1_000_000_000;
const LOCAL: SocketAddr = SocketAddr::new(V4.localhost, 0);

/// Enough for a lookup to meet a change many times over.
const CONNECTIONS: usize = 5000;

fn vip(port: u16) -> SocketAddr {
    at(VIP, port)
}

#[test]
fn a_connection_reaches_every_endpoint_and_its_peer_is_the_cluster_ip() {
    let mut node = Node::open();
    let endpoints = [serve_tcp(LOCAL, "a"), serve_tcp(LOCAL, "b"), serve_tcp(LOCAL, "c")];
    node.set(frontend(VIP, 80, Tcp), &endpoints);
    let names: BTreeSet<String> = (0..60).map(|_| ask_tcp(vip(80)).unwrap()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let stream = TcpStream::connect(vip(80)).unwrap();
    assert_eq!(stream.peer_addr().unwrap().to_string(), "10.96.0.10:80");
}

#[test]
fn closed_connections_are_forgotten() {
    let mut node = Node::open();
    let server = serve_tcp(LOCAL, "a");
    node.set(frontend(VIP, 80, Tcp), &[server]);
    let streams = [vip(80), vip(80), server].map(|address| TcpStream::connect(address).unwrap());
    assert_eq!(node.keys(map::PEERS), 2, "one did not ask for the service");
    drop(streams);
    assert_eq!(node.keys(map::PEERS), 0);
}

#[test]
fn without_an_endpoint_a_connection_is_refused_at_once() {
    let mut node = Node::open();
    node.set(frontend(VIP, 80, Tcp), &[]);
    assert_eq!(ask_tcp(vip(80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let socket = UdpSocket::bind(LOCAL).unwrap();
    node.set(frontend(VIP, 53, Udp), &[]);
    assert_eq!(ask_udp(&socket, vip(53)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn of_many_services_each_is_programmed_or_says_why_not() {
    let mut node = Node::open();
    let pin = node.pins().join(map::FRONTENDS);
    let open = || Map::HashMap(MapData::from_pin(&pin).unwrap());
    let mut others: HashMap<MapData, [u8; size_of::<FrontendKey>()], u32> =
        HashMap::try_from(open()).unwrap();
    let key = |number: usize| {
        let address = Address { words_be: [0, 0, 0, number as u32] };
        FrontendKey { address, port_be: 0, protocol: protocol::TCP, reserved: 0 }.to_bytes()
    };
    // Room for two of ours.
    (2..capacity::FRONTENDS).for_each(|number| others.insert(key(number), 0, 0).unwrap());
    let server = serve_tcp(LOCAL, "a");
    let of_another_family = Target::all([at(V6.localhost, 80)]);
    let lead = |port| (frontend(VIP, port, Tcp), Target::all([server]));
    let wanted = [lead(80), (frontend(VIP, 81, Tcp), of_another_family), lead(82), lead(83)];
    let said = node.dataplane.as_mut().unwrap().set_all(&wanted);
    assert!(
        matches!(said[..], [Ok(()), Err(WriteError::OtherFamily { .. }), Ok(()), Err(WriteError::Map(_))]),
        "{said:?}"
    );
    let asks = |port| ask_tcp(vip(port)).map_err(|error| error.kind());
    assert_eq!([asks(80), asks(82)], [Ok("a saw 127.0.0.1".into()), Ok("a saw 127.0.0.1".into())]);
    assert!(asks(83).is_err());
    // Nobody else hears of that one.
    let another = Target::all([serve_tcp(LOCAL, "b")]);
    let said = node.dataplane.as_mut().unwrap().set_all(&[(wanted[0].0, another)]);
    assert!(matches!(said[..], [Ok(())]), "{said:?}");
    assert_eq!(asks(80), Ok("b saw 127.0.0.1".into()));
    // Once there is room, the same call does it.
    others.remove(&key(2)).unwrap();
    let said = node.dataplane.as_mut().unwrap().set_all(&wanted[3..]);
    assert!(matches!(said[..], [Ok(())]), "{said:?}");
    assert_eq!(asks(83), Ok("a saw 127.0.0.1".into()));
}

#[test]
fn no_connection_is_refused_while_endpoints_come_and_go() {
    let mut node = Node::open();
    let service = frontend(VIP, 80, Tcp);
    let (a, b) = (serve_tcp(LOCAL, "a"), serve_tcp(LOCAL, "b"));
    node.set(service, &[a]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            for _ in 0..CONNECTIONS {
                TcpStream::connect(vip(80)).inspect_err(|_| done.store(true, Ordering::Relaxed))?;
            }
            done.store(true, Ordering::Relaxed);
            Ok::<(), std::io::Error>(())
        });
        // Each change frees the backend that a lookup may just have chosen.
        while !done.load(Ordering::Relaxed) {
            node.set(service, &[b]);
            node.set(service, &[a]);
        }
        client.join().unwrap().unwrap();
    });
}

#[test]
fn the_protocols_of_one_port_are_two_services() {
    let mut node = Node::open();
    node.set(frontend(VIP, 53, Tcp), &[serve_tcp(LOCAL, "tcp")]);
    node.set(frontend(VIP, 53, Udp), &[serve_udp(LOCAL, "udp")]);
    let socket = UdpSocket::bind(LOCAL).unwrap();
    assert_eq!(ask_tcp(vip(53)).unwrap(), "tcp saw 127.0.0.1");
    assert_eq!(ask_udp(&socket, vip(53)).unwrap(), ("udp saw 127.0.0.1".into(), "10.96.0.10:53".into()));
}

#[test]
fn an_unconnected_socket_stays_with_its_backend_until_that_goes() {
    let mut node = Node::open();
    let (a, b) = (serve_udp(LOCAL, "a"), serve_udp(LOCAL, "b"));
    node.set(frontend(VIP, 53, Udp), &[a, b]);
    let socket = UdpSocket::bind(LOCAL).unwrap();
    let names: BTreeSet<String> = (0..40).map(|_| ask_udp(&socket, vip(53)).unwrap().0).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let used = names.first().unwrap().clone();
    let other = if used.starts_with('a') { b } else { a };
    node.set(frontend(VIP, 53, Udp), &[other]);
    let (name, peer) = ask_udp(&socket, vip(53)).unwrap();
    assert_ne!(name, used);
    assert_eq!(peer, "10.96.0.10:53");
}

#[test]
fn a_socket_leaves_a_backend_that_only_another_service_keeps() {
    let mut node = Node::open();
    let (blue, green) = (serve_udp(LOCAL, "blue"), serve_udp(LOCAL, "green"));
    node.set(frontend(VIP, 53, Udp), &[blue]);
    node.set(frontend(VIP, 54, Udp), &[blue]);
    let socket = UdpSocket::bind(LOCAL).unwrap();
    // The first address stands in the socket's record, the second in the flow table.
    for port in [53, 54] {
        assert_eq!(ask_udp(&socket, vip(port)).unwrap().0, "blue saw 127.0.0.1");
    }
    node.set(frontend(VIP, 53, Udp), &[green]);
    assert_eq!(ask_udp(&socket, vip(53)).unwrap().0, "green saw 127.0.0.1");
    node.set(frontend(VIP, 53, Udp), &[blue, green]);
    assert_eq!(ask_udp(&socket, vip(53)).unwrap().0, "green saw 127.0.0.1", "still a member");
    node.set(frontend(VIP, 54, Udp), &[green]);
    assert_eq!(ask_udp(&socket, vip(54)).unwrap().0, "green saw 127.0.0.1");
}

#[test]
fn services_that_share_a_backend_show_the_address_that_was_sent_to_last() {
    let mut node = Node::open();
    let backend = serve_udp(LOCAL, "a");
    node.set(frontend(VIP, 53, Udp), &[backend]);
    node.set(frontend(VIP, 54, Udp), &[backend]);
    let socket = UdpSocket::bind(LOCAL).unwrap();
    for port in [53, 54, 53, 54, 54, 53] {
        assert_eq!(ask_udp(&socket, vip(port)).unwrap().1, format!("10.96.0.10:{port}"));
    }
}

#[test]
fn one_socket_may_talk_to_several_services() {
    let mut node = Node::open();
    for port in 53..57 {
        let name = ["a", "b", "c", "d"][usize::from(port - 53)];
        node.set(frontend(VIP, port, Udp), &[serve_udp(LOCAL, name)]);
    }
    let socket = UdpSocket::bind(LOCAL).unwrap();
    for _ in 0..3 {
        for (port, name) in (53..57).zip(["a", "b", "c", "d"]) {
            let (answer, peer) = ask_udp(&socket, vip(port)).unwrap();
            assert!(answer.starts_with(name), "{answer}");
            assert_eq!(peer, format!("10.96.0.10:{port}"));
        }
    }
}

#[test]
fn a_connected_datagram_socket_shows_the_cluster_ip() {
    let mut node = Node::open();
    let backend = serve_udp(LOCAL, "a");
    node.set(frontend(VIP, 53, Udp), &[backend]);
    let socket = UdpSocket::bind(LOCAL).unwrap();
    socket.connect(vip(53)).unwrap();
    assert_eq!(socket.peer_addr().unwrap().to_string(), "10.96.0.10:53");
    socket.send(b"?").unwrap();
    let mut buffer = [0; 64];
    assert_eq!(socket.recv_from(&mut buffer).unwrap().1.to_string(), "10.96.0.10:53");
    // Connected elsewhere, the socket is not the service's any more.
    socket.connect(backend).unwrap();
    assert_eq!(socket.peer_addr().unwrap().to_string(), backend.to_string());
}

/// Eight servers that answer with their own letter.
fn servers() -> Vec<SocketAddr> {
    ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| serve_tcp(LOCAL, name)).to_vec()
}

fn sticky(endpoints: &[SocketAddr]) -> Target {
    Target { affinity_seconds: NonZeroU32::new(3600), ..Target::all(endpoints) }
}

/// Who answers so many connections.
fn answers(connections: usize) -> BTreeSet<String> {
    (0..connections).map(|_| ask_tcp(vip(80)).unwrap()).collect()
}

#[test]
fn a_client_stays_with_its_endpoint_as_long_as_the_service_wants_it() {
    let mut node = Node::open();
    let (service, servers) = (frontend(VIP, 80, Tcp), servers());
    node.lead(service, &sticky(&servers));
    assert_eq!(answers(30).len(), 1);
    node.set(service, &servers);
    assert!(answers(100).len() > 4, "of 8 endpoints");
    node.lead(service, &sticky(&servers));
    assert_eq!(answers(30).len(), 1);
}

#[test]
fn a_client_whose_endpoint_goes_stays_with_the_next_one() {
    let mut node = Node::open();
    let (service, servers) = (frontend(VIP, 80, Tcp), servers());
    node.lead(service, &sticky(&servers));
    let first = answers(1);
    let used = "abcdefgh".find(|letter| first.iter().all(|answer| answer.starts_with(letter))).unwrap();
    let others: Vec<_> = servers.iter().copied().filter(|server| *server != servers[used]).collect();
    node.lead(service, &sticky(&others));
    let second = answers(20);
    assert!(second.len() == 1 && second != first, "{first:?}, {second:?}");
    node.lead(service, &sticky(&servers));
    assert_eq!(answers(20), second, "the first one is back");
}

#[test]
fn a_client_that_was_away_for_long_is_led_anywhere() {
    let mut node = Node::open();
    let target = Target { affinity_seconds: NonZeroU32::new(1), ..Target::all(servers()) };
    node.lead(frontend(VIP, 80, Tcp), &target);
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        seen.extend(answers(1));
        let clients = node.rewrite_affinities(Origin::Inside, |client| client.used -= 2 * SECOND);
        assert_eq!(clients.len(), 1);
    }
    assert!(seen.len() > 4, "{seen:?} of 8 endpoints");
}

#[test]
fn whoever_shares_a_network_namespace_is_one_client() {
    let _links = Links::make();
    let mut node = Node::open();
    let servers: Vec<_> =
        ["a", "b", "c"].map(|name| serve_tcp(at(Ipv4Addr::UNSPECIFIED, 0), name).port()).to_vec();
    let at_node = |port: &u16| at(Ipv4Addr::new(10, 244, 0, 1), *port);
    node.lead(frontend(VIP, 80, Tcp), &sticky(&servers.iter().map(at_node).collect::<Vec<_>>()));
    let ask = || (0..10).map(|_| ask_tcp(vip(80)).unwrap()).collect::<BTreeSet<String>>();
    let [here, pod] = [std::thread::spawn(ask), inside("pod", ask)].map(|client| client.join().unwrap());
    assert_eq!((here.len(), pod.len()), (1, 1), "{here:?} {pod:?}");
    let clients = node.rewrite_affinities(Origin::Inside, |_| {});
    let namespaces: BTreeSet<_> = clients.iter().map(|client| client.client).collect();
    assert_eq!((clients.len(), namespaces.len()), (2, 2), "{clients:?}");
}

/// What a socket of this thread's namespace gets: connected, with each datagram told where to, and connected to say it.
fn asked(place: Place, service: SocketAddr) -> [Result<(), ErrorKind>; 3] {
    let datagram = |connects: bool| {
        let socket = UdpSocket::bind(at(place.any, 0))?;
        socket.set_read_timeout(Some(LIMIT))?;
        match connects {
            true => socket.connect(service).and_then(|()| socket.send(b"?"))?,
            false => socket.send_to(b"?", service)?,
        };
        socket.recv(&mut [0; 64]).map(drop)
    };
    [ask_tcp(service).map(drop), datagram(false), datagram(true)]
        .map(|answer: std::io::Result<()>| answer.map_err(|error| error.kind()))
}

#[test]
fn source_ranges_are_asked_for_clients_on_the_node_that_are_known() {
    const REFUSED: [Result<(), ErrorKind>; 3] = [Err(ErrorKind::PermissionDenied); 3];
    let _links = Links::make();
    let mut node = Node::open();
    let cookie = |name: &str| Netns::open(format!("/run/netns/{name}")).unwrap().cookie().unwrap();
    let (pod, outside, own) = (cookie("pod"), cookie("outside"), Netns::current().unwrap().cookie().unwrap());
    for place in PLACES {
        let server = at(place.node, 8080);
        serve_tcp(server, "node");
        serve_udp(server, "node");
        let service = at(place.cluster_ip, 80);
        let frontends = [Tcp, Udp].map(|protocol| frontend(place.cluster_ip, 80, protocol));
        let lead = |node: &mut Node, ranges: Option<&[IpAddr]>| {
            let sources = ranges.map(|ranges| ranges.iter().map(|address| (*address).into()).collect());
            let target = Target { sources, ..Target::all([server]) };
            frontends.iter().for_each(|frontend| node.lead(*frontend, &target));
        };
        let from = |name| inside(name, move || asked(place, service)).join().unwrap();
        // Whoever is told of, with the address of the other family first.
        let other = if place.node.is_ipv4() { V6 } else { V4 };
        let dataplane = node.dataplane.as_mut().unwrap();
        dataplane.set_client(pod, &[other.pod, place.pod]).unwrap();
        dataplane.set_client(outside, &[place.outside]).unwrap();
        lead(&mut node, Some(&[place.pod]));
        let before = node.counter(counter::SOURCE_REFUSED);
        assert_eq!((from("pod"), from("outside")), ([Ok(()); 3], REFUSED));
        assert_eq!(node.counter(counter::SOURCE_REFUSED) - before, 3);
        // The node is not known yet, and may be by any of its addresses.
        assert_eq!(asked(place, service), [Ok(()); 3]);
        let dataplane = node.dataplane.as_mut().unwrap();
        dataplane.set_client(own, &[place.gateway, place.node]).unwrap();
        assert_eq!(asked(place, service), REFUSED);
        lead(&mut node, Some(&[place.outside, place.node]));
        assert_eq!(
            (asked(place, service), from("pod"), from("outside")),
            ([Ok(()); 3], REFUSED, [Ok(()); 3])
        );
        let counts = node.dataplane.as_ref().unwrap().service_counts();
        let forbidden: u64 = counts.iter().map(|(_, counts)| counts.forbidden).sum();
        assert_eq!(
            forbidden,
            node.counter(counter::SOURCE_REFUSED) - before,
            "each refusal is some service's"
        );
        // The trace tells the same.
        let verdict = |netns| {
            let dataplane = node.dataplane.as_ref().unwrap();
            dataplane.trace(frontends[0], Client::Inside { netns }).unwrap().verdict
        };
        assert_eq!(verdict(pod), Verdict::Forbidden);
        for allowed in [own, outside] {
            assert!(matches!(verdict(allowed), Verdict::OneOf { .. }));
        }
        // Nobody may ask; without ranges everybody.
        lead(&mut node, Some(&[]));
        assert_eq!(from("outside"), REFUSED);
        lead(&mut node, None);
        assert_eq!(from("pod"), [Ok(()); 3]);
        // An open socket that names its peer each time is held to them as they are.
        let socket = inside("pod", move || UdpSocket::bind(at(place.any, 0)).unwrap()).join().unwrap();
        ask_udp(&socket, service).unwrap();
        lead(&mut node, Some(&[place.outside]));
        assert_eq!(ask_udp(&socket, service).unwrap_err().kind(), ErrorKind::PermissionDenied);
        // Clients that are gone are not known any more, and known ones go on with the next process.
        node.reopen();
        node.dataplane.as_mut().unwrap().retain_clients(&[pod].into()).unwrap();
        assert_eq!((from("pod"), asked(place, service)), (REFUSED, [Ok(()); 3]));
        node.dataplane.as_mut().unwrap().forget_client(pod).unwrap();
        assert_eq!(from("pod"), [Ok(()); 3]);
        frontends.iter().for_each(|frontend| node.dataplane.as_mut().unwrap().remove(*frontend).unwrap());
    }
}

#[test]
fn clients_on_the_node_are_not_led_where_those_from_outside_are() {
    let mut node = Node::open();
    let (near, far) = (Target::all([serve_tcp(LOCAL, "in")]), Target::all([serve_tcp(LOCAL, "out")]));
    node.lead(frontend(VIP, 80, Tcp), &Target { outside: far.outside, ..near });
    assert_eq!(answers(10), BTreeSet::from(["in saw 127.0.0.1".to_owned()]));
}

#[test]
fn a_loopback_address_leads_to_a_service_on_the_node_alone() {
    let _links = Links::make();
    ip("-n pod link set lo up");
    let mut node = Node::open();
    for place in PLACES {
        let (any, service) = (at(place.any, 0), at(place.localhost, 30080));
        inside("pod", move || (serve_tcp(service, "own"), serve_udp(service, "own"))).join().unwrap();
        let at_node = |server: SocketAddr| at(place.gateway, server.port());
        node.set(frontend(service.ip(), 30080, Tcp), &[at_node(serve_tcp(any, "tcp"))]);
        node.set(frontend(service.ip(), 30080, Udp), &[at_node(serve_udp(any, "udp"))]);
        let ask = move || {
            let socket = UdpSocket::bind(any).unwrap();
            [ask_tcp(service).unwrap(), ask_udp(&socket, service).unwrap().0].map(|said| said[..3].to_owned())
        };
        assert_eq!(ask(), ["tcp", "udp"]);
        assert_eq!(inside("pod", ask).join().unwrap(), ["own", "own"]);
    }
}

#[test]
fn a_removed_service_is_not_translated_any_more() {
    let mut node = Node::open();
    let service = frontend(Ipv4Addr::new(127, 0, 0, 99), 4000, Tcp);
    let address = serve_tcp(at(service.address, service.port), "itself");
    node.set(service, &[serve_tcp(LOCAL, "a")]);
    assert_eq!(ask_tcp(address).unwrap(), "a saw 127.0.0.1");
    node.set(service, &[]);
    assert_eq!(ask_tcp(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    node.dataplane.as_mut().unwrap().remove(service).unwrap();
    assert!(ask_tcp(address).unwrap().starts_with("itself"));
}

#[test]
fn translation_outlives_the_process_and_the_next_one_adopts_it() {
    let mut node = Node::open();
    let (kept, stale) = (frontend(VIP, 80, Tcp), frontend(VIP, 81, Tcp));
    node.set(kept, &[serve_tcp(LOCAL, "a"), serve_tcp(LOCAL, "b")]);
    node.set(stale, &[serve_tcp(LOCAL, "c")]);
    let before = node.dataplane.as_ref().unwrap().list();
    let links = attached();
    node.crash();
    assert!(ask_tcp(vip(80)).unwrap().ends_with("saw 127.0.0.1"));
    assert_eq!(node.reopen(), 2);
    assert_eq!(attached(), links, "the links are the same objects");
    let mut after = node.dataplane.as_ref().unwrap().list();
    after.sort_by_key(|(frontend, _)| *frontend);
    let mut before = before;
    before.sort_by_key(|(frontend, _)| *frontend);
    assert_eq!(after, before);
    let removed = node.dataplane.as_mut().unwrap().retain(&[kept].into_iter().collect()).unwrap();
    assert_eq!(removed, 1);
    assert!(ask_tcp(vip(80)).is_ok());
    assert_eq!(node.dataplane.as_ref().unwrap().list().len(), 1);
}

/// The ids of the cgroup links, from outside.
fn attached() -> Vec<u64> {
    let output = std::process::Command::new("bpftool").args(["-j", "link", "show"]).output().unwrap();
    let links: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let mut pinned = Vec::new();
    for entry in std::fs::read_dir(pins()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("link_") {
            let shown = std::process::Command::new("bpftool")
                .args(["-j", "link", "show", "pinned"])
                .arg(&path)
                .output();
            let link: serde_json::Value = serde_json::from_slice(&shown.unwrap().stdout).unwrap();
            pinned.push(link["id"].as_u64().unwrap());
        }
    }
    assert!(pinned.len() == 9 && links.len() >= pinned.len(), "{pinned:?}");
    pinned.sort_unstable();
    pinned
}

#[test]
fn programs_of_other_maps_are_replaced() {
    let mut node = Node::open();
    let service = frontend(VIP, 80, Tcp);
    node.set(service, &[serve_tcp(LOCAL, "old")]);
    node.crash();
    // As after a removal that died half-way in the wrong order: the links are there, the maps are not.
    for entry in std::fs::read_dir(pins()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("ORLOP_") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(node.reopen(), 0);
    node.set(service, &[serve_tcp(LOCAL, "new")]);
    assert_eq!(ask_tcp(vip(80)).unwrap(), "new saw 127.0.0.1");
}

#[test]
fn what_a_newer_layout_left_goes_after_the_first_sync() {
    let mut node = Node::open();
    let newer = pins().with_file_name(format!("v{}", LAYOUT_VERSION + 1));
    std::fs::rename(pins(), &newer).unwrap();
    assert_eq!(node.reopen(), 0);
    assert!(newer.exists(), "translation goes on until the new one is complete");
    let dataplane = node.dataplane.as_mut().unwrap();
    dataplane.retain(&[].into()).unwrap();
    dataplane.retain_policies().unwrap();
    assert!(!newer.exists());
    assert!(pins().exists());
}

#[test]
fn a_pinned_map_of_another_shape_is_refused() {
    let mut node = Node::open();
    node.crash();
    let (counters, config) = (pins().join(map::COUNTERS), pins().join(map::CONFIG));
    std::fs::remove_file(&counters).unwrap();
    std::fs::rename(config, counters).unwrap();
    let error = node.try_reopen().unwrap_err().to_string();
    assert!(error.starts_with("the pinned map /sys/fs/bpf/orlop/v"), "{error}");
}

fn pins() -> PathBuf {
    format!("/sys/fs/bpf/orlop/v{LAYOUT_VERSION}").into()
}
