//! Where one pod goes.
//!
//! Input: a pod, the nodes with what is left of them, a seed for ties. Output: a [`Decision`]. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;

use super::cluster::Cluster;
use super::filter::{Check, Subject, check};
use super::score::scores;

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes to this node.
    Bind(String),
    /// No node can take it: the words for the user, and the checks that failed, which say what may change that.
    Unschedulable { message: String, checks: BTreeSet<Check> },
}

/// Decides where the pod goes; `seed` chooses among nodes of equal score.
pub fn plan(pod: &Pod, cluster: &Cluster, seed: u64) -> Decision {
    let subject = Subject::new(pod);
    let mut fitting = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut checks = BTreeSet::new();
    let mut total = 0;
    for node in cluster.nodes() {
        total += 1;
        let Some(objection) = check(&subject, node) else {
            fitting.push(node);
            continue;
        };
        checks.insert(objection.check);
        for reason in objection.reasons {
            *reasons.entry(reason).or_insert(0) += 1;
        }
    }
    if fitting.is_empty() {
        return Decision::Unschedulable { message: message(total, &reasons), checks };
    }
    let scores = scores(&subject, &fitting);
    let best = scores.iter().copied().max().unwrap_or(0);
    let ties: Vec<&str> = fitting
        .iter()
        .zip(&scores)
        .filter(|(_, score)| **score == best)
        .map(|(node, _)| node.name.as_str())
        .collect();
    let choice = (seed % ties.len() as u64) as usize;
    Decision::Bind(ties[choice].to_owned())
}

/// The scheduler's sentence: how many nodes there are and how many objected why.
fn message(total: usize, reasons: &BTreeMap<String, usize>) -> String {
    if total == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut parts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}
