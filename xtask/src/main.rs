//! `cargo xtask`: everything that a developer or CI does with this repository.
//!
//! One file per command. Commands call each other as functions (`up` calls `setup`), never through a shell.

mod bench;
mod build_ebpf;
mod ci;
mod debian;
mod dist;
mod down;
mod e2e;
mod images;
mod machine;
mod process;
mod setup;
mod test;
mod tidy;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "build, run, test and measure Orlop", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the project needs on this machine: packages, bpf-linker, rust-src, cargo tools.
    Setup,
    /// Build the BPF object that the load balancer embeds.
    BuildEbpf,
    /// Start a cluster on this machine and wait until it is Ready.
    Up(up::Options),
    /// Stop the cluster and leave nothing behind.
    Down,
    /// Run the tests that this machine can run, or one tier.
    Test(test::Options),
    /// Install and check everything in virtual machines with stock kernels.
    E2e(e2e::Options),
    /// Measure the cluster that is up.
    Bench(bench::Options),
    /// Run every check that a change must pass.
    Ci,
    /// Check the rules that the compiler does not know: dependency directions, file headers, pure modules.
    Tidy,
    /// Assemble target/dist: executables, CNI plugins, units and install script.
    Dist(dist::Options),
    /// Build the test images.
    Images,
    /// A stage of a node's machine; `up` calls it.
    #[command(hide = true, subcommand)]
    Machine(machine::Stage),
    /// A stage of a virtual machine; `e2e` calls it.
    #[command(hide = true, subcommand)]
    Vm(e2e::Stage),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<process::Told>() => ExitCode::FAILURE,
        Err(error) => {
            // One line that says what went wrong, and why; never a backtrace of ours.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup => setup::run(),
        Command::BuildEbpf => build_ebpf::run(),
        Command::Test(options) => test::run(&options),
        Command::E2e(options) => e2e::run(&options),
        Command::Vm(stage) => e2e::stage(&stage),
        Command::Bench(options) => bench::run(&options),
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Dist(options) => dist::run(&options).map(drop),
        Command::Up(options) => up::run(&options),
        Command::Down => down::run(),
        Command::Images => images::run().map(drop),
        Command::Machine(stage) => machine::run(&stage),
    }
}
