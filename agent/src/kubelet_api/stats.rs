//! `/stats/summary` and `/runningpods`: what the runtime knows of pods that exist on this node.
//!
//! In: the runtime's snapshot and counters. Out: JSON in the kubelet's form. A container whose counters cannot be read is
//! listed without them.

use jiff::Timestamp;
use runtime::{ContainerState, ContainerStats, ContainerStatus, SandboxState, SandboxStatus, Snapshot};
use serde_json::{Value, json};

use super::Context;

#[cfg(test)]
mod tests;

/// The PodList of what runs, as far as the runtime knows it.
pub fn running_pods(snapshot: &Snapshot) -> Value {
    let ready = snapshot.sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready);
    let pod = |sandbox: &SandboxStatus| {
        let running = |container: &&ContainerStatus| {
            container.sandbox == sandbox.id && container.state == ContainerState::Running
        };
        let containers = snapshot.containers.iter().filter(running).map(|container| {
            json!({"name": container.config.name, "image": container.config.image, "resources": {}})
        });
        let config = &sandbox.config;
        json!({
            "metadata": {"name": config.name, "namespace": config.namespace, "uid": config.uid},
            "spec": {"containers": containers.collect::<Vec<_>>()},
            "status": {},
        })
    };
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": ready.map(pod).collect::<Vec<_>>()})
}

/// The summary of this node.
pub async fn summary(context: &Context) -> Value {
    let snapshot = context.runtime.list();
    let mut pods = Vec::new();
    for sandbox in snapshot.sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready) {
        let mut containers = Vec::new();
        for container in snapshot.containers.iter().filter(|container| container.sandbox == sandbox.id) {
            if container.state != ContainerState::Running {
                continue;
            }
            let stats = context.runtime.container_stats(&container.id).await;
            if let Err(error) = &stats {
                tracing::debug!(container = %container.id, %error, "read a container's counters");
            }
            containers.push((container, stats.ok()));
        }
        pods.push(pod(sandbox, &containers));
    }
    json!({"node": {"nodeName": context.settings.node_name}, "pods": pods})
}

fn pod(sandbox: &SandboxStatus, containers: &[(&ContainerStatus, Option<ContainerStats>)]) -> Value {
    let known: Vec<&ContainerStats> = containers.iter().filter_map(|(_, stats)| stats.as_ref()).collect();
    let listed: Vec<Value> =
        containers.iter().map(|(status, stats)| container(status, stats.as_ref())).collect();
    let mut pod = json!({
        "podRef": {
            "name": sandbox.config.name,
            "namespace": sandbox.config.namespace,
            "uid": sandbox.config.uid,
        },
        "startTime": time(sandbox.created_at),
        "containers": listed,
    });
    if let Some(newest) = known.iter().map(|stats| stats.timestamp).max() {
        let sum = |field: fn(&ContainerStats) -> u64| known.iter().map(|stats| field(stats)).sum::<u64>();
        pod["cpu"] =
            json!({"time": time(newest), "usageCoreNanoSeconds": sum(|stats| stats.cpu_usage_nanos)});
        pod["memory"] = json!({
            "time": time(newest),
            "usageBytes": sum(|stats| stats.memory_usage),
            "workingSetBytes": sum(|stats| stats.memory_working_set),
            "rssBytes": sum(|stats| stats.memory_rss),
            "pageFaults": sum(|stats| stats.page_faults),
            "majorPageFaults": sum(|stats| stats.major_page_faults),
        });
        pod["process_stats"] = json!({"process_count": sum(|stats| stats.pids)});
    }
    pod
}

fn container(status: &ContainerStatus, stats: Option<&ContainerStats>) -> Value {
    let mut container = json!({"name": status.config.name, "startTime": time(status.started_at)});
    let Some(stats) = stats else { return container };
    let at = time(stats.timestamp);
    container["cpu"] = json!({"time": at, "usageCoreNanoSeconds": stats.cpu_usage_nanos});
    container["memory"] = json!({
        "time": at,
        "usageBytes": stats.memory_usage,
        "workingSetBytes": stats.memory_working_set,
        "rssBytes": stats.memory_rss,
        "pageFaults": stats.page_faults,
        "majorPageFaults": stats.major_page_faults,
    });
    if let Some(available) = stats.memory_available {
        container["memory"]["availableBytes"] = json!(available);
    }
    container["rootfs"] = json!({"time": at, "usedBytes": stats.writable_layer_bytes, "inodesUsed": stats.writable_layer_inodes});
    container
}

/// Nanoseconds since 1970, as the API writes times; null for none.
fn time(nanoseconds: i64) -> Value {
    match Timestamp::from_nanosecond(i128::from(nanoseconds)) {
        Ok(time) if nanoseconds != 0 => json!(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        _ => Value::Null,
    }
}
