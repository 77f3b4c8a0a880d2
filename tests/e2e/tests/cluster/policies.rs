//! NetworkPolicies, on two nodes that wrap packets to each other, in both families.

use e2e::cluster::Cluster;
use e2e::kubectl::Kubectl;
use e2e::load::{self, Load};

fn pod(name: &str, node: &str, label: &str, command: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{{label}}}}}\nspec:\n  nodeName: {node}\n  restartPolicy: Never\n  \
         containers:\n  - name: echo\n    image: localhost/echo:v1\n    {command}\n    ports:\n    - {{name: http, containerPort: 8080}}\n    \
         - {{name: dgram, containerPort: 8080, protocol: UDP}}\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// The addresses of a pod, with the port of its server.
fn targets(kubectl: &Kubectl, pod: &str) -> Vec<String> {
    let both = kubectl.get(&format!("pod/{pod}"), "{.status.podIPs[*].ip}");
    let target = |ip: &str| if ip.contains(':') { format!("[{ip}]:8080") } else { format!("{ip}:8080") };
    both.split_whitespace().map(target).collect()
}

fn reaches(kubectl: &Kubectl, from: &str, target: &str) -> bool {
    load::ask(kubectl, from, target, 1)["failed"] == 0
}

/// Waits until it is so for all addresses of the target.
#[track_caller]
fn wait_for(kubectl: &Kubectl, from: &str, to: &str, reachable: bool) {
    let targets = targets(kubectl, to);
    kubectl.wait(&format!("{from} to {to}: {reachable}"), || {
        let wrong = targets.iter().find(|target| reaches(kubectl, from, target) != reachable);
        wrong.map_or(Ok(()), |target| Err(target.clone()))
    });
}

#[test]
fn policies_say_who_may_talk_to_whom() {
    let cluster = Cluster::of_two_wrapped();
    let kubectl = cluster.namespace("policies");
    for (name, node, label) in [
        ("web", "node-1", "app: web"),
        ("db", "node-1", "app: db"),
        ("front", "node-2", "role: front"),
        ("other", "node-2", "role: other"),
        ("near", "node-1", "role: other"),
    ] {
        kubectl.apply(&pod(name, node, label, ""));
    }
    for name in ["web", "db", "front", "other", "near"] {
        kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
    for (from, to) in [("front", "db"), ("other", "db"), ("near", "db"), ("other", "web")] {
        wait_for(&kubectl, from, to, true);
    }

    // Nobody may come in, but for some to the database, at the ports by their names.
    kubectl.apply(&policy("nobody", "{podSelector: {}, policyTypes: [Ingress]}"));
    let some = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: front}}}], ports: [{port: http}, {port: dgram, protocol: UDP}]}]}";
    kubectl.apply(&policy("some", some));
    wait_for(&kubectl, "other", "db", false);
    wait_for(&kubectl, "near", "db", false);
    wait_for(&kubectl, "other", "web", false);
    wait_for(&kubectl, "front", "web", false);
    wait_for(&kubectl, "front", "db", true);
    let columns = kubectl.run(&["get", "netpol"]);
    assert!(
        columns.starts_with("NAME") && columns.contains("POD-SELECTOR") && columns.contains("app=db"),
        "{columns}"
    );

    // Labels decide.
    kubectl.run(&["label", "pod", "near", "role=front", "--overwrite"]);
    wait_for(&kubectl, "near", "db", true);
    kubectl.run(&["label", "pod", "near", "role=other", "--overwrite"]);
    wait_for(&kubectl, "near", "db", false);

    // What is allowed goes on, whatever happens to policies and agents.
    let db = targets(&kubectl, "db");
    let load = Load::start_where(&kubectl, "load", &db[0], r#"{"metadata":{"labels":{"role":"front"}}}"#);
    kubectl.apply(&policy(
        "more",
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}",
    ));
    let old = cluster.kill("orlop-agent");
    assert!(!reaches(&kubectl, "other", &db[0]), "while the agent is down");
    cluster.wait_restarted("orlop-agent", old);
    wait_for(&kubectl, "front", "db", true);
    wait_for(&kubectl, "other", "db", false);
    kubectl.run(&["delete", "netpol", "more"]);
    kubectl.apply(&policy(
        "some",
        &some.replace("[{podSelector", "[{ipBlock: {cidr: 192.0.2.0/24}}, {podSelector"),
    ));
    wait_for(&kubectl, "front", "db", true);
    load.assert_no_failure();

    // A pod's first packet is filtered.
    kubectl.apply(&policy("everybody", "{podSelector: {matchLabels: {app: web}}, ingress: [{}]}"));
    wait_for(&kubectl, "other", "web", true);
    kubectl.apply(&policy("quiet", "{podSelector: {matchLabels: {role: quiet}}, policyTypes: [Egress]}"));
    let web = targets(&kubectl, "web");
    let asks = format!("command: [/echo, ask, \"{}\", \"1\"]", web[0]);
    // The node knows the policy when the first one is refused.
    kubectl.apply(&pod("silent", "node-2", "role: quiet", ""));
    kubectl.run(&["wait", "--for=condition=Ready", "pod/silent", "--timeout=60s"]);
    wait_for(&kubectl, "silent", "web", false);
    for number in 0..5 {
        kubectl.apply(&pod(&format!("quiet-{number}"), "node-2", "role: quiet", &asks));
    }
    for number in 0..5 {
        let name = format!("pod/quiet-{number}");
        kubectl.run(&["wait", "--for=jsonpath={.status.phase}=Succeeded", &name, "--timeout=60s"]);
        let said = kubectl.run(&["logs", &name]);
        assert!(said.contains("\"failed\":1"), "{said}");
    }

    kubectl.run(&["delete", "netpol", "--all"]);
    wait_for(&kubectl, "other", "db", true);
}
