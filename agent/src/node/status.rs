//! What the Node says, decided from facts. Pure: `now` is an argument.
//!
//! Names, reasons and messages are the kubelet's. Conditions of other writers (such as NetworkUnavailable) are left alone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use runtime::Image;
use serde_json::{Value, json};

use super::Facts;
use crate::network;
use crate::settings::{Reserved, Settings};
use crate::{KUBELET_VERSION, VERSION};

#[cfg(test)]
mod tests;

/// The kubelet's nodeStatusMaxImages.
const MAX_IMAGES: usize = 50;
/// The kubelet's limit of names per image.
const MAX_IMAGE_NAMES: usize = 5;
const KIBIBYTE: i64 = 1024;

/// Everything that the status depends on, besides the previous status.
pub struct Inputs<'a> {
    pub settings: &'a Settings,
    pub facts: &'a Facts,
    pub images: &'a [Image],
    pub network: &'a network::State,
    pub now: Timestamp,
}

/// The Node for registration.
pub fn node(settings: &Settings, annotations: BTreeMap<String, String>, status: NodeStatus) -> Node {
    let architecture = status.node_info.as_ref().map(|info| info.architecture.clone()).unwrap_or_default();
    let mut labels = settings.node_labels.clone();
    labels.extend([
        ("kubernetes.io/hostname".to_owned(), settings.node_name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture),
    ]);
    Node {
        metadata: ObjectMeta {
            name: Some(settings.node_name.clone()),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(status),
    }
}

/// The labels and annotations that an existing Node lacks or has otherwise; `None` when all are right.
pub fn missing_metadata(existing: &Node, desired: &Node) -> Option<ObjectMeta> {
    let (have, wanted) = (&existing.metadata, &desired.metadata);
    let labels = missing(have.labels.as_ref(), wanted.labels.as_ref());
    let annotations = wanted.annotations.as_ref().and_then(|wanted| missing_annotations(existing, wanted));
    (labels.is_some() || annotations.is_some()).then(|| ObjectMeta {
        labels,
        annotations,
        ..ObjectMeta::default()
    })
}

/// Of these annotations, those that an existing Node lacks or has otherwise; `None` when all are right.
pub fn missing_annotations(existing: &Node, wanted: &Texts) -> Option<Texts> {
    missing(existing.metadata.annotations.as_ref(), Some(wanted))
}

type Texts = BTreeMap<String, String>;

fn missing(have: Option<&Texts>, wanted: Option<&Texts>) -> Option<Texts> {
    let differs = |(key, value): &(&String, &String)| have.and_then(|have| have.get(*key)) != Some(*value);
    let missing = wanted.into_iter().flatten().filter(differs);
    let missing: Texts = missing.map(|(key, value)| (key.clone(), value.clone())).collect();
    (!missing.is_empty()).then_some(missing)
}

/// The status now. `before` is the server's: transition times go on from there.
pub fn build(inputs: &Inputs<'_>, before: Option<&NodeStatus>) -> NodeStatus {
    let Inputs { settings, facts, images, network, now } = inputs;
    let capacity = capacity(facts, settings.max_pods);
    NodeStatus {
        addresses: Some(addresses(settings)),
        allocatable: Some(render(allocatable(&capacity, facts, &settings.system_reserved))),
        capacity: Some(render(capacity)),
        conditions: Some(conditions(network, before, *now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(settings.port) }),
        }),
        images: Some(container_images(images)),
        node_info: Some(node_info(facts)),
        ..NodeStatus::default()
    }
}

/// What makes a Node's status this one. Its addresses would be merged by their type, of which several are one.
pub fn patch(next: &NodeStatus) -> Value {
    let mut status = json!(next);
    if let Some(addresses) = status["addresses"].as_array_mut() {
        addresses.push(json!({"$patch": "replace"}));
    }
    json!({"status": status})
}

/// Whether there is news in `next`. Heartbeat times are none.
pub fn differs(before: Option<&NodeStatus>, next: &NodeStatus) -> bool {
    let Some(before) = before else { return true };
    let quiet = |condition: &NodeCondition| NodeCondition {
        last_heartbeat_time: None,
        last_transition_time: None,
        ..condition.clone()
    };
    let same_conditions = next
        .conditions
        .iter()
        .flatten()
        .all(|condition| before.conditions.iter().flatten().any(|old| quiet(old) == quiet(condition)));
    !same_conditions
        || before.addresses != next.addresses
        || before.allocatable != next.allocatable
        || before.capacity != next.capacity
        || before.daemon_endpoints != next.daemon_endpoints
        || before.images.as_deref().unwrap_or_default() != next.images.as_deref().unwrap_or_default()
        || before.node_info != next.node_info
}

fn addresses(settings: &Settings) -> Vec<NodeAddress> {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let internal = settings.node_ips.iter().map(|ip| address("InternalIP", ip.to_string()));
    internal.chain([address("Hostname", settings.node_name.clone())]).collect()
}

/// An amount with the unit that it is written in.
#[derive(Debug, Clone, Copy)]
enum Amount {
    Count(i64),
    Millis(i64),
    Bytes(i64),
}

type Amounts = BTreeMap<String, Amount>;

fn capacity(facts: &Facts, max_pods: u32) -> Amounts {
    let mut amounts = Amounts::from([
        ("cpu".to_owned(), Amount::Millis(signed(facts.cpus).saturating_mul(1000))),
        ("memory".to_owned(), Amount::Bytes(signed(facts.memory_bytes))),
        ("ephemeral-storage".to_owned(), Amount::Bytes(signed(facts.disk_bytes))),
        ("pods".to_owned(), Amount::Count(i64::from(max_pods))),
    ]);
    for (size, bytes) in &facts.hugepages {
        amounts.insert(hugepage_resource(*size), Amount::Bytes(signed(*bytes)));
    }
    amounts
}

/// Capacity less what the system keeps; memory also less what is set aside as huge pages.
fn allocatable(capacity: &Amounts, facts: &Facts, reserved: &Reserved) -> Amounts {
    let hugepages: i64 = facts.hugepages.iter().map(|(_, bytes)| signed(*bytes)).sum();
    let mut amounts = capacity.clone();
    for (resource, amount) in &mut amounts {
        let less = match resource.as_str() {
            "cpu" => reserved.cpu_millis,
            "memory" => reserved.memory_bytes.saturating_add(hugepages),
            "ephemeral-storage" => reserved.ephemeral_storage_bytes,
            _ => 0,
        };
        let (Amount::Count(value) | Amount::Millis(value) | Amount::Bytes(value)) = amount;
        *value = (*value - less).max(0);
    }
    amounts
}

fn render(amounts: Amounts) -> BTreeMap<String, Quantity> {
    amounts.into_iter().map(|(resource, amount)| (resource, Quantity(amount.to_string()))).collect()
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Bytes(bytes) if bytes != 0 && bytes % KIBIBYTE == 0 => write!(f, "{}Ki", bytes / KIBIBYTE),
            Self::Millis(millis) if millis % 1000 == 0 => write!(f, "{}", millis / 1000),
            Self::Millis(millis) => write!(f, "{millis}m"),
            Self::Bytes(value) | Self::Count(value) => write!(f, "{value}"),
        }
    }
}

/// `hugepages-2Mi`, `hugepages-1Gi`: a binary quantity, as the API spells it.
fn hugepage_resource(bytes: u64) -> String {
    let units = [(1_u64 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    match units.iter().find(|(unit, _)| bytes.is_multiple_of(*unit)) {
        Some((unit, suffix)) => format!("hugepages-{}{suffix}", bytes / unit),
        None => format!("hugepages-{bytes}"),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

struct Verdict {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn conditions(network: &network::State, before: Option<&NodeStatus>, now: Timestamp) -> Vec<NodeCondition> {
    let fine = |type_, reason, message: &str| Verdict {
        type_,
        status: "False",
        reason,
        message: message.to_owned(),
    };
    let verdicts = [
        fine("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        fine("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        fine("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ready(network),
    ];
    verdicts.into_iter().map(|verdict| condition(verdict, before, now)).collect()
}

fn ready(network: &network::State) -> Verdict {
    match network {
        network::State::Ready => Verdict {
            type_: "Ready",
            status: "True",
            reason: "KubeletReady",
            message: "kubelet is posting ready status".to_owned(),
        },
        network::State::NotReady { message } => Verdict {
            type_: "Ready",
            status: "False",
            reason: "KubeletNotReady",
            message: format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                 message:{message}"
            ),
        },
    }
}

fn condition(verdict: Verdict, before: Option<&NodeStatus>, now: Timestamp) -> NodeCondition {
    let previous = before
        .and_then(|before| before.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == verdict.type_));
    let since = previous
        .filter(|previous| previous.status == verdict.status)
        .and_then(|previous| previous.last_transition_time.clone());
    NodeCondition {
        type_: verdict.type_.to_owned(),
        status: verdict.status.to_owned(),
        reason: Some(verdict.reason.to_owned()),
        message: Some(verdict.message),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(since.unwrap_or(Time(now))),
    }
}

/// The largest ones, digests before tags.
fn container_images(images: &[Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<&Image> = images.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let image = |image: &Image| ContainerImage {
        names: Some(
            image.repo_digests.iter().chain(&image.repo_tags).take(MAX_IMAGE_NAMES).cloned().collect(),
        ),
        size_bytes: Some(signed(image.size)),
    };
    sorted.into_iter().take(MAX_IMAGES).map(image).collect()
}

fn node_info(facts: &Facts) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: facts.architecture.clone(),
        boot_id: facts.boot_id.clone(),
        container_runtime_version: format!("orlop://{VERSION}"),
        kernel_version: facts.kernel_version.clone(),
        // Gone upstream too: nobody can know what another program's version is.
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: facts.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: facts.os_image.clone(),
        swap: None,
        system_uuid: facts.system_uuid.clone(),
    }
}
