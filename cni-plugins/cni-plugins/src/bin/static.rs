//! The CNI plugin `static`: see [`cni_plugins::static_ipam`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::static_ipam::Static)
}
