//! Parts of the agent on hosts of their own.

#[path = "host/cluster.rs"]
mod cluster;
#[path = "host/overlay.rs"]
mod overlay;
