//! How long the phases take, one pod and many at once. It prints and asserts nothing about time: `--nocapture` shows the table.

use std::time::{Duration, Instant};

use runtime::{Runtime, SandboxConfig};

use crate::fixture::{Host, container};

const PHASES: [&str; 5] = ["run_sandbox", "create", "start", "stop", "remove"];

async fn measure(runtime: Runtime, config: SandboxConfig) -> [Duration; 5] {
    let mut times = [Duration::ZERO; 5];
    let mut begin = Instant::now();
    let mut lap = |index: usize| {
        let now = Instant::now();
        times[index] = now - std::mem::replace(&mut begin, now);
    };
    let pod = runtime.run_sandbox(config).await.unwrap();
    lap(0);
    let id = runtime.create_container(&pod, container("c", "exec sleep 1000")).await.unwrap();
    lap(1);
    runtime.start_container(&id).await.unwrap();
    lap(2);
    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    lap(3);
    runtime.remove_sandbox(&pod).await.unwrap();
    lap(4);
    times
}

fn print(label: &str, mut all: Vec<[Duration; 5]>) {
    for (index, phase) in PHASES.iter().enumerate() {
        all.sort_by_key(|times| times[index]);
        let at = |share: usize| all[(all.len() - 1) * share / 100][index];
        println!("{label:>12} {phase:>12} p50 {:>9.1?} p99 {:>9.1?}", at(50), at(99));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phases_of_one_pod_and_of_fifty() {
    let host = Host::new();
    host.configure_network();
    let runtime = host.open_with_image().await;
    let config = |index: usize, network| {
        let mut config = host.pod();
        config.linux.cgroup_parent.push_str(&format!("{network:?}{index}"));
        config.linux.namespaces.network = network;
        config
    };
    for network in [runtime::NamespaceMode::Node, runtime::NamespaceMode::Pod] {
        let mut alone = Vec::new();
        for index in 0..10 {
            alone.push(measure(runtime.clone(), config(index, network)).await);
        }
        runtime.idle().await;
        print(&format!("{network:?} x1"), alone);
        let tasks: Vec<_> =
            (100..150).map(|index| tokio::spawn(measure(runtime.clone(), config(index, network)))).collect();
        let mut together = Vec::new();
        for task in tasks {
            together.push(task.await.unwrap());
        }
        runtime.idle().await;
        print(&format!("{network:?} x50"), together);
    }
}
