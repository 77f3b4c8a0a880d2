//! Figures per Service, and per reason of a drop.
//!
//! A Service's port has a series once a flow asked for it on this node, and while the Service is there: at most [`MAX_PORTS`] ports, in the order
//! of their names, and a gauge of those that are left out. Counts are the kernel's, over all addresses of the port; an address that is
//! taken away takes its own with it, which a scraper sees as a reset.

use std::collections::BTreeMap;

use dataplane::{Frontend, ServiceCounts};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::DATAPLANE_COUNTERS;
use crate::services::{DROPS, Owner};

/// Ports of Services with figures of their own.
const MAX_PORTS: usize = 20_000;

type Labels = [(&'static str, String); 5];
type RefusedLabels = [(&'static str, String); 6];

/// What became of flows to each Service.
pub fn register(registry: &mut Registry, counted: Vec<(Frontend, Owner, ServiceCounts)>) {
    let mut ports: BTreeMap<Labels, ServiceCounts> = BTreeMap::new();
    for (_, owner, counts) in counted {
        let sum = ports.entry(labels(&owner)).or_default();
        sum.led += counts.led;
        sum.no_backend += counts.no_backend;
        sum.forbidden += counts.forbidden;
    }
    let omitted = ports.len().saturating_sub(MAX_PORTS);
    let flows: Family<Labels, Counter> = Family::default();
    let refused: Family<RefusedLabels, Counter> = Family::default();
    for (labels, counts) in ports.into_iter().take(MAX_PORTS) {
        for (reason, count) in [("no_endpoint", counts.no_backend), ("source_range", counts.forbidden)] {
            if count > 0 {
                let [namespace, service, port, port_name, protocol] = labels.clone();
                let labels = [namespace, service, port, port_name, protocol, ("reason", reason.to_owned())];
                refused.get_or_create(&labels).inc_by(count);
            }
        }
        flows.get_or_create(&labels).inc_by(counts.led);
    }
    registry.register(
        "orlop_service_flows",
        "New flows to a Service's port that were led to an endpoint",
        flows,
    );
    registry.register(
        "orlop_service_refused",
        "Calls and packets to a Service's port that were refused or dropped, by reason",
        refused,
    );
    registry.register(
        "orlop_service_ports_omitted",
        "Ports of Services that have no figures here, for there are too many",
        ConstGauge::new(omitted as u64),
    );
}

fn labels(Owner { key, port, .. }: &Owner) -> Labels {
    [
        ("namespace", key.namespace.clone()),
        ("service", key.name.clone()),
        ("port", port.port.to_string()),
        ("port_name", port.name.clone()),
        ("protocol", port.protocol.name().to_owned()),
    ]
}

/// What was refused or dropped, under the counters' names.
pub fn register_drops(registry: &mut Registry, counters: &[u64]) {
    let drops: Family<[(&str, &str); 1], Counter> = Family::default();
    for drop in DROPS {
        let name = DATAPLANE_COUNTERS.iter().find(|(number, _)| *number == drop.counter);
        if let (Some((_, reason)), Some(count)) = (name, counters.get(drop.counter as usize)) {
            drops.get_or_create(&[("reason", *reason)]).inc_by(*count);
        }
    }
    registry.register(
        "orlop_dataplane_drops",
        "What the BPF programs refused, dropped or could not lead, by reason",
        drops,
    );
}
