//! The CNI plugin `host-local`: see [`cni_plugins::host_local`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::host_local::HostLocal)
}
