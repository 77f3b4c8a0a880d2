//! `flannel`: the attachment that it has another plugin make, and how it is found again.

use std::fs;

use serde_json::{Value, json};

use super::{
    delegate::plugin,
    node::{Call, Container, Node, host_links},
};

const SUBNET: &str =
    "FLANNEL_NETWORK=10.96.0.0/12\nFLANNEL_SUBNET=10.97.1.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n";

fn config(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "flannel",
        "subnetFile": node.path("subnet.env"), "dataDir": node.path("kept"),
        "delegate": {"hairpinMode": true}, "ipam": {"dataDir": node.path("leases")},
    })
}

#[test]
fn a_container_is_attached_in_the_nodes_subnet_and_detached_after_it_changed() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = config(&node);
    let unavailable = Call::new("STATUS", &config, &a).run("flannel").expect_err("no daemon yet");
    assert_eq!(unavailable["code"], 50);
    assert!(unavailable["msg"].as_str().is_some_and(|msg| msg.contains("subnet.env")), "{unavailable}");
    assert!(Call::new("ADD", &config, &a).run("flannel").is_err());

    fs::write(node.path("subnet.env"), SUBNET).expect("a file");
    assert_eq!(Call::new("STATUS", &config, &a).run("flannel"), Ok(Value::Null));
    let result = Call::new("ADD", &config, &a).run("flannel").expect("an attachment");
    assert_eq!(result["ips"], json!([{"interface": 2, "address": "10.97.1.2/24", "gateway": "10.97.1.1"}]));
    assert_eq!(result["routes"], json!([{"dst": "10.96.0.0/12"}]));
    assert_eq!(a.link("eth0").map(|link| link.mtu), Some(1400));
    a.talks_to(None, "10.97.1.1".parse().expect("an address"));
    config["prevResult"] = result;
    assert_eq!(Call::new("CHECK", &config, &a).run("flannel"), Ok(Value::Null));

    fs::write(node.path("subnet.env"), SUBNET.replace("10.97.1.1", "10.97.2.1")).expect("a file");
    for _ in 0..2 {
        assert_eq!(Call::new("DEL", &config, &a).run("flannel"), Ok(Value::Null));
    }
    assert_eq!(node.leases(), Vec::<String>::new());
    assert!(!host_links().iter().any(|link| link.is_kind("veth")));
    assert!(!node.path("kept/a").exists());
    let error = Call::new("CHECK", &config, &a).run("flannel").expect_err("it is gone");
    assert!(
        error["msg"].as_str().is_some_and(|msg| msg.ends_with("is missing: not attached here")),
        "{error}"
    );
}

#[test]
fn what_a_refused_add_may_have_left_is_known_to_del() {
    let node = Node::new();
    let a = Container::new("a");
    fs::write(node.path("subnet.env"), SUBNET).expect("a file");
    let mut config = config(&node);
    config["delegate"]["mtu"] = json!("wide");
    Call::new("ADD", &config, &a).run("flannel").expect_err("no such MTU");
    assert!(a.link("eth0").is_none() && node.path("kept/a").exists());
    assert_eq!(Call::new("DEL", &config, &a).run("flannel"), Ok(Value::Null));
    assert!(!node.path("kept/a").exists());
}

#[test]
fn an_add_of_what_is_attached_already_leaves_it_as_it_is() {
    let node = Node::new();
    let a = Container::new("a");
    let config = config(&node);
    let subnet = |text: &str| fs::write(node.path("subnet.env"), text).expect("a file");
    let kept = || fs::read_to_string(node.path("kept/a")).expect("a configuration");
    subnet(SUBNET);
    Call::new("ADD", &config, &a).run("flannel").expect("an attachment");
    let before = (a.state(), node.leases(), kept());
    subnet(&SUBNET.replace("10.97.1.1", "10.97.2.1"));
    let error = Call::new("ADD", &config, &a).run("flannel").expect_err("it is attached");
    assert!(error["msg"].as_str().is_some_and(|msg| msg.contains("already exists")), "{error}");
    assert_eq!((a.state(), node.leases(), kept()), before);
    assert_eq!(Call::new("DEL", &config, &a).run("flannel"), Ok(Value::Null));
    assert_eq!((a.link("eth0").is_none(), node.leases().len()), (true, 0));
}

#[test]
fn a_containers_other_link_that_is_cut_off_leaves_the_first_ones_configuration() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = config(&node);
    config["delegate"] = json!({"type": "fake"});
    fs::write(node.path("subnet.env"), SUBNET).expect("a file");
    let path = plugin(&node, "fake", "echo '{}'");
    let add = |config: &Value, ifname: &str| {
        Call { path: &path, ifname, ..Call::new("ADD", config, &a) }.run("flannel")
    };
    add(&config, "eth0").expect("an attachment");
    let kept = fs::read(node.path("kept/a")).expect("a configuration");
    config["delegate"]["mtu"] = json!(1300);
    plugin(&node, "fake", "[ $CNI_COMMAND = DEL ] || exit 3");
    add(&config, "net1").expect_err("cut off");
    assert_eq!(fs::read_to_string(node.path("calls")).expect("its calls"), "ADD\nADD\nDEL\n");
    assert_eq!(fs::read(node.path("kept/a")).expect("a configuration"), kept);
}

#[test]
fn a_delegate_whose_result_cannot_be_read_is_undone() {
    let node = Node::new();
    let a = Container::new("a");
    fs::write(node.path("subnet.env"), SUBNET).expect("a file");
    let mut config = config(&node);
    config["delegate"] = json!({"type": "fake"});
    for (answer, message) in
        [("echo '{\"cniVersion\": \"1.0.0\", \"ips\": 7}'", "key \"ips\""), ("true", "printed no result")]
    {
        let path = plugin(&node, "fake", &format!("[ $CNI_COMMAND = DEL ] || {answer}"));
        let error = Call { path: &path, ..Call::new("ADD", &config, &a) }.run("flannel").expect_err(message);
        assert!(error["msg"].as_str().is_some_and(|msg| msg.contains(message)), "{error}");
        let calls = fs::read_to_string(node.path("calls")).expect("its calls");
        fs::remove_file(node.path("calls")).expect("its calls");
        assert_eq!(calls, "ADD\nDEL\n");
        assert!(!node.path("kept/a").exists());
    }
}

#[test]
fn gc_removes_attachments_and_what_was_kept_of_them() {
    let node = Node::new();
    let (keep, lost) = (Container::new("keep"), Container::new("lost"));
    fs::write(node.path("subnet.env"), SUBNET).expect("a file");
    let mut config = config(&node);
    for container in [&keep, &lost] {
        Call::new("ADD", &config, container).run("flannel").expect("an attachment");
    }
    fs::write(node.path("kept/foreign"), r#"{"name": "another", "type": "bridge"}"#).expect("a file");
    // What cannot be read belongs to whom its name says; a killed ADD may leave a part beside its name.
    let unreadable = [".killed", "cut-short", ".keep"];
    for name in unreadable {
        fs::write(node.path("kept").join(name), r#"{"name": "po"#).expect("a file");
    }
    config["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    assert_eq!(Call::new("GC", &config, &keep).run("flannel"), Ok(Value::Null));
    assert_eq!(unreadable.map(|name| node.path("kept").join(name).exists()), [false, false, true]);
    assert!(lost.link("eth0").is_none() && keep.link("eth0").is_some());
    let kept = |name: &str| node.path("kept").join(name).exists();
    assert_eq!([kept("keep"), kept("lost"), kept("foreign")], [true, false, true]);
    assert_eq!(Call::new("DEL", &config, &keep).run("flannel"), Ok(Value::Null));
    assert_eq!(node.leases(), Vec::<String>::new());
}
