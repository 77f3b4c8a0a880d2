//! Tables for `bandwidth`'s configuration.

use serde_json::{Value, json};

use super::{Config, Limit};
use crate::plugin::Request;

fn read(config: Value) -> Result<Config, String> {
    Config::read(&Request::of_config("pods", config)).map_err(|error| error.to_string())
}

#[test]
fn limits_come_from_the_configuration_or_the_runtime() {
    let limit = Some(Limit { rate: 1000, burst: 2000 });
    let both = json!({"ingressRate": 8000, "ingressBurst": 16000, "egressRate": 8000, "egressBurst": 16000});
    assert_eq!(read(both.clone()), Ok(Config { ingress: limit, egress: limit }));
    assert_eq!(
        read(json!({"runtimeConfig": {"bandwidth": both}})),
        Ok(Config { ingress: limit, egress: limit })
    );
    let own = json!({
        "egressRate": 8000, "egressBurst": 16000,
        "runtimeConfig": {"bandwidth": {"ingressRate": 8000, "ingressBurst": 16000}},
    });
    assert_eq!(read(own), Ok(Config { ingress: None, egress: limit }));
    for none in [json!({}), json!({"ingressRate": 0, "ingressBurst": 0}), json!({"runtimeConfig": {}})] {
        assert!(read(none).is_ok_and(|config| config.is_empty()));
    }
}

#[test]
fn half_a_limit_is_refused() {
    for (config, message) in [
        (json!({"ingressRate": 8000}), "if rate is set, burst must also be set"),
        (json!({"egressBurst": 8000}), "if burst is set, rate must also be set"),
        (json!({"ingressRate": 8, "ingressBurst": 40_000_000_000_u64}), "burst cannot be more than 4GB"),
        (
            json!({"ingressRate": 7, "ingressBurst": 8000}),
            "key \"ingressRate\": expected at least 8 bits a second",
        ),
        (
            json!({"runtimeConfig": {"bandwidth": {"egressRate": "1M"}}}),
            "key \"runtimeConfig.bandwidth.egressRate\"",
        ),
        (json!({"ingressRate": -1, "ingressBurst": 8000}), "key \"ingressRate\": -1 is out of range"),
    ] {
        let error = read(config).expect_err(message);
        assert!(error.contains(message), "{error}");
    }
}
