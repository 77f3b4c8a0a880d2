//! Which addresses of a result are the container's.

use cni::{AddResult, Interface, IpConfig};

use super::addresses;

#[test]
fn the_first_address_of_each_family_in_the_container_counts() {
    let interface = |name: &str, sandbox: Option<&str>| Interface {
        name: name.to_owned(),
        sandbox: sandbox.map(str::to_owned),
        ..Interface::default()
    };
    let ip = |address: &str, interface: Option<usize>| IpConfig {
        interface,
        address: address.parse().expect(address),
        gateway: None,
    };
    let interfaces = vec![
        interface("eth0", None),
        interface("eth0", Some("/run/netns/a")),
        interface("eth1", Some("/run/netns/a")),
    ];
    for (ips, expected) in [
        (
            vec![ip("10.0.0.1/24", Some(0)), ip("10.0.0.2/24", Some(1)), ip("10.0.0.3/24", Some(1))],
            vec!["10.0.0.2"],
        ),
        (
            vec![ip("fd00::1/64", Some(2)), ip("fd00::2/64", Some(1)), ip("10.0.0.2/24", None)],
            vec!["10.0.0.2", "fd00::2"],
        ),
        // A position that says nothing.
        (vec![ip("10.0.0.4/24", Some(9))], vec!["10.0.0.4"]),
        (vec![], vec![]),
    ] {
        let result = AddResult { interfaces: interfaces.clone(), ips, ..AddResult::default() };
        let found: Vec<String> = addresses(&result, "eth0").iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }
}
