//! Nodes that wrap packets to each other, and pods of both families.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;

use e2e::cluster::{self, Cluster};
use e2e::http;
use e2e::load::{self, Load};

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
    let ask =
        |address: &str| http::get(address, 30080).split_whitespace().next().unwrap_or_default().to_owned();
    let node_ports_of = |place: usize| {
        for node in NODES {
            let own = cluster.node_addresses(node).swap_remove(place);
            kubectl.wait("node ports lead to every pod", || {
                let seen: BTreeSet<String> = (0..30).map(|_| ask(&own)).collect();
                if seen == names { Ok(()) } else { Err(format!("{own}: {seen:?}")) }
            });
        }
    };
    node_ports_of(0);

    // The Service is upgraded, and everything goes by IPv6 too: sockets, node ports, masqueraded flows to the other node and out.
    kubectl.run(&["patch", "service/hello", "-p", r#"{"spec":{"ipFamilyPolicy":"RequireDualStack"}}"#]);
    let addresses = kubectl.get("service/hello", "{.spec.clusterIPs[*]}");
    let second = addresses.split_whitespace().nth(1).unwrap_or_else(|| panic!("one address: {addresses}"));
    node_ports_of(1);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]);
    let load = Load::start(&kubectl, "load", &format!("[{second}]:80"));
    let counts = load::ask(&kubectl, "client", &format!("[{second}]:80"), 100);
    let answered = counts["answered"].as_object().expect("who answered");
    assert_eq!((counts["failed"].as_u64(), answered.len()), (Some(0), names.len()), "{counts}");
    kubectl.run(&["rollout", "restart", "deployment/hello"]);
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    load.assert_no_failure();

    let listener = TcpListener::bind((cluster::HOST_V6, 0)).expect("listen on the host");
    let port = listener.local_addr().expect("its address").port();
    let peer = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("a connection");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhost")
            .expect("answer");
        peer.ip().to_string()
    });
    let target = format!("[{}]:{port}", cluster::HOST_V6);
    assert_eq!(kubectl.run(&["exec", "echo-2", "--", "/echo", "get", &target]).trim(), "host");
    let node = cluster.node_addresses("node-2").swap_remove(1);
    assert_eq!(peer.join().expect("the host's side"), node, "pods show their node's address outside");

    kubectl.run(&["patch", "service/hello", "-p", r#"{"spec":{"ipFamilyPolicy":"SingleStack"}}"#]);
    kubectl.wait("the second address is gone", || {
        let counts = load::ask(&kubectl, "client", &format!("[{second}]:80"), 1);
        if counts["failed"] == 1 { Ok(()) } else { Err(counts.to_string()) }
    });
}
