//! The target runner of the root tiers: runs one test process in a host of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    match harness::private_host::main(std::env::args_os().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("private-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}
