//! Nodes that wrap packets to each other, and pods of both families.

use std::collections::BTreeSet;

use e2e::cluster::Cluster;
use e2e::http;

const NODES: [&str; 2] = ["node-1", "node-2"];

/// An echo server on a node.
fn echo(number: usize, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: echo-{number}}}\nspec:\n  nodeName: {node}\n  containers:\n  - name: echo\n    \
         image: localhost/echo:v1\n"
    )
}

#[test]
fn pods_of_both_families_talk_through_the_overlay() {
    let cluster = Cluster::of_two_wrapped();
    let kubectl = cluster.namespace("overlay");
    let mut addresses = Vec::new();
    for (number, node) in (1..).zip(NODES) {
        let ranges = kubectl.get(&format!("node/{node}"), "{.spec.podCIDRs}");
        assert!(ranges.contains("10.244.") && ranges.contains("fd00:244:"), "{node}: {ranges}");
        kubectl.apply(&echo(number, node));
    }
    for number in [1, 2] {
        let pod = format!("pod/echo-{number}");
        kubectl.run(&["wait", "--for=condition=Ready", &pod, "--timeout=60s"]);
        let both = kubectl.get(&pod, "{.status.podIPs[*].ip}");
        let both: Vec<String> = both.split_whitespace().map(str::to_owned).collect();
        assert_eq!(both.len(), 2, "{both:?}");
        addresses.push(both);
    }
    for (from, to) in [(1, 2), (2, 1)] {
        for (own, address) in addresses[from - 1].iter().zip(&addresses[to - 1]) {
            let target =
                if address.contains(':') { format!("[{address}]:8080") } else { format!("{address}:8080") };
            let said = kubectl.run(&["exec", &format!("echo-{from}"), "--", "/echo", "get", &target]);
            assert_eq!(said.trim(), format!("echo-{to} {own}"), "{target}");
        }
    }
    let mtu = kubectl.run(&["exec", "echo-1", "--", "cat", "/sys/class/net/eth0/mtu"]);
    assert_eq!(mtu.trim(), "1450");

    kubectl.run(&["apply", "-f", &cluster.file("examples/hello.yaml")]);
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    let pods = kubectl.list(&["pods", "-l", "app=hello"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = pods.iter().map(|pod| text(&pod["metadata"]["name"])).collect();
    let places: BTreeSet<String> = pods.iter().map(|pod| text(&pod["spec"]["nodeName"])).collect();
    assert_eq!(places, NODES.map(str::to_owned).into());
    for node in NODES {
        let own = cluster.node_address(node);
        kubectl.wait("node ports lead to every pod", || {
            let ask = |_| http::get(&own, 30080).split_whitespace().next().unwrap_or_default().to_owned();
            let seen: BTreeSet<String> = (0..30).map(ask).collect();
            if seen == names { Ok(()) } else { Err(format!("{node}: {seen:?}")) }
        });
    }
}
