//! Tables for conflicting addresses.

use super::conflicts;

#[test]
fn one_ipv4_address_and_ipv6_networks_apart() {
    for (present, wanted, expected) in [
        ("10.1.0.1/24", "10.2.0.1/24", true),
        ("fd00::1/64", "fd00::2/64", true),
        ("fd00::1/64", "fd00::1:0:0:1/48", true),
        ("fd00::1/64", "fd01::1/64", false),
        ("fe80::1/64", "fd01::1/64", false),
        ("10.1.0.1/24", "fd01::1/64", false),
    ] {
        let [a, b] = [present, wanted].map(|text| text.parse().expect(text));
        assert_eq!(conflicts(a, b), expected, "{present} {wanted}");
    }
}
