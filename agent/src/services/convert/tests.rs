use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane::Identity;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::super::plan::{Key, TrafficPolicy, Usable};
use super::{entry, service, slice, slice_service, usable};

fn api_service(spec: serde_json::Value, status: serde_json::Value) -> ApiService {
    let metadata = serde_json::json!({"name": "web", "namespace": "default", "uid": "u"});
    serde_json::from_value(serde_json::json!({"metadata": metadata, "spec": spec, "status": status}))
        .expect("a Service")
}

#[test]
fn addresses_ports_and_policies() {
    let object = api_service(
        serde_json::json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "externalIPs": ["203.0.113.9", "broken", "::ffff:203.0.113.9", "2001:db8::9"], "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "healthCheckNodePort": 30999,
            "loadBalancerSourceRanges": ["203.0.113.77/24", "198.51.100.0/25", "203.0.113.0/24", "fd00::/64", "all"],
            "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "protocol": "SCTP"}, {"name": "c", "port": 82, "protocol": "DCCP"}],
        }),
        serde_json::json!({"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example"},
        ]}}),
    );
    let (read, problems) = service(&object);
    let shown = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&read.cluster_ips), ["10.96.0.7", "fd00::7"]);
    assert_eq!(shown(&read.external_ips), ["203.0.113.9", "2001:db8::9"]);
    assert_eq!(read.balancer_ips, [Ipv4Addr::new(203, 0, 113, 1)]);
    let ranges = |ranges: Option<Arc<[IpNetwork]>>| -> Vec<String> {
        ranges.iter().flat_map(|all| all.iter()).map(ToString::to_string).collect()
    };
    assert_eq!(ranges(read.source_ranges.v4), ["198.51.100.0/25", "203.0.113.0/24"]);
    assert_eq!(ranges(read.source_ranges.v6), ["fd00::/64"]);
    assert_eq!((read.internal_policy, read.external_policy), (TrafficPolicy::Cluster, TrafficPolicy::Local));
    assert_eq!(read.health_check_port, Some(30999));
    assert_eq!((read.affinity_seconds, read.publish_not_ready), (NonZeroU32::new(60), false));
    assert_eq!((read.ports.len(), read.ports[0].node_port), (2, Some(30080)));
    assert_eq!(
        problems,
        [
            "spec.externalIPs: \"broken\" is not an IP address",
            "spec.loadBalancerSourceRanges: \"all\" is not a network",
            "spec.ports: port 82 has protocol DCCP, only TCP, UDP and SCTP are translated",
        ]
    );
}

#[test]
fn a_service_that_another_implementation_serves_is_left_alone() {
    let spec = serde_json::json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "healthCheckNodePort": 30999,
        "externalTrafficPolicy": "Local", "externalIPs": ["203.0.113.9"], "ports": [{"port": 80, "nodePort": 30080}],
    });
    let labelled = |label: &str| {
        let mut object = api_service(spec.clone(), serde_json::json!({}));
        object.metadata.labels = Some([(label.to_owned(), String::new())].into());
        object
    };
    let served = |label| {
        let (read, _) = service(&labelled(label));
        let addresses = read.cluster_ips.len() + read.external_ips.len() + read.ports.len();
        addresses + usize::from(read.health_check_port.is_some())
    };
    assert_eq!(served("app"), 4);
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        assert_eq!(served(label), 0, "{label}");
        assert!(super::SERVED.split(',').any(|part| part == format!("!{label}")));
        // Pods get its environment variables all the same, as from the kubelet.
        assert!(entry(&labelled(label)).is_some());
    }
}

#[test]
fn affinity_is_for_three_hours_unless_the_service_says_otherwise() {
    let read =
        |spec: serde_json::Value| service(&api_service(spec, serde_json::json!({}))).0.affinity_seconds;
    assert_eq!(read(serde_json::json!({"sessionAffinity": "ClientIP"})), NonZeroU32::new(10_800));
    assert_eq!(read(serde_json::json!({"sessionAffinity": "None"})), None);
    assert_eq!(read(serde_json::json!({})), None);
}

#[test]
fn source_ranges_that_cannot_be_read_let_nobody_in() {
    let read = |ranges: &[&str]| {
        let spec = serde_json::json!({"loadBalancerSourceRanges": ranges});
        let read = service(&api_service(spec, serde_json::json!({}))).0.source_ranges;
        [read.v4, read.v6].map(|ranges| ranges.map(|ranges| ranges.len()))
    };
    assert_eq!(read(&[]), [None, None]);
    assert_eq!(read(&["fd00::/64"]), [None, Some(1)]);
    assert_eq!(read(&["10.0.0.0/8"]), [Some(1), None]);
    assert_eq!(read(&["all"]), [Some(0), Some(0)]);
    assert_eq!(read(&["10.0.0.0/8", "all"]), [Some(1), Some(0)]);
}

#[test]
fn hints_of_endpoints() {
    let object: EndpointSlice = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web-x", "namespace": "default"},
        "addressType": "IPv4",
        "ports": [],
        "endpoints": [
            {"addresses": ["10.244.0.1"], "hints": {"forZones": [{"name": "a"}, {"name": "b"}]}},
            {"addresses": ["10.244.0.2"], "hints": {"forZones": [], "forNodes": [{"name": "here"}]}},
            {"addresses": ["10.244.0.3"], "hints": {"forNodes": [{"name": "there"}]}},
            {"addresses": ["10.244.0.4"]},
        ],
    }))
    .expect("a slice");
    let (read, _) = slice(&object, "here");
    let zones: Vec<_> =
        read.endpoints.iter().map(|endpoint| endpoint.zones.as_ref().map(|zones| zones.join(","))).collect();
    assert_eq!(zones, [Some("a,b".to_owned()), None, None, None]);
    let nodes: Vec<_> = read.endpoints.iter().map(|endpoint| endpoint.meant_for_node).collect();
    assert_eq!(nodes, [None, Some(true), Some(false), None]);
}

#[test]
fn headless_and_external_name_have_no_frontends() {
    let headless = serde_json::json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]});
    let external = serde_json::json!({"type": "ExternalName", "externalName": "example.com"});
    for spec in [headless, external] {
        let object = api_service(spec, serde_json::json!({}));
        let (read, problems) = service(&object);
        assert!(read.cluster_ips.is_empty() && read.ports.is_empty() && problems.is_empty());
        assert_eq!(entry(&object), None);
    }
}

#[test]
fn conditions_of_endpoints() {
    let object: EndpointSlice = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web-x", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}, {"name": "all"}],
        "endpoints": [
            {"addresses": ["10.244.0.1"], "nodeName": "here"},
            {"addresses": ["10.244.0.2"], "conditions": {"ready": true, "serving": true, "terminating": false}},
            {"addresses": ["10.244.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.244.0.4"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["10.244.0.5"], "conditions": {"ready": false}},
            {"addresses": ["nonsense"]},
        ],
    }))
    .expect("a slice");
    let (read, problems) = slice(&object, "here");
    let states: Vec<_> = read.endpoints.iter().map(|endpoint| (endpoint.usable, endpoint.local)).collect();
    let expected = [
        (Usable::Ready, true),
        (Usable::Ready, false),
        (Usable::Fallback, false),
        (Usable::No, false),
        (Usable::No, false),
    ];
    assert_eq!(states, expected);
    let departing: Vec<_> = read.endpoints.iter().map(|endpoint| endpoint.departing).collect();
    use Usable::{Fallback, No};
    assert_eq!(departing, [Fallback, Fallback, Fallback, No, No]);
    assert_eq!(read.ports.len(), 1);
    assert_eq!(problems, ["endpoints: \"nonsense\" is not an IPv4 address"]);
    assert_eq!(
        slice_service(&object.metadata),
        Some(Key { namespace: "default".into(), name: "web".into() })
    );
}

#[test]
fn pods_behind_endpoints_that_may_be_on_this_node() {
    let target = |kind: &str, uid: &str| serde_json::json!({"kind": kind, "name": "n", "uid": uid});
    let object: EndpointSlice = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web-x", "namespace": "default"},
        "addressType": "IPv4",
        "ports": [],
        "endpoints": [
            {"addresses": ["10.244.0.1"], "nodeName": "here", "targetRef": target("Pod", "u1")},
            {"addresses": ["10.244.0.2"], "targetRef": target("Pod", "u2")},
            {"addresses": ["10.244.0.3"], "nodeName": "there", "targetRef": target("Pod", "u3")},
            {"addresses": ["10.244.0.4"], "nodeName": "here", "targetRef": target("Node", "u4")},
            {"addresses": ["10.244.0.5"], "nodeName": "here"},
            {"addresses": ["10.244.0.6"], "nodeName": "here", "targetRef": {"kind": "Pod", "name": "", "uid": ""}},
        ],
    }))
    .expect("a slice");
    let (read, _) = slice(&object, "here");
    let pods: Vec<_> =
        read.endpoints.iter().map(|endpoint| endpoint.pod.as_deref().map(String::as_str)).collect();
    assert_eq!(pods, [Some("u1"), Some("u2"), None, None, None, None]);
    // The same on every node.
    let pod = Some(Identity::of_pod("default", "n"));
    let identities: Vec<_> = read.endpoints.iter().map(|endpoint| endpoint.identity).collect();
    assert_eq!(identities, [pod, pod, pod, None, None, None]);
}

#[test]
fn an_endpoint_that_departs_is_worth_no_more_than_its_slice_says() {
    // ready, serving, terminating: as it is, and once its pod is being ended.
    let cases = [
        ((true, true, false), (Usable::Ready, Usable::Fallback)),
        ((true, false, false), (Usable::Ready, Usable::No)),
        ((false, true, false), (Usable::No, Usable::No)),
        // Of a Service that publishes what is not ready: the slice knows, and says so.
        ((true, true, true), (Usable::Ready, Usable::Ready)),
        ((false, true, true), (Usable::Fallback, Usable::Fallback)),
    ];
    for ((ready, serving, terminating), expected) in cases {
        let endpoint = serde_json::from_value(serde_json::json!({
            "addresses": ["10.244.0.1"],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        }));
        assert_eq!(usable(&endpoint.expect("an endpoint")), expected, "{ready} {serving} {terminating}");
    }
}

#[test]
fn annotations_say_how_endpoints_are_chosen() {
    let mut object = api_service(serde_json::json!({"clusterIP": "10.96.0.7"}), serde_json::json!({}));
    let annotations = [("orlop.dev/scheduler", "lc"), ("orlop.dev/weights", "a")];
    object.metadata.annotations =
        Some(annotations.map(|(name, text)| (name.to_owned(), text.to_owned())).into());
    let (read, problems) = service(&object);
    assert_eq!(read.scheduling.scheduler, dataplane::Scheduler::LeastConnection);
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn an_annotation_says_how_flows_go_on_to_another_node() {
    for (mode, is_direct, wrong) in
        [("dsr", true, 0), (" dsr ", true, 0), ("snat", false, 0), ("", false, 0), ("tunnel", false, 1)]
    {
        let mut object = api_service(serde_json::json!({"clusterIP": "10.96.0.7"}), serde_json::json!({}));
        object.metadata.annotations =
            Some([("orlop.dev/forwarding-mode".to_owned(), mode.to_owned())].into());
        let (read, problems) = service(&object);
        assert_eq!((read.direct_return, problems.len()), (is_direct, wrong), "{mode}: {problems:?}");
    }
}
