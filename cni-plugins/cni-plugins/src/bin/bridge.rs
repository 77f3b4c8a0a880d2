//! The CNI plugin `bridge`: see [`cni_plugins::bridge`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::bridge::Bridge)
}
