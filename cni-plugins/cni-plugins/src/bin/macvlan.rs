//! The CNI plugin `macvlan`: see [`cni_plugins::macvlan`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::plugin::main(&cni_plugins::macvlan::Macvlan)
}
