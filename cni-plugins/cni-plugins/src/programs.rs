//! One executable for all plugins: the name that it is called by says which one it is.
//!
//! Owns the list of names. A copy of the file is installed under each of them, and one that delegates to another knows it again
//! there (see `delegate`). It refuses to run under any other name, but for `cni-plugins list`, which prints the names for who
//! installs it.

use std::{env, path::Path, process::ExitCode};

use crate::{
    bandwidth::Bandwidth,
    bridge::Bridge,
    dhcp::{self, Dhcp},
    dummy::Dummy,
    firewall::Firewall,
    flannel::Flannel,
    host_device::HostDevice,
    host_local::HostLocal,
    ipvlan::Ipvlan,
    loopback::Loopback,
    macvlan::Macvlan,
    plugin::{self, Plugin},
    portmap::Portmap,
    ptp::Ptp,
    sbr::Sbr,
    static_ipam::Static,
    tuning::Tuning,
    vlan::Vlan,
    vrf::Vrf,
};

/// A plugin's name, and the whole life of its process.
type Program = (&'static str, fn() -> ExitCode);

const PROGRAMS: [Program; 18] = [
    (Bandwidth::NAME, || plugin::main(&Bandwidth)),
    (Bridge::NAME, || plugin::main(&Bridge)),
    (Dhcp::NAME, dhcp::main),
    (Dummy::NAME, || plugin::main(&Dummy)),
    (Firewall::NAME, || plugin::main(&Firewall)),
    (Flannel::NAME, || plugin::main(&Flannel)),
    (HostDevice::NAME, || plugin::main(&HostDevice)),
    (HostLocal::NAME, || plugin::main(&HostLocal)),
    (Ipvlan::NAME, || plugin::main(&Ipvlan)),
    (Loopback::NAME, || plugin::main(&Loopback)),
    (Macvlan::NAME, || plugin::main(&Macvlan)),
    (Portmap::NAME, || plugin::main(&Portmap)),
    (Ptp::NAME, || plugin::main(&Ptp)),
    (Sbr::NAME, || plugin::main(&Sbr)),
    (Static::NAME, || plugin::main(&Static)),
    (Tuning::NAME, || plugin::main(&Tuning)),
    (Vlan::NAME, || plugin::main(&Vlan)),
    (Vrf::NAME, || plugin::main(&Vrf)),
];

/// The names of all plugins.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.into_iter().map(|(name, _)| name)
}

/// The whole life of the executable.
pub fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let path = arguments.next().unwrap_or_default();
    let called = Path::new(&path).file_name().unwrap_or_default();
    if let Some((_, run)) = PROGRAMS.into_iter().find(|(name, _)| called == *name) {
        return run();
    }
    if arguments.next().is_some_and(|argument| argument == "list") {
        names().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let names: Vec<&str> = names().collect();
    eprintln!(
        "no CNI plugin is named {}: call this executable by one of {}",
        called.display(),
        names.join(", ")
    );
    ExitCode::FAILURE
}
