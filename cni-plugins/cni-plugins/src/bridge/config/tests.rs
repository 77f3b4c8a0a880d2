//! Tables for `bridge`'s configuration.

use serde_json::{Value, json};

use super::Config;
use crate::plugin::Request;

fn read(args: &str, config: Value) -> Result<Config, cni::ErrorReply> {
    Config::read(&Request { raw_args: args.to_owned(), ..Request::of_config("pods", config) })
}

#[test]
fn defaults_are_those_of_the_reference() {
    let config = read("", json!({})).expect("a configuration");
    assert_eq!(config.bridge, "cni0");
    assert!(!config.is_gateway && !config.port.hairpin && !config.enable_dad && config.ipam.is_none());
    assert_eq!((config.mtu, config.mac), (None, None));
}

#[test]
fn a_default_gateway_is_a_gateway() {
    let config = read("", json!({"isDefaultGateway": true, "mtu": 0, "ipam": {"type": "host-local"}}));
    let config = config.expect("a configuration");
    assert!(config.is_gateway && config.is_default_gateway);
    assert_eq!((config.mtu, config.ipam.as_deref()), (None, Some("host-local")));
}

#[test]
fn the_runtimes_hardware_address_wins() {
    let mac =
        |args: &str, config: Value| read(args, config).map(|config| config.mac.map(|mac| mac.to_string()));
    let some = |text: &str| Ok(Some(text.to_owned()));
    let all =
        json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "runtimeConfig": {"mac": "02:00:00:00:00:03"}});
    assert_eq!(mac("MAC=02:00:00:00:00:01", json!({})), some("02:00:00:00:00:01"));
    assert_eq!(
        mac("MAC=02:00:00:00:00:01", json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}})),
        some("02:00:00:00:00:02")
    );
    assert_eq!(mac("MAC=02:00:00:00:00:01", all), some("02:00:00:00:00:03"));
}

#[test]
fn impossible_configurations_say_why() {
    for (config, code, message) in [
        (json!({"vlan": 5000}), 7, "invalid VLAN ID 5000"),
        (json!({"bridge": "a-long-bridge", "vlan": 100, "isGateway": true}), 7, r#""a-long-bridge.100""#),
        (json!({"macspoofchk": "on"}), 6, r#"key "macspoofchk": expected true or false, found "on""#),
        (json!({"ipMasqBackend": 1}), 6, r#"key "ipMasqBackend": expected a string, found 1"#),
        (json!({"hairpinMode": true, "promiscMode": true}), 7, "hairpin mode and promiscuous mode"),
        (json!({"disableContainerInterface": true, "ipam": {"type": "x"}}), 7, "cannot use IPAM"),
        (json!({"bridge": "a/b"}), 7, r#"key "bridge": invalid interface name "a/b""#),
        (json!({"mtu": "big"}), 6, r#"key "mtu": expected a whole number, found "big""#),
        (json!({"mtu": -1}), 6, r#"key "mtu": -1 is out of range"#),
        (json!({"isGateway": "yes"}), 6, r#"key "isGateway": expected true or false"#),
        (json!({"runtimeConfig": {"mac": "zz"}}), 7, r#"invalid hardware address "zz""#),
    ] {
        let error = read("", config).expect_err(message);
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}
