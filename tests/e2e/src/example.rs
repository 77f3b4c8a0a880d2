//! `examples/hello.yaml`, which most tests have traffic with.

use crate::cluster::Cluster;
use crate::kubectl::Kubectl;

/// Applies the example and waits for it; the Service's cluster IP.
pub fn start(cluster: &Cluster, kubectl: &Kubectl) -> String {
    kubectl.run(&["apply", "-f", &cluster.file("examples/hello.yaml")]);
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]);
    wait_endpoints(kubectl, 3);
    kubectl.get("service/hello", "{.spec.clusterIP}")
}

pub fn wait_endpoints(kubectl: &Kubectl, count: usize) {
    kubectl.wait(&format!("{count} endpoints"), || {
        let found = kubectl.get("endpoints/hello", "{.subsets[0].addresses[*].ip}");
        if found.split_whitespace().count() == count { Ok(()) } else { Err(found) }
    });
}
