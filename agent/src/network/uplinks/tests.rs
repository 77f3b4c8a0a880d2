use std::collections::BTreeSet;

use linux::netlink::Route;

use super::{Facts, choose, default_routes};

fn facts() -> Facts {
    Facts {
        links: vec![
            (1, "lo".into(), 65536),
            (2, "eth0".into(), 1500),
            (3, "eth1".into(), 1450),
            (4, "orlop0".into(), 1500),
        ],
        addresses: vec![
            (1, [127, 0, 0, 1].into()),
            (2, [10, 0, 0, 5].into()),
            (3, [10, 1, 0, 6].into()),
            (3, [10, 1, 0, 5].into()),
            (4, [10, 244, 0, 1].into()),
        ],
        default_routes: BTreeSet::from([2]),
    }
}

#[test]
fn the_default_routes_link_and_the_one_with_the_nodes_address() {
    let uplinks = choose(&[], [10, 1, 0, 5].into(), &facts()).expect("uplinks");
    assert_eq!(uplinks.names, ["eth0", "eth1"]);
    assert_eq!(uplinks.mtu, 1450);
    let addresses: Vec<String> = uplinks.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.5", "10.0.0.5", "10.1.0.6"]);
}

#[test]
fn settings_win_and_must_exist() {
    let uplinks = choose(&["eth1".into()], [10, 0, 0, 5].into(), &facts()).expect("uplinks");
    assert_eq!((uplinks.names, uplinks.mtu), (vec!["eth1".to_owned()], 1450));
    let error = choose(&["eth9".into()], [10, 0, 0, 5].into(), &facts()).expect_err("no such link");
    assert_eq!(error.to_string(), "uplink eth9: no such link");
}

#[test]
fn a_machine_without_any_says_what_to_do() {
    let facts = Facts { default_routes: BTreeSet::new(), ..facts() };
    let error = choose(&[], [192, 0, 2, 1].into(), &facts).expect_err("nothing fits");
    assert!(error.to_string().ends_with("name one with --uplink"), "{error}");
}

#[test]
fn default_routes_are_the_main_tables() {
    let route = |to: &str, link| Route { link: Some(link), ..Route::to(to.parse().expect("a network")) };
    let of_vpn = Route { table: 51820, ..route("0.0.0.0/0", 5) };
    let routes = [route("0.0.0.0/0", 2), route("10.0.0.0/8", 3), route("::/0", 4), of_vpn];
    assert_eq!(default_routes(&routes), BTreeSet::from([2]));
}
