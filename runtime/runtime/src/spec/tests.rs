//! Tables: commands, environment, capabilities, users, and what privileged changes.

use super::*;
use crate::container::{Mount, SecurityContext};
use crate::sandbox::{LinuxSandboxConfig, NamespaceOptions};

fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": entrypoint, "Cmd": cmd, "Env": ["PATH=/bin", "A=image"], "WorkingDir": "/srv" },
        "rootfs": { "type": "layers", "diff_ids": [] },
    }))
    .unwrap()
}

fn sandbox() -> SandboxConfig {
    let namespaces = NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() };
    SandboxConfig {
        hostname: "pod".into(),
        linux: LinuxSandboxConfig { namespaces, ..LinuxSandboxConfig::default() },
        ..SandboxConfig::default()
    }
}

fn make(container: &ContainerConfig, image: &ImageConfiguration) -> Result<Value, Error> {
    let staged: Vec<(usize, PathBuf)> = Vec::new();
    generate(&Input {
        sandbox: &sandbox(),
        container,
        image,
        user: &User::default(),
        bounding: &capabilities_of_mask(u64::MAX),
        sandbox_dir: Path::new("/sandbox"),
        shm: Path::new("/shm"),
        cgroup_v2: true,
        apparmor: false,
        target_pid: None,
        seccomp_file: None,
        staged: &staged,
        devices: &[],
    })
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn command_and_args_follow_kubernetes() {
    for (command, args, expected) in [
        (vec![], vec![], vec!["e", "c"]),
        (vec![], vec!["x"], vec!["e", "x"]),
        (vec!["k"], vec![], vec!["k"]),
        (vec!["k"], vec!["x"], vec!["k", "x"]),
    ] {
        let container = ContainerConfig {
            command: strings(&command),
            args: strings(&args),
            ..ContainerConfig::default()
        };
        let spec = make(&container, &image(&["e"], &["c"])).unwrap();
        assert_eq!(spec["process"]["args"], json!(expected));
    }
    let nothing = make(&ContainerConfig::default(), &image(&[], &[]));
    assert!(matches!(nothing, Err(Error::InvalidArgument { .. })));
}

#[test]
fn environment_and_directory_come_from_image_and_container() {
    let container = ContainerConfig {
        env: vec![("A".into(), "own".into()), ("B".into(), "1=2".into())],
        ..ContainerConfig::default()
    };
    let spec = make(&container, &image(&["e"], &[])).unwrap();
    assert_eq!(spec["process"]["env"], json!(["HOSTNAME=pod", "PATH=/bin", "A=own", "B=1=2"]));
    assert_eq!(spec["process"]["cwd"], "/srv");
    assert!(spec["process"].get("noNewPrivileges").is_none());
}

#[test]
fn capabilities_are_added_and_dropped() {
    let with = |add: &[&str], drop: &[&str]| {
        let security = SecurityContext {
            add_capabilities: strings(add),
            drop_capabilities: strings(drop),
            ..SecurityContext::default()
        };
        let container = ContainerConfig { security, ..ContainerConfig::default() };
        make(&container, &image(&["e"], &[])).map(|spec| spec["process"]["capabilities"]["bounding"].clone())
    };
    assert_eq!(with(&[], &[]).unwrap().as_array().unwrap().len(), 14);
    assert_eq!(with(&["net_admin"], &["ALL"]).unwrap(), json!(["CAP_NET_ADMIN"]));
    assert_eq!(with(&["ALL"], &["SYS_TIME"]).unwrap().as_array().unwrap().len(), 40);
    assert!(with(&["NO_SUCH"], &[]).is_err());
}

#[test]
fn privileged_has_no_filter_and_no_masks() {
    let ordinary = make(&ContainerConfig::default(), &image(&["e"], &[])).unwrap();
    assert_eq!(ordinary["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    for path in ["/proc/kcore", "/sys/devices/virtual/powercap"] {
        assert!(ordinary["linux"]["maskedPaths"].as_array().unwrap().contains(&json!(path)), "{path}");
    }
    let security = SecurityContext { privileged: true, ..SecurityContext::default() };
    let container = ContainerConfig { security, ..ContainerConfig::default() };
    let privileged = make(&container, &image(&["e"], &[])).unwrap();
    assert!(privileged["linux"].get("seccomp").is_none());
    assert_eq!(privileged["linux"]["maskedPaths"], json!([]));
}

#[test]
fn a_mount_of_the_caller_replaces_ours() {
    let mount = Mount { container_path: "/etc/hosts".into(), host_path: "/x".into(), ..Mount::default() };
    let container = ContainerConfig { mounts: vec![mount], ..ContainerConfig::default() };
    let spec = make(&container, &image(&["e"], &[])).unwrap();
    let hosts: Vec<_> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|mount| mount["destination"] == "/etc/hosts")
        .map(|mount| mount["source"].clone())
        .collect();
    assert_eq!(hosts, [json!("/x")]);
}

#[test]
fn users_are_looked_up() {
    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:44:\nextra:x:55:other,web\n";
    let resolve = |security: &SecurityContext, image: &str| user::resolve(security, image, PASSWD, GROUP);
    let plain = SecurityContext::default();
    let expect = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
    assert_eq!(resolve(&plain, "").unwrap(), expect(0, 0, &[0]));
    assert_eq!(resolve(&plain, "web").unwrap(), expect(33, 44, &[44, 55]));
    assert_eq!(resolve(&plain, "web:extra").unwrap(), expect(33, 55, &[55]));
    assert_eq!(resolve(&plain, "1000:1001").unwrap(), expect(1000, 1001, &[1001]));
    assert!(resolve(&plain, "nobody").is_err());
    let set =
        SecurityContext { run_as_user: Some(7), supplemental_groups: vec![9], ..SecurityContext::default() };
    assert_eq!(resolve(&set, "web:extra").unwrap(), expect(7, 0, &[0, 9]));
    let group_only = SecurityContext { run_as_group: Some(7), ..SecurityContext::default() };
    assert!(resolve(&group_only, "web").is_err());
}
