//! Black-box tests of the API server: a real server on a free port of 127.0.0.1, real TLS, nothing but HTTP.

#[path = "https/client.rs"]
mod client;
#[path = "https/kubelet.rs"]
mod kubelet;
#[path = "https/network_policies.rs"]
mod network_policies;
#[path = "https/objects.rs"]
mod objects;
#[path = "https/pods.rs"]
mod pods;
#[path = "https/roles.rs"]
mod roles;
#[path = "https/start.rs"]
mod start;
#[path = "https/watches.rs"]
mod watches;
