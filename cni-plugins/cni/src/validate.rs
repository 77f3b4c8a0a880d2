//! Names that become file names or link names: what the specification allows.

/// Bytes of a link's name, without the terminating zero (`IFNAMSIZ`).
const INTERFACE_NAME_LIMIT: usize = 15;

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("missing {what}")]
    Missing { what: &'static str },
    #[error(
        "invalid {what} {name:?}: expected a letter or digit, then letters, digits, \"_\", \".\" or \"-\""
    )]
    Characters { what: &'static str, name: String },
    #[error("invalid interface name {name:?}: {reason}")]
    Interface { name: String, reason: &'static str },
}

/// A container id: a file name's characters, not starting with punctuation.
///
/// # Errors
/// When it is empty or has other characters.
pub fn container_id(id: &str) -> Result<(), NameError> {
    plain("container ID", id)
}

/// A network's name, by the same rule.
///
/// # Errors
/// When it is empty or has other characters.
pub fn network_name(name: &str) -> Result<(), NameError> {
    plain("network name", name)
}

/// A link's name, as the kernel takes it.
///
/// # Errors
/// When it is empty, too long, `.` or `..`, or has a slash, a colon or a space in it.
pub fn interface_name(name: &str) -> Result<(), NameError> {
    let reason = if name.is_empty() {
        return Err(NameError::Missing { what: "interface name" });
    } else if name.len() > INTERFACE_NAME_LIMIT {
        "expected at most 15 bytes"
    } else if name == "." || name == ".." {
        "expected something other than \".\" and \"..\""
    } else if name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace()) {
        "expected no \"/\", \":\" or white space"
    } else {
        return Ok(());
    };
    Err(NameError::Interface { name: name.to_owned(), reason })
}

fn plain(what: &'static str, name: &str) -> Result<(), NameError> {
    let first = name.chars().next().ok_or(NameError::Missing { what })?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if first.is_ascii_alphanumeric() && name.chars().all(allowed) {
        Ok(())
    } else {
        Err(NameError::Characters { what, name: name.to_owned() })
    }
}
