//! A pod's status as the kubelet reports it: phase, conditions, container statuses, addresses. Pure.
//!
//! In: the snapshot, the end that the plan found, and why containers wait. What the runtime no longer knows is taken from what the API
//! server was told before. Rules: `getPhase` and `convertToAPIContainerStatuses` of the kubelet.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::ContainerState as RuntimeState;

use super::observed::{Observed, Record, timestamp};
use super::plan::{Ending, Waiting};
use super::resources;

mod conditions;
mod merge;

pub use conditions::OWN as OWN_CONDITIONS;
pub use merge::merge;

#[cfg(test)]
mod tests;

/// Prefix of containerID.
pub const CONTAINER_ID_SCHEME: &str = "orlop://";
/// Exit code of a container that nobody can say anything about.
const LOST_EXIT_CODE: i32 = 137;

/// The status of a pod. `waiting` says why containers that are to run do not.
pub fn status(observed: &Observed, ending: Option<&Ending>, waiting: &Waiting, now: Timestamp) -> PodStatus {
    let old = observed.pod.status.clone().unwrap_or_default();
    let started_at = old.start_time.clone().unwrap_or(Time(observed.accepted_at));
    let spec = observed.spec();
    let mut status = PodStatus {
        observed_generation: observed.pod.metadata.generation,
        qos_class: Some(old.qos_class.clone().unwrap_or_else(|| resources::qos(spec).as_str().into())),
        start_time: Some(started_at),
        nominated_node_name: old.nominated_node_name.clone(),
        ..PodStatus::default()
    };
    if let Some(ending) = ending {
        status.reason = filled(&ending.reason);
        status.message = filled(&ending.message);
    }
    if observed.rejected.is_some() {
        status.phase = Some("Failed".into());
        status.conditions = conditions::kept(&old, now);
        return status;
    }

    let ended = (ending.is_some() || observed.is_deleting()) && !observed.records.iter().any(Record::is_live);
    let inits = spec.init_containers.iter().flatten();
    let mut init_statuses: Vec<_> =
        inits.map(|container| container_status(observed, container, waiting, true)).collect();
    let mut statuses: Vec<_> = spec
        .containers
        .iter()
        .map(|container| container_status(observed, container, waiting, false))
        .collect();
    if ended {
        close(&mut init_statuses, &mut statuses);
    }
    let phase = match ending {
        // The end is reported only once nothing runs any more; what was reported stays.
        Some(ending) if ended || old.phase.as_deref() == Some(ending.phase) => ending.phase,
        _ => phase(observed, &init_statuses, &statuses, ended),
    };
    status.phase = Some(phase.into());
    addresses(observed, &old, &mut status);
    status.conditions = Some(conditions::conditions(observed, &old, phase, &init_statuses, &statuses, now));
    status.init_container_statuses = (!init_statuses.is_empty()).then_some(init_statuses);
    status.container_statuses = (!statuses.is_empty()).then_some(statuses);
    status
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn addresses(observed: &Observed, old: &PodStatus, status: &mut PodStatus) {
    let node = &observed.node.ips;
    status.host_ip = node.first().map(ToString::to_string);
    status.host_ips = Some(node.iter().map(|ip| HostIP { ip: ip.to_string() }).collect::<Vec<_>>())
        .filter(|ips| !ips.is_empty());
    let host_network = observed.spec().host_network == Some(true);
    let sandbox = observed.ready_sandbox();
    let ips: Vec<String> = match sandbox {
        Some(_) if host_network => node.iter().map(ToString::to_string).collect(),
        Some(sandbox) => sandbox.status.ips.iter().map(ToString::to_string).collect(),
        // A pod that has ended keeps the address that it had.
        None => old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
    };
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
}

// ----- containers

fn container_status(
    observed: &Observed,
    container: &Container,
    waiting: &Waiting,
    init: bool,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        ..ContainerStatus::default()
    };
    match observed.newest(&container.name) {
        Some(record) => fill_from_record(&mut status, observed, container, record, init),
        None => fill_from_report(&mut status, observed),
    }
    let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
    if let Some((reason, message)) = waiting.get(&container.name)
        && !runs
    {
        if let Some(terminated) = status.state.take().and_then(|state| state.terminated) {
            status.last_state =
                Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() });
        }
        status.state = Some(waiting_state(reason, message));
        status.ready = false;
    }
    if status.state.is_none() {
        let has_init = observed.spec().init_containers.as_ref().is_some_and(|inits| !inits.is_empty());
        status.state =
            Some(waiting_state(if has_init { "PodInitializing" } else { "ContainerCreating" }, ""));
    }
    status.last_state.get_or_insert_default();
    status
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: filled(reason), message: filled(message) };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn container_id(record: &Record) -> String {
    format!("{CONTAINER_ID_SCHEME}{}", record.status.id)
}

fn fill_from_record(
    status: &mut ContainerStatus,
    observed: &Observed,
    container: &Container,
    record: &Record,
    init: bool,
) {
    let name = &container.name;
    status.restart_count = i32::try_from(record.restarts()).unwrap_or(i32::MAX);
    status.image.clone_from(&record.status.config.image);
    status.image_id.clone_from(&record.status.image_ref);
    status.container_id = Some(container_id(record));
    status.started = Some(observed.is_started(container, record));
    status.ready = if init && !resources::is_sidecar(container) {
        record.succeeded()
    } else {
        observed.is_ready(container, record)
    };
    status.state = match record.status.state {
        RuntimeState::Created => None,
        RuntimeState::Running => {
            let started_at = Some(Time(timestamp(record.status.started_at)));
            let running = Some(ContainerStateRunning { started_at });
            Some(ContainerState { running, ..ContainerState::default() })
        }
        RuntimeState::Exited | RuntimeState::Unknown => Some(terminated_state(record)),
    };
    let before =
        observed.records_of(name).rev().skip_while(|other| other.status.id != record.status.id).nth(1);
    status.last_state = match before {
        Some(before) if before.is_over() => Some(terminated_state(before)),
        _ => reported_last_state(observed, name, record),
    };
}

/// What the container's last state was, when only the API server still knows.
fn reported_last_state(observed: &Observed, name: &str, record: &Record) -> Option<ContainerState> {
    let reported = observed.reported(name)?;
    if reported.container_id.as_deref() == Some(container_id(record).as_str()) {
        return reported.last_state.clone();
    }
    let state = reported.state.clone().filter(|state| state.terminated.is_some());
    // Not the end of the very container that the status is about.
    state.or_else(|| reported.last_state.clone()).filter(|state| {
        state.terminated.as_ref().and_then(|t| t.container_id.as_deref())
            != Some(container_id(record).as_str())
    })
}

fn terminated_state(record: &Record) -> ContainerState {
    let status = &record.status;
    let unknown = status.state == RuntimeState::Unknown;
    let started_at = if status.started_at == 0 { status.created_at } else { status.started_at };
    let message = if record.message.is_empty() { &status.message } else { &record.message };
    let reason = match status.reason.as_str() {
        "" if unknown => "ContainerStatusUnknown",
        "" if status.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    let terminated = ContainerStateTerminated {
        container_id: Some(container_id(record)),
        exit_code: if unknown { LOST_EXIT_CODE } else { status.exit_code },
        reason: Some(reason.into()),
        message: filled(message),
        started_at: Some(Time(timestamp(started_at))),
        finished_at: Some(Time(record.finished_at())),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// The runtime knows nothing about the container: the report of before is all there is.
fn fill_from_report(status: &mut ContainerStatus, observed: &Observed) {
    let Some(reported) = observed.reported(&status.name) else { return };
    status.restart_count = reported.restart_count;
    let Some(id) = reported.container_id.clone() else {
        status.last_state.clone_from(&reported.last_state);
        return;
    };
    status.image_id.clone_from(&reported.image_id);
    let state = reported.state.clone().unwrap_or_default();
    if state.terminated.is_some() {
        status.container_id = Some(id);
        status.ready = reported.ready;
        status.state = Some(state);
        status.last_state.clone_from(&reported.last_state);
    } else if state.running.is_some() {
        status.last_state = Some(lost(
            Some(id),
            "The container could not be located when the pod was deleted.  The container used to be Running",
        ));
        // It will be started again, unless the pod ends.
        if !observed.is_deleting() {
            status.restart_count += 1;
        }
    } else {
        status.container_id = Some(id);
        status.last_state.clone_from(&reported.last_state);
    }
}

fn lost(container_id: Option<String>, message: &str) -> ContainerState {
    let terminated = ContainerStateTerminated {
        container_id,
        exit_code: LOST_EXIT_CODE,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// Nothing runs and nothing will: what still waits is closed, unless the pod never came so far.
fn close(inits: &mut [ContainerStatus], statuses: &mut [ContainerStatus]) {
    let has_run = |status: &ContainerStatus| status.container_id.is_some() || status.restart_count > 0;
    let initialized = statuses.iter().any(has_run);
    let close_one = |status: &mut ContainerStatus| {
        let over = status.state.as_ref().is_some_and(|state| state.terminated.is_some());
        status.ready &= over;
        if over {
            return;
        }
        status.state =
            status.last_state.take().filter(|state| state.terminated.is_some()).or_else(|| {
                Some(lost(None, "The container could not be located when the pod was terminated"))
            });
        status.last_state = Some(ContainerState::default());
        status.started = Some(false);
    };
    statuses.iter_mut().filter(|status| initialized || has_run(status)).for_each(close_one);
    inits.iter_mut().filter(|status| initialized || has_run(status)).for_each(close_one);
}

// ----- phase

#[derive(Default)]
struct Counts {
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    succeeded: usize,
    pending_inits: usize,
    failed_inits: usize,
}

fn exit_of(state: Option<&ContainerState>) -> Option<i32> {
    state?.terminated.as_ref().map(|terminated| terminated.exit_code)
}

impl Counts {
    fn add_init(&mut self, status: &ContainerStatus) {
        let state = status.state.as_ref();
        let waits = state.is_some_and(|state| state.waiting.is_some());
        match exit_of(state).or_else(|| exit_of(status.last_state.as_ref()).filter(|_| waits)) {
            Some(0) => {}
            Some(_) => self.failed_inits += 1,
            None => self.pending_inits += 1,
        }
    }

    fn add_sidecar(&mut self, status: &ContainerStatus) {
        let Some(state) = &status.state else { return self.unknown += 1 };
        if state.running.is_some() {
            self.running += 1;
            self.pending_inits += usize::from(status.started != Some(true));
        } else if state.waiting.is_some() && exit_of(status.last_state.as_ref()).is_none() {
            self.pending_inits += 1;
            self.waiting += 1;
        }
    }

    fn add_main(&mut self, status: &ContainerStatus) {
        let Some(state) = &status.state else { return self.unknown += 1 };
        if state.running.is_some() {
            self.running += 1;
        } else if let Some(code) = exit_of(Some(state)) {
            self.stopped += 1;
            self.succeeded += usize::from(code == 0);
        } else if exit_of(status.last_state.as_ref()).is_some() {
            self.stopped += 1;
        } else {
            self.waiting += 1;
        }
    }
}

fn phase(
    observed: &Observed,
    inits: &[ContainerStatus],
    statuses: &[ContainerStatus],
    ended: bool,
) -> &'static str {
    let mut counts = Counts::default();
    for (container, status) in observed.spec().init_containers.iter().flatten().zip(inits) {
        if resources::is_sidecar(container) {
            counts.add_sidecar(status);
        } else {
            counts.add_init(status);
        }
    }
    statuses.iter().for_each(|status| counts.add_main(status));
    let initialized = statuses.iter().any(|status| status.container_id.is_some());
    let policy = observed.restart_policy();
    if counts.failed_inits > 0 && policy == "Never" {
        return "Failed";
    }
    let all_succeeded = counts.stopped == counts.succeeded;
    match counts {
        // A pod that is over never stays Pending.
        Counts { pending_inits: 1.., .. } if ended && !initialized => "Failed",
        Counts { waiting: 1.., .. } if ended => "Failed",
        Counts { pending_inits: 1.., .. } if !initialized => "Pending",
        Counts { waiting: 1.., .. } => "Pending",
        Counts { running: 1.., unknown: 0, .. } if !ended => "Running",
        Counts { stopped: 1.., unknown: 0, .. } if ended => {
            if all_succeeded {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        Counts { stopped: 1.., unknown: 0, .. } => match policy {
            "Always" => "Running",
            _ if all_succeeded => "Succeeded",
            "Never" => "Failed",
            _ => "Running",
        },
        _ if ended => "Failed",
        _ => "Pending",
    }
}
