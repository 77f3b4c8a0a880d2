//! Writes that the kernel refused, kept until it takes them. Pure: how a write is done is the caller's.
//!
//! Arrays are shared memory and take every write; only the maps of frontends and source ranges are written by system calls that
//! can fail. Such a write concerns one key and may come at any later time: until it is done, a slot's key keeps readers from the
//! wrong service, and a range that is missing refuses. So the rest goes on, the newest failed write of each key is remembered, and
//! every later call tries again. There are never more of them than frontends and source ranges.

use std::collections::BTreeMap;

use dataplane_abi::{FrontendKey, NetworkKey};

use crate::model::Write;

#[cfg(test)]
mod tests;

/// How many writes of other frontends one call tries again: a call's work stays bounded while many fail.
const OTHERS_PER_CALL: usize = 16;

/// What a write that can fail writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Written {
    Frontend,
    /// One of the frontend's source ranges: a set's number is never given twice, so no other frontend writes it.
    Source(NetworkKey),
}

#[derive(Debug, Default)]
pub struct Unapplied {
    writes: BTreeMap<(FrontendKey, Written), Write>,
    /// Where the next call goes on among the writes of others.
    next: Option<(FrontendKey, Written)>,
}

impl Unapplied {
    /// Does `writes`, and what an earlier call for `key` failed to do. The error is the first one of this frontend; what
    /// fails again for another one is that one's next caller's to hear.
    pub fn apply<E>(
        &mut self,
        key: FrontendKey,
        writes: &[Write],
        mut apply: impl FnMut(&Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let result = self.apply_own(key, writes, &mut apply);
        self.retry_others(key, apply);
        result
    }

    /// As [`Self::apply`], without another try for anybody else.
    pub fn apply_own<E>(
        &mut self,
        key: FrontendKey,
        writes: &[Write],
        mut apply: impl FnMut(&Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut result = Ok(());
        // A newer write of the same takes the older one's place.
        for newer in writes.iter().filter_map(written) {
            self.writes.remove(&(key, newer));
        }
        let own = self.writes.range((key, Written::Frontend)..).take_while(|((owner, _), _)| *owner == key);
        let older: Vec<(Written, Write)> =
            own.map(|((_, written), write)| (*written, write.clone())).collect();
        for (written, _) in &older {
            self.writes.remove(&(key, *written));
        }
        for write in older.iter().map(|(_, write)| write).chain(writes) {
            if let Err(error) = apply(write) {
                if let Some(written) = written(write) {
                    self.writes.insert((key, written), write.clone());
                }
                result = result.and(Err(error));
            }
        }
        result
    }

    fn retry_others<E>(&mut self, own: FrontendKey, mut apply: impl FnMut(&Write) -> Result<(), E>) {
        let start = self.next.take();
        let keys: Vec<(FrontendKey, Written)> = self
            .writes
            .keys()
            .filter(|key| key.0 != own && start.is_none_or(|start| **key >= start))
            .take(OTHERS_PER_CALL + 1)
            .copied()
            .collect();
        for key in keys.iter().take(OTHERS_PER_CALL) {
            if self.writes.get(key).is_some_and(|write| apply(write).is_ok()) {
                self.writes.remove(key);
            }
        }
        self.next = keys.get(OTHERS_PER_CALL).copied();
    }
}

/// What a write writes, if it can fail.
fn written(write: &Write) -> Option<Written> {
    match write {
        Write::FrontendInsert { .. } | Write::FrontendRemove { .. } => Some(Written::Frontend),
        Write::SourceInsert { key } | Write::SourceRemove { key } => Some(Written::Source(*key)),
        _ => None,
    }
}
