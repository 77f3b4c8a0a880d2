//! Bodies made with `k8s-pb`'s encoders, and broken ones.

use k8s_pb::api::core::v1 as core;
use k8s_pb::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_pb::apimachinery::pkg::util::intstr::IntOrString;
use prost::Message;
use serde_json::json;

use super::super::source;
use super::*;

fn envelope(kind: &str, message: &impl Message) -> Vec<u8> {
    let mut type_meta = vec![0x0a, 2, b'v', b'1', 0x12, kind.len() as u8];
    type_meta.extend(kind.as_bytes());
    let mut bytes = MAGIC.to_vec();
    bytes.extend([0x0a, type_meta.len() as u8]);
    bytes.extend(type_meta);
    bytes.push(0x12);
    prost::encoding::encode_varint(message.encoded_len() as u64, &mut bytes);
    bytes.extend(message.encode_to_vec());
    bytes
}

fn decoded(type_name: &str, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let schemas = Schemas::build(&source::definitions());
    let numbers = Numbers::build(&schemas);
    decode(&schemas, &numbers, schemas.find(type_name).unwrap(), bytes)
}

#[test]
fn a_pod_reads_as_its_json() {
    let probe = core::Probe {
        handler: Some(core::ProbeHandler {
            http_get: Some(core::HttpGetAction {
                port: Some(IntOrString { r#type: Some(1), str_val: Some("http".into()), int_val: Some(0) }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        timeout_seconds: Some(0),
        ..Default::default()
    };
    let pod = core::Pod {
        metadata: Some(ObjectMeta {
            name: Some("p".into()),
            generate_name: Some(String::new()),
            labels: [("a".to_owned(), "b".to_owned()), ("empty".to_owned(), String::new())].into(),
            creation_timestamp: Some(Default::default()),
            ..Default::default()
        }),
        spec: Some(core::PodSpec {
            containers: vec![core::Container {
                name: Some("c".into()),
                args: vec!["x".into(), "".into()],
                liveness_probe: Some(probe),
                ports: vec![core::ContainerPort {
                    container_port: Some(80),
                    host_port: Some(0),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            volumes: vec![core::Volume {
                name: Some("v".into()),
                volume_source: Some(core::VolumeSource {
                    empty_dir: Some(Default::default()),
                    ..Default::default()
                }),
            }],
            termination_grace_period_seconds: Some(0),
            host_network: Some(false),
            ..Default::default()
        }),
        status: None,
    };
    let expected = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": {"a": "b", "empty": ""}},
        "spec": {"containers": [{"name": "c", "args": ["x", ""], "livenessProbe": {"httpGet": {"port": "http"}},
            "ports": [{"containerPort": 80}]}],
            "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0}});
    assert_eq!(decoded("io.k8s.api.core.v1.Pod", &envelope("Pod", &pod)).unwrap(), expected);
}

#[test]
fn a_secret_keeps_its_bytes() {
    let secret = core::Secret { data: [("k".to_owned(), vec![0, 255])].into(), ..Default::default() };
    let value = decoded("io.k8s.api.core.v1.Secret", &envelope("Secret", &secret)).unwrap();
    assert_eq!(value["data"], json!({"k": "AP8="}));
}

#[test]
fn broken_bodies_are_refused() {
    let pod = "io.k8s.api.core.v1.Pod";
    assert_eq!(decoded(pod, b"{}").unwrap_err(), ProtobufError::Magic);
    for bytes in [&b"k8s\0\x12\x05\x0a"[..], b"k8s\0\x00", b"k8s\0\x12\x02\x0a\x7f", b"k8s\0\xff"] {
        assert!(matches!(decoded(pod, bytes), Err(ProtobufError::Malformed { .. })), "{bytes:?}");
    }
}

#[test]
fn an_explicit_zero_of_a_rollout_stays() {
    let zero = || Some(IntOrString { r#type: Some(0), int_val: Some(0), str_val: Some(String::new()) });
    let rolling =
        k8s_pb::api::apps::v1::RollingUpdateDeployment { max_surge: zero(), max_unavailable: zero() };
    let strategy = k8s_pb::api::apps::v1::DeploymentStrategy {
        r#type: Some("RollingUpdate".into()),
        rolling_update: Some(rolling),
    };
    let spec = k8s_pb::api::apps::v1::DeploymentSpec { strategy: Some(strategy), ..Default::default() };
    let deployment = k8s_pb::api::apps::v1::Deployment { spec: Some(spec), ..Default::default() };
    let value = decoded("io.k8s.api.apps.v1.Deployment", &envelope("Deployment", &deployment)).unwrap();
    let rolling = &value["spec"]["strategy"]["rollingUpdate"];
    assert_eq!(*rolling, json!({"maxSurge": 0, "maxUnavailable": 0}));
}

#[test]
fn a_network_policy_reads_as_its_json() {
    use k8s_pb::api::networking::v1 as networking;
    use k8s_pb::apimachinery::pkg::apis::meta::v1::LabelSelector;

    let labels = |value: &str| LabelSelector {
        match_labels: [("app".to_owned(), value.to_owned())].into(),
        ..Default::default()
    };
    let port = |end_port| networking::NetworkPolicyPort {
        protocol: Some("UDP".into()),
        port: Some(IntOrString { r#type: Some(0), int_val: Some(53), str_val: Some(String::new()) }),
        end_port,
    };
    let block = networking::IpBlock { cidr: Some("10.0.0.0/8".into()), except: vec!["10.1.0.0/16".into()] };
    let spec = networking::NetworkPolicySpec {
        pod_selector: Some(labels("web")),
        ingress: vec![networking::NetworkPolicyIngressRule {
            ports: vec![port(Some(0)), port(None)],
            from: vec![networking::NetworkPolicyPeer {
                pod_selector: Some(labels("api")),
                // Present and empty: every namespace.
                namespace_selector: Some(LabelSelector::default()),
                ip_block: None,
            }],
        }],
        egress: vec![networking::NetworkPolicyEgressRule {
            ports: vec![],
            to: vec![networking::NetworkPolicyPeer { ip_block: Some(block), ..Default::default() }],
        }],
        policy_types: vec!["Ingress".into()],
    };
    let policy = networking::NetworkPolicy { spec: Some(spec), ..Default::default() };
    let expected = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{
            "ports": [{"protocol": "UDP", "port": 53, "endPort": 0}, {"protocol": "UDP", "port": 53}],
            "from": [{"podSelector": {"matchLabels": {"app": "api"}}, "namespaceSelector": {}}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}],
        "policyTypes": ["Ingress"]});
    let bytes = envelope("NetworkPolicy", &policy);
    assert_eq!(decoded("io.k8s.api.networking.v1.NetworkPolicy", &bytes).unwrap()["spec"], expected);
}

#[test]
fn roles_and_bindings_read_as_their_json() {
    use k8s_pb::api::rbac::v1 as rbac;
    use k8s_pb::apimachinery::pkg::apis::meta::v1::LabelSelector;

    let rule = rbac::PolicyRule {
        verbs: vec!["get".into()],
        api_groups: vec![String::new()],
        resources: vec!["pods".into()],
        resource_names: vec!["p".into()],
        non_resource_ur_ls: vec!["/a".into()],
    };
    let labels =
        LabelSelector { match_labels: [("a".to_owned(), "b".to_owned())].into(), ..Default::default() };
    let role = rbac::ClusterRole {
        rules: vec![rule.clone()],
        aggregation_rule: Some(rbac::AggregationRule { cluster_role_selectors: vec![labels] }),
        ..Default::default()
    };
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"],
        "nonResourceURLs": ["/a"]}]);
    let value = decoded("io.k8s.api.rbac.v1.ClusterRole", &envelope("ClusterRole", &role)).unwrap();
    assert_eq!(value["rules"], rules);
    assert_eq!(value["aggregationRule"], json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}));
    let role = rbac::Role { rules: vec![rule], ..Default::default() };
    assert_eq!(decoded("io.k8s.api.rbac.v1.Role", &envelope("Role", &role)).unwrap()["rules"], rules);
    let text = |text: &str| Some(text.to_owned());
    let subject =
        rbac::Subject { kind: text("User"), api_group: text("g"), name: text("u"), namespace: text("n") };
    let role_ref = rbac::RoleRef { api_group: text("g"), kind: text("Role"), name: text("r") };
    let binding = rbac::RoleBinding {
        subjects: vec![subject.clone()],
        role_ref: Some(role_ref.clone()),
        ..Default::default()
    };
    let cluster =
        rbac::ClusterRoleBinding { subjects: vec![subject], role_ref: Some(role_ref), ..Default::default() };
    for (kind, bytes) in [
        ("RoleBinding", envelope("RoleBinding", &binding)),
        ("ClusterRoleBinding", envelope("ClusterRoleBinding", &cluster)),
    ] {
        let value = decoded(&format!("io.k8s.api.rbac.v1.{kind}"), &bytes).unwrap();
        assert_eq!(
            value["subjects"],
            json!([{"kind": "User", "apiGroup": "g", "name": "u", "namespace": "n"}])
        );
        assert_eq!(value["roleRef"], json!({"apiGroup": "g", "kind": "Role", "name": "r"}));
    }
}
