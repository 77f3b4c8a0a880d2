use prometheus_client::encoding::text::encode;

use super::*;

fn text(metrics: &Metrics) -> String {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn durations_are_counted_and_summed_by_kind() {
    let metrics = Metrics::new();
    metrics.network.observe("set_up_pod", Duration::from_millis(20));
    metrics.network.observe("set_up_pod", Duration::from_millis(30));
    metrics.network.observe("tear_down_pod", Duration::from_millis(5));
    let text = text(&metrics);
    let name = "kubelet_network_plugin_operations_duration_seconds";
    for line in [
        format!("# TYPE {name} histogram"),
        format!("{name}_sum{{operation_type=\"set_up_pod\"}} 0.05"),
        format!("{name}_count{{operation_type=\"set_up_pod\"}} 2"),
        format!("{name}_count{{operation_type=\"tear_down_pod\"}} 1"),
        format!("{name}_bucket{{le=\"0.032\",operation_type=\"set_up_pod\"}} 2"),
        format!("{name}_bucket{{le=\"0.016\",operation_type=\"set_up_pod\"}} 0"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn failures_are_counted_beside_their_duration() {
    let metrics = Metrics::new();
    metrics.operation("start_container", async { Ok::<(), ()>(()) }).await.unwrap();
    metrics.operation("start_container", async { Err::<(), ()>(()) }).await.unwrap_err();
    let text = text(&metrics);
    let count = "kubelet_runtime_operations_duration_seconds_count{operation_type=\"start_container\"} 2\n";
    assert!(text.contains(count), "{text}");
    let errors = "kubelet_runtime_operations_errors_total{operation_type=\"start_container\"} 1\n";
    assert!(text.contains(errors), "{text}");
}
