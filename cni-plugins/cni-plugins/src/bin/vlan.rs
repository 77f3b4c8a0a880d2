//! The CNI plugin `vlan`: see [`cni_plugins::vlan`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::vlan::Vlan)
}
