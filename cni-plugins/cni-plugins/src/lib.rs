//! CNI plugins as a library: one module per plugin, and the protocol that they share.
//!
//! Owns: the plugin's side of the CNI protocol ([`plugin`]), IPAM delegation, and the plugins, each in a module, with the configuration keys, results and on-disk formats of the reference plugins. The executables in
//! `src/bin` only name their plugin. It refuses to start other processes than IPAM plugins, and to keep state anywhere
//! but in the kernel and in host-local's leases.

pub mod bridge;
mod delegate;
pub mod firewall;
pub mod host_local;
pub mod loopback;
mod masquerade;
pub mod plugin;
pub mod portmap;
mod ruleset;
mod sysctl;
