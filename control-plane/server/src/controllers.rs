//! The scheduler and the controllers, started as clients of the API server that runs in the same process.
//!
//! Each has an identity and a connection of its own: nothing here reaches into the server.

use anyhow::{Context, Result};
use apiserver::bootstrap::Running;
use apiserver::pki::Identity;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio_util::sync::CancellationToken;

use crate::options::ServeOptions;

/// What the controllers are started with.
pub async fn options(serve: &ServeOptions, running: &Running) -> Result<controllers::Options> {
    let scheduler = client(running, Identity::Scheduler, "scheduler").await?;
    let controller = client(running, Identity::Controllers, "controllers").await?;
    let mut options = controllers::Options::new(
        scheduler,
        controller,
        serve.cluster_cidr,
        running.pki.ca_certificate().to_owned(),
    );
    options.node_monitor_grace_period = serve.node_monitor_grace_period;
    Ok(options)
}

/// Runs them until `stop`; an error ends the server, since a cluster without them looks alive and is not.
pub async fn run(options: controllers::Options, stop: CancellationToken) -> Result<()> {
    controllers::run(options, stop.clone()).await.context("start the controllers")
}

async fn client(running: &Running, identity: Identity<'_>, user: &str) -> Result<Client> {
    let text =
        running.kubeconfig(identity, user).with_context(|| format!("make the kubeconfig of {user}"))?;
    let parsed = Kubeconfig::from_yaml(&text).with_context(|| format!("read the kubeconfig of {user}"))?;
    let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await;
    let config = config.with_context(|| format!("use the kubeconfig of {user}"))?;
    Client::try_from(config).with_context(|| format!("make the client of {user}"))
}
