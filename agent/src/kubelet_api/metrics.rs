//! `/metrics`: figures in the OpenMetrics text format, under the kubelet's names where it has them.
//!
//! In: what the runtime, the agent and the dataplane counted or measured, asked for at each scrape. Nothing is kept here.

mod services;

use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use runtime::{ContainerState, SandboxState, Snapshot};

use super::Context;
use crate::api::chain;
use crate::services::{Dataplane, Directory};
use crate::{KUBELET_VERSION, VERSION};

#[cfg(test)]
mod tests;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The dataplane's counters, in the order of their numbers.
pub const DATAPLANE_COUNTERS: &[(u32, &str)] = &[
    (dataplane::counter::CONNECT_TRANSLATED, "connect_translated"),
    (dataplane::counter::CONNECT_NO_BACKEND, "connect_no_backend"),
    (dataplane::counter::SENDMSG_TRANSLATED, "sendmsg_translated"),
    (dataplane::counter::SENDMSG_NO_BACKEND, "sendmsg_no_backend"),
    (dataplane::counter::NODE_PORT_TRANSLATED, "node_port_translated"),
    (dataplane::counter::NODE_PORT_NO_BACKEND, "node_port_no_backend"),
    (dataplane::counter::MASQUERADED, "masqueraded"),
    (dataplane::counter::MASQUERADE_NO_PORT, "masquerade_no_port"),
    (dataplane::counter::FRAGMENT, "fragment"),
    (dataplane::counter::REWRITE_FAILED, "rewrite_failed"),
    (dataplane::counter::NODE_PORT_NO_FLOW, "node_port_no_flow"),
    (dataplane::counter::NODE_PORT_COLLISION, "node_port_collision"),
    (dataplane::counter::MASQUERADE_NO_FLOW, "masquerade_no_flow"),
    (dataplane::counter::MASQUERADE_IMPOSSIBLE, "masquerade_impossible"),
    (dataplane::counter::NAT_INSERT_FAILED, "nat_insert_failed"),
    (dataplane::counter::SOURCE_REFUSED, "source_refused"),
    (dataplane::counter::ICMP_ERROR_TRANSLATED, "icmp_error_translated"),
    (dataplane::counter::POLICY_INGRESS_DENIED, "policy_ingress_denied"),
    (dataplane::counter::POLICY_EGRESS_DENIED, "policy_egress_denied"),
    (dataplane::counter::PACKET_TRANSLATED, "packet_translated"),
    (dataplane::counter::PACKET_NO_BACKEND, "packet_no_backend"),
    (dataplane::counter::PACKET_NO_FLOW, "packet_no_flow"),
    (dataplane::counter::PACKET_HAIRPIN, "packet_hairpin"),
    (dataplane::counter::BACKEND_SET_ASIDE, "backend_set_aside"),
    (dataplane::counter::CLIENT_PORT_NO_FLOW, "client_port_no_flow"),
    (dataplane::counter::DIRECT_RETURN, "direct_return"),
    (dataplane::counter::ACCELERATED, "accelerated"),
    (dataplane::counter::HELD, "held"),
    (dataplane::counter::PATH_NARROW, "path_narrow"),
    (dataplane::counter::ENDED_HURRIED, "ended_hurried"),
];

/// All metrics as text.
pub fn render(context: &Context) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    node(&mut registry, &context.settings.node_name);
    running(&mut registry, &context.runtime.list());
    context.runtime.register_metrics(&mut registry);
    context.metrics.register(&mut registry);
    dropped_events(&mut registry, context.recorder.dropped());
    if let Some(dataplane) = &context.dataplane {
        register_dataplane(&mut registry, dataplane, &context.directory);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// What the dataplane holds and counted.
pub fn register_dataplane(registry: &mut Registry, dataplane: &Dataplane, directory: &Directory) {
    let (frontends, counters, counted) =
        dataplane.with(|dataplane| (dataplane.list(), dataplane.counters(), dataplane.service_counts()));
    services::register(registry, directory.owners(counted.into_iter()));
    // One stands in its sorted list as often as its share says.
    let distinct = |list: &[std::net::SocketAddr]| list.chunk_by(|one, next| one == next).count();
    let endpoints: usize = frontends.iter().map(|(_, target)| distinct(&target.inside)).sum();
    frontends_and_endpoints(registry, frontends.len(), endpoints);
    match counters {
        Ok(counters) => {
            dataplane_counters(registry, &counters);
            services::register_drops(registry, &counters);
        }
        Err(error) => tracing::warn!(error = chain(&error), "read the dataplane's counters"),
    }
}

fn node(registry: &mut Registry, name: &str) {
    let node: Family<[(&str, String); 1], Gauge> = Family::default();
    node.get_or_create(&[("node", name.to_owned())]).set(1);
    registry.register("kubelet_node_name", "The node's name. The count is always 1", node);
    build(registry);
}

/// Which program this is.
pub fn build(registry: &mut Registry) {
    let build: Family<[(&str, &str); 2], Gauge> = Family::default();
    build.get_or_create(&[("git_version", KUBELET_VERSION), ("orlop_version", VERSION)]).set(1);
    registry.register("kubernetes_build_info", "Versions of Kubernetes and of this program", build);
}

fn running(registry: &mut Registry, snapshot: &Snapshot) {
    let ready = snapshot.sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready).count();
    let pods = ConstGauge::new(ready);
    registry.register("kubelet_running_pods", "Number of pods that have a running pod sandbox", pods);
    let states = [
        (ContainerState::Created, "created"),
        (ContainerState::Running, "running"),
        (ContainerState::Exited, "exited"),
        (ContainerState::Unknown, "unknown"),
    ];
    let containers: Family<[(&str, &str); 1], Gauge> = Family::default();
    for (state, name) in states {
        let count = snapshot.containers.iter().filter(|container| container.state == state).count();
        containers.get_or_create(&[("container_state", name)]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("kubelet_running_containers", "Number of containers by state", containers);
}

/// Events that did not fit into the recorder's queue.
pub fn dropped_events(registry: &mut Registry, dropped: u64) {
    registry.register(
        "orlop_events_dropped",
        "Events that were not written, for too many waited",
        ConstCounter::new(dropped),
    );
}

fn frontends_and_endpoints(registry: &mut Registry, frontends: usize, endpoints: usize) {
    registry.register(
        "orlop_dataplane_frontends",
        "Service addresses that are translated",
        ConstGauge::new(frontends),
    );
    registry.register(
        "orlop_dataplane_endpoints",
        "Endpoints that service addresses lead to",
        ConstGauge::new(endpoints),
    );
}

fn dataplane_counters(registry: &mut Registry, counters: &[u64]) {
    let events: Family<[(&str, &str); 1], Counter> = Family::default();
    for (number, name) in DATAPLANE_COUNTERS {
        if let Some(count) = counters.get(*number as usize) {
            events.get_or_create(&[("kind", *name)]).inc_by(*count);
        }
    }
    registry.register("orlop_dataplane_events", "What the BPF programs did, by kind", events);
}
