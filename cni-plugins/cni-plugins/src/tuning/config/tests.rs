//! Tables: whose values win, and what is refused.

use cni::{ErrorReply, Version, exec::Verb};
use serde_json::{Value, json};

use super::{Config, Properties};
use crate::plugin::Request;

fn read_text(args: &str, text: &str) -> Result<Config, ErrorReply> {
    let stdin = text.as_bytes().to_vec();
    Config::read(&Request {
        verb: Verb::Add,
        container_id: "abc".to_owned(),
        netns: None,
        ifname: "eth0".to_owned(),
        raw_args: args.to_owned(),
        path: Vec::new(),
        network: "pods".to_owned(),
        version: Version::V1_0_0,
        config: cni::json::parse_object(&stdin).expect("an object"),
        stdin,
    })
}

fn read(args: &str, config: &Value) -> Result<Config, ErrorReply> {
    read_text(args, &config.to_string())
}

#[test]
fn nothing_is_set_unless_asked_for() {
    let config = read("", &json!({"promisc": false, "mtu": 0, "mac": ""})).expect("a configuration");
    assert!(config.sysctls.is_empty() && config.properties.is_empty());
    assert_eq!(config.data_dir, std::path::Path::new("/run/cni/tuning"));
}

#[test]
fn arguments_put_their_values_in_the_configurations_place() {
    let mut config = json!({
        "sysctl": {"net.a": "1", "net.b": "1"}, "mac": "02:00:00:00:00:01", "promisc": true, "mtu": 1400,
        "allmulti": true, "txQLen": 10, "dataDir": "/tmp/x",
    });
    let own = Properties {
        mac: Some("02:00:00:00:00:01".parse().expect("an address")),
        promiscuous: Some(true),
        mtu: Some(1400),
        all_multicast: Some(true),
        tx_queue_len: Some(10),
    };
    assert_eq!(read("", &config).map(|config| config.properties), Ok(own));
    let mac = |args: &str, config: &Value| {
        read(args, config).map(|config| config.properties.mac.map(|mac| mac.to_string()))
    };
    assert_eq!(mac("MAC=02:00:00:00:00:02", &config), Ok(Some("02:00:00:00:00:02".to_owned())));
    config["runtimeConfig"] = json!({"mac": "02:00:00:00:00:03"});
    assert_eq!(mac("MAC=02:00:00:00:00:02", &config), Ok(Some("02:00:00:00:00:03".to_owned())));
    config["args"] = json!({"cni": {
        "sysctl": {"net.b": "2", "net.c": "2"}, "mac": "02:00:00:00:00:04", "promisc": false, "mtu": 1300,
        "allmulti": false, "txQLen": 0,
    }});
    let read = read("", &config).expect("a configuration");
    let expected = Properties {
        mac: Some("02:00:00:00:00:04".parse().expect("an address")),
        promiscuous: None,
        mtu: Some(1300),
        all_multicast: Some(false),
        tx_queue_len: Some(0),
    };
    assert_eq!(read.properties, expected);
    let sysctls: Vec<_> = read.sysctls.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(sysctls, ["net.a=1", "net.b=2", "net.c=2"]);
}

#[test]
fn impossible_configurations_say_why() {
    for (text, code, message) in [
        (
            r#"{"sysctl": {"net.a": "1", "net.b": "1", "net.a": "2"}}"#,
            7,
            "duplicated sysctl keys are not allowed; \"net.a\"",
        ),
        (r#"{"sysctl": {"net.a": 1}}"#, 6, "key \"sysctl.net.a\": expected a string, found 1"),
        (r#"{"sysctl": []}"#, 6, "key \"sysctl\": expected an object"),
        (r#"{"mtu": -1}"#, 6, "key \"mtu\": -1 is out of range"),
        (r#"{"mac": 1}"#, 6, "key \"mac\": expected a string"),
        (r#"{"mac": "zz"}"#, 7, "invalid hardware address \"zz\""),
        (r#"{"promisc": "yes"}"#, 6, "key \"promisc\": expected true or false"),
        (r#"{"txQLen": "long"}"#, 6, "key \"txQLen\": expected a whole number"),
        (r#"{"args": {"cni": {"allmulti": 1}}}"#, 6, "key \"args.cni.allmulti\": expected true or false"),
    ] {
        let error = read_text("", text).expect_err(message);
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}
