//! Tables for `host-local`'s configuration.

use cni::Version;
use serde_json::{Value, json};

use super::Config;
use crate::plugin::Request;

fn request(version: Version, args: &str, config: Value) -> Request {
    Request { version, raw_args: args.to_owned(), ..Request::of_config("pods", config) }
}

#[test]
fn sets_come_in_the_order_of_the_reference() {
    let config = json!({
        "ipam": {
            "type": "host-local", "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10",
            "ranges": [[{"subnet": "fd00::/64"}], [{"subnet": "10.2.0.0/24"}, {"subnet": "10.3.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/tmp/leases", "resolvConf": "/etc/resolv.conf",
        },
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/24"}]]},
    });
    let config = Config::read(&request(Version::V1_0_0, "", config)).expect("a configuration");
    let sets: Vec<String> = config.sets.iter().map(ToString::to_string).collect();
    assert_eq!(
        sets,
        [
            "10.9.0.1-10.9.0.254",
            "10.1.0.10-10.1.0.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff",
            "10.2.0.1-10.2.0.254,10.3.0.1-10.3.0.254",
        ]
    );
    assert_eq!(config.data_dir, std::path::Path::new("/tmp/leases"));
    assert_eq!(config.routes.len(), 1);
}

#[test]
fn requested_addresses_are_gathered_without_repeats() {
    let config = json!({
        "ipam": {"subnet": "10.1.0.0/24"},
        "args": {"cni": {"ips": ["10.1.0.6/24", "10.1.0.5"]}},
        "runtimeConfig": {"ips": ["10.1.0.7", "fd00::5"]},
    });
    let config = Config::read(&request(Version::V1_0_0, "IP=10.1.0.5", config)).expect("a configuration");
    let requested: Vec<String> = config.requested.iter().map(ToString::to_string).collect();
    assert_eq!(requested, ["10.1.0.5", "10.1.0.6", "10.1.0.7", "fd00::5"]);
    assert_eq!(config.data_dir, std::path::Path::new(super::DEFAULT_DATA_DIR));
}

#[test]
fn broken_configurations_name_the_key() {
    let v1 = Version::V1_0_0;
    for (version, args, config, message) in [
        (v1, "", json!({}), "IPAM config missing 'ipam' key"),
        (v1, "", json!({"ipam": {}}), "no IP ranges specified"),
        (
            v1,
            "",
            json!({"ipam": {"subnet": "10.1.0.0"}}),
            r#"key "ipam.subnet": invalid CIDR address "10.1.0.0""#,
        ),
        (v1, "", json!({"ipam": {"ranges": [[{}]]}}), r#"key "ipam.ranges[0][0].subnet": missing"#),
        (v1, "", json!({"ipam": {"ranges": [{}]}}), r#"key "ipam.ranges[0]": expected an array"#),
        (v1, "", json!({"ipam": {"ranges": [[]]}}), "invalid range set 0: empty range set"),
        (
            v1,
            "",
            json!({"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]}}),
            "range set 0 overlaps with 1",
        ),
        (
            Version::V0_2_0,
            "",
            json!({"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}}),
            "CNI version 0.2.0 does not support more than 1 address per family",
        ),
        (v1, "IP=here", json!({"ipam": {"subnet": "10.1.0.0/24"}}), r#"CNI_ARGS: invalid IP address "here""#),
        (
            v1,
            "",
            json!({"ipam": {"subnet": "10.1.0.0/24"}, "runtimeConfig": {"ips": ["x"]}}),
            r#"key "runtimeConfig.ips[0]": invalid IP address "x""#,
        ),
    ] {
        let error = Config::read(&request(version, args, config)).expect_err(message);
        assert!(error.msg.contains(message), "{error}");
    }
}

#[test]
fn what_needs_no_ranges_does_without_those_of_the_runtime() {
    let config = json!({"ipam": {"dataDir": "/leases"}});
    let config =
        Config::read_without_runtime(&request(Version::V1_0_0, "", config)).expect("a configuration");
    assert_eq!((config.sets.len(), config.data_dir), (0, "/leases".into()));
}
