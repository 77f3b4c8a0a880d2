//! The promises about shims: one thread, one sealed executable, little memory, many at once.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use runtime::{ContainerState, Runtime, SandboxId};

use crate::fixture::{Host, chain, container, exited, start};

/// Private memory that a shim may have, KiB; also in a build that is not optimised.
const PRIVATE_KIB: u64 = 2048;

fn shim_pid(runtime: &Runtime, pod: &SandboxId) -> i32 {
    runtime.sandbox_status(pod).unwrap().shim_pid.unwrap()
}

/// Pages that only this process has, in KiB.
fn private_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let value = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    text.lines().filter(|line| line.starts_with("Private_")).filter_map(value).sum()
}

#[tokio::test]
async fn shims_have_one_thread_and_share_one_sealed_executable() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let (mut inodes, mut pids) = (Vec::new(), Vec::new());
    for index in 0..3 {
        let mut config = host.pod();
        config.linux.cgroup_parent.push_str(&index.to_string());
        let pod = runtime.run_sandbox(config).await.unwrap();
        let id = start(&runtime, &pod, container("c", "exec sleep 1000")).await;
        assert_eq!(runtime.container_status(&id).unwrap().state, ContainerState::Running);
        let pid = shim_pid(&runtime, &pod);
        assert_eq!(std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1);
        let executable = std::fs::File::open(format!("/proc/{pid}/exe")).unwrap();
        assert!(linux::memfd::is_sealed(&executable));
        inodes.push(executable.metadata().unwrap().ino());
        pids.push(pid);
    }
    // Pages of the executable that one shim alone has touched would count as its own: measured when there are several.
    for pid in pids {
        let private = private_kib(pid);
        println!("private memory of a shim: {private} KiB");
        assert!(private <= PRIVATE_KIB, "{private} KiB");
    }
    // A runtime that starts later goes on with the same executable.
    let second = host.open().await;
    let mut config = host.pod();
    config.linux.cgroup_parent.push_str("second");
    let pod = second.run_sandbox(config).await.unwrap();
    let executable = std::fs::metadata(format!("/proc/{}/exe", shim_pid(&second, &pod))).unwrap();
    inodes.push(executable.ino());
    inodes.dedup();
    assert_eq!(inodes.len(), 1);
}

#[tokio::test]
async fn a_container_cannot_change_the_shim() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let mut config = host.pod();
    config.linux.namespaces.pid = runtime::NamespaceMode::Node;
    let pod = runtime.run_sandbox(config).await.unwrap();
    let pid = shim_pid(&runtime, &pod);
    let security = runtime::SecurityContext { privileged: true, ..runtime::SecurityContext::default() };
    let script = format!("echo x > /proc/{pid}/exe && echo overwritten || echo refused");
    let id = start(&runtime, &pod, runtime::ContainerConfig { security, ..container("c", &script) }).await;
    exited(&runtime, &id).await;
    let log = host.read_log("c.log");
    let says = |text: &str| log.iter().any(|(_, line)| line == text);
    assert!(says("refused") && !says("overwritten"), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_containers_at_once() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let one = |index: usize| {
        let (runtime, mut config) = (runtime.clone(), host.pod());
        config.linux.cgroup_parent.push_str(&index.to_string());
        async move {
            let pod = runtime.run_sandbox(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
            let id = start(&runtime, &pod, container(&format!("c{index}"), "echo up; exec sleep 1000")).await;
            runtime.stop_container(&id, Duration::ZERO).await.unwrap();
            runtime.remove_sandbox(&pod).await.unwrap();
        }
    };
    let all: Vec<_> = (0..50).map(|index| tokio::spawn(one(index))).collect();
    for task in all {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("no hang").unwrap();
    }
    runtime.idle().await;
    assert!(linux::process::list_by_program(shim_protocol::PROGRAM).unwrap().is_empty());
    for index in 0..50 {
        assert!(runtime.list().containers.is_empty(), "{index}");
    }
}
