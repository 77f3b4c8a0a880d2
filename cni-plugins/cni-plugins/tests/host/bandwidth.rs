//! `bandwidth` after `bridge`: how much really passes, each way, and what is left.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::node::{Call, Container, Node, host_links};

/// Bits a second: slow enough that nothing else is the limit, also under emulation.
const RATE: u64 = 16_000_000;
const BURST: u64 = 400_000;
/// What each measurement takes at this rate.
const SPAN: Duration = Duration::from_millis(750);
/// A machine that does something else in between makes a measurement slower, never faster.
const TRIES: usize = 8;

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "pods", "type": "bandwidth"})
}

/// How long the host takes to send the bytes of [`SPAN`] into the container, or the container to the host.
fn transfer(container: &Container, inside: IpAddr, into: bool) -> Duration {
    let bytes = usize::try_from((RATE * SPAN.as_millis() as u64 / 1000 + BURST) / 8).expect("it fits");
    let gateway: IpAddr = "10.97.0.1".parse().expect("an address");
    let at = SocketAddr::new(if into { inside } else { gateway }, 0);
    let listen = || TcpListener::bind(at).expect("a listener");
    let listener = if into { container.netns.run(listen).expect("a thread") } else { listen() };
    let to = listener.local_addr().expect("its address");
    let connect = || TcpStream::connect(to).expect("a connection");
    let mut sender = if into { connect() } else { container.netns.run(connect).expect("a thread") };
    let (mut receiver, _) = listener.accept().expect("the connection");
    let sending = std::thread::spawn(move || sender.write_all(&vec![0; bytes]).expect("a write"));
    let begin = Instant::now();
    let mut rest = Vec::with_capacity(bytes);
    receiver.read_to_end(&mut rest).expect("all of it");
    let taken = begin.elapsed();
    sending.join().expect("it was sent");
    assert_eq!(rest.len(), bytes);
    taken
}

/// Within 10 % of the limit: never faster, and as fast in the best of some tries.
fn assert_limited(container: &Container, inside: IpAddr, into: bool) {
    let within = SPAN.mul_f64(0.9)..SPAN.mul_f64(1.1);
    let mut all = Vec::new();
    for _ in 0..TRIES {
        let taken = transfer(container, inside, into);
        all.push(taken);
        assert!(taken >= within.start, "into {into}: faster than the limit, {taken:?} for {SPAN:?}");
        if within.contains(&taken) {
            return;
        }
    }
    panic!("into {into}: slower than the limit each time: {all:?} for {SPAN:?}");
}

#[test]
fn both_directions_are_limited_and_nothing_is_left() {
    let node = Node::new();
    let a = Container::new("a");
    let bridge = node.config("1.0.0");
    let before = host_links().len();
    let made = Call::new("ADD", &bridge, &a).run("bridge").expect("an attachment");
    let mut limits = config("1.0.0");
    limits["runtimeConfig"] = json!({"bandwidth": {
        "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST,
    }});
    limits["prevResult"] = made.clone();
    let result = Call::new("ADD", &limits, &a).run("bandwidth").expect("limits");
    let ifb = &result["interfaces"][3];
    assert!(ifb["name"].as_str().is_some_and(|name| name.starts_with("bwp") && name.len() == 15), "{ifb}");
    assert_eq!(result["ips"], made["ips"]);
    limits["prevResult"] = result;
    assert_eq!(Call::new("CHECK", &limits, &a).run("bandwidth"), Ok(Value::Null));

    let inside = "10.97.0.2".parse().expect("an address");
    assert_limited(&a, inside, true);
    assert_limited(&a, inside, false);

    limits["runtimeConfig"]["bandwidth"]["egressRate"] = json!(RATE * 2);
    let error = Call::new("CHECK", &limits, &a).run("bandwidth").expect_err("another rate");
    assert!(error["msg"].as_str().is_some_and(|msg| msg.starts_with("Rate doesn't match")), "{error}");
    for _ in 0..2 {
        assert_eq!(Call::new("DEL", &limits, &a).run("bandwidth"), Ok(Value::Null));
    }
    // The pair went along, and the bridge stays.
    assert_eq!(host_links().len(), before + 1);
    assert!(a.link("eth0").is_none());
    assert_eq!(Call::new("DEL", &bridge, &a).run("bridge"), Ok(Value::Null));
}

fn limits(made: &Value) -> Value {
    let mut limits = config("1.0.0");
    limits["runtimeConfig"] = json!({"bandwidth": {"egressRate": RATE, "egressBurst": BURST}});
    limits["prevResult"] = made.clone();
    limits
}

#[test]
fn a_second_link_that_could_not_be_limited_takes_nothing_from_the_first() {
    let node = Node::new();
    let a = Container::new("a");
    let bridge = node.config("1.0.0");
    let made = Call::new("ADD", &bridge, &a).run("bridge").expect("an attachment");
    let first = limits(&made);
    Call::new("ADD", &first, &a).run("bandwidth").expect("limits");
    let call = |verb, config| Call { ifname: "eth1", ..Call::new(verb, config, &a) };
    let second = limits(&call("ADD", &bridge).run("bridge").expect("another attachment"));
    let error = call("ADD", &second).run("bandwidth").expect_err("the container has a link of this name");
    assert!(error["msg"].as_str().is_some_and(|msg| msg.contains("exists")), "{error}");
    assert_eq!(call("DEL", &second).run("bandwidth"), Ok(Value::Null));
    assert_eq!(Call::new("CHECK", &first, &a).run("bandwidth"), Ok(Value::Null));
    assert_eq!(Call::new("DEL", &first, &a).run("bandwidth"), Ok(Value::Null));
    assert!(a.link("eth0").is_none() && a.link("eth1").is_some());
    for config in [call("DEL", &bridge), Call::new("DEL", &bridge, &a)] {
        assert_eq!(config.run("bridge"), Ok(Value::Null));
    }
}

/// An IPAM plugin named `dhcp` writes down the verbs whose container still had its link.
fn dhcp(node: &Node) -> String {
    let folder = node.path("bin");
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("dhcp");
    let answer = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.97.0.2/24"}]}"#;
    let script = format!(
        "#!/bin/sh\nnsenter --net=$CNI_NETNS ip link show $CNI_IFNAME > /dev/null && echo $CNI_COMMAND >> {}\n\
         [ $CNI_COMMAND = DEL ] || echo '{answer}'\n",
        node.path("calls").display()
    );
    std::fs::write(&file, script).expect("a script");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("it may run");
    folder.to_str().expect("a path of letters").to_owned()
}

#[test]
fn a_dhcp_server_is_still_told_through_the_link_that_the_address_is_free() {
    let node = Node::new();
    let a = Container::new("a");
    let path = dhcp(&node);
    let mut bridge = node.config("1.0.0");
    bridge["ipam"] = json!({"type": "dhcp"});
    bridge["isDefaultGateway"] = json!(false);
    let call = |verb, config| Call { path: &path, ..Call::new(verb, config, &a) };
    let made = call("ADD", &bridge).run("bridge").expect("an attachment");
    let limits = limits(&made);
    call("ADD", &limits).run("bandwidth").expect("limits");
    assert_eq!(call("DEL", &limits).run("bandwidth"), Ok(Value::Null));
    assert!(!host_links().iter().any(|link| link.is_kind("ifb") && link.name.starts_with("bwp")));
    assert_eq!(call("DEL", &bridge).run("bridge"), Ok(Value::Null));
    assert_eq!(std::fs::read_to_string(node.path("calls")).expect("its calls"), "ADD\nDEL\n");
}

#[test]
fn without_limits_the_result_passes_through() {
    let _node = Node::new();
    let a = Container::new("a");
    let mut passing = config("0.4.0");
    let error = Call::new("ADD", &passing, &a).run("bandwidth").expect_err("no previous result");
    assert_eq!(error["msg"], "must be called as chained plugin");
    passing["prevResult"] =
        json!({"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": a.path()}]});
    let result = Call::new("ADD", &passing, &a).run("bandwidth").expect("the same result");
    assert_eq!(result["interfaces"], passing["prevResult"]["interfaces"]);
    passing["egressRate"] = json!(8000);
    passing["egressBurst"] = json!(80000);
    let error = Call::new("ADD", &passing, &a).run("bandwidth").expect_err("there is no such link");
    assert_eq!(error["msg"], "container interface eth0 has no veth peer");
}

#[test]
fn gc_removes_what_belongs_to_no_valid_attachment() {
    let node = Node::new();
    let (keep, lost) = (Container::new("keep"), Container::new("lost"));
    let bridge = node.config("1.1.0");
    let mut limits = config("1.1.0");
    limits["egressRate"] = json!(RATE);
    limits["egressBurst"] = json!(BURST);
    for container in [&keep, &lost] {
        limits["prevResult"] = Call::new("ADD", &bridge, container).run("bridge").expect("an attachment");
        Call::new("ADD", &limits, container).run("bandwidth").expect("limits");
    }
    let ifbs = || host_links().iter().filter(|link| link.is_kind("ifb")).count();
    assert_eq!(ifbs(), 2);
    limits["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    assert_eq!(Call::new("GC", &limits, &keep).run("bandwidth"), Ok(Value::Null));
    assert_eq!(ifbs(), 1);
    limits["name"] = json!("others");
    limits["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(Call::new("GC", &limits, &keep).run("bandwidth"), Ok(Value::Null));
    assert_eq!(ifbs(), 1);
    limits["name"] = json!("pods");
    assert_eq!(Call::new("GC", &limits, &keep).run("bandwidth"), Ok(Value::Null));
    assert_eq!(ifbs(), 0);
    for container in [&keep, &lost] {
        assert_eq!(Call::new("DEL", &bridge, container).run("bridge"), Ok(Value::Null));
    }
}

#[test]
fn what_somebody_else_does_with_incoming_packets_stays() {
    let node = Node::new();
    let a = Container::new("a");
    let bridge = node.config("1.0.0");
    let limits = limits(&Call::new("ADD", &bridge, &a).run("bridge").expect("an attachment"));
    let port = host_links().into_iter().find(|link| link.is_kind("veth")).expect("the port").name;
    let tc = |arguments: &[&str]| {
        let output = std::process::Command::new("tc").args(arguments).output().expect("tc starts");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    tc(&["qdisc", "add", "dev", &port, "clsact"]);
    let error = Call::new("ADD", &limits, &a).run("bandwidth").expect_err("its place is taken");
    assert!(error["msg"].as_str().is_some_and(|msg| msg.contains("exists")), "{error}");
    assert!(tc(&["qdisc", "show", "dev", &port]).contains("clsact"));
    assert!(!host_links().iter().any(|link| link.is_kind("ifb") && link.name.starts_with("bwp")));
    assert_eq!(Call::new("DEL", &bridge, &a).run("bridge"), Ok(Value::Null));
}
