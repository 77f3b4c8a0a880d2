//! Which gateway a route goes through.

use cni::{AddResult, IpConfig};

use super::gateway_for;

#[test]
fn a_route_without_gateway_takes_that_of_the_first_address_of_its_family() {
    let ip = |address: &str, gateway: Option<&str>| IpConfig {
        interface: None,
        address: address.parse().expect(address),
        gateway: gateway.map(|gateway| gateway.parse().expect(gateway)),
    };
    let ips = vec![
        ip("fd00::5/64", None),
        ip("10.1.0.5/16", Some("10.1.0.1")),
        ip("10.2.0.5/16", Some("10.2.0.1")),
    ];
    let made = AddResult { ips, ..AddResult::default() };
    let via = |dst: &str| gateway_for(&made, dst.parse().expect(dst)).map(|gateway| gateway.to_string());
    assert_eq!(via("192.168.0.0/16"), Some("10.1.0.1".to_owned()));
    assert_eq!(via("fd01::/16"), None);
}
