//! `orlop-shim SANDBOX CONFIG`: keeper of one pod sandbox.
//!
//! Input: a [`shim_protocol::ShimConfig`] file and requests on a unix socket; output: running containers, their logs, and durable records of their
//! exits. One thread, one loop that never waits for anything but events; whatever takes longer happens in forked workers. It outlives the
//! process that started it, and refuses to end while containers run.
#![expect(unsafe_code, reason = "signal dispositions, and forking through libcontainer")]

mod boot;
mod confinement;
mod connection;
mod container;
mod executor;
mod keeper;
mod log_file;
mod pod_init;
mod sandbox;
mod seccomp;
mod stdio;
mod timestamp;
mod worker;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, sandbox, config] = arguments.as_slice() else {
        eprintln!("usage: orlop-shim SANDBOX CONFIG");
        return ExitCode::from(2);
    };
    match boot::start(sandbox, config.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
