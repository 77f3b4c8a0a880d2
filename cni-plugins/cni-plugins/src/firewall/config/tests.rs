//! Tables for `firewall`'s configuration.

use cni::{AddResult, ErrorReply, Interface};
use serde_json::{Value, json};

use super::{Backend, Config, IsolatedBridge};
use crate::plugin::Request;

fn read(config: Value) -> Result<Config, ErrorReply> {
    Config::read(&Request::of_config("pods", config))
}

#[test]
fn the_first_interface_is_the_bridge() {
    let bridge = Interface { name: "br0".to_owned(), ..Interface::default() };
    let result = AddResult { interfaces: vec![bridge, Interface::default()], ..AddResult::default() };
    let isolated =
        |within: bool| Some(IsolatedBridge { name: "br0".to_owned(), within, frames_are_packets: true });
    for (policy, expected) in [
        (json!(null), None),
        (json!(""), None),
        (json!("open"), None),
        (json!("same-bridge"), isolated(false)),
        (json!("isolated"), isolated(true)),
    ] {
        let config = read(json!({"ingressPolicy": policy})).expect("a configuration");
        assert_eq!(config.isolated_bridge(&result, true), Ok(expected), "{policy}");
    }
    let config = read(json!({"ingressPolicy": "isolated"})).expect("a configuration");
    let error = config.isolated_bridge(&AddResult::default(), true).expect_err("no interface");
    assert_eq!(
        error.msg,
        "interface needs to be set for ingress policy \"isolated\", make sure to chain \"firewall\" plugin with \"bridge\""
    );
}

#[test]
fn defaults_are_those_of_the_reference() {
    let config = read(json!({"backend": "", "iptablesAdminChainName": "", "firewalldZone": "public"}));
    let config = config.expect("a configuration");
    assert_eq!((config.backend, config.admin_chain.as_str()), (Backend::Any, "CNI-ADMIN"));
    let config = read(json!({"backend": "iptables", "iptablesAdminChainName": "MINE"})).expect("one");
    assert_eq!((config.backend, config.admin_chain.as_str()), (Backend::Iptables, "MINE"));
}

#[test]
fn impossible_configurations_say_why() {
    for (config, code, message) in [
        (json!({"backend": "firewalld"}), 7, "key \"backend\": \"firewalld\" is not supported"),
        (
            json!({"backend": "pf"}),
            7,
            "key \"backend\": \"pf\": expected \"iptables\", \"nftables\" or no key",
        ),
        (json!({"ingressPolicy": "closed"}), 999, "unknown ingress policy: \"closed\""),
        (json!({"iptablesAdminChainName": "forward"}), 7, "\"forward\" is a chain of the plugin"),
        (json!({"iptablesAdminChainName": "a b"}), 7, "\"a b\": expected the name of a chain"),
        (json!({"firewalldZone": 1}), 6, "key \"firewalldZone\": expected a string, found 1"),
    ] {
        let error = read(config).expect_err(message);
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn frames_are_dropped_where_nobody_else_does() {
    for (within, frames_are_packets, expected) in
        [(true, false, true), (true, true, false), (false, false, false)]
    {
        let bridge = IsolatedBridge { name: "br0".to_owned(), within, frames_are_packets };
        assert_eq!(bridge.drops_frames(), expected, "{bridge:?}");
    }
}
