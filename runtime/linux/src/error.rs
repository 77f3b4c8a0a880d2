//! The one error of this crate: which call failed, on what, and how.

/// A failed system call.
#[derive(Debug, thiserror::Error)]
#[error("{call} {object}: {source}")]
pub struct Error {
    /// Name of the call, as in its manual page.
    pub call: &'static str,
    /// What it was called on: a path, a pid, a device; may be empty.
    pub object: String,
    /// The error number.
    pub source: std::io::Error,
}

impl Error {
    /// Wraps the error number of a call.
    pub fn new(
        call: &'static str,
        object: impl std::fmt::Display,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Error { call, object: object.to_string(), source: source.into() }
    }

    /// Wraps `errno` as the last failed call left it.
    pub fn last(call: &'static str, object: impl std::fmt::Display) -> Self {
        Error::new(call, object, std::io::Error::last_os_error())
    }

    /// The error number, where the error came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == std::io::ErrorKind::NotFound || self.errno() == Some(libc::ESRCH)
    }
}
