//! The network between the virtual machine and its outside: one tap in a network namespace of its own.
//!
//! The namespace belongs to the stage that runs QEMU and ends with it; the host's links and routes are neither used nor changed.

use std::process::Command;

use anyhow::{Context, Result, ensure};

pub const TAP: &str = "tap0";
pub const OUTSIDE: &str = "10.86.0.1";
pub const MACHINE: &str = "10.86.0.11";
pub const PREFIX_LENGTH: u8 = 24;

pub fn make() -> Result<()> {
    // The stage before made namespaces of every kind at once.
    ensure!(
        std::process::id() == 1,
        "this stage runs in a network namespace of its own: call `cargo xtask e2e`"
    );
    ip(&["link", "set", "lo", "up"])?;
    ip(&["tuntap", "add", TAP, "mode", "tap"])?;
    ip(&["address", "add", &format!("{OUTSIDE}/{PREFIX_LENGTH}"), "dev", TAP])?;
    ip(&["link", "set", TAP, "up"])
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("start ip")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), errors.trim());
    Ok(())
}
