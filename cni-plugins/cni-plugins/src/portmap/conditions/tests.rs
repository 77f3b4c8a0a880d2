//! Tables for conditions.

use linux::nftables::{Match, Transport};
use proptest::prelude::*;

use super::{Condition, Language, parse};

fn words(text: &str) -> Vec<String> {
    text.split('|').map(str::to_owned).collect()
}

fn network(text: &str) -> ipnetwork::IpNetwork {
    text.parse().expect(text)
}

#[test]
fn both_languages_are_read() {
    use Condition::{Destination, DestinationPort, InputLink, Mark, OutputLink, Source, SourcePort};
    use Match::{Is, IsNot};
    for (text, expected) in [
        ("", vec![]),
        ("ip|saddr|1.2.3.4", vec![Source(Is, network("1.2.3.4/32"))]),
        ("ip daddr != 10.0.0.0/8", vec![Destination(IsNot, network("10.0.0.0/8"))]),
        (
            "iifname \"eth0\" oifname != eth1",
            vec![InputLink(Is, "eth0".to_owned()), OutputLink(IsNot, "eth1".to_owned())],
        ),
        (
            "meta iifname|==|eth0|meta mark ne 0x10 mark 7",
            vec![InputLink(Is, "eth0".to_owned()), Mark(IsNot, 16), Mark(Is, 7)],
        ),
        (
            "tcp sport 1024|udp dport != 53",
            vec![SourcePort(Transport::Tcp, Is, 1024), DestinationPort(Transport::Udp, IsNot, 53)],
        ),
        ("-s|1.2.3.4", vec![Source(Is, network("1.2.3.4/32"))]),
        (
            "!|-s|1.2.3.0/24|-d|10.0.0.1|-i|eth0",
            vec![
                Source(IsNot, network("1.2.3.0/24")),
                Destination(Is, network("10.0.0.1/32")),
                InputLink(Is, "eth0".to_owned()),
            ],
        ),
    ] {
        assert_eq!(parse(&words(text), true), Ok(expected), "{text}");
    }
    assert_eq!(parse(&words("ip6 saddr 12::34"), false), Ok(vec![Source(Is, network("12::34/128"))]));
}

#[test]
fn what_is_not_understood_is_refused() {
    for (text, message) in [
        ("a|b", "\"a\" is not supported"),
        ("ip", "expected \"saddr\" or \"daddr\" at the end"),
        ("ip saddr", "expected an address at the end"),
        ("ip ttl 5", "\"5\": expected an IPv4 address or network"),
        ("ip saddr 12::34", "\"12::34\": expected an IPv4 address or network"),
        ("ip6 saddr 12::34", "\"ip6\" is of the other family"),
        ("ip saddr {1.2.3.4,1.2.3.5}", "\"{1.2.3.4,1.2.3.5}\": expected an IPv4 address or network"),
        ("tcp dport 1-2", "\"1-2\": expected a port"),
        ("tcp flags 1", "\"tcp flags\" is not supported"),
        ("iifname eth*", "\"eth*\": expected the name of one link"),
        ("meta mark & 1 == 1", "\"&\": expected a number"),
        ("ct state new", "\"ct\" is not supported"),
        ("-i eth+", "\"eth+\": expected the name of one link"),
        ("-m|set", "\"-m\" is not supported"),
        ("-s|1.2.3.4|ip saddr 1.2.3.4", "\"ip\" is not supported"),
        ("!", "expected an option at the end"),
    ] {
        assert_eq!(parse(&words(text), true), Err(message.to_owned()), "{text}");
    }
}

#[test]
fn the_language_is_told_by_the_first_sign() {
    for (text, expected) in [
        ("", None),
        ("-s", Some(Language::Iptables)),
        ("!", Some(Language::Iptables)),
        ("ip", Some(Language::Nftables)),
    ] {
        assert_eq!(Language::of(&words(text)), expected, "{text:?}");
    }
    assert_eq!(Language::of(&[]), None);
}

proptest! {
    #[test]
    fn any_text_gets_an_answer(text in "([-!=a-z0-9./: ]|ip |ip6 |saddr |daddr |tcp |dport |-s |iifname ){0,20}", is_ipv4: bool) {
        let _ = parse(&words(&text), is_ipv4);
    }
}
