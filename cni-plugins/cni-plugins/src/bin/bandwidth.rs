//! The CNI plugin `bandwidth`: see [`cni_plugins::bandwidth`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::bandwidth::Bandwidth)
}
