use serde_json::json;

use super::*;
use crate::pods::observed::NodeFacts;
use crate::pods::resources::Amounts;

fn build(container: serde_json::Value) -> Result<ContainerConfig, ConfigError> {
    build_where(container, false)
}

fn build_where(container: serde_json::Value, group_oom_kill: bool) -> Result<ContainerConfig, ConfigError> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"containers": [container]},
    }))
    .unwrap();
    let node = NodeFacts { name: "n1".into(), ips: Vec::new(), memory: 1 << 34 };
    let allocatable = Amounts::default();
    let image = Image {
        id: "sha256:0".into(),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        size: 0,
        uid: Some(0),
        username: String::new(),
        pinned: false,
    };
    let objects = Objects::default();
    let inputs = Inputs {
        source: Source { pod: &pod, pod_ips: &[], node: &node, allocatable: &allocatable },
        restarts: 3,
        objects: &objects,
        services: Vec::new(),
        mounts: Vec::new(),
        message_file: "/pods/u/message".into(),
        image: &image,
        group_oom_kill,
    };
    config(&pod.spec.as_ref().unwrap().containers[0], inputs)
}

#[test]
fn command_and_names() {
    let config = build(json!({
        "name": "c", "image": "busybox", "command": ["sh", "-c"], "args": ["echo $(A) $(B)"],
        "env": [{"name": "A", "value": "1"}], "tty": true, "lifecycle": {"stopSignal": "SIGUSR1"},
    }))
    .unwrap();
    assert_eq!(config.args, ["echo 1 $(B)"]);
    assert_eq!(config.log_path, "c/3.log");
    assert_eq!(config.attempt, 3);
    assert_eq!(config.stop_signal, "SIGUSR1");
    assert!(config.tty);
    assert_eq!(labels::get(&config.annotations, labels::RESTART_COUNT), "3");
    assert_eq!(labels::get(&config.annotations, labels::MESSAGE_PATH), "/dev/termination-log");
    assert_eq!(labels::get(&config.labels, labels::CONTAINER_NAME), "c");
}

#[test]
fn limits_of_the_control_group() {
    let config = build(json!({"name": "c", "resources": {
        "requests": {"cpu": "250m"}, "limits": {"cpu": "500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"}}}))
    .unwrap();
    let resources = config.resources;
    assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.cpu_period), (256, 50_000, 100_000));
    assert_eq!((resources.memory_limit, resources.memory_swap_limit), (64 << 20, 64 << 20));
    assert_eq!(resources.hugepage_limits, [("2MB".to_owned(), 4 << 20)]);
    assert_eq!(resources.oom_score_adj, Some(997));
    assert!(resources.unified.is_empty());
}

#[test]
fn out_of_memory_the_whole_container_ends_where_the_kernel_can_do_that() {
    let unified =
        |group_oom_kill| build_where(json!({"name": "c"}), group_oom_kill).unwrap().resources.unified;
    assert_eq!(unified(true), [("memory.oom.group".to_owned(), "1".to_owned())].into());
    assert!(unified(false).is_empty(), "v1 refuses files of v2");
}

#[test]
fn errors_come_in_the_words_of_the_kubelet() {
    let error = build(json!({"name": "c", "env": [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}));
    assert_eq!(error.unwrap_err().to_string(), "configmap \"m\" not found");
}
