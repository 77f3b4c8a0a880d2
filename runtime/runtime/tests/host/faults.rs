//! What survives, is adopted or is taken back when the runtime's process or a shim dies.

use std::future::Future;
use std::time::Duration;

use runtime::{ContainerConfig, ContainerState, Event, Mount, NamespaceMode, Runtime, SandboxState};

use crate::fixture::{Host, container, exited, start, until};

/// Runs a future on a reactor of its own and then drops the reactor with all its tasks and connections at whatever point they are: what a killed
/// process leaves of itself.
fn life<T>(future: impl Future<Output = T>) -> T {
    let reactor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a reactor");
    let result = reactor.block_on(future);
    reactor.shutdown_timeout(Duration::from_millis(1));
    result
}

#[test]
fn containers_logs_and_exit_codes_survive() {
    let host = Host::new();
    host.configure_network();
    let mut config = host.pod();
    config.linux.namespaces.network = NamespaceMode::Pod;
    let volume = host.directory.path().join("volume");
    let (pod, lives, ends, before) = life(async {
        let runtime = host.open_with_image().await;
        let pod = runtime.run_sandbox(config).await.unwrap();
        let mount = Mount { container_path: "/v".into(), host_path: volume.clone(), ..Mount::default() };
        let waits = ContainerConfig {
            mounts: vec![mount],
            ..container("ends", "echo up; while [ ! -e /v/go ]; do sleep 0.02; done; echo last; exit 42")
        };
        let lives = start(
            &runtime,
            &pod,
            container("lives", "trap 'echo alive' USR2; echo up; while :; do sleep 0.05; done"),
        )
        .await;
        let ends = start(&runtime, &pod, waits).await;
        until("both are up", || ["lives.log", "ends.log"].iter().all(|log| !host.read_log(log).is_empty()))
            .await;
        let before = (runtime.sandbox_status(&pod).unwrap(), runtime.container_status(&lives).unwrap());
        (pod, lives, ends, before)
    });
    // Nobody is there while one container goes on and the other one ends.
    std::fs::write(volume.join("go"), "").unwrap();
    life(async {
        until("the last line", || host.read_log("ends.log").len() == 2).await;
        until("the record", || {
            let record = host.config.root.join("containers").join(ends.as_str()).join("record.json");
            std::fs::read_to_string(record).is_ok_and(|text| text.contains("\"code\":42"))
        })
        .await;
        let runtime = host.open().await;
        let (sandbox, status) =
            (runtime.sandbox_status(&pod).unwrap(), runtime.container_status(&lives).unwrap());
        assert_eq!(
            (sandbox.state, &sandbox.ips, sandbox.shim_pid),
            (SandboxState::Ready, &before.0.ips, before.0.shim_pid)
        );
        assert_eq!(
            (status.state, status.pid, status.started_at),
            (ContainerState::Running, before.1.pid, before.1.started_at)
        );
        let ended = runtime.container_status(&ends).unwrap();
        assert_eq!((ended.state, ended.exit_code), (ContainerState::Exited, 42));
        let command = ["kill", "-USR2", "1"].map(str::to_owned).to_vec();
        assert_eq!(runtime.exec_sync(&lives, command, None).await.unwrap().exit_code, 0);
        until("the log goes on", || host.read_log("lives.log").len() == 2).await;
        runtime.stop_container(&lives, Duration::ZERO).await.unwrap();
        assert_eq!(runtime.container_status(&lives).unwrap().exit_code, 137);
        runtime.remove_sandbox(&pod).await.unwrap();
        runtime.idle().await;
        assert!(runtime.list().sandboxes.is_empty() && runtime.list().containers.is_empty());
    });
}

/// A start that was under way when the runtime was killed goes on, and whoever opens the runtime next sees how it ended.
#[test]
fn starts_under_way_are_adopted() {
    let host = Host::new();
    let layout = linux::cgroup::Layout::detect(std::path::Path::new("/sys/fs/cgroup")).unwrap();
    let group = layout.group(&host.pod().linux.cgroup_parent).unwrap();
    // Everything in the pod's control group stands still, so its start workers do.
    let freeze = group.unified_directory().unwrap().join("cgroup.freeze");
    let (pod, good, bad) = life(async {
        let runtime = host.open_with_image().await;
        let pod = runtime.run_sandbox(host.pod()).await.unwrap();
        let good = runtime.create_container(&pod, container("good", "exec sleep 1000")).await.unwrap();
        let wrong = ContainerConfig { command: vec!["no-such".into()], ..container("bad", "") };
        let bad = runtime.create_container(&pod, wrong).await.unwrap();
        group.create().unwrap();
        std::fs::write(&freeze, "1").unwrap();
        for id in [good.clone(), bad.clone()] {
            let runtime = runtime.clone();
            tokio::spawn(async move { runtime.start_container(&id).await });
        }
        until("both workers are there", || group.processes().len() == 2).await;
        (pod, good, bad)
    });
    life(async {
        let socket = format!("{pod}.sock");
        let connections = || {
            let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
            let connected =
                |line: &&str| line.ends_with(&socket) && line.split_whitespace().nth(5) == Some("03");
            sockets.lines().filter(connected).count()
        };
        // Those of the first runtime: the workers, which stand still, inherited the shim's ends.
        let before = connections();
        let thaw = async {
            until("the shim is asked", || connections() > before).await;
            std::fs::write(&freeze, "0").unwrap();
        };
        let (runtime, ()) = tokio::join!(host.open(), thaw);
        let (good, bad) = (runtime.container_status(&good).unwrap(), runtime.container_status(&bad).unwrap());
        assert_eq!((good.state, good.pid.is_some()), (ContainerState::Running, true));
        assert_eq!(
            (bad.state, bad.exit_code, bad.reason.as_str()),
            (ContainerState::Exited, 128, "StartError")
        );
        assert!(bad.message.contains("executable file not found in $PATH"), "{}", bad.message);
        runtime.remove_sandbox(&pod).await.unwrap();
        runtime.idle().await;
    });
}

#[test]
fn what_was_half_made_is_removed() {
    let host = Host::new();
    host.configure_network();
    let mut config = host.pod();
    config.linux.namespaces.network = NamespaceMode::Pod;
    let pod = life(async {
        let runtime = host.open_with_image().await;
        let pod = runtime.run_sandbox(config).await.unwrap();
        start(&runtime, &pod, container("c", "exec sleep 1000")).await;
        pod
    });
    // As if the process had died before the network was up, and in the middle of making another container.
    let meta = host.config.root.join("sandboxes").join(pod.as_str()).join("meta.json");
    let text = std::fs::read_to_string(&meta).unwrap().replace("\"Ready\"", "\"Creating\"");
    std::fs::write(&meta, text).unwrap();
    let half = host.config.root.join("containers").join("f".repeat(64));
    std::fs::create_dir_all(half.join("upper")).unwrap();
    std::fs::write(host.config.root.join("blobs/sha256/.partial-1-1"), "x").unwrap();
    life(async {
        let runtime = host.open().await;
        runtime.idle().await;
        assert!(runtime.list().sandboxes.is_empty() && runtime.list().containers.is_empty());
        for directory in ["sandboxes", "containers"] {
            assert_eq!(
                std::fs::read_dir(host.config.root.join(directory)).unwrap().count(),
                0,
                "{directory}"
            );
        }
        assert!(!host.config.root.join("blobs/sha256/.partial-1-1").exists());
        assert!(linux::process::list_by_program(shim_protocol::PROGRAM).unwrap().is_empty());
        assert_eq!(std::fs::read_dir(host.config.state.join("netns")).unwrap().count(), 0);
    });
}

#[test]
fn a_plugin_that_outlives_its_caller_does_nothing_after_its_work_was_undone() {
    let mut host = Host::new();
    let base = host.directory.path().to_owned();
    // Takes an address when it is let go, and gives it back.
    host.configure_scripted_network(&format!(
        "cd {}
         case $CNI_COMMAND in
             ADD) touch adding; while [ ! -e go ]; do sleep 0.02; done; touch lease;;
             DEL) rm -f lease; touch undone;;
         esac",
        base.display()
    ));
    std::fs::write(base.join("go"), "").unwrap();
    let mut config = host.pod();
    config.linux.namespaces.network = NamespaceMode::Pod;
    let pod = life(async { host.open().await.run_sandbox(config).await.unwrap() });
    // As if the process had been killed while it connected the sandbox.
    let meta = host.config.root.join("sandboxes").join(pod.as_str()).join("meta.json");
    let text = std::fs::read_to_string(&meta).unwrap().replace("\"Ready\"", "\"Creating\"");
    std::fs::write(&meta, text).unwrap();
    for file in ["go", "adding", "lease"] {
        std::fs::remove_file(base.join(file)).unwrap();
    }
    let mut plugin = std::process::Command::new(base.join("plugins/scripted"))
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", pod.as_str())])
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    life(async {
        until("the plugin is at it", || base.join("adding").exists()).await;
        host.open().await.idle().await;
        assert!(base.join("undone").exists());
        std::fs::write(base.join("go"), "").unwrap();
        assert!(!plugin.wait().unwrap().success());
        assert!(!base.join("lease").exists());
    });
}

async fn killed_shim(host: &Host) -> (Runtime, runtime::SandboxId, runtime::ContainerId) {
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let id = start(&runtime, &pod, container("c", "exec sleep 1000")).await;
    let mut events = runtime.events();
    let shim = runtime.sandbox_status(&pod).unwrap().shim_pid.unwrap();
    let pidfd = linux::process::pidfd(shim).unwrap();
    linux::process::signal(std::os::fd::AsFd::as_fd(&pidfd), 9).unwrap();
    let gone = async { while events.recv().await != Some(Event::SandboxGone { sandbox: pod.clone() }) {} };
    tokio::time::timeout(crate::fixture::LIMIT, gone).await.expect("the sandbox is reported as gone");
    (runtime, pod, id)
}

#[tokio::test]
async fn a_shim_that_dies_while_its_network_is_made_leaves_no_ready_sandbox() {
    let mut host = Host::new();
    // Kills the sandbox's shim and waits until it is a zombie or gone: its descriptors are closed then.
    host.configure_scripted_network(
        "[ $CNI_COMMAND = ADD ] || exit 0
         for file in /proc/[0-9]*/cmdline; do
             pid=${file#/proc/}; pid=${pid%/cmdline}
             case \"$(tr '\\0' ' ' < $file 2>/dev/null)\" in
                 \"orlop-shim $CNI_CONTAINERID\"*)
                     kill -9 $pid
                     while grep -q 'State:.[^Z]' /proc/$pid/status 2>/dev/null; do :; done;;
             esac
         done",
    );
    let mut config = host.pod();
    config.linux.namespaces.network = NamespaceMode::Pod;
    let runtime = host.open().await;
    let pod = runtime.run_sandbox(config).await.unwrap();
    until("it is not ready", || runtime.sandbox_status(&pod).unwrap().state == SandboxState::NotReady).await;
    assert_eq!(runtime.sandbox_status(&pod).unwrap().shim_pid, None);
    runtime.remove_sandbox(&pod).await.unwrap();
    runtime.idle().await;
}

#[tokio::test]
async fn networks_are_taken_down_once_and_stuck_ones_do_not_hold_others_up() {
    let mut host = Host::new();
    let notes = host.directory.path().join("notes");
    std::fs::create_dir(&notes).unwrap();
    // DEL is counted for each sandbox, and fails as long as its file `stuck` is there.
    host.configure_scripted_network(&format!(
        "cd {}; [ $CNI_COMMAND != DEL ] || {{ echo >> $CNI_CONTAINERID; [ ! -e stuck-$CNI_CONTAINERID ] || exit 1; }}",
        notes.display()
    ));
    let count = |pod: &runtime::SandboxId| {
        std::fs::read_to_string(notes.join(pod.as_str())).unwrap_or_default().lines().count()
    };
    let runtime = host.open().await;
    let mut pods = Vec::new();
    for index in 0..3 {
        let mut config = host.pod();
        config.linux.cgroup_parent.push_str(&index.to_string());
        config.linux.namespaces.network = NamespaceMode::Pod;
        pods.push(runtime.run_sandbox(config).await.unwrap());
    }
    let stuck = |pod: &runtime::SandboxId| notes.join(format!("stuck-{pod}"));
    for pod in &pods[..2] {
        std::fs::write(stuck(pod), "").unwrap();
        runtime.remove_sandbox(pod).await.unwrap();
    }
    // The stop's try and the removal's first one.
    until("both are stuck", || pods[..2].iter().all(|pod| count(pod) >= 2)).await;
    runtime.remove_sandbox(&pods[2]).await.unwrap();
    let directory = |pod: &runtime::SandboxId| host.config.root.join("sandboxes").join(pod.as_str());
    until("the third is gone", || !directory(&pods[2]).exists()).await;
    for pod in &pods[..2] {
        assert!(directory(pod).exists());
        std::fs::remove_file(stuck(pod)).unwrap();
    }
    runtime.idle().await;
    assert!(pods.iter().all(|pod| !directory(pod).exists()));
    assert_eq!(count(&pods[2]), 1);
}

#[tokio::test]
async fn a_killed_shim_ends_its_containers() {
    let host = Host::new();
    let (runtime, pod, id) = killed_shim(&host).await;
    assert_eq!(runtime.sandbox_status(&pod).unwrap().state, SandboxState::NotReady);
    let status = exited(&runtime, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str(), status.pid), (255, "Unknown", None));
    runtime.remove_sandbox(&pod).await.unwrap();
    runtime.idle().await;
    assert_eq!(std::fs::read_dir(host.config.state.join("shm")).unwrap().count(), 0);
    assert_eq!(host.mounts(), []);
}
