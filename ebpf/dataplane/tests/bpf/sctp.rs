//! SCTP by real sockets, where the kernel has it: node ports, pods that are served by packets, and pods' own associations with the outside.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use dataplane::Protocol::Sctp;
use dataplane::UplinkHook;
use nix::sys::socket::{Backlog, SockaddrStorage, bind, connect, listen};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use crate::bypass::Serves;
use crate::node::{LIMIT, Links, Node, PLACES, at, frontend, inside};
use crate::policy::pod_link;

/// A socket that talks as TCP's do; the kernel loads its module for the first.
fn socket_of(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::SCTP))?)
}

fn bound(address: SocketAddr) -> OwnedFd {
    let socket = socket_of(address).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    socket
}

/// Answers each question with the peer it sees.
fn serve(address: SocketAddr) {
    let socket = bound(address);
    listen(&socket, Backlog::new(8).unwrap()).unwrap();
    let listener = TcpListener::from(socket);
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
            // The end of the association takes what was sent along.
            let _ = stream.read(&mut [0; 64]);
        }
    });
}

/// The answer, and whom the client takes for its peer.
fn ask(from: SocketAddr, to: SocketAddr) -> (String, SocketAddr) {
    let socket = bound(from);
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).unwrap_or_else(|error| panic!("{to}: {error}"));
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"?").unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    (String::from_utf8_lossy(&answer[..length]).into_owned(), stream.peer_addr().unwrap())
}

/// Whether there is SCTP here; a kernel that has it as a module has to give it.
fn is_there() -> bool {
    let [v4, _] = PLACES;
    let Err(error) = socket_of(at(v4.any, 0)) else { return true };
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let module = Path::new("/lib/modules").join(version.trim()).join("kernel/net/sctp");
    assert!(!module.exists(), "the kernel has a module for SCTP, and no sockets: {error}");
    false
}

trait ServesSctp {
    fn serve_sctp(&mut self);
    fn sctp_programs(&self) -> usize;
}

impl ServesSctp for Node {
    fn serve_sctp(&mut self) {
        self.dataplane.as_mut().unwrap().serve_sctp(&pod_link()).unwrap();
    }

    fn sctp_programs(&self) -> usize {
        self.attachments().keys().filter(|program| program.starts_with("orlop_sctp")).count()
    }
}

#[test]
fn programs_for_sctp_are_adopted_and_leave_when_nobody_wants_them() {
    for hook in [UplinkHook::Newest, UplinkHook::Clsact] {
        let _links = Links::make();
        let mut node = Node::with_hook(hook);
        assert!(!node.dataplane.as_ref().unwrap().serves_sctp());
        node.serve_sctp();
        let before = node.attachments();
        assert_eq!(node.sctp_programs(), 2);
        // A new process finds them, and leaves them to whoever knows of all pods.
        node.crash();
        node.reopen();
        assert_eq!(node.attachments(), before);
        assert!(node.dataplane.as_ref().unwrap().serves_sctp());
        node.serve_sctp();
        node.dataplane.as_mut().unwrap().retain_sctp().unwrap();
        assert_eq!(node.attachments(), before);
        node.crash();
        node.reopen();
        node.dataplane.as_mut().unwrap().retain_sctp().unwrap();
        assert_eq!(node.sctp_programs(), 0);
        assert!(!node.dataplane.as_ref().unwrap().serves_sctp());
        // And again.
        node.serve_sctp();
        assert_eq!(node.sctp_programs(), 2);
        node.dataplane.as_mut().unwrap().end_sctp(&pod_link()).unwrap();
        assert_eq!(node.sctp_programs(), 0);
    }
}

#[test]
fn associations_reach_services_and_the_outside() {
    if !is_there() {
        return harness::skip::skip("the kernel has no SCTP");
    }
    let hooks = [UplinkHook::Newest, UplinkHook::Clsact];
    let ways = hooks.into_iter().flat_map(|hook| [(hook, true), (hook, false)]);
    for ((hook, all_packets), port) in ways.zip(9..) {
        let _links = Links::make();
        let mut node = Node::with_hook(hook);
        node.masquerade();
        match all_packets {
            true => node.serve_packets(),
            false => node.serve_sctp(),
        }
        for place in PLACES {
            let [pod, outside, gateway] =
                [place.pod, place.outside, place.gateway].map(|host| at(host, port));
            inside("pod", move || serve(pod)).join().unwrap();
            inside("outside", move || serve(outside)).join().unwrap();
            serve(gateway);
            // From outside to a node port.
            let node_port = at(place.node, 30009);
            node.set(frontend(place.node, 30009, Sctp), &[pod]);
            let asked = inside("outside", move || ask(at(place.outside, 0), node_port));
            assert_eq!(asked.join().unwrap(), (place.outside.to_string(), node_port), "{hook:?}");
            // From a pod to a cluster IP, whose endpoint is the node or a host outside, and straight to that.
            for (endpoint, seen) in [(gateway, place.pod), (outside, place.node)] {
                let vip = at(place.cluster_ip, 7);
                node.set(frontend(place.cluster_ip, 7, Sctp), &[endpoint]);
                let asked = inside("pod", move || ask(at(place.pod, 0), vip));
                assert_eq!(asked.join().unwrap(), (seen.to_string(), vip), "{hook:?}");
            }
            let asked = inside("pod", move || ask(at(place.pod, 0), outside));
            assert_eq!(asked.join().unwrap(), (place.node.to_string(), outside), "{hook:?}");
        }
    }
}
