//! All CNI plugins in one executable: see [`cni_plugins::programs`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::programs::main()
}
