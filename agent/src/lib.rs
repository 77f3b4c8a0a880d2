//! The node agent: what stands between the Kubernetes API and this machine's kernel.
//!
//! In: settings, the API server's objects, the runtime's events. Out: running pods, a programmed dataplane, the Node with its
//! Lease, and the kubelet's HTTPS API. Each module owns one piece of state and one task; `bin/orlop-agent.rs` starts them in
//! order. [`service_proxy`] is the part of it that runs beside somebody else's kubelet. Nothing here forks, mounts or programs the kernel
//! itself: that is `runtime`, `dataplane` and `linux`.

pub mod admin;
pub mod api;
pub mod backup;
pub mod events;
mod file_watch;
pub mod kubelet_api;
pub mod metrics;
pub mod network;
pub mod node;
pub mod plain_http;
pub mod pods;
pub mod policies;
pub mod readiness;
pub mod service_proxy;
pub mod services;
pub mod settings;

/// The kubelet version that this node reports: the Kubernetes release whose behaviour it has.
pub const KUBELET_VERSION: &str = "v1.36.0+orlop";
/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
