use serde_json::json;

use super::*;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1"},
        "spec": spec,
    }))
    .unwrap()
}

fn service() -> NameService {
    NameService {
        servers: vec!["10.96.0.10".parse().unwrap()],
        domain: "cluster.local".into(),
        node: parse_resolv_conf("# c\nnameserver 1.1.1.1\nsearch lan corp.\noptions rotate\n"),
    }
}

#[test]
fn name_service_by_policy() {
    let of = |spec| dns(&pod(spec), &service()).0;
    let cluster = of(json!({"containers": []}));
    assert_eq!(cluster.servers, ["10.96.0.10"]);
    assert_eq!(
        cluster.searches,
        ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "corp"]
    );
    assert_eq!(cluster.options, ["ndots:5"]);
    assert_eq!(of(json!({"containers": [], "dnsPolicy": "Default"})), service().node);
    assert_eq!(of(json!({"containers": [], "hostNetwork": true})), service().node);
    assert_eq!(
        of(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})),
        cluster
    );
    let none = of(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"],
        "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "debug"}]}}));
    assert_eq!(none.servers, ["9.9.9.9"]);
    assert_eq!(none.options, ["ndots:2", "debug"]);
    let without = dns(&pod(json!({"containers": []})), &NameService { servers: Vec::new(), ..service() });
    assert_eq!(without, (service().node, true));
}

#[test]
fn hosts() {
    let text = hosts_file(
        &pod(
            json!({"containers": [], "subdomain": "db", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        ),
        &["10.1.0.2".into()],
        "cluster.local",
        "",
    );
    assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
    assert!(text.contains("\n10.1.0.2\tweb-0.db.shop.svc.cluster.local\tweb-0\n"));
    assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    let host = hosts_file(&pod(json!({"containers": [], "hostNetwork": true})), &[], "d", "127.0.0.1 x\n");
    assert_eq!(host, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 x\n");
}

#[test]
fn sandbox_of_a_pod() {
    let service = service();
    let inputs =
        Inputs { attempt: 2, log_root: Path::new("/var/log/pods"), cgroup_parent: "/orlop", names: &service };
    let config = config(
        &pod(json!({"shareProcessNamespace": true, "containers": [
            {"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]})),
        inputs,
    );
    assert_eq!(config.log_directory, "/var/log/pods/shop_web-0_u1");
    assert_eq!(config.linux.cgroup_parent, "/orlop/kubepods/besteffort/podu1");
    assert_eq!(config.linux.namespaces.pid, NamespaceMode::Pod);
    assert_eq!(config.port_mappings.len(), 1);
    assert_eq!(config.hostname, "web-0");
    assert_eq!(labels::get(&config.labels, labels::POD_UID), "u1");
}

#[test]
fn long_names_are_cut() {
    let mut long = pod(json!({"containers": []}));
    long.metadata.name = Some(format!("{}-b", "a".repeat(62)));
    assert_eq!(hostname(&long, "d").0, "a".repeat(62));
}
