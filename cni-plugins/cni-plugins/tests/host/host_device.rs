//! `host-device`: a link goes in and comes back, however it was named.

use std::{fs, net::IpAddr, os::unix::fs::symlink, path::Path};

use linux::netlink::{Link, LinkChange, Netlink};
use serde_json::{Value, json};

use super::delegate::plugin;
use super::node::{Call, Container, Node, Wire, block_on, host_links, host_state};

const PCI: &str = "/sys/bus/pci/devices";
const ADDRESS: &str = "0000:3b:00.1";

fn config(node: &Node) -> Value {
    let mut config = node.config("1.1.0");
    config["type"] = json!("host-device");
    config["device"] = json!(Wire::MASTER);
    config
}

fn run(verb: &str, config: &Value, container: &Container) -> Result<Value, Value> {
    Call::new(verb, config, container).run("host-device")
}

fn on_host(name: &str) -> Option<Link> {
    host_links().into_iter().find(|link| link.name == name)
}

fn change(name: &str, change: &LinkChange<'_>) {
    block_on(async {
        let host = Netlink::open().expect("a socket");
        let index = host.link(name).await.expect("the link").index;
        host.change_link(index, change).await.expect("a change");
    });
}

/// A part of sysfs with one device, for the life of the value.
struct FakeSysfs {
    place: &'static str,
}

impl FakeSysfs {
    /// The device has the host's link in `folder`.
    fn new(place: &'static str, device: &str, folder: &str) -> Self {
        linux::mount::tmpfs(Path::new(place), "mode=0755,size=1m").expect("a mount");
        let fake = Self { place };
        fs::create_dir_all(Path::new(device).join(folder).join(Wire::MASTER)).expect("a folder");
        fake
    }

    fn pci(folder: &str, driver: &str) -> Self {
        let device = Path::new(PCI).join(ADDRESS);
        let fake = Self::new("/sys/bus/pci", device.to_str().expect("a path of letters"), folder);
        symlink(format!("../drivers/{driver}"), device.join("driver")).expect("a link");
        fake
    }
}

impl Drop for FakeSysfs {
    fn drop(&mut self) {
        linux::mount::detach(Path::new(self.place)).expect("unmount");
    }
}

#[test]
fn a_link_is_lent_with_addresses_and_comes_back_under_its_name() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let mut config = config(&node);
    config["dns"] = json!({"nameservers": ["9.9.9.9"]});
    let mac = on_host(Wire::MASTER).and_then(|link| link.mac).expect("an address");
    let result = run("ADD", &config, &a).expect("an attachment");
    assert_eq!(result["interfaces"], json!([{"name": "eth0", "mac": mac.to_string(), "sandbox": a.path()}]));
    assert_eq!(result["ips"][0], json!({"interface": 0, "address": "10.97.0.2/24", "gateway": "10.97.0.1"}));
    assert_eq!(result["dns"], json!({"nameservers": ["9.9.9.9"]}));
    assert!(on_host(Wire::MASTER).is_none());
    let inside = a.link("eth0").expect("the link");
    assert_eq!((inside.alias.as_deref(), inside.up), (Some(Wire::MASTER), true));
    a.talks_to(None, "10.97.0.1".parse::<IpAddr>().expect("an address"));
    a.talks_to(None, "fd97::1".parse::<IpAddr>().expect("an address"));
    config["prevResult"] = result;
    assert_eq!(run("CHECK", &config, &a), Ok(Value::Null));
    for _ in 0..2 {
        assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
        let back = on_host(Wire::MASTER).expect("the link");
        assert_eq!((back.alias, back.up, back.mac), (None, false, Some(mac)));
        assert!(a.link("eth0").is_none());
    }
    assert_eq!(node.leases(), Vec::<String>::new());
    let missing = run("CHECK", &config, &a).expect_err("it is gone");
    assert!(missing["msg"].as_str().is_some_and(|text| text.contains("host-local")), "{missing}");
}

#[test]
fn a_link_is_found_by_its_hardware_address_or_its_place_in_sysfs() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let mac = on_host(Wire::MASTER).and_then(|link| link.mac).expect("an address").to_string();
    let kernel_path = "/sys/devices/virtual/card";
    let lent = |key: &str, value: Value| {
        let mut config = config(&node);
        config["device"] = json!("");
        config["ipam"] = json!({});
        config[key] = value;
        let result = run("ADD", &config, &a);
        if result.is_ok() {
            assert!(a.link("eth0").is_some_and(|link| link.up), "{key}");
            assert_eq!(run("DEL", &config, &a), Ok(Value::Null), "{key}");
            assert!(on_host(Wire::MASTER).is_some(), "{key}");
        }
        result
    };
    let result = lent("hwaddr", json!(mac)).expect("an attachment");
    assert_eq!((result.get("ips"), &result["interfaces"][0]["name"]), (None, &json!("eth0")));
    let error = lent("hwaddr", json!("02:00:00:00:00:99")).expect_err("no such link");
    assert_eq!(
        error["msg"],
        "failed to find host device: no link has the hardware address 02:00:00:00:00:99"
    );
    let error = lent("kernelpath", json!(kernel_path)).expect_err("no such folder");
    assert!(
        error["msg"].as_str().is_some_and(|text| text.starts_with("failed to find host device: read /sys"))
    );
    {
        let _card = FakeSysfs::new("/sys/devices/virtual", kernel_path, "net");
        lent("kernelpath", json!(kernel_path)).expect("an attachment");
    }
    let error = lent("pciBusID", json!(ADDRESS)).expect_err("no such device");
    assert!(
        error["msg"].as_str().is_some_and(|text| text.starts_with("error with host device: ")),
        "{error}"
    );
    for folder in ["net", "virtio3/net"] {
        let _pci = FakeSysfs::pci(folder, "virtio-pci");
        lent("pciBusID", json!(ADDRESS)).expect("an attachment");
        lent("runtimeConfig", json!({"deviceID": ADDRESS})).expect("an attachment");
    }
    let _pci = FakeSysfs::pci("other", "virtio-pci");
    let error = lent("pciBusID", json!(ADDRESS)).expect_err("it has no link");
    assert!(
        error["msg"].as_str().is_some_and(|text| text.contains("no net directory under pci device")),
        "{error}"
    );
}

#[test]
fn a_device_with_a_userspace_driver_gets_addresses_only() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let _pci = FakeSysfs::pci("net", "vfio-pci");
    let mut config = config(&node);
    config["device"] = json!("");
    config["pciBusID"] = json!(ADDRESS);
    let before = (host_state(), a.state());
    let result = run("ADD", &config, &a).expect("an attachment");
    assert_eq!(result["interfaces"], json!([{"name": "eth0", "sandbox": a.path()}]));
    assert_eq!(result["ips"][0]["address"], "10.97.0.2/24");
    config["prevResult"] = result;
    assert_eq!(run("CHECK", &config, &a), Ok(Value::Null));
    assert_eq!((host_state(), a.state()), before);
    assert_eq!(node.leases().len(), 2);
    assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
    assert_eq!(node.leases(), Vec::<String>::new());
}

#[test]
fn a_failed_add_gives_the_link_back_as_it_was() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let before = (host_state(), a.state());
    let refused = |mut config: Value, key: &str, value: Value, message: &str| {
        config[key] = value;
        let error = run("ADD", &config, &a).expect_err(message);
        assert_eq!(error["code"], 999, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        assert_eq!((host_state(), a.state(), node.leases().len()), (before.0.clone(), before.1.clone(), 0));
    };
    refused(config(&node), "device", json!("none0"), "failed to find host device: find link \"none0\"");
    refused(config(&node), "ipam", json!({"type": "none"}), "failed to find plugin \"none\"");
    let mut routes = config(&node)["ipam"].clone();
    routes["routes"] = json!([{"dst": "10.5.0.0/16", "gw": "192.0.2.1"}]);
    refused(config(&node), "ipam", routes, "failed to add route");
    let call = Call { ifname: "lo", ..Call::new("ADD", &config(&node), &a) }.run("host-device");
    let error = call.expect_err("the name is taken");
    assert_eq!(error["msg"], "failed to move link \"up0\": \"lo\" already exists in the container");
    assert_eq!((host_state(), a.state()), before);
}

#[test]
fn a_link_that_cannot_come_back_stays_until_it_can() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let config = config(&node);
    run("ADD", &config, &a).expect("an attachment");
    change("up1", &LinkChange { up: Some(false), ..LinkChange::default() });
    change("up1", &LinkChange { name: Some(Wire::MASTER.to_owned()), ..LinkChange::default() });
    let error = run("DEL", &config, &a).expect_err("its name is taken");
    assert_eq!(error["msg"], "failed to rename device \"eth0\" to \"up0\": the host has such a link");
    assert!(a.link("eth0").is_some());
    assert_eq!(node.leases().len(), 2);
    change(Wire::MASTER, &LinkChange { name: Some("up1".to_owned()), ..LinkChange::default() });
    assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
    assert!(on_host(Wire::MASTER).is_some());
}

/// GC and STATUS are not told which device the runtime chose, and a DEL may come when it has left its bus.
#[test]
fn a_device_that_only_the_runtime_names_is_needed_by_add_alone() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    run("ADD", &config(&node), &a).expect("an attachment");
    let mut config = config(&node);
    config.as_object_mut().expect("an object").remove("device");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    for verb in ["STATUS", "GC"] {
        assert_eq!(run(verb, &config, &a), Ok(Value::Null), "{verb}");
    }
    config["runtimeConfig"] = json!({"deviceID": "0000:99:00.1"});
    let error = run("ADD", &config, &Container::new("b")).expect_err("no such device");
    assert_eq!(error["msg"], "runtime config DeviceID 0000:99:00.1 not found or unsupported");
    assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
    assert!(on_host(Wire::MASTER).is_some() && node.leases().is_empty());
}

#[test]
fn gc_looks_for_the_link_after_ipam_refused() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let mut config = config(&node);
    config["cni.dev/valid-attachments"] = json!([]);
    config["ipam"] = json!({"type": "none-such"});
    lose();
    let error = run("GC", &config, &a).expect_err("there is no such plugin");
    assert!(error["msg"].as_str().is_some_and(|text| text.contains("\"none-such\"")), "{error}");
    assert!(on_host(Wire::MASTER).is_some());
}

/// The link comes back from a namespace that ended, under another name.
fn lose() {
    change(Wire::MASTER, &LinkChange { up: Some(false), ..LinkChange::default() });
    let lost = LinkChange {
        name: Some("eth7".to_owned()),
        alias: Some(Wire::MASTER.to_owned()),
        ..LinkChange::default()
    };
    change(Wire::MASTER, &lost);
}

#[test]
fn a_link_that_the_kernel_brought_back_gets_its_name_again() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let mut config = config(&node);
    config["cni.dev/valid-attachments"] = json!([]);
    let unnamed = Call { netns: "/run/netns/none", ..Call::new("DEL", &config, &a) };
    let calls = [unnamed, Call::new("GC", &config, &a), Call { netns: "", ..unnamed }];
    for call in calls {
        lose();
        assert_eq!(call.run("host-device"), Ok(Value::Null));
        assert_eq!(on_host(Wire::MASTER).expect("the link").alias, None);
    }
    assert_eq!(run("STATUS", &config, &a), Ok(Value::Null));
}

#[test]
fn a_link_that_cannot_come_back_keeps_its_addresses() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let mut config = config(&node);
    config["ipam"] = json!({"type": "fake"});
    // Meanwhile somebody takes the name that the link had.
    let script = format!("[ $CNI_COMMAND = DEL ] || ip link add {} type bridge; echo '{{}}'", Wire::MASTER);
    let path = plugin(&node, "fake", &script);
    let call = |verb| Call { path: &path, ..Call::new(verb, &config, &a) }.run("host-device");
    let calls = || fs::read_to_string(node.path("calls")).expect("its calls");
    let error = call("ADD").expect_err("no addresses");
    assert!(
        error["details"].as_str().is_some_and(|left| left.ends_with("the host has such a link")),
        "{error}"
    );
    assert!(a.link("eth0").is_some());
    assert_eq!(calls(), "ADD\n");
    block_on(async {
        let host = Netlink::open().expect("a socket");
        let index = host.link(Wire::MASTER).await.expect("the link").index;
        host.del_link(index).await.expect("it goes");
    });
    assert_eq!(call("DEL"), Ok(Value::Null));
    assert_eq!(calls(), "ADD\nDEL\n");
}
