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

#[test]
fn a_port_of_a_service_is_counted_over_its_addresses() {
    use crate::services::plan::{Key, Port};
    use crate::services::{AddressKind, Owner};
    let frontend = |address: [u8; 4]| dataplane::Frontend {
        address: address.into(),
        port: 80,
        protocol: dataplane::Protocol::Tcp,
    };
    let owner = |name: &str| Owner {
        key: Key { namespace: "default".into(), name: name.into() }.into(),
        kind: AddressKind::ClusterIp,
        port: Port { name: "http".into(), port: 80, protocol: dataplane::Protocol::Tcp, node_port: None },
    };
    let counts = |led, no_backend, forbidden| dataplane::ServiceCounts { led, no_backend, forbidden };
    let text = text(|registry| {
        let counted = vec![
            (frontend([10, 96, 0, 1]), owner("web"), counts(3, 0, 2)),
            (frontend([192, 0, 2, 1]), owner("web"), counts(4, 1, 0)),
            (frontend([10, 96, 0, 2]), owner("idle"), counts(0, 5, 0)),
        ];
        services::register(registry, counted);
    });
    let labels = |name| {
        format!("namespace=\"default\",service=\"{name}\",port=\"80\",port_name=\"http\",protocol=\"TCP\"")
    };
    for line in [
        format!("orlop_service_flows_total{{{}}} 7", labels("web")),
        format!("orlop_service_flows_total{{{}}} 0", labels("idle")),
        format!("orlop_service_refused_total{{{},reason=\"no_endpoint\"}} 1", labels("web")),
        format!("orlop_service_refused_total{{{},reason=\"source_range\"}} 2", labels("web")),
        format!("orlop_service_refused_total{{{},reason=\"no_endpoint\"}} 5", labels("idle")),
        "orlop_service_ports_omitted 0".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert_eq!(text.matches("orlop_service_refused_total{").count(), 3, "{text}");
}

#[test]
fn every_drop_has_its_reason() {
    let text = text(|registry| services::register_drops(registry, &[5; DATAPLANE_COUNTERS.len()]));
    assert!(text.contains("orlop_dataplane_drops_total{reason=\"source_refused\"} 5\n"), "{text}");
    assert!(!text.contains("connect_translated"), "{text}");
    assert_eq!(text.matches("_total{").count(), crate::services::DROPS.len());
}
