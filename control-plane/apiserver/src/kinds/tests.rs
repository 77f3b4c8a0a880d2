//! Rows against the schemas, and tables of defaults and validation.

use serde_json::{Value, json};

use super::*;

fn kind(name: &str) -> &'static Kind {
    rows::KINDS.iter().find(|kind| kind.kind == name).unwrap()
}

fn defaulted(name: &str, mut object: Value) -> Value {
    (kind(name).default)(&mut object);
    object
}

fn problems(name: &str, object: Value) -> Vec<String> {
    let object = defaulted(name, object);
    (kind(name).validate)(&object)
        .into_iter()
        .map(|error| format!("{}: {}", error.field, error.body))
        .collect()
}

#[test]
fn every_row_has_a_type_and_as_many_cells_as_columns() {
    Registry::build().unwrap();
    for kind in rows::KINDS {
        let cells = (kind.cells)(&json!({}), jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), kind.columns.len(), "{}", kind.kind);
    }
}

#[test]
fn every_row_can_come_as_protobuf() {
    let registry = Registry::build().unwrap();
    // An envelope around an object with metadata (field 1) that has a name (field 1).
    let bytes = [b"k8s\0".as_slice(), &[0x12, 5, 0x0a, 3, 0x0a, 1, b'x']].concat();
    for kind in rows::KINDS {
        let root = registry.type_of(kind.type_name).unwrap();
        let object = crate::schema::protobuf::decode(&registry.schemas, &registry.numbers, root, &bytes);
        assert_eq!(object.unwrap()["metadata"]["name"], "x", "{} has no numbers", kind.kind);
    }
}

#[test]
fn pods_get_upstreams_defaults() {
    let pod = defaulted(
        "Pod",
        json!({"spec": {"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 1}],
        "livenessProbe": {"httpGet": {"port": 1}}, "resources": {"limits": {"cpu": "1"}}}], "volumes": [{"name": "v"}]}}),
    );
    let expected = json!({"spec": {
        "containers": [{"name": "a", "image": "x", "imagePullPolicy": "Always",
            "ports": [{"containerPort": 1, "protocol": "TCP"}],
            "livenessProbe": {"httpGet": {"port": 1, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
        "volumes": [{"name": "v", "emptyDir": {}}], "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30, "securityContext": {},
        "enableServiceLinks": true}});
    assert_eq!(pod, expected);
    assert_eq!(defaulted("Pod", expected.clone()), expected, "a second time changes nothing");
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, policy) in [
        ("a", "Always"),
        ("a:latest", "Always"),
        ("a:1", "IfNotPresent"),
        ("host:5000/a", "Always"),
        ("host:5000/a:1", "IfNotPresent"),
        ("a@sha256:00", "IfNotPresent"),
    ] {
        let pod = defaulted("Pod", json!({"spec": {"containers": [{"image": image}]}}));
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
    }
}

#[test]
fn validation_says_what_upstream_says() {
    assert_eq!(
        problems("Pod", json!({"spec": {"containers": [{"name": "a"}]}})),
        ["spec.containers[0].image: Required value"]
    );
    assert_eq!(problems("Pod", json!({})), ["spec.containers: Required value"]);
    let template =
        json!({"metadata": {"labels": {"app": "b"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
    assert_eq!(
        problems(
            "Deployment",
            json!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template}})
        ),
        [
            "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`"
        ]
    );
    assert_eq!(
        problems("Service", json!({"spec": {"ports": [{"port": 70000}]}})),
        [
            "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.ports[0].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive"
        ]
    );
    let ports = json!([{"port": 80}]);
    assert_eq!(
        problems(
            "Service",
            json!({"spec": {"type": "LoadBalancer", "ports": ports,
                "loadBalancerSourceRanges": [" 10.0.0.0/8", "fd00::/64", "all"]}})
        ),
        [
            "spec.loadBalancerSourceRanges[2]: Invalid value: \"all\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or \
             2001:db8::/64)"
        ]
    );
    assert_eq!(
        problems("Service", json!({"spec": {"ports": ports, "loadBalancerSourceRanges": ["10.0.0.0/8"]}})),
        ["spec.loadBalancerSourceRanges[0]: Forbidden: may only be used when `type` is 'LoadBalancer'"]
    );
    assert_eq!(
        problems(
            "Service",
            json!({"spec": {"ports": ports, "trafficDistribution": "Near", "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}}}})
        ),
        [
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than \
             86400",
            "spec.trafficDistribution: Unsupported value: \"Near\": supported values: \"PreferClose\", \"PreferSameNode\", \
             \"PreferSameZone\""
        ]
    );
    assert_eq!(
        problems(
            "Pod",
            json!({"spec": {"containers": [{"name": "a", "image": "x",
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}})
        ),
        ["spec.containers[0].volumeMounts[0].name: Not found: \"v\""]
    );
    let node = |cidrs: &[&str]| problems("Node", json!({"spec": {"podCIDRs": cidrs}}));
    assert_eq!(node(&["10.1.0.0/24", "fd00::/64"]), [""; 0]);
    assert_eq!(
        node(&["10.1.0.0/24", "10.2.0.0/24"]),
        [
            "spec.podCIDRs: Invalid value: [\"10.1.0.0/24\",\"10.2.0.0/24\"]: may specify no more than one CIDR for each IP \
             family"
        ]
    );
}

#[test]
fn ephemeral_containers_come_with_no_pod_and_no_template() {
    let ephemeral = json!([{"name": "e", "image": "x"}]);
    let spec = json!({"containers": [{"name": "a", "image": "x"}], "ephemeralContainers": ephemeral});
    assert_eq!(
        problems("Pod", json!({"spec": spec})),
        ["spec.ephemeralContainers: Forbidden: cannot be set on create"]
    );
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": spec});
    assert_eq!(
        problems(
            "Deployment",
            json!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template}})
        ),
        [
            "spec.template.spec.ephemeralContainers: Forbidden: ephemeral containers not allowed in pod template"
        ]
    );
}

#[test]
fn mounts_and_files_stay_where_they_belong() {
    let of = |mounts: Value, volume: Value| {
        let mut volume = volume;
        volume["name"] = "v".into();
        let container = json!({"name": "a", "image": "x", "volumeMounts": mounts});
        problems("Pod", json!({"spec": {"containers": [container], "volumes": [volume]}}))
    };
    let mount = |fields: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/m"});
        mount.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        mount
    };
    let mounts = "spec.containers[0].volumeMounts";
    for (given, expected) in [
        (json!([mount(json!({"subPath": "a/b..c"}))]), vec![]),
        (
            json!([mount(json!({})), mount(json!({}))]),
            vec![format!("{mounts}[1].mountPath: Invalid value: \"/m\": must be unique")],
        ),
        (
            json!([mount(json!({"subPath": "/a/../b"}))]),
            vec![
                format!("{mounts}.subPath: Invalid value: \"/a/../b\": must be a relative path"),
                format!("{mounts}.subPath: Invalid value: \"/a/../b\": must not contain '..'"),
            ],
        ),
        (
            json!([mount(json!({"subPath": "a", "subPathExpr": "../$(B)"}))]),
            vec![
                format!(
                    "{mounts}[0].subPathExpr: Invalid value: \"../$(B)\": subPathExpr and subPath are mutually exclusive"
                ),
                format!("{mounts}.subPathExpr: Invalid value: \"../$(B)\": must not contain '..'"),
            ],
        ),
    ] {
        assert_eq!(of(given.clone(), json!({"emptyDir": {}})), expected, "{given}");
    }
    let file = |path: &str, mode: i64| json!({"key": "k", "path": path, "mode": mode});
    for (given, expected) in [
        (json!({"secret": {"secretName": "s", "items": [file("a/b", 0o777)]}}), vec![]),
        (
            json!({"secret": {"secretName": "s", "items": [file("../a", 0o400), {"path": "..a"}], "defaultMode": 512}}),
            vec![
                "secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
                "secret.items[0].path: Invalid value: \"../a\": must not contain '..'",
                "secret.items[1].key: Required value",
                "secret.items[1].path: Invalid value: \"..a\": must not start with '..'",
            ],
        ),
        (
            json!({"projected": {"sources": [{"configMap": {"name": "m", "items": [file("/a", -1)]}},
                {"downwardAPI": {"items": [{"path": ""}]}}, {"serviceAccountToken": {"path": "a/.."}}]}}),
            vec![
                "projected.sources[0].configMap.items[0].path: Invalid value: \"/a\": must be a relative path",
                "projected.sources[0].configMap.items[0].mode: Invalid value: -1: must be a number between 0 and 0777 \
                 (octal), both inclusive",
                "projected.sources[1].downwardAPI.items[0].path: Required value",
                "projected.sources[2].serviceAccountToken.path: Invalid value: \"a/..\": must not contain '..'",
            ],
        ),
    ] {
        let expected: Vec<String> =
            expected.into_iter().map(|problem| format!("spec.volumes[0].{problem}")).collect();
        assert_eq!(of(json!([]), given.clone()), expected, "{given}");
    }
}

#[test]
fn a_pods_spec_may_change_its_images_only() {
    let old = defaulted("Pod", json!({"spec": {"containers": [{"name": "a", "image": "x:1"}]}}));
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "x:2".into();
    assert!((kind("Pod").validate_update)(&new, &old).is_empty());
    new["spec"]["nodeName"] = "n".into();
    assert_eq!((kind("Pod").validate_update)(&new, &old)[0].reason, crate::error::FieldReason::Forbidden);
}

#[test]
fn a_health_check_port_is_for_local_load_balancers_and_stays() {
    let kind = kind("Service");
    let service = |policy: &str, port: u16| {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": port,
            "ports": [{"port": 80}]});
        defaulted("Service", json!({"spec": spec}))
    };
    let updated = |mut new: Value, old: &Value| {
        (kind.prepare_update)(&mut new, old);
        let errors = (kind.validate)(&new).into_iter().chain((kind.validate_update)(&new, old));
        (new["spec"]["healthCheckNodePort"].clone(), errors.map(|error| error.body).collect::<Vec<_>>())
    };
    let (old, none) = (service("Local", 30001), Vec::<String>::new());
    assert_eq!(updated(service("Local", 0), &old), (json!(30001), none.clone()));
    assert_eq!(updated(service("Cluster", 30001), &old), (Value::Null, none));
    let (_, errors) = updated(service("Local", 30002), &old);
    assert_eq!(errors, ["Invalid value: 30002: field is immutable"]);
    let (_, errors) = updated(service("Cluster", 30002), &old);
    assert_eq!(
        errors,
        [
            "Invalid value: 30002: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        ]
    );
}

#[test]
fn the_addresses_of_a_service_fit_each_other() {
    let cases = [
        (
            json!({"ipFamilies": ["IPv4", "IPv5", "IPv4"], "ipFamilyPolicy": "Dual"}),
            vec![
                "spec.ipFamilies[1]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"",
                "spec.ipFamilies[2]: Duplicate value: \"IPv4\"",
                "spec.ipFamilyPolicy: Unsupported value: \"Dual\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
            ],
        ),
        (
            json!({"clusterIPs": ["10.0.0.7"]}),
            vec![
                "spec.clusterIPs: Invalid value: [\"10.0.0.7\"]: must be empty when `clusterIP` is not specified",
            ],
        ),
        (
            json!({"clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.8"]}),
            vec!["spec.clusterIPs: Invalid value: [\"10.0.0.8\"]: first value must match `clusterIP`"],
        ),
        (
            json!({"clusterIP": "None", "clusterIPs": ["None", "fd00::7"]}),
            vec![
                "spec.clusterIPs: Invalid value: [\"None\",\"fd00::7\"]: 'None' must be the first and only value",
            ],
        ),
        (
            json!({"clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7", "10.0.0.8"]}),
            vec![
                "spec.clusterIPs: Invalid value: [\"10.0.0.7\",\"10.0.0.8\"]: may specify no more than one IP for each IP family",
            ],
        ),
        (
            json!({"clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7", "fd00::7"], "ipFamilies": ["IPv4", "IPv4"]}),
            vec![
                "spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
                "spec.clusterIPs[1]: Invalid value: \"fd00::7\": expected an IPv4 value as indicated by `ipFamilies[1]`",
            ],
        ),
        (
            json!({"clusterIP": "x", "clusterIPs": ["x", "fd00::7", "10.0.0.7"]}),
            vec![
                "spec.clusterIPs: Invalid value: [\"x\",\"fd00::7\",\"10.0.0.7\"]: may only hold up to 2 values",
                "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.0.0.7", "ipFamilies": ["IPv4"]}),
            vec![
                "spec.clusterIPs[0]: Forbidden: may not be set for ExternalName services",
                "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
            ],
        ),
        (
            json!({"clusterIP": "fd00::7", "clusterIPs": ["fd00::7", "10.0.0.7"], "ipFamilies": ["IPv6"]}),
            vec![],
        ),
    ];
    for (mut spec, wanted) in cases {
        spec["ports"] = json!([{"port": 80}]);
        assert_eq!(problems("Service", json!({"spec": spec})), wanted, "{spec}");
    }
}

#[test]
fn the_addresses_of_a_service_stay() {
    let kind = kind("Service");
    let both = json!({"clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7", "fd00::7"], "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]});
    let old = defaulted("Service", json!({"spec": both}));
    let headless = {
        let mut headless = old.clone();
        headless["spec"]["clusterIP"] = "None".into();
        headless["spec"]["clusterIPs"] = json!(["None"]);
        headless
    };
    let changed = "may not change once set";
    let forbidden = "Forbidden: may not be set for ExternalName services";
    let name = |change: Value| {
        let mut spec = json!({"type": "ExternalName", "externalName": "a.b"});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        spec
    };
    let cases = [
        (&old, name(json!({})), vec![]),
        (&old, name(json!({"clusterIPs": null, "ipFamilies": null})), vec![]),
        (&old, name(json!({"clusterIP": null, "clusterIPs": null})), vec![]),
        (&old, name(json!({"clusterIP": "10.0.0.8"})), vec![format!("spec.clusterIPs[0]: {forbidden}")]),
        (&old, name(json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"})), vec![
            format!("spec.ipFamilies: {forbidden}"),
            format!("spec.ipFamilyPolicy: {forbidden}"),
        ]),
        (&old, json!({}), vec![]),
        (&old, json!({"clusterIP": null, "clusterIPs": null, "ipFamilies": null}), vec![]),
        (&old, json!({"clusterIP": "10.0.0.8"}), vec![
            format!("spec.clusterIPs[0]: Invalid value: [\"10.0.0.8\"]: {changed}"),
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP".into(),
        ]),
        (&old, json!({"clusterIPs": ["10.0.0.7", "fd00::8"]}), vec![
            format!("spec.clusterIPs[1]: Invalid value: [\"10.0.0.7\",\"fd00::8\"]: {changed}"),
        ]),
        (&old, json!({"ipFamilies": ["IPv6", "IPv4"], "clusterIP": "fd00::7", "clusterIPs": ["fd00::7", "10.0.0.7"]}), vec![
            format!("spec.clusterIPs[0]: Invalid value: [\"fd00::7\",\"10.0.0.7\"]: {changed}"),
            format!("spec.clusterIPs[1]: Invalid value: [\"fd00::7\",\"10.0.0.7\"]: {changed}"),
            format!("spec.ipFamilies[0]: Invalid value: [\"IPv6\",\"IPv4\"]: {changed}"),
            format!("spec.ipFamilies[1]: Invalid value: [\"IPv6\",\"IPv4\"]: {changed}"),
        ]),
        (&old, json!({"ipFamilyPolicy": "SingleStack", "clusterIPs": ["10.0.0.7"], "ipFamilies": ["IPv4"]}), vec![]),
        (&old, json!({"clusterIP": "None", "clusterIPs": ["None"]}), vec![
            format!("spec.clusterIPs[0]: Invalid value: [\"None\"]: {changed}"),
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP".into(),
        ]),
        (&headless, json!({"ipFamilies": ["IPv6", "IPv4"]}), vec![]),
    ];
    for (old, change, wanted) in cases {
        let mut new = old.clone();
        for (key, value) in change.as_object().unwrap() {
            new["spec"][key] = value.clone();
        }
        (kind.prepare_update)(&mut new, old);
        let errors = (kind.validate)(&new).into_iter().chain((kind.validate_update)(&new, old));
        let errors: Vec<String> = errors.map(|error| format!("{}: {}", error.field, error.body)).collect();
        assert_eq!(errors, wanted, "{change}");
    }
}

#[test]
fn events_have_two_forms_of_one_object() {
    let conversion = rows::KINDS.iter().find_map(|kind| kind.conversion).unwrap();
    let stored = json!({"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"name": "p"}, "count": 2});
    let mut served = stored.clone();
    (conversion.from_storage)(&mut served);
    assert_eq!((served["note"].as_str(), served["regarding"]["name"].as_str()), (Some("m"), Some("p")));
    (conversion.to_storage)(&mut served);
    assert_eq!(served, stored);
}

#[test]
fn pod_rows_show_upstreams_status_words() {
    let now = "2024-01-01T00:10:00Z".parse().unwrap();
    for (status, expected) in [
        (json!({"phase": "Pending"}), ["0/1", "Pending", "0"]),
        (
            json!({"phase": "Running", "containerStatuses": [{"ready": true, "restartCount": 2,
                "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2024-01-01T00:09:00Z"}}}]}),
            ["1/1", "Running", "2 (60s ago)"],
        ),
        (
            json!({"phase": "Running", "containerStatuses": [{"restartCount": 1,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ["0/1", "CrashLoopBackOff", "1"],
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            ["0/1", "ExitCode:3", "0"],
        ),
    ] {
        let cells = (kind("Pod").cells)(&json!({"spec": {"containers": [{}]}, "status": status}), now);
        assert_eq!(&cells[1..4], expected, "{status}");
    }
}

#[test]
fn a_network_policy_gets_upstreams_defaults() {
    for (spec, expected) in [
        (Value::Null, json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
        (json!({"policyTypes": []}), json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
        (
            json!({"egress": [{}], "policyTypes": ["Egress"]}),
            json!({"podSelector": {}, "egress": [{}], "policyTypes": ["Egress"]}),
        ),
        (
            json!({"ingress": [{"ports": [{"port": 1}, {"protocol": "UDP"}]}], "egress": [{"ports": [{}]}]}),
            json!({"podSelector": {}, "ingress": [{"ports": [{"port": 1, "protocol": "TCP"}, {"protocol": "UDP"}]}],
                "egress": [{"ports": [{"protocol": "TCP"}]}], "policyTypes": ["Ingress", "Egress"]}),
        ),
    ] {
        let policy = defaulted("NetworkPolicy", json!({"spec": spec}));
        assert_eq!(policy["spec"], expected, "{spec}");
        assert_eq!(defaulted("NetworkPolicy", policy.clone()), policy, "a second time changes nothing");
    }
}

#[test]
fn the_ports_of_a_network_policy() {
    let path = "spec.ingress[0].ports[0]";
    let range = "must be between 1 and 65535, inclusive";
    for (port, expected) in [
        (json!({}), vec![]),
        (json!({"protocol": "SCTP", "port": 1}), vec![]),
        (json!({"port": 80, "endPort": 80}), vec![]),
        (json!({"port": 32000, "endPort": 65535}), vec![]),
        (json!({"port": "http"}), vec![]),
        (
            json!({"protocol": "ICMP"}),
            vec!["protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"".to_owned()],
        ),
        (json!({"port": 0}), vec![format!("port: Invalid value: 0: {range}")]),
        (json!({"port": 70000}), vec![format!("port: Invalid value: 70000: {range}")]),
        (
            json!({"port": "!"}),
            vec![
                "port: Invalid value: \"!\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into(),
                "port: Invalid value: \"!\": must contain at least one letter (a-z)".into(),
            ],
        ),
        (
            json!({"port": 80, "endPort": 79}),
            vec!["endPort: Invalid value: 79: must be greater than or equal to `port`".into()],
        ),
        (json!({"port": 80, "endPort": 65536}), vec![format!("endPort: Invalid value: 65536: {range}")]),
        (
            json!({"port": 80, "endPort": 0}),
            vec![
                "endPort: Invalid value: 0: must be greater than or equal to `port`".into(),
                format!("endPort: Invalid value: 0: {range}"),
            ],
        ),
        (
            json!({"port": "http", "endPort": 80}),
            vec!["endPort: Invalid value: 80: may not be specified when `port` is non-numeric".into()],
        ),
        (
            json!({"endPort": 80}),
            vec!["endPort: Invalid value: 80: may not be specified when `port` is not specified".into()],
        ),
    ] {
        let given = json!({"spec": {"ingress": [{"ports": [port]}]}});
        let expected: Vec<String> =
            expected.iter().map(|problem| format!("{path}.{problem}")).collect();
        assert_eq!(problems("NetworkPolicy", given), expected, "{port}");
    }
}

#[test]
fn the_peers_of_a_network_policy() {
    let path = "spec.egress[0].to[0]";
    let block = |cidr: &str, except: &[&str]| json!({"ipBlock": {"cidr": cidr, "except": except}});
    let bad_key = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
    let subset = "must be a strict subset of `cidr`";
    let network = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    for (peer, expected) in [
        (json!({"podSelector": {}}), vec![]),
        (json!({"namespaceSelector": {}}), vec![]),
        (json!({"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}}), vec![]),
        (block("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.1/32"]), vec![]),
        (block("2001:db8::/32", &["2001:db8:1::/48"]), vec![]),
        (json!({}), vec![": Required value: must specify a peer".to_owned()]),
        (
            json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}),
            vec![": Forbidden: may not specify both ipBlock and another peer".into()],
        ),
        (
            json!({"namespaceSelector": {}, "ipBlock": {}}),
            vec![
                ".ipBlock.cidr: Required value".into(),
                ": Forbidden: may not specify both ipBlock and another peer".into(),
            ],
        ),
        (
            json!({"podSelector": bad_key, "namespaceSelector": bad_key}),
            ["podSelector", "namespaceSelector"]
                .map(|field| {
                    format!(
                        ".{field}.matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator"
                    )
                })
                .to_vec(),
        ),
        (
            block("all", &["all"]),
            vec![format!(".ipBlock.cidr: Invalid value: \"all\": {network}")],
        ),
        (
            block("10.0.0.0/8", &["all", "10.0.0.0/8", "10.0.0.0/7", "11.0.0.0/16", "2001:db8::/64"]),
            vec![
                format!(".ipBlock.except[0]: Invalid value: \"all\": {network}"),
                format!(".ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": {subset}"),
                format!(".ipBlock.except[2]: Invalid value: \"10.0.0.0/7\": {subset}"),
                format!(".ipBlock.except[3]: Invalid value: \"11.0.0.0/16\": {subset}"),
                format!(".ipBlock.except[4]: Invalid value: \"2001:db8::/64\": {subset}"),
            ],
        ),
        (
            block("10.0.0.1/8", &["010.1.0.0/16", "10.2.3.4/8"]),
            vec![
                ".ipBlock.cidr: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length".into(),
                ".ipBlock.except[0]: Invalid value: \"010.1.0.0/16\": must not have leading 0s in IP or prefix length"
                    .into(),
                ".ipBlock.except[1]: Invalid value: \"10.2.3.4/8\": must not have bits set beyond the prefix length"
                    .into(),
                format!(".ipBlock.except[1]: Invalid value: \"10.2.3.4/8\": {subset}"),
            ],
        ),
    ] {
        let given = json!({"spec": {"egress": [{"to": [peer]}]}});
        let expected: Vec<String> = expected.iter().map(|problem| format!("{path}{problem}")).collect();
        assert_eq!(problems("NetworkPolicy", given), expected, "{peer}");
    }
}

#[test]
fn every_list_of_a_network_policy_is_looked_at() {
    let peers = json!([{"podSelector": {}}, {}]);
    let ports = json!([{}, {"port": 0}]);
    let spec = json!({"podSelector": {"matchLabels": {"-": ""}}, "ingress": [{}, {"from": peers, "ports": ports}],
        "egress": [{}, {"to": peers, "ports": ports}]});
    let fields: Vec<String> =
        (kind("NetworkPolicy").validate)(&defaulted("NetworkPolicy", json!({"spec": spec})))
            .into_iter()
            .map(|error| error.field)
            .collect();
    assert_eq!(
        fields,
        [
            "spec.podSelector.matchLabels",
            "spec.ingress[1].ports[1].port",
            "spec.ingress[1].from[1]",
            "spec.egress[1].ports[1].port",
            "spec.egress[1].to[1]",
        ]
    );
}

#[test]
fn the_types_of_a_network_policy() {
    let supported = "supported values: \"Ingress\", \"Egress\"";
    for (types, expected) in [
        (json!(["Ingress"]), vec![]),
        // Rules of a direction that is not named do nothing.
        (json!(["Ingress", "Ingress"]), vec![]),
        (
            json!(["Egress", "Other"]),
            vec![format!("spec.policyTypes[1]: Unsupported value: \"Other\": {supported}")],
        ),
        (
            json!(["Ingress", "Egress", "Other"]),
            vec![
                "spec.policyTypes: Invalid value: [\"Ingress\",\"Egress\",\"Other\"]: may not specify more than two \
                 policyTypes"
                    .to_owned(),
            ],
        ),
    ] {
        let given = json!({"spec": {"egress": [{}], "policyTypes": types}});
        assert_eq!(problems("NetworkPolicy", given), expected, "{types}");
    }
}

#[test]
fn a_selectors_values_are_label_values() {
    let expressions = json!([{"key": "a", "operator": "In", "values": ["b", "c d"]}]);
    let errors =
        problems("NetworkPolicy", json!({"spec": {"podSelector": {"matchExpressions": expressions}}}));
    assert_eq!(errors.len(), 1, "{errors:?}");
    let expected =
        "spec.podSelector.matchExpressions[0].values[1]: Invalid value: \"c d\": a valid label must be";
    assert!(errors[0].starts_with(expected), "{}", errors[0]);
}

#[test]
fn a_network_policys_row_shows_its_pods() {
    let now = "2024-01-01T00:10:00Z".parse().unwrap();
    for (selector, expected) in [
        (json!({}), "<none>"),
        (json!({"matchLabels": {"app": "web"}}), "app=web"),
        (
            json!({"matchLabels": {"b": "c"}, "matchExpressions": [{"key": "a", "operator": "Exists"}]}),
            "a,b=c",
        ),
    ] {
        let metadata = json!({"name": "p", "creationTimestamp": "2024-01-01T00:00:00Z"});
        let policy = json!({"metadata": metadata, "spec": {"podSelector": selector}});
        assert_eq!((kind("NetworkPolicy").cells)(&policy, now), ["p", expected, "10m"]);
    }
}

#[test]
fn bindings_get_upstreams_groups() {
    let given = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"},
        {"kind": "Group", "name": "g", "apiGroup": "other"}, {"kind": "ServiceAccount", "name": "s"}, {"kind": "Robot"}]});
    let expected = json!({"roleRef": {"apiGroup": RBAC_GROUP, "kind": "Role", "name": "r"}, "subjects": [
        {"kind": "User", "name": "u", "apiGroup": RBAC_GROUP}, {"kind": "Group", "name": "g", "apiGroup": "other"},
        {"kind": "ServiceAccount", "name": "s"}, {"kind": "Robot"}]});
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        assert_eq!(defaulted(kind, given.clone()), expected, "{kind}");
    }
}

#[test]
fn the_rules_of_roles() {
    let (one, two) = ("rules[0].", "resource rules must supply at least one");
    let paths = "rules[0].nonResourceURLs: Invalid value: [\"/a\"]:";
    let namespaced = format!("{paths} namespaced rules cannot apply to non-resource URLs");
    for (rule, of_cluster, of_namespace) in [
        (
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["a", "b"], "resourceNames": ["c"]}),
            vec![],
            vec![],
        ),
        (json!({"verbs": ["get"], "nonResourceURLs": ["/a"]}), vec![], vec![namespaced.clone()]),
        (
            json!({"verbs": ["get"], "nonResourceURLs": ["/a"], "resources": ["b"]}),
            vec![format!("{paths} rules cannot apply to both regular resources and non-resource URLs")],
            vec![
                namespaced,
                format!("{paths} rules cannot apply to both regular resources and non-resource URLs"),
            ],
        ),
        (
            json!({}),
            vec![
                format!("{one}verbs: Required value: verbs must contain at least one value"),
                format!("{one}apiGroups: Required value: {two} api group"),
                format!("{one}resources: Required value: {two} resource"),
            ],
            vec![
                format!("{one}verbs: Required value: verbs must contain at least one value"),
                format!("{one}apiGroups: Required value: {two} api group"),
                format!("{one}resources: Required value: {two} resource"),
            ],
        ),
    ] {
        let role = json!({"rules": [rule]});
        assert_eq!(problems("ClusterRole", role.clone()), of_cluster, "{rule}");
        assert_eq!(problems("Role", role), of_namespace, "{rule}");
    }
    let selectors = "aggregationRule.clusterRoleSelectors";
    for (rule, expected) in [
        (json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}), vec![]),
        (
            json!({}),
            vec![format!(
                "{selectors}: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil"
            )],
        ),
        (
            json!({"clusterRoleSelectors": [{}, {"matchExpressions": [{"key": "a", "operator": "Near"}]}]}),
            vec![format!(
                "{selectors}[1].matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator"
            )],
        ),
    ] {
        assert_eq!(problems("ClusterRole", json!({"aggregationRule": rule})), expected, "{rule}");
    }
}

#[test]
fn the_subjects_and_roles_of_bindings() {
    let group = format!("supported values: {RBAC_GROUP:?}");
    for (subject, of_cluster, of_namespace) in [
        (json!({"kind": "User", "name": "a b/c:%"}), vec![], vec![]),
        (json!({"kind": "ServiceAccount", "name": "s", "namespace": "n"}), vec![], vec![]),
        (json!({"kind": "ServiceAccount", "name": "s"}), vec!["namespace: Required value".to_owned()], vec![]),
        (json!({"kind": "Group"}), vec!["name: Required value".into()], vec!["name: Required value".into()]),
        (
            json!({"kind": "ServiceAccount", "name": "s", "namespace": "n", "apiGroup": "v1"}),
            vec!["apiGroup: Unsupported value: \"v1\": supported values: \"\"".into()],
            vec!["apiGroup: Unsupported value: \"v1\": supported values: \"\"".into()],
        ),
        (
            json!({"kind": "User", "name": "u", "apiGroup": "v1"}),
            vec![format!("apiGroup: Unsupported value: \"v1\": {group}")],
            vec![format!("apiGroup: Unsupported value: \"v1\": {group}")],
        ),
        (
            json!({"kind": "Robot", "name": "r"}),
            vec!["kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"".into()],
            vec!["kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"".into()],
        ),
    ] {
        let given = json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [subject]});
        for (kind, expected) in [("ClusterRoleBinding", of_cluster), ("RoleBinding", of_namespace)] {
            let expected: Vec<String> = expected.iter().map(|problem| format!("subjects[0].{problem}")).collect();
            assert_eq!(problems(kind, given.clone()), expected, "{kind} {subject}");
        }
    }
    for (kind, role, expected) in [
        ("RoleBinding", json!({"kind": "Role", "name": "a:b"}), vec![]),
        (
            "RoleBinding",
            json!({"kind": "Role", "name": "a/b"}),
            vec!["name: Invalid value: \"a/b\": may not contain '/'"],
        ),
        (
            "RoleBinding",
            json!({"kind": "Pod"}),
            vec![
                "kind: Unsupported value: \"Pod\": supported values: \"Role\", \"ClusterRole\"",
                "name: Required value",
            ],
        ),
        (
            "ClusterRoleBinding",
            json!({"kind": "Role", "name": "r"}),
            vec!["kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""],
        ),
        (
            "ClusterRoleBinding",
            json!({"kind": "ClusterRole", "name": "r", "apiGroup": "v1"}),
            vec!["apiGroup: Unsupported value: \"v1\": supported values: \"rbac.authorization.k8s.io\""],
        ),
    ] {
        let expected: Vec<String> = expected.iter().map(|problem| format!("roleRef.{problem}")).collect();
        assert_eq!(problems(kind, json!({"roleRef": role})), expected, "{kind} {role}");
    }
}

#[test]
fn rows_of_roles_and_bindings() {
    let now = "2024-01-01T00:10:00Z".parse().unwrap();
    let metadata = json!({"name": "system:r", "creationTimestamp": "2024-01-01T00:00:00Z"});
    let role = json!({"metadata": metadata});
    assert_eq!((kind("ClusterRole").cells)(&role, now), ["system:r", "2024-01-01T00:00:00Z"]);
    let binding = json!({"metadata": metadata, "roleRef": {"kind": "Role", "name": "x"}, "subjects": [
        {"kind": "Group", "name": "g"}, {"kind": "User", "name": "u"}, {"kind": "User", "name": "v"},
        {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
    assert_eq!((kind("RoleBinding").cells)(&binding, now), ["system:r", "Role/x", "10m", "u, v", "g", "n/s"]);
    let columns: Vec<(&str, i32)> =
        kind("RoleBinding").columns.iter().map(|column| (column.name, column.priority)).collect();
    let expected =
        [("Name", 0), ("Role", 0), ("Age", 0), ("Users", 1), ("Groups", 1), ("ServiceAccounts", 1)];
    assert_eq!(columns, expected);
}
