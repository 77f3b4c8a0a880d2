//! Tables for `portmap`'s configuration.

use cni::ErrorReply;
use linux::nftables::Transport;
use serde_json::{Value, json};

use super::{Config, Mapping};
use crate::plugin::Request;

fn read(config: Value) -> Result<Config, ErrorReply> {
    Config::read(&Request::of_config("pods", config))
}

fn mapped(mapping: Value) -> Value {
    json!({"runtimeConfig": {"portMappings": [mapping]}})
}

#[test]
fn defaults_are_those_of_the_reference() {
    let config = read(json!({})).expect("a configuration");
    assert!(config.snat && !config.masquerade_all && config.mappings.is_empty());
    assert!(config.conditions_v4.is_empty() && config.conditions_v6.is_empty());
}

#[test]
fn mappings_are_read() {
    let config =
        read(mapped(json!({"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "::"})));
    let expected = Mapping {
        host_port: 8080,
        container_port: 80,
        transport: Transport::Tcp,
        host_ip: Some("::".parse().expect("an address")),
    };
    let config = config.expect("a configuration");
    assert_eq!(config.mappings, [expected]);
    assert!(expected.is_for(false) && !expected.is_for(true));
}

#[test]
fn both_backends_are_taken() {
    for config in [
        json!({"backend": "nftables", "conditionsV4": ["ip", "saddr", "1.2.3.4"], "markMasqBit": 5}),
        json!({"backend": "iptables", "conditionsV6": ["!", "-s", "12::34"], "externalSetMarkChain": "MARK"}),
        json!({"conditionsV4": ["-s", "1.2.3.4"], "conditionsV6": ["ip6 saddr 12::34"]}),
        json!({"conditionsV4": [""], "conditionsV6": null}),
    ] {
        read(config.clone()).unwrap_or_else(|error| panic!("{config}: {error}"));
    }
}

#[test]
fn impossible_configurations_say_why() {
    let port = |host: i64, container: i64| {
        mapped(json!({"hostPort": host, "containerPort": container, "protocol": "tcp"}))
    };
    for (config, code, message) in [
        (port(0, 80), 999, "Invalid host port number: 0"),
        (port(80, -1), 999, "Invalid container port number: -1"),
        (port(0, 0), 999, "Invalid container port number: 0"),
        (port(65536, 80), 999, "Invalid host port number: 65536"),
        (
            mapped(json!({"hostPort": 1, "containerPort": 1, "protocol": "icmp"})),
            7,
            "key \"runtimeConfig.portMappings[0].protocol\": \"icmp\": expected tcp, udp or sctp",
        ),
        (
            mapped(json!({"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "x"})),
            7,
            "key \"runtimeConfig.portMappings[0].hostIP\": invalid IP address \"x\"",
        ),
        (
            mapped(json!({"containerPort": "1"})),
            6,
            "key \"runtimeConfig.portMappings[0].containerPort\": expected a whole number, found \"1\"",
        ),
        (json!({"markMasqBit": 32}), 999, "MasqMarkBit must be between 0 and 31"),
        (
            json!({"markMasqBit": 1, "externalSetMarkChain": "X"}),
            999,
            "Cannot specify externalSetMarkChain and markMasqBit",
        ),
        (
            json!({"backend": "ipvs"}),
            999,
            "unrecognized backend \"ipvs\": expected \"nftables\" or \"iptables\"",
        ),
        (
            json!({"backend": "iptables", "conditionsV4": ["ip", "saddr", "1.2.3.4"], "conditionsV6": ["ip6", "saddr", "12::34"]}),
            999,
            "iptables backend was requested but configuration contains nftables-specific options [conditionsV4 conditionsV6]",
        ),
        (
            json!({"backend": "nftables", "externalSetMarkChain": "M", "conditionsV4": ["-s", "1.2.3.4"], "conditionsV6": ["-s", "12::34"]}),
            999,
            "nftables backend was requested but configuration contains iptables-specific options [externalSetMarkChain conditionsV4 conditionsV6]",
        ),
        (
            json!({"conditionsV4": ["ct", "state", "new"]}),
            7,
            "key \"conditionsV4\": \"ct state new\": \"ct\" is not supported",
        ),
        (json!({"snat": 1}), 6, "key \"snat\": expected true or false"),
    ] {
        let text = config.to_string();
        let error = read(config).expect_err(message);
        assert_eq!(error.code, code, "{text}: {error}");
        assert!(error.to_string().contains(message), "{text}: {error}");
    }
}
