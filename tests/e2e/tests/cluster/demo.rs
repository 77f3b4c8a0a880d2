//! The whole way of `examples/hello.yaml`.

use std::collections::BTreeSet;

use e2e::cluster::Cluster;
use e2e::example::{start, wait_endpoints};
use e2e::http;
use e2e::load::{self, Load};

#[test]
fn hello_runs_answers_scales_under_load_and_goes() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("demo");
    let address = start(&cluster, &kubectl);

    let wide = kubectl.run(&["get", "pods", "-l", "app=hello", "-o", "wide"]);
    assert_eq!(
        wide.lines().filter(|line| line.contains("Running") && line.contains("node-1")).count(),
        3,
        "{wide}"
    );
    let logs = kubectl.run(&["logs", "deployment/hello"]);
    assert!(logs.contains("listens on 8080"), "{logs}");
    assert_eq!(kubectl.run(&["exec", "client", "--", "echo", "inside"]), "inside\n");

    let counts = load::ask(&kubectl, "client", &format!("{address}:80"), 100);
    assert_eq!(counts["failed"], 0, "{counts}");
    assert_eq!(counts["wrong_peer"], 0, "{counts}");
    let names: BTreeSet<String> = kubectl
        .list(&["pods", "-l", "app=hello"])
        .iter()
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    let answered: BTreeSet<String> = counts["answered"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(answered, names);

    let from_outside = http::get(&cluster.node_address("node-1"), 30080);
    assert!(names.iter().any(|name| from_outside.contains(name.as_str())), "{from_outside}");

    let load = Load::start(&kubectl, "load", &format!("{address}:80"));
    kubectl.run(&["scale", "deployment/hello", "--replicas=5"]);
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    wait_endpoints(&kubectl, 5);
    kubectl.run(&["scale", "deployment/hello", "--replicas=1"]);
    wait_endpoints(&kubectl, 1);
    load.assert_no_failure();

    kubectl.run(&["delete", "pod/load"]);
    kubectl.run(&["delete", "-f", &cluster.file("examples/hello.yaml"), "--timeout=60s"]);
    for kind in ["deployments", "replicasets", "pods", "endpoints", "endpointslices", "services"] {
        kubectl.wait(&format!("no {kind}"), || match kubectl.list(&[kind]) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        });
    }
}

#[test]
fn a_node_port_answers_from_outside_the_pod_network() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("node-port");
    start(&cluster, &kubectl);
    let node = cluster.node_address("node-1");
    let answers: BTreeSet<String> = (0..60).map(|_| http::get(&node, 30080)).collect();
    assert_eq!(answers.len(), 3, "{answers:?}");
}
