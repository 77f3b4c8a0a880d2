//! The CNI plugin `vrf`: see [`cni_plugins::vrf`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::vrf::Vrf)
}
