//! Validation tables and small pure decisions.

use shim_protocol::{Exit, Record};

use super::containers::{make_directories, make_mount_points, signal_number, validate};
use super::sandboxes::{resolv_conf, sysctls, validate as validate_sandbox, write_pod_files};
use super::state::{Phase, SandboxMeta, learn};
use crate::sandbox::{DnsConfig, LinuxSandboxConfig, NamespaceMode, NamespaceOptions, SandboxConfig};
use crate::{ContainerConfig, Mount, MountPropagation};

#[test]
fn signals_by_name_and_number() {
    for (text, number) in [
        ("SIGTERM", Some(15)),
        ("quit", Some(3)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(37)),
        ("0", None),
        ("SIGNOPE", None),
    ] {
        assert_eq!(signal_number(text), number, "{text}");
    }
}

#[test]
fn resolv_conf_has_the_order_that_people_expect() {
    let dns = DnsConfig {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["a.svc".into(), "svc".into()],
        options: vec!["ndots:5".into()],
    };
    assert_eq!(resolv_conf(&dns), "search a.svc svc\nnameserver 10.0.0.10\noptions ndots:5\n");
    assert_eq!(resolv_conf(&DnsConfig::default()), "");
}

#[test]
fn what_a_shim_says_late_takes_nothing_back() {
    let starting = || Record::default();
    let running = || Record { pid: 7, started_at: 1, exit: None };
    let ended = || Record { exit: Some(Exit { code: 3, ..Exit::default() }), ..running() };
    let refused = || Record { exit: Some(Exit { code: 128, ..Exit::default() }), ..starting() };
    for (known, said, expected) in [
        (None, starting(), starting()),
        (None, running(), running()),
        (Some(starting()), running(), running()),
        (Some(starting()), refused(), refused()),
        (Some(running()), starting(), running()),
        (Some(running()), ended(), ended()),
        (Some(ended()), running(), ended()),
        (Some(ended()), starting(), ended()),
        (Some(ended()), refused(), ended()),
    ] {
        let mut record = known.clone();
        learn(&mut record, said.clone());
        assert_eq!(record, Some(expected), "{known:?} and {said:?}");
    }
}

fn pod() -> SandboxConfig {
    SandboxConfig { name: "n".into(), namespace: "ns".into(), uid: "u".into(), ..SandboxConfig::default() }
}

#[test]
fn sysctls_must_belong_to_the_pod() {
    let with = |name: &str, network: NamespaceMode| {
        let namespaces = NamespaceOptions { network, ..NamespaceOptions::default() };
        let sysctls = [(name.to_owned(), "1".to_owned())].into();
        let linux = LinuxSandboxConfig { namespaces, sysctls, ..LinuxSandboxConfig::default() };
        validate_sandbox(&SandboxConfig { linux, ..pod() }).is_ok()
    };
    assert!(with("net.ipv4.ip_forward", NamespaceMode::Pod));
    assert!(!with("net.ipv4.ip_forward", NamespaceMode::Node));
    assert!(with("kernel.shmmax", NamespaceMode::Node));
    assert!(with("fs.mqueue.msg_max", NamespaceMode::Pod));
    for name in ["kernel.panic", "vm.swappiness", "net.../../kernel.panic", "net.a/b", ""] {
        assert!(!with(name, NamespaceMode::Pod), "{name}");
    }
}

#[test]
fn a_network_of_its_own_has_no_privileged_ports() {
    const PORTS: &str = "net.ipv4.ip_unprivileged_port_start";
    let with = |own_network: bool, own: &[(&str, &str)]| {
        let own = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let linux = LinuxSandboxConfig { sysctls: own, ..LinuxSandboxConfig::default() };
        let config = SandboxConfig { linux, ..pod() };
        let (id, phase) = (String::new(), Phase::Creating);
        sysctls(&SandboxMeta { id, config, created_at: 0, phase, ips: Vec::new(), own_network })
    };
    let defaults = with(true, &[]);
    assert_eq!(defaults[PORTS], "0");
    assert_eq!(defaults["net.ipv4.ping_group_range"], "0 2147483647");
    assert_eq!(with(true, &[(PORTS, "1024")])[PORTS], "1024");
    assert!(with(false, &[]).is_empty());
}

#[test]
fn container_fields_are_checked_before_anything_is_made() {
    let named = || ContainerConfig { name: "c".into(), ..ContainerConfig::default() };
    assert!(validate(&named()).is_ok());
    assert!(validate(&ContainerConfig::default()).is_err());
    assert!(validate(&ContainerConfig { log_path: "../x".into(), ..named() }).is_err());
    assert!(validate(&ContainerConfig { log_path: "/x".into(), ..named() }).is_err());
    assert!(validate(&ContainerConfig { stop_signal: "SIGX".into(), ..named() }).is_err());
    let mount = Mount {
        container_path: "/a".into(),
        host_path: "/b".into(),
        recursive_read_only: true,
        readonly: true,
        propagation: MountPropagation::HostToContainer,
    };
    assert!(validate(&ContainerConfig { mounts: vec![mount], ..named() }).is_err());
}

#[test]
fn what_containers_see_has_its_mode_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let (layer, container) = (directory.path().join("layer"), directory.path().join("container"));
    let old = rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    // A narrow one of an earlier start is widened.
    std::fs::create_dir_all(layer.join("etc")).unwrap();
    make_mount_points(&layer).unwrap();
    make_directories(&container).unwrap();
    write_pod_files(&pod(), &container).unwrap();
    rustix::process::umask(old);
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for path in ["", "dev", "etc", "proc", "sys"] {
        assert_eq!(mode(layer.join(path)), 0o755, "{path}");
    }
    for (path, source) in crate::spec::POD_FILES {
        assert_eq!(mode(layer.join(path.trim_start_matches('/'))), 0o644, "{path}");
        assert_eq!(mode(container.join(source)), 0o644, "{source}");
    }
    assert_eq!(["", "upper", "work"].map(|path| mode(container.join(path))), [0o711, 0o755, 0o711]);
}
