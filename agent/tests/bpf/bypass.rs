//! Pods whose annotation asks for services by packets.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use agent::services::{self, Bypass, Clients};
use dataplane::trace::{Client, Verdict};
use dataplane::{Dataplane, Frontend, Options, Protocol, Target, UplinkHook};
use linux::netns::Netns;
use runtime::{SandboxConfig, SandboxId, SandboxState, SandboxStatus};

use crate::place::{Cgroup, LIMIT, PORTS, Place, Pod, ip, raw_sctp, run};

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10)), 53);

fn sandbox(number: usize, annotation: Option<&str>) -> SandboxStatus {
    let annotations: BTreeMap<String, String> =
        annotation.map(|value| ("orlop.dev/services".to_owned(), value.to_owned())).into_iter().collect();
    SandboxStatus {
        // What it asks for does not change while it lives.
        id: SandboxId::from(format!("sandbox-{number}-{}", annotation.unwrap_or("silent"))),
        config: SandboxConfig { annotations, ..SandboxConfig::default() },
        state: SandboxState::Ready,
        created_at: 0,
        ips: vec![Pod::address(number, true)],
        netns: Some(format!("/run/netns/pod-{number}").into()),
        shim_pid: None,
    }
}

/// Whether a question to the service reaches pod 1, and its answer comes back as the service's.
fn answered(place: &Place, client: &UdpSocket, node: &UdpSocket) -> bool {
    client.send_to(b"?", VIP).unwrap();
    let server = &place.pods[1].datagrams[0][0];
    let reached = harness::wait::until("the datagram arrives somewhere", LIMIT, || {
        match (server.recv_from(&mut [0; 1]), node.recv(&mut [0; 1])) {
            (Ok((_, peer)), _) => Ok(Some(peer)),
            (_, Ok(_)) => Ok(None),
            _ => Err("neither".to_owned()),
        }
    });
    let Some(peer) = reached else { return false };
    server.send_to(b"!", peer).unwrap();
    harness::wait::until("the answer", LIMIT, || match client.recv_from(&mut [0; 1]) {
        Ok((_, from)) if from == VIP => Ok(()),
        other => Err(format!("{other:?}")),
    });
    true
}

#[test]
fn a_pod_that_asks_for_it_reaches_services_by_packets() {
    let place = Place::make();
    let node = place.route(0, VIP);
    let cgroup = Cgroup::make();
    let options = cgroup.options();
    let open = || services::Dataplane::new(Dataplane::open(&options).unwrap());
    let dataplane = open();
    let frontend = Frontend { address: VIP.ip(), port: VIP.port(), protocol: Protocol::Udp };
    let target = Target::all([SocketAddr::new(Pod::address(1, true), PORTS[0])]);
    dataplane.with(|dataplane| dataplane.set(frontend, &target)).unwrap();
    let client = place.pods[0].datagram_client(true);

    let bypass = Bypass::start(Some(dataplane.clone()), &[]);
    for indifferent in [None, Some("sockets")] {
        bypass.serve(&sandbox(0, indifferent)).unwrap();
        assert!(!answered(&place, &client, &node));
    }
    let refused = bypass.serve(&sandbox(0, Some("packet"))).unwrap_err();
    assert_eq!(refused, "annotation orlop.dev/services: \"packet\" is neither sockets nor packets");
    assert_eq!(Bypass::start(None, &[]).serve(&sandbox(0, Some("packet"))).unwrap_err(), refused);
    let of_node = SandboxStatus { netns: None, ..sandbox(0, Some("packets")) };
    assert!(bypass.serve(&of_node).unwrap_err().contains("in the node's network"));
    let asking = sandbox(0, Some("packets"));
    bypass.serve(&asking).unwrap();
    bypass.serve(&asking).unwrap();
    assert!(answered(&place, &client, &node));

    // A new agent goes on, and does so with the same pods alone.
    drop((bypass, dataplane));
    assert!(answered(&place, &client, &node), "while no agent runs");
    let dataplane = open();
    let bypass = Bypass::start(Some(dataplane.clone()), std::slice::from_ref(&asking));
    assert!(answered(&place, &client, &node));
    bypass.ended(&asking.id);
    assert!(!answered(&place, &client, &node));
    bypass.serve(&asking).unwrap();
    drop((bypass, dataplane));
    let dataplane = open();
    // Another one that cannot be served is no reason to leave what was there.
    let wrong = SandboxStatus { id: SandboxId::from("other".to_owned()), ..of_node };
    drop(Bypass::start(Some(dataplane.clone()), &[wrong]));
    assert!(!answered(&place, &client, &node), "its sandbox is gone");
    drop(dataplane);
    dataplane::remove_all(&options.pin_root).unwrap();
}

/// Whether the first packet of an association to the service reaches pod 1; it reaches the node else.
fn led(from: &Pod, to: &socket2::Socket, node: &socket2::Socket) -> bool {
    // Ports and tags, no checksum; and the chunk INIT.
    let mut packet = [0; 32];
    packet[..4].copy_from_slice(&[0x0f, 0xa1, 0, VIP.port() as u8]);
    (packet[12], packet[15]) = (1, 20);
    from.raw_sctp().send_to(&packet, &SocketAddr::new(VIP.ip(), 0).into()).unwrap();
    let heard = |socket: &socket2::Socket| {
        let mut packet = [std::mem::MaybeUninit::uninit(); 128];
        socket.recv(&mut packet).is_ok()
    };
    harness::wait::until("the packet arrives somewhere", LIMIT, || match (heard(to), heard(node)) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err("neither".to_owned()),
    })
}

#[test]
fn source_ranges_know_pods_from_before_their_first_container_until_their_end() {
    let place = Place::make();
    let cgroup = Cgroup::make();
    let options = cgroup.options();
    let open = || services::Dataplane::new(Dataplane::open(&options).unwrap());
    let dataplane = open();
    let frontend = Frontend { address: VIP.ip(), port: VIP.port(), protocol: Protocol::Udp };
    let sources = Some([ipnetwork::IpNetwork::from(Pod::address(0, true))].into());
    let target = Target { sources, ..Target::all([SocketAddr::new(Pod::address(1, true), PORTS[0])]) };
    dataplane.with(|dataplane| dataplane.set(frontend, &target)).unwrap();
    let own = Netns::current().unwrap().cookie().unwrap();
    let of_pod = |number: usize| place.pods[number].cookie();
    let may_ask = |dataplane: &services::Dataplane, netns| {
        let trace = dataplane.with(|dataplane| dataplane.trace(frontend, Client::Inside { netns }));
        trace.unwrap().verdict != Verdict::Forbidden
    };
    let (allowed, other, third) = (sandbox(0, None), sandbox(1, None), sandbox(2, None));

    let clients = Clients::start(Some(dataplane.clone()), &["10.9.0.1".parse().unwrap()], &[]);
    assert!(!may_ask(&dataplane, own), "the node's addresses are known from the first");
    assert!(may_ask(&dataplane, of_pod(0)) && may_ask(&dataplane, of_pod(1)), "nobody told of them");
    [&allowed, &other, &third].into_iter().for_each(|sandbox| clients.admit(sandbox).unwrap());
    // A container that starts later, and whoever is in the node's network.
    clients.admit(&allowed).unwrap();
    clients.admit(&SandboxStatus { netns: None, ..sandbox(3, None) }).unwrap();
    let found = [own, of_pod(0), of_pod(1), of_pod(2)].map(|netns| may_ask(&dataplane, netns));
    assert_eq!(found, [false, true, false, false]);
    let gone = SandboxStatus { netns: Some("/run/netns/gone".into()), ..sandbox(4, None) };
    let refusal = clients.admit(&gone).unwrap_err();
    assert!(refusal.contains("/run/netns/gone"), "its containers wait: {refusal}");
    clients.ended(&other.id);
    assert!(may_ask(&dataplane, of_pod(1)));

    // The next agent knows the same, and forgets those that are gone.
    drop((clients, dataplane));
    let dataplane = open();
    assert!(!may_ask(&dataplane, of_pod(2)), "before the agent knows its pods");
    let start = |sandboxes: [SandboxStatus; 2]| {
        Clients::start(Some(dataplane.clone()), &[Pod::address(0, true)], &sandboxes)
    };
    drop(start([allowed.clone(), gone]));
    assert!(!may_ask(&dataplane, of_pod(2)), "a namespace that cannot be read may be this one");
    drop(start([allowed, SandboxStatus { state: SandboxState::NotReady, ..third }]));
    let found = [own, of_pod(0), of_pod(2)].map(|netns| may_ask(&dataplane, netns));
    assert_eq!(found, [true, true, true]);
    drop(dataplane);
    dataplane::remove_all(&options.pin_root).unwrap();
}

#[test]
fn sctp_of_all_pods_is_led_while_there_is_a_service_of_it() {
    let place = Place::make();
    let _datagrams = place.route(0, VIP);
    for number in 2..4 {
        place.route_more(number);
    }
    let (node, server) = (raw_sctp(VIP.ip()), place.pods[1].raw_sctp());
    let cgroup = Cgroup::make();
    let options = cgroup.options();
    let open = || services::Dataplane::new(Dataplane::open(&options).unwrap());
    let dataplane = open();
    let frontend = Frontend { address: VIP.ip(), port: VIP.port(), protocol: Protocol::Sctp };
    let target = Target::all([SocketAddr::new(Pod::address(1, true), PORTS[0])]);
    dataplane.with(|dataplane| dataplane.set(frontend, &target)).unwrap();
    let is_led = |number: usize| led(&place.pods[number], &server, &node);

    let bypass = Bypass::start(Some(dataplane.clone()), &[]);
    let [plain, asking, late] =
        [(0, None), (2, Some("packets")), (3, Some("sockets"))].map(|(n, a)| sandbox(n, a));
    bypass.serve(&plain).unwrap();
    bypass.serve(&asking).unwrap();
    assert_eq!([0, 2].map(is_led), [false, true], "no service is known yet");
    assert!(bypass.lead_sctp(true));
    assert!(is_led(0));
    // A later pod before its first container; one in the node's network has no link.
    bypass.serve(&late).unwrap();
    bypass.serve(&SandboxStatus { netns: None, ..sandbox(4, None) }).unwrap();
    assert!(is_led(3));
    // One that cannot be served does not wait, and is told.
    let lost = SandboxStatus { netns: Some("/run/netns/nobody".into()), ..sandbox(5, None) };
    bypass.serve(&lost).unwrap();
    assert!(!bypass.lead_sctp(true));
    bypass.ended(&lost.id);
    assert!(bypass.lead_sctp(true));
    bypass.ended(&late.id);
    assert!(!is_led(3));

    // A new agent goes on before it knows of services, with pods that come then too.
    drop((bypass, dataplane));
    assert!(is_led(0), "while no agent runs");
    let dataplane = open();
    let bypass = Bypass::start(Some(dataplane.clone()), std::slice::from_ref(&asking));
    bypass.serve(&late).unwrap();
    assert_eq!([0, 2, 3].map(is_led), [true; 3], "what was there stays until services are known");
    bypass.serve(&lost).unwrap();
    assert!(!bypass.lead_sctp(true));
    assert_eq!([0, 2, 3].map(is_led), [true; 3], "any link may be the lost pod's");
    bypass.ended(&lost.id);
    // Whose link is known, or who has none, keeps nothing but what is its own.
    ip("netns add pod-9");
    bypass.serve(&sandbox(9, None)).unwrap();
    assert!(!bypass.lead_sctp(true));
    assert_eq!([0, 2, 3].map(is_led), [false, true, true], "its sandbox is gone");
    ip("netns del pod-9");
    bypass.ended(&sandbox(9, None).id);
    assert!(bypass.lead_sctp(true));
    // The last service goes: whoever asks for all packets goes on.
    assert!(bypass.lead_sctp(false));
    assert_eq!([2, 3].map(is_led), [true, false]);
    assert!(!dataplane.with(|dataplane| dataplane.serves_sctp()));
    bypass.serve(&plain).unwrap();
    assert!(!is_led(0));
    assert!(bypass.lead_sctp(true));
    assert_eq!([0, 2, 3].map(is_led), [true; 3]);
    drop((bypass, dataplane));
    dataplane::remove_all(&options.pin_root).unwrap();
}

#[test]
fn a_pod_whose_link_takes_no_programs_holds_up_nobody_else() {
    let _place = Place::make();
    let cgroup = Cgroup::make();
    let options = Options { uplink_hook: UplinkHook::Clsact, ..cgroup.options() };
    let open = || services::Dataplane::new(Dataplane::open(&options).unwrap());
    let [gone, refusing] = [0, 2].map(|number| sandbox(number, None));
    let dataplane = open();
    let bypass = Bypass::start(Some(dataplane.clone()), std::slice::from_ref(&gone));
    assert!(bypass.lead_sctp(true));
    let is_led = || run("tc", "filter show dev pod-0 ingress").contains("orlop_sctp_in");
    assert!(is_led());
    drop((bypass, dataplane));
    run("tc", "qdisc add dev pod-2 ingress");
    let dataplane = open();
    let bypass = Bypass::start(Some(dataplane.clone()), std::slice::from_ref(&refusing));
    assert!(!bypass.lead_sctp(true));
    assert!(!is_led(), "its sandbox is gone");
    run("tc", "qdisc del dev pod-2 ingress");
    assert!(bypass.lead_sctp(true));
    drop((bypass, dataplane));
    dataplane::remove_all(&options.pin_root).unwrap();
}
