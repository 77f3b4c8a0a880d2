//! The CNI plugin `sbr`: see [`cni_plugins::sbr`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::sbr::Sbr)
}
