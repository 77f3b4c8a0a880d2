//! The CNI plugin `loopback`: see [`cni_plugins::loopback`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::loopback::Loopback)
}
