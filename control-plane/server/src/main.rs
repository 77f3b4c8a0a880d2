//! `orlop-server`: the control plane of a cluster in one process.
//!
//! Without a subcommand it serves until SIGTERM or SIGINT; `node-credentials` writes what a node needs to join.

mod controllers;
mod options;

use std::process::ExitCode;

use anyhow::Context;
use apiserver::bootstrap;
use apiserver::pki::{self, NodeCredentials, Pki};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use options::{Cli, Command, NodeCredentialsArguments, ServeArguments};

/// Worker threads of the runtime: the server waits far more than it computes.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // One TLS provider for the server and its clients.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match cli.command {
        Some(Command::NodeCredentials(arguments)) => node_credentials(&arguments),
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
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
        let running = bootstrap::start(&options.server, stop.clone()).await?;
        println!("listening on {}", running.url);
        let clients = crate::controllers::options(&options, &running).await?;
        let mut controllers = tokio::spawn(crate::controllers::run(clients, stop.clone()));
        // Both may be dropped: a signal is only waited for once.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            ended = &mut controllers => return ended.context("run the controllers")?,
        }
        tracing::info!("stopping");
        stop.cancel();
        controllers.await.context("stop the controllers")??;
        running.stopped().await;
        Ok(())
    })
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
