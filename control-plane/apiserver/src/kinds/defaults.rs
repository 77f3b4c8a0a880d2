//! Defaults, as upstream's `SetDefaults_*` apply them. Each runs on every write and changes nothing that is set.

pub(super) mod network_policy;
pub(super) mod pod;
pub(super) mod rbac;
pub(super) mod service;
pub(super) mod simple;
pub(super) mod workload;
