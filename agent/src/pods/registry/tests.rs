use serde_json::json;

use super::*;

fn pod(status: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
        "status": {"containerStatuses": [status]},
    }))
    .unwrap()
}

fn base(state: serde_json::Value, last: serde_json::Value) -> serde_json::Value {
    json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "containerID": "orlop://2",
        "state": state, "lastState": last})
}

fn lookup(
    state: serde_json::Value,
    last: serde_json::Value,
    previous: bool,
) -> Result<ContainerRef, LookupError> {
    let registry = Registry::default();
    let reference = |id: &str, running| ContainerRef {
        id: runtime::ContainerId::from(id.to_owned()),
        name: "a".into(),
        log_path: PathBuf::new(),
        running,
        tty: false,
        stdin: false,
    };
    let containers = [("1".to_owned(), reference("1", false)), ("2".to_owned(), reference("2", true))];
    let entry = Entry { pod: Arc::new(pod(base(state, last))), containers: containers.into(), netns: None };
    registry.entries.write().unwrap().insert("u".into(), entry);
    registry.container("ns", "p", Some("a"), previous)
}

#[test]
fn the_right_container_is_found() {
    let ended = json!({"terminated": {"exitCode": 1, "containerID": "orlop://1"}});
    let running = json!({"running": {}});
    let id = |result: Result<ContainerRef, LookupError>| result.unwrap().id.to_string();
    assert_eq!(id(lookup(running.clone(), ended.clone(), false)), "2");
    assert_eq!(id(lookup(running, ended.clone(), true)), "1");
    assert_eq!(id(lookup(json!({"waiting": {"reason": "CrashLoopBackOff"}}), ended, false)), "1");
}

#[test]
fn errors_in_the_words_of_the_kubelet() {
    let text = |state, last, previous| lookup(state, last, previous).unwrap_err().to_string();
    assert_eq!(
        text(json!({"waiting": {"reason": "ContainerCreating"}}), json!({}), false),
        "container \"a\" in pod \"p\" is waiting to start: ContainerCreating"
    );
    assert_eq!(
        text(json!({"waiting": {"reason": "ErrImagePull"}}), json!({}), false),
        "container \"a\" in pod \"p\" is waiting to start: image can't be pulled"
    );
    assert_eq!(
        text(json!({"running": {}}), json!({}), true),
        "previous terminated container \"a\" in pod \"p\" not found"
    );
    let pod = pod(base(json!({}), json!({})));
    assert_eq!(
        container_name(&pod, Some("x")).unwrap_err().to_string(),
        "container x is not valid for pod p"
    );
    assert_eq!(
        container_name(&pod, None).unwrap_err().to_string(),
        "a container name must be specified for pod p, choose one of: [a b]"
    );
}
