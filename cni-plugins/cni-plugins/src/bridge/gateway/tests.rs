//! Tables for gateways and default routes.

use cni::{AddResult, Dns, IpConfig, Route};
use linux::netlink::BridgePortOptions;

use super::{
    super::{filters::Filters, vlans::Vlans},
    Config, complete,
};

fn config(is_gateway: bool, is_default_gateway: bool) -> Config {
    Config {
        bridge: "cni0".to_owned(),
        is_gateway,
        is_default_gateway,
        force_address: false,
        mtu: None,
        promiscuous: false,
        port: BridgePortOptions::default(),
        vlans: Vlans::default(),
        filters: Filters::default(),
        enable_dad: false,
        disable_container_interface: false,
        mac: None,
        dns: Dns::default(),
        ipam: Some("host-local".to_owned()),
    }
}

fn result(ips: &[(&str, Option<&str>)], routes: &[(&str, Option<&str>)]) -> AddResult {
    let ip = |(address, gateway): &(&str, Option<&str>)| IpConfig {
        interface: None,
        address: address.parse().expect(address),
        gateway: gateway.map(|gateway| gateway.parse().expect(gateway)),
    };
    let route = |(dst, gw): &(&str, Option<&str>)| {
        Route::new(dst.parse().expect(dst), gw.map(|gw| gw.parse().expect(gw)))
    };
    AddResult {
        ips: ips.iter().map(ip).collect(),
        routes: routes.iter().map(route).collect(),
        ..AddResult::default()
    }
}

fn texts<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn gateways_default_to_the_first_address() {
    let mut made = result(&[("10.1.0.5/16", None), ("fd00::5/64", Some("fd00::ff"))], &[]);
    assert_eq!(texts(&complete(&mut made, &config(true, false))), ["10.1.0.1/16", "fd00::ff/64"]);
    assert!(made.routes.is_empty());
}

#[test]
fn without_a_gateway_the_bridge_carries_nothing() {
    let mut made = result(&[("10.1.0.5/16", Some("10.1.0.1"))], &[]);
    assert!(complete(&mut made, &config(false, false)).is_empty());
}

#[test]
fn default_routes_are_added_once_per_family_unless_given() {
    let ips = [("10.1.0.5/16", None), ("10.2.0.5/16", None), ("fd00::5/64", None)];
    let mut made = result(&ips, &[]);
    complete(&mut made, &config(true, true));
    let routes: Vec<_> =
        made.routes.iter().map(|r| (r.dst.to_string(), r.gw.map(|gw| gw.to_string()))).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(routes, [("0.0.0.0/0".to_owned(), some("10.1.0.1")), ("::/0".to_owned(), some("fd00::1"))]);
    let mut given = result(&ips[..1], &[("0.0.0.0/0", Some("10.1.0.9"))]);
    complete(&mut given, &config(true, true));
    assert_eq!(given.routes.len(), 1);
    let mut without_gateway = result(&ips[..1], &[("0.0.0.0/0", None)]);
    complete(&mut without_gateway, &config(true, true));
    assert_eq!(without_gateway.routes.len(), 2);
}
