//! The daemon while it cannot open files, while servers answer nonsense, and while calls overtake each other.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    process::Command,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use linux::netlink::Netlink;
use serde_json::{Value, json};

use super::{
    DISCOVER, LIMIT, Process, REQUEST, config, kept, lan, messages, serve, server, socket, start, times,
    wait_for,
};
use crate::host::node::{Call, Container, Node, bin_dir, block_on};

/// A limit of open files below what any daemon has open.
const NONE: u32 = 3;
const ENOUGH: u32 = 1024;

/// A daemon whose words are kept in a file, and which is started with few files and may have more.
pub fn told(node: &Node, flags: &[&str]) -> Process {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile=256:{ENOUGH}")).arg(bin_dir().join("dhcp"));
    command.stderr(File::create(node.path("told")).expect("a file"));
    start(node, &mut command, flags)
}

/// How often the daemon said this.
pub fn times_told(node: &Node, text: &str) -> usize {
    fs::read_to_string(node.path("told")).expect("the daemon's words").matches(text).count()
}

pub fn wait_until_told(node: &Node, text: &str) {
    harness::wait::until(text, LIMIT, || match times_told(node, text) {
        0 => Err("not told".to_owned()),
        _ => Ok(()),
    });
}

/// What the running daemon may open.
fn limit_files(daemon: &Process, files: u32) {
    let pid = daemon.0.id().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:")]).status();
    assert!(status.expect("prlimit starts").success());
}

fn open_files(daemon: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.0.id())).expect("the daemon's files").count()
}

#[test]
fn a_dhcp_daemon_that_can_open_nothing_keeps_the_lease() {
    let node = Node::new();
    let _server = serve(&node, 5);
    let messages = messages();
    let daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    wait_for(&messages, DISCOVER);
    wait_for(&messages, REQUEST);

    limit_files(&daemon, NONE);
    wait_until_told(&node, "Too many open files");
    limit_files(&daemon, ENOUGH);
    assert_eq!(kept(&node), 1);
    wait_for(&messages, REQUEST);
    assert_eq!(Call::new("CHECK", &config, &a).run("dhcp"), Ok(Value::Null));
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
    assert_eq!(kept(&node), 0);
}

#[test]
fn a_dhcp_lease_that_is_over_takes_its_link_down_as_soon_as_that_can_be_done() {
    let node = Node::new();
    lan();
    let server = server(&node, &format!("option subnet 255.255.255.0\n{}", times(10, 5)));
    let daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    server.kill();

    limit_files(&daemon, NONE);
    wait_until_told(&node, "is over");
    assert!(a.link("eth0").expect("the link").up);
    limit_files(&daemon, ENOUGH);
    harness::wait::until("the link goes down", LIMIT, || match a.link("eth0").expect("the link").up {
        true => Err("it is up".to_owned()),
        false => Ok(()),
    });
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
    assert_eq!(kept(&node), 0);
}

#[test]
fn a_dhcp_lease_that_expired_is_asked_for_once_more() {
    let node = Node::new();
    let forgetful = serve(&node, 1800);
    let daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    daemon.kill();
    forgetful.kill();
    let file =
        fs::read_dir(node.path("dhcp")).expect("the leases").next().expect("one").expect("a file").path();
    let read = || serde_json::from_slice::<Value>(&fs::read(&file).expect("the file")).expect("a lease");
    let mut held = read();
    for time in ["renew_at", "rebind_at", "expire_at"] {
        held["lease"][time] = 1.into();
    }
    fs::write(&file, held.to_string()).expect("the file");

    // It does not know the lease any more, so that the address is asked for anew.
    let _server = server(&node, &format!("option subnet 255.255.255.0\n{}", times(3600, 1800)));
    let _daemon = told(&node, &[]);
    harness::wait::until("the lease lasts again", LIMIT, || {
        if fs::exists(&file).expect("a look") && read()["lease"]["expire_at"] != 1 {
            return Ok(());
        }
        Err(fs::read_to_string(node.path("told")).expect("the daemon's words"))
    });
    assert!(a.link("eth0").expect("the link").up);
    assert_eq!(read()["lease"]["address"], held["lease"]["address"]);
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
    assert_eq!(kept(&node), 0);
}

#[test]
fn a_dhcp_daemon_that_cannot_accept_goes_on() {
    let node = Node::new();
    let daemon = told(&node, &[]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.0.id())).expect("its limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("the limit of files");
    assert_eq!(files.split_whitespace().filter(|word| *word == ENOUGH.to_string()).count(), 2, "{files}");

    limit_files(&daemon, NONE);
    let connection = UnixStream::connect(socket(&node)).expect("a place in the kernel's queue");
    wait_until_told(&node, "Too many open files");
    limit_files(&daemon, ENOUGH);
    drop(connection);
    let a = Container::new("a");
    assert_eq!(Call::new("STATUS", &config(&node), &a).run("dhcp"), Ok(Value::Null));
}

/// A link of the container that asks no daemon for its address.
pub fn attach(container: &Container) {
    let config = json!({"cniVersion": "1.1.0", "name": "links", "type": "bridge"});
    Call::new("ADD", &config, container).run("bridge").expect("a link");
}

#[test]
fn a_dhcp_add_ends_with_its_plugin() {
    let node = Node::new();
    lan();
    let messages = messages();
    let daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    attach(&a);
    assert_eq!(Call::new("STATUS", &config, &a).run("dhcp"), Ok(Value::Null));
    let before = open_files(&daemon);
    let plugin = Process(Call::new("ADD", &config, &a).start("dhcp"));
    wait_for(&messages, DISCOVER);
    plugin.kill();
    harness::wait::until("the daemon gives the ADD up", LIMIT, || match open_files(&daemon) {
        files if files <= before => Ok(()),
        files => Err(format!("{files} files, after {before}")),
    });
    wait_until_told(&node, "the plugin ended before its answer");
    assert_eq!(Call::new("DEL", &config, &a).run("dhcp"), Ok(Value::Null));
    assert_eq!(kept(&node), 0);
}

#[test]
fn a_dhcp_del_ends_the_add_before_it() {
    let node = Node::new();
    lan();
    let messages = messages();
    let _daemon = told(&node, &["-resendtimeout=15s"]);
    let a = Container::new("a");
    let mut config = config(&node);
    attach(&a);
    for verb in ["DEL", "GC"] {
        if verb == "GC" {
            config["cni.dev/valid-attachments"] = json!([]);
        }
        thread::scope(|scope| {
            let added = scope.spawn(|| Call::new("ADD", &config, &a).run("dhcp"));
            wait_for(&messages, DISCOVER);
            assert_eq!(Call::new(verb, &config, &a).run("dhcp"), Ok(Value::Null));
            let ended = added.join().expect("its thread").expect_err("no lease");
            assert_eq!(ended["msg"], "a DEL or GC of the same attachment came before the lease");
        });
        while messages.try_recv().is_ok() {}
    }
    let _server = server(&node, &format!("option subnet 255.255.255.0\n{}", times(3600, 1800)));
    Call::new("ADD", &config, &a).run("dhcp").expect("a lease");
    assert_eq!(kept(&node), 1);
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
    assert_eq!(kept(&node), 0);
}

#[test]
fn a_dhcp_server_whose_acknowledgements_are_no_leases_is_not_asked_at_once_again() {
    let node = Node::new();
    let server_of_leases = serve(&node, 5);
    let _daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    let result = Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    server_of_leases.kill();
    let mac = a.link("eth0").and_then(|link| link.mac).expect("its hardware address");
    let address = result["ips"][0]["address"].as_str().expect("an address");
    let address = address.split('/').next().expect("an address");
    let _server = server(&node, &format!("static_lease {mac} {address}\n{}", times(3600, 5)));

    wait_until_told(&node, "Subnet Mask not found");
    for _ in 0..5 {
        assert_eq!(Call::new("CHECK", &config, &a).run("dhcp"), Ok(Value::Null));
    }
    assert_eq!(times_told(&node, "Subnet Mask not found"), 1);
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
}

#[test]
fn dhcp_adds_that_wait_for_a_server_are_in_nobody_elses_way() {
    const ADDS: usize = 8;
    const SEARCH: Duration = Duration::from_secs(12);
    let node = Node::new();
    lan();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=64:64").arg(bin_dir().join("dhcp"));
    let _daemon =
        start(&node, &mut command, &["-timeout=1s", &format!("-resendtimeout={}s", SEARCH.as_secs())]);
    let messages = messages();
    let containers: Vec<Container> = (0..ADDS).map(|index| Container::new(&format!("a{index}"))).collect();
    let other = Container::new("other");
    let config = config(&node);
    let (send, answers) = channel();
    thread::scope(|scope| {
        for container in &containers {
            let (send, config) = (send.clone(), &config);
            scope.spawn(move || send.send(Call::new("ADD", config, container).run("bridge")));
        }
        wait_for(&messages, DISCOVER);
        // One looks for a server and one waits for it: with so few files the others are told to come again.
        for _ in 2..ADDS {
            let refused = answers.recv_timeout(LIMIT).expect("an answer").expect_err("no place");
            assert_eq!(refused["code"], 11, "{refused}");
        }
        let begin = Instant::now();
        for verb in ["DEL", "STATUS"] {
            assert_eq!(Call::new(verb, &config, &other).run("dhcp"), Ok(Value::Null));
        }
        assert!(begin.elapsed() < SEARCH / 3, "{:?}", begin.elapsed());
    });
}

fn delete_link(container: &Container) {
    block_on(async {
        let netlink = Netlink::open_in(&container.netns).expect("a socket");
        let link = netlink.link("eth0").await.expect("the link");
        netlink.del_link(link.index).await.expect("it goes");
    });
}

#[test]
fn a_dhcp_del_without_the_link_says_that_the_server_is_not_told() {
    let node = Node::new();
    let _server = serve(&node, 1800);
    let _daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    delete_link(&a);
    assert_eq!(Call::new("DEL", &config, &a).run("dhcp"), Ok(Value::Null));
    assert_eq!(kept(&node), 0);
    assert_eq!(times_told(&node, "the server is not told"), 1);
}

#[test]
fn a_dhcp_lease_of_a_link_that_is_gone_is_given_up() {
    let node = Node::new();
    let _server = serve(&node, 5);
    let _daemon = told(&node, &[]);
    let a = Container::new("a");
    let config = config(&node);
    Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    delete_link(&a);
    wait_until_told(&node, "is given up");
    harness::wait::until("the lease is forgotten", LIMIT, || match kept(&node) {
        0 => Ok(()),
        count => Err(format!("{count} files")),
    });
}
