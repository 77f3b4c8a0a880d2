//! The load balancer beside nftables as kube-proxy writes it: builds `ebpf/dataplane/benches/dataplane.rs` as a release is built, and
//! runs it in a private host.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{build_ebpf, process, test};

#[derive(clap::Args)]
pub struct Options {
    /// One part alone, by its name in the bench; all without. May be given several times.
    #[arg(long)]
    part: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "bench dataplane loads BPF programs, which needs root");
    build_ebpf::run()?;
    let mut build = process::cargo();
    build.args(["bench", "--no-run", "--quiet", "--package", "dataplane", "--bench", "dataplane"]);
    let messages = process::run_quietly("building the bench", build.args(["--message-format", "json"]))?;
    process::run(Command::new(test::private_host()?).arg(executable(&messages)?).args(&options.part))
}

/// What cargo says that it built last.
fn executable(messages: &str) -> Result<PathBuf> {
    let built = messages.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let path = built.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next();
    path.context("cargo named no executable of the bench")
}
