//! `cargo xtask bench NAME`: measurements, most of them on the cluster that is up. They print a table and assert nothing.

mod cni;
mod cpu;
mod dataplane;
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
    /// CNI plugins beside the reference plugins, without a cluster: ADD and DEL of chains, 200 ADDs at once, addresses among many leases.
    Cni(cni::Options),
    /// The load balancer beside nftables as kube-proxy writes it, without a cluster: loading, changing, connecting, UDP sockets.
    Dataplane(dataplane::Options),
}

pub fn run(options: &Options) -> Result<()> {
    match &options.name {
        Name::PodStart => on_cluster(pod_start::run),
        Name::Footprint => on_cluster(footprint::run),
        Name::Cni(options) => cni::run(options),
        Name::Dataplane(options) => dataplane::run(options),
    }
}

fn on_cluster(measure: fn() -> Result<()>) -> Result<()> {
    ensure!(up::kubeconfig().is_file(), "no cluster is up: run `cargo xtask up` first");
    measure()
}
