//! Control groups and netlink on the real kernel. Every test is a process of its own in fresh mount, network and pid namespaces, as root.

#[path = "host/cgroups.rs"]
mod cgroups;
#[path = "host/mounts.rs"]
mod mounts;
#[path = "host/notifications.rs"]
mod notifications;
