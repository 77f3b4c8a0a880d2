//! Killing the agent and the server while the cluster works.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use e2e::cluster::Cluster;
use e2e::example;
use e2e::kubectl::Kubectl;
use e2e::load::Load;
use e2e::processes;

const KILLS: usize = 20;

/// Name, uid, address, restart count, container, start time and first process of every pod: what must not change. The process
/// comes from the kernel, the rest from the API. The load is left out: it ends when it is told to.
fn identities(kubectl: &Kubectl) -> BTreeSet<String> {
    kubectl
        .list(&["pods", "-l", "run!=load"])
        .iter()
        .map(|pod| {
            let container = &pod["status"]["containerStatuses"][0];
            let process = processes::first_of_pod(pod["metadata"]["uid"].as_str().expect("a uid"));
            format!(
                "{} {} {} {} {} {} {process:?}",
                pod["metadata"]["name"],
                pod["metadata"]["uid"],
                pod["status"]["podIP"],
                container["restartCount"],
                container["containerID"],
                container["state"]["running"]["startedAt"]
            )
        })
        .collect()
}

#[test]
fn the_agent_dies_under_load_and_its_successor_adopts_the_pods() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("agent-dies");
    let address = example::start(&cluster, &kubectl);
    let load = Load::start(&kubectl, "load", &format!("{address}:80"));
    let writer = "trap 'exit 0' TERM; i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done";
    kubectl.run(&[
        "run",
        "writer",
        "--image=localhost/busybox:v1",
        "--restart=Never",
        "--",
        "sh",
        "-c",
        writer,
    ]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/writer", "--timeout=60s"]);
    let before = identities(&kubectl);
    let old = cluster.kill("orlop-agent");
    cluster.wait_restarted("orlop-agent", old);
    // A pod that starts now proves that the new agent works; by then it has adopted the others.
    kubectl.run_idle("after");
    kubectl.run(&["delete", "pod/after", "--timeout=60s"]);
    kubectl.wait("the pods are as they were", || {
        let pods = identities(&kubectl);
        if pods == before { Ok(()) } else { Err(format!("{pods:?} instead of {before:?}")) }
    });
    // The new agent can do with an old pod what the old one could.
    assert_eq!(kubectl.run(&["exec", "client", "--", "echo", "still"]), "still\n");
    let client = kubectl.get("pod/client", "{.metadata.uid}");
    assert!(processes::first_of_pod(&client).is_some(), "the pod has no process that the kernel knows of");
    kubectl.run(&["delete", "pod/client", "--timeout=60s"]);
    assert_eq!(processes::first_of_pod(&client), None, "the deleted pod still runs");
    load.assert_no_failure();
    let seen = kubectl.run(&["logs", "writer"]).lines().count();
    kubectl.wait("the log goes on", || {
        let lines: Vec<String> = kubectl.run(&["logs", "writer"]).lines().map(str::to_owned).collect();
        let whole = lines.iter().enumerate().all(|(index, line)| *line == format!("line {}", index + 1));
        if lines.len() > seen && whole { Ok(()) } else { Err(format!("{} lines", lines.len())) }
    });
}

#[test]
fn the_server_dies_in_the_middle_of_writes_and_loses_nothing_acknowledged() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("server-dies");
    let writes = Writes::default();
    let acknowledged = std::thread::scope(|scope| {
        // Also when a wait below panics: the scope would wait for its writers for ever.
        let stop = StopOnDrop(&writes.stop);
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (kubectl, writes) = (&kubectl, &writes);
                scope.spawn(move || write(kubectl, writes, writer))
            })
            .collect();
        for _ in 0..KILLS {
            let before = writes.acknowledged.load(Ordering::Relaxed);
            kubectl.wait("a write is acknowledged", || match writes.acknowledged.load(Ordering::Relaxed) {
                now if now > before => Ok(()),
                now => Err(format!("{now} so far")),
            });
            let old = cluster.kill("orlop-server");
            cluster.wait_restarted("orlop-server", old);
        }
        drop(stop);
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect::<Vec<_>>()
    });
    assert!(acknowledged.len() >= KILLS, "only {} writes were acknowledged", acknowledged.len());
    let present: BTreeSet<String> = kubectl
        .list(&["configmaps"])
        .iter()
        .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !present.contains(*name)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

/// What the writers and the test tell each other.
#[derive(Default)]
struct Writes {
    stop: AtomicBool,
    acknowledged: AtomicUsize,
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Creates objects until told to stop: the names that the server acknowledged.
fn write(kubectl: &Kubectl, writes: &Writes, writer: usize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while !writes.stop.load(Ordering::Relaxed) {
        number += 1;
        let name = format!("written-{writer}-{number}");
        if kubectl.try_run(&["create", "configmap", &name, "--request-timeout=5s"]).is_ok() {
            acknowledged.push(name);
            writes.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    acknowledged
}
