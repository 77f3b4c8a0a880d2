//! `cargo xtask bench NAME`: measurements on the cluster that is up. They print a table and assert nothing.

mod cpu;
mod footprint;
mod node_metrics;
mod percentile;
mod pod_start;
mod pods;

use anyhow::{Result, ensure};

use crate::up;

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    name: Name,
}

#[derive(clap::Subcommand)]
enum Name {
    /// Time from a pod's creation in the API to Running and its shares, and from its deletion to its end, for 1, 10 and 50 pods at once.
    PodStart,
    /// Memory and idle CPU of server, agent and shims, with no pod and with 50.
    Footprint,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(up::kubeconfig().is_file(), "no cluster is up: run `cargo xtask up` first");
    match options.name {
        Name::PodStart => pod_start::run(),
        Name::Footprint => footprint::run(),
    }
}
