//! IPAM plugins that misbehave, under `ptp`: what was made is gone, and what could not be undone is told.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::{Value, json};

use super::node::{Call, Container, Node, host_state};

/// An IPAM plugin that writes its verbs down, and does for each what this shell script says.
fn ipam(node: &Node, script: &str) -> String {
    let folder = node.path("bin");
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("fake");
    let calls = node.path("calls");
    let text = format!("#!/bin/sh\necho $CNI_COMMAND >> {}\ncat > /dev/null\n{script}\n", calls.display());
    fs::write(&file, text).expect("a script");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("it may run");
    folder.to_str().expect("a path of letters").to_owned()
}

fn add(node: &Node, container: &Container, path: &str) -> Value {
    let config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "ptp", "ipam": {"type": "fake"}});
    let before = (host_state(), container.state());
    let call = Call { path, ..Call::new("ADD", &config, container) };
    let error = call.run("ptp").expect_err("a failure");
    assert_eq!((host_state(), container.state()), before);
    let calls = fs::read_to_string(node.path("calls")).expect("its calls");
    fs::remove_file(node.path("calls")).expect("its calls");
    json!([calls.split_whitespace().collect::<Vec<_>>(), error["code"], error["msg"], error["details"]])
}

#[test]
fn addresses_that_cannot_be_read_or_used_are_released() {
    let node = Node::new();
    let a = Container::new("a");
    let path = ipam(&node, "[ $CNI_COMMAND = DEL ] || echo '{\"cniVersion\": \"1.0.0\", \"ips\": 7}'");
    let unreadable = "result of plugin \"fake\": result: key \"ips\": expected an array, found 7";
    assert_eq!(add(&node, &a, &path), json!([["ADD", "DEL"], 6, unreadable, null]));
    let path = ipam(&node, "[ $CNI_COMMAND = DEL ] || echo '{\"cniVersion\": \"1.0.0\"}'");
    assert_eq!(
        add(&node, &a, &path),
        json!([["ADD", "DEL"], 999, "IPAM plugin returned missing IP config", null])
    );
    let none = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.97.0.2/24"}]}"#;
    let path = ipam(&node, &format!("[ $CNI_COMMAND = DEL ] || echo '{none}'"));
    let message = "IPAM plugin gave 10.97.0.2/24 without a gateway, which ptp needs";
    assert_eq!(add(&node, &a, &path), json!([["ADD", "DEL"], 999, message, null]));
}

#[test]
fn a_plugin_that_gave_nothing_is_asked_to_release_nothing() {
    let node = Node::new();
    let a = Container::new("a");
    // A lease of an earlier attachment would be lost.
    let path = ipam(&node, "echo '{\"code\": 11, \"msg\": \"later\"}'; exit 1");
    assert_eq!(add(&node, &a, &path), json!([["ADD"], 11, "later", null]));
}

#[test]
fn what_could_not_be_undone_is_told() {
    let node = Node::new();
    let a = Container::new("a");
    let refusal = "echo '{\"code\": 999, \"msg\": \"stuck\"}'; exit 1";
    let path = ipam(&node, &format!("[ $CNI_COMMAND = ADD ] && echo '{{}}' && exit 0; {refusal}"));
    let message = "IPAM plugin returned missing IP config";
    assert_eq!(add(&node, &a, &path), json!([["ADD", "DEL"], 999, message, "undo: stuck"]));
}
