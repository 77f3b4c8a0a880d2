//! How much the daemon does at a time, so that it never wants more files than it may open. Pure.

/// Standard streams, listener, signals and the runtime's own; a lease's file; and those of leases that are over.
const OWN_FILES: u64 = 32;
/// Namespace, netlink socket and packet socket.
const RENEWAL_FILES: u64 = 3;
/// As many as a renewal; its connection and that of one that waits; and as many connections of questions that are no ADDs.
const ADD_FILES: u64 = RENEWAL_FILES + 4;
const ADD_LIMIT: u64 = 512;
const RENEWAL_LIMIT: u64 = 256;
/// Neither a question that is read nor a release takes long, so few at a time are enough.
const SHORT_LIMIT: u64 = 8;

/// What is done at a time; the rest waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// Questions that are read.
    pub(super) readings: usize,
    /// ADDs that look for a server.
    pub(super) adds: usize,
    /// ADDs that were read.
    pub(super) open_adds: usize,
    /// Other questions that were read.
    pub(super) open_others: usize,
    /// Leases that are given back.
    pub(super) releases: usize,
    /// Leases that are extended.
    pub(super) renewals: usize,
}

impl Shares {
    /// Of a process that may open so many files: half of them for questions, half for renewals.
    pub(super) fn of(files: u64) -> Self {
        let half = files.saturating_sub(OWN_FILES) / 2;
        let share = |of: u64, each: u64, limit: u64| (of / each).clamp(1, limit);
        // A sixteenth for each of the short ones, with their files at most a quarter.
        let short = share(half, 16, SHORT_LIMIT);
        let adds = share(half.saturating_sub(short * (1 + RENEWAL_FILES)), ADD_FILES, ADD_LIMIT) as usize;
        Self {
            readings: short as usize,
            adds,
            open_adds: 2 * adds,
            open_others: 2 * adds,
            releases: short as usize,
            renewals: share(half, RENEWAL_FILES, RENEWAL_LIMIT) as usize,
        }
    }
}

#[cfg(test)]
mod tests;
