//! Writes that the kernel refused, kept until it takes them. Pure: how a write is done is the caller's.
//!
//! Arrays are shared memory and take every write; only the frontends map is written by system calls that can fail. Such a
//! write concerns one key and may come at any later time: until it is done, a slot's key keeps readers from the wrong
//! service. So the rest goes on, the newest failed write of each key is remembered, and every later call tries again.
//! There are never more of them than frontends.

use std::collections::BTreeMap;

use dataplane_abi::FrontendKey;

use crate::model::Write;

#[cfg(test)]
mod tests;

/// How many writes of other frontends one call tries again: a call's work stays bounded while many fail.
const OTHERS_PER_CALL: usize = 16;

#[derive(Debug, Default)]
pub struct Unapplied {
    writes: BTreeMap<FrontendKey, Write>,
    /// Where the next call goes on among the writes of others.
    next: Option<FrontendKey>,
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
        let mut result = Ok(());
        // A newer write of the same key takes the older one's place.
        let newer = writes.iter().any(|write| written_key(write) == Some(key));
        let older = self.writes.remove(&key).filter(|_| !newer);
        for write in older.iter().chain(writes) {
            if let Err(error) = apply(write) {
                if let Some(key) = written_key(write) {
                    self.writes.insert(key, write.clone());
                }
                result = result.and(Err(error));
            }
        }
        self.retry_others(key, apply);
        result
    }

    fn retry_others<E>(&mut self, own: FrontendKey, mut apply: impl FnMut(&Write) -> Result<(), E>) {
        let start = self.next.take();
        let keys: Vec<FrontendKey> = self
            .writes
            .keys()
            .filter(|key| **key != own && start.is_none_or(|start| **key >= start))
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

/// The key of a write that can fail.
fn written_key(write: &Write) -> Option<FrontendKey> {
    match write {
        Write::FrontendInsert { key, .. } | Write::FrontendRemove { key } => Some(*key),
        _ => None,
    }
}
