//! `static` under `bridge`: the addresses that the runtime asks for arrive on the link.

use serde_json::{Value, json};

use super::node::{Call, Container, Node};

#[test]
fn the_addresses_that_were_asked_for_arrive() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.1.0");
    config["isDefaultGateway"] = json!(false);
    config["ipam"] = json!({
        "type": "static", "addresses": [{"address": "10.97.0.5/24"}],
        "routes": [{"dst": "10.9.0.0/16", "gw": "10.97.0.1"}], "dns": {"nameservers": ["9.9.9.9"]},
    });
    config["runtimeConfig"] = json!({"ips": ["10.97.0.7/24", "fd97::7/64"]});
    let result = Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    assert_eq!(
        result["ips"],
        json!([{"interface": 2, "address": "10.97.0.7/24"}, {"interface": 2, "address": "fd97::7/64"}])
    );
    assert_eq!(result["dns"], json!({"nameservers": ["9.9.9.9"]}));
    let state = a.state();
    for wanted in [
        "address 10.97.0.7/24 on eth0",
        "address fd97::7/64 on eth0",
        "route 10.9.0.0/16 via Some(10.97.0.1) on eth0 table 254",
    ] {
        assert!(state.contains(&wanted.to_owned()), "{wanted}: {state:#?}");
    }
    assert_eq!(Call::new("STATUS", &config, &a).run("bridge"), Ok(Value::Null));
    config["prevResult"] = result;
    assert_eq!(Call::new("CHECK", &config, &a).run("bridge"), Ok(Value::Null));
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
}

#[test]
fn a_result_without_addresses_makes_no_attachment() {
    let node = Node::new();
    let a = Container::new("a");
    let before = a.state();
    let mut config = node.config("1.1.0");
    config["ipam"] = json!({"type": "static"});
    let error = Call::new("ADD", &config, &a).run("bridge").expect_err("no addresses");
    assert_eq!(
        (&error["code"], &error["msg"]),
        (&json!(999), &json!("IPAM plugin returned missing IP config"))
    );
    assert_eq!(a.state(), before);
}
