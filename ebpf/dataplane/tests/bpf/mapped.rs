//! Cluster IPs for sockets of IPv6: addresses of their own, and IPv4 ones that they reach mapped, as Java's and .NET's do.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use dataplane::Frontend;
use dataplane::Protocol::{self, Tcp, Udp};

use crate::node::{
    LIMIT, Node, Place, V4, V6, ask_tcp, ask_udp, at, await_address, frontend, ip, serve_tcp, serve_udp,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const LOCAL: SocketAddr = SocketAddr::new(V4.localhost, 0);

/// Services of either family, asked by sockets of IPv6.
const SERVED: [Served; 2] = [Served(V4), Served(V6)];

#[derive(Clone, Copy)]
struct Served(Place);

impl Served {
    fn service(&self, port: u16, protocol: Protocol) -> Frontend {
        frontend(self.0.cluster_ip, port, protocol)
    }

    /// As a socket of IPv6 names it.
    fn vip(&self, port: u16) -> SocketAddr {
        mapped(at(self.0.cluster_ip, port))
    }

    fn local(&self) -> SocketAddr {
        at(self.0.localhost, 0)
    }

    /// What a server of this name answers.
    fn answer(&self, name: &str) -> String {
        format!("{name} saw {}", self.0.localhost)
    }
}

/// IPv6 addresses that differ from the mapped cluster IP in one of the three words before the last.
const NOT_MAPPED: [&str; 3] = ["fd00::ffff:a60:a", "::1:0:ffff:a60:a", "::1:ffff:a60:a"];

fn mapped(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V4(v4) = address else { return address };
    at(v4.ip().to_ipv6_mapped(), v4.port())
}

fn vip(port: u16) -> SocketAddr {
    mapped(at(VIP, port))
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
        let address = address.parse().unwrap();
        await_address(&[], IpAddr::V6(address));
        Self(address)
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
    for of in SERVED {
        let mut node = Node::open();
        let endpoints = ["a", "b", "c"].map(|name| serve_tcp(of.local(), name));
        node.set(of.service(80, Tcp), &endpoints);
        let names: BTreeSet<String> = (0..60).map(|_| ask_tcp(of.vip(80)).unwrap()).collect();
        assert_eq!(names, BTreeSet::from(["a", "b", "c"].map(|name| of.answer(name))));
        let stream = TcpStream::connect_timeout(&of.vip(80), LIMIT).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), of.vip(80));
    }
}

#[test]
fn without_an_endpoint_a_connection_is_refused_at_once() {
    for of in SERVED {
        let mut node = Node::open();
        node.set(of.service(80, Tcp), &[]);
        assert_eq!(ask_tcp(of.vip(80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        node.set(of.service(53, Udp), &[]);
        assert_eq!(ask_udp(&datagrams(), of.vip(53)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(datagrams().connect(of.vip(53)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn an_unconnected_socket_stays_with_its_backend_and_is_answered_by_the_cluster_ip() {
    for of in SERVED {
        let mut node = Node::open();
        let (a, b) = (serve_udp(of.local(), "a"), serve_udp(of.local(), "b"));
        node.set(of.service(53, Udp), &[a, b]);
        let socket = datagrams();
        let answers: BTreeSet<_> = (0..40).map(|_| ask_udp(&socket, of.vip(53)).unwrap()).collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
        let (used, peer) = answers.first().unwrap().clone();
        assert_eq!(peer, of.vip(53).to_string());
        node.set(of.service(53, Udp), &[if used.starts_with('a') { b } else { a }]);
        let (name, peer) = ask_udp(&socket, of.vip(53)).unwrap();
        assert_ne!(name, used);
        assert_eq!(peer, of.vip(53).to_string());
    }
}

#[test]
fn one_socket_may_talk_to_several_services_of_one_backend() {
    for of in SERVED {
        let mut node = Node::open();
        let backend = serve_udp(of.local(), "a");
        node.set(of.service(53, Udp), &[backend]);
        node.set(of.service(54, Udp), &[backend]);
        let socket = datagrams();
        for port in [53, 54, 53, 54, 54, 53] {
            assert_eq!(ask_udp(&socket, of.vip(port)).unwrap().1, of.vip(port).to_string());
        }
    }
}

#[test]
fn one_socket_may_talk_to_services_of_both_families() {
    let mut node = Node::open();
    for (of, name) in SERVED.into_iter().zip(["four", "six"]) {
        node.set(of.service(53, Udp), &[serve_udp(of.local(), name)]);
    }
    let socket = datagrams();
    for _ in 0..3 {
        for (of, name) in SERVED.into_iter().zip(["four", "six"]) {
            assert_eq!(ask_udp(&socket, of.vip(53)).unwrap(), (of.answer(name), of.vip(53).to_string()));
        }
    }
}

#[test]
fn a_connected_datagram_socket_shows_the_cluster_ip() {
    for of in SERVED {
        let mut node = Node::open();
        let backend = serve_udp(of.local(), "a");
        node.set(of.service(53, Udp), &[backend]);
        let socket = datagrams();
        socket.connect(of.vip(53)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), of.vip(53));
        assert_eq!(ask_connected(&socket), (of.answer("a"), of.vip(53).to_string()));
        // Connected elsewhere, the socket is not the service's any more.
        socket.connect(mapped(backend)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), mapped(backend));
    }
}

/// Each datagram of a socket that is connected to a mapped address runs the hook for sending, with the backend's address; so does one
/// of IPv6 that names it.
#[test]
fn what_is_connected_is_not_translated_a_second_time() {
    for of in SERVED {
        let mut node = Node::open();
        let (backend, further) = (serve_udp(of.local(), "backend"), serve_udp(of.local(), "further"));
        node.set(of.service(53, Udp), &[backend]);
        node.set(frontend(backend.ip(), backend.port(), Udp), &[further]);
        let socket = datagrams();
        socket.connect(of.vip(53)).unwrap();
        assert_eq!(ask_connected(&socket).0, of.answer("backend"));
        assert_eq!(ask_udp(&socket, mapped(backend)).unwrap().0, of.answer("backend"));
    }
}

#[test]
fn other_ipv6_addresses_are_left_alone() {
    let mut node = Node::open();
    node.set(frontend(VIP, 80, Tcp), &[serve_tcp(LOCAL, "a")]);
    node.set(frontend(VIP, 53, Udp), &[serve_udp(LOCAL, "a")]);
    for added in NOT_MAPPED.map(Address::add) {
        let address = added.0;
        let listener = TcpListener::bind((address, 80)).unwrap();
        let stream = TcpStream::connect_timeout(&at(address, 80), LIMIT).unwrap();
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
    node.set(frontend(VIP, 53, Udp), &[at(Ipv4Addr::LOCALHOST, port)]);
    let added = Address::add("fd00::7f00:1");
    let lookalike = added.0;
    let client = datagrams();
    client.send_to(b"?", vip(53)).unwrap();
    client.send_to(b"?", (lookalike, port)).unwrap();
    let mut buffer = [0; 1];
    for shown in [vip(53), at(lookalike, port)] {
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"!", from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap().1, shown);
    }
    client.connect((lookalike, port)).unwrap();
    assert_eq!(client.peer_addr().unwrap(), (lookalike, port).into());
}
