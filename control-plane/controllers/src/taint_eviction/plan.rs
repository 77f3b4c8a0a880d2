//! When a pod has to leave a tainted node.
//!
//! Input: a pod's tolerations, a node's taints, the present. Output: now, later, or never. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use crate::node_lifecycle::plan::{NO_EXECUTE, TAINT_NOT_READY, TAINT_UNREACHABLE};
use crate::pods;
use crate::taints::tolerates;

/// What becomes of a pod on a node with taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Stays,
    LeavesAfter(Duration),
    LeavesNow,
}

/// The taints that evict.
pub fn evicting(taints: &[Taint]) -> Vec<Taint> {
    taints.iter().filter(|taint| taint.effect == NO_EXECUTE).cloned().collect()
}

/// Decides about one pod; `default` is how long a pod that says nothing about not-ready and unreachable nodes stays.
pub fn plan(pod: &Pod, taints: &[Taint], default: Duration, now: Timestamp) -> Verdict {
    let taints = evicting(taints);
    if taints.is_empty() || pods::is_terminal(pod) || pod.metadata.deletion_timestamp.is_some() {
        return Verdict::Stays;
    }
    let own = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut soonest: Option<Timestamp> = None;
    for taint in &taints {
        let stay = match stay(own, taint, default) {
            Stay::Forever => continue,
            Stay::Not => return Verdict::LeavesNow,
            Stay::For(stay) => stay,
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let stay = SignedDuration::try_from(stay).unwrap_or(SignedDuration::MAX);
        let Ok(until) = since.checked_add(stay) else { continue };
        soonest = Some(soonest.map_or(until, |known| known.min(until)));
    }
    match soonest {
        None => Verdict::Stays,
        Some(until) if until <= now => Verdict::LeavesNow,
        Some(until) => Verdict::LeavesAfter(until.duration_since(now).unsigned_abs()),
    }
}

enum Stay {
    Not,
    For(Duration),
    Forever,
}

/// How long the tolerations let the pod stay with one taint: the shortest of those that cover it.
fn stay(tolerations: &[Toleration], taint: &Taint, default: Duration) -> Stay {
    let covering: Vec<&Toleration> = tolerations.iter().filter(|own| tolerates(own, taint)).collect();
    if covering.is_empty() {
        let usual = [TAINT_NOT_READY, TAINT_UNREACHABLE].contains(&taint.key.as_str());
        return if usual { Stay::For(default) } else { Stay::Not };
    }
    let seconds = covering.iter().filter_map(|own| own.toleration_seconds).min();
    match seconds {
        None => Stay::Forever,
        Some(seconds) => Stay::For(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
    }
}
