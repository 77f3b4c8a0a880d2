//! A table of what a node may write.

use serde_json::json;

use super::*;
use crate::kinds::Registry;

fn kind(storage: &str) -> &'static Kind {
    Registry::build().unwrap().of_storage(storage).unwrap()
}

fn node(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})
}

#[test]
fn a_node_registers_itself_only_and_with_its_own_labels() {
    let create = |object: &Value| check("n1", kind("nodes"), ObjectWrite::Create(object));
    assert_eq!(
        create(&node("n2", json!({}))).unwrap_err(),
        "node \"n1\" is not allowed to modify node \"n2\""
    );
    let own = json!({"kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux", "rack": "7", "example.com/gpu": "yes",
        "topology.kubernetes.io/zone": "a", "node.kubernetes.io/x": "y", "a.kubelet.kubernetes.io/x": "y",
        "notkubernetes.io/x": "y"});
    assert_eq!(create(&node("n1", own)), Ok(()));
    for label in [
        "node-restriction.kubernetes.io/tier",
        "a.node-restriction.kubernetes.io/tier",
        "node-role.kubernetes.io/control-plane",
        "kubernetes.io/role",
        "x.k8s.io/y",
        "notnode.kubernetes.io/x",
    ] {
        let error = create(&node("n1", json!({"rack": "7", label: "x"}))).unwrap_err();
        assert_eq!(error, format!("node \"n1\" is not allowed to set the following labels: {label}"));
    }
    let mut owned = node("n1", json!({}));
    owned["metadata"]["ownerReferences"] = json!([{"name": "x"}]);
    assert!(create(&owned).is_err());
}

#[test]
fn a_node_does_not_steer_pods_to_itself_later() {
    let old = node("n1", json!({"node-restriction.kubernetes.io/tier": "a", "rack": "7"}));
    let update = |change: fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        check("n1", kind("nodes"), ObjectWrite::Update { old: &old, new: &new })
    };
    assert_eq!(update(|new| new["metadata"]["labels"]["rack"] = "8".into()), Ok(()));
    assert_eq!(
        update(|new| new["spec"]["taints"] = json!([])).unwrap_err(),
        "node \"n1\" is not allowed to modify taints"
    );
    assert_eq!(
        update(|new| new["metadata"]["ownerReferences"] = json!([{"uid": "nobody"}])).unwrap_err(),
        "node \"n1\" is not allowed to modify ownerReferences"
    );
    let isolation = "is not allowed to modify labels: node-restriction.kubernetes.io/tier";
    assert_eq!(update(|new| new["metadata"]["labels"] = json!({"rack": "7"})).unwrap_err(), isolation);
    let both = update(|new| {
        new["metadata"]["labels"]["node-restriction.kubernetes.io/tier"] = "b".into();
        new["metadata"]["labels"]["kubernetes.io/role"] = "b".into();
    });
    assert_eq!(
        both.unwrap_err(),
        "is not allowed to modify labels: kubernetes.io/role, node-restriction.kubernetes.io/tier"
    );
}

#[test]
fn a_node_writes_its_own_pods_and_lease() {
    let pod = |node: &str, label: &str| json!({"metadata": {"name": "p", "labels": {"a": label}}, "spec": {"nodeName": node}});
    let (mine, other, relabelled) = (pod("n1", "x"), pod("n2", "x"), pod("n1", "y"));
    let pods = |write| check("n1", kind("pods"), write).is_ok();
    assert!(!pods(ObjectWrite::Create(&mine)), "no mirror pods");
    assert!(pods(ObjectWrite::Update { old: &mine, new: &mine }));
    assert!(!pods(ObjectWrite::Update { old: &mine, new: &relabelled }));
    assert!(!pods(ObjectWrite::Update { old: &other, new: &other }));
    assert!(pods(ObjectWrite::Delete(&mine)) && !pods(ObjectWrite::Delete(&other)));
    let leases = |name: &str| {
        let lease = json!({"metadata": {"name": name}});
        check("n1", kind("leases"), ObjectWrite::Create(&lease)).is_ok()
    };
    assert!(leases("n1") && !leases("n2"));
}
