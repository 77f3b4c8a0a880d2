//! The node's own figures: who may read them, and that they are about what happened.

use std::path::PathBuf;

use e2e::cluster::Cluster;
use e2e::kubectl::Kubectl;

/// The value of a series in a page of the text format.
fn value(page: &str, series: &str) -> Result<f64, String> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).ok_or_else(|| format!("no {series} in\n{page}"))
}

#[test]
fn a_nodes_metrics_need_a_certificate_of_the_api_server_or_an_administrator() {
    let cluster = Cluster::get();
    let server = format!("--server=https://{}:10250", cluster.node_address("node-1"));
    let get = ["get", "--raw", "/metrics", &server];
    cluster.kubectl().run(&get);
    let nobody = Kubectl::new(PathBuf::from("/dev/null"));
    // With a token kubectl does not ask for a user; what the kubelet API wants is a certificate.
    let refused = nobody.fail(&[&get[..], &["--insecure-skip-tls-verify", "--token=none"]].concat());
    assert!(refused.contains("certificate required"), "{refused}");
    let node = Kubectl::new(cluster.file("target/up/nodes/node-1/credentials/kubeconfig").into());
    let refused = node.fail(&get);
    assert!(refused.contains("orbidden"), "{refused}");
}

#[test]
fn the_start_of_a_pod_is_measured_with_its_phases() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("metrics");
    let server = format!("--server=https://{}:10250", cluster.node_address("node-1"));
    let page = || cluster.kubectl().run(&["get", "--raw", "/metrics", &server]);
    let count = |page: &str, phase: &str| {
        value(page, &format!("orlop_pod_start_phase_duration_seconds_count{{phase=\"{phase}\"}}"))
    };
    let before = count(&page(), "status").unwrap_or_default();
    kubectl.run(&["run", "a", "--image=localhost/busybox:v1", "--", "sleep", "infinity"]);
    let page = kubectl.wait("the start is measured", || {
        let page = page();
        if count(&page, "status")? > before { Ok(page) } else { Err(page) }
    });
    for series in [
        "kubelet_pod_start_duration_seconds_sum",
        "orlop_pod_start_phase_duration_seconds_sum{phase=\"sandbox\"}",
        "orlop_pod_start_phase_duration_seconds_sum{phase=\"start\"}",
        "orlop_pod_start_phase_duration_seconds_sum{phase=\"status\"}",
        "kubelet_runtime_operations_duration_seconds_sum{operation_type=\"run_podsandbox\"}",
        "kubelet_runtime_operations_duration_seconds_sum{operation_type=\"create_container\"}",
        "kubelet_runtime_operations_duration_seconds_sum{operation_type=\"start_container\"}",
        "kubelet_network_plugin_operations_duration_seconds_sum{operation_type=\"set_up_pod\"}",
        "kubelet_cgroup_manager_duration_seconds_sum{operation_type=\"create\"}",
    ] {
        let seconds = value(&page, series).unwrap_or_else(|error| panic!("{error}"));
        assert!(seconds > 0.0, "{series} is {seconds}");
    }
    kubectl.run(&["delete", "pod/a", "--grace-period=0", "--force"]);
}
