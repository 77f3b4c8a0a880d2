//! Several nodes: pods and Services across them, and what becomes of them when a node dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use e2e::cluster::{Cluster, FAST_GRACE, FAST_TOLERATION};
use e2e::example::{start, wait_endpoints};
use e2e::http;
use e2e::kubectl::Kubectl;
use e2e::load::{self, KINDS, Load};
use serde_json::Value;

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// How much longer than the silence that is allowed the cluster may take to notice, on a machine that is busy with tests.
const NOTICE: Duration = Duration::from_secs(4);
/// How long pods that take the place of others may take to be ready on such a machine.
const REPLACEMENT: Duration = Duration::from_secs(15);

/// Name, node and address of every hello pod that is not going.
fn hello_pods(kubectl: &Kubectl) -> Vec<(String, String, String)> {
    let pods = kubectl.list(&["pods", "-l", "app=hello"]);
    let stay = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    stay.map(|pod| {
        (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]), text(&pod["status"]["podIP"]))
    })
    .collect()
}

fn answered(counts: &Value) -> BTreeSet<String> {
    assert_eq!(counts["failed"], 0, "{counts}");
    assert_eq!(counts["wrong_peer"], 0, "{counts}");
    counts["answered"].as_object().expect("who answered").keys().cloned().collect()
}

/// Status, reason and message of the Ready condition.
fn ready(kubectl: &Kubectl, node: &str) -> String {
    let condition = ".status.conditions[?(@.type=='Ready')]";
    kubectl.get(
        &format!("node/{node}"),
        &format!("{{{condition}.status}} {{{condition}.reason}} {{{condition}.message}}"),
    )
}

fn taints(kubectl: &Kubectl, node: &str) -> String {
    kubectl.get(&format!("node/{node}"), "{range .spec.taints[*]}{.key}:{.effect} {end}")
}

#[test]
fn pods_talk_across_nodes_under_their_own_addresses() {
    let cluster = Cluster::of_three();
    let kubectl = cluster.namespace("across");
    let ranges: BTreeSet<String> = NODES
        .iter()
        .map(|node| {
            assert!(ready(&kubectl, node).starts_with("True KubeletReady"), "{node}");
            kubectl.get(&format!("node/{node}"), "{.spec.podCIDR}")
        })
        .collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");

    let service = start(&cluster, &kubectl);
    let pods = hello_pods(&kubectl);
    let nodes: BTreeSet<&str> = pods.iter().map(|(_, node, _)| node.as_str()).collect();
    assert_eq!(nodes, NODES.into(), "the scheduler spreads a controller's pods: {pods:?}");

    let client = kubectl.get("pod/client", "{.status.podIP}");
    for (name, node, address) in &pods {
        let answer = kubectl.run(&["exec", "client", "--", "/echo", "get", &format!("{address}:8080")]);
        assert_eq!(answer.trim(), format!("{name} {client}"), "from the client to {node}");
    }

    let names: BTreeSet<String> = pods.iter().map(|(name, _, _)| name.clone()).collect();
    assert_eq!(answered(&load::ask(&kubectl, "client", &format!("{service}:80"), 100)), names);
    for node in NODES {
        let own = cluster.node_address(node);
        let seen: BTreeMap<String, String> = (0..60)
            .map(|_| {
                let answer = http::get(&own, 30080);
                let (name, peer) = answer.trim().split_once(' ').expect("a name and an address");
                (name.to_owned(), peer.to_owned())
            })
            .collect();
        assert_eq!(seen.keys().cloned().collect::<BTreeSet<_>>(), names, "node port of {node}");
        for (name, place, _) in &pods {
            // A backend elsewhere answers the node; one on the node itself sees who asked.
            let wanted = if place == node { "10.85.0.1" } else { own.as_str() };
            assert_eq!(seen[name], wanted, "asked at {node}, {name} on {place} answered");
        }
    }
}

#[test]
fn endpoints_on_other_nodes_answer_clients_outside_themselves_where_a_service_asks_for_it() {
    let cluster = Cluster::of_three();
    let kubectl = cluster.namespace("direct");
    start(&cluster, &kubectl);
    kubectl.run(&["annotate", "service/hello", "orlop.dev/forwarding-mode=dsr"]);
    let names: BTreeSet<String> = hello_pods(&kubectl).into_iter().map(|(name, ..)| name).collect();
    let wanted: BTreeSet<String> = names.iter().map(|name| format!("{name} 10.85.0.1")).collect();
    for node in NODES {
        let address = cluster.node_address(node);
        kubectl.wait(&format!("every pod sees who asks {node}, and answers"), || {
            let seen: BTreeSet<String> =
                (0..60).map(|_| http::get(&address, 30080).trim().to_owned()).collect();
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?} instead of {wanted:?}")) }
        });
    }
}

#[test]
fn a_policy_keeps_traffic_from_outside_on_its_node_and_a_hint_that_of_the_pods() {
    let cluster = Cluster::of_three();
    let kubectl = cluster.namespace("near");
    let service = start(&cluster, &kubectl);
    let pods = hello_pods(&kubectl);
    let on = |place: &str| -> BTreeSet<String> {
        pods.iter().filter(|(_, node, _)| node == place).map(|(name, ..)| name.clone()).collect()
    };
    let patch = |spec: &str| {
        kubectl.run(&["patch", "service/hello", "-p", &format!("{{\"spec\":{spec}}}")]);
    };
    let wait_for = |what: &str, target: &str, wanted: &BTreeSet<String>| {
        kubectl.wait(what, || match answered(&load::ask(&kubectl, "client", target, 50)) {
            seen if seen == *wanted => Ok(()),
            seen => Err(format!("{seen:?} instead of {wanted:?}")),
        });
    };
    let all: BTreeSet<String> = pods.iter().map(|(name, ..)| name.clone()).collect();
    let home = kubectl.get("pod/client", "{.spec.nodeName}");

    patch(r#"{"externalTrafficPolicy":"Local"}"#);
    for node in NODES {
        let address = cluster.node_address(node);
        // The client's own address reaches the pod, since no other node had to be asked.
        let wanted: BTreeSet<String> = on(node).iter().map(|name| format!("{name} 10.85.0.1")).collect();
        kubectl.wait(&format!("only pods on {node} answer there"), || {
            let seen: BTreeSet<String> =
                (0..20).map(|_| http::get(&address, 30080).trim().to_owned()).collect();
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?} instead of {wanted:?}")) }
        });
    }
    let own_node_port = format!("{}:30080", cluster.node_address(&home));
    wait_for("a pod on the node is led anywhere", &own_node_port, &all);

    patch(r#"{"externalTrafficPolicy":"Cluster","trafficDistribution":"PreferSameNode"}"#);
    let cluster_ip = format!("{service}:80");
    wait_for("the client is led to its own node", &cluster_ip, &on(&home));
    patch(r#"{"trafficDistribution":null}"#);
    wait_for("the client is led anywhere", &cluster_ip, &all);
}

#[test]
fn a_node_dies_under_load_and_comes_back() {
    let cluster = Cluster::of_three();
    let kubectl = cluster.namespace("node-dies");
    let service = start(&cluster, &kubectl);
    let load = Load::start_on(&kubectl, "load", &format!("{service}:80"), "node-1");
    let lost: Vec<String> = hello_pods(&kubectl)
        .into_iter()
        .filter_map(|(name, node, _)| (node == "node-3").then_some(name))
        .collect();
    assert!(!lost.is_empty(), "no pod is on the node that is to die");

    let (killed, clock) = (SystemTime::now(), Instant::now());
    cluster.kill_node("node-3");
    kubectl.wait("the node's silence is noticed", || match ready(&kubectl, "node-3") {
        said if said == "Unknown NodeStatusUnknown Kubelet stopped posting node status." => Ok(()),
        said => Err(said),
    });
    let noticed = clock.elapsed();
    kubectl.wait("its endpoints are gone", || {
        let ready = kubectl.get("endpoints/hello", "{.subsets[*].addresses[*].targetRef.name}");
        if lost.iter().any(|name| ready.contains(name.as_str())) { Err(ready) } else { Ok(()) }
    });
    let unlisted = clock.elapsed();
    kubectl.wait("it is tainted", || match taints(&kubectl, "node-3") {
        found
            if found.contains("node.kubernetes.io/unreachable:NoSchedule")
                && found.contains("node.kubernetes.io/unreachable:NoExecute") =>
        {
            Ok(())
        }
        found => Err(found),
    });
    kubectl.wait("its pods are replaced", || {
        let pods = hello_pods(&kubectl);
        let moved = pods.len() == 3 && pods.iter().all(|(_, node, _)| node != "node-3");
        if moved { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    wait_endpoints(&kubectl, 3);
    let replaced = clock.elapsed();

    cluster.up();
    assert!(ready(&kubectl, "node-3").starts_with("True KubeletReady"));
    kubectl.wait("the taints are gone", || match taints(&kubectl, "node-3") {
        none if none.is_empty() => Ok(()),
        found => Err(found),
    });
    kubectl.wait("the old pods are gone", || {
        let pods = kubectl.list(&["pods", "-l", "app=hello"]);
        let old = pods.iter().find(|pod| lost.iter().any(|name| pod["metadata"]["name"] == name.as_str()));
        old.map_or(Ok(()), |pod| Err(pod["status"].to_string()))
    });
    let healed = clock.elapsed();
    // The node is of use again: its pods reach the others and are reached.
    kubectl.run(&[
        "run",
        "back",
        "--image=localhost/echo:v1",
        "--overrides={\"spec\":{\"nodeName\":\"node-3\"}}",
    ]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/back", "--timeout=60s"]);
    assert_eq!(answered(&load::ask(&kubectl, "back", &format!("{service}:80"), 50)).len(), 3);
    let back = kubectl.get("pod/back", "{.status.podIP}");
    assert_eq!(
        answered(&load::ask(&kubectl, "load", &format!("{back}:8080"), 10)),
        ["back".to_owned()].into()
    );

    let counts = load.end();
    let declared = FAST_GRACE + NOTICE;
    println!(
        "killed; noticed after {noticed:.1?}, endpoints gone after {unlisted:.1?}, pods replaced after {replaced:.1?}, \
         healed after {healed:.1?}; declared: failures end within {declared:?}"
    );
    assert!(noticed < declared && unlisted < declared);
    assert!(replaced < declared + FAST_TOLERATION + REPLACEMENT);
    for kind in KINDS {
        let count = &counts[kind];
        let since = |at: &Value| {
            let at = Duration::from_millis(at.as_u64().expect("a time"));
            let killed = killed.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            at.as_secs_f64() - killed.as_secs_f64()
        };
        let failures = count["failures"].as_array().map(|ends| (since(&ends[0]), since(&ends[1])));
        println!(
            "{kind}: {} answered, {} failed, begun {failures:.1?} s after the kill",
            load::answers(count),
            count["failed"]
        );
        assert!(load::answers(count) > 0, "{counts}");
        if let Some((first, last)) = failures {
            // A request may have been under way when the node died.
            assert!(first > -1.0 && last < declared.as_secs_f64(), "{kind}: {counts}");
        }
    }
}

#[test]
fn a_node_that_comes_back_at_once_runs_its_pods_again() {
    let cluster = Cluster::of_three();
    let kubectl = cluster.namespace("node-restarts");
    start(&cluster, &kubectl);
    let before = hello_pods(&kubectl);
    cluster.kill_node("node-2");
    cluster.up();
    let identities = |pods: &[(String, String, String)]| -> BTreeSet<String> {
        pods.iter().map(|(name, node, _)| format!("{name} on {node}")).collect()
    };
    kubectl.wait("the pods are where they were", || {
        let pods = hello_pods(&kubectl);
        if identities(&pods) == identities(&before) { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    kubectl.wait("they run again", || {
        let pods = kubectl.list(&["pods", "-l", "app=hello"]);
        let restarted =
            pods.iter().find(|pod| pod["spec"]["nodeName"] == "node-2").ok_or("no pod on node-2")?;
        let status = &restarted["status"]["containerStatuses"][0];
        if status["ready"] == true && status["restartCount"].as_u64() > Some(0) {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    wait_endpoints(&kubectl, 3);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]);
    let service = kubectl.get("service/hello", "{.spec.clusterIP}");
    kubectl.wait("every pod answers", || {
        let counts = load::ask(&kubectl, "client", &format!("{service}:80"), 50);
        let names = counts["answered"].as_object().map_or(0, serde_json::Map::len);
        if counts["failed"] == 0 && names == 3 { Ok(()) } else { Err(counts.to_string()) }
    });
}
