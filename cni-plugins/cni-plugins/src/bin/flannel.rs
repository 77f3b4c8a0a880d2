//! The CNI plugin `flannel`: see [`cni_plugins::flannel`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::flannel::Flannel)
}
