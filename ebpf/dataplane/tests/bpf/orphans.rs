//! UDP sockets that are connected through a service, when their backend goes.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;

use dataplane::Protocol::Udp;
use dataplane::{Ended, Target, end, wait_for_readers};

use crate::node::{LIMIT, Links, Node, PLACES, V4, V6, at, frontend, inside, serve_udp};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const LOCAL: SocketAddr = SocketAddr::new(V4.localhost, 0);

fn vip(port: u16) -> SocketAddr {
    at(VIP, port)
}

fn connected(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { LOCAL } else { at(V6.any, 0) };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// Who answers.
fn ask(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..1.min(length)]).into_owned())
}

fn is_told(socket: &UdpSocket) {
    let error = socket.take_error().unwrap().expect("an error");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    assert_eq!(ask(socket).unwrap_err().raw_os_error(), Some(libc::EDESTADDRREQ));
}

/// What the agent does after a change: how many were found, and how many ended.
fn sweep(node: &mut Node) -> (usize, usize) {
    wait_for_readers().unwrap();
    let dataplane = node.dataplane.as_mut().unwrap();
    let orphans = dataplane.orphans().unwrap();
    let Ended { ended, failure } = end(&orphans);
    assert!(failure.is_none(), "{failure:?}");
    dataplane.forget(&ended).unwrap();
    assert_eq!(dataplane.orphans().unwrap().len(), orphans.len() - ended.len(), "dealt with once");
    (orphans.len(), ended.len())
}

#[test]
fn exactly_the_sockets_that_were_led_to_the_backend_are_told() {
    let mut node = Node::open();
    let (a, b) = (serve_udp(LOCAL, "a"), serve_udp(LOCAL, "b"));
    node.set(frontend(VIP, 53, Udp), &[a]);
    node.set(frontend(VIP, 54, Udp), &[a]);
    assert!(node.dataplane.as_mut().unwrap().may_have_orphans(), "an earlier process may have left some");
    let mapped = at(VIP.to_ipv6_mapped(), 53);
    let (through, dual_stack, other_service, direct) =
        (connected(vip(53)), connected(mapped), connected(vip(54)), connected(a));
    let moved = connected(vip(53));
    moved.connect(a).unwrap();
    let all = [&through, &dual_stack, &other_service, &direct, &moved];
    all.iter().for_each(|socket| assert_eq!(ask(socket).unwrap(), "a"));
    assert_eq!(sweep(&mut node), (0, 0));
    assert!(!node.dataplane.as_mut().unwrap().may_have_orphans());

    node.set(frontend(VIP, 53, Udp), &[b]);
    assert!(node.dataplane.as_mut().unwrap().may_have_orphans());
    assert_eq!(sweep(&mut node), (2, 2));
    is_told(&through);
    is_told(&dual_stack);
    [&other_service, &direct, &moved].iter().for_each(|socket| assert_eq!(ask(socket).unwrap(), "a"));
    through.connect(vip(53)).unwrap();
    assert_eq!(ask(&through).unwrap(), "b");
    assert_eq!(sweep(&mut node), (0, 0));
}

#[test]
fn sockets_of_a_backend_that_still_serves_are_told_when_it_does_no_more() {
    let mut node = Node::open();
    let (a, b) = (serve_udp(LOCAL, "a"), serve_udp(LOCAL, "b"));
    let service = frontend(VIP, 53, Udp);
    node.set(service, &[a]);
    let early = connected(vip(53));
    node.lead(service, &Target { draining: [a].into(), ..Target::all([b]) });
    let late = connected(vip(53));
    assert_eq!(sweep(&mut node), (0, 0));
    assert_eq!([&early, &late].map(|socket| ask(socket).unwrap()), ["a", "b"]);
    node.set(service, &[b]);
    assert!(node.dataplane.as_mut().unwrap().may_have_orphans());
    assert_eq!(sweep(&mut node), (1, 1));
    is_told(&early);
    assert_eq!(ask(&late).unwrap(), "b");
}

#[test]
fn sockets_whose_service_goes_are_told() {
    let mut node = Node::open();
    let service = frontend(VIP, 53, Udp);
    node.set(service, &[serve_udp(LOCAL, "a")]);
    let (stays, closed) = (connected(vip(53)), connected(vip(53)));
    drop(closed);
    node.dataplane.as_mut().unwrap().remove(service).unwrap();
    assert_eq!(sweep(&mut node), (1, 1), "a socket that is closed is forgotten at once");
    is_told(&stays);
}

#[test]
fn a_backend_that_went_while_nobody_looked_is_noticed() {
    let mut node = Node::open();
    node.set(frontend(VIP, 53, Udp), &[serve_udp(LOCAL, "a")]);
    let socket = connected(vip(53));
    node.set(frontend(VIP, 53, Udp), &[serve_udp(LOCAL, "b")]);
    node.crash();
    node.reopen();
    assert!(node.dataplane.as_mut().unwrap().may_have_orphans());
    assert_eq!(sweep(&mut node), (1, 1));
    is_told(&socket);
}

#[test]
fn sockets_of_pods_are_told_in_their_own_namespace() {
    let _links = Links::make();
    let mut node = Node::open();
    // A namespace is found by its processes.
    let mut process =
        Command::new("ip").args(["netns", "exec", "pod", "busybox", "sleep", "60"]).spawn().unwrap();
    harness::wait::until("the process is in the pod", LIMIT, || {
        let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).map_err(|e| e.to_string());
        if link(&process.id().to_string())? == link("self")? { Err("not yet".into()) } else { Ok(()) }
    });
    for place in PLACES {
        let (any, vip) = (at(place.any, 0), at(place.cluster_ip, 53));
        let [a, b] = ["a", "b"].map(|name| at(place.gateway, serve_udp(any, name).port()));
        let service = frontend(place.cluster_ip, 53, Udp);
        node.set(service, &[a]);
        let through = inside("pod", move || {
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.connect(vip).unwrap();
            assert_eq!(ask(&socket).unwrap(), "a");
            socket
        });
        let through = through.join().unwrap();
        node.set(service, &[b]);
        assert_eq!(sweep(&mut node), (1, 1));
        is_told(&through);
    }
    process.kill().unwrap();
    process.wait().unwrap();
}
