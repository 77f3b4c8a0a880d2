//! `orlop-server`: the control plane of a cluster in one process.
//!
//! Without a subcommand it serves until SIGTERM or SIGINT; `node-credentials` writes what a node needs to join; `store check`
//! examines a store.

mod options;
mod store;

use std::process::ExitCode;

use anyhow::Context;
use apiserver::bootstrap::{self, Running};
use apiserver::pki::{self, Identity, NodeCredentials, Pki};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use options::{Cli, Command, NodeCredentialsArguments, ServeArguments, ServeOptions, StoreCommand};

/// Worker threads of the runtime: the server waits far more than it computes.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match cli.command {
        Some(Command::NodeCredentials(arguments)) => node_credentials(&arguments),
        Some(Command::Store { command: StoreCommand::Check { file } }) => store::check(&file),
        None => serve(&cli.serve),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &ServeArguments) -> anyhow::Result<()> {
    let options = arguments.validate()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
        let running = bootstrap::start(&options.server, stop.clone()).await?;
        println!("listening on {}", running.url);
        let controllers = controllers::run(controller_options(&running, &options).await?, stop.clone());
        let mut controllers = tokio::spawn(controllers);
        // All may be dropped: each is waited for once, and what it says stays true.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = running.store_failed() => anyhow::bail!("the store failed; its error is above"),
            ended = &mut controllers => {
                return ended.context("run the controllers")?.context("run the controllers");
            }
        }
        tracing::info!("stopping");
        stop.cancel();
        // Within the drain of the server's connections the controllers finish what they write.
        running.stopped().await;
        controllers.await.context("stop the controllers")?.context("run the controllers")
    });
    // Ends every task that is left, and with the last of them the store, which closes its file.
    drop(runtime);
    result
}

/// The controllers are clients like any other: they get identities and a URL, nothing of the server's insides.
async fn controller_options(
    running: &Running,
    options: &ServeOptions,
) -> anyhow::Result<controllers::Options> {
    let scheduler = client(&running.kubeconfig(Identity::Scheduler, "system:kube-scheduler")?).await?;
    let manager =
        client(&running.kubeconfig(Identity::Controllers, "system:kube-controller-manager")?).await?;
    let ca = running.pki.ca_certificate().to_owned();
    let mut result = controllers::Options::new(scheduler, manager, options.cluster_cidrs.clone(), ca);
    result.node_monitor_grace_period = options.node_monitor_grace_period;
    result.node_monitor_period = options.node_monitor_period;
    Ok(result)
}

async fn client(kubeconfig: &str) -> anyhow::Result<kube::Client> {
    let file =
        kube::config::Kubeconfig::from_yaml(kubeconfig).context("read the kubeconfig of a controller")?;
    let config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .context("read the kubeconfig of a controller")?;
    kube::Client::try_from(config).context("make the client of a controller")
}

fn node_credentials(arguments: &NodeCredentialsArguments) -> anyhow::Result<()> {
    let problems = apiserver::names::dns_subdomain(&arguments.node);
    if let Some(problem) = problems.first() {
        anyhow::bail!("--node {:?}: {problem}", arguments.node);
    }
    let server = match &arguments.server {
        Some(server) => server.clone(),
        None => pki::remembered_server_url(&arguments.data_dir)?,
    };
    let pki = Pki::open(&arguments.data_dir)?;
    let request = NodeCredentials {
        node: &arguments.node,
        address: arguments.address,
        server: &server,
        out: &arguments.out,
    };
    pki::write_node_credentials(&pki, &request)?;
    Ok(())
}
