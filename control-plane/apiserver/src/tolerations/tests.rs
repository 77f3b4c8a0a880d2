use serde_json::json;

use super::*;

const FAST: DefaultTolerations = DefaultTolerations { not_ready_seconds: 4, unreachable_seconds: 5 };

fn added(tolerations: Value) -> Vec<(String, Option<u64>)> {
    let mut pod = json!({"spec": {"tolerations": tolerations}});
    FAST.add(&mut pod);
    let list = pod["spec"]["tolerations"].as_array().expect("a list");
    list.iter().map(|one| (text(one, "/key").to_owned(), one["tolerationSeconds"].as_u64())).collect()
}

#[test]
fn a_pod_that_says_nothing_gets_both() {
    let mut pod = json!({"spec": {}});
    FAST.add(&mut pod);
    assert_eq!(
        pod["spec"]["tolerations"],
        json!([
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 4},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
        ])
    );
}

#[test]
fn what_a_pod_says_stays() {
    let own =
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 60}]);
    let unreachable = "node.kubernetes.io/unreachable".to_owned();
    assert_eq!(added(own), [(unreachable, Some(60)), ("node.kubernetes.io/not-ready".to_owned(), Some(4))]);
    assert_eq!(added(json!([{"operator": "Exists"}])), [(String::new(), None)]);
    let other_effect = json!([{"operator": "Exists", "effect": "NoSchedule"}]);
    assert_eq!(added(other_effect).len(), 3);
}

#[test]
fn the_defaults_are_upstreams() {
    assert_eq!(
        DefaultTolerations::default(),
        DefaultTolerations { not_ready_seconds: 300, unreachable_seconds: 300 }
    );
}
