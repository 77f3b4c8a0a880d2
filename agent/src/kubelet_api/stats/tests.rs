use runtime::{
    ContainerConfig, ContainerState, ContainerStats, ContainerStatus, SandboxConfig, SandboxState,
    SandboxStatus, Snapshot,
};
use serde_json::json;

use super::{pod, running_pods};

fn sandbox(id: &str, state: SandboxState) -> SandboxStatus {
    let config = SandboxConfig {
        name: id.into(),
        namespace: "ns".into(),
        uid: "u".into(),
        ..SandboxConfig::default()
    };
    SandboxStatus {
        id: id.to_owned().into(),
        config,
        state,
        created_at: 5_000_000_000,
        ips: Vec::new(),
        netns: None,
        shim_pid: None,
    }
}

fn container(sandbox: &str, name: &str, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        id: format!("{sandbox}-{name}").into(),
        sandbox: sandbox.to_owned().into(),
        config: ContainerConfig { name: name.into(), image: "busybox".into(), ..ContainerConfig::default() },
        state,
        pid: None,
        created_at: 0,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image_id: String::new(),
        image_ref: String::new(),
        log_path: "/log".into(),
    }
}

#[test]
fn running_pods_are_ready_sandboxes_with_their_running_containers() {
    let snapshot = Snapshot {
        sandboxes: vec![sandbox("a", SandboxState::Ready), sandbox("b", SandboxState::NotReady)],
        containers: vec![
            container("a", "one", ContainerState::Running),
            container("a", "two", ContainerState::Exited),
            container("b", "three", ContainerState::Running),
        ],
    };
    let list = running_pods(&snapshot);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["items"][0]["metadata"], json!({"name": "a", "namespace": "ns", "uid": "u"}));
    let containers = &list["items"][0]["spec"]["containers"];
    assert_eq!(*containers, json!([{"name": "one", "image": "busybox", "resources": {}}]));
}

#[test]
fn a_pods_figures_are_the_sums_of_its_containers() {
    let (one, two) =
        (container("a", "one", ContainerState::Running), container("a", "two", ContainerState::Running));
    let stats = ContainerStats {
        timestamp: 6_000_000_000,
        cpu_usage_nanos: 10,
        memory_working_set: 7,
        ..ContainerStats::default()
    };
    let shown = pod(&sandbox("a", SandboxState::Ready), &[(&one, Some(stats)), (&two, Some(stats))]);
    assert_eq!(shown["startTime"], "1970-01-01T00:00:05Z");
    assert_eq!(shown["cpu"], json!({"time": "1970-01-01T00:00:06Z", "usageCoreNanoSeconds": 20}));
    assert_eq!(shown["memory"]["workingSetBytes"], 14);
    assert_eq!(shown["containers"][1]["name"], "two");
    let unknown = pod(&sandbox("a", SandboxState::Ready), &[(&one, None)]);
    assert_eq!((unknown.get("cpu"), unknown["containers"][0].get("cpu")), (None, None));
}
