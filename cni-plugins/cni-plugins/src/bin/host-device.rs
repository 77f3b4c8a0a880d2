//! The CNI plugin `host-device`: see [`cni_plugins::host_device`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::host_device::HostDevice)
}
