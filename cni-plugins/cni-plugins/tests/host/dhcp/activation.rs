//! The daemon under systemd's socket unit: it takes the socket that is handed over, or says why not.

use std::{
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{Process, config, end, kept, serve, socket};
use crate::host::node::{Call, Container, Node, bin_dir};

/// A daemon that is started as systemd starts a service with so many sockets, the first of which is descriptor 3.
fn activated(node: &Node, first: OwnedFd, count: u32) -> Command {
    let script = format!("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS={count} exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(bin_dir().join("dhcp")).arg("daemon");
    command.arg("-socketpath").arg(socket(node)).stdin(Stdio::from(first));
    command
}

fn listener(node: &Node) -> UnixListener {
    UnixListener::bind(socket(node)).expect("a listener")
}

#[test]
fn a_dhcp_daemon_serves_at_the_socket_that_systemd_hands_over() {
    let node = Node::new();
    let _server = serve(&node, 1800);
    let daemon = Process(
        activated(&node, listener(&node).into(), 1).stdout(Stdio::null()).spawn().expect("it starts"),
    );
    let a = Container::new("a");
    let config = config(&node);
    Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    assert_eq!(kept(&node), 1);
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
    assert_eq!(kept(&node), 0);

    end(daemon);
    assert!(socket(&node).exists(), "the file is systemd's");
}

#[test]
fn a_dhcp_daemon_refuses_what_it_cannot_serve_at() {
    let node = Node::new();
    let file = std::fs::File::open("/dev/null").expect("a file");
    for (first, count, why) in [
        (OwnedFd::from(file), 1, "descriptor 3 from systemd: expected a listening unix stream socket"),
        (listener(&node).into(), 2, "2 sockets: expected one"),
    ] {
        let output = activated(&node, first, count).output().expect("it ends");
        let told = String::from_utf8(output.stderr).expect("text");
        assert!(!output.status.success() && told.contains(why), "{told}");
    }
}
