//! Tables for the configuration that `flannel` makes.

use serde_json::{Value, json};

use super::Config;
use crate::{flannel::subnet_env::SubnetEnv, plugin::Request};

fn subnet(masquerades: bool) -> SubnetEnv {
    let text = format!(
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ={masquerades}\n"
    );
    SubnetEnv::parse(&text).expect("a file")
}

fn made(config: Value, subnet: &SubnetEnv) -> Value {
    let request = Request::of_config("pods", config);
    let config = Config::read(&request).expect("a configuration");
    Value::Object(config.delegate(&request, subnet).expect("a configuration"))
}

#[test]
fn the_defaults_are_a_bridge_that_is_a_gateway() {
    assert_eq!(
        made(json!({"cniVersion": "1.0.0", "type": "flannel"}), &subnet(true)),
        json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "mtu": 1450, "ipMasq": false, "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.17.0/24"}]], "routes": [{"dst": "10.1.0.0/16"}]},
        })
    );
}

#[test]
fn what_the_user_wrote_stays() {
    let config = json!({
        "runtimeConfig": {"portMappings": []},
        "delegate": {"type": "ipvlan", "mtu": 1300, "ipMasq": false, "master": "eth1"},
        "ipam": {"type": "other", "routes": [{"dst": "10.9.0.0/16"}], "dataDir": "/leases"},
    });
    assert_eq!(
        made(config, &subnet(false)),
        json!({
            "name": "pods", "type": "ipvlan", "mtu": 1300, "ipMasq": false, "master": "eth1",
            "runtimeConfig": {"portMappings": []},
            "ipam": {
                "type": "other", "dataDir": "/leases", "ranges": [[{"subnet": "10.1.17.0/24"}]],
                "routes": [{"dst": "10.9.0.0/16"}, {"dst": "10.1.0.0/16"}],
            },
        })
    );
    assert_eq!(made(json!({}), &subnet(false))["ipMasq"], true);
}

#[test]
fn what_only_the_daemon_knows_is_refused() {
    for (config, message) in [
        (json!({"delegate": {"name": "x"}}), "'delegate' dictionary must not have 'name' field"),
        (json!({"delegate": {"ipam": {}}}), "'delegate' dictionary must not have 'ipam' field"),
        (json!({"delegate": {"type": 5}}), "must have (string) 'type' field"),
        (json!({"delegate": []}), "key \"delegate\": expected an object"),
        (json!({"ipam": {"routes": {}}}), "key \"ipam.routes\": expected an array"),
    ] {
        let error = Config::read(&Request::of_config("pods", config)).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    }
}
