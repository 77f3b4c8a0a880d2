//! What a plugin leaves to a process of its own, so that the runtime does not wait for it.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};

use super::node::{Call, Container, Node, plugins, wait_for_plugins};

const LIMIT: Duration = Duration::from_secs(60);

/// What a process has open; empty when it is gone.
fn open_files(process: &Path) -> Vec<String> {
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let mut targets: Vec<String> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
    targets.sort();
    targets
}

#[test]
fn nobody_waits_until_deleted_rules_are_freed() {
    let node = Node::new();
    let a = Container::new("a");
    let config = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "portmap", "snat": false,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.97.0.2/24"}]},
    });
    let call = |verb: &str| Call::new(verb, &config, &a).run("portmap").expect("success");
    // It is there for some milliseconds.
    let left = harness::wait::until("a process that goes on after DEL", LIMIT, || {
        call("ADD");
        wait_for_plugins();
        assert_eq!(call("DEL"), Value::Null);
        match plugins().first().map(|process| open_files(process)) {
            Some(files) if files.len() == 4 => Ok(files),
            seen => Err(format!("{seen:?}")),
        }
    });
    // It holds up no reader of the plugin's output and no lock.
    assert!(left[..3].iter().all(|file| file == "/dev/null") && left[3].starts_with("socket:["), "{left:?}");
    wait_for_plugins();
    drop(node);
}
