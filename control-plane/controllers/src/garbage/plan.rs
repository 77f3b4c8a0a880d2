//! What has to happen to one object whose owners may be gone.
//!
//! Input: the object's metadata as the API server has it, what became of each owner, its dependents. Output: an
//! [`Action`]. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PropagationPolicy;

use super::graph::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Item};

/// What became of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It exists and stays.
    Solid,
    /// It is gone, or another object has its name.
    Gone,
    /// It is being deleted in the foreground and waits for its dependents.
    Waiting,
}

/// What to do with the object.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Nothing,
    /// Take these uids out of its owners: one that stays is enough to live.
    Disown(Vec<String>),
    /// Delete it; `unblock` names owners whose wait for it must end first, because it waits for them in turn.
    Delete {
        policy: PropagationPolicy,
        unblock: bool,
    },
}

/// Decides about an object that is not being deleted; `owners` gives the fate of each owner that it names.
pub fn plan(meta: &ObjectMeta, owners: &[(String, Fate)], dependents: &[Item]) -> Action {
    if owners.is_empty() {
        return Action::Nothing;
    }
    let of = |fate: Fate| -> Vec<String> {
        owners.iter().filter(|(_, own)| *own == fate).map(|(uid, _)| uid.clone()).collect()
    };
    let (solid, mut gone, waiting) = (of(Fate::Solid), of(Fate::Gone), of(Fate::Waiting));
    if !solid.is_empty() {
        gone.extend(waiting);
        return if gone.is_empty() { Action::Nothing } else { Action::Disown(gone) };
    }
    if !waiting.is_empty() && !dependents.is_empty() {
        // Where a dependent is being deleted in the foreground too, two objects may wait for each other.
        let unblock = dependents.iter().any(|dependent| dependent.foreground);
        return Action::Delete { policy: PropagationPolicy::Foreground, unblock };
    }
    let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
    let policy = if has(FINALIZER_ORPHAN) {
        PropagationPolicy::Orphan
    } else if has(FINALIZER_FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    };
    Action::Delete { policy, unblock: false }
}

/// What an object that is deleted in the foreground waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum Wait {
    /// For nothing: its finalizer goes.
    Over,
    /// For these dependents, which have to be looked at.
    For(Vec<String>),
}

/// Decides about an object that is being deleted in the foreground.
pub fn wait(uid: &str, dependents: &[Item]) -> Wait {
    let blocking: Vec<&Item> = dependents.iter().filter(|dependent| dependent.blocks(uid)).collect();
    if blocking.is_empty() {
        return Wait::Over;
    }
    let idle = blocking.into_iter().filter(|dependent| !dependent.foreground);
    Wait::For(idle.map(|dependent| dependent.identity.uid.clone()).collect())
}
