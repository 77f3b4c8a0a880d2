use serde_json::json;

use super::*;
use crate::pods::observed::NodeFacts;
use crate::pods::resources::Amounts;

#[test]
fn expansion() {
    let value = |name: &str| match name {
        "A" => Some("a".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    for (text, expected) in [
        ("$(A)", "a"),
        ("x$(A)y$(A)", "xaya"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$a"),
        ("$(NONE)", "$(NONE)"),
        ("$(EMPTY)|", "|"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("é$(A)é", "éaé"),
        ("$$", "$"),
        ("", ""),
    ] {
        assert_eq!(expand(text, value), expected, "{text}");
    }
}

fn run(
    env: serde_json::Value,
    env_from: serde_json::Value,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}})).unwrap();
    let node = NodeFacts { name: "n1".into(), ips: Vec::new(), memory: 1 };
    let allocatable = Amounts::default();
    let source = Source { pod: &pod, pod_ips: &["10.1.0.2".into()], node: &node, allocatable: &allocatable };
    let container = serde_json::from_value(json!({"name": "c", "env": env, "envFrom": env_from})).unwrap();
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {}, "data": {"k": "v", "l": "w"}})).unwrap();
    let secret: Secret = serde_json::from_value(json!({"metadata": {}, "data": {"s": "eHl6"}})).unwrap();
    let objects = Objects {
        config_maps: [("map".to_owned(), Some(Arc::new(map))), ("none".to_owned(), None)].into(),
        secrets: [("sec".to_owned(), Some(Arc::new(secret)))].into(),
    };
    let services =
        vec![("SVC_HOST".to_owned(), "10.96.0.1".to_owned()), ("K".to_owned(), "service".to_owned())];
    environment(&container, source, &objects, services)
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn order_and_precedence() {
    let env = run(
        json!([
            {"name": "ONE", "value": "1"},
            {"name": "TWO", "value": "$(ONE)$(p_k)-$(SVC_HOST)-$(LATER)"},
            {"name": "p_l", "value": "mine"},
            {"name": "K", "value": "own"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "s"}}},
            {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k", "optional": true}}},
            {"name": "LATER", "value": "x"},
        ]),
        json!([{"prefix": "p_", "configMapRef": {"name": "map"}}, {"configMapRef": {"name": "none", "optional": true}}]),
    );
    assert_eq!(
        env.unwrap(),
        pairs(&[
            ("p_k", "v"),
            ("p_l", "mine"),
            ("ONE", "1"),
            ("TWO", "1v-10.96.0.1-$(LATER)"),
            ("K", "own"),
            ("IP", "10.1.0.2"),
            ("S", "xyz"),
            ("LATER", "x"),
            ("SVC_HOST", "10.96.0.1"),
        ])
    );
}

#[test]
fn what_is_missing_is_named() {
    let error = |env, from| run(env, from).unwrap_err().to_string();
    let key = |kind: &str, name: &str, key: &str| json!([{"name": "A", "valueFrom": {kind: {"name": name, "key": key}}}]);
    assert_eq!(error(key("configMapKeyRef", "none", "k"), json!([])), "configmap \"none\" not found");
    assert_eq!(
        error(key("configMapKeyRef", "map", "z"), json!([])),
        "couldn't find key z in ConfigMap ns/map"
    );
    assert_eq!(error(key("secretKeyRef", "sec", "z"), json!([])), "couldn't find key z in Secret ns/sec");
    assert_eq!(error(json!([]), json!([{"secretRef": {"name": "none"}}])), "secret \"none\" not found");
}
