//! Direct server return: a client outside asks one node, an endpoint on another node answers it from there. Real packets between four namespaces.

use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use dataplane::Protocol::{Tcp, Udp};
use dataplane::{Masquerade, Target};
use dataplane_abi::{counter, geneve, map, nat};
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;

use crate::node::{
    LIMIT, Links, Node, PLACES, Place, V4, V6, ask_long, ask_tcp, ask_udp, at, await_address, frontend,
    inside, ip, make_namespace, serve_tcp, serve_udp,
};
use crate::uplink::ask_all;

/// A second node, `far`, with a link of its own to the host outside: it has no way there by the first one. Its pod is itself, at [`Place::remote`].
struct Far {
    node: Node,
    _links: Links,
}

impl Far {
    fn make() -> Self {
        let links = Links::make();
        make_namespace("far");
        for line in [
            "link add far0 type veth peer name eth0 netns far",
            "addr add 198.51.100.1/24 dev far0",
            "addr add 2001:db8:1::1/64 dev far0 nodad",
            "link set far0 up",
            "-n far addr add 198.51.100.2/24 dev eth0",
            "-n far addr add 2001:db8:1::2/64 dev eth0 nodad",
            "-n far addr add 10.244.7.7/32 dev lo",
            "-n far addr add fd00:244:0:7::7/128 dev lo nodad",
            "-n far link set lo up",
            "-n far link set eth0 up",
            "-n far link add eth1 type veth peer name eth1 netns outside",
            "-n far addr add 203.0.113.2/24 dev eth1",
            "-n far addr add 2001:db8:2::2/64 dev eth1 nodad",
            "-n far link set eth1 up",
            "-n outside addr add 203.0.113.9/24 dev eth1",
            "-n outside addr add 2001:db8:2::9/64 dev eth1 nodad",
            "-n outside link set eth1 up",
            "route add 10.244.7.0/24 via 198.51.100.2",
            "route add fd00:244:0:7::/64 via 2001:db8:1::2",
            "-n far route add 192.0.2.9 via 203.0.113.9",
            "-n far route add 2001:db8::9 via 2001:db8:2::9",
            // What the first node sends under its own address.
            "-n far route add 192.0.2.1 via 198.51.100.1",
            "-n far route add 2001:db8::1 via 2001:db8:1::1",
        ] {
            ip(line);
        }
        for (namespace, address) in [
            (&[][..], "2001:db8:1::1"),
            (&["-n", "far"], "2001:db8:1::2"),
            (&["-n", "far"], "2001:db8:2::2"),
            (&["-n", "outside"], "2001:db8:2::9"),
        ] {
            await_address(namespace, address.parse().unwrap());
        }
        let node = at_home(|| Node::of_another("far", &["eth0", "eth1"]));
        let mut far = Self { node, _links: links };
        let dataplane = far.node.dataplane.as_mut().unwrap();
        dataplane.set_peers(&[V4.node, V6.node]).unwrap();
        let families = [("10.244.7.0/24", "198.51.100.2", V4), ("fd00:244:0:7::/64", "2001:db8:1::2", V6)];
        let families = families.map(|(pods, address, place)| Masquerade {
            pods: pods.parse().unwrap(),
            address: address.parse().unwrap(),
            ..place.masquerade()
        });
        dataplane.set_masquerade(&families).unwrap();
        far
    }

    /// As another agent of that node.
    fn reopen(&mut self) {
        at_home(|| self.node.reopen());
    }
}

/// Does what an agent of the node `far` does, which sees that node's links.
fn at_home<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open("/run/netns/far").unwrap();
    // What is there otherwise, this thread does not need.
    let seen = Path::new("/run/netns");
    let there = || {
        nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        mount(Some("sysfs"), seen, Some("sysfs"), MsFlags::MS_RDONLY, nothing).unwrap();
        // The links of the one lead to the other.
        for folder in ["devices/virtual/net", "class/net"] {
            let (from, to) = (seen.join(folder), Path::new("/sys").join(folder));
            mount(Some(&from), &to, nothing, MsFlags::MS_BIND, nothing).unwrap();
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(there).join().unwrap())
}

impl Drop for Far {
    fn drop(&mut self) {
        self.node.remove();
        ip("link del far0");
        ip("netns del far");
    }
}

/// The node that clients ask.
fn near() -> Node {
    let mut node = Node::with_uplinks(&["uplink", "far0"], dataplane::UplinkHook::Newest);
    node.masquerade();
    node
}

fn answered_from_there(endpoint: SocketAddr) -> Target {
    Target { direct_return: true, ..Target::all([endpoint]) }
}

fn datagrams(place: &Place) -> UdpSocket {
    UdpSocket::bind(at(place.any, 0)).unwrap()
}

#[test]
fn an_endpoint_on_another_node_answers_the_client_itself() {
    let far = Far::make();
    let mut near = near();
    for place in PLACES {
        let endpoint = at(place.remote, 8080);
        inside("far", move || (serve_tcp(endpoint, "far"), serve_udp(endpoint, "far"))).join().unwrap();
        let service = at(place.node, 30080);
        near.lead(frontend(place.node, 30080, Tcp), &answered_from_there(endpoint));
        near.lead(frontend(place.node, 30080, Udp), &answered_from_there(endpoint));
        let (tcp, udp, long) = inside("outside", move || {
            let socket = datagrams(&place);
            (ask_tcp(service), ask_udp(&socket, service), ask_long(&socket, service))
        })
        .join()
        .unwrap();
        let answer = format!("far saw {}", place.outside);
        assert_eq!(tcp.unwrap(), answer);
        assert_eq!(udp.unwrap(), (answer, service.to_string()));
        assert!(long, "what has no room for more goes on as it is, once the other node knows");
    }
    assert_eq!(near.counter(counter::DIRECT_RETURN), 4, "a connection and a datagram of each family");
    assert_eq!(near.counter(counter::MASQUERADED), 0);
    assert_eq!(far.node.counter(counter::MASQUERADED), 0);
}

/// Without room for what the other node has to know, the flow goes on under this node's address.
#[test]
fn a_flow_that_begins_with_a_long_datagram_is_answered_by_this_node() {
    let _far = Far::make();
    let mut near = near();
    for place in PLACES {
        let endpoint = at(place.remote, 8080);
        inside("far", move || serve_udp(endpoint, "far")).join().unwrap();
        let service = at(place.node, 30080);
        near.lead(frontend(place.node, 30080, Udp), &answered_from_there(endpoint));
        let short = inside("outside", move || {
            let socket = datagrams(&place);
            assert!(ask_long(&socket, service));
            ask_udp(&socket, service)
        });
        assert_eq!(short.join().unwrap().unwrap(), (format!("far saw {}", place.node), service.to_string()));
    }
    assert_eq!(near.counter(counter::DIRECT_RETURN), 0);
}

#[test]
fn a_connection_goes_on_while_both_agents_are_killed_and_others_adopt() {
    let mut far = Far::make();
    let mut near = near();
    let endpoint = at(V4.remote, 8080);
    let listener = inside("far", move || TcpListener::bind(endpoint).unwrap()).join().unwrap();
    let service = at(V4.node, 30080);
    near.lead(frontend(V4.node, 30080, Tcp), &answered_from_there(endpoint));
    let mut client =
        inside("outside", move || TcpStream::connect_timeout(&service, LIMIT).unwrap()).join().unwrap();
    let (mut server, peer) = listener.accept().unwrap();
    assert_eq!(peer, at(V4.outside, client.local_addr().unwrap().port()));
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let mut talk = || {
        let mut heard = [0; 1];
        client.write_all(b"?").unwrap();
        server.read_exact(&mut heard).unwrap();
        server.write_all(b"!").unwrap();
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, *b"!");
    };
    talk();
    near.crash();
    far.node.crash();
    talk();
    near.reopen();
    far.reopen();
    talk();
    // Whom the second agent believes, the first one wrote.
    inside("far", move || serve_tcp(at(V4.remote, 8081), "far")).join().unwrap();
    near.lead(frontend(V4.node, 30081, Tcp), &answered_from_there(at(V4.remote, 8081)));
    let asked = inside("outside", || ask_tcp(at(V4.node, 30081))).join().unwrap();
    assert_eq!(asked.unwrap(), format!("far saw {}", V4.outside));
    // The last Service that asked went while no agent ran, say: what was told before goes on, and nobody tells of more.
    far.node.crash();
    far.reopen();
    far.node.dataplane.as_mut().unwrap().set_peers(&[]).unwrap();
    talk();
    let not_taken_out =
        inside("far", || UdpSocket::bind(at(V4.remote, geneve::PORT)).unwrap()).join().unwrap();
    not_taken_out.set_read_timeout(Some(LIMIT)).unwrap();
    near.lead(frontend(V4.node, 30082, Udp), &answered_from_there(at(V4.remote, 8082)));
    inside("outside", || datagrams(&V4).send_to(b"?", at(V4.node, 30082)).unwrap()).join().unwrap();
    assert_eq!(not_taken_out.recv_from(&mut [0; 128]).unwrap().1.ip(), V4.node);
}

/// They share the endpoint's port and the client's; the other node is told which port of the client is meant.
#[test]
fn one_port_reaches_one_endpoint_on_another_node_by_several_services() {
    let _far = Far::make();
    let mut near = near();
    for place in PLACES {
        let endpoint = at(place.remote, 8080);
        inside("far", move || (serve_tcp(endpoint, "pod"), serve_udp(endpoint, "pod"))).join().unwrap();
        let ways: Vec<SocketAddr> = (30000..30010).map(|port| at(place.node, port)).collect();
        for way in &ways {
            for protocol in [Tcp, Udp] {
                near.lead(frontend(way.ip(), way.port(), protocol), &answered_from_there(endpoint));
            }
        }
        ask_all("outside", at(place.outside, 4000), ways);
    }
    assert_eq!(near.counter(counter::MASQUERADED), 0);
}

#[test]
fn a_refusal_by_the_other_node_is_the_services() {
    let _far = Far::make();
    let mut near = near();
    for place in PLACES {
        let endpoint = at(place.remote, 8080);
        near.lead(frontend(place.node, 30080, Udp), &answered_from_there(endpoint));
        near.lead(frontend(place.node, 30080, Tcp), &answered_from_there(endpoint));
        let service = at(place.node, 30080);
        let (tcp, udp) = inside("outside", move || {
            let socket = datagrams(&place);
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.connect(service).unwrap();
            socket.send(b"?").unwrap();
            (ask_tcp(service).unwrap_err().kind(), socket.recv(&mut [0; 8]).unwrap_err().kind())
        })
        .join()
        .unwrap();
        assert_eq!((tcp, udp), (ErrorKind::ConnectionRefused, ErrorKind::ConnectionRefused));
    }
}

#[test]
fn an_endpoint_on_the_node_that_is_asked_answers_through_it() {
    let _links = Links::make();
    let mut node = Node::with_uplink();
    node.masquerade();
    for place in PLACES {
        let endpoint = at(place.pod, 8080);
        inside("pod", move || (serve_tcp(endpoint, "pod"), serve_udp(endpoint, "pod"))).join().unwrap();
        let service = at(place.node, 30080);
        node.lead(frontend(place.node, 30080, Tcp), &answered_from_there(endpoint));
        node.lead(frontend(place.node, 30080, Udp), &answered_from_there(endpoint));
        let (tcp, udp) = inside("outside", move || (ask_tcp(service), ask_udp(&datagrams(&place), service)))
            .join()
            .unwrap();
        let answer = format!("pod saw {}", place.outside);
        assert_eq!(tcp.unwrap(), answer);
        assert_eq!(udp.unwrap(), (answer, service.to_string()));
    }
    assert_eq!(node.counter(counter::DIRECT_RETURN), 0);
}

/// One that was evicted here is made again by the next datagram that tells.
#[test]
fn what_the_other_node_forgot_it_is_told_again() {
    let far = Far::make();
    let mut near = near();
    for (others, place) in PLACES.into_iter().enumerate() {
        let endpoint: SocketAddr = at(place.remote, 8080);
        inside("far", move || serve_udp(endpoint, "far")).join().unwrap();
        let service = at(place.node, 30080);
        near.lead(frontend(place.node, 30080, Udp), &answered_from_there(endpoint));
        let socket = inside("outside", move || datagrams(&place)).join().unwrap();
        let answer = (format!("far saw {}", place.outside), service.to_string());
        assert_eq!(ask_udp(&socket, service).unwrap(), answer);
        let forgotten = Cell::new(0);
        far.node.rewrite_flows(map::INBOUND, |entry| {
            assert_eq!((entry.kind, entry.port_be), (nat::TOLD, service.port().to_be()));
            forgotten.set(forgotten.get() + 1);
            None
        });
        assert_eq!(forgotten.get(), others + 1);
        assert_eq!(ask_udp(&socket, service).unwrap(), answer);
    }
}
