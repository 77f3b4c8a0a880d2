use serde_json::json;

use super::*;

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"b": "2", "a": "say \"hi\"\n"},
            "annotations": {"x/y": "z"}},
        "spec": {"containers": [
            {"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}]},
    }))
    .unwrap()
}

fn with_source<T>(check: impl FnOnce(Source<'_>) -> T) -> T {
    let node = NodeFacts { name: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], memory: 1 << 30 };
    let allocatable = Amounts([("cpu".to_owned(), 2_000)].into());
    check(Source {
        pod: &pod(),
        pod_ips: &["10.1.0.2".into(), "fd00::2".into()],
        node: &node,
        allocatable: &allocatable,
    })
}

#[test]
fn fields() {
    with_source(|source| {
        for (path, value) in [
            ("metadata.name", "web"),
            ("metadata.namespace", "shop"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['x/y']", "z"),
            ("metadata.labels", "a=\"say \\\"hi\\\"\\n\"\nb=\"2\""),
            ("spec.nodeName", "n1"),
            ("status.hostIP", "10.0.0.1"),
            ("status.podIP", "10.1.0.2"),
            ("status.podIPs", "10.1.0.2,fd00::2"),
        ] {
            assert_eq!(field(source, path).unwrap(), value, "{path}");
        }
        let error = field(source, "spec.foo").unwrap_err();
        assert_eq!(error.to_string(), "unsupported fieldPath: spec.foo");
    });
}

#[test]
fn resource_fields() {
    with_source(|source| {
        let value = |name: &str, divisor: Option<&str>| {
            let selector = json!({"resource": name, "containerName": "c", "divisor": divisor});
            resource(source, &serde_json::from_value(selector).unwrap(), None)
        };
        assert_eq!(value("limits.memory", Some("1Mi")).unwrap(), "64");
        assert_eq!(value("requests.cpu", None).unwrap(), "1", "rounded up");
        assert_eq!(value("requests.cpu", Some("1m")).unwrap(), "250");
        assert_eq!(value("limits.cpu", Some("1m")).unwrap(), "2000", "the node's");
        assert!(value("limits.gpu", None).is_err());
    });
}
