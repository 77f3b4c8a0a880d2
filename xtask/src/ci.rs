//! `cargo xtask ci`: every check that a change must pass, in the order in which they fail cheapest.
//!
//! Its last line is the count of tests, on every path: a check that fails stops the run and counts as a failure.

use anyhow::{Context, Result};

use crate::{build_ebpf, e2e, process, test, tidy};

pub fn run() -> Result<()> {
    let mut tally = test::Tally::default();
    let end = checks(&mut tally);
    test::close(tally, end)
}

fn checks(tally: &mut test::Tally) -> Result<()> {
    test::check_tools()?;
    step("fmt", || each_manifest(&["fmt", "--all"], &["--", "--check"]))?;
    step("tidy", tidy::run)?;
    step("deny", || {
        each_manifest(&["deny"], &["--log-level", "error", "check", "bans", "licenses", "sources"])
    })?;
    step("build-ebpf", build_ebpf::run)?;
    step("clippy", || {
        let mut clippy = process::cargo();
        clippy.args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]);
        process::run(&mut clippy)
    })?;
    step("test", || test::tiers(&test::Options::everything(), tally))?;
    step("e2e", || smoke(tally))
}

/// The fast part of the virtual machines, of what the step before built.
fn smoke(tally: &mut test::Tally) -> Result<()> {
    match e2e::obstacle() {
        Some(obstacle) => {
            tally.skip(format!("e2e: {obstacle}"));
            Ok(())
        }
        None => e2e::checks(&e2e::Options::smoke_of_built(), tally),
    }
}

/// Runs a cargo command for the workspace and for the BPF programs, which are outside of it. Clippy is not among them: it would
/// need the BPF target's standard library.
fn each_manifest(command: &[&str], arguments: &[&str]) -> Result<()> {
    for manifest in ["Cargo.toml", "ebpf/dataplane-programs/Cargo.toml"] {
        let mut cargo = process::cargo();
        cargo.args(command).arg("--manifest-path").arg(process::root().join(manifest)).args(arguments);
        process::run(&mut cargo)?;
    }
    Ok(())
}

/// Announces the step and names it in its error. No clock: CI's log has its own.
fn step(name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    work().with_context(|| format!("ci step {name}"))
}
