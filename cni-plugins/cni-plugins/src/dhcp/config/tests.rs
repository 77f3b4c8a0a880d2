//! Tables for `dhcp`'s configuration.

use serde_json::{Value, json};

use super::{Config, Options};
use crate::plugin::Request;

fn read(args: &str, ipam: Value) -> Result<Config, String> {
    let request = Request::of_config("pods", json!({"ipam": ipam}));
    Config::read(&Request { raw_args: args.to_owned(), ..request }).map_err(|error| error.to_string())
}

#[test]
fn defaults_ask_for_mask_and_routers() {
    let config = read("IP=10.0.0.1;other=x", json!({"type": "dhcp"})).expect("a configuration");
    assert_eq!(config.socket.to_str(), Some("/run/cni/dhcp.sock"));
    assert_eq!(config.options, Options { provided: Vec::new(), requested: vec![3, 1] });
    assert_eq!(config.priority, None);
}

#[test]
fn options_are_sent_and_asked_for() {
    let ipam = json!({
        "daemonSocketPath": "/run/x.sock", "priority": 7,
        "provide": [
            {"option": "host-name", "value": "pod"},
            {"option": "12", "fromArg": "K8S_POD_NAME"},
            {"option": "60", "fromArg": "absent"},
        ],
        "request": [{"skipDefault": true}, {"option": "121"}, {"option": "routers"}],
    });
    let config = read("K8S_POD_NAME=web-0", ipam).expect("a configuration");
    assert_eq!(config.options.provided, [(12, "pod".to_owned()), (12, "web-0".to_owned())]);
    assert_eq!(config.options.requested, [121, 3]);
    assert_eq!((config.socket.to_str(), config.priority), (Some("/run/x.sock"), Some(7)));
}

#[test]
fn arguments_that_are_no_pairs_are_left_out() {
    let ipam = json!({"provide": [{"option": "12", "fromArg": "a"}, {"option": "60", "fromArg": "name"}]});
    let config = read(";word;=x;a=b=c;name=web-0;", ipam).expect("a configuration");
    assert_eq!(config.options.provided, [(12, "b=c".to_owned()), (60, "web-0".to_owned())]);
}

#[test]
fn unknown_options_are_named() {
    for (ipam, message) in [
        (
            json!({"request": [{"option": "colour"}]}),
            r#"key "ipam.request[0].option": "colour": expected a number"#,
        ),
        (json!({"provide": [{"option": "300", "value": "x"}]}), r#"key "ipam.provide[0].option": "300""#),
        (
            json!({"provide": [{"option": "12", "value": "x".repeat(256)}]}),
            r#"key "ipam.provide[0].value": a value of 256 bytes"#,
        ),
        (json!({"priority": -1}), r#"key "ipam.priority": -1 is out of range"#),
    ] {
        let error = read("", ipam).expect_err(message);
        assert!(error.contains(message), "{error}");
    }
}
