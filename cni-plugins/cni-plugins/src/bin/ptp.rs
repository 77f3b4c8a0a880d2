//! The CNI plugin `ptp`: see [`cni_plugins::ptp`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::ptp::Ptp)
}
