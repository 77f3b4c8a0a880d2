use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).unwrap()
}

fn node() -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": "n1", "labels": {"zone": "a", "cores": "8"}},
        "spec": {"taints": [{"key": "down", "value": "yes", "effect": "NoExecute"}]},
    }))
    .unwrap()
}

fn tolerant(mut spec: Value) -> Value {
    spec["tolerations"] = json!([{"operator": "Exists"}]);
    spec
}

fn reason(spec: Value, others: &[Value]) -> Option<String> {
    let others: Vec<Pod> = others.iter().cloned().map(pod).collect();
    let others: Vec<&Pod> = others.iter().collect();
    let allocatable = Amounts([("cpu".to_owned(), 2_000), ("memory".to_owned(), 1 << 30)].into());
    let node = node();
    let inputs = Inputs { node: Some(&node), allocatable: &allocatable, max_pods: 3 };
    admit(&pod(spec), &others, inputs).map(|rejection| format!("{}: {}", rejection.reason, rejection.message))
}

fn affinity(requirement: Value) -> Value {
    tolerant(json!({"containers": [], "affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [requirement]}}}}))
}

#[test]
fn labels_and_affinity() {
    let fails = |spec| reason(spec, &[]).is_some_and(|text| text.starts_with("NodeAffinity"));
    assert!(!fails(tolerant(json!({"containers": [], "nodeSelector": {"zone": "a"}}))));
    assert!(fails(tolerant(json!({"containers": [], "nodeSelector": {"zone": "b"}}))));
    let expression = |key: &str, operator: &str, values: Value| {
        affinity(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}))
    };
    assert!(!fails(expression("zone", "In", json!(["a", "b"]))));
    assert!(fails(expression("zone", "NotIn", json!(["a"]))));
    assert!(!fails(expression("cores", "Gt", json!(["4"]))));
    assert!(fails(expression("cores", "Lt", json!(["4"]))));
    assert!(!fails(expression("none", "DoesNotExist", json!([]))));
    assert!(!fails(affinity(
        json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})
    )));
    assert!(fails(affinity(json!({}))), "an empty term matches nothing");
}

#[test]
fn resources_ports_and_taints() {
    let big = tolerant(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}));
    assert_eq!(reason(big.clone(), &[]), None);
    assert_eq!(
        reason(big.clone(), std::slice::from_ref(&big)).unwrap(),
        "OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu, requested: 1500, used: 1500, capacity: 2000"
    );
    let port = |ip: &str, port: i32| {
        tolerant(
            json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": port, "hostIP": ip}]}]}),
        )
    };
    assert_eq!(reason(port("", 80), &[port("", 81)]), None);
    assert_eq!(reason(port("10.0.0.1", 80), &[port("10.0.0.2", 80)]), None);
    assert_eq!(
        reason(port("10.0.0.1", 80), &[port("", 80)]).unwrap(),
        "NodePorts: Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    );
    let empty = json!({"containers": []});
    assert!(reason(empty.clone(), &[]).unwrap().starts_with("TaintToleration"));
    let three = [empty.clone(), empty.clone(), empty.clone()];
    assert!(reason(tolerant(empty), &three).unwrap().starts_with("OutOfpods"));
}

#[test]
fn sysctls() {
    let spec = |name: &str| {
        tolerant(json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}))
    };
    assert_eq!(reason(spec("net.ipv4.tcp_syncookies"), &[]), None);
    assert_eq!(
        reason(spec("kernel.msgmax"), &[]).unwrap(),
        "SysctlForbidden: Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted"
    );
}
