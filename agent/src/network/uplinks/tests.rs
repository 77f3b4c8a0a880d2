use std::collections::BTreeSet;
use std::net::IpAddr;

use linux::netlink::{Address, AddressFlags, AddressScope, Route};

use super::{Facts, choose, default_routes, is_lasting};

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
            (3, "2001:db8::6".parse().expect("an address")),
            (3, "2001:db8::5".parse().expect("an address")),
            (4, [10, 244, 0, 1].into()),
        ],
        default_routes: BTreeSet::from([2]),
    }
}

fn node(v4: [u8; 4], v6: Option<&str>) -> Vec<IpAddr> {
    let v6 = v6.map(|text| text.parse().expect("an address"));
    [IpAddr::from(v4)].into_iter().chain(v6).collect()
}

#[test]
fn the_default_routes_link_and_the_one_with_the_nodes_address() {
    let uplinks = choose(&[], &node([10, 1, 0, 5], Some("2001:db8::5")), &facts()).expect("uplinks");
    assert_eq!(uplinks.names, ["eth0", "eth1"]);
    assert_eq!(uplinks.mtu, 1450);
    let addresses: Vec<String> = uplinks.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.5", "2001:db8::5", "10.0.0.5", "10.1.0.6", "2001:db8::6"]);
}

#[test]
fn settings_win_and_must_exist() {
    let uplinks = choose(&["eth1".into()], &node([10, 0, 0, 5], None), &facts()).expect("uplinks");
    assert_eq!((uplinks.names, uplinks.mtu), (vec!["eth1".to_owned()], 1450));
    let error = choose(&["eth9".into()], &node([10, 0, 0, 5], None), &facts()).expect_err("no such link");
    assert_eq!(error.to_string(), "uplink eth9: no such link");
}

#[test]
fn a_machine_without_any_says_what_to_do() {
    let facts = Facts { default_routes: BTreeSet::new(), ..facts() };
    let error = choose(&[], &node([192, 0, 2, 1], None), &facts).expect_err("nothing fits");
    assert!(error.to_string().ends_with("name one with --uplink"), "{error}");
    let error = choose(&[], &[], &facts).expect_err("nobody knows the node's address").to_string();
    assert!(
        error.contains("the Node has no InternalIP") && error.ends_with("name a link with --uplink"),
        "{error}"
    );
    assert_eq!(choose(&["eth0".into()], &[], &facts).expect("the link that is named").names, ["eth0"]);
}

#[test]
fn default_routes_are_the_main_tables() {
    let route = |to: &str, link| Route { link: Some(link), ..Route::to(to.parse().expect("a network")) };
    let of_vpn = Route { table: 51820, ..route("0.0.0.0/0", 5) };
    let routes = [route("0.0.0.0/0", 2), route("10.0.0.0/8", 3), route("::/0", 4), of_vpn];
    let of = |v6| default_routes(&routes, &node([10, 0, 0, 5], v6));
    assert_eq!([of(None), of(Some("2001:db8::5"))], [BTreeSet::from([2]), BTreeSet::from([2, 4])]);
}

#[test]
fn addresses_that_pass_are_nobodys_node_port() {
    let lasting = |network: &str, flags| {
        is_lasting(&Address {
            link: 2,
            network: network.parse().expect("a network"),
            scope: AddressScope::Universe,
            flags,
        })
    };
    let none = AddressFlags::empty();
    assert!(lasting("10.0.0.5/24", AddressFlags::Secondary), "a second address of one network");
    assert!(lasting("2001:db8::5/64", none));
    assert!(!lasting("fe80::5/64", none));
    for flags in [AddressFlags::Secondary, AddressFlags::Deprecated, AddressFlags::Dadfailed] {
        assert!(!lasting("2001:db8::6/64", flags), "{flags:?}");
    }
}
