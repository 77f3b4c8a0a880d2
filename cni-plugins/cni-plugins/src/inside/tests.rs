//! Which gateway a route goes through.

use cni::{AddResult, IpConfig, Route};

use super::{gateway_for, router_of};

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

#[test]
fn a_route_to_the_link_itself_has_no_router() {
    let ip = IpConfig {
        interface: None,
        address: "10.1.0.5/16".parse().expect("a network"),
        gateway: Some([10, 1, 0, 1].into()),
    };
    let result = AddResult { ips: vec![ip], ..AddResult::default() };
    let route = |gw: Option<[u8; 4]>, scope| {
        let route = Route::new("192.168.0.0/16".parse().expect("a network"), gw.map(Into::into));
        router_of(&Route { scope, ..route }, &result).map(|router| router.to_string())
    };
    assert_eq!(route(None, None).as_deref(), Some("10.1.0.1"));
    assert_eq!(route(Some([10, 1, 0, 9]), None).as_deref(), Some("10.1.0.9"));
    for (gw, scope) in [(Some([0; 4]), None), (None, Some(253)), (None, Some(254)), (Some([0; 4]), Some(253))]
    {
        assert_eq!(route(gw, scope), None, "{gw:?} {scope:?}");
    }
}
