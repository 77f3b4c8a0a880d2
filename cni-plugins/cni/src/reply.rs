//! The error document that a failing plugin prints, and its codes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Codes of the specification's section "Error", and 999, which the reference library uses for everything else.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const UNSUPPORTED_FIELD: u32 = 2;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO_FAILURE: u32 = 5;
    pub const DECODING_FAILURE: u32 = 6;
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    pub const INVALID_NETNS: u32 = 8;
    pub const TRY_AGAIN_LATER: u32 = 11;
    pub const PLUGIN_NOT_AVAILABLE: u32 = 50;
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Codes from here on are a plugin's own.
    pub const FIRST_OWN: u32 = 100;
    pub const INTERNAL: u32 = 999;
}

/// An error document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    #[serde(rename = "cniVersion", default, skip_serializing_if = "Option::is_none")]
    pub cni_version: Option<String>,
    /// 0 where the plugin gave none.
    #[serde(default)]
    pub code: u32,
    #[serde(default)]
    pub msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl ErrorReply {
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { cni_version: None, code, msg: msg.into(), details: String::new() }
    }

    /// Code 999: the plugin tried and failed.
    pub fn internal(error: impl fmt::Display) -> Self {
        Self::new(code::INTERNAL, error.to_string())
    }

    /// Code 7: the configuration asks for something impossible.
    pub fn config(error: impl fmt::Display) -> Self {
        Self::new(code::INVALID_NETWORK_CONFIG, error.to_string())
    }

    /// The first error, with the others in its details: for what goes on after an error.
    ///
    /// # Errors
    /// When there is any.
    pub fn first_of(done: impl IntoIterator<Item = Result<(), Self>>) -> Result<(), Self> {
        let mut errors = done.into_iter().filter_map(Result::err);
        match errors.next() {
            Some(first) => Err(errors.fold(first, |first, also| first.with_more(&format!("also: {also}")))),
            None => Ok(()),
        }
    }

    /// Says what an undo could not take back, beside the details that are there; nothing for nothing.
    #[must_use]
    pub fn with_undo(self, left: impl IntoIterator<Item = impl fmt::Display>) -> Self {
        let left: Vec<String> = left.into_iter().map(|left| left.to_string()).collect();
        if left.is_empty() { self } else { self.with_more(&format!("undo: {}", left.join("; "))) }
    }

    fn with_more(mut self, more: &str) -> Self {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(more);
        self
    }

    /// In place of details that are there.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for ErrorReply {}

#[cfg(test)]
mod tests;
