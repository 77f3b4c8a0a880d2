//! The CNI plugin `firewall`: see [`cni_plugins::firewall`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::firewall::Firewall)
}
