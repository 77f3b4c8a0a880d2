//! Pods: the status word that people read is computed here, from phase, reasons and container states.

use serde_json::Value;

use super::{AGE, Column, NAME, age, column, or_none, since, wide};
use crate::object::{is_deleting, items, name, text};

pub(in crate::kinds) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string"),
    column("Status", "string"),
    column("Restarts", "string"),
    AGE,
    wide("IP", "string"),
    wide("Node", "string"),
    wide("Nominated Node", "string"),
    wide("Readiness Gates", "string"),
];

/// Reason of a pod whose node does not answer.
const NODE_LOST: &str = "NodeLost";

pub(in crate::kinds) fn cells(pod: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let summary = summary(pod);
    let total = items(pod, "/spec/containers").len() + restartable_count(pod);
    let restarts = match &summary.last_restart {
        Some(when) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, since(when, now)),
        _ => summary.restarts.to_string(),
    };
    let address = text(pod, "/status/podIP");
    vec![
        name(pod).into(),
        format!("{}/{total}", summary.ready).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        or_none(address.to_owned()).into(),
        or_none(text(pod, "/spec/nodeName").to_owned()).into(),
        or_none(text(pod, "/status/nominatedNodeName").to_owned()).into(),
        gates(pod).into(),
    ]
}

#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<String>,
}

impl Summary {
    fn count(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        let finished = text(status, "/lastState/terminated/finishedAt");
        if !finished.is_empty() && self.last_restart.as_deref().is_none_or(|known| known < finished) {
            self.last_restart = Some(finished.to_owned());
        }
    }
}

fn is_restartable(pod: &Value, name: &str) -> bool {
    let mut containers = items(pod, "/spec/initContainers").iter();
    containers.any(|container| text(container, "/name") == name && container["restartPolicy"] == "Always")
}

fn restartable_count(pod: &Value) -> usize {
    items(pod, "/spec/initContainers")
        .iter()
        .filter(|container| container["restartPolicy"] == "Always")
        .count()
}

fn summary(pod: &Value) -> Summary {
    let reason = [text(pod, "/status/reason"), text(pod, "/status/phase")];
    let mut summary = Summary {
        reason: reason.into_iter().find(|reason| !reason.is_empty()).unwrap_or("Unknown").to_owned(),
        ..Summary::default()
    };
    let gated = items(pod, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated");
    if gated {
        summary.reason = "SchedulingGated".to_owned();
    }
    let initializing = init_containers(pod, &mut summary);
    let initialized = items(pod, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "Initialized" && condition["status"] == "True");
    if !initializing || initialized {
        containers(pod, &mut summary);
    }
    if is_deleting(pod) {
        if text(pod, "/status/reason") == NODE_LOST {
            summary.reason = "Unknown".to_owned();
        } else if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

/// Whether an init container is still on its way; then the reason says which.
fn init_containers(pod: &Value, summary: &mut Summary) -> bool {
    let total = items(pod, "/spec/initContainers").len();
    for (index, status) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
        summary.count(status);
        let state = &status["state"];
        let restartable = is_restartable(pod, text(status, "/name"));
        if state["terminated"]["exitCode"] == 0 {
            continue;
        }
        if restartable && status["started"] == true {
            summary.ready += usize::from(status["ready"] == true);
            continue;
        }
        let waiting = text(state, "/waiting/reason");
        summary.reason = if !state["terminated"].is_null() {
            format!("Init:{}", terminated(&state["terminated"]))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{total}")
        };
        return true;
    }
    false
}

fn terminated(state: &Value) -> String {
    let reason = text(state, "/reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match state["signal"].as_i64().filter(|signal| *signal != 0) {
        Some(signal) => format!("Signal:{signal}"),
        None => format!("ExitCode:{}", state["exitCode"].as_i64().unwrap_or(0)),
    }
}

fn containers(pod: &Value, summary: &mut Summary) {
    let mut has_running = false;
    for status in items(pod, "/status/containerStatuses").iter().rev() {
        summary.count(status);
        let state = &status["state"];
        let waiting = text(state, "/waiting/reason");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if !state["terminated"].is_null() {
            summary.reason = terminated(&state["terminated"]);
        } else if status["ready"] == true && !state["running"].is_null() {
            has_running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && has_running {
        let ready = items(pod, "/status/conditions")
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        summary.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

fn gates(pod: &Value) -> String {
    let gates = items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let conditions = items(pod, "/status/conditions");
    let met = gates.iter().filter(|gate| {
        let wanted = &gate["conditionType"];
        conditions.iter().any(|condition| condition["type"] == *wanted && condition["status"] == "True")
    });
    format!("{}/{}", met.count(), gates.len())
}
