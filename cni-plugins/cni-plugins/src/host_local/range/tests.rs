//! Tables for ranges, and properties of the order in which addresses are tried.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::prelude::*;

use super::{Range, RangeSet, RawRange, bits, from_bits};

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn raw(subnet: &str, start: Option<&str>, end: Option<&str>, gateway: Option<&str>) -> RawRange {
    RawRange {
        subnet: subnet.parse().expect(subnet),
        start: start.map(ip),
        end: end.map(ip),
        gateway: gateway.map(ip),
    }
}

#[test]
fn defaults_leave_out_network_and_broadcast() {
    for (subnet, start, end, gateway) in [
        ("10.1.2.0/24", "10.1.2.1", "10.1.2.254", "10.1.2.1"),
        ("10.1.2.0/30", "10.1.2.1", "10.1.2.2", "10.1.2.1"),
        ("10.0.0.0/8", "10.0.0.1", "10.255.255.254", "10.0.0.1"),
        ("fd00::/120", "fd00::1", "fd00::ff", "fd00::1"),
    ] {
        let range = Range::try_from(raw(subnet, None, None, None)).expect(subnet);
        assert_eq!((range.start, range.end, range.gateway), (ip(start), ip(end), ip(gateway)), "{subnet}");
    }
}

#[test]
fn ranges_that_make_no_sense_say_why() {
    for (range, message) in [
        (raw("10.1.2.0/31", None, None, None), "network 10.1.2.0/31 too small to allocate from"),
        (raw("fd00::/127", None, None, None), "too small"),
        (raw("10.1.2.5/24", None, None, None), "the network address is 10.1.2.0"),
        (raw("::ffff:10.1.2.0/120", None, None, None), "write the IPv4 network"),
        (raw("10.1.2.0/24", Some("10.1.3.1"), None, None), "rangeStart 10.1.3.1 not in network 10.1.2.0/24"),
        (raw("10.1.2.0/24", None, Some("fd00::1"), None), "rangeEnd fd00::1 not in network"),
        (raw("10.1.2.0/24", Some("10.1.2.9"), Some("10.1.2.8"), None), "is after rangeEnd"),
    ] {
        let error = Range::try_from(range).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    }
    for (set, message) in [
        (vec![], "empty range set"),
        (
            vec![raw("10.0.0.0/24", None, None, None), raw("fd00::/64", None, None, None)],
            "mixed address families",
        ),
        (
            vec![raw("10.0.0.0/24", None, None, None), raw("10.0.0.0/24", Some("10.0.0.9"), None, None)],
            "ranges 10.0.0.1-10.0.0.254 and 10.0.0.9-10.0.0.254 overlap",
        ),
    ] {
        assert_eq!(RangeSet::new(&set).expect_err(message).to_string(), message);
    }
}

fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
    set.candidates(last.map(ip)).map(|(address, _)| address.to_string()).collect()
}

#[test]
fn the_round_starts_after_the_last_one() {
    let set = RangeSet::new(&[
        raw("10.1.2.0/29", Some("10.1.2.1"), Some("10.1.2.3"), None),
        raw("10.1.4.0/29", Some("10.1.4.2"), Some("10.1.4.3"), None),
    ])
    .expect("a set");
    let all = ["10.1.2.2", "10.1.2.3", "10.1.4.2", "10.1.4.3"];
    assert_eq!(order(&set, None), all);
    assert_eq!(order(&set, Some("10.1.2.3")), ["10.1.4.2", "10.1.4.3", "10.1.2.2", "10.1.2.3"]);
    assert_eq!(order(&set, Some("10.1.4.3")), all);
    assert_eq!(order(&set, Some("10.9.9.9")), all);
}

#[test]
fn a_range_of_nothing_but_its_gateway_has_no_address() {
    let set = RangeSet::new(&[raw("10.1.2.0/29", Some("10.1.2.1"), Some("10.1.2.1"), None)]).expect("a set");
    assert_eq!(order(&set, None), Vec::<String>::new());
    assert_eq!(order(&set, Some("10.1.2.1")), Vec::<String>::new());
}

#[test]
fn the_last_address_of_ipv6_does_not_overflow() {
    let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let set =
        RangeSet::new(&[raw("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", Some(last), Some(last), None)]);
    assert_eq!(order(&set.expect("a set"), None), [last]);
}

proptest! {
    /// Wherever it starts, a round gives every address but the gateway exactly once, and ends with the last one.
    #[test]
    fn a_round_is_complete(start in 1u8..=254, length in 0u8..40, gateway in 1u8..=254, last in 0u8..=255) {
        let end = start.saturating_add(length).min(254);
        let address = |low: u8| from_bits(bits(ip("10.1.2.0")) + u128::from(low), true);
        let range = RawRange {
            subnet: "10.1.2.0/24".parse().expect("a network"),
            start: Some(address(start)),
            end: Some(address(end)),
            gateway: Some(address(gateway)),
        };
        let set = RangeSet::new(&[range]).expect("a set");
        let given: Vec<IpAddr> = set.candidates(Some(address(last))).map(|(address, _)| address).collect();
        let expected: BTreeSet<IpAddr> = (start..=end).filter(|low| *low != gateway).map(address).collect();
        prop_assert_eq!(given.len(), expected.len());
        prop_assert_eq!(given.iter().copied().collect::<BTreeSet<_>>(), expected);
        if (start..=end).contains(&last) && last != gateway {
            prop_assert_eq!(given.last().copied(), Some(address(last)));
        }
    }
}
