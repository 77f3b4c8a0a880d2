//! Hardware addresses of Ethernet links, as the kernel prints them (`0a:58:0a:f4:00:05`).

use std::{fmt, str::FromStr};

/// A 48-bit hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

/// The text is no hardware address of six octets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid hardware address {text:?}: expected six octets such as 0a:58:0a:f4:00:05")]
pub struct InvalidMac {
    pub text: String,
}

impl FromStr for MacAddress {
    type Err = InvalidMac;

    /// Six two-digit octets, divided by `:` or by `-`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMac { text: text.to_owned() };
        let divider = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(divider);
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(invalid)?;
        }
        if parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self(octets))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
