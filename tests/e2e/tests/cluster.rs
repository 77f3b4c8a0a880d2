//! The cluster as a user sees it. Run by `cargo xtask test 4`, one test after the other on one cluster.

#[path = "cluster/bad_input.rs"]
mod bad_input;
#[path = "cluster/churn.rs"]
mod churn;
#[path = "cluster/demo.rs"]
mod demo;
#[path = "cluster/departures.rs"]
mod departures;
#[path = "cluster/faults.rs"]
mod faults;
#[path = "cluster/many.rs"]
mod many;
#[path = "cluster/metrics.rs"]
mod metrics;
#[path = "cluster/namespace.rs"]
mod namespace;
#[path = "cluster/node_api.rs"]
mod node_api;
#[path = "cluster/overlay.rs"]
mod overlay;
#[path = "cluster/policies.rs"]
mod policies;
#[path = "cluster/port_forward.rs"]
mod port_forward;
#[path = "cluster/services.rs"]
mod services;
#[path = "cluster/several_nodes.rs"]
mod several_nodes;
#[path = "cluster/way_out.rs"]
mod way_out;
