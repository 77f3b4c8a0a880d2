use std::time::Duration;

use super::*;
use crate::metrics::Metrics;

fn text(fill: impl FnOnce(&mut Registry)) -> String {
    let mut registry = Registry::default();
    fill(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn the_text_format() {
    let text = text(|registry| node(registry, "a\"\\b"));
    let expected = format!(
        "# HELP kubelet_node_name The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\n\
         kubelet_node_name{{node=\"a\\\"\\\\b\"}} 1\n\
         # HELP kubernetes_build_info Versions of Kubernetes and of this program.\n\
         # TYPE kubernetes_build_info gauge\n\
         kubernetes_build_info{{git_version=\"{KUBELET_VERSION}\",orlop_version=\"{VERSION}\"}} 1\n# EOF\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn every_counter_of_the_dataplane_has_a_name() {
    let numbers: Vec<u32> = DATAPLANE_COUNTERS.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (0..dataplane::counter::COUNT).collect::<Vec<_>>());
    let text = text(|registry| dataplane_counters(registry, &[5; DATAPLANE_COUNTERS.len()]));
    assert!(text.contains("orlop_dataplane_events_total{kind=\"masqueraded\"} 5\n"), "{text}");
}

#[test]
fn dropped_events_are_counted() {
    let recorder = crate::events::Recorder::discarding();
    let object = k8s_openapi::api::core::v1::ObjectReference::default();
    recorder.record(object, crate::events::EventType::Normal, "Pulled", String::new());
    let text = text(|registry| dropped_events(registry, recorder.dropped()));
    assert!(text.contains("\norlop_events_dropped_total 1\n"), "{text}");
}

#[test]
fn an_empty_runtime_counts_zero() {
    let text = text(|registry| running(registry, &Snapshot::default()));
    assert!(text.contains("kubelet_running_pods 0\n"), "{text}");
    assert!(text.contains("kubelet_running_containers{container_state=\"running\"} 0\n"), "{text}");
}

#[test]
fn starts_of_pods_are_histograms_of_seconds() {
    let metrics = Metrics::default();
    metrics.pod_start.observe(0.25);
    metrics.pod_start_phases.observe("sandbox", Duration::from_millis(40));
    metrics.cgroups.observe("create", Duration::from_millis(2));
    let text = text(|registry| metrics.register(registry));
    for line in [
        "kubelet_pod_start_duration_seconds_sum 0.25",
        "kubelet_pod_start_duration_seconds_count 1",
        "kubelet_pod_start_duration_seconds_bucket{le=\"0.256\"} 1",
        "orlop_pod_start_phase_duration_seconds_sum{phase=\"sandbox\"} 0.04",
        "kubelet_cgroup_manager_duration_seconds_count{operation_type=\"create\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}
