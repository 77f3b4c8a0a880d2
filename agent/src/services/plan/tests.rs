use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use dataplane::{Frontend, Identity, Names, Protocol, Target};
use proptest::prelude::*;

use super::departed::{Departed, PODS};
use super::scheduling::Scheduling;
use super::{
    ByFamily, Change, Departure, Endpoint, HealthCheck, Key, Planner, Port, Service, Slice, SlicePort,
    TrafficPolicy, Usable, View, frontends,
};

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 5));
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn key(name: &str) -> Key {
    Key { namespace: "default".into(), name: name.into() }
}

fn service(ip: u8) -> Service {
    Service {
        uid: format!("uid-{ip}"),
        created: 100,
        cluster_ips: vec![Ipv4Addr::new(10, 96, 0, ip).into()],
        ports: vec![Port { name: String::new(), port: 80, protocol: Protocol::Tcp, node_port: Some(30080) }],
        ..Service::default()
    }
}

fn slice(endpoints: &[(u8, Usable, bool)]) -> Slice {
    let endpoint = |(last, usable, local): &(u8, Usable, bool)| endpoint(*last, *usable, *local, None);
    slice_of(endpoints.iter().map(endpoint).collect())
}

fn slice_of(endpoints: Vec<Endpoint>) -> Slice {
    Slice { ports: vec![SlicePort { name: String::new(), port: 8080, protocol: Protocol::Tcp }], endpoints }
}

/// One that serves if it is usable at all.
fn endpoint(last: u8, usable: Usable, local: bool, pod: Option<&str>) -> Endpoint {
    Endpoint {
        address: Ipv4Addr::new(10, 244, 0, last).into(),
        usable,
        departing: usable.min(Usable::Fallback),
        local,
        node: None,
        zones: None,
        meant_for_node: None,
        pod: pod.map(|uid| Arc::new(uid.to_owned())),
        identity: None,
    }
}

/// A slice of ready pods: last byte of the address, and uid.
fn pods(pods: &[(u8, &str)]) -> Slice {
    slice_of(pods.iter().map(|(last, uid)| endpoint(*last, Usable::Ready, true, Some(uid))).collect())
}

fn cluster_frontend(ip: u8) -> Frontend {
    Frontend { address: Ipv4Addr::new(10, 96, 0, ip).into(), port: 80, protocol: Protocol::Tcp }
}

fn node_frontend() -> Frontend {
    Frontend { address: NODE, port: 30080, protocol: Protocol::Tcp }
}

fn last_bytes(list: &[SocketAddr]) -> Vec<u8> {
    list.iter().map(|address| last_byte(address.ip())).collect()
}

fn last_byte(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    }
}

#[test]
fn categories_of_endpoints() {
    use TrafficPolicy::{Cluster, Local};
    use Usable::{Fallback, No, Ready};
    // Endpoints; internal and external policy; what the cluster IP leads to, and the node port from inside and outside.
    type Case<'a> = (&'a [(u8, Usable, bool)], TrafficPolicy, TrafficPolicy, [&'a [u8]; 3]);
    let cases: [Case<'_>; 9] = [
        (&[(1, Ready, true), (2, Ready, false), (3, No, false)], Cluster, Cluster, [&[1, 2]; 3]),
        (&[(1, Ready, true), (2, Ready, false)], Local, Cluster, [&[1], &[1, 2], &[1, 2]]),
        (&[(1, Ready, true), (2, Ready, false)], Cluster, Local, [&[1, 2], &[1, 2], &[1]]),
        (&[(1, Fallback, false), (2, Ready, false)], Cluster, Cluster, [&[2]; 3]),
        (&[(1, Fallback, false), (2, No, false)], Cluster, Cluster, [&[1]; 3]),
        (&[(1, Fallback, true), (2, Ready, false)], Cluster, Local, [&[2], &[2], &[1]]),
        (&[(1, Fallback, true), (2, Ready, true)], Local, Local, [&[2]; 3]),
        (&[(2, Ready, false)], Local, Local, [&[], &[2], &[]]),
        (&[], Cluster, Cluster, [&[]; 3]),
    ];
    for (endpoints, internal_policy, external_policy, expected) in cases {
        let service = Service { internal_policy, external_policy, ..service(1) };
        let slices = [slice(endpoints)];
        let departed = Departed::default();
        let view = View { departed: &departed, addresses: &[NODE, LOCALHOST], zone: None };
        let lists = frontends(&service, slices.iter(), view);
        let loopback = Frontend { address: LOCALHOST, ..node_frontend() };
        assert_eq!((lists.len(), &lists[&loopback]), (3, &lists[&node_frontend()]));
        let (cluster_ip, node_port) = (&lists[&cluster_frontend(1)], &lists[&node_frontend()]);
        let seen = [&cluster_ip.inside, &node_port.inside, &node_port.outside].map(|list| last_bytes(list));
        assert_eq!(seen, expected, "{endpoints:?}");
        assert_eq!(cluster_ip.inside, cluster_ip.outside);
    }
}

#[test]
fn an_endpoint_stands_in_a_list_as_often_as_its_nodes_weight_says() {
    let on = |last: u8, node: &str, usable: Usable| Endpoint {
        node: Some(node.into()),
        ..endpoint(last, usable, node == "here", None)
    };
    let annotations = |weights: &str| {
        let all = [
            ("orlop.dev/scheduler", "wrr"),
            ("orlop.dev/weights", weights),
            ("orlop.dev/set-aside-after", "5"),
        ];
        let all = all.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        Scheduling::read(Some(&all), &mut Vec::new())
    };
    let slices = [slice_of(vec![
        on(1, "here", Usable::Ready),
        on(2, "there", Usable::Ready),
        on(3, "there", Usable::Fallback),
    ])];
    let departed = Departed::default();
    let view = View { departed: &departed, addresses: &[NODE], zone: None };
    for (weights, external_policy, inside, outside) in [
        ("here=1,there=3", TrafficPolicy::Cluster, &[1, 2, 2, 2][..], &[1, 2, 2, 2][..]),
        ("here=6,there=3", TrafficPolicy::Local, &[1, 1, 2], &[1]),
        ("10.244.0.2=0", TrafficPolicy::Local, &[1], &[1]),
        // One that is to get nothing new is still ready: those that terminate do not stand in for it.
        ("here=0,there=0", TrafficPolicy::Cluster, &[], &[]),
        // The node is drained: load balancers are told, too.
        ("here=0", TrafficPolicy::Local, &[2], &[]),
    ] {
        let service =
            Service { scheduling: annotations(weights), direct_return: true, external_policy, ..service(1) };
        let target = &frontends(&service, slices.iter(), view)[&node_frontend()];
        assert_eq!(
            [&target.inside, &target.outside].map(|list| last_bytes(list)),
            [inside, outside],
            "{weights}"
        );
        assert_eq!(target.scheduler, dataplane::Scheduler::RoundRobin);
        assert_eq!(target.set_aside_after, std::num::NonZeroU8::new(5));
        assert!(target.direct_return);
    }
}

#[test]
fn endpoints_are_looked_up_by_the_names_of_their_pods() {
    let called = |name: &str| Some(Identity::of_pod("default", name));
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1).into();
    let one = |last: u8, name: &str| Endpoint {
        identity: called(name),
        ..endpoint(last, Usable::Ready, false, None)
    };
    let slices = [
        slice_of(vec![
            one(1, "web-1"),
            Endpoint { usable: Usable::Fallback, ..one(2, "web-2") },
            Endpoint { usable: Usable::No, ..one(3, "web-3") },
            one(4, "web-4"),
            endpoint(5, Usable::Ready, false, None),
        ]),
        // Another slice knows nothing of one pod, and something else of another.
        slice_of(vec![endpoint(1, Usable::Ready, false, None), one(2, "web-20")]),
        slice_of(vec![Endpoint { address: v6, ..one(0, "web-1") }]),
    ];
    let departed = Departed::default();
    let view = View { departed: &departed, addresses: &[], zone: None };
    let at = |last: u8| SocketAddr::from(([10, 244, 0, last], 8080));
    let named = |all: &[(SocketAddr, &str)]| {
        Names::new(all.iter().filter_map(|(at, name)| Some((*at, called(name)?)))).map(Arc::new)
    };
    let second = ["web-2", "web-20"].into_iter().max_by_key(|name| called(name)).unwrap();
    for (scheduler, is_by_name) in
        [("mh", true), ("sh", true), ("random", false), ("wrr", false), ("lc", false)]
    {
        let all = [("orlop.dev/scheduler", scheduler), ("orlop.dev/weights", "10.244.0.4=0")];
        let all = all.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let scheduling = Scheduling::read(Some(&all), &mut Vec::new());
        let cluster_ips = vec![Ipv4Addr::new(10, 96, 0, 1).into(), Ipv6Addr::LOCALHOST.into()];
        let service = Service { scheduling, cluster_ips, ..service(1) };
        let expected =
            [named(&[(at(1), "web-1"), (at(2), second)]), named(&[(SocketAddr::new(v6, 8080), "web-1")])];
        let frontends_of =
            [cluster_frontend(1), Frontend { address: Ipv6Addr::LOCALHOST.into(), ..cluster_frontend(1) }];
        for (place, expected) in frontends_of.iter().zip(expected) {
            for slices in [slices.each_ref(), {
                let mut all = slices.each_ref();
                all.reverse();
                all
            }] {
                let lists = frontends(&service, slices.into_iter(), view);
                assert_eq!(
                    lists[place].names,
                    expected.clone().filter(|_| is_by_name),
                    "{scheduler}: {place}"
                );
            }
        }
    }
}

#[test]
fn an_address_that_another_pod_has_now_is_news_where_names_count() {
    let mut planner = Planner::new(vec![]);
    let called = |name: &str| Endpoint {
        identity: Some(Identity::of_pod("default", name)),
        ..endpoint(1, Usable::Ready, false, None)
    };
    for (scheduler, is_news) in [("mh", true), ("random", false)] {
        let annotations = [("orlop.dev/scheduler".to_owned(), scheduler.to_owned())].into();
        let scheduling = Scheduling::read(Some(&annotations), &mut Vec::new());
        planner.set_service(key("a"), Service { scheduling, ..service(1) });
        planner.set_slice(key("s"), key("a"), slice_of(vec![called("web-1")]));
        planner.take_changes();
        planner.set_slice(key("s"), key("a"), slice_of(vec![called("web-2")]));
        assert_eq!(leads_to(&mut planner), (vec![1], is_news), "{scheduler}");
    }
}

#[test]
fn hints_at_endpoints_that_get_nothing_new_lead_nobody() {
    let hinted = |last: u8, zone: &str| Endpoint {
        zones: Some([zone.into()].into()),
        ..endpoint(last, Usable::Ready, false, None)
    };
    let slices = [slice_of(vec![hinted(1, "a"), hinted(2, "b")])];
    let departed = Departed::default();
    let view = View { departed: &departed, addresses: &[], zone: Some("a") };
    for (weights, expected) in [("", 1), ("10.244.0.1=0", 2)] {
        let annotations = [("orlop.dev/weights".to_owned(), weights.to_owned())].into();
        let scheduling = Scheduling::read(Some(&annotations), &mut Vec::new());
        let service = Service { scheduling, ..service(1) };
        let target = &frontends(&service, slices.iter(), view)[&cluster_frontend(1)];
        assert_eq!(last_bytes(&target.inside), [expected], "{weights}");
    }
}

#[test]
fn a_node_whose_endpoints_get_nothing_new_is_not_healthy() {
    let mut planner = Planner::default();
    planner.set_slice(key("s"), key("s"), slice(&[(1, Usable::Ready, true)]));
    for (weights, healthy) in [("", 1), ("10.244.0.1=0", 0)] {
        let annotations = [("orlop.dev/weights".to_owned(), weights.to_owned())].into();
        let scheduling = Scheduling::read(Some(&annotations), &mut Vec::new());
        planner.set_service(key("s"), Service { scheduling, health_check_port: Some(30999), ..service(1) });
        planner.take_changes();
        assert_eq!(planner.health_check(&key("s")).unwrap().local_endpoints, healthy);
    }
}

#[test]
fn names_of_nodes_are_held_once_and_not_for_ever() {
    let mut planner = Planner::default();
    let slice =
        || slice_of(vec![Endpoint { node: Some("a".into()), ..endpoint(1, Usable::Ready, true, None) }]);
    for number in ["1", "2"] {
        planner.set_slice(key(number), key("s"), slice());
    }
    assert_eq!(planner.node_names.iter().map(Arc::strong_count).collect::<Vec<_>>(), [3]);
    planner.retain_slices(&HashSet::new());
    assert!(planner.node_names.is_empty());
}

#[test]
fn hints_lead_to_endpoints_that_are_near_if_all_have_them() {
    use TrafficPolicy::{Cluster, Local};
    // Of each endpoint: the zones and whether this node is hinted at. The node is in zone a, or its zone is not known.
    type Hints<'a> = (Option<&'a [&'a str]>, Option<bool>);
    let (a, b): (Hints<'_>, Hints<'_>) = ((Some(&["a"]), None), (Some(&["b"]), None));
    let (here, there) = ((Some(&["a"][..]), Some(true)), (Some(&["a"][..]), Some(false)));
    type Case<'a> = ([Hints<'a>; 3], Option<&'a str>, TrafficPolicy, &'a [u8]);
    let cases: [Case<'_>; 10] = [
        ([a, b, b], Some("a"), Cluster, &[1]),
        ([a, (Some(&["b", "a"]), None), b], Some("a"), Cluster, &[1, 2]),
        ([a, b, (None, None)], Some("a"), Cluster, &[1, 2, 3]),
        ([b, b, b], Some("a"), Cluster, &[1, 2, 3]),
        ([a, b, b], None, Cluster, &[1, 2, 3]),
        ([here, there, there], Some("a"), Cluster, &[1]),
        ([here, a, there], Some("a"), Cluster, &[1, 2, 3]),
        ([there, there, (Some(&["b"]), Some(false))], Some("a"), Cluster, &[1, 2]),
        ([here, there, there], None, Cluster, &[1]),
        // A Local policy looks at nothing but the node.
        ([a, b, b], Some("b"), Local, &[1]),
    ];
    for (hints, zone, internal_policy, expected) in cases {
        let hinted = |(number, (zones, meant_for_node)): (u8, Hints<'_>)| Endpoint {
            zones: zones.map(|zones| zones.iter().map(|zone| Box::from(*zone)).collect()),
            meant_for_node,
            ..endpoint(number, Usable::Ready, number == 1, None)
        };
        // What is not ready has no say.
        let idle = endpoint(9, Usable::Fallback, false, None);
        let slices = [slice_of((1..).zip(hints).map(hinted).chain([idle]).collect())];
        let departed = Departed::default();
        let view = View { departed: &departed, addresses: &[NODE], zone };
        let lists = frontends(&Service { internal_policy, ..service(1) }, slices.iter(), view);
        assert_eq!(last_bytes(&lists[&cluster_frontend(1)].inside), expected, "{hints:?} in {zone:?}");
    }
}

#[test]
fn a_node_that_learns_its_zone_keeps_to_it() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), service(1));
    planner.set_service(key("b"), service(2));
    let mut hinted = slice(&[(1, Usable::Ready, false), (2, Usable::Ready, false)]);
    for (endpoint, zone) in hinted.endpoints.iter_mut().zip(["x", "y"]) {
        endpoint.zones = Some([Box::from(zone)].into());
    }
    planner.set_slice(key("s"), key("a"), hinted);
    planner.set_slice(key("t"), key("b"), slice(&[(3, Usable::Ready, false)]));
    assert_eq!(leads_to(&mut planner), (vec![1, 2], true));
    planner.set_zone(Some("y"));
    let changes = planner.take_changes().changes;
    assert_eq!(changes.len(), 1, "the other Service has no hints: {changes:?}");
    assert_eq!(leads_to(&mut planner).0, [2]);
    planner.set_zone(Some("y"));
    assert_eq!(planner.take_changes().changes, []);
    planner.set_zone(None);
    assert_eq!(leads_to(&mut planner), (vec![1, 2], true));
}

#[test]
fn a_health_check_counts_the_ready_pods_of_this_node() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), Service { health_check_port: Some(30999), ..service(1) });
    planner.set_service(key("b"), service(2));
    let checks = |planner: &mut Planner| planner.take_changes().health_checks;
    let told = |local_endpoints| vec![(key("a"), Some(HealthCheck { port: 30999, local_endpoints }))];
    assert_eq!(checks(&mut planner), told(0));
    planner.set_slice(
        key("s"),
        key("a"),
        slice_of(vec![
            endpoint(1, Usable::Ready, true, Some("p")),
            endpoint(2, Usable::Ready, false, None),
            endpoint(3, Usable::Fallback, true, None),
        ]),
    );
    // The same pod under another port.
    planner.set_slice(key("t"), key("a"), slice(&[(1, Usable::Ready, true), (4, Usable::Ready, true)]));
    assert_eq!(checks(&mut planner), told(2));
    planner.set_slice(key("t"), key("a"), slice(&[]));
    assert_eq!(checks(&mut planner), told(1));
    planner.depart("p", Departure::Terminating);
    assert_eq!(checks(&mut planner), told(0));
    planner.set_service(key("a"), Service { publish_not_ready: true, ..service(1) });
    assert_eq!(checks(&mut planner), [(key("a"), None)]);
    planner.remove_service(&key("a"));
    assert_eq!(checks(&mut planner), []);
}

#[test]
fn source_ranges_are_for_the_addresses_of_load_balancers() {
    let range = |text: &str| Some([text.parse().unwrap()].into());
    let (external, balancer) = (Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::new(192, 0, 2, 2).into());
    let balancer_v6 = V6_OUTSIDE.into();
    let service = Service {
        external_ips: vec![external],
        balancer_ips: vec![balancer, balancer_v6],
        source_ranges: ByFamily { v4: range("203.0.113.0/24"), v6: range("fd00::/8") },
        cluster_ips: vec![cluster_frontend(1).address, V6_CLUSTER_IP.into()],
        ..service(1)
    };
    let departed = Departed::default();
    let view = View { departed: &departed, addresses: &[NODE], zone: None };
    let lists = frontends(&service, [].iter(), view);
    let at = |address| Frontend { address, port: 80, protocol: Protocol::Tcp };
    assert_eq!(lists[&at(balancer)].sources, range("203.0.113.0/24"));
    assert_eq!(lists[&at(balancer_v6)].sources, range("fd00::/8"));
    for frontend in [at(external), cluster_frontend(1), node_frontend()] {
        assert_eq!(lists[&frontend].sources, None, "{frontend}");
    }
}

const V6_CLUSTER_IP: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1);
const V6_OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

#[test]
fn each_address_leads_to_endpoints_of_its_family() {
    let v6 = |last: u16, usable| Endpoint {
        address: Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, last).into(),
        ..endpoint(0, usable, true, None)
    };
    let node_v6: IpAddr = V6_OUTSIDE.into();
    let outside = [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into()];
    let slices = [
        slice_of(vec![endpoint(1, Usable::Ready, true, None), endpoint(2, Usable::Ready, true, None)]),
        // Of one family nobody is ready: the other one does not matter.
        slice_of(vec![v6(3, Usable::Fallback), v6(4, Usable::No)]),
    ];
    let both = vec![cluster_frontend(1).address, V6_CLUSTER_IP.into()];
    let cases = [(vec![both[0]], [true, false]), (vec![both[1]], [false, true]), (both, [true; 2])];
    for (cluster_ips, answers) in cases {
        let service = Service {
            external_ips: outside.into(),
            balancer_ips: outside.into(),
            cluster_ips: cluster_ips.clone(),
            ..service(1)
        };
        let departed = Departed::default();
        let view = View { departed: &departed, addresses: &[NODE, LOCALHOST, node_v6], zone: None };
        let lists = frontends(&service, slices.iter(), view);
        let mut wanted = BTreeMap::new();
        for ((address, node), is_ipv4) in [(outside[0], vec![NODE, LOCALHOST]), (outside[1], vec![node_v6])]
            .into_iter()
            .zip([true, false])
            .filter(|(_, is_ipv4)| answers[usize::from(!is_ipv4)])
        {
            let leads_to = if is_ipv4 { vec![1, 2] } else { vec![3] };
            let own = cluster_ips.iter().copied().filter(|ip| ip.is_ipv4() == is_ipv4);
            for address in own.chain([address]) {
                wanted.insert(Frontend { address, port: 80, protocol: Protocol::Tcp }, leads_to.clone());
            }
            for address in node {
                wanted.insert(Frontend { address, ..node_frontend() }, leads_to.clone());
            }
        }
        let seen = lists.iter().map(|(frontend, target)| (*frontend, last_bytes(&target.inside)));
        assert_eq!(seen.collect::<BTreeMap<_, _>>(), wanted);
        assert!(lists.values().all(|target| target.inside == target.outside));
    }
}

#[test]
fn load_balancers_are_told_of_pods_and_not_of_addresses() {
    let mut planner = Planner::new(vec![NODE]);
    planner.set_service(key("a"), Service { health_check_port: Some(30999), ..service(1) });
    let v6 = |last: u16| Endpoint {
        address: Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, last).into(),
        ..endpoint(0, Usable::Ready, true, None)
    };
    planner.set_slice(key("a-v4"), key("a"), slice(&[(1, Usable::Ready, true), (2, Usable::Ready, true)]));
    planner.set_slice(key("a-v6"), key("a"), slice_of(vec![v6(1), v6(2), v6(3)]));
    let told = planner.take_changes().health_checks;
    assert_eq!(told, [(key("a"), Some(HealthCheck { port: 30999, local_endpoints: 3 }))]);
}

#[test]
fn sockets_may_stay_with_endpoints_that_serve_where_datagrams_are_sent() {
    let mut both = Service { internal_policy: TrafficPolicy::Local, ..service(1) };
    both.ports = vec![
        Port { name: "t".into(), port: 53, protocol: Protocol::Tcp, node_port: None },
        Port { name: "u".into(), port: 53, protocol: Protocol::Udp, node_port: None },
    ];
    let endpoints = [(1, Usable::Ready, true), (2, Usable::Fallback, true), (3, Usable::No, true)];
    let mut slice = slice(&[&endpoints[..], &[(4, Usable::Ready, false)]].concat());
    slice.ports = [("t", Protocol::Tcp), ("u", Protocol::Udp)]
        .map(|(name, protocol)| SlicePort { name: name.into(), port: 5353, protocol })
        .into();
    let departed = Departed::default();
    let view = View { departed: &departed, addresses: &[], zone: None };
    let lists = frontends(&both, [slice].iter(), view);
    let draining = |protocol| {
        let frontend = Frontend { address: Ipv4Addr::new(10, 96, 0, 1).into(), port: 53, protocol };
        last_bytes(&lists[&frontend].draining)
    };
    assert_eq!((draining(Protocol::Tcp), draining(Protocol::Udp)), (vec![], vec![1, 2, 4]));
}

#[test]
fn session_affinity_is_part_of_where_a_service_leads() {
    let mut planner = Planner::new(vec![NODE]);
    planner.set_service(key("a"), service(1));
    planner.take_changes();
    let affinity_seconds = core::num::NonZeroU32::new(60);
    planner.set_service(key("a"), Service { affinity_seconds, ..service(1) });
    let changes = planner.take_changes().changes;
    assert_eq!(changes.len(), 2);
    for (frontend, own_address) in [(cluster_frontend(1), false), (node_frontend(), true)] {
        let target = Target { affinity_seconds, own_address, ..Target::default() };
        assert!(changes.contains(&Change::Set { frontend, target, service: key("a") }), "{changes:?}");
    }
}

#[test]
fn slices_are_merged_ports_match_by_name_and_protocol() {
    let mut two_ports = service(1);
    two_ports.ports = vec![
        Port { name: "dns".into(), port: 53, protocol: Protocol::Udp, node_port: None },
        Port { name: "dns-tcp".into(), port: 53, protocol: Protocol::Tcp, node_port: None },
    ];
    let mut first = slice(&[(1, Usable::Ready, false), (2, Usable::No, false)]);
    first.ports = vec![
        SlicePort { name: "dns".into(), port: 5353, protocol: Protocol::Udp },
        SlicePort { name: "dns-tcp".into(), port: 5354, protocol: Protocol::Tcp },
    ];
    let mut second =
        slice(&[(1, Usable::Fallback, false), (2, Usable::Ready, false), (3, Usable::Ready, false)]);
    // The name fits, the protocol does not.
    second.ports = vec![
        SlicePort { name: "dns".into(), port: 5353, protocol: Protocol::Udp },
        SlicePort { name: "dns-tcp".into(), port: 5354, protocol: Protocol::Udp },
    ];
    let slices = [first, second];
    let departed = Departed::default();
    let view = View { departed: &departed, addresses: &[], zone: None };
    let lists = frontends(&two_ports, slices.iter(), view);
    let at = |protocol| Frontend { address: Ipv4Addr::new(10, 96, 0, 1).into(), port: 53, protocol };
    assert_eq!(last_bytes(&lists[&at(Protocol::Udp)].inside), [1, 2, 3]);
    assert_eq!(last_bytes(&lists[&at(Protocol::Tcp)].inside), [1]);
    assert_eq!(lists[&at(Protocol::Tcp)].inside[0].port(), 5354);
}

#[test]
fn only_what_differs_is_a_change() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), service(1));
    planner.set_service(key("b"), service(2));
    planner.set_slice(key("a-1"), key("a"), slice(&[(1, Usable::Ready, false)]));
    assert_eq!(planner.take_changes().changes.len(), 2);
    planner.set_service(key("b"), service(2));
    planner.set_slice(key("a-1"), key("a"), slice(&[(1, Usable::Ready, false), (2, Usable::No, false)]));
    assert_eq!(planner.take_changes().changes, []);
    planner.set_slice(key("a-2"), key("a"), slice(&[(2, Usable::Ready, false)]));
    let changes = planner.take_changes().changes;
    let [Change::Set { frontend, target, service }] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!((*frontend, service), (cluster_frontend(1), &key("a")));
    assert_eq!((last_bytes(&target.inside), last_bytes(&target.outside)), (vec![1, 2], vec![1, 2]));
    planner.remove_service(&key("a"));
    assert_eq!(planner.take_changes().changes, [Change::Remove { frontend: cluster_frontend(1) }]);
}

#[test]
fn the_older_service_wins_a_claimed_address_and_the_other_gets_it_later() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("young"), Service { created: 200, ..service(1) });
    planner.set_slice(key("y"), key("young"), slice(&[(9, Usable::Ready, false)]));
    assert_eq!(planner.take_changes().conflicts, []);
    planner.set_service(key("old"), service(1));
    let changes = planner.take_changes();
    assert_eq!((&changes.conflicts[0].loser, &changes.conflicts[0].winner), (&key("young"), &key("old")));
    assert_eq!(planner.desired(&cluster_frontend(1)).expect("claimed").0, &key("old"));
    planner.remove_service(&key("old"));
    let changes = planner.take_changes();
    assert_eq!(changes.conflicts, []);
    let (winner, target) = planner.desired(&cluster_frontend(1)).expect("claimed");
    assert_eq!((winner, last_bytes(&target.inside)), (&key("young"), vec![9]));
}

#[test]
fn sctp_is_led_while_any_service_has_a_port_of_it() {
    let mut planner = Planner::new(vec![NODE]);
    let of = |ip: u8, protocol| Service {
        ports: vec![Port { name: String::new(), port: 80, protocol, node_port: Some(30080 + u16::from(ip)) }],
        ..service(ip)
    };
    let leads = |planner: &mut Planner| {
        planner.take_changes();
        planner.leads_sctp()
    };
    planner.set_service(key("a"), of(1, Protocol::Tcp));
    assert!(!leads(&mut planner));
    planner.set_service(key("b"), of(2, Protocol::Sctp));
    planner.set_service(key("c"), of(3, Protocol::Sctp));
    assert!(leads(&mut planner));
    // Changes of one that is there, and another that wants its address.
    planner.set_service(key("b"), Service { created: 1, ..of(2, Protocol::Sctp) });
    planner.set_service(key("d"), Service { created: 200, ..of(2, Protocol::Sctp) });
    planner.set_slice(key("s"), key("c"), slice(&[(1, Usable::Ready, false)]));
    assert!(leads(&mut planner));
    planner.remove_service(&key("b"));
    planner.remove_service(&key("c"));
    assert!(leads(&mut planner), "the later one's");
    planner.set_service(key("d"), of(2, Protocol::Udp));
    assert!(!leads(&mut planner));
}

#[test]
fn a_relist_removes_what_is_gone() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), service(1));
    planner.set_service(key("b"), service(2));
    planner.set_slice(key("a-1"), key("a"), slice(&[(1, Usable::Ready, false)]));
    planner.take_changes();
    assert_eq!(planner.retain_services(&HashSet::from([key("a")])), [key("b")]);
    planner.retain_slices(&HashSet::new());
    let changes = planner.take_changes().changes;
    assert_eq!(changes[0], Change::Remove { frontend: cluster_frontend(2) });
    assert!(matches!(&changes[1], Change::Set { target, .. } if target.inside.is_empty()), "{changes:?}");
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), service(1));
    planner.set_service(key("b"), service(2));
    planner.set_slice(key("s"), key("a"), slice(&[(1, Usable::Ready, false)]));
    planner.take_changes();
    planner.set_slice(key("s"), key("b"), slice(&[(1, Usable::Ready, false)]));
    planner.take_changes();
    assert!(planner.desired(&cluster_frontend(1)).expect("a").1.inside.is_empty());
    assert_eq!(last_bytes(&planner.desired(&cluster_frontend(2)).expect("b").1.inside), [1]);
}

/// Where the cluster IP of service `a` leads after the changes so far, and whether there were any.
fn leads_to(planner: &mut Planner) -> (Vec<u8>, bool) {
    let changed = !planner.take_changes().changes.is_empty();
    (last_bytes(&planner.desired(&cluster_frontend(1)).expect("service a").1.inside), changed)
}

#[test]
fn a_pod_that_the_node_ends_gets_no_new_connections_before_its_slice_says_so() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), service(1));
    planner.set_slice(key("s"), key("a"), pods(&[(1, "p"), (2, "q")]));
    assert_eq!(leads_to(&mut planner), (vec![1, 2], true));
    planner.depart("p", Departure::Terminating);
    assert_eq!(leads_to(&mut planner), (vec![2], true));
    // Whoever lists late still shows the old state; the slice that knows makes no difference.
    planner.set_slice(key("s"), key("a"), pods(&[(1, "p"), (2, "q"), (3, "r")]));
    assert_eq!(leads_to(&mut planner), (vec![2, 3], true));
    let mut knows = pods(&[(1, "p"), (2, "q"), (3, "r")]);
    knows.endpoints[0].usable = Usable::Fallback;
    planner.set_slice(key("s"), key("a"), knows);
    assert_eq!(leads_to(&mut planner), (vec![2, 3], false));
    // Nothing is ready any more: those that still serve are better than nobody, until nothing of them runs.
    planner.depart("q", Departure::Terminating);
    planner.depart("r", Departure::Terminating);
    assert_eq!(leads_to(&mut planner), (vec![1, 2, 3], true));
    planner.depart("p", Departure::Gone);
    planner.depart("p", Departure::Terminating);
    planner.depart("q", Departure::Gone);
    assert_eq!(leads_to(&mut planner), (vec![3], true));
    planner.depart("r", Departure::Gone);
    assert_eq!(leads_to(&mut planner), (vec![], true));
}

#[test]
fn a_terminating_pod_that_does_not_serve_is_no_fallback() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), service(1));
    let mut slice = pods(&[(1, "p")]);
    slice.endpoints[0].departing = Usable::No;
    planner.set_slice(key("s"), key("a"), slice);
    planner.depart("p", Departure::Terminating);
    assert!(leads_to(&mut planner).0.is_empty());
}

#[test]
fn an_address_is_its_next_pods_at_once() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), service(1));
    planner.depart("p", Departure::Terminating);
    planner.depart("p", Departure::Gone);
    // A slice of before the end arrives late; then the new pod of that address, beside it and alone.
    planner.set_slice(key("s"), key("a"), pods(&[(1, "p")]));
    assert!(leads_to(&mut planner).0.is_empty());
    planner.set_slice(key("t"), key("a"), pods(&[(1, "next")]));
    assert_eq!(leads_to(&mut planner).0, [1]);
    planner.set_slice(key("s"), key("a"), pods(&[(1, "next")]));
    planner.remove_slice(&key("t"));
    assert_eq!(leads_to(&mut planner).0, [1]);
}

#[test]
fn a_service_that_publishes_what_is_not_ready_keeps_its_terminating_pods() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), Service { publish_not_ready: true, ..service(1) });
    planner.set_slice(key("s"), key("a"), pods(&[(1, "p"), (2, "q")]));
    planner.depart("p", Departure::Terminating);
    assert_eq!(leads_to(&mut planner).0, [1, 2]);
    planner.depart("p", Departure::Gone);
    assert_eq!(leads_to(&mut planner).0, [2]);
}

#[test]
fn ended_pods_are_remembered_up_to_a_limit_and_the_index_of_pods_shrinks() {
    let mut planner = Planner::new(vec![]);
    planner.set_service(key("a"), service(1));
    planner.set_slice(key("s"), key("a"), pods(&[(1, "p"), (2, "q")]));
    planner.depart("p", Departure::Gone);
    assert_eq!(leads_to(&mut planner).0, [2]);
    (1..PODS).for_each(|number| planner.depart(&number.to_string(), Departure::Gone));
    assert_eq!(leads_to(&mut planner), (vec![2], false));
    planner.depart("one more", Departure::Gone);
    assert_eq!(leads_to(&mut planner), (vec![1, 2], true));
    planner.set_slice(key("s"), key("a"), pods(&[(2, "q")]));
    assert_eq!(planner.pod_slices.len(), 1);
    planner.remove_slice(&key("s"));
    assert_eq!(planner.pod_slices.len(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    SetService { name: u8, ip: u8, created: i64, local: bool },
    RemoveService { name: u8 },
    SetSlice { name: u8, service: u8, endpoints: Vec<(u8, u8, bool, u8)> },
    RemoveSlice { name: u8 },
    Depart { pod: u8, gone: bool },
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0_u8..4;
    prop_oneof![
        (small.clone(), 0_u8..3, 0_i64..3, any::<bool>())
            .prop_map(|(name, ip, created, local)| Step::SetService { name, ip, created, local }),
        small.clone().prop_map(|name| Step::RemoveService { name }),
        (
            small.clone(),
            small.clone(),
            prop::collection::vec((0_u8..5, 0_u8..3, any::<bool>(), small.clone()), 0..5)
        )
            .prop_map(|(name, service, endpoints)| Step::SetSlice { name, service, endpoints }),
        (small.clone(), any::<bool>()).prop_map(|(pod, gone)| Step::Depart { pod, gone }),
        small.prop_map(|name| Step::RemoveSlice { name }),
        Just(Step::Take),
    ]
}

fn usable(code: u8) -> Usable {
    [Usable::No, Usable::Fallback, Usable::Ready][usize::from(code % 3)]
}

/// The same rules, computed from nothing and without thought for cost.
fn oracle(
    services: &BTreeMap<u8, Service>,
    slices: &BTreeMap<u8, (u8, Slice)>,
    departed: &BTreeMap<String, Departure>,
) -> HashMap<Frontend, [Vec<u8>; 2]> {
    let mut by_age: Vec<_> = services.iter().collect();
    by_age.sort_by_key(|(name, service)| (service.created, **name));
    let mut all = HashMap::new();
    for (name, service) in by_age {
        let endpoints: Vec<&Endpoint> =
            slices.values().filter(|(of, _)| of == name).flat_map(|(_, slice)| &slice.endpoints).collect();
        let worth = |endpoint: &Endpoint| match departed.get(endpoint.pod.as_deref().map_or("", |uid| uid)) {
            Some(Departure::Gone) => Usable::No,
            Some(Departure::Terminating) => endpoint.usable.min(Usable::Fallback),
            None => endpoint.usable,
        };
        let pick = |wanted: Usable, local_only: bool| {
            let mut picked: Vec<u8> = (0..=255)
                .filter(|last| {
                    let same: Vec<_> = endpoints.iter().filter(|e| last_byte(e.address) == *last).collect();
                    same.iter().map(|e| worth(e)).max() == Some(wanted)
                        && (!local_only || same.iter().any(|e| e.local))
                })
                .collect();
            picked.sort_unstable();
            picked
        };
        let chosen = |local_only: bool| {
            let ready = pick(Usable::Ready, local_only);
            if ready.is_empty() { pick(Usable::Fallback, local_only) } else { ready }
        };
        let cluster_ip = last_byte(service.cluster_ips[0]);
        all.entry(cluster_frontend(cluster_ip)).or_insert_with(|| [chosen(false), chosen(false)]);
        let local = service.external_policy == TrafficPolicy::Local;
        all.entry(node_frontend()).or_insert_with(|| [chosen(false), chosen(local)]);
    }
    all
}

proptest! {
    #[test]
    fn changes_add_up_to_what_a_naive_oracle_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut planner = Planner::new(vec![NODE]);
        let mut services: BTreeMap<u8, Service> = BTreeMap::new();
        let mut slices: BTreeMap<u8, (u8, Slice)> = BTreeMap::new();
        let mut departed: BTreeMap<String, Departure> = BTreeMap::new();
        let mut kernel: HashMap<Frontend, [Vec<u8>; 2]> = HashMap::new();
        let mut owners: HashMap<Frontend, Key> = HashMap::new();
        for step in steps.into_iter().chain([Step::Take]) {
            match step {
                Step::SetService { name, ip, created, local } => {
                    let external_policy = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
                    let value = Service { created, external_policy, ..service(ip) };
                    planner.set_service(key(&name.to_string()), value.clone());
                    services.insert(name, value);
                }
                Step::RemoveService { name } => {
                    planner.remove_service(&key(&name.to_string()));
                    services.remove(&name);
                }
                Step::SetSlice { name, service, endpoints } => {
                    let one = |(ip, code, local, pod): &(u8, u8, bool, u8)| {
                        // The first of the pods stands for endpoints without one.
                        let pod = (*pod > 0).then(|| pod.to_string());
                        endpoint(*ip, usable(*code), *local, pod.as_deref())
                    };
                    let slice = slice_of(endpoints.iter().map(one).collect());
                    planner.set_slice(key(&name.to_string()), key(&service.to_string()), slice.clone());
                    slices.insert(name, (service, slice));
                }
                Step::Depart { pod, gone } => {
                    let stage = if gone { Departure::Gone } else { Departure::Terminating };
                    planner.depart(&pod.to_string(), stage);
                    let known = departed.entry(pod.to_string()).or_insert(stage);
                    *known = stage.max(*known);
                }
                Step::RemoveSlice { name } => {
                    planner.remove_slice(&key(&name.to_string()));
                    slices.remove(&name);
                }
                Step::Take => {
                    for change in planner.take_changes().changes {
                        match change {
                            Change::Remove { frontend } => {
                                owners.remove(&frontend);
                                prop_assert!(kernel.remove(&frontend).is_some());
                            }
                            Change::Set { frontend, target, service } => {
                                let next = [&target.inside, &target.outside].map(|list| last_bytes(list));
                                let is_same = kernel.insert(frontend, next.clone()) == Some(next);
                                let is_known = owners.insert(frontend, service.clone()) == Some(service);
                                prop_assert!(!(is_same && is_known), "nothing new of {}", frontend);
                            }
                        }
                    }
                    prop_assert_eq!(&kernel, &oracle(&services, &slices, &departed));
                    for (frontend, owner) in &owners {
                        prop_assert_eq!(planner.desired(frontend).map(|(key, _)| key), Some(owner));
                    }
                    prop_assert_eq!(planner.frontends(), kernel.keys().copied().collect::<HashSet<_>>());
                }
            }
        }
    }
}
