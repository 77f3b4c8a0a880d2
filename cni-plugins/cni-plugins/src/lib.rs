//! CNI plugins as a library: one module per plugin, and the protocol that they share.
//!
//! Owns: the plugin's side of the CNI protocol ([`plugin`]), what plugins share (the pair, the link inside, IPAM
//! delegation, CHECK), and the plugins, with the configuration keys, results and on-disk formats of the reference
//! plugins. All of them are one executable ([`programs`]). It refuses to start other processes than the plugins
//! that it delegates to, and to keep state anywhere but in the kernel and in files: those that the reference plugins keep,
//! an index beside the leases of `host-local` (`.NETWORK.owners`), which may be deleted at any time, and the leases that
//! `dhcp daemon` holds (`dhcp/*.json` beside its socket), which the next daemon renews.

pub mod bandwidth;
pub mod bridge;
mod delegate;
pub mod dhcp;
pub mod dummy;
pub mod firewall;
pub mod flannel;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hardware_address;
mod hash;
pub mod host_device;
pub mod host_local;
mod inside;
pub mod ipvlan;
mod kept_file;
pub mod loopback;
pub mod macvlan;
mod made;
mod masquerade;
mod netns_lock;
pub mod pair;
pub mod plugin;
pub mod portmap;
pub mod programs;
pub mod ptp;
mod ruleset;
pub mod sbr;
mod single;
mod stacked;
pub mod static_ipam;
mod sysctl;
pub mod tuning;
mod verify;
pub mod vlan;
pub mod vrf;
