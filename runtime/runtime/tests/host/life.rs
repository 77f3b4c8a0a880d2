//! The life of sandboxes and containers, and what a container sees.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use runtime::{
    ContainerConfig, ContainerState, Error, Mount, MountPropagation, NamespaceMode, Resources, SandboxId,
    SandboxState, SecurityContext, SecurityProfile,
};

use crate::fixture::{Host, LIMIT, chain, container, exited, start, until};

#[tokio::test]
async fn a_container_runs_logs_and_exits() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.expect("run the sandbox");
    let id = start(&runtime, &pod, container("c", "echo out; echo err >&2; printf tail; exit 3")).await;
    let status = exited(&runtime, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str(), status.pid), (3, "Error", None));
    assert!(status.started_at >= status.created_at && status.finished_at >= status.started_at);
    let filters = std::fs::read_dir(host.config.state.join("seccomp")).unwrap();
    assert_eq!(filters.count(), 1, "the compiled filter is kept for the next container");
    let layer = host.config.root.join("containers").join(id.as_str()).join("upper");
    assert_eq!(std::fs::read_dir(layer).unwrap().count(), 0, "the places of its mounts are below the image");
    let mut log = host.read_log("c.log");
    log.sort();
    let expect = [("stderr", "err"), ("stdout", "out"), ("stdout", "tail")];
    assert_eq!(log, expect.map(|(stream, text)| (stream.to_owned(), text.to_owned())));
    runtime.remove_sandbox(&pod).await.expect("remove the sandbox");
    runtime.idle().await;
    nothing_is_left(&host);
}

fn nothing_is_left(host: &Host) {
    let base = host.directory.path();
    for directory in ["r/sandboxes", "r/containers", "s/shim", "s/netns", "s/oci", "s/shm"] {
        let left: Vec<_> =
            std::fs::read_dir(base.join(directory)).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert_eq!(host.mounts(), []);
    assert!(linux::process::list_by_program(shim_protocol::PROGRAM).unwrap().is_empty());
}

#[tokio::test]
async fn a_container_sees_its_image_its_mounts_and_its_limits() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let volume = host.directory.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "shared").unwrap();
    let script = "echo $FROM $OWN; cat /kept; echo; ls /hidden 2>/dev/null || echo whiteout; cat /v/file; echo; \
                  touch /v/x 2>/dev/null || echo readonly; id -u; id -G; pwd; echo $$; cat /etc/hosts >/dev/null && echo hosts; \
                  touch /written && echo writable; cat /proc/self/oom_score_adj; ls /dev/null /dev/shm >/dev/null && echo dev; \
                  grep -c . /proc/mounts >/dev/null && echo mounts; grep Seccomp: /proc/self/status | tr -d '\\t '; \
                  grep CapEff /proc/self/status | tr -d '\\t '";
    let config = ContainerConfig {
        env: vec![("OWN".into(), "yes".into())],
        working_dir: "/new/dir".into(),
        mounts: vec![Mount {
            container_path: "/v".into(),
            host_path: volume,
            readonly: true,
            ..Mount::default()
        }],
        resources: Resources {
            memory_limit: 64 << 20,
            pids_limit: 50,
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            oom_score_adj: Some(500),
            ..Resources::default()
        },
        ..container("c", script)
    };
    let id = start(&runtime, &pod, config).await;
    let status = exited(&runtime, &id).await;
    let log: Vec<String> = host.read_log("c.log").into_iter().map(|(_, text)| text).collect();
    let expect = [
        "image yes",
        "upper",
        "whiteout",
        "shared",
        "readonly",
        "0",
        "0",
        "/new/dir",
        "1",
        "hosts",
        "writable",
        "500",
        "dev",
        "mounts",
        "Seccomp:2",
        "CapEff:00000000a80425fb",
    ];
    assert_eq!(log, expect, "{status:?}");
}

#[tokio::test]
async fn a_user_of_the_image_is_resolved_and_unprivileged() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let config = ContainerConfig {
        security: SecurityContext {
            run_as_username: "web".into(),
            supplemental_groups: vec![77],
            no_new_privs: true,
            readonly_rootfs: true,
            ..SecurityContext::default()
        },
        ..container(
            "c",
            "id -u; id -g; id -G; touch /x 2>/dev/null || echo ro; grep -E 'NoNewPrivs|CapEff|Seccomp:' /proc/self/status | tr -d '\\t '; echo $HOME",
        )
    };
    let id = start(&runtime, &pod, config).await;
    exited(&runtime, &id).await;
    let log: Vec<String> = host.read_log("c.log").into_iter().map(|(_, text)| text).collect();
    let expect =
        ["33", "44", "44 55 77", "ro", "CapEff:0000000000000000", "NoNewPrivs:1", "Seccomp:2", "/srv"];
    assert_eq!(log, expect);
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_a_start_error() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let config = ContainerConfig { command: vec!["no-such".into()], ..container("c", "") };
    let id = runtime.create_container(&pod, config).await.unwrap();
    let error = runtime.start_container(&id).await.unwrap_err();
    let expect = "exec: \"no-such\": executable file not found in $PATH";
    assert!(matches!(&error, Error::Start { message } if message.contains(expect)), "{}", chain(&error));
    let status = runtime.container_status(&id).unwrap();
    assert_eq!(
        (status.state, status.exit_code, status.reason.as_str()),
        (ContainerState::Exited, 128, "StartError")
    );
    runtime.remove_container(&id).await.unwrap();
    assert!(runtime.container_status(&id).is_none());
}

#[tokio::test]
async fn stop_sends_the_signal_waits_and_kills() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let polite = start(
        &runtime,
        &pod,
        container("polite", "trap 'exit 7' USR1; echo up; while :; do sleep 0.1; done"),
    )
    .await;
    let deaf =
        start(&runtime, &pod, container("deaf", "trap '' USR1 TERM; echo up; while :; do sleep 0.1; done"))
            .await;
    until("both are up", || ["polite.log", "deaf.log"].iter().all(|log| !host.read_log(log).is_empty()))
        .await;
    runtime.stop_container(&polite, Duration::from_secs(20)).await.unwrap();
    assert_eq!(runtime.container_status(&polite).unwrap().exit_code, 7);
    runtime.stop_container(&deaf, Duration::from_millis(50)).await.unwrap();
    assert_eq!(runtime.container_status(&deaf).unwrap().exit_code, 137);
    runtime.stop_container(&deaf, Duration::ZERO).await.unwrap();
}

/// A loop device, as `MAJOR MINOR`: it stands in for the machine's disk, which may be closed to everybody.
const DISK: &str = "7 0";

#[tokio::test]
async fn a_default_container_neither_makes_nor_opens_the_machines_disk() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let upper = host.directory.path().join("node");
    std::fs::create_dir(&upper).unwrap();
    let mut mknod = std::process::Command::new("mknod");
    assert!(mknod.arg(upper.join("disk")).arg("b").args(DISK.split(' ')).status().unwrap().success());
    let script = format!(
        "try() {{ name=$1; shift; if \"$@\" 2>/dev/null >/dev/null; then echo $name yes; else echo $name no; fi; }}; \
         try mknod mknod /disk b {disk}; try open head -c 0 /v/disk; try read head -c 1 /v/disk; \
         try mknod-char mknod /mem c 1 1; try open-char head -c 1 /mem; \
         try mknod-null mknod /null c 1 3; try open-null head -c 1 /null; try random head -c 1 /dev/urandom",
        disk = DISK,
    );
    let config = |name: &str, privileged: bool| ContainerConfig {
        mounts: vec![Mount { container_path: "/v".into(), host_path: upper.clone(), ..Mount::default() }],
        security: SecurityContext { privileged, ..SecurityContext::default() },
        ..container(name, &script)
    };
    let logged = async |name: &str, privileged: bool| {
        let id = start(&runtime, &pod, config(name, privileged)).await;
        exited(&runtime, &id).await;
        host.read_log(&format!("{name}.log")).into_iter().map(|(_, text)| text).collect::<Vec<_>>()
    };
    let allowed = logged("all", true).await;
    assert_eq!(allowed[..3], ["mknod yes", "open yes", "read yes"], "or the refusals below mean nothing");
    let expect = [
        "mknod no",
        "open no",
        "read no",
        "mknod-char yes",
        "open-char no",
        "mknod-null yes",
        "open-null yes",
        "random yes",
    ];
    assert_eq!(logged("default", false).await, expect);
}

#[tokio::test]
async fn a_stop_with_a_shorter_grace_overtakes_one_that_waits() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let script = "trap 'echo asked' USR1; echo up; while :; do sleep 0.05; done";
    let id = start(&runtime, &pod, container("c", script)).await;
    until("it is up", || !host.read_log("c.log").is_empty()).await;
    let (first, stopped) = (runtime.clone(), id.clone());
    let patient =
        tokio::spawn(async move { first.stop_container(&stopped, Duration::from_secs(3600)).await });
    until("it is asked to stop", || host.read_log("c.log").len() == 2).await;
    let hasty = runtime.stop_container(&id, Duration::from_millis(300));
    tokio::time::timeout(LIMIT, hasty).await.expect("the shorter grace counts").unwrap();
    assert_eq!(runtime.container_status(&id).unwrap().exit_code, 137);
    tokio::time::timeout(LIMIT, patient).await.expect("the exit ends both").unwrap().unwrap();
    assert_eq!(host.read_log("c.log").len(), 2, "the signal is sent once");
}

#[tokio::test]
async fn memory_beyond_the_limit_is_reported_as_oom() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let config = ContainerConfig {
        resources: Resources { memory_limit: 16 << 20, ..Resources::default() },
        // Without exec the shell would survive the kill of its child.
        ..container("c", "exec dd if=/dev/zero of=/dev/null bs=100M count=1")
    };
    let id = start(&runtime, &pod, config).await;
    let status = exited(&runtime, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
}

#[tokio::test]
async fn a_container_out_of_memory_ends_as_a_whole_when_asked() {
    let host = Host::new();
    if linux::cgroup::Layout::detect(&host.config.cgroup_root).unwrap().is_v1() {
        return harness::skip::skip("the memory controller is v1's here, which has no memory.oom.group");
    }
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let config = |name: &str, group: bool| ContainerConfig {
        resources: Resources {
            memory_limit: 16 << 20,
            unified: group.then(|| ("memory.oom.group".to_owned(), "1".to_owned())).into_iter().collect(),
            ..Resources::default()
        },
        ..container(name, "dd if=/dev/zero of=/dev/null bs=100M count=1; echo survived; exec sleep 1000")
    };
    let whole = start(&runtime, &pod, config("whole", true)).await;
    let one = start(&runtime, &pod, config("one", false)).await;
    let status = exited(&runtime, &whole).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    until("the first process of the other goes on", || {
        host.read_log("one.log").iter().any(|(_, text)| text == "survived")
    })
    .await;
    assert_eq!(runtime.container_status(&one).unwrap().state, ContainerState::Running);
    assert!(!host.read_log("whole.log").iter().any(|(_, text)| text == "survived"));
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_should() {
    let host = Host::new();
    host.configure_network();
    let runtime = host.open_with_image().await;
    let mut config = host.pod();
    config.hostname = "podname".into();
    config.linux.namespaces.network = NamespaceMode::Pod;
    config.linux.namespaces.pid = NamespaceMode::Pod;
    config.linux.sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
    let pod = runtime.run_sandbox(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let status = runtime.sandbox_status(&pod).unwrap();
    assert_eq!((status.state, status.ips.len()), (SandboxState::Ready, 1));
    let script = "hostname; cat /etc/hostname; cd /proc/sys/net/ipv4; cat ip_forward ip_unprivileged_port_start; \
                  cat ping_group_range | tr '\t' ' '; ip -4 addr show eth0 | grep -c inet; \
                  echo x > /dev/shm/x; cat /proc/1/comm; ls /proc/1/root 2>/dev/null | wc -l; exec sleep 1000";
    let first = start(&runtime, &pod, container("first", script)).await;
    until("the first one is up", || host.read_log("first.log").len() == 8).await;
    let log: Vec<String> = host.read_log("first.log").into_iter().map(|(_, text)| text).collect();
    assert_eq!(log, ["podname", "podname", "1", "0", "0 2147483647", "1", "orlop-pod-init", "0"]);
    let second =
        start(&runtime, &pod, container("second", "cat /dev/shm/x; ps | grep -c 'sleep 1000'")).await;
    exited(&runtime, &second).await;
    let log: Vec<String> = host.read_log("second.log").into_iter().map(|(_, text)| text).collect();
    assert_eq!(log[0], "x");
    assert!(log[1].parse::<u32>().unwrap() >= 1);
    runtime.stop_sandbox(&pod).await.unwrap();
    assert_eq!(runtime.sandbox_status(&pod).unwrap().state, SandboxState::NotReady);
    assert_eq!(runtime.container_status(&first).unwrap().state, ContainerState::Exited);
    runtime.remove_sandbox(&pod).await.unwrap();
    runtime.idle().await;
    nothing_is_left(&host);
}

#[tokio::test]
async fn without_a_network_configuration_nothing_is_made() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let mut config = host.pod();
    config.linux.namespaces.network = NamespaceMode::Pod;
    let error = runtime.run_sandbox(config).await.unwrap_err();
    assert!(error.to_string().starts_with("cni plugin not initialized"), "{error}");
    nothing_is_left(&host);
}

#[tokio::test]
async fn who_mounts_the_volatile_state_sees_what_is_mounted_there_for_other_pods() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let other = runtime.run_sandbox(host.pod()).await.unwrap();
    let writes = start(&runtime, &other, container("writes", "echo x > /dev/shm/x")).await;
    exited(&runtime, &writes).await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    // By another name, too.
    let link = host.directory.path().join("link");
    std::os::unix::fs::symlink(&host.config.state, &link).unwrap();
    for (name, path) in [("state", &host.config.state), ("link", &link)] {
        let mount = Mount { container_path: "/s".into(), host_path: path.clone(), ..Mount::default() };
        let reads = ContainerConfig {
            mounts: vec![mount],
            ..container(name, &format!("echo y > /dev/shm/{name}; cat /s/shm/*/x /s/shm/*/{name}"))
        };
        exited(&runtime, &start(&runtime, &pod, reads).await).await;
        let log: Vec<String> =
            host.read_log(&format!("{name}.log")).into_iter().map(|(_, text)| text).collect();
        assert_eq!(log, ["x", "y"], "{name}");
    }
}

/// Who supervises its system calls stops a start where libcontainer connects to it: somebody else has its only place.
#[tokio::test]
async fn a_start_has_no_mounts_of_other_pods_and_reaches_the_listener_of_its_profile() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let other = runtime.run_sandbox(host.pod()).await.unwrap();
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let shm = |pod: &SandboxId| host.config.state.join("shm").join(pod.as_str());
    for (name, directory, hidden) in
        [("far", host.directory.path(), true), ("near", host.config.state.as_path(), false)]
    {
        let path = directory.join("listener");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let first = UnixStream::connect(&path).unwrap();
        let profile = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{ "names": ["sethostname"], "action": "SCMP_ACT_NOTIFY" }],
        });
        let file = host.directory.path().join(format!("{name}.json"));
        std::fs::write(&file, profile.to_string()).unwrap();
        let seccomp = SecurityProfile::Localhost(file.display().to_string());
        let security = SecurityContext { seccomp, ..SecurityContext::default() };
        let id = runtime
            .create_container(&pod, ContainerConfig { security, ..container(name, "echo up") })
            .await
            .unwrap();
        let starting = tokio::spawn({
            let (runtime, id) = (runtime.clone(), id.clone());
            async move { runtime.start_container(&id).await.map_err(|error| chain(&error)) }
        });
        let mut worker = 0;
        until("its worker waits for a place", || {
            let waits = |pid: &i32| {
                let read =
                    |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
                read("comm").trim() == "orlop-worker" && read("wchan").contains("unix")
            };
            worker = linux::process::list().unwrap().into_iter().find(waits).unwrap_or_default();
            worker != 0
        })
        .await;
        let table = std::fs::read_to_string(format!("/proc/{worker}/mountinfo")).unwrap();
        let has = |path: PathBuf| table.contains(&format!(" {} ", path.display()));
        assert_eq!((has(shm(&other)), has(shm(&pod))), (!hidden, true), "{name}: {table}");
        drop(listener.accept().unwrap());
        drop(first);
        let supervisor = listener.accept().unwrap();
        starting.await.unwrap().unwrap();
        exited(&runtime, &id).await;
        drop(supervisor);
        let log = host.read_log(&format!("{name}.log"));
        assert_eq!(log, [("stdout".to_owned(), "up".to_owned())]);
    }
}

#[tokio::test]
async fn mounts_travel_as_asked_and_host_control_groups_can_be_shown() {
    let host = Host::new();
    let shared = host.directory.path().join("shared");
    std::fs::create_dir_all(shared.join("below")).unwrap();
    let run = |arguments: &[&str]| {
        let status = std::process::Command::new("mount").args(arguments).status().unwrap();
        assert!(status.success(), "mount {arguments:?}");
    };
    let path = shared.display().to_string();
    run(&["--bind", &path, &path]);
    run(&["--make-shared", &path]);
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let mount = |container_path: &str, host_path: &str, propagation| Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        propagation,
        ..Mount::default()
    };
    let both = ContainerConfig {
        mounts: vec![
            mount("/s", &path, MountPropagation::Bidirectional),
            mount("/cg", "/sys/fs/cgroup", MountPropagation::Private),
        ],
        security: SecurityContext { privileged: true, ..SecurityContext::default() },
        ..container(
            "both",
            "ls /cg | wc -l; mount -t tmpfs none /s/below && touch /s/below/inside && echo mounted; exec sleep 1000",
        )
    };
    start(&runtime, &pod, both).await;
    until("it has mounted", || host.read_log("both.log").iter().any(|(_, text)| text == "mounted")).await;
    assert!(host.read_log("both.log")[0].1.parse::<u32>().unwrap() > 0);
    assert!(shared.join("below/inside").exists());
    let slave = ContainerConfig {
        mounts: vec![mount("/s", &path, MountPropagation::HostToContainer)],
        ..container("slave", "ls /s/below; while [ ! -e /s/below/later ]; do sleep 0.02; done; echo seen")
    };
    let id = start(&runtime, &pod, slave).await;
    until("it is up", || !host.read_log("slave.log").is_empty()).await;
    run(&["-t", "tmpfs", "none", &format!("{path}/below")]);
    std::fs::write(shared.join("below/later"), "").unwrap();
    exited(&runtime, &id).await;
    let log: Vec<String> = host.read_log("slave.log").into_iter().map(|(_, text)| text).collect();
    assert_eq!(log, ["inside", "seen"]);
}
