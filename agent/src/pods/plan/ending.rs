//! Whether a pod has come to its end, by itself or by its deadline, and how long its containers have then. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::pods::backoff::after;
use crate::pods::observed::{Observed, Operation, Record};
use crate::pods::resources;

/// Grace of a container that should not have any (kubelet: `minimumGracePeriodInSeconds` for pods that are deleted).
const MINIMUM_GRACE: i64 = 1;
/// terminationGracePeriodSeconds where the spec has none.
const DEFAULT_GRACE: i64 = 30;

/// The end of a pod that has ended, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// `Succeeded` or `Failed`.
    pub phase: &'static str,
    /// `DeadlineExceeded`, `NodeAffinity` …; empty for the natural end.
    pub reason: String,
    /// In words.
    pub message: String,
}

/// Whether and how the pod has come to its end.
pub fn ending(observed: &Observed, now: Timestamp) -> Option<Ending> {
    if let Some(rejected) = &observed.rejected {
        let (reason, message) = (rejected.reason.clone(), rejected.message.clone());
        return Some(Ending { phase: "Failed", reason, message });
    }
    if let Some(status) = &observed.pod.status
        && let Some(phase) = ["Failed", "Succeeded"].into_iter().find(|p| status.phase.as_deref() == Some(*p))
    {
        let reason = status.reason.clone().unwrap_or_default();
        return Some(Ending { phase, reason, message: status.message.clone().unwrap_or_default() });
    }
    if deadline_at(observed).is_some_and(|deadline| deadline <= now) {
        return Some(Ending {
            phase: "Failed",
            reason: "DeadlineExceeded".into(),
            message: "Pod was active on the node longer than the specified deadline".into(),
        });
    }
    natural_end(observed)
}

/// The end that containers come to by themselves.
fn natural_end(observed: &Observed) -> Option<Ending> {
    let end = |phase| Some(Ending { phase, reason: String::new(), message: String::new() });
    let spec = observed.spec();
    let policy = observed.restart_policy();
    if policy == "Always" || observed.busy.values().any(|operation| *operation == Operation::Start) {
        return None;
    }
    let regular = spec.init_containers.iter().flatten().filter(|init| !resources::is_sidecar(init));
    if policy == "Never"
        && regular.into_iter().any(|init| exit_code(observed, &init.name).is_some_and(|c| c != 0))
    {
        return end("Failed");
    }
    let lost = policy == "Never"
        && observed.sandboxes.last().is_some_and(|sandbox| !sandbox.is_ready())
        && !observed.records.is_empty()
        && !observed.records.iter().any(Record::is_live);
    let mut failed = false;
    for container in &spec.containers {
        match exit_code(observed, &container.name) {
            Some(0) => {}
            Some(_) if policy == "Never" => failed = true,
            None if lost => failed = true,
            _ => return None,
        }
    }
    if spec.containers.is_empty() { None } else { end(if failed { "Failed" } else { "Succeeded" }) }
}

/// The exit code of a container that is over for now.
fn exit_code(observed: &Observed, name: &str) -> Option<i32> {
    match observed.newest(name) {
        Some(record) => record.is_over().then_some(record.status.exit_code),
        None => {
            let state = observed.reported(name)?.state.as_ref()?;
            state.terminated.as_ref().map(|terminated| terminated.exit_code)
        }
    }
}

fn deadline_at(observed: &Observed) -> Option<Timestamp> {
    let seconds = observed.spec().active_deadline_seconds?;
    let start = observed.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let start = start.map_or(observed.accepted_at, |time| time.0);
    Some(after(start, SignedDuration::from_secs(seconds)))
}

/// When the pod's deadline passes, if that is still to come.
pub fn deadline(observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    deadline_at(observed).filter(|deadline| *deadline > now)
}

/// Seconds that the pod's containers have when it ends.
pub fn grace(observed: &Observed) -> i64 {
    let spec = observed.spec().termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE);
    observed.pod.metadata.deletion_grace_period_seconds.unwrap_or(spec).max(MINIMUM_GRACE)
}
