//! The past: objects of a kind as they were at an older revision, by undoing the window's changes.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::collections::vec_deque;
use std::sync::Arc;

use super::{Entry, Key, Recorded};
use crate::storage::Revision;

/// Objects at `wanted`; the window must reach back that far.
pub(super) fn objects_at<'a>(
    now: btree_map::Iter<'a, Key, Arc<Entry>>,
    window: vec_deque::Iter<'a, Recorded>,
    wanted: Revision,
) -> BTreeMap<&'a Key, &'a Arc<Entry>> {
    let mut objects: BTreeMap<_, _> = now.collect();
    for change in window.rev().take_while(|change| change.entry.revision > wanted) {
        match &change.previous {
            Some(previous) => objects.insert(&change.entry.key, previous),
            None => objects.remove(&change.entry.key),
        };
    }
    objects
}
