//! Cluster IPs for IPv6 sockets that reach IPv4 by mapped addresses, as Java's and .NET's do.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use dataplane::Protocol::{Tcp, Udp};

use crate::node::{LIMIT, Node, ask_tcp, ask_udp, frontend, ip, serve_tcp, serve_udp};

const VIP: [u8; 4] = [10, 96, 0, 10];
const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

/// IPv6 addresses that differ from the mapped cluster IP in one of the three words before the last.
const NOT_MAPPED: [&str; 3] = ["fd00::ffff:a60:a", "::1:0:ffff:a60:a", "::1:ffff:a60:a"];

fn mapped(address: SocketAddrV4) -> SocketAddrV6 {
    SocketAddrV6::new(address.ip().to_ipv6_mapped(), address.port(), 0, 0)
}

fn vip(port: u16) -> SocketAddrV6 {
    mapped(SocketAddrV4::new(VIP.into(), port))
}

/// A socket that speaks both.
fn datagrams() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// An address of this host, until it is dropped.
struct Address(Ipv6Addr);

impl Address {
    fn add(address: &str) -> Self {
        ip(&format!("addr add {address}/128 dev lo nodad"));
        // The kernel puts the route that takes packets in later, in the background.
        let route = format!("local {address} dev lo");
        harness::wait::until("the address's route", LIMIT, || {
            let shown = Command::new("ip").args(["-6", "route", "show", "table", "local"]).output().unwrap();
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            if shown.contains(&route) { Ok(()) } else { Err(shown) }
        });
        Self(address.parse().unwrap())
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        ip(&format!("addr del {}/128 dev lo", self.0));
    }
}

/// What a connected socket is answered, and by whom.
fn ask_connected(socket: &UdpSocket) -> (String, String) {
    socket.send(b"?").unwrap();
    let mut buffer = [0; 64];
    let (length, peer) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), peer.to_string())
}

#[test]
fn a_connection_reaches_every_endpoint_and_its_peer_is_the_cluster_ip() {
    let mut node = Node::open();
    let endpoints = [serve_tcp(LOCAL, "a"), serve_tcp(LOCAL, "b"), serve_tcp(LOCAL, "c")];
    node.set(frontend(VIP, 80, Tcp), &endpoints);
    let names: BTreeSet<String> = (0..60).map(|_| ask_tcp(vip(80)).unwrap()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let stream = TcpStream::connect_timeout(&vip(80).into(), LIMIT).unwrap();
    assert_eq!(stream.peer_addr().unwrap().to_string(), "[::ffff:10.96.0.10]:80");
}

#[test]
fn without_an_endpoint_a_connection_is_refused_at_once() {
    let mut node = Node::open();
    node.set(frontend(VIP, 80, Tcp), &[]);
    assert_eq!(ask_tcp(vip(80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    node.set(frontend(VIP, 53, Udp), &[]);
    assert_eq!(ask_udp(&datagrams(), vip(53)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(datagrams().connect(vip(53)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_unconnected_socket_stays_with_its_backend_and_is_answered_by_the_cluster_ip() {
    let mut node = Node::open();
    let (a, b) = (serve_udp(LOCAL, "a"), serve_udp(LOCAL, "b"));
    node.set(frontend(VIP, 53, Udp), &[a, b]);
    let socket = datagrams();
    let answers: BTreeSet<_> = (0..40).map(|_| ask_udp(&socket, vip(53)).unwrap()).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let (used, peer) = answers.first().unwrap().clone();
    assert_eq!(peer, "[::ffff:10.96.0.10]:53");
    node.set(frontend(VIP, 53, Udp), &[if used.starts_with('a') { b } else { a }]);
    let (name, peer) = ask_udp(&socket, vip(53)).unwrap();
    assert_ne!(name, used);
    assert_eq!(peer, "[::ffff:10.96.0.10]:53");
}

#[test]
fn one_socket_may_talk_to_several_services_of_one_backend() {
    let mut node = Node::open();
    let backend = serve_udp(LOCAL, "a");
    node.set(frontend(VIP, 53, Udp), &[backend]);
    node.set(frontend(VIP, 54, Udp), &[backend]);
    let socket = datagrams();
    for port in [53, 54, 53, 54, 54, 53] {
        assert_eq!(ask_udp(&socket, vip(port)).unwrap().1, format!("[::ffff:10.96.0.10]:{port}"));
    }
}

#[test]
fn a_connected_datagram_socket_shows_the_cluster_ip() {
    let mut node = Node::open();
    let backend = serve_udp(LOCAL, "a");
    node.set(frontend(VIP, 53, Udp), &[backend]);
    let socket = datagrams();
    socket.connect(vip(53)).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), vip(53).into());
    assert_eq!(ask_connected(&socket), ("a saw 127.0.0.1".into(), "[::ffff:10.96.0.10]:53".into()));
    // Connected elsewhere, the socket is not the service's any more.
    socket.connect(mapped(backend)).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), mapped(backend).into());
}

/// Each datagram of a connected socket runs the hook for sending, with the backend's address.
#[test]
fn what_is_connected_is_not_translated_a_second_time() {
    let mut node = Node::open();
    let (backend, further) = (serve_udp(LOCAL, "backend"), serve_udp(LOCAL, "further"));
    node.set(frontend(VIP, 53, Udp), &[backend]);
    node.set(frontend(backend.ip().octets(), backend.port(), Udp), &[further]);
    let socket = datagrams();
    socket.connect(vip(53)).unwrap();
    assert_eq!(ask_connected(&socket).0, "backend saw 127.0.0.1");
}

#[test]
fn other_ipv6_addresses_are_left_alone() {
    let mut node = Node::open();
    node.set(frontend(VIP, 80, Tcp), &[serve_tcp(LOCAL, "a")]);
    node.set(frontend(VIP, 53, Udp), &[serve_udp(LOCAL, "a")]);
    for added in NOT_MAPPED.map(Address::add) {
        let address = added.0;
        let listener = TcpListener::bind((address, 80)).unwrap();
        let stream = TcpStream::connect_timeout(&(address, 80).into(), LIMIT).unwrap();
        assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
        assert_eq!(stream.peer_addr().unwrap(), (address, 80).into());

        let server = UdpSocket::bind((address, 53)).unwrap();
        let client = datagrams();
        client.send_to(b"?", (address, 53)).unwrap();
        let mut buffer = [0; 1];
        server.set_read_timeout(Some(LIMIT)).unwrap();
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"!", from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap().1, (address, 53).into());
    }
}

/// A socket's record of a backend says nothing about an IPv6 peer that ends in the same bytes.
#[test]
fn an_ipv6_peer_is_never_shown_as_a_cluster_ip() {
    let mut node = Node::open();
    let server = UdpSocket::bind("[::]:0").unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let port = server.local_addr().unwrap().port();
    node.set(frontend(VIP, 53, Udp), &[SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)]);
    let added = Address::add("fd00::7f00:1");
    let lookalike = added.0;
    let client = datagrams();
    client.send_to(b"?", vip(53)).unwrap();
    client.send_to(b"?", (lookalike, port)).unwrap();
    let mut buffer = [0; 1];
    for shown in [vip(53), SocketAddrV6::new(lookalike, port, 0, 0)] {
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"!", from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap().1, shown.into());
    }
    client.connect((lookalike, port)).unwrap();
    assert_eq!(client.peer_addr().unwrap(), (lookalike, port).into());
}
