//! Policy rules, routes that stand beside each other, and where routes lead.

use linux::{
    netlink::{BridgeOptions, Netlink, NewAddress, Route, Rule},
    outgoing,
};

use super::links::{Place, block_on};

async fn is_listed(netlink: &Netlink, wanted: Rule) -> bool {
    let rules = netlink.rules().await.expect("the rules");
    rules.iter().any(|rule| Rule { priority: None, ..*rule } == wanted)
}

#[test]
fn rules_of_both_families_come_and_go() {
    let place = Place::new("place");
    block_on(async {
        let netlink = place.netlink();
        let before = netlink.rules().await.expect("the rules");
        for (source, table) in [("10.0.0.7/32", 100), ("fd00::7/128", 100), ("10.0.0.8/32", 5000)] {
            let rule = Rule::from_source(source.parse().expect(source), table);
            netlink.add_rule(&rule).await.expect("a rule");
            assert!(is_listed(&netlink, rule).await, "{source}");
            let listed = netlink.rules().await.expect("the rules");
            let same = listed.into_iter().find(|listed| Rule { priority: None, ..*listed } == rule);
            let error = netlink.add_rule(&same.expect("it is listed")).await.expect_err("it is there");
            assert!(error.is_exists());
            netlink.del_rule(&rule).await.expect("it goes");
            assert!(!is_listed(&netlink, rule).await, "{source}");
            assert!(netlink.del_rule(&rule).await.expect_err("it is gone").is_gone());
        }
        assert_eq!(netlink.rules().await.expect("the rules"), before);
    });
}

#[test]
fn a_route_stands_beside_another_to_the_same_place() {
    let place = Place::new("place");
    block_on(async {
        let netlink = place.netlink();
        let bridge = BridgeOptions { name: "br0".to_owned(), ..BridgeOptions::default() };
        netlink.add_bridge(&bridge).await.expect("a bridge");
        let link = netlink.link("br0").await.expect("it is there").index;
        netlink.set_link_up(link).await.expect("it goes up");
        for (address, to, added, expected) in [
            ("10.0.0.1/24", "10.9.0.0/16", ["10.0.0.2", "10.0.0.3"], ["10.0.0.3", "10.0.0.2"]),
            ("fd00::1/64", "fd09::/64", ["fd00::2", "fd00::3"], ["fd00::2", "fd00::3"]),
        ] {
            let address = NewAddress::new(link, address.parse().expect(address));
            netlink.add_address(&address).await.expect("an address");
            let to = to.parse().expect(to);
            let via = |gateway: &str| Route {
                gateway: Some(gateway.parse().expect(gateway)),
                link: Some(link),
                ..Route::to(to)
            };
            for gateway in added {
                netlink.add_route_beside(&via(gateway)).await.expect("a route");
            }
            let again = netlink.add_route_beside(&via(added[0])).await.expect_err("the same route");
            assert!(again.is_exists());
            let gateways = async || {
                let mut routes = netlink.routes().await.expect("the routes");
                routes.retain(|route| route.destination == to && route.link == Some(link));
                let gateways = routes.iter().filter_map(|route| route.gateway);
                gateways.map(|gateway| gateway.to_string()).collect::<Vec<_>>()
            };
            assert_eq!(gateways().await, expected);
            netlink.del_route(&via(added[0])).await.expect("it goes by itself");
            assert_eq!(gateways().await, added[1..]);
        }
    });
}

#[test]
fn routes_lead_to_a_link() {
    let place = Place::new("place");
    block_on(async {
        let netlink = place.netlink();
        let bridge = BridgeOptions { name: "br0".to_owned(), ..BridgeOptions::default() };
        netlink.add_bridge(&bridge).await.expect("a bridge");
        let bridge = netlink.link("br0").await.expect("it is there").index;
        netlink.set_link_up(bridge).await.expect("it goes up");
        for address in ["10.9.0.1/24", "fd09::1/64"] {
            let new = NewAddress::new(bridge, address.parse().expect(address));
            netlink.add_address(&new).await.expect("an address");
        }
    });
    for (address, link) in
        [("10.9.0.7", Some("br0")), ("fd09::7", Some("br0")), ("192.0.2.1", None), ("2001:db8::1", None)]
    {
        let asked = place.0.run(|| outgoing::link_towards(address.parse().expect(address)));
        assert_eq!(asked.expect("a thread").expect(address).as_deref(), link, "{address}");
    }
}
