//! Connected UDP sockets of any namespace: listed, and ended one by one.

use std::net::{SocketAddr, UdpSocket};

use linux::{
    netns::Netns,
    sockets::{ConnectedSocket, Family, Sockets},
};

#[test]
fn sockets_are_of_the_namespace_that_they_were_opened_in() {
    harness::private_host::require();
    let own = Netns::current().expect("a namespace");
    let other = linux::netns::create("/run/netns/other").expect("a namespace");
    for netns in [&own, &other] {
        let sockets = Sockets::open_in(netns).expect("a socket");
        assert_eq!(sockets.netns_cookie().expect("a number"), netns.cookie().expect("a number"));
    }
    assert_ne!(own.cookie().expect("a number"), other.cookie().expect("a number"));
    linux::netns::remove(other.path()).expect("remove it");
    std::fs::remove_dir("/run/netns").expect("remove the folder");
}

fn connected(from: &str, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(from).expect("a socket");
    socket.connect(to).expect("a peer");
    socket
}

/// Those with this peer.
fn to(sockets: &Sockets, peer: SocketAddr) -> Vec<ConnectedSocket> {
    let all = Family::ALL.into_iter().flat_map(|family| sockets.connected_datagrams(family).expect("a list"));
    all.filter(|socket| socket.peer == peer).collect()
}

#[test]
fn one_connected_socket_is_ended_and_the_others_stay() {
    harness::private_host::require();
    let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let peer = server.local_addr().expect("its address");
    let mapped = format!("[::ffff:127.0.0.1]:{}", peer.port()).parse().expect("an address");
    let (first, second) = (connected("127.0.0.1:0", peer), connected("127.0.0.1:0", peer));
    let of_ipv6 = connected("[::]:0", mapped);
    let elsewhere = connected("127.0.0.1:0", "127.0.0.1:9".parse().expect("an address"));
    let sockets = Sockets::open_in(&Netns::current().expect("a namespace")).expect("a socket");
    let found = to(&sockets, peer);
    assert_eq!(found.len(), 3, "{found:?}");

    // Which is which: only the one that is gone when its descriptor is closed.
    drop(second);
    let left = to(&sockets, peer);
    let gone = found.iter().find(|socket| !left.contains(socket)).expect("one less");
    let gone = [gone.clone()];
    assert_eq!(sockets.end(&gone).expect("an answer"), [false], "closed already");
    assert!(sockets.end(&[]).expect("an answer").is_empty());
    let mixed = [&left[..1], &gone, &left[1..]].concat();
    assert_eq!(sockets.end(&mixed).expect("an answer"), [true, false, true]);
    for socket in [&first, &of_ipv6] {
        let error = socket.take_error().expect("an answer").expect("an error");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
        assert_eq!(socket.send(b"?").expect_err("ended").raw_os_error(), Some(libc::EDESTADDRREQ));
    }
    elsewhere.send(b"?").expect("untouched");
    assert!(to(&sockets, peer).is_empty());
}

#[test]
fn more_sockets_than_fit_one_request_are_ended() {
    harness::private_host::require();
    let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let peer = server.local_addr().expect("its address");
    let all: Vec<UdpSocket> = (0..300).map(|_| connected("127.0.0.1:0", peer)).collect();
    let sockets = Sockets::open_in(&Netns::current().expect("a namespace")).expect("a socket");
    let ended = sockets.end(&to(&sockets, peer)).expect("an answer");
    assert_eq!((ended.len(), ended.iter().all(|ended| *ended)), (300, true));
    assert!(all.iter().all(|socket| socket.take_error().expect("an answer").is_some()));
}

#[test]
fn a_socket_that_has_another_peer_by_now_is_not_ended() {
    harness::private_host::require();
    let servers = ["127.0.0.1:0"; 2].map(|any| UdpSocket::bind(any).expect("a socket"));
    let [old, new] = servers.each_ref().map(|server| server.local_addr().expect("its address"));
    let socket = connected("127.0.0.1:0", old);
    let sockets = Sockets::open_in(&Netns::current().expect("a namespace")).expect("a socket");
    let found = to(&sockets, old);
    socket.connect(new).expect("another peer");
    assert_eq!(sockets.end(&found[..1]).expect("an answer"), [false]);
    socket.send(b"?").expect("untouched");
    assert_eq!(to(&sockets, new)[0].cookie, found[0].cookie);
}
