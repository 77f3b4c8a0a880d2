//! `cargo xtask ci`: every check that a change must pass, in the order in which they fail cheapest.

use anyhow::{Context, Result};

use crate::{build_ebpf, process, test, tidy};

pub fn run() -> Result<()> {
    test::check_tools()?;
    step("fmt", || process::run(process::cargo().args(["fmt", "--all", "--", "--check"])))?;
    step("tidy", tidy::run)?;
    step("deny", || {
        process::run(process::cargo().args([
            "deny",
            "--log-level",
            "error",
            "check",
            "bans",
            "licenses",
            "sources",
        ]))
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
    step("test", || test::run(&test::Options::everything()))
}

/// Announces the step and names it in its error. No clock: CI's log has its own.
fn step(name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    work().with_context(|| format!("ci step {name}"))
}
