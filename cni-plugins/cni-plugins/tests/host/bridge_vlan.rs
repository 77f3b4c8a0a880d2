//! `bridge` with `vlan`: packets pass within a VLAN, and not from one to another.

use std::{net::IpAddr, process::Command};

use linux::netlink::{BridgeOptions, Netlink};
use serde_json::{Value, json};

use super::node::{Call, Container, Node, block_on};

/// Whether the kernel's bridges know VLANs. Where they do not, the calling test says so and is skipped.
fn bridges_know_vlans() -> bool {
    let made = block_on(async {
        let host = Netlink::open().expect("a socket");
        let name = "probe".to_owned();
        host.add_bridge(&BridgeOptions { name, vlan_filtering: true, ..BridgeOptions::default() }).await
    });
    if let Err(error) = &made {
        harness::skip::skip(&format!("the kernel's bridges do not filter by VLAN: {error}"));
    }
    made.is_ok()
}

fn attach(node: &Node, container: &Container, vlan: Option<u16>) -> (Value, Vec<IpAddr>) {
    let mut config = node.config("1.1.0");
    config["isDefaultGateway"] = json!(false);
    match vlan {
        Some(vlan) => config["vlan"] = json!(vlan),
        // A port of all these, for a container that has links of its own for each.
        None => config["vlanTrunk"] = json!([{"minID": 10, "maxID": 20}]),
    }
    let result = Call::new("ADD", &config, container).run("bridge").expect("an attachment");
    let addresses = result["ips"].as_array().expect("addresses").iter().map(|ip| {
        let text = ip["address"].as_str().and_then(|text| text.split('/').next());
        text.and_then(|text| text.parse().ok()).expect("an address")
    });
    (config, addresses.collect())
}

fn filter(on: u8) {
    let arguments = ["link", "set", "cni0", "type", "bridge", "vlan_filtering", &on.to_string()];
    assert!(Command::new("ip").args(arguments).status().expect("ip starts").success());
}

#[test]
fn packets_stay_in_their_vlan() {
    let node = Node::new();
    if !bridges_know_vlans() {
        return;
    }
    let [a, b, c, trunk] = ["a", "b", "c", "trunk"].map(Container::new);
    let attached = [(&a, Some(10)), (&b, Some(10)), (&c, Some(20)), (&trunk, None)]
        .map(|(container, vlan)| (container, attach(&node, container, vlan)));
    let addresses = |index: usize| &attached[index].1.1;
    for address in addresses(1) {
        a.talks_to(Some(&b), *address);
    }
    for (other, container) in [(2, &c), (3, &trunk)] {
        container.is_known_to(&a, addresses(other));
        for address in addresses(other) {
            assert_eq!(container.first_heard(&a, *address, || filter(0)), "after", "{address}");
            filter(1);
        }
    }
    // What the trunk carries is tagged.
    for words in [
        "addr flush dev eth0",
        "link add link eth0 name tagged type vlan id 20",
        "link set tagged up",
        "addr add 10.97.0.200/24 dev tagged",
    ] {
        let status = Command::new("ip").args(["-n", "trunk"]).args(words.split(' ')).status();
        assert!(status.expect("ip starts").success(), "{words}");
    }
    c.talks_to(Some(&trunk), [10, 97, 0, 200].into());
    for (container, (config, _)) in attached {
        Call::new("DEL", &config, container).run("bridge").expect("it is gone");
    }
}
