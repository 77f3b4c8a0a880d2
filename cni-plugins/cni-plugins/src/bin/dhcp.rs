//! The CNI plugin `dhcp` and its daemon: see [`cni_plugins::dhcp`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::dhcp::main()
}
