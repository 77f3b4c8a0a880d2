//! How many pods each ReplicaSet of a Deployment gets.
//!
//! Input: the sets, new and old, and the limits. Output: changed replica counts on them. Pure. Every function says whether
//! it changed anything, because a rollout takes one kind of step per pass, as upstream does.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::limits::Limits;
use super::revision::{ANNOTATION_DESIRED, ANNOTATION_MAX, annotate_replicas, number, sort_by_age};

/// The replicas that a set asks for.
pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The available pods that a set reports.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// The pods that a set reports.
pub fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

/// Gives a set a number of replicas; true where that is a change of the number.
pub fn set_replicas(set: &mut ReplicaSet, replicas: i32, limits: &Limits) -> bool {
    let before = wanted(set);
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(replicas);
    }
    annotate_replicas(set, limits);
    before != replicas
}

/// The replicas of the new set after one step.
pub fn next_of_new(limits: &Limits, rolling: bool, new: &ReplicaSet, old: &[ReplicaSet]) -> i32 {
    let own = wanted(new);
    if !rolling {
        return limits.replicas;
    }
    let total: i32 = own + old.iter().map(wanted).sum::<i32>();
    if total >= limits.most() {
        return own;
    }
    own + (limits.most() - total).min(limits.replicas - own)
}

/// Grows (or shrinks) the new set by one step.
pub fn step_new(limits: &Limits, rolling: bool, new: &mut ReplicaSet, old: &[ReplicaSet]) -> bool {
    let own = wanted(new);
    if own == limits.replicas {
        return false;
    }
    let next = if own > limits.replicas { limits.replicas } else { next_of_new(limits, rolling, new, old) };
    set_replicas(new, next, limits)
}

/// Shrinks the old sets as far as availability allows: first by pods that are not available anyway, then by others.
pub fn step_old(limits: &Limits, new: Option<&ReplicaSet>, old: &mut [ReplicaSet]) -> bool {
    let old_total: i32 = old.iter().map(wanted).sum();
    if old_total == 0 {
        return false;
    }
    let new_wanted = new.map_or(0, wanted);
    let new_unavailable = new_wanted - new.map_or(0, available);
    let room = old_total + new_wanted - limits.least() - new_unavailable;
    if room <= 0 {
        return false;
    }
    sort_by_age(old);
    let unhealthy = drop_unhealthy(limits, old, room);
    let healthy = drop_healthy(limits, new, old);
    unhealthy + healthy > 0
}

/// Takes away replicas that are not available; returns how many.
fn drop_unhealthy(limits: &Limits, old: &mut [ReplicaSet], room: i32) -> i32 {
    let mut dropped = 0;
    for set in old {
        let own = wanted(set);
        let missing = own - available(set);
        if dropped >= room {
            break;
        }
        if own == 0 || missing <= 0 {
            continue;
        }
        let fewer = missing.min(room - dropped);
        set_replicas(set, own - fewer, limits);
        dropped += fewer;
    }
    dropped
}

/// Takes away replicas as long as enough pods stay available; returns how many.
fn drop_healthy(limits: &Limits, new: Option<&ReplicaSet>, old: &mut [ReplicaSet]) -> i32 {
    let serving: i32 = new.map_or(0, available) + old.iter().map(available).sum::<i32>();
    let mut room = serving - limits.least();
    let mut dropped = 0;
    for set in old {
        let own = wanted(set);
        if room <= 0 {
            break;
        }
        if own == 0 {
            continue;
        }
        let fewer = own.min(room);
        set_replicas(set, own - fewer, limits);
        room -= fewer;
        dropped += fewer;
    }
    dropped
}

/// Takes all replicas of the old sets away.
pub fn drop_all(limits: &Limits, old: &mut [ReplicaSet]) -> bool {
    let mut changed = false;
    for set in old.iter_mut().filter(|set| wanted(set) > 0) {
        changed |= set_replicas(set, 0, limits);
    }
    changed
}

/// Whether the Deployment's number of replicas changed since its sets were scaled last.
pub fn is_scaling(limits: &Limits, sets: &[&ReplicaSet]) -> bool {
    let active = sets.iter().filter(|set| wanted(set) > 0);
    active
        .filter_map(|set| number(&set.metadata, ANNOTATION_DESIRED))
        .any(|desired| desired != limits.replicas)
}

/// Brings the sets to a changed number of replicas without rolling: in proportion where several have pods.
pub fn rescale(
    deployment: &Deployment,
    limits: &Limits,
    rolling: bool,
    new: Option<&mut ReplicaSet>,
    old: &mut [ReplicaSet],
) {
    let mut sets: Vec<&mut ReplicaSet> = Vec::with_capacity(old.len() + 1);
    let has_new = new.is_some();
    sets.extend(new);
    sets.extend(old.iter_mut());
    if let Some(place) = only_active_or_latest(&sets, has_new) {
        let noted = number(&sets[place].metadata, ANNOTATION_DESIRED);
        if wanted(sets[place]) != limits.replicas || noted != Some(limits.replicas) {
            set_replicas(sets[place], limits.replicas, limits);
        }
        return;
    }
    if has_new && sets.first().is_some_and(|new| is_saturated(limits, new)) {
        for set in sets.iter_mut().skip(1).filter(|set| wanted(set) > 0) {
            set_replicas(set, 0, limits);
        }
        return;
    }
    if rolling {
        let active: Vec<&mut ReplicaSet> = sets.into_iter().filter(|set| wanted(set) > 0).collect();
        share(deployment, limits, active);
    }
}

/// The one set with pods; where none has, the new one, or else the youngest. Absent where several have pods.
fn only_active_or_latest(sets: &[&mut ReplicaSet], has_new: bool) -> Option<usize> {
    let active: Vec<usize> = (0..sets.len()).filter(|place| wanted(sets[*place]) > 0).collect();
    match active.as_slice() {
        [] if has_new => Some(0),
        [] => (0..sets.len()).max_by_key(|place| sets[*place].metadata.creation_timestamp.clone()),
        [one] => Some(*one),
        _ => None,
    }
}

/// Whether the new set has all pods that are wanted, available.
fn is_saturated(limits: &Limits, new: &ReplicaSet) -> bool {
    wanted(new) == limits.replicas
        && number(&new.metadata, ANNOTATION_DESIRED) == Some(limits.replicas)
        && available(new) == limits.replicas
}

/// Spreads the difference over the sets in proportion to their sizes; what rounding leaves goes to the largest.
fn share(deployment: &Deployment, limits: &Limits, mut active: Vec<&mut ReplicaSet>) {
    let total: i32 = active.iter().map(|set| wanted(set)).sum();
    let allowed = if limits.replicas > 0 { limits.most() } else { 0 };
    let difference = allowed - total;
    active.sort_by(|left, right| {
        let age = |set: &ReplicaSet| set.metadata.creation_timestamp.clone();
        let by_age = age(left).cmp(&age(right));
        // Growing prefers the younger of two equals, shrinking the older.
        let by_age = if difference > 0 { by_age.reverse() } else { by_age };
        wanted(right).cmp(&wanted(left)).then(by_age)
    });
    let mut added = 0;
    let mut sizes = Vec::with_capacity(active.len());
    for set in &active {
        let part = proportion(deployment, limits, set, difference - added, difference);
        added += part;
        sizes.push(wanted(set) + part);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + difference - added).max(0);
    }
    for (set, size) in active.into_iter().zip(sizes) {
        set_replicas(set, size, limits);
    }
}

/// A set's part of the difference, at most what is left of it.
fn proportion(deployment: &Deployment, limits: &Limits, set: &ReplicaSet, left: i32, difference: i32) -> i32 {
    if wanted(set) == 0 || difference == 0 || left == 0 {
        return 0;
    }
    let part = fraction(deployment, limits, set);
    if difference > 0 { part.min(left) } else { part.max(left) }
}

fn fraction(deployment: &Deployment, limits: &Limits, set: &ReplicaSet) -> i32 {
    let own = wanted(set);
    if limits.replicas == 0 {
        return -own;
    }
    let reported = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let before = number(&set.metadata, ANNOTATION_MAX).filter(|most| *most > 0).unwrap_or(reported);
    if before <= 0 {
        return 0;
    }
    let size = f64::from(own) * f64::from(limits.most()) / f64::from(before);
    size.round() as i32 - own
}
