//! What a Service asks of the load balancer besides spreading connections.

use std::collections::BTreeSet;

use e2e::cluster::Cluster;
use e2e::example::{start, wait_endpoints};
use e2e::http;
use e2e::kubectl::Kubectl;
use e2e::load::{self, Load};

/// The pods that answer so many connections from the client.
fn answering(kubectl: &Kubectl, target: &str, connections: u32) -> BTreeSet<String> {
    let counts = load::ask(kubectl, "client", target, connections);
    assert_eq!(counts["failed"], 0, "{counts}");
    counts["answered"].as_object().expect("who answered").keys().cloned().collect()
}

fn patch(kubectl: &Kubectl, spec: &str) {
    kubectl.run(&["patch", "service/hello", "-p", &format!("{{\"spec\":{spec}}}")]);
}

#[test]
fn session_affinity_leads_each_client_to_one_pod() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("affinity");
    let target = format!("{}:80", start(&cluster, &kubectl));
    patch(&kubectl, r#"{"sessionAffinity":"ClientIP"}"#);
    kubectl.wait("the client stays with a pod", || match answering(&kubectl, &target, 30) {
        one if one.len() == 1 => Ok(()),
        several => Err(format!("{several:?}")),
    });
    let chosen = answering(&kubectl, &target, 1);
    kubectl.run(&["scale", "deployment/hello", "--replicas=5"]);
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    wait_endpoints(&kubectl, 5);
    assert_eq!(answering(&kubectl, &target, 100), chosen, "its pod is still there");

    let node = cluster.node_address("node-1");
    let outside: BTreeSet<String> = (0..30).map(|_| http::get(&node, 30080)).collect();
    assert_eq!(outside.len(), 1, "the host is one client too: {outside:?}");

    kubectl.run(&["delete", "pod", chosen.first().expect("one pod")]);
    kubectl.wait("the client has another pod", || match answering(&kubectl, &target, 30) {
        next if next.len() == 1 && next != chosen => Ok(()),
        pods => Err(format!("{pods:?}")),
    });

    patch(&kubectl, r#"{"sessionAffinity":"None"}"#);
    kubectl.wait("connections are spread again", || match answering(&kubectl, &target, 100) {
        all if all.len() == 5 => Ok(()),
        some => Err(format!("{some:?}")),
    });
}

#[test]
fn a_connected_datagram_socket_moves_on_when_its_pod_leaves_the_service() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("connected");
    let target = format!("{}:80", start(&cluster, &kubectl));
    kubectl.run(&["scale", "deployment/hello", "--replicas=1"]);
    kubectl.wait("the others are gone", || match kubectl.list(&["pods", "-l", "app=hello"]) {
        pods if pods.len() == 1 => Ok(()),
        pods => Err(format!("{} pods", pods.len())),
    });
    let load = Load::start(&kubectl, "load", &target);
    let old = answering(&kubectl, &target, 1);
    // The pod goes on and answers whoever asks: nothing but the load balancer can tell the socket.
    kubectl.run(&["label", "pod", old.first().expect("one pod"), "app=alone", "--overwrite"]);
    kubectl.wait("another pod has taken its place", || {
        let counts = load::ask(&kubectl, "client", &target, 30);
        let answered = counts["answered"].as_object().expect("who answered");
        let moved = counts["failed"] == 0 && old.iter().all(|name| !answered.contains_key(name));
        if moved { Ok(()) } else { Err(counts.to_string()) }
    });
    let counts = load.end();
    // In between there was no endpoint, and it was refused.
    let answered = counts["connected_datagrams"]["answered"].as_object().expect("who answered");
    assert_eq!(answered.len(), 2, "the old pod and the new one: {counts}");
}
