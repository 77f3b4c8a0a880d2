//! What a node answers through the API server: logs, streams, and why there are none. And a shell in a node.

use std::process::Command;

use e2e::cluster::Cluster;

#[test]
fn a_node_says_why_there_are_no_logs_and_no_streams() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("no-streams");
    kubectl.run(&["run", "b", "--image=127.0.0.1:1/nothing:v1"]);
    let waiting = [
        "Error from server (BadRequest): container \"b\" in pod \"b\" is waiting to start: image can't be pulled",
        "Error from server (BadRequest): container \"b\" in pod \"b\" is waiting to start: trying and failing to pull image",
    ];
    kubectl.wait("the logs say that the image is missing", || {
        let error = kubectl.fail(&["logs", "b"]);
        if waiting.contains(&error.trim_end()) { Ok(()) } else { Err(error) }
    });
    let error = kubectl.fail(&["exec", "b", "--", "true"]);
    assert!(
        error.contains("Error from server (BadRequest): unable to upgrade connection: container"),
        "{error}"
    );
    let error = kubectl.fail(&["logs", "nobody"]);
    assert!(error.contains("(NotFound): pods \"nobody\" not found"), "{error}");
    kubectl.run_idle("a");
    let error = kubectl.fail(&["logs", "a", "--previous"]);
    let expected =
        "Error from server (BadRequest): previous terminated container \"a\" in pod \"a\" not found\n";
    assert_eq!(error, expected);
}

#[test]
fn a_shell_opens_inside_a_node() {
    let cluster = Cluster::get();
    let ask = |node: &str, command: &[&str]| {
        let mut shell = Command::new(cluster.file("target/dist-debug/bin/orlopctl"));
        shell.args(["node-shell", "--dir", &cluster.file("target/up"), node, "--"]).args(command);
        shell.output().expect("orlopctl starts")
    };
    let said = ask("node-1", &["sh", "-c", "hostname; ls /run/orlop/agent.sock; exit 7"]);
    assert_eq!(String::from_utf8_lossy(&said.stdout), "node-1\n/run/orlop/agent.sock\n");
    assert_eq!(said.status.code(), Some(7));
    let said = ask("node-9", &["true"]);
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(error.contains("is there such a node, and is it up?"), "{error}");
}
