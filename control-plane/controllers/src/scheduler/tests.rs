//! Tables for checks, scores, messages, requests, and the order of waiting pods.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement,
    NodeSelectorTerm, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus, PreferredSchedulingTerm,
    ResourceRequirements, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use tokio::time::Instant;

use super::State;
use super::cluster::Cluster;
use super::filter::{Check, matches_term};
use super::plan::{Decision, plan};
use super::queue::{Change, LEFTOVER_AFTER, Waiting};
use super::resources::{Resources, request};
use crate::key::ObjectKey;

fn amounts(list: &[(&str, &str)]) -> std::collections::BTreeMap<String, Quantity> {
    list.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
}

fn node(name: &str) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some([("kubernetes.io/hostname".to_owned(), name.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus {
            allocatable: Some(amounts(&[("cpu", "2"), ("memory", "4Gi"), ("pods", "10")])),
            ..NodeStatus::default()
        }),
    }
}

fn pod(name: &str, requests: &[(&str, &str)]) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(format!("uid-{name}")),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "c".into(),
                resources: Some(ResourceRequirements {
                    requests: Some(amounts(requests)),
                    ..ResourceRequirements::default()
                }),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn spec(pod: &mut Pod) -> &mut PodSpec {
    pod.spec.as_mut().expect("made with a spec")
}

fn made(nodes: &[Node]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.set_node(node);
    }
    cluster
}

fn refused(pod: &Pod, cluster: &Cluster) -> (String, BTreeSet<Check>) {
    match plan(pod, cluster, 0) {
        Decision::Unschedulable { message, checks } => (message, checks),
        Decision::Bind(node) => panic!("the pod must not fit, but goes to {node}"),
    }
}

fn chosen(pod: &Pod, cluster: &Cluster) -> String {
    match plan(pod, cluster, 0) {
        Decision::Bind(node) => node,
        Decision::Unschedulable { message, .. } => panic!("the pod must fit: {message}"),
    }
}

#[test]
fn messages_are_upstreams() {
    let greedy = pod("greedy", &[("cpu", "3")]);
    assert_eq!(refused(&greedy, &Cluster::default()).0, "no nodes available to schedule pods");
    let mut cordoned = node("cordoned");
    cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
    let mut tainted = node("tainted");
    tainted.spec.as_mut().unwrap().taints =
        Some(vec![Taint { key: "a".into(), effect: "NoSchedule".into(), ..Taint::default() }]);
    let nodes = [node("one"), node("two"), cordoned, tainted];
    let (message, checks) = refused(&greedy, &made(&nodes));
    assert_eq!(
        message,
        "0/4 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 2 Insufficient cpu."
    );
    assert_eq!(checks, BTreeSet::from([Check::Unschedulable, Check::Taints, Check::Resources]));
    let mut choosy = pod("choosy", &[]);
    spec(&mut choosy).node_selector = Some([("disk".to_owned(), "ssd".to_owned())].into());
    assert_eq!(
        refused(&choosy, &made(&[node("one")])).0,
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    );
}

#[test]
fn resources_are_counted_with_assumed_pods() {
    let mut cluster = made(&[node("one")]);
    let first = pod("first", &[("cpu", "1500m"), ("memory", "1Gi")]);
    cluster.assume(&first, &chosen(&first, &cluster));
    let second = pod("second", &[("cpu", "600m")]);
    assert_eq!(refused(&second, &cluster).0, "0/1 nodes are available: 1 Insufficient cpu.");
    assert!(cluster.forget(&ObjectKey::of(&first), "uid-first"));
    assert_eq!(chosen(&second, &cluster), "one");
    let exotic = pod("exotic", &[("example.com/gpu", "1"), ("memory", "5Gi")]);
    assert_eq!(
        refused(&exotic, &cluster).0,
        "0/1 nodes are available: 1 Insufficient example.com/gpu, 1 Insufficient memory."
    );
}

#[test]
fn a_node_takes_only_so_many_pods() {
    let mut cluster = made(&[node("one")]);
    for number in 0..10 {
        let small = pod(&format!("p{number}"), &[]);
        cluster.assume(&small, "one");
    }
    assert_eq!(refused(&pod("more", &[]), &cluster).0, "0/1 nodes are available: 1 Too many pods.");
}

#[test]
fn a_binding_that_the_cache_does_not_show_keeps_its_room() {
    let mut cluster = made(&[node("one")]);
    let mut placed = pod("placed", &[("cpu", "2")]);
    cluster.assume(&placed, "one");
    cluster.set_pod(&placed);
    assert_eq!(
        refused(&pod("other", &[("cpu", "1")]), &cluster).0,
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    spec(&mut placed).node_name = Some("one".into());
    cluster.set_pod(&placed);
    assert!(!cluster.forget(&ObjectKey::of(&placed), "uid-placed"), "bound pods are not taken back");
    placed.status = Some(PodStatus { phase: Some("Succeeded".into()), ..PodStatus::default() });
    cluster.set_pod(&placed);
    assert_eq!(chosen(&pod("other", &[("cpu", "1")]), &cluster), "one");
    assert_eq!(cluster.node("one").unwrap().requested, Resources::default());
}

#[test]
fn host_ports_collide_by_address_and_protocol() {
    let with_port = |name: &str, ip: Option<&str>, protocol: &str| {
        let mut pod = pod(name, &[]);
        spec(&mut pod).containers[0].ports = Some(vec![ContainerPort {
            container_port: 80,
            host_port: Some(8080),
            host_ip: ip.map(str::to_owned),
            protocol: Some(protocol.into()),
            name: None,
        }]);
        pod
    };
    let mut cluster = made(&[node("one")]);
    cluster.assume(&with_port("first", Some("10.0.0.1"), "TCP"), "one");
    assert_eq!(chosen(&with_port("other-address", Some("10.0.0.2"), "TCP"), &cluster), "one");
    assert_eq!(chosen(&with_port("other-protocol", None, "UDP"), &cluster), "one");
    for ip in [None, Some("0.0.0.0"), Some("10.0.0.1")] {
        let (message, checks) = refused(&with_port("same", ip, "TCP"), &cluster);
        assert_eq!(
            message,
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
        );
        assert_eq!(checks, BTreeSet::from([Check::Ports]));
    }
}

#[test]
fn terms_of_affinity() {
    let requirement = |key: &str, operator: &str, values: &[&str]| NodeSelectorRequirement {
        key: key.into(),
        operator: operator.into(),
        values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
    };
    let mut labelled = node("one");
    labelled.metadata.labels =
        Some([("zone".to_owned(), "a".to_owned()), ("cores".to_owned(), "8".to_owned())].into());
    let cluster = made(&[labelled]);
    let info = cluster.node("one").unwrap();
    for (own, expected) in [
        (requirement("zone", "In", &["a", "b"]), true),
        (requirement("zone", "NotIn", &["a"]), false),
        (requirement("other", "NotIn", &["a"]), true),
        (requirement("zone", "Exists", &[]), true),
        (requirement("zone", "DoesNotExist", &[]), false),
        (requirement("cores", "Gt", &["4"]), true),
        (requirement("cores", "Lt", &["8"]), false),
        (requirement("zone", "Gt", &["4"]), false),
        (requirement("zone", "Like", &["a"]), false),
    ] {
        let term = NodeSelectorTerm { match_expressions: Some(vec![own.clone()]), match_fields: None };
        assert_eq!(matches_term(&term, info), expected, "{own:?}");
    }
    let field = |value: &str| NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![requirement("metadata.name", "In", &[value])]),
    };
    assert!(matches_term(&field("one"), info));
    assert!(!matches_term(&field("two"), info));
    assert!(!matches_term(&NodeSelectorTerm::default(), info), "an empty term matches nothing");
    let mut pinned = pod("pinned", &[]);
    spec(&mut pinned).affinity = Some(Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![field("two"), field("one")],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    });
    assert_eq!(chosen(&pinned, &cluster), "one", "one term is enough");
}

#[test]
fn tolerations_open_tainted_nodes() {
    let mut tainted = node("one");
    tainted.spec.as_mut().unwrap().taints = Some(vec![Taint {
        key: "dedicated".into(),
        value: Some("db".into()),
        effect: "NoSchedule".into(),
        time_added: None,
    }]);
    let cluster = made(&[tainted]);
    let with = |toleration: Toleration| {
        let mut pod = pod("p", &[]);
        spec(&mut pod).tolerations = Some(vec![toleration]);
        matches!(plan(&pod, &cluster, 0), Decision::Bind(_))
    };
    let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
        key: Some(key.into()),
        operator: Some(operator.into()),
        value: Some(value.into()),
        effect: Some(effect.into()),
        toleration_seconds: None,
    };
    assert!(with(toleration("dedicated", "Equal", "db", "NoSchedule")));
    assert!(with(toleration("dedicated", "", "db", "")));
    assert!(with(toleration("dedicated", "Exists", "", "")));
    assert!(with(toleration("", "Exists", "", "")));
    assert!(!with(toleration("dedicated", "Equal", "web", "NoSchedule")));
    assert!(!with(toleration("dedicated", "Exists", "", "NoExecute")));
    assert!(!with(toleration("other", "Exists", "", "")));
}

#[test]
fn scores_prefer_room_siblings_elsewhere_and_wishes() {
    let mut cluster = made(&[node("one"), node("two")]);
    cluster.assume(&pod("busy", &[("cpu", "1"), ("memory", "2Gi")]), "one");
    assert_eq!(chosen(&pod("any", &[("cpu", "100m")]), &cluster), "two", "more room");

    let mut cluster = made(&[node("one"), node("two")]);
    let owned = |name: &str| {
        let mut pod = pod(name, &[]);
        pod.metadata.owner_references = Some(vec![OwnerReference {
            uid: "set".into(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        pod
    };
    cluster.assume(&owned("first"), "two");
    cluster.assume(&pod("stranger", &[]), "one");
    assert_eq!(chosen(&owned("second"), &cluster), "one", "its sibling is on the other node");

    let mut wishful = pod("wishful", &[("cpu", "100m")]);
    spec(&mut wishful).affinity = Some(Affinity {
        node_affinity: Some(NodeAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![PreferredSchedulingTerm {
                weight: 50,
                preference: NodeSelectorTerm {
                    match_expressions: Some(vec![NodeSelectorRequirement {
                        key: "kubernetes.io/hostname".into(),
                        operator: "In".into(),
                        values: Some(vec!["one".into()]),
                    }]),
                    match_fields: None,
                },
            }]),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    });
    let mut crowded = made(&[node("one"), node("two")]);
    crowded.assume(&pod("busy", &[("cpu", "500m"), ("memory", "1Gi")]), "one");
    assert_eq!(chosen(&wishful, &crowded), "one", "a wish outweighs some room");

    let mut shunned = node("one");
    shunned.spec.as_mut().unwrap().taints =
        Some(vec![Taint { key: "a".into(), effect: "PreferNoSchedule".into(), ..Taint::default() }]);
    assert_eq!(chosen(&pod("p", &[]), &made(&[shunned, node("two")])), "two");
}

#[test]
fn the_seed_spreads_ties() {
    let cluster = made(&[node("one"), node("two"), node("three")]);
    let nodes: BTreeSet<String> =
        (0..9).map(|seed| format!("{:?}", plan(&pod("p", &[]), &cluster, seed))).collect();
    assert_eq!(nodes.len(), 3);
}

#[test]
fn requests_of_init_containers_and_sidecars() {
    let container = |cpu: &str, always: bool| Container {
        resources: Some(ResourceRequirements {
            requests: Some(amounts(&[("cpu", cpu)])),
            ..ResourceRequirements::default()
        }),
        restart_policy: always.then(|| "Always".to_owned()),
        ..Container::default()
    };
    for (init, main, expected) in [
        (vec![], vec!["100m", "200m"], 300),
        (vec![("500m", false)], vec!["100m"], 500),
        (vec![("50m", false)], vec!["100m"], 100),
        (vec![("100m", true)], vec!["200m"], 300),
        (vec![("100m", true), ("500m", false)], vec!["200m"], 600),
        (vec![("500m", false), ("100m", true)], vec!["200m"], 500),
    ] {
        let pod = Pod {
            spec: Some(PodSpec {
                init_containers: Some(init.iter().map(|(cpu, always)| container(cpu, *always)).collect()),
                containers: main.iter().map(|cpu| container(cpu, false)).collect(),
                overhead: Some(amounts(&[("cpu", "1m")])),
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        assert_eq!(request(&pod).wanted.cpu, expected + 1, "{init:?} {main:?}");
    }
}

fn names(waiting: &mut Waiting, now: Instant) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(pod) = waiting.pop(now) {
        names.push(pod.metadata.name.clone().unwrap_or_default());
    }
    names
}

fn arc(name: &str, priority: i32) -> Arc<Pod> {
    let mut pod = pod(name, &[]);
    spec(&mut pod).priority = Some(priority);
    Arc::new(pod)
}

fn resources() -> Change {
    Change::Checks(BTreeSet::from([Check::Resources]))
}

#[tokio::test(start_paused = true)]
async fn priority_goes_before_age() {
    let mut waiting = Waiting::default();
    let now = Instant::now();
    waiting.set(arc("first", 0), now);
    waiting.set(arc("urgent", 10), now + Duration::from_secs(1));
    waiting.set(arc("second", 0), now + Duration::from_secs(2));
    assert_eq!(names(&mut waiting, now + Duration::from_secs(3)), ["urgent", "first", "second"]);
}

#[tokio::test(start_paused = true)]
async fn only_relevant_changes_wake_a_pod_and_not_before_its_backoff() {
    let mut waiting = Waiting::default();
    let now = Instant::now();
    waiting.set(arc("p", 0), now);
    let key = ObjectKey::new("ns", "p");
    assert_eq!(names(&mut waiting, now), ["p"]);
    waiting.park(&key, BTreeSet::from([Check::Resources]), now);
    waiting.wake(&Change::Checks(BTreeSet::from([Check::Affinity])), now + Duration::from_secs(5));
    assert!(names(&mut waiting, now + Duration::from_secs(6)).is_empty());
    waiting.wake(&resources(), now + Duration::from_secs(7));
    assert_eq!(names(&mut waiting, now + Duration::from_secs(7)), ["p"]);
    // The second failure's back-off is two seconds.
    let second = now + Duration::from_secs(7);
    waiting.park(&key, BTreeSet::from([Check::Resources]), second);
    waiting.wake(&Change::Node, second + Duration::from_millis(100));
    assert_eq!(waiting.deadline(), Some(second + Duration::from_secs(2)));
    assert!(names(&mut waiting, second + Duration::from_secs(1)).is_empty());
    assert_eq!(names(&mut waiting, second + Duration::from_secs(2)), ["p"]);
}

#[tokio::test(start_paused = true)]
async fn a_parked_pod_is_tried_again_after_a_while_and_when_it_asks_for_something_else() {
    let mut waiting = Waiting::default();
    let now = Instant::now();
    waiting.set(arc("p", 0), now);
    let key = ObjectKey::new("ns", "p");
    waiting.pop(now);
    waiting.park(&key, BTreeSet::from([Check::Taints]), now);
    assert_eq!(waiting.deadline(), Some(now + LEFTOVER_AFTER));
    let later = now + Duration::from_secs(30);
    let mut same = Pod::clone(&arc("p", 0));
    same.status = Some(PodStatus::default());
    waiting.set(Arc::new(same), later);
    assert!(names(&mut waiting, later).is_empty(), "a new status changes nothing");
    waiting.set(arc("p", 7), later);
    assert_eq!(names(&mut waiting, later), ["p"]);
    waiting.park(&key, BTreeSet::new(), later);
    assert_eq!(names(&mut waiting, later + LEFTOVER_AFTER), ["p"]);
}

#[tokio::test(start_paused = true)]
async fn room_that_comes_free_wakes_the_pod_that_waits_for_it() {
    let mut state = State::default();
    let now = Instant::now();
    state.take_node("one", Some(&node("one")), now);
    let mut big = pod("big", &[("cpu", "2")]);
    spec(&mut big).node_name = Some("one".into());
    state.take_pod(&ObjectKey::of(&big), Some(Arc::new(big.clone())), now);
    let waits = Arc::new(pod("waits", &[("cpu", "1")]));
    let key = ObjectKey::of(&*waits);
    state.take_pod(&key, Some(waits.clone()), now);
    assert!(state.waiting.pop(now).is_some());
    let (_, checks) = refused(&waits, &state.cluster);
    state.waiting.park(&key, checks, now);
    let later = now + Duration::from_secs(20);
    state.take_node("one", Some(&node("one")), later);
    assert!(state.waiting.pop(later).is_none(), "a heartbeat is no relevant change");
    state.take_pod(&ObjectKey::of(&big), None, later);
    assert!(state.waiting.pop(later).is_some());
    assert_eq!(chosen(&waits, &state.cluster), "one");
}
