//! Reading a `resolv.conf` into the DNS part of a result.

use std::{io, path::Path};

use cni::{Dns, read_text_limited};

/// Reads the file.
pub(super) fn read(path: &Path) -> io::Result<Dns> {
    Ok(parse(&read_text_limited(path)?))
}

/// Lines of other keywords, comments and empty lines are passed over; the last `domain` wins, by its first word.
pub(super) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with('#') || line.starts_with(';') {
            continue;
        }
        let mut words = line.split_whitespace();
        let keyword = words.next();
        let mut values = words.map(str::to_owned);
        match keyword {
            Some("nameserver") => dns.nameservers.extend(values.take(1)),
            Some("domain") => dns.domain = values.next().or(dns.domain),
            Some("search") => dns.search.extend(values),
            Some("options") => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests;
