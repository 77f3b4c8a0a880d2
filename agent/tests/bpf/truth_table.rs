//! Who reaches whom under generated policies, by real packets: three namespaces with three pods each, TCP and UDP, two ports, both families.
//! Policies come and go while the same sockets go on; after each change the whole table is compared with what the documentation says.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use agent::policies::{convert, plan};
use dataplane::policy::Change;
use dataplane::{Dataplane, counter, wait_for_readers};
use k8s_openapi::api::core::v1::Pod as ApiPod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use socket2::Socket;

use crate::oracle;
use crate::place::{Cgroup, LIMIT, PODS, PORTS, Place, Pod};

/// How often policies are changed.
const ROUNDS: usize = 120;
/// The policies that were applied over all rounds, at least.
const POLICIES: usize = 200;
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Sending pod, receiving pod, and which of [`PORTS`].
type Probe = (usize, usize, usize);

fn probes() -> impl Iterator<Item = Probe> {
    let pairs = (0..PODS).flat_map(|from| (0..PODS).map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| from != to)
        .flat_map(|(from, to)| (0..PORTS.len()).map(move |port| (from, to, port)))
}

fn api_pod(number: usize) -> ApiPod {
    let (namespace, name) = (NAMESPACES[number / 3], NAMES[number % 3]);
    let ips = [true, false].map(|is_ipv4| json!({"ip": Pod::address(number, is_ipv4).to_string()}));
    let pod = json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{number}"), "labels": {"pod": name, "all": "yes"}},
        "spec": {"containers": [{"name": "server", "ports": [
            {"name": "one", "containerPort": PORTS[0]},
            {"name": "one", "containerPort": PORTS[0], "protocol": "UDP"},
            {"name": "two", "containerPort": PORTS[1], "protocol": "UDP"},
        ]}]},
        "status": {"phase": "Running", "podIPs": ips},
    });
    serde_json::from_value(pod).unwrap()
}

fn selector(key: &'static str, values: [&'static str; 3]) -> impl Strategy<Value = Value> {
    let one = prop::sample::select(values.to_vec());
    let some = prop::sample::subsequence(values.to_vec(), 1..3);
    prop_oneof![
        Just(json!({})),
        one.prop_map(move |value| json!({"matchLabels": {key: value}})),
        (prop::sample::select(vec!["In", "NotIn"]), some)
            .prop_map(move |(operator, values)| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})),
        Just(json!({"matchExpressions": [{"key": key, "operator": "DoesNotExist"}]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let pods = || selector("pod", NAMES);
    let namespaces = || selector("ns", NAMESPACES);
    let one = (0..PODS, any::<bool>()).prop_map(|(number, is_ipv4)| {
        let length = if is_ipv4 { 32 } else { 128 };
        json!({"ipBlock": {"cidr": format!("{}/{length}", Pod::address(number, is_ipv4))}})
    });
    let many = prop::sample::select(vec![
        json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.9.0.12/30"]}}),
        json!({"ipBlock": {"cidr": "10.9.0.8/29", "except": ["10.9.0.10/32", "10.9.0.12/31"]}}),
        json!({"ipBlock": {"cidr": "::/0", "except": ["fd00:9::10/124"]}}),
        json!({"ipBlock": {"cidr": "fd00:9::/64"}}),
    ]);
    prop_oneof![
        3 => pods().prop_map(|pods| json!({"podSelector": pods})),
        2 => namespaces().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        3 => (pods(), namespaces()).prop_map(|(pods, namespaces)| json!({"podSelector": pods, "namespaceSelector": namespaces})),
        1 => one,
        2 => many,
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = prop::sample::select(vec!["TCP", "UDP", "SCTP"]);
    let port = prop_oneof![
        Just(json!({})),
        prop::sample::select(PORTS.to_vec()).prop_map(|port| json!({"port": port})),
        Just(json!({"port": 70, "endPort": 80})),
        Just(json!({"port": 80, "endPort": 200})),
        prop::sample::select(vec!["one", "two", "none"]).prop_map(|name| json!({"port": name})),
    ];
    (protocol, port).prop_map(|(protocol, mut port)| {
        port["protocol"] = protocol.into();
        port
    })
}

fn rules(peers: &'static str) -> impl Strategy<Value = Vec<Value>> {
    let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
    let rule = rule.prop_map(move |(who, ports)| json!({peers: who, "ports": ports}));
    prop::collection::vec(rule, 0..3)
}

fn policy() -> impl Strategy<Value = Value> {
    let types = prop::sample::subsequence(vec!["Ingress", "Egress"], 1..=2);
    (prop::sample::select(NAMESPACES.to_vec()), selector("pod", NAMES), types, rules("from"), rules("to"))
        .prop_map(|(namespace, pods, types, ingress, egress)| {
            json!({
                "metadata": {"namespace": namespace},
                "spec": {"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress},
            })
        })
}

/// The planner and the kernel behind it.
struct Enforced {
    planner: plan::Planner,
    dataplane: Dataplane,
}

impl Enforced {
    fn flush(&mut self, place: &Place) {
        let (mut changes, mut isolated) = (Vec::new(), Vec::new());
        for change in self.planner.take_changes() {
            match change {
                plan::Change::Allow { ruleset, network, ports } => {
                    changes.push(Change::Allow { ruleset, network, ports });
                }
                plan::Change::Forget { ruleset, network } => {
                    changes.push(Change::Forget { ruleset, network });
                }
                plan::Change::Drop { ruleset } => changes.push(Change::Drop { ruleset }),
                plan::Change::Isolate { endpoint, isolation } => {
                    let number: usize = endpoint.strip_prefix("uid-").unwrap().parse().unwrap();
                    isolated.push((&place.pods[number].link, isolation));
                }
            }
        }
        self.dataplane.change_policies(&changes).unwrap();
        isolated.into_iter().for_each(|(link, isolation)| self.dataplane.isolate(link, isolation).unwrap());
        wait_for_readers().unwrap();
        self.dataplane.release_policies().unwrap();
    }

    fn denied(&self) -> usize {
        let counters = self.dataplane.counters().unwrap();
        let of = |index: u32| counters[index as usize] as usize;
        of(counter::POLICY_INGRESS_DENIED) + of(counter::POLICY_EGRESS_DENIED)
    }
}

/// What the documentation says.
fn expected(policies: &[NetworkPolicy], pods: &[ApiPod], protocol: &str, is_ipv4: bool) -> BTreeSet<Probe> {
    let namespaces =
        NAMESPACES.map(|name| (name.to_owned(), [("ns".to_owned(), name.to_owned())].into())).into();
    let peer = |number: usize| oracle::Peer {
        address: Pod::address(number, is_ipv4),
        pod: Some(&pods[number]),
        is_own_node: false,
    };
    let is_allowed = |&(from, to, port): &Probe| {
        oracle::allows(policies, &namespaces, &peer(from), &peer(to), protocol, PORTS[port])
    };
    probes().filter(is_allowed).collect()
}

/// Every pod sends a datagram to every other one. What arrives is answered, and the answers arrive: whose.
fn datagrams(place: &Place, enforced: &Enforced, clients: &[UdpSocket], is_ipv4: bool) -> BTreeSet<Probe> {
    let family = usize::from(!is_ipv4);
    let before = enforced.denied();
    for (from, to, port) in probes() {
        let target = SocketAddr::new(Pod::address(to, is_ipv4), PORTS[port]);
        clients[from].send_to(&[from as u8, to as u8, port as u8], target).unwrap();
    }
    let mut arrived = BTreeSet::new();
    let all = probes().count();
    harness::wait::until("every datagram arrived or was dropped", LIMIT, || {
        for pod in &place.pods {
            for socket in &pod.datagrams[family] {
                while let Some((probe, sender)) = receive(socket) {
                    assert!(arrived.insert(probe), "{probe:?} twice");
                    socket.send_to(&[probe.0 as u8, probe.1 as u8, probe.2 as u8], sender).unwrap();
                }
            }
        }
        let seen = arrived.len() + enforced.denied() - before;
        if seen == all { Ok(()) } else { Err(format!("{seen} of {all}")) }
    });
    let mut answered = BTreeSet::new();
    harness::wait::until("the answers arrived", LIMIT, || {
        clients.iter().for_each(|client| {
            answered.extend(std::iter::from_fn(|| receive(client)).map(|(probe, _)| probe))
        });
        if answered == arrived { Ok(()) } else { Err(format!("{} of {}", answered.len(), arrived.len())) }
    });
    arrived
}

fn receive(socket: &UdpSocket) -> Option<(Probe, SocketAddr)> {
    let mut probe = [0; 3];
    let (length, sender) = socket.recv_from(&mut probe).ok()?;
    assert_eq!(length, probe.len());
    Some((probe.map(usize::from).into(), sender))
}

/// Every pod connects to every other one: which connections came to be.
fn connections(
    place: &Place,
    enforced: &Enforced,
    expected: &BTreeSet<Probe>,
    is_ipv4: bool,
) -> BTreeSet<Probe> {
    let family = usize::from(!is_ipv4);
    let before = enforced.denied();
    let each = (PODS - 1) * PORTS.len();
    let mut sockets: Vec<Vec<Socket>> = place.pods.iter().map(|pod| pod.clients(each, is_ipv4)).collect();
    let mut begun: Vec<(Probe, Socket)> = Vec::new();
    for probe @ (from, to, port) in probes() {
        let socket = sockets[from].pop().unwrap();
        let target = SocketAddr::new(Pod::address(to, is_ipv4), PORTS[port]);
        if let Err(error) = socket.connect(&target.into()) {
            assert_eq!(error.raw_os_error(), Some(nix::libc::EINPROGRESS), "{error}");
        }
        begun.push((probe, socket));
    }
    let refused = begun.len() - expected.len();
    let connected = |sockets: &[(Probe, Socket)]| -> BTreeSet<Probe> {
        let mut fds: Vec<PollFd<'_>> =
            sockets.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLOUT)).collect();
        poll(&mut fds, PollTimeout::ZERO).unwrap();
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| events == PollFlags::POLLOUT);
        fds.iter().zip(sockets).filter(|(fd, _)| ready(fd)).map(|(_, (probe, _))| *probe).collect()
    };
    let found = harness::wait::until("every connection was made or dropped", LIMIT, || {
        let found = connected(&begun);
        let denied = enforced.denied() - before;
        if found.len() >= expected.len() && denied >= refused {
            Ok(found)
        } else {
            Err(format!("{} made, {denied} dropped", found.len()))
        }
    });
    drop(begun);
    for listener in place.pods.iter().flat_map(|pod| &pod.listeners[family]) {
        while let Ok((connection, _)) = listener.accept() {
            connection.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    }
    found
}

#[test]
fn pods_reach_whom_the_documentation_says() {
    let place = Place::make();
    let cgroup = Cgroup::make();
    let options = cgroup.options();
    let dataplane = Dataplane::open(&options).unwrap();
    let first = dataplane.first_ruleset().0;
    let mut enforced = Enforced { planner: plan::Planner::new(first), dataplane };
    let pods: Vec<ApiPod> = (0..PODS).map(api_pod).collect();
    for name in NAMESPACES {
        enforced.planner.set_namespace(name, Arc::new([("ns".to_owned(), name.to_owned())].into()));
    }
    for pod in &pods {
        let (key, shown) = convert::pod(pod).unwrap();
        enforced.planner.set_endpoint(key.clone(), shown.clone());
        enforced.planner.set_pod(key, shown);
    }
    // The same sockets over all rounds: their flows are judged again and again.
    let clients = [true, false]
        .map(|is_ipv4| place.pods.iter().map(|pod| pod.datagram_client(is_ipv4)).collect::<Vec<_>>());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut policies: Vec<NetworkPolicy> = Vec::new();
    let (mut applied, mut allowed, mut refused) = (0, 0, 0);
    for round in 0..ROUNDS {
        let new = prop::collection::vec(policy(), 1..4).new_tree(&mut runner).unwrap().current();
        // One of the last round's stays, the others go.
        for gone in policies.drain(policies.len().min(1)..) {
            enforced.planner.remove_policy(&convert::key(&gone.metadata).unwrap());
        }
        for (number, mut policy) in new.into_iter().enumerate() {
            policy["metadata"]["name"] = format!("policy-{round}-{number}").into();
            let policy: NetworkPolicy = serde_json::from_value(policy).unwrap();
            let (read, problems) = convert::policy(&policy);
            assert_eq!(problems, Vec::<String>::new());
            enforced.planner.set_policy(convert::key(&policy.metadata).unwrap(), read);
            policies.push(policy);
            applied += 1;
        }
        if round % 3 == 2 {
            let gone = policies.remove(0);
            enforced.planner.remove_policy(&convert::key(&gone.metadata).unwrap());
        }
        enforced.flush(&place);
        let is_ipv4 = round % 2 == 0;
        let shown = || serde_json::to_string(&policies).unwrap();
        let of_udp = expected(&policies, &pods, "UDP", is_ipv4);
        let seen = datagrams(&place, &enforced, &clients[usize::from(!is_ipv4)], is_ipv4);
        assert_eq!(seen, of_udp, "round {round}, UDP, IPv4: {is_ipv4}: {}", shown());
        let of_tcp = expected(&policies, &pods, "TCP", is_ipv4);
        let seen = connections(&place, &enforced, &of_tcp, is_ipv4);
        assert_eq!(seen, of_tcp, "round {round}, TCP, IPv4: {is_ipv4}: {}", shown());
        allowed += of_udp.len() + of_tcp.len();
        refused += 2 * probes().count() - of_udp.len() - of_tcp.len();
    }
    println!("{applied} policies, {allowed} probes allowed, {refused} refused");
    assert!(applied >= POLICIES && allowed > 1000 && refused > 1000, "{applied} {allowed} {refused}");
    drop(enforced);
    dataplane::remove_all(&options.pin_root).unwrap();
}
