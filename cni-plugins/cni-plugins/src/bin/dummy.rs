//! The CNI plugin `dummy`: see [`cni_plugins::dummy`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::dummy::Dummy)
}
