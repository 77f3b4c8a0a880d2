//! Tables: whose addresses win, and what is refused.

use cni::{ErrorReply, Version};
use serde_json::{Value, json};

use super::{Config, Static};
use crate::plugin::{Plugin, Request};

fn request(version: Version, args: &str, config: Value) -> Request {
    Request { version, raw_args: args.to_owned(), ..Request::of_config("pods", config) }
}

fn addresses(args: &str, config: Value) -> Result<Vec<String>, ErrorReply> {
    let config = Config::read(&request(Version::V1_0_0, args, config))?;
    let text = |ip: &cni::IpConfig| match ip.gateway {
        Some(gateway) => format!("{} via {gateway}", ip.address),
        None => ip.address.to_string(),
    };
    Ok(config.addresses.iter().map(text).collect())
}

fn configured() -> Value {
    json!({"ipam": {"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}]}})
}

#[test]
fn the_runtimes_addresses_replace_those_of_the_arguments_and_these_the_configurations() {
    assert_eq!(
        addresses("", configured()),
        Ok(vec!["10.1.0.5/24 via 10.1.0.1".to_owned(), "fd00::5/64".to_owned()])
    );
    // These come on top.
    let args = "IP=10.2.0.5/24, 10.3.0.5/24;GATEWAY=10.3.0.1";
    let more = ["10.1.0.5/24 via 10.1.0.1", "fd00::5/64", "10.2.0.5/24", "10.3.0.5/24 via 10.3.0.1"];
    assert_eq!(addresses(args, configured()), Ok(more.map(str::to_owned).to_vec()));
    let mut config = configured();
    config["args"] = json!({"cni": {"ips": ["10.4.0.5/24"]}});
    assert_eq!(addresses(args, config.clone()), Ok(vec!["10.4.0.5/24".to_owned()]));
    config["runtimeConfig"] = json!({"ips": ["10.5.0.5/24", "fd05::5/64"]});
    assert_eq!(addresses(args, config.clone()), Ok(vec!["10.5.0.5/24".to_owned(), "fd05::5/64".to_owned()]));
    config["runtimeConfig"] = json!({"ips": []});
    assert_eq!(addresses(args, config), Ok(vec!["10.4.0.5/24".to_owned()]));
}

#[test]
fn impossible_requests_say_why() {
    for (args, config, code, message) in [
        ("", json!({}), 7, "IPAM config missing 'ipam' key"),
        (
            "",
            json!({"ipam": {"addresses": [{"address": "10.1.0.5"}]}}),
            6,
            "\"ipam.addresses[0].address\": invalid CIDR",
        ),
        ("", json!({"ipam": {"addresses": [{}]}}), 6, "\"ipam.addresses[0].address\": missing"),
        (
            "",
            json!({"ipam": {"addresses": [{"address": "10.1.0.5/24", "gateway": "x"}]}}),
            6,
            "addresses[0].gateway",
        ),
        ("IP=10.1.0.5", configured(), 4, "the 'ip' field is expected to be in CIDR notation"),
        ("IP=10.1.0.5/24;GATEWAY=x", configured(), 4, "invalid gateway address"),
        ("X=1", configured(), 999, "unknown CNI_ARGS keys: X (IgnoreUnknown=1 passes them over)"),
        (
            "",
            json!({"ipam": {}, "args": {"cni": {"ips": ["10.1.0.5"]}}}),
            6,
            "\"args.cni.ips[0]\": invalid CIDR",
        ),
        (
            "",
            json!({"ipam": {}, "runtimeConfig": {"ips": [7]}}),
            6,
            "\"runtimeConfig.ips[0]\": expected a string",
        ),
        ("", json!({"ipam": {"routes": [{"gw": "10.1.0.1"}]}}), 6, "\"ipam.routes[0].dst\": missing"),
    ] {
        let error = addresses(args, config).expect_err(message);
        assert_eq!(error.code, code, "{error}");
        assert!(error.msg.contains(message), "{error}");
    }
    let two = json!({"ipam": {"addresses": [{"address": "10.1.0.5/24"}, {"address": "10.2.0.5/24"}]}});
    let old = Config::read(&request(Version::V0_2_0, "", two)).expect_err("two of one family");
    assert_eq!(old.msg, "CNI version 0.2.0 does not support more than 1 address per family");
}

#[test]
fn check_wants_every_address_with_its_gateway() {
    let mut config = configured();
    let check = |config: &Value| Static.check(&request(Version::V1_0_0, "", config.clone()));
    assert_eq!(check(&config).expect_err("no result").msg, "Required prevResult missing");
    let first = json!({"address": "10.1.0.5/24", "gateway": "10.1.0.1"});
    config["prevResult"] = json!({"ips": [first, {"address": "fd00::5/64", "gateway": "fd00::1"}]});
    assert_eq!(check(&config), Ok(()));
    config["prevResult"] = json!({"ips": [first]});
    let missing = check(&config).expect_err("one is missing");
    assert_eq!(missing.msg, "static: Failed to match addr fd00::5 on interface eth0");
    config["prevResult"]["ips"] =
        json!([{"address": "10.1.0.5/24", "gateway": "10.1.0.9"}, {"address": "fd00::5/64"}]);
    let other = check(&config).expect_err("another gateway");
    assert_eq!(other.msg, "static: Failed to match addr 10.1.0.5 on interface eth0");
}
