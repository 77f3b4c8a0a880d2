//! Pods that the node still keeps something of, read from names alone: folders, logs, control groups.
//!
//! In: what lies on the node. Out: whose it is, and in which order their ends come ([`Queue`], pure). An agent that dies between two steps of
//! a pod's start or end leaves such things without a sandbox that would tell of them. Removes nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::resources::{self, Qos};
use super::site::Site;
use crate::api::chain;

#[cfg(test)]
mod tests;

/// Pods that are ended at a time.
const AT_ONCE: usize = 16;
/// Pods that wait for their end; more are found by the next start of the agent.
const WAITING: usize = 4096;

/// What is known of the pod besides its uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Empty when no log directory says it.
    pub namespace: String,
    /// Empty when no log directory says it.
    pub name: String,
}

/// Whose end is still to come, and whose is under way.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<String, Owner>,
    ending: BTreeSet<String>,
}

impl Queue {
    /// All that `is_pod` does not know: what a pod has is not left over.
    pub fn of(owners: BTreeMap<String, Owner>, is_pod: impl Fn(&str) -> bool) -> Queue {
        let mut waiting: BTreeMap<_, _> = owners.into_iter().filter(|(uid, _)| !is_pod(uid)).collect();
        let passed_over = waiting.len().saturating_sub(WAITING);
        if passed_over > 0 {
            tracing::warn!(
                passed_over,
                "what is left of these pods is removed by a later start of the agent"
            );
            waiting = waiting.into_iter().take(WAITING).collect();
        }
        Queue { waiting, ending: BTreeSet::new() }
    }

    /// A pod begins: what there is of it is its own.
    pub fn begins(&mut self, uid: &str) {
        self.waiting.remove(uid);
    }

    /// Whose turn it is to be ended, while there are fewer than [`AT_ONCE`].
    pub fn next(&mut self) -> Option<(String, Owner)> {
        if self.ending.len() >= AT_ONCE {
            return None;
        }
        let next = self.waiting.pop_first()?;
        self.ending.insert(next.0.clone());
        Some(next)
    }

    /// A pod's end is complete; others make no difference.
    pub fn ended(&mut self, uid: &str) {
        self.ending.remove(uid);
    }
}

/// Everybody of whom the node keeps something, by uid. File work, as much as there are such pods.
///
/// # Errors
/// What could not be read, in words.
pub fn owners(site: &Site) -> Result<BTreeMap<String, Owner>, String> {
    let mut groups = Vec::new();
    for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        let path = resources::qos_cgroup_path(&site.cgroup_parent, class);
        groups.extend(site.cgroups.group(&path).map_err(|error| chain(&error))?.children());
    }
    Ok(of_names(&folders(&site.root)?, &folders(&site.log_root)?, &groups))
}

/// Reads the names of pods' folders (`<uid>`), of log directories (`<namespace>_<name>_<uid>`) and of control groups (`pod<uid>`).
fn of_names(folders: &[String], logs: &[String], groups: &[String]) -> BTreeMap<String, Owner> {
    let uids = groups.iter().filter_map(|name| name.strip_prefix("pod"));
    let uids = uids.chain(folders.iter().map(String::as_str)).filter(|uid| is_uid(uid));
    let mut owners: BTreeMap<String, Owner> = uids.map(|uid| (uid.to_owned(), Owner::default())).collect();
    for log in logs {
        let parts: Vec<&str> = log.split('_').collect();
        if let [namespace, name, uid] = parts.as_slice()
            && !namespace.is_empty()
            && !name.is_empty()
            && is_uid(uid)
        {
            let owner = Owner { namespace: (*namespace).to_owned(), name: (*name).to_owned() };
            owners.insert((*uid).to_owned(), owner);
        }
    }
    owners
}

/// Whether a name can be a pod's uid, which becomes part of paths: who may write to the node's logs may write `a_b_..` there.
fn is_uid(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The names of the folders in a folder; none when it does not exist.
fn folders(parent: &Path) -> Result<Vec<String>, String> {
    let failed = |error: io::Error| format!("read {}: {error}", parent.display());
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}
