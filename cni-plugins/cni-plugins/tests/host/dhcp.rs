//! `dhcp` and its daemon, against busybox's server: the address, renewals across a killed daemon, release.

mod activation;
mod scripted;
mod trouble;

use std::{
    fs,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use linux::{
    netlink::{BridgeOptions, Netlink, NewAddress},
    netns::Netns,
    packet::PacketSocket,
};
use serde_json::{Value, json};

use super::node::{Call, Container, Node, bin_dir, block_on};

const LIMIT: Duration = Duration::from_secs(20);
const SERVER_PORT: u16 = 67;
/// Where the options of a message begin, after the cookie; and the option that says its kind.
const OPTIONS: usize = 28 + 240;
const KIND: u8 = 53;
const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;
const RELEASE: u8 = 7;
/// Of the time after which a lease is to be renewed (T1).
const RENEWAL: u8 = 58;

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts"))
    }

    /// `SIGKILL`.
    fn kill(mut self) {
        self.0.kill().expect("a signal");
        self.0.wait().expect("its end");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bridge with a server on it, whose leases take an hour and are to be renewed after so many seconds.
fn serve(node: &Node, renewal: u32) -> Process {
    lan();
    server(node, &format!("option subnet 255.255.255.0\n{}", times(3600, renewal)))
}

/// A bridge where nobody serves yet.
fn lan() {
    block_on(async {
        let netlink = Netlink::open().expect("a socket");
        netlink
            .add_bridge(&BridgeOptions { name: "cni0".to_owned(), ..BridgeOptions::default() })
            .await
            .expect("it");
        let bridge = netlink.link("cni0").await.expect("the bridge");
        let address = "10.55.0.1/24".parse().expect("a network");
        netlink.add_address(&NewAddress::new(bridge.index, address)).await.expect("an address");
        netlink.set_link_up(bridge.index).await.expect("it goes up");
    });
}

/// The server's options for a lease of so many seconds, to be renewed after so many.
fn times(lease: u32, renewal: u32) -> String {
    format!("option lease {lease}\noption 0x{RENEWAL:x} {renewal:08x}\n")
}

/// A server on the bridge that gives routers and these options.
fn server(node: &Node, options: &str) -> Process {
    let (leases, config) = (node.path("udhcpd.leases"), node.path("udhcpd.conf"));
    fs::write(&leases, "").expect("a file");
    let text = format!(
        "interface cni0\nstart 10.55.0.20\nend 10.55.0.29\nlease_file {}\npidfile {}\nmin_lease 1\n\
         option router 10.55.0.1\n{options}",
        leases.display(),
        node.path("udhcpd.pid").display()
    );
    fs::write(&config, text).expect("a file");
    Process::start(
        Command::new("busybox").args(["udhcpd", "-f", "-a", "0"]).arg(config).stderr(Stdio::null()),
    )
}

/// The kinds of messages that reach the server's bridge, seen by a socket of the test's own.
fn messages() -> Receiver<u8> {
    let (send, receive) = channel();
    let netns = Netns::current().expect("own namespace");
    std::thread::spawn(move || {
        block_on(async {
            let link = Netlink::open().expect("a socket").link("cni0").await.expect("the bridge");
            let socket = PacketSocket::open_in(&netns, link.index, SERVER_PORT).expect("a socket");
            let mut buffer = [0; 2048];
            while let Ok(length) = socket.receive(&mut buffer).await {
                let mut options = buffer.get(OPTIONS..length).unwrap_or_default();
                while let [code, size, rest @ ..] = options {
                    if *code == KIND && send.send(rest[0]).is_err() {
                        return;
                    }
                    options = rest.get(usize::from(*size)..).unwrap_or_default();
                }
            }
        });
    });
    receive
}

fn wait_for(messages: &Receiver<u8>, kind: u8) {
    loop {
        let seen =
            messages.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("no message of kind {kind}: {error}"));
        if seen == kind {
            return;
        }
    }
}

fn socket(node: &Node) -> PathBuf {
    node.path("dhcp.sock")
}

fn daemon(node: &Node) -> Process {
    start(node, &mut Command::new(bin_dir().join("dhcp")), &[])
}

/// Starts the daemon by a command that ends in its executable.
fn start(node: &Node, command: &mut Command, flags: &[&str]) -> Process {
    command.args(["daemon", "-timeout=2s", "-socketpath"]).arg(socket(node)).args(flags);
    let daemon = Process::start(command);
    harness::wait::until("the daemon", LIMIT, || {
        UnixStream::connect(socket(node)).map_err(|error| error.to_string())
    });
    daemon
}

fn config(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "lan", "type": "bridge",
        "ipam": {"type": "dhcp", "daemonSocketPath": socket(node), "priority": 50},
    })
}

fn kept(node: &Node) -> usize {
    fs::read_dir(node.path("dhcp")).map_or(0, |entries| entries.count())
}

#[test]
fn a_lease_is_taken_renewed_and_given_back() {
    let node = Node::new();
    let _server = serve(&node, 5);
    let messages = messages();
    let a = Container::new("a");
    let config = config(&node);
    let error = Call::new("ADD", &config, &a).run("bridge").expect_err("no daemon");
    assert!(error["msg"].as_str().is_some_and(|msg| msg.contains("start it with `dhcp daemon`")), "{error}");
    assert_eq!(Call::new("STATUS", &config, &a).run("bridge").expect_err("no daemon")["code"], 50);

    let first = daemon(&node);
    assert_eq!(Call::new("STATUS", &config, &a).run("bridge"), Ok(Value::Null));
    let result = Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    let address = result["ips"][0]["address"].as_str().expect("an address");
    assert!(address.starts_with("10.55.0.2") && address.ends_with("/24"), "{result}");
    assert_eq!(result["ips"][0]["gateway"], "10.55.0.1");
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.55.0.1", "priority": 50}]));
    a.talks_to(None, "10.55.0.1".parse().expect("an address"));
    wait_for(&messages, DISCOVER);
    wait_for(&messages, REQUEST);

    let mut checked = config.clone();
    checked["prevResult"] = result.clone();
    assert_eq!(Call::new("CHECK", &checked, &a).run("bridge"), Ok(Value::Null));
    wait_for(&messages, REQUEST);
    first.kill();
    assert_eq!(kept(&node), 1);
    // The next daemon renews what the killed one held, and has the same lease for a repeated ADD of the plugin.
    let _second = daemon(&node);
    wait_for(&messages, REQUEST);
    let again = Call::new("ADD", &config, &a).run("dhcp").expect("the lease");
    assert_eq!(again["ips"][0]["address"], result["ips"][0]["address"]);

    for _ in 0..2 {
        assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
    }
    wait_for(&messages, RELEASE);
    assert_eq!(kept(&node), 0);
    let error = Call::new("CHECK", &config, &a).run("dhcp").expect_err("no lease");
    assert_eq!(error["msg"], "no DHCP lease of a/lan/eth0");
}

#[test]
fn gc_gives_back_what_belongs_to_no_valid_attachment() {
    let node = Node::new();
    let _server = serve(&node, 1800);
    let messages = messages();
    let _daemon = daemon(&node);
    let (keep, lost) = (Container::new("keep"), Container::new("lost"));
    let mut config = config(&node);
    for container in [&keep, &lost] {
        Call::new("ADD", &config, container).run("bridge").expect("an attachment");
    }
    assert_eq!(kept(&node), 2);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    assert_eq!(Call::new("GC", &config, &keep).run("dhcp"), Ok(Value::Null));
    wait_for(&messages, RELEASE);
    assert_eq!(kept(&node), 1);
    for container in [&keep, &lost] {
        assert_eq!(Call::new("DEL", &config, container).run("bridge"), Ok(Value::Null));
    }
    assert_eq!(kept(&node), 0);
}

#[test]
fn without_a_server_an_add_fails_and_leaves_nothing() {
    let node = Node::new();
    let a = Container::new("a");
    let mut command = Command::new(bin_dir().join("dhcp"));
    command
        .arg("daemon")
        .arg("--socketpath")
        .arg(socket(&node))
        .args(["-resendtimeout=300ms", "-timeout=100ms"]);
    let _daemon = Process::start(&mut command);
    harness::wait::until("the daemon", LIMIT, || {
        UnixStream::connect(socket(&node)).map_err(|error| error.to_string())
    });
    let error = Call::new("ADD", &config(&node), &a).run("bridge").expect_err("no server");
    assert_eq!(error["msg"], "no DHCP server answered within 300ms");
    assert!(a.link("eth0").is_none());
    assert_eq!(kept(&node), 0);
}

/// What a daemon with these flags says that does not start.
fn refused(node: &Node, flags: &[&str]) -> String {
    let mut command = Command::new(bin_dir().join("dhcp"));
    let output = command.args(["daemon", "-socketpath"]).arg(socket(node)).args(flags).output();
    let output = output.expect("it ends");
    assert!(!output.status.success());
    String::from_utf8(output.stderr).expect("text")
}

/// `SIGTERM`, and its end.
fn end(mut daemon: Process) {
    let pid = daemon.0.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().expect("kill starts").success());
    let ended = harness::wait::until("the daemon ends", LIMIT, || {
        daemon.0.try_wait().map_err(|error| error.to_string())?.ok_or_else(|| "it runs".to_owned())
    });
    assert!(ended.success(), "{ended}");
}

#[test]
fn a_second_dhcp_daemon_is_refused_and_leaves_the_first_alone() {
    let node = Node::new();
    let first = daemon(&node);
    let another = node.path("another.sock");
    for flags in [&[][..], &["-socketpath", another.to_str().expect("text")]] {
        let told = refused(&node, flags);
        assert!(told.contains("another daemon has the leases"), "{told}");
    }
    assert_eq!(Call::new("STATUS", &config(&node), &Container::new("a")).run("dhcp"), Ok(Value::Null));
    end(first);
    assert!(!socket(&node).exists());

    let _reference = UnixListener::bind(socket(&node)).expect("a listener");
    let told = refused(&node, &[]);
    assert!(told.contains("another daemon answers there"), "{told}");
}

#[test]
fn a_dhcp_daemon_takes_along_no_socket_but_its_own() {
    let node = Node::new();
    let first = daemon(&node);
    fs::remove_file(socket(&node)).expect("its socket");
    let _systemd = UnixListener::bind(socket(&node)).expect("a listener");
    end(first);
    assert!(socket(&node).exists(), "the file is systemd's");
}

#[test]
fn a_dhcp_daemon_that_cannot_start_leaves_no_files() {
    let node = Node::new();
    // It cannot be read as what a killed daemon was writing.
    fs::create_dir_all(node.path("dhcp/lease.new")).expect("a folder");
    let pid_file = node.path("dhcp.pid");
    let told = refused(&node, &["-pidfile", pid_file.to_str().expect("text")]);
    assert!(told.contains("read the leases"), "{told}");
    assert!(!socket(&node).exists() && !pid_file.exists());
}
