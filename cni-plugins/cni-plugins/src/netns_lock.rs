//! One plugin at a time changes what the links of a namespace share: rules, routing tables, VRFs.
//!
//! The lock is on the namespace's own file (`flock`), where the reference plugin has it too, and ends with the process.

use std::{fs::File, path::Path};

use cni::{ErrorReply, code};

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(crate) struct NetnsLock {
    _file: File,
}

impl NetnsLock {
    /// Waits for the lock.
    pub(crate) fn take(netns: &Path) -> Result<Self, ErrorReply> {
        let failed = |error: std::io::Error| {
            ErrorReply::new(code::IO_FAILURE, format!("lock network namespace {}: {error}", netns.display()))
        };
        let file = File::open(netns).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(Self { _file: file })
    }
}
