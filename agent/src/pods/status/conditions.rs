//! The conditions of a pod's status: PodReadyToStartContainers, Initialized, Ready, ContainersReady, PodScheduled; others are kept. Pure.
//!
//! Reasons and messages: `pkg/kubelet/status/generate.go`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pods::observed::Observed;
use crate::pods::resources;

/// The conditions that we own, in the order in which the kubelet reports them.
pub const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// A condition's value before it is compared with the old one.
struct Verdict {
    status: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn holds() -> Verdict {
        Verdict { status: true, reason: "", message: String::new() }
    }

    fn fails(reason: &'static str, message: String) -> Verdict {
        Verdict { status: false, reason, message }
    }
}

/// All conditions of a pod in `phase`.
pub fn conditions(
    observed: &Observed,
    old: &PodStatus,
    phase: &str,
    inits: &[ContainerStatus],
    statuses: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(observed, phase, inits, statuses);
    let ready = ready(observed, old, phase, &containers_ready);
    let network = match observed.ready_sandbox() {
        Some(_) => Verdict::holds(),
        None => Verdict::fails("", String::new()),
    };
    let own =
        [network, initialized(observed, phase, inits, statuses), ready, containers_ready, Verdict::holds()];
    let generation = observed.pod.metadata.generation;
    let own = OWN.into_iter().zip(own).map(|(kind, verdict)| condition(old, kind, verdict, generation, now));
    own.chain(foreign(old)).collect()
}

/// The conditions of a pod that the node does not take: those that others set.
pub fn kept(old: &PodStatus, now: Timestamp) -> Option<Vec<PodCondition>> {
    let scheduled = condition(old, "PodScheduled", Verdict::holds(), None, now);
    Some(std::iter::once(scheduled).chain(foreign(old)).collect())
}

fn foreign(old: &PodStatus) -> impl Iterator<Item = PodCondition> {
    old.conditions.iter().flatten().filter(|condition| !OWN.contains(&condition.type_.as_str())).cloned()
}

fn find<'a>(old: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    old.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn condition(
    old: &PodStatus,
    kind: &str,
    verdict: Verdict,
    generation: Option<i64>,
    now: Timestamp,
) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let before = find(old, kind).filter(|before| before.status == status);
    PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: (!verdict.reason.is_empty()).then(|| verdict.reason.into()),
        message: (!verdict.message.is_empty()).then_some(verdict.message),
        last_probe_time: None,
        last_transition_time: before
            .and_then(|before| before.last_transition_time.clone())
            .or(Some(Time(now))),
        observed_generation: generation,
    }
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn initialized(
    observed: &Observed,
    phase: &str,
    inits: &[ContainerStatus],
    statuses: &[ContainerStatus],
) -> Verdict {
    let spec = observed.spec();
    if phase == "Succeeded" {
        return Verdict { reason: "PodCompleted", ..Verdict::holds() };
    }
    let running = statuses.iter().any(|status| {
        status.started == Some(true) || status.state.as_ref().is_some_and(|state| state.running.is_some())
    });
    if running {
        return Verdict::holds();
    }
    let incomplete: Vec<&str> =
        spec.init_containers
            .iter()
            .flatten()
            .zip(inits)
            .filter(|(container, status)| {
                if resources::is_sidecar(container) { status.started != Some(true) } else { !status.ready }
            })
            .map(|(container, _)| container.name.as_str())
            .collect();
    if incomplete.is_empty() {
        return Verdict::holds();
    }
    Verdict::fails(
        "ContainersNotInitialized",
        format!("containers with incomplete status: {}", list(&incomplete)),
    )
}

fn containers_ready(
    observed: &Observed,
    phase: &str,
    inits: &[ContainerStatus],
    statuses: &[ContainerStatus],
) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::fails("PodCompleted", String::new()),
        "Failed" => return Verdict::fails("PodFailed", String::new()),
        _ => {}
    }
    let sidecars = observed
        .spec()
        .init_containers
        .iter()
        .flatten()
        .zip(inits)
        .filter(|(container, _)| resources::is_sidecar(container))
        .map(|(_, status)| status);
    let unready: Vec<&str> =
        sidecars.chain(statuses).filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict::holds();
    }
    Verdict::fails("ContainersNotReady", format!("containers with unready status: {}", list(&unready)))
}

fn ready(observed: &Observed, old: &PodStatus, phase: &str, containers: &Verdict) -> Verdict {
    if !containers.status {
        return Verdict::fails(containers.reason, containers.message.clone());
    }
    debug_assert!(phase != "Failed");
    let gates = observed.spec().readiness_gates.iter().flatten();
    let messages: Vec<String> = gates
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match find(old, kind) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist."))
                }
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if messages.is_empty() {
        return Verdict::holds();
    }
    Verdict::fails("ReadinessGatesNotReady", messages.join(", "))
}
