//! The CNI plugin `portmap`: see [`cni_plugins::portmap`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::portmap::Portmap)
}
