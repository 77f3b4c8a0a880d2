//! The CNI plugin `ipvlan`: see [`cni_plugins::ipvlan`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::ipvlan::Ipvlan)
}
