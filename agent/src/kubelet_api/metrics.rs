//! `/metrics`: figures in Prometheus' text format, under the kubelet's names where it has them.
//!
//! Read when asked for; nothing is kept here.

use std::fmt::{Display, Write};

use runtime::{ContainerState, SandboxState, Snapshot};

use super::Context;
use crate::api::chain;
use crate::{KUBELET_VERSION, VERSION};

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
];

/// All metrics as text.
pub fn render(context: &Context) -> String {
    let mut page = Page::default();
    page.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    page.sample("kubelet_node_name", &[("node", context.settings.node_name.as_str())], 1);
    page.family("kubernetes_build_info", "gauge", "Versions of Kubernetes and of this program.");
    page.sample("kubernetes_build_info", &[("git_version", KUBELET_VERSION), ("orlop_version", VERSION)], 1);
    runtime_metrics(&mut page, &context.runtime.list());
    if let Some(dataplane) = &context.dataplane {
        let (frontends, counters) = dataplane.with(|dataplane| (dataplane.list(), dataplane.counters()));
        page.family("orlop_dataplane_frontends", "gauge", "Service addresses that are translated.");
        page.sample("orlop_dataplane_frontends", &[], frontends.len());
        let endpoints: usize = frontends.iter().map(|(_, endpoints)| endpoints.len()).sum();
        page.family("orlop_dataplane_endpoints", "gauge", "Endpoints that service addresses lead to.");
        page.sample("orlop_dataplane_endpoints", &[], endpoints);
        match counters {
            Ok(counters) => dataplane_counters(&mut page, &counters),
            Err(error) => tracing::warn!(error = chain(&error), "read the dataplane's counters"),
        }
    }
    page.text
}

fn runtime_metrics(page: &mut Page, snapshot: &Snapshot) {
    let ready = snapshot.sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready).count();
    page.family("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    page.sample("kubelet_running_pods", &[], ready);
    page.family("kubelet_running_containers", "gauge", "Number of containers by state");
    let states = [
        (ContainerState::Created, "created"),
        (ContainerState::Running, "running"),
        (ContainerState::Exited, "exited"),
        (ContainerState::Unknown, "unknown"),
    ];
    for (state, name) in states {
        let count = snapshot.containers.iter().filter(|container| container.state == state).count();
        page.sample("kubelet_running_containers", &[("container_state", name)], count);
    }
}

fn dataplane_counters(page: &mut Page, counters: &[u64]) {
    page.family("orlop_dataplane_events_total", "counter", "What the BPF programs did, by kind.");
    for (number, name) in DATAPLANE_COUNTERS {
        if let Some(count) = counters.get(*number as usize) {
            page.sample("orlop_dataplane_events_total", &[("kind", *name)], count);
        }
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let shown: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        if shown.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{}}} {value}", shown.join(",")));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing into a String cannot fail.
        let _written = writeln!(self.text, "{line}");
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use runtime::Snapshot;

    use super::{DATAPLANE_COUNTERS, Page, dataplane_counters, runtime_metrics};

    #[test]
    fn the_text_format() {
        let mut page = Page::default();
        page.family("a", "gauge", "Help.");
        page.sample("a", &[("x", "q\"\\"), ("y", "2")], 7);
        page.sample("a", &[], 8);
        assert_eq!(page.text, "# HELP a Help.\n# TYPE a gauge\na{x=\"q\\\"\\\\\",y=\"2\"} 7\na 8\n");
    }

    #[test]
    fn every_counter_of_the_dataplane_has_a_name() {
        let numbers: Vec<u32> = DATAPLANE_COUNTERS.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..dataplane::counter::COUNT).collect::<Vec<_>>());
        let mut page = Page::default();
        dataplane_counters(&mut page, &[5; DATAPLANE_COUNTERS.len()]);
        assert!(
            page.text.contains("orlop_dataplane_events_total{kind=\"masqueraded\"} 5\n"),
            "{}",
            page.text
        );
    }

    #[test]
    fn an_empty_runtime_counts_zero() {
        let mut page = Page::default();
        runtime_metrics(&mut page, &Snapshot::default());
        assert!(page.text.contains("kubelet_running_pods 0\n"));
        assert!(page.text.contains("kubelet_running_containers{container_state=\"running\"} 0\n"));
    }
}
