//! Which of the nodes that can take a pod is best.
//!
//! Input: a pod and the nodes that passed the checks. Output: a score each, higher is better. Pure. Five views, each from
//! 0 to 100, with upstream's weights: room left (1), balance of CPU and memory (1), preferred node affinity (2), taints
//! that say "rather not" (3), and few pods of the same controller (2).

use super::cluster::NodeInfo;
use super::filter::{Subject, matches_term, preferences};
use crate::ownership::controller_uid;
use crate::taints::tolerates;

/// The best of each view.
const MOST: i128 = 100;
const WEIGHT_ROOM: i128 = 1;
const WEIGHT_BALANCE: i128 = 1;
const WEIGHT_AFFINITY: i128 = 2;
const WEIGHT_TAINTS: i128 = 3;
const WEIGHT_SPREAD: i128 = 2;

/// The scores of the nodes, in their order.
pub fn scores(subject: &Subject<'_>, nodes: &[&NodeInfo]) -> Vec<i128> {
    let affinity = stretch(nodes.iter().map(|node| affinity(subject, node)).collect(), false);
    let taints = stretch(nodes.iter().map(|node| unwanted_taints(subject, node)).collect(), true);
    let spread = stretch(nodes.iter().map(|node| siblings(subject, node)).collect(), true);
    let views = affinity.into_iter().zip(taints).zip(spread);
    nodes
        .iter()
        .zip(views)
        .map(|(node, ((affinity, taints), spread))| {
            room(subject, node) * WEIGHT_ROOM
                + balance(subject, node) * WEIGHT_BALANCE
                + affinity * WEIGHT_AFFINITY
                + taints * WEIGHT_TAINTS
                + spread * WEIGHT_SPREAD
        })
        .collect()
}

/// The mean share of CPU and memory that would be left.
fn room(subject: &Subject<'_>, node: &NodeInfo) -> i128 {
    let left = |all: i128, taken: i128| {
        if all <= 0 || taken > all { 0 } else { (all - taken).saturating_mul(MOST) / all }
    };
    let cpu = node.weight.cpu + subject.request.weight.cpu;
    let memory = node.weight.memory + subject.request.weight.memory;
    (left(node.allocatable.cpu, cpu) + left(node.allocatable.memory, memory)) / 2
}

/// How close the shares of CPU and memory would be.
fn balance(subject: &Subject<'_>, node: &NodeInfo) -> i128 {
    let share = |all: i128, taken: i128| {
        if all <= 0 { 1.0 } else { (taken as f64 / all as f64).min(1.0) }
    };
    let cpu = share(node.allocatable.cpu, node.requested.cpu + subject.request.wanted.cpu);
    let memory = share(node.allocatable.memory, node.requested.memory + subject.request.wanted.memory);
    // For two shares the standard deviation is half their distance.
    ((1.0 - (cpu - memory).abs() / 2.0) * MOST as f64) as i128
}

fn affinity(subject: &Subject<'_>, node: &NodeInfo) -> i128 {
    let terms = preferences(subject.pod).iter();
    terms.filter(|term| matches_term(&term.preference, node)).map(|term| i128::from(term.weight)).sum()
}

/// Taints that say "rather not" and are not tolerated.
fn unwanted_taints(subject: &Subject<'_>, node: &NodeInfo) -> i128 {
    let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    let unwanted = soft.filter(|taint| !subject.tolerations.iter().any(|own| tolerates(own, taint)));
    unwanted.count() as i128
}

/// Pods of the same controller that the node has.
fn siblings(subject: &Subject<'_>, node: &NodeInfo) -> i128 {
    let count = controller_uid(&subject.pod.metadata).and_then(|owner| node.owners.get(owner));
    count.copied().unwrap_or(0) as i128
}

/// Stretches counts to 0..=100, the highest to 100; reversed, the highest to 0.
fn stretch(counts: Vec<i128>, reversed: bool) -> Vec<i128> {
    let most = counts.iter().copied().max().unwrap_or(0);
    let one = |count: i128| {
        if most == 0 {
            return if reversed { MOST } else { 0 };
        }
        let share = count * MOST / most;
        if reversed { MOST - share } else { share }
    };
    counts.into_iter().map(one).collect()
}
