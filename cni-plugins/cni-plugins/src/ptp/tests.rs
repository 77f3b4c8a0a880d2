//! The routes of a container whose gateway is the host's end.

use cni::IpConfig;

use super::Hop;

fn hop(address: &str, gateway: Option<&str>) -> Result<Hop, cni::ErrorReply> {
    Hop::of(&IpConfig {
        interface: None,
        address: address.parse().expect(address),
        gateway: gateway.map(|gateway| gateway.parse().expect(gateway)),
    })
}

#[test]
fn the_gateway_is_on_the_link_and_its_network_behind_it() {
    for (address, gateway, to_gateway, to_network) in [
        ("10.1.2.5/24", "10.1.2.1", "10.1.2.1/32", "10.1.2.0/24"),
        ("fd00:1::5/64", "fd00:1::1", "fd00:1::1/128", "fd00:1::/64"),
    ] {
        let hop = hop(address, Some(gateway)).expect("a gateway");
        let [first, second] = hop.routes(7);
        assert_eq!(first.destination.to_string(), to_gateway);
        assert_eq!((first.gateway, first.scope), (None, 253));
        assert_eq!(second.destination.to_string(), to_network);
        assert_eq!((second.gateway, second.scope), (Some(hop.gateway), 0));
        assert!(
            [&first, &second]
                .iter()
                .all(|route| route.source == Some(hop.address.ip()) && route.link == Some(7))
        );
    }
}

#[test]
fn an_address_without_a_gateway_is_refused() {
    let error = hop("10.1.2.5/24", None).expect_err("no gateway");
    assert!(error.msg.contains("10.1.2.5/24 without a gateway"), "{error}");
}
