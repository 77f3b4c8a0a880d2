//! The CNI plugin `tuning`: see [`cni_plugins::tuning`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::tuning::Tuning)
}
