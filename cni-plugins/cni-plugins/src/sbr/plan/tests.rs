//! Tables: which steps each configuration comes to.

use cni::IpConfig;
use linux::netlink::{Route, Rule};

use super::{Config, Found, SCOPE_LINK, Step, plan};

const LINK: u32 = 7;

fn ip(address: &str, gateway: Option<&str>) -> IpConfig {
    IpConfig {
        interface: None,
        address: address.parse().expect(address),
        gateway: gateway.map(|gateway| gateway.parse().expect(gateway)),
    }
}

fn connected(network: &str, source: &str) -> Route {
    Route {
        link: Some(LINK),
        scope: SCOPE_LINK,
        source: Some(source.parse().expect(source)),
        ..Route::to(network.parse().expect(network))
    }
}

fn found() -> Found {
    Found {
        link: LINK,
        rules: vec![Rule::from_source("10.9.0.1/32".parse().expect("a network"), 100)],
        routes: vec![
            connected("10.1.0.0/24", "10.1.0.5"),
            Route {
                link: Some(LINK),
                gateway: Some("10.1.0.1".parse().expect("an address")),
                ..Route::to("10.5.0.0/16".parse().expect("a network"))
            },
            Route { link: Some(LINK), ..Route::to("fe80::/64".parse().expect("a network")) },
            connected("10.2.0.0/24", "10.2.0.5"),
            // Of other links and tables.
            Route { link: Some(8), ..Route::to("10.8.0.0/24".parse().expect("a network")) },
            Route { link: Some(LINK), table: 102, ..Route::to("10.7.0.0/24".parse().expect("a network")) },
        ],
    }
}

/// Short, with tables.
fn text(step: &Step) -> String {
    let route = |route: &Route| {
        let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        format!("{}{via} in {}", route.destination, route.table)
    };
    match step {
        Step::AddRule(rule) => {
            format!("rule {} to {}", rule.source.map(|s| s.to_string()).unwrap_or_default(), rule.table)
        }
        Step::AddRoute(added) => format!("add {}", route(added)),
        Step::CopyRoute(copied) => format!("copy {}", route(copied)),
        Step::CopyBeside(copied) => format!("copy beside {}", route(copied)),
        Step::Hint { route: hint, before } => format!("hint {} ({})", route(hint), before.is_some()),
        Step::DeleteRoute(deleted) => format!("delete {}", route(deleted)),
        Step::TryDelete(deleted) => format!("try to delete {}", route(deleted)),
    }
}

fn planned(config: Config, ips: &[IpConfig]) -> Vec<String> {
    let ips: Vec<&IpConfig> = ips.iter().collect();
    plan(&config, &ips, &found()).iter().map(text).collect()
}

#[test]
fn each_address_gets_a_table_with_the_routes_that_concern_it() {
    let ips = [ip("10.1.0.5/24", Some("10.1.0.1")), ip("10.2.0.5/24", None)];
    assert_eq!(
        planned(Config::default(), &ips),
        [
            "rule 10.1.0.5/32 to 101",
            "add 0.0.0.0/0 via 10.1.0.1 in 101",
            "copy 10.1.0.0/24 in 101",
            "copy 10.5.0.0/16 via 10.1.0.1 in 101",
            "copy fe80::/64 in 101",
            // 102 has a route.
            "rule 10.2.0.5/32 to 103",
            "copy fe80::/64 in 103",
            "copy 10.2.0.0/24 in 103",
            "delete 10.1.0.0/24 in 254",
            "delete 10.5.0.0/16 via 10.1.0.1 in 254",
            "delete fe80::/64 in 254",
            "delete 10.2.0.0/24 in 254",
        ]
    );
}

#[test]
fn a_table_of_somebody_else_gets_rules_only() {
    let config = Config { table: Some(500), ..Config::default() };
    let ips = [ip("10.1.0.5/24", Some("10.1.0.1")), ip("fd00::5/64", None)];
    assert_eq!(planned(config, &ips), ["rule 10.1.0.5/32 to 500", "rule fd00::5/128 to 500"]);
}

#[test]
fn configured_gateways_win_each_for_its_family() {
    let config = Config {
        gateway_v4: Some("10.1.0.9".parse().expect("an address")),
        gateway_v6: Some("fd00::9".parse().expect("an address")),
        ..Config::default()
    };
    let ips = [ip("10.1.0.5/24", Some("10.1.0.1")), ip("fd00::5/64", None)];
    let added: Vec<String> =
        planned(config, &ips).into_iter().filter(|step| step.starts_with("add ")).collect();
    assert_eq!(added, ["add 0.0.0.0/0 via 10.1.0.9 in 101", "add ::/0 via fd00::9 in 103"]);
}

#[test]
fn source_hints_keep_the_networks_in_the_main_table() {
    let config = Config { add_source_hints: true, ..Config::default() };
    let ips = [ip("10.1.0.5/24", Some("10.1.0.1")), ip("10.3.0.5/24", None)];
    let steps = planned(config, &ips);
    assert_eq!(
        steps[steps.len() - 4..],
        [
            "hint 10.1.0.0/24 in 254 (true)",
            "hint 10.3.0.0/24 in 254 (false)",
            "try to delete 10.5.0.0/16 via 10.1.0.1 in 254",
            "try to delete fe80::/64 in 254",
        ]
    );
}

#[test]
fn a_configured_gateway_keeps_the_other_default_route_out() {
    let config = Config { gateway_v4: Some("10.1.0.9".parse().expect("an address")), ..Config::default() };
    let of_bridge = Route {
        link: Some(LINK),
        gateway: Some("10.1.0.1".parse().expect("an address")),
        ..Route::to("0.0.0.0/0".parse().expect("a network"))
    };
    let with_default = Found { routes: vec![of_bridge], ..found() };
    let ip = ip("10.1.0.5/24", Some("10.1.0.1"));
    let steps: Vec<String> = plan(&config, &[&ip], &with_default).iter().map(text).collect();
    assert_eq!(
        steps,
        [
            "rule 10.1.0.5/32 to 101",
            "add 0.0.0.0/0 via 10.1.0.9 in 101",
            "delete 0.0.0.0/0 via 10.1.0.1 in 254",
        ]
    );
    let copied: Vec<String> = plan(&Config::default(), &[&ip], &with_default).iter().map(text).collect();
    assert_eq!(copied[2], "copy 0.0.0.0/0 via 10.1.0.1 in 101");
}
