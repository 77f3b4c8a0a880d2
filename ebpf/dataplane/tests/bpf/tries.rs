//! Services that set an endpoint aside when connections to it fail: by real sockets, with what the programs noted read from the map.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU8;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use dataplane::Protocol::Tcp;
use dataplane::{Scheduler, Target};
use dataplane_abi::counter;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, socket,
};

use crate::node::{Node, PLACES, Place, at, frontend, link};

const AFTER: u8 = 2;

/// In turn, so that it is known whose turn it is.
fn in_turn(endpoints: &[SocketAddr], set_aside_after: Option<u8>) -> Target {
    let set_aside_after = set_aside_after.and_then(NonZeroU8::new);
    Target { scheduler: Scheduler::RoundRobin, set_aside_after, ..Target::all(endpoints) }
}

fn listener(place: Place) -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind(at(place.localhost, 0)).unwrap();
    (listener.local_addr().unwrap(), listener)
}

/// Where nobody listens.
fn nobody(place: Place) -> SocketAddr {
    listener(place).0
}

/// How many of so many connections come about.
fn connect(place: Place, times: usize) -> usize {
    let limit = Duration::from_millis(200);
    (0..times).filter(|_| TcpStream::connect_timeout(&at(place.cluster_ip, 80), limit).is_ok()).count()
}

fn is_watching(node: &Node) -> bool {
    link(&node.pins().join("link_orlop_tried")).is_some()
}

#[test]
fn an_endpoint_that_refuses_is_set_aside_and_tried_again() {
    let mut node = Node::open();
    for place in PLACES {
        let before = node.counter(counter::BACKEND_SET_ASIDE);
        let set_aside = |node: &Node| node.counter(counter::BACKEND_SET_ASIDE) - before;
        let ((alive, _alive), dead) = (listener(place), nobody(place));
        let vip = frontend(place.cluster_ip, 80, Tcp);
        node.lead(vip, &in_turn(&[alive, dead], Some(AFTER)));
        assert_eq!(connect(place, 4), 2);
        assert_eq!((connect(place, 20), set_aside(&node)), (20, 1));
        // A process that comes later knows it too.
        node.reopen();
        assert_eq!(connect(place, 20), 20);
        node.lead(vip, &in_turn(&[alive, dead], Some(AFTER)));
        // Over: its next failure is enough.
        node.rewrite_backends(|backend| backend.aside_until = 0);
        assert_eq!((connect(place, 20), set_aside(&node)), (19, 2));
        // Over, and it is back: from then on it may fail as often as any.
        node.rewrite_backends(|backend| backend.aside_until = 0);
        let back = TcpListener::bind(dead).unwrap();
        assert_eq!(connect(place, 4), 4);
        drop(back);
        assert_eq!((connect(place, 20), set_aside(&node)), (18, 3));
        node.lead(vip, &in_turn(&[], None));
    }
}

/// An endpoint that takes no more connections: the client's own limit ends the attempt.
#[test]
fn an_endpoint_that_does_not_answer_is_set_aside() {
    let mut node = Node::open();
    for place in PLACES {
        let (alive, _alive) = listener(place);
        let (deaf, _deaf) = full(place);
        node.lead(frontend(place.cluster_ip, 80, Tcp), &in_turn(&[alive, deaf], Some(AFTER)));
        assert_eq!(connect(place, 4), 2);
        assert_eq!(connect(place, 20), 20);
    }
}

/// A listener with as many connections waiting as it takes.
fn full(place: Place) -> (SocketAddr, (OwnedFd, TcpStream)) {
    let family = if place.localhost.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let listener = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &SockaddrStorage::from(at(place.localhost, 0))).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let bound: SockaddrStorage = getsockname(listener.as_raw_fd()).unwrap();
    let port =
        bound.as_sockaddr_in().map(|v4| v4.port()).or_else(|| bound.as_sockaddr_in6().map(|v6| v6.port()));
    let address = at(place.localhost, port.unwrap());
    let waiting = TcpStream::connect(address).unwrap();
    (address, (listener, waiting))
}

/// What a socket does after it tried an endpoint in vain says nothing of that.
#[test]
fn only_what_was_tried_through_the_service_counts() {
    let mut node = Node::open();
    for place in PLACES {
        let (dead, elsewhere) = (nobody(place), nobody(place));
        node.lead(frontend(place.cluster_ip, 80, Tcp), &in_turn(&[dead], Some(AFTER)));
        let family = if place.localhost.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        for peer in [at(place.cluster_ip, 80), elsewhere, elsewhere, elsewhere] {
            let refused = nix::sys::socket::connect(client.as_raw_fd(), &SockaddrStorage::from(peer));
            assert_eq!(refused, Err(nix::errno::Errno::ECONNREFUSED));
        }
        let mut failures = Vec::new();
        node.rewrite_backends(|backend| failures.push(backend.failures));
        assert_eq!(failures, [1]);
        node.lead(frontend(place.cluster_ip, 80, Tcp), &in_turn(&[], None));
    }
}

#[test]
fn the_last_endpoint_is_never_set_aside() {
    let mut node = Node::open();
    let [place, _] = PLACES;
    let (one, other) = (nobody(place), nobody(place));
    node.lead(frontend(place.cluster_ip, 80, Tcp), &in_turn(&[one, other], Some(AFTER)));
    assert_eq!(connect(place, 10), 0);
    assert_eq!(node.counter(counter::BACKEND_SET_ASIDE), 2);
    // All are tried still: one that comes back is found at once.
    let _back = (TcpListener::bind(one).unwrap(), TcpListener::bind(other).unwrap());
    assert_eq!(connect(place, 10), 10);
}

#[test]
fn failures_are_heard_of_only_for_services_that_ask_for_it() {
    let mut node = Node::open();
    let [place, _] = PLACES;
    let ((alive, _alive), dead) = (listener(place), nobody(place));
    let vip = frontend(place.cluster_ip, 80, Tcp);
    node.lead(vip, &in_turn(&[alive, dead], None));
    assert_eq!((connect(place, 20), is_watching(&node)), (10, false));
    node.lead(vip, &in_turn(&[alive, dead], Some(AFTER)));
    assert!(is_watching(&node));
    assert_eq!(connect(place, 20), 18);
    // Whoever comes later takes over, and takes away what nobody asks for.
    node.reopen();
    assert!(is_watching(&node));
    node.lead(vip, &in_turn(&[alive, dead], None));
    assert!(is_watching(&node), "another service may be to come");
    node.dataplane.as_mut().unwrap().retain(&[vip].into()).unwrap();
    assert!(!is_watching(&node));
    assert_eq!(connect(place, 20), 10);
    node.lead(vip, &in_turn(&[alive, dead], Some(AFTER)));
    assert!(is_watching(&node));
    node.dataplane.as_mut().unwrap().remove(vip).unwrap();
    assert!(!is_watching(&node));
}
