use std::path::{Path, PathBuf};

use super::{
    Machine, NetworkBackend, Raw, Reserved, ServiceProxy, Settings, UplinkAcceleration, machine, quantity,
    registries,
};

fn machine() -> Machine {
    Machine {
        hostname: Some("Node-A".into()),
        address: Some([10, 0, 0, 5].into()),
        program_dir: Some("/opt/orlop".into()),
        unified_hierarchy: Some("/sys/fs/cgroup/unified".into()),
        cgroup_v1: true,
    }
}

fn raw() -> Raw {
    Raw {
        kubeconfig: Some("/etc/orlop/kubeconfig".into()),
        tls_cert_file: Some("/etc/orlop/kubelet.crt".into()),
        tls_private_key_file: Some("/etc/orlop/kubelet.key".into()),
        client_ca_file: Some("/etc/orlop/ca.crt".into()),
        ..Raw::default()
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let settings = Settings::validate(raw(), &machine()).expect("valid");
    assert_eq!(settings.node_name, "node-a");
    assert_eq!(settings.node_ips.to_string(), "10.0.0.5");
    assert_eq!(settings.root_dir, PathBuf::from("/var/lib/orlop"));
    assert_eq!(settings.state_dir, PathBuf::from("/run/orlop"));
    assert_eq!(settings.log_dir, PathBuf::from("/var/log/pods"));
    assert_eq!(settings.shim, PathBuf::from("/opt/orlop/orlop-shim"));
    assert_eq!(settings.cgroup_parent, "/orlop");
    assert_eq!(settings.port, 10250);
    assert_eq!(settings.max_pods, 110);
    assert_eq!(settings.node_lease_duration_seconds, 40);
    assert_eq!(settings.cluster_domain, "cluster.local");
    assert_eq!(settings.service_proxy, ServiceProxy::Ebpf);
    assert_eq!(settings.network_backend, NetworkBackend::HostGw);
    assert_eq!(settings.uplink_acceleration, UplinkAcceleration::Disabled);
    assert_eq!(settings.dataplane_cgroup, PathBuf::from("/sys/fs/cgroup/unified"));
}

#[test]
fn a_node_may_have_an_address_of_each_family() {
    for text in ["10.0.0.5,fd00::5", "fd00::5, 10.0.0.5"] {
        let raw = Raw { node_ip: Some(text.into()), ..raw() };
        let settings = Settings::validate(raw, &machine()).expect("settings");
        assert_eq!(settings.node_ips.to_string(), "10.0.0.5,fd00::5");
    }
}

#[test]
fn a_node_has_no_address_that_others_cannot_use() {
    for text in
        ["10.0.0.5,fe80::5", "10.0.0.5,::ffff:10.0.0.6", "10.0.0.5,", "fd00::5", "10.0.0.5,fd00::5,fd00::6"]
    {
        let raw = Raw { node_ip: Some(text.into()), ..raw() };
        let error = Settings::validate(raw, &machine()).expect_err(text).to_string();
        assert!(error.starts_with(&format!("setting nodeIp: {text:?} is not an IPv4 address")), "{error}");
    }
}

#[test]
fn errors_name_key_value_and_expectation() {
    type Change = fn(&mut Raw);
    let cases: [(Change, &str); 18] = [
        (
            |raw| raw.node_lease_duration_seconds = Some("0".into()),
            "setting nodeLeaseDurationSeconds: \"0\" is not a number of seconds from 1 on",
        ),
        (|raw| raw.kubeconfig = None, "setting kubeconfig is missing: give --kubeconfig"),
        (|raw| raw.root_dir = Some("lib".into()), "setting rootDir: \"lib\" is not an absolute path"),
        (|raw| raw.port = Some("0".into()), "setting port: \"0\" is not a port from 1 to 65535"),
        (|raw| raw.port = Some("70000".into()), "setting port: \"70000\" is not a port from 1 to 65535"),
        (
            |raw| raw.node_name = Some("Node_A".into()),
            "setting nodeName: \"Node_A\" is not a DNS subdomain: lower-case letters, digits, '-' and '.'",
        ),
        (
            |raw| raw.node_ip = Some("127.0.0.1".into()),
            "setting nodeIp: \"127.0.0.1\" is not an IPv4 address of this machine other than loopback, or one and an IPv6 address \
             with a comma between them",
        ),
        (
            |raw| raw.node_ip = Some("10.0.0.5,10.0.0.6".into()),
            "setting nodeIp: \"10.0.0.5,10.0.0.6\" is not an IPv4 address of this machine other than loopback, or one and \
             an IPv6 address with a comma between them",
        ),
        (
            |raw| raw.cluster_cidr = Some("10.244.0.1/16".into()),
            "setting clusterCidr: \"10.244.0.1/16\" is not a network such as 10.244.0.0/16, or one of IPv4 and one \
             of IPv6 with a comma between them",
        ),
        (
            |raw| raw.cluster_cidr = Some("10.244.0.0/16,10.245.0.0/16".into()),
            "setting clusterCidr: \"10.244.0.0/16,10.245.0.0/16\" is not a network such as 10.244.0.0/16, or one of \
             IPv4 and one of IPv6 with a comma between them",
        ),
        (
            |raw| raw.network_backend = Some("udp".into()),
            "setting networkBackend: \"udp\" is not one of host-gw, vxlan, wireguard and none",
        ),
        (
            |raw| raw.cgroup_parent = Some("/a/../b".into()),
            "setting cgroupParent: \"/a/../b\" is not a path from the root of the control groups, such as /orlop",
        ),
        (
            |raw| raw.service_proxy = Some("ipvs".into()),
            "setting serviceProxy: \"ipvs\" is not one of ebpf and none",
        ),
        (
            |raw| raw.network_policy = Some("calico".into()),
            "setting networkPolicy: \"calico\" is not one of ebpf and none",
        ),
        (|raw| raw.cluster_dns = vec!["dns".into()], "setting clusterDns: \"dns\" is not an IP address"),
        (
            |raw| raw.system_reserved = vec!["memory=-1".into()],
            "setting systemReserved: \"memory=-1\" is not cpu=, memory= or ephemeral-storage= with a quantity, \
             such as memory=100Mi",
        ),
        (
            |raw| raw.uplinks = vec!["a-name-of-sixteen".into()],
            "setting uplinks: \"a-name-of-sixteen\" is not the name of a link, at most 15 bytes",
        ),
        (
            |raw| raw.uplink_acceleration = Some("generic".into()),
            "setting uplinkAcceleration: \"generic\" is not one of disabled, best-effort and native",
        ),
    ];
    for (change, message) in cases {
        let mut changed = raw();
        change(&mut changed);
        let error = Settings::validate(changed, &machine()).expect_err(message);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_container_out_of_memory_ends_as_a_whole_where_the_kernel_can_do_that() {
    let with = |value: Option<&str>, cgroup_v1| {
        let raw = Raw { single_process_oom_kill: value.map(Into::into), ..raw() };
        let settings = Settings::validate(raw, &Machine { cgroup_v1, ..machine() });
        settings.map(|settings| settings.single_process_oom_kill).map_err(|error| error.to_string())
    };
    assert_eq!((with(None, false), with(None, true)), (Ok(false), Ok(true)));
    assert_eq!((with(Some("true"), false), with(Some("true"), true)), (Ok(true), Ok(true)));
    assert_eq!(with(Some("false"), false), Ok(false));
    // The kubelet's words.
    let refused = "invalid configuration: singleProcessOOMKill must not be explicitly set to false when using cgroup v1";
    assert_eq!(with(Some("false"), true), Err(refused.to_owned()));
    let wrong = "setting singleProcessOOMKill: \"yes\" is not true or false";
    assert_eq!(with(Some("yes"), false), Err(wrong.to_owned()));
    let file = Raw::parse("singleProcessOOMKill: true\n").expect("parses");
    assert_eq!(file.single_process_oom_kill.as_deref(), Some("true"));
}

#[test]
fn what_the_machine_does_not_know_is_asked_for() {
    let error = Settings::validate(raw(), &Machine::default()).expect_err("no name");
    assert_eq!(error.to_string(), "setting nodeName is missing: give --node-name");
}

#[test]
fn flags_win_over_the_file_and_numbers_need_no_quotes() {
    let file = Raw::parse(
        "nodeName: from-file\nport: 10300\nmaxPods: \"20\"\nsystemReserved: {cpu: 100m, memory: 1Gi}\n",
    )
    .expect("parses");
    let flags = Raw { node_name: Some("from-flag".into()), ..raw() };
    let settings = Settings::validate(flags.or(file), &machine()).expect("valid");
    assert_eq!((settings.node_name.as_str(), settings.port, settings.max_pods), ("from-flag", 10300, 20));
    let reserved = Reserved { cpu_millis: 100, memory_bytes: 1 << 30, ephemeral_storage_bytes: 0 };
    assert_eq!(settings.system_reserved, reserved);
}

#[test]
fn the_file_refuses_unknown_keys() {
    let error = Raw::parse("nodeNam: a\n").expect_err("unknown key");
    assert!(error.contains("nodeNam"), "{error}");
}

#[test]
fn what_is_printed_can_be_read_again() {
    let raw = Raw { system_reserved: vec!["cpu=250m".into()], node_labels: vec!["a/b=c".into()], ..raw() };
    let settings = Settings::validate(raw, &machine()).expect("valid");
    let printed = settings.to_yaml().expect("yaml");
    let again =
        Settings::validate(Raw::parse(&printed).expect("parses"), &Machine::default()).expect("valid");
    assert_eq!(again, settings);
}

#[test]
fn quantities() {
    let cases = [
        ("100m", Some((100, 1))),
        ("2", Some((2000, 2))),
        ("1.5", Some((1500, 2))),
        ("1Ki", Some((1_024_000, 1024))),
        ("0.5Gi", Some(((1 << 29) * 1000, 1 << 29))),
        ("2e3", Some((2_000_000, 2000))),
        ("1E", Some((10_i128.pow(21), 10_i64.pow(18)))),
        ("1n", Some((1, 1))),
        (".5", Some((500, 1))),
        ("", None),
        (".", None),
        ("1KiB", None),
        ("1 Gi", None),
        ("1.2.3", None),
        ("--1", None),
    ];
    for (text, expected) in cases {
        let parsed = quantity::parse(text).map(|amount| (amount.millis(), amount.units()));
        assert_eq!(parsed, expected, "{text}");
    }
}

#[test]
fn finds_the_unified_hierarchy_among_others() {
    let mountinfo = "31 24 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                     32 24 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
    assert_eq!(machine::unified_hierarchy(mountinfo), Some("/sys/fs/cgroup/unified".into()));
    assert_eq!(machine::unified_hierarchy("garbage\n"), None);
}

#[test]
fn cgroup_v1_counts_where_the_control_groups_are_configured_to_be() {
    let nowhere = tempfile::tempdir().unwrap();
    assert!(!Machine::read(nowhere.path()).cgroup_v1);
    let root = Path::new(machine::CGROUP_ROOT);
    let here = linux::cgroup::Layout::detect(root).is_ok_and(|layout| layout.is_v1());
    assert_eq!(Machine::read(root).cgroup_v1, here);
}

#[test]
fn registries_file() {
    let text = "registries:\n- name: docker.io\n  mirrors: ['http://127.0.0.1:5000/']\n  username: u\n  password: p\n";
    let parsed = registries::parse(text, Path::new("r.yaml")).expect("parses");
    let host = &parsed.hosts[0];
    assert_eq!((host.name.as_str(), host.mirrors.len()), ("docker.io", 1));
    assert_eq!(host.mirrors[0].host, "127.0.0.1:5000");
    assert!(host.mirrors[0].plain_http);
    assert_eq!(host.auth.as_ref().expect("credentials").username, "u");
    let wrong = registries::parse("registries: [{name: a, mirrors: ['ftp://b']}]", Path::new("r.yaml"));
    let message = wrong.expect_err("scheme").to_string();
    assert!(message.starts_with("setting registries.mirrors: \"ftp://b\" is not"), "{message}");
}
