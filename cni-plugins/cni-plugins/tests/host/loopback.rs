//! `loopback`.

use serde_json::{Value, json};

use super::node::{Call, Container, Node};

#[test]
fn it_comes_up_with_its_addresses_and_goes_down() {
    let _node = Node::new();
    let a = Container::new("a");
    let mut config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    let result = Call::new("ADD", &config, &a).run("loopback").expect("a result");
    assert_eq!(
        result["interfaces"],
        json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": a.path()}])
    );
    assert_eq!(result["ips"][0], json!({"interface": 0, "address": "127.0.0.1/8"}));
    assert!(a.link("lo").is_some_and(|link| link.up));
    assert_eq!(Call::new("CHECK", &config, &a).run("loopback"), Ok(Value::Null));
    config["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "other"}]});
    let passed = Call::new("ADD", &config, &a).run("loopback").expect("a result");
    assert_eq!(passed["interfaces"], json!([{"name": "other"}]));
    for _ in 0..2 {
        assert_eq!(Call::new("DEL", &config, &a).run("loopback"), Ok(Value::Null));
    }
    assert!(a.link("lo").is_some_and(|link| !link.up));
    let error = Call::new("CHECK", &config, &a).run("loopback").expect_err("it is down");
    assert_eq!(error["msg"], "loopback interface is down");
    let gone = Call { netns: "/run/netns/none", ..Call::new("DEL", &config, &a) };
    assert_eq!(gone.run("loopback"), Ok(Value::Null));
}
