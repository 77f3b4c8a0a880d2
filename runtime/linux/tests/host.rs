//! Control groups, netlink and nftables on the real kernel. Every test is a process of its own in fresh mount, network and pid namespaces, as root.

#[path = "host/cgroups.rs"]
mod cgroups;
#[path = "host/conntrack.rs"]
mod conntrack;
#[path = "host/links.rs"]
mod links;
#[path = "host/mounts.rs"]
mod mounts;
#[path = "host/nftables.rs"]
mod nftables;
#[path = "host/notifications.rs"]
mod notifications;
#[path = "host/rules.rs"]
mod rules;
#[path = "host/sockets.rs"]
mod sockets;
