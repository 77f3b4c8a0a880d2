//! Networks in CIDR form, by the rules of KEP-4858 (on in v1.36): what a text means, and what is wrong with it.
//!
//! Input: a text. Output: the network that older clients read it as, and why it is refused nevertheless. Pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub(super) const NOT_A_NETWORK: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const LEADING_ZEROS: &str = "must not have leading 0s in IP or prefix length";
const MAPPED: &str = "must not have an IPv4-mapped IPv6 address";
const HOST_BITS: &str = "must not have bits set beyond the prefix length";

/// The network, where the text means one, and the problem, where it has one.
pub(super) fn read(text: &str) -> (Option<IpNetwork>, Option<&'static str>) {
    let Some(network) = lenient(text) else { return (None, Some(NOT_A_NETWORK)) };
    let problem = match network.ip() {
        _ if has_leading_zeros(text) => Some(LEADING_ZEROS),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => Some(MAPPED),
        address if address != network.network() => Some(HOST_BITS),
        _ => None,
    };
    (Some(network), problem)
}

fn lenient(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let is_number = !length.is_empty() && length.bytes().all(|digit| digit.is_ascii_digit());
    let length = is_number.then(|| without_leading_zeros(length))?;
    IpNetwork::new(without_leading_zeros(address).parse().ok()?, length.parse().ok()?).ok()
}

/// Whether the zeros matter: IPv6 groups may begin with some, up to four digits.
fn has_leading_zeros(text: &str) -> bool {
    text.split_once('/').is_none_or(|(address, length)| {
        address.parse::<IpAddr>().is_err() || (length.len() > 1 && length.starts_with('0'))
    })
}

/// The text with every number of it in its shortest form.
fn without_leading_zeros(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut in_number = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let is_last = !chars.peek().is_some_and(char::is_ascii_hexdigit);
        if c == '0' && !in_number && !is_last {
            continue;
        }
        in_number = c.is_ascii_hexdigit();
        short.push(c);
    }
    short
}

#[cfg(test)]
mod tests {
    //! Texts as upstream's own tables of good, questionable and bad ones have them.

    use super::*;

    #[test]
    fn texts_and_their_problems() {
        for (text, network, problem) in [
            ("10.9.8.0/24", "10.9.8.0/24", None),
            ("0.0.0.0/0", "0.0.0.0/0", None),
            ("100.0.0.0/8", "100.0.0.0/8", None),
            ("10.9.8.7/32", "10.9.8.7/32", None),
            ("2001:db8::/64", "2001:db8::/64", None),
            ("::/0", "::/0", None),
            ("2001:0DB8:0:0::/64", "2001:db8::/64", None),
            ("010.009.008.000/24", "10.9.8.0/24", Some(LEADING_ZEROS)),
            ("10.9.8.0/024", "10.9.8.0/24", Some(LEADING_ZEROS)),
            ("2001:00db8::/64", "2001:db8::/64", Some(LEADING_ZEROS)),
            ("::ffff:01.2.3.0/120", "::ffff:1.2.3.0/120", Some(LEADING_ZEROS)),
            ("::ffff:1.2.3.0/120", "::ffff:1.2.3.0/120", Some(MAPPED)),
            ("10.9.8.7/24", "10.9.8.7/24", Some(HOST_BITS)),
            ("2001:db8::1/64", "2001:db8::1/64", Some(HOST_BITS)),
        ] {
            assert_eq!(read(text), (Some(network.parse().unwrap()), problem), "{text}");
        }
        for text in [
            "",
            "/",
            "a",
            "10.9.8.0",
            "10.9.8/24",
            "10.9.8.256/24",
            "10.9.8.0/33",
            "10.9.8.0/-1",
            "10.9.8.0/+8",
            "10.9.8.0/",
            "10.9.8.0/24/8",
            " 10.9.8.0/24",
            "2001:db8::/129",
            "fe80::1%eth0/64",
            "1:2:3/64",
        ] {
            assert_eq!(read(text), (None, Some(NOT_A_NETWORK)), "{text}");
        }
    }
}
