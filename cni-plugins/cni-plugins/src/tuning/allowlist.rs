//! Which sysctls may be set: what the machine's administrator wrote down, if anything.

use std::{collections::BTreeMap, io, path::Path};

use cni::{ErrorReply, code, read_text_limited};
use regex_lite::Regex;

/// One regular expression a line, each for any part of a sysctl's name. Without the file everything is allowed.
const FILE: &str = "/etc/cni/tuning/allowlist.conf";

pub(super) fn check(sysctls: &BTreeMap<String, String>) -> Result<(), ErrorReply> {
    match read_text_limited(Path::new(FILE)) {
        Ok(text) => check_with(&text, sysctls),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ErrorReply::new(code::IO_FAILURE, format!("read {FILE}: {error}"))),
    }
}

fn check_with(text: &str, sysctls: &BTreeMap<String, String>) -> Result<(), ErrorReply> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let invalid = |line: &str, error| ErrorReply::internal(format!("{FILE}: {line:?}: {error}"));
    let read = |line: &&str| Regex::new(line).map_err(|error| invalid(line, error));
    let allowed = lines.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    match sysctls.keys().find(|name| !allowed.iter().any(|expression| expression.is_match(name))) {
        None => Ok(()),
        Some(name) => {
            let list = lines.join(" ");
            let message =
                format!("Sysctl {name} is not allowed. Only the following sysctls are allowed: [{list}]");
            Err(ErrorReply::internal(message))
        }
    }
}

#[cfg(test)]
mod tests;
