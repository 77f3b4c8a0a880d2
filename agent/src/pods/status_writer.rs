//! Writes a pod's status to the API server: in order, one write at a time, only when it changed, again until it is there.
//!
//! In: the status of each pass, and each version of the pod that the API server has. Out: strategic merge patches of the status subresource with
//! the pod's uid as precondition: conditions that others write are never touched. A status that is superseded while a write fails is never written; the newest is. What somebody else writes
//! over ours (the node controller, when the node was away) is written anew.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};

use super::sandbox::Names;
use super::status::OWN_CONDITIONS;

#[cfg(test)]
mod tests;

/// Delay after the first failed write; it doubles.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Longest delay after a failed write.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Fields of the status that are ours to remove.
const OWN_FIELDS: [&str; 7] = [
    "message",
    "reason",
    "podIP",
    "podIPs",
    "initContainerStatuses",
    "containerStatuses",
    "nominatedNodeName",
];

const CONDITIONS: &str = "conditions";
/// Fields of a condition that one may have and the next has not.
const CONDITION_FIELDS: [&str; 3] = ["lastProbeTime", "message", "reason"];
/// Lists that a strategic merge patch would merge by address.
const ADDRESS_LISTS: [&str; 2] = ["podIPs", "hostIPs"];

/// What the API server has, and whether a write is under way.
pub struct StatusWriter {
    /// What the API server has: after a write of ours in our words, since it may say the same in others.
    written: Value,
    /// What the API server has, in its words.
    stored: Value,
    /// The resourceVersion that `stored` was seen with.
    version: Option<String>,
    writing: bool,
    failures: u32,
}

/// One write.
pub struct Write {
    namespace: String,
    name: String,
    patch: Value,
    status: Value,
    delay: Duration,
}

/// How a write ended.
pub enum WriteEnd {
    /// The API server has this status.
    Written {
        /// As it was written.
        status: Value,
        /// The pod as the API server has it now; `None`: it is gone.
        answer: Option<Box<Pod>>,
    },
    /// It has not; the delay is over.
    Failed,
}

impl StatusWriter {
    /// The API server has what the pod says.
    pub fn new(pod: &Pod) -> StatusWriter {
        let stored = stored(pod);
        let version = pod.metadata.resource_version.clone();
        StatusWriter { written: stored.clone(), stored, version, writing: false, failures: 0 }
    }

    /// The API server has this version of the pod. A status that is not the one it answered last was written by somebody else: what differs
    /// from ours is ours to write again.
    pub fn seen(&mut self, pod: &Pod) {
        self.version.clone_from(&pod.metadata.resource_version);
        let stored = stored(pod);
        if stored != self.stored {
            self.written = stored.clone();
            self.stored = stored;
        }
    }

    /// Whether the API server has this status.
    pub fn has(&self, status: &PodStatus) -> bool {
        !differs(&self.written, &value(status))
    }

    /// The write that brings the status there, unless it is there or a write is under way.
    pub fn begin(&mut self, pod: &Pod, status: &PodStatus) -> Option<Write> {
        let status = value(status);
        if self.writing || !differs(&self.written, &status) {
            return None;
        }
        self.writing = true;
        let names = Names::of(pod);
        let delay = FIRST_DELAY.saturating_mul(1 << self.failures.min(8)).min(LONGEST_DELAY);
        Some(Write {
            namespace: names.namespace.to_owned(),
            name: names.name.to_owned(),
            patch: patch(pod, &self.written, &status),
            status,
            delay,
        })
    }

    /// A write has ended.
    pub fn finish(&mut self, end: WriteEnd) {
        self.writing = false;
        match end {
            WriteEnd::Written { status, answer } => {
                self.failures = 0;
                let version = answer.as_deref().and_then(|pod| pod.metadata.resource_version.as_deref());
                // Seen while the write was under way, and later than it: what was seen is what is there.
                if is_newer(self.version.as_deref(), version) {
                    return;
                }
                self.written = status;
                if let Some(pod) = answer {
                    self.stored = stored(&pod);
                    self.version = pod.metadata.resource_version;
                }
            }
            WriteEnd::Failed => self.failures = self.failures.saturating_add(1),
        }
    }

    /// The write that was under way is gone; nobody knows whether it arrived.
    pub fn interrupted(&mut self) {
        self.writing = false;
        self.written = Value::Null;
    }
}

impl Write {
    /// Writes. A failure is answered only after a delay, so that the next write is no earlier.
    pub async fn run(self, client: kube::Client) -> WriteEnd {
        let pods: Api<Pod> = Api::namespaced(client, &self.namespace);
        let params = PatchParams::default();
        match pods.patch_status(&self.name, &params, &Patch::Strategic(&self.patch)).await {
            Ok(pod) => WriteEnd::Written { status: self.status, answer: Some(Box::new(pod)) },
            // The pod is gone; its task will hear of it.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                WriteEnd::Written { status: self.status, answer: None }
            }
            Err(error) => {
                tracing::warn!(pod = self.name, namespace = self.namespace, %error, "write pod status");
                tokio::time::sleep(self.delay).await;
                WriteEnd::Failed
            }
        }
    }
}

fn value(status: &PodStatus) -> Value {
    serde_json::to_value(status).unwrap_or_default()
}

fn stored(pod: &Pod) -> Value {
    pod.status.as_ref().map(value).unwrap_or_default()
}

/// Whether a resourceVersion is later than another (KEP-5504: decimal numbers that grow). Of others nobody knows: they are taken for later,
/// which at worst writes once more what is there.
fn is_newer(version: Option<&str>, than: Option<&str>) -> bool {
    let (Some(version), Some(than)) = (version, than) else { return false };
    match (version.parse::<u128>(), than.parse::<u128>()) {
        (Ok(version), Ok(than)) => version > than,
        _ => version != than,
    }
}

/// Whether a status says something that is not there, or lacks something of ours that is. Fields of others are no difference.
fn differs(before: &Value, status: &Value) -> bool {
    let fields = status.as_object();
    let is_there = |field: &str, value: &Value| match value {
        Value::Array(conditions) if field == CONDITIONS => has_conditions(before, conditions),
        value => before.get(field) == Some(value),
    };
    fields.into_iter().flatten().any(|(field, value)| !is_there(field, value))
        || OWN_FIELDS.iter().any(|field| before.get(field).is_some() && status.get(field).is_none())
}

fn is_own(condition: &Value) -> bool {
    condition.get("type").and_then(Value::as_str).is_some_and(|kind| OWN_CONDITIONS.contains(&kind))
}

fn has_conditions(before: &Value, conditions: &[Value]) -> bool {
    let known = before.get(CONDITIONS).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    conditions.iter().filter(|condition| is_own(condition)).all(|condition| known.contains(condition))
}

/// The strategic merge patch from the status that is there to the new one.
fn patch(pod: &Pod, before: &Value, status: &Value) -> Value {
    let names = Names::of(pod);
    let mut fields: Map<String, Value> = status.as_object().cloned().unwrap_or_default();
    for field in OWN_FIELDS {
        if !fields.contains_key(field) && before.get(field).is_some() {
            fields.insert(field.to_owned(), Value::Null);
        }
    }
    if let Some(Value::Array(conditions)) = fields.get_mut(CONDITIONS) {
        conditions.retain(is_own);
        conditions.iter_mut().for_each(complete);
    }
    for list in ADDRESS_LISTS {
        if let Some(Value::Array(addresses)) = fields.get_mut(list) {
            // By itself an address would be added to those that were there before.
            addresses.push(json!({"$patch": "replace"}));
        }
    }
    json!({"metadata": {"uid": names.uid}, "status": fields})
}

/// Names what a condition does not have: what it had before would stay.
fn complete(condition: &mut Value) {
    let Value::Object(fields) = condition else { return };
    for field in CONDITION_FIELDS {
        fields.entry(field).or_insert(Value::Null);
    }
}
