//! How much the daemon does at a time, so that it never wants more files than it may open. Pure.

/// Standard streams, listener, signals and the runtime's own; a lease's file; and those of leases that are over.
const OWN_FILES: u64 = 32;
/// Namespace, netlink socket and packet socket.
const RENEWAL_FILES: u64 = 3;
/// Its connection, and as many as a renewal.
const QUESTION_FILES: u64 = 1 + RENEWAL_FILES;
const QUESTION_LIMIT: u64 = 512;
const RENEWAL_LIMIT: u64 = 256;

/// What is done at a time; the rest waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// Of plugins.
    pub(super) questions: usize,
    /// Leases that are extended.
    pub(super) renewals: usize,
}

impl Shares {
    /// Of a process that may open so many files: half of them for each kind.
    pub(super) fn of(files: u64) -> Self {
        let half = files.saturating_sub(OWN_FILES) / 2;
        let share = |limit: u64, each: u64| (half / each).clamp(1, limit) as usize;
        Self {
            questions: share(QUESTION_LIMIT, QUESTION_FILES),
            renewals: share(RENEWAL_LIMIT, RENEWAL_FILES),
        }
    }
}

#[cfg(test)]
mod tests;
