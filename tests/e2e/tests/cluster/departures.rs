//! What a node does by itself with the connections of a pod that ends: nobody tells it but the pod's own deletion.

use std::collections::BTreeSet;

use e2e::cluster::Cluster;
use e2e::kubectl::Kubectl;
use e2e::load;

/// Enough that two backends that are both chosen both answer.
const CONNECTIONS: u32 = 40;

/// A server whose preStop hook waits to be told to go on. A second word on the way: it has been asked to stop.
fn server(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: node-1\n  terminationGracePeriodSeconds: 40\n  \
         containers:\n  - name: echo\n    image: localhost/echo:v1\n    lifecycle: {{preStop: {{exec: {{command: \
         [sh, -c, 'touch /asked; while [ ! -e /go ]; do sleep 0.1; done']}}}}}}\n---\n"
    )
}

/// A Service without a selector, and a slice that nobody keeps: it goes on saying that both are ready.
fn frozen_service(kubectl: &Kubectl, pods: &[&str]) -> String {
    let endpoint = |pod: &&str| {
        let (object, namespace) = (format!("pod/{pod}"), "{.metadata.namespace}");
        format!(
            "- addresses: [{}]\n  nodeName: node-1\n  conditions: {{ready: true, serving: true, terminating: false}}\n  \
             targetRef: {{kind: Pod, name: {pod}, namespace: {}, uid: {}}}\n",
            kubectl.get(&object, "{.status.podIP}"),
            kubectl.get(&object, namespace),
            kubectl.get(&object, "{.metadata.uid}"),
        )
    };
    let endpoints: String = pods.iter().map(endpoint).collect();
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: frozen}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: frozen-1\n  \
         labels: {{kubernetes.io/service-name: frozen}}\naddressType: IPv4\n\
         ports: [{{name: '', port: 8080, protocol: TCP}}]\nendpoints:\n{endpoints}"
    ));
    format!("{}:80", kubectl.get("service/frozen", "{.spec.clusterIP}"))
}

/// Who answers, of connections that are all made now; none may fail.
fn answering(kubectl: &Kubectl, target: &str) -> BTreeSet<String> {
    let counts = load::ask(kubectl, "client", target, CONNECTIONS);
    assert_eq!(counts["failed"], 0, "{counts}");
    counts["answered"].as_object().expect("a map").keys().cloned().collect()
}

/// Deletes a pod and returns when its hook runs: everything that comes before the first signal has been done.
fn delete(kubectl: &Kubectl, pod: &str) {
    kubectl.run(&["delete", "pod", pod, "--wait=false"]);
    kubectl.wait("the hook runs", || kubectl.try_run(&["exec", pod, "--", "ls", "/asked"]));
}

fn let_go(kubectl: &Kubectl, pod: &str) {
    kubectl.run(&["exec", pod, "--", "touch", "/go"]);
    kubectl.run(&["wait", "--for=delete", &format!("pod/{pod}"), "--timeout=60s"]);
}

#[test]
fn a_pod_that_ends_gets_no_new_connections_while_its_slice_still_calls_it_ready() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("departures");
    kubectl.apply(&(server("a") + &server("b")));
    kubectl.run(&["run", "client", "--image=localhost/echo:v1", "--command", "--", "sleep", "infinity"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/a", "pod/b", "pod/client", "--timeout=60s"]);
    let target = frozen_service(&kubectl, &["a", "b"]);
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    kubectl.wait("the service leads to both", || {
        let counts = load::ask(&kubectl, "client", &target, CONNECTIONS);
        let both = counts["answered"].as_object().is_some_and(|answered| answered.len() == 2);
        if both { Ok(()) } else { Err(counts.to_string()) }
    });
    delete(&kubectl, "a");
    assert_eq!(answering(&kubectl, &target), set(&["b"]));
    // Nobody is ready: those that terminate and still serve are better than a refusal.
    delete(&kubectl, "b");
    assert_eq!(answering(&kubectl, &target), set(&["a", "b"]));
    // What is gone is no fallback: its address leads nowhere.
    let_go(&kubectl, "a");
    assert_eq!(answering(&kubectl, &target), set(&["b"]));
    let_go(&kubectl, "b");
    let counts = load::ask(&kubectl, "client", &target, 5);
    assert_eq!(counts["failed"], 5, "{counts}");
    assert!(counts["errors"].to_string().contains("refused"), "{counts}");
    let ready = kubectl.get("endpointslice/frozen-1", "{.endpoints[*].conditions.ready}");
    assert_eq!(ready, "true true", "somebody keeps the slice, and this test proves nothing");
}
