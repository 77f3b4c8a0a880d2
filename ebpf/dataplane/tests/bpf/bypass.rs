//! Services by packets, for pods whose sockets are not led to backends: here none are, since the programs for sockets have an empty cgroup.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::sync::mpsc;
use std::time::Duration;

use dataplane::Protocol::{Tcp, Udp};
use dataplane::{Target, UplinkHook};
use dataplane_abi::counter;

use crate::node::{
    LIMIT, Links, Node, PLACES, Place, V4, ask_long, ask_tcp, ask_udp, at, frontend, inside, serve_tcp,
    serve_udp,
};
use crate::policy::{self, Policed, pod_link};
use crate::uplink::{ask_all, wait_until};

const HOOKS: [UplinkHook; 2] = [UplinkHook::Newest, UplinkHook::Clsact];

fn vip(place: Place, port: u16) -> SocketAddr {
    at(place.cluster_ip, port)
}

/// A node whose pod is served by packets.
fn serving(hook: UplinkHook) -> Node {
    let mut node = Node::with_hook(hook);
    node.masquerade();
    node.serve_packets();
    node
}

pub trait Serves {
    fn serve_packets(&mut self);
}

impl Serves for Node {
    fn serve_packets(&mut self) {
        self.dataplane.as_mut().unwrap().serve_packets(&pod_link()).unwrap();
    }
}

fn from_pod<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    inside("pod", work).join().unwrap()
}

/// Servers of both protocols at a port of the node's own address and of a host outside.
fn servers(place: Place, port: u16) -> [SocketAddr; 2] {
    let both = |server: SocketAddr, name| {
        serve_tcp(server, name);
        serve_udp(server, name);
        server
    };
    let here = both(at(place.gateway, port), "node");
    let there = at(place.outside, port);
    [here, inside("outside", move || both(there, "outside")).join().unwrap()]
}

#[test]
fn a_pod_reaches_services_whatever_makes_its_packets() {
    for (hook, port) in HOOKS.into_iter().zip([8080, 8081]) {
        let _links = Links::make();
        let mut node = serving(hook);
        for place in PLACES {
            let seen = [place.pod, place.node];
            for (server, (name, seen)) in
                servers(place, port).into_iter().zip(["node", "outside"].into_iter().zip(seen))
            {
                node.set(frontend(place.cluster_ip, 80, Tcp), &[server]);
                node.set(frontend(place.cluster_ip, 80, Udp), &[server]);
                let (tcp, udp, long) = from_pod(move || {
                    let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
                    let long = ask_long(&socket, vip(place, 80));
                    (ask_tcp(vip(place, 80)), ask_udp(&socket, vip(place, 80)), long)
                });
                let answer = format!("{name} saw {seen}");
                assert_eq!(tcp.unwrap(), answer);
                assert_eq!(udp.unwrap(), (answer, vip(place, 80).to_string()));
                assert!(long, "in several fragments");
            }
        }
        // What asks for no service goes as it did.
        let direct = from_pod(move || ask_tcp(at(V4.gateway, port)));
        assert_eq!(direct.unwrap(), format!("node saw {}", V4.pod));
    }
}

#[test]
fn one_port_of_a_pod_reaches_one_endpoint_by_a_hundred_ways() {
    let _links = Links::make();
    let mut node = serving(UplinkHook::Newest);
    for place in PLACES {
        let server = at(place.gateway, 8080);
        serve_tcp(server, "pod");
        serve_udp(server, "pod");
        let mut ways: Vec<SocketAddr> = (1..=99).map(|port| vip(place, port)).collect();
        for service in &ways {
            node.set(frontend(service.ip(), service.port(), Tcp), &[server]);
            node.set(frontend(service.ip(), service.port(), Udp), &[server]);
        }
        ways.push(server);
        ask_all("pod", at(place.pod, 4000), ways);
    }
}

#[test]
fn source_ranges_are_about_the_addresses_of_a_pods_packets() {
    let _links = Links::make();
    let mut node = serving(UplinkHook::Newest);
    for place in PLACES {
        let [server, _] = servers(place, 8080);
        let service = frontend(place.cluster_ip, 80, Udp);
        let among =
            |address: IpAddr| Target { sources: Some([address.into()].into()), ..Target::all([server]) };
        let ask = || {
            from_pod(move || {
                let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                socket.send_to(b"?", vip(place, 80)).and_then(|_| socket.recv(&mut [0; 64]))
            })
        };
        node.lead(service, &among(place.pod));
        assert!(ask().is_ok());
        let before = node.counter(counter::SOURCE_REFUSED);
        node.lead(service, &among(place.outside));
        assert_eq!(ask().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(node.counter(counter::SOURCE_REFUSED) - before, 1);
    }
}

#[test]
fn a_pod_that_is_not_served_reaches_none() {
    let _links = Links::make();
    let mut node = serving(UplinkHook::Newest);
    let [server, _] = servers(V4, 8080);
    node.set(frontend(V4.cluster_ip, 80, Udp), &[server]);
    let ask = || {
        from_pod(|| {
            let socket = UdpSocket::bind(at(V4.any, 0)).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
            socket.send_to(b"?", vip(V4, 80)).and_then(|_| socket.recv(&mut [0; 64]))
        })
    };
    assert!(ask().is_ok());
    node.dataplane.as_mut().unwrap().end_packets(&pod_link()).unwrap();
    assert!(ask().is_err());
    assert!(node.attachments().keys().all(|program| !program.starts_with("orlop_vip")));
}

/// The refusal of a host is an ICMP error about the packet as it was on the wire.
#[test]
fn refusals_come_back_as_the_services() {
    let _links = Links::make();
    let mut node = serving(UplinkHook::Newest);
    for place in PLACES {
        node.set(frontend(place.cluster_ip, 53, Udp), &[at(place.gateway, 9)]);
        node.set(frontend(place.cluster_ip, 53, Tcp), &[at(place.gateway, 9)]);
        let (udp, tcp) = from_pod(move || {
            let socket = UdpSocket::bind(at(place.any, 0)).unwrap();
            socket.connect(vip(place, 53)).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.send(b"?").unwrap();
            (socket.recv(&mut [0; 64]).map(drop), ask_tcp(vip(place, 53)).map(drop))
        });
        assert_eq!(udp.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(tcp.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn policies_judge_the_backend_in_both_directions() {
    for (hook, port) in HOOKS.into_iter().zip([8080, 8081]) {
        let _links = Links::make();
        let mut node = serving(hook);
        let [server, _] = servers(V4, port);
        node.set(frontend(V4.cluster_ip, 80, Tcp), &[server]);
        // No rule names the cluster IP. The programs of policies come last, and stand between.
        let ports = policy::port(dataplane::policy::Protocol::Tcp, port);
        node.change(&[policy::allow(policy::ruleset(1), server.ip(), ports)]);
        node.isolate(Some(2), Some(1));
        assert_eq!(from_pod(|| ask_tcp(vip(V4, 80))).unwrap(), format!("node saw {}", V4.pod));
        // The other way round: whichever came last, each stands where it has to.
        node.dataplane.as_mut().unwrap().end_packets(&pod_link()).unwrap();
        node.serve_packets();
        assert_eq!(from_pod(|| ask_tcp(vip(V4, 80))).unwrap(), format!("node saw {}", V4.pod));
        assert_eq!(node.denied(), (0, 0));
        node.isolate(None, Some(2));
        let asking = inside("pod", || TcpStream::connect_timeout(&vip(V4, 80), LIMIT / 10));
        wait_until(|| node.denied().1 > 0);
        assert!(asking.join().unwrap().is_err());
    }
}

#[test]
fn connections_outlive_changes_and_the_process_and_datagrams_move_on() {
    let _links = Links::make();
    let mut node = serving(UplinkHook::Newest);
    let echo = std::net::TcpListener::bind(at(V4.gateway, 7)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = echo.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let (old, new) = (serve_udp(at(V4.gateway, 1111), "old"), serve_udp(at(V4.gateway, 2222), "new"));
    let (tcp, udp) = (frontend(V4.cluster_ip, 7, Tcp), frontend(V4.cluster_ip, 53, Udp));
    node.set(tcp, &[at(V4.gateway, 7)]);
    node.set(udp, &[old]);
    let (ask, asked) = mpsc::channel::<()>();
    let (answer, answered) = mpsc::channel();
    let client = inside("pod", move || {
        let mut stream = TcpStream::connect(vip(V4, 7)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let socket = UdpSocket::bind(at(V4.any, 0)).unwrap();
        while asked.recv().is_ok() {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            answer.send(ask_udp(&socket, vip(V4, 53)).unwrap().0).unwrap();
        }
    });
    let next = || {
        ask.send(()).unwrap();
        answered.recv().unwrap()
    };
    assert_eq!(next(), format!("old saw {}", V4.pod));
    node.set(udp, &[new]);
    node.set(tcp, &[]);
    assert_eq!(next(), format!("new saw {}", V4.pod));
    let before = node.attachments();
    node.crash();
    assert_eq!(next(), format!("new saw {}", V4.pod));
    node.reopen();
    assert_eq!(node.attachments(), before);
    assert_eq!(next(), format!("new saw {}", V4.pod));
    drop(ask);
    client.join().unwrap();
    // The pod is not served by the new process: what the old one left goes.
    node.dataplane.as_mut().unwrap().retain_packets().unwrap();
    assert!(node.attachments().keys().all(|program| !program.starts_with("orlop_vip")));
}

#[test]
fn what_cannot_be_led_is_dropped_and_counted() {
    let _links = Links::make();
    let mut node = serving(UplinkHook::Newest);
    let send = || from_pod(|| UdpSocket::bind(at(V4.any, 0)).unwrap().send_to(b"?", vip(V4, 53)).unwrap());
    node.set(frontend(V4.cluster_ip, 53, Udp), &[]);
    send();
    wait_until(|| node.counter(counter::PACKET_NO_BACKEND) == 1);
    // Its own address would be its peer's.
    node.set(frontend(V4.cluster_ip, 53, Udp), &[at(V4.pod, 53)]);
    send();
    wait_until(|| node.counter(counter::PACKET_HAIRPIN) == 1);
    // A connection that is not known, as after an eviction.
    let server = serve_tcp(at(V4.gateway, 8080), "node");
    node.set(frontend(V4.cluster_ip, 80, Tcp), &[server]);
    let (connected, connection) = mpsc::channel();
    let (forgotten, go_on) = mpsc::channel::<()>();
    let client = inside("pod", move || {
        let mut stream = TcpStream::connect(vip(V4, 80)).unwrap();
        connected.send(()).unwrap();
        go_on.recv().unwrap();
        // The server may have closed already: its end is not awaited here.
        let _sent = stream.write_all(b"x");
    });
    connection.recv().unwrap();
    node.rewrite_flows(dataplane_abi::map::NAT, |_| None);
    forgotten.send(()).unwrap();
    client.join().unwrap();
    wait_until(|| node.counter(counter::PACKET_NO_FLOW) > 0);
}

#[test]
fn a_client_with_affinity_stays_with_its_endpoint() {
    let _links = Links::make();
    let mut node = serving(UplinkHook::Newest);
    let endpoints = ["a", "b", "c"].map(|name| serve_tcp(at(V4.gateway, 0), name));
    let sticky = Target { affinity_seconds: NonZeroU32::new(60), ..Target::all(endpoints) };
    node.lead(frontend(V4.cluster_ip, 80, Tcp), &sticky);
    let names = || {
        from_pod(|| (0..60).map(|_| ask_tcp(vip(V4, 80)).unwrap()).collect::<std::collections::BTreeSet<_>>())
    };
    assert_eq!(names().len(), 1);
    node.set(frontend(V4.cluster_ip, 80, Tcp), &endpoints);
    assert_eq!(names().len(), 3);
}
