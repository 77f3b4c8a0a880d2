//! `orlop-agent`: one process per node, from settings to serving; `orlop-agent proxy` is the service load balancer of it alone.
//!
//! The order below is the order of dependence: what exists on the machine is adopted first (runtime, dataplane), then the
//! API server is told and asked. Ending this process ends nothing else: containers, their logs and Services live on.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::events::{Recorder, Source};
use agent::metrics::Metrics;
use agent::settings::{
    self, Command, Flags, LogFormat, NetworkBackend, NodePortAddresses, PolicyEnforcement, ServiceProxy,
    Settings,
};
use agent::{
    KUBELET_VERSION, VERSION, admin, api, kubelet_api, network, node, pods, policies, readiness, services,
};
use anyhow::{Context, bail};
use clap::Parser;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[path = "orlop-agent/proxy.rs"]
mod proxy;

/// Threads that run tasks: the work is waiting, and a node has better use for its processors.
const WORKER_THREADS: usize = 2;
/// Threads for work that blocks: files, and calls in which the kernel waits. More work than that waits for one; with
/// fewer than a node's usual 110 pods, what hangs in each of them would stop all. What a burst of pods makes of threads is never given back whole,
/// since the allocator keeps memory for each of them.
const BLOCKING_THREADS: usize = 128;
/// How long tasks may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What is logged when `RUST_LOG` says nothing.
const DEFAULT_LOG: &str = "info,kube_client=warn,kube_runtime=warn";

fn main() -> anyhow::Result<()> {
    let mut flags = Flags::parse();
    match flags.command.take() {
        Some(Command::Proxy(flags)) => proxy::main(*flags),
        None => node(flags),
    }
}

fn node(flags: Flags) -> anyhow::Result<()> {
    let print_config = flags.print_config;
    let settings = Settings::load(flags)?;
    if print_config {
        print!("{}", settings.to_yaml()?);
        return Ok(());
    }
    start_logging(settings.log_format);
    tracing::info!(version = VERSION, kubernetes = KUBELET_VERSION, node = settings.node_name, "orlop-agent");
    run(|shutdown| boot(Arc::new(settings), shutdown))
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

type Tasks = FuturesUnordered<JoinHandle<()>>;

/// The life of the process, whatever it boots: threads, boot, tasks until a signal or a failure, drain.
fn run<F: Future<Output = anyhow::Result<Tasks>>>(
    boot: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<()> {
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("start the worker threads")?;
    threads.block_on(live(boot))
}

async fn live<F: Future<Output = anyhow::Result<Tasks>>>(
    boot: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<()> {
    // Before anything is started: a signal during the boot ends it too.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed already");
    }
    let shutdown = CancellationToken::new();
    let booting = boot(shutdown.clone());
    // Dropping an unfinished boot is as good as a kill -9: the next start adopts what stands.
    let mut tasks = tokio::select! {
        booted = booting => booted?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    readiness::notify(readiness::State::Ready);
    // Each arm only waits: cancel-safe.
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = tasks.next() => Some(ended),
    };
    readiness::notify(readiness::State::Stopping);
    tracing::info!("ending; what was started and programmed lives on");
    shutdown.cancel();
    if timeout(DRAIN_TIMEOUT, async { while tasks.next().await.is_some() {} }).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "tasks did not end in time");
    }
    match failed {
        None => Ok(()),
        Some(Some(Err(error))) => Err(error).context("a task of the agent failed"),
        Some(_) => bail!("a task of the agent ended by itself"),
    }
}

async fn boot(settings: Arc<Settings>, shutdown: CancellationToken) -> anyhow::Result<Tasks> {
    std::fs::create_dir_all(&settings.state_dir)
        .with_context(|| format!("create {}", settings.state_dir.display()))?;
    for dir in [&settings.pods_dir(), &settings.log_dir] {
        linux::files::make_spread_directory(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let client = api::client(&settings.kubeconfig).await?;
    let runtime = open_runtime(&settings).await?;
    network::enable_forwarding()?;
    let node_ips: Vec<IpAddr> = settings.node_ips.iter().collect();
    let uplinks = network::discover(&settings.uplinks, &node_ips).await?;
    tracing::info!(links = ?uplinks.names, addresses = ?uplinks.addresses, mtu = uplinks.mtu, "uplinks");
    let overlay = network::overlay::Overlay::open(&settings, &uplinks).await?;
    if let Some(overlay) = &overlay {
        tracing::info!(link = overlay.name, mtu = overlay.mtu, "packets to other nodes are wrapped");
    }
    let dataplane = open_dataplane(&settings, &uplinks, overlay.as_ref())?;
    let recorder =
        Recorder::start(client.clone(), Source::kubelet(settings.node_name.clone()), shutdown.clone());

    let mut tasks = Tasks::new();
    let (network_state, network_receiver) = watch::channel(network::State::of(&runtime).await);
    let (own_node, node_tasks) = node::start(node::Context {
        client: client.clone(),
        settings: settings.clone(),
        runtime: runtime.clone(),
        network: network_receiver,
        annotations: network::annotations(&settings, overlay.as_ref()),
        shutdown: shutdown.clone(),
    });
    tasks.extend(node_tasks);
    let directory = services::Directory::default();
    let sandboxes = runtime.list().sandboxes;
    let bypass = tokio::task::block_in_place(|| services::Bypass::start(dataplane.clone(), &sandboxes));
    let bypass = Arc::new(bypass);
    // The first ones are those that the node is known by.
    let mut own = node_ips.clone();
    own.extend(uplinks.addresses.iter().copied().filter(|address| !node_ips.contains(address)));
    let clients =
        tokio::task::block_in_place(|| services::Clients::start(dataplane.clone(), &own, &sandboxes));
    let (service_cache, departures, service_task) = services::start(services::Context {
        client: client.clone(),
        node_name: settings.node_name.clone(),
        node: own_node.clone(),
        node_addresses: NodePortAddresses::All.choose(&[], &uplinks.addresses),
        dataplane: dataplane.clone(),
        bypass: Some(bypass.clone()),
        directory: directory.clone(),
        recorder: recorder.clone(),
        progress: services::Progress::default(),
        shutdown: shutdown.clone(),
    });
    tasks.push(service_task);
    let guard = match &dataplane {
        Some(dataplane) if settings.network_policy == PolicyEnforcement::Ebpf => {
            let (guard, task) = policies::start(policies::Context {
                client: client.clone(),
                dataplane: dataplane.clone(),
                sandboxes: runtime.list().sandboxes,
                recorder: recorder.clone(),
                shutdown: shutdown.clone(),
            });
            tasks.push(task);
            guard
        }
        Some(dataplane) => {
            policies::give_up(dataplane)?;
            policies::Guard::none()
        }
        None => policies::Guard::none(),
    };
    if settings.network_backend != NetworkBackend::None {
        tasks.push(tokio::spawn(network::routes::run(network::routes::Context {
            client: client.clone(),
            node_name: settings.node_name.clone(),
            cluster: settings.cluster_cidr.clone(),
            uplinks: uplinks.names.clone(),
            overlay: overlay.clone(),
            recorder: recorder.clone(),
            shutdown: shutdown.clone(),
        })));
    }
    tasks.push(tokio::spawn(network::run(network::Context {
        settings: settings.clone(),
        uplinks,
        overlay,
        dataplane: dataplane.clone(),
        runtime: runtime.clone(),
        node: own_node,
        state: network_state,
        shutdown: shutdown.clone(),
    })));
    if let Some(dir) = &settings.image_archives_dir {
        import_images(&runtime, dir).await;
    }
    let metrics = Metrics::default();
    let (pods, pods_task) = pods::Manager::start(pods::Context {
        client,
        runtime: runtime.clone(),
        services: service_cache,
        departures,
        policies: guard.clone(),
        bypass,
        clients: Arc::new(clients),
        recorder: recorder.clone(),
        metrics: metrics.clone(),
        settings: settings.clone(),
        shutdown: shutdown.clone(),
    })
    .context("start the management of pods")?;
    tasks.push(pods_task);
    let socket = admin::bind(&settings.admin_socket())?;
    let questions = admin::Context {
        runtime: Some(runtime.clone()),
        dataplane: dataplane.clone(),
        directory: directory.clone(),
        policies: guard,
        shutdown: shutdown.clone(),
    };
    tasks.push(tokio::spawn(admin::run(socket, questions)));
    let context = kubelet_api::Context {
        settings: settings.clone(),
        runtime,
        pods,
        recorder,
        dataplane,
        directory,
        metrics,
        shutdown,
    };
    let server = kubelet_api::Server::bind(context).await?;
    tracing::info!("listening on https://{}:{}", settings.node_ips.v4, settings.port);
    tasks.push(tokio::spawn(server.run()));
    Ok(tasks)
}

async fn open_runtime(settings: &Settings) -> anyhow::Result<Runtime> {
    let registries = settings::read_registries(settings.registries_file.as_deref())?;
    let runtime = Runtime::open(settings.runtime(registries)).await.context("open the container runtime")?;
    let found = runtime.list();
    let (sandboxes, containers) = (found.sandboxes.len(), found.containers.len());
    tracing::info!(sandboxes, containers, "the runtime is open; what was running is adopted");
    Ok(runtime)
}

fn open_dataplane(
    settings: &Settings,
    uplinks: &network::Uplinks,
    overlay: Option<&network::overlay::Overlay>,
) -> anyhow::Result<Option<services::Dataplane>> {
    if settings.service_proxy == ServiceProxy::None {
        dataplane::remove_all(&settings.bpf_pin_root).context("remove what an earlier agent programmed")?;
        return Ok(None);
    }
    let names = uplinks.names.iter().cloned().chain(overlay.map(|overlay| overlay.name.to_owned()));
    let options = dataplane::Options {
        pin_root: settings.bpf_pin_root.clone(),
        cgroup: settings.dataplane_cgroup.clone(),
        uplinks: names.collect(),
        uplink_hook: dataplane::UplinkHook::default(),
        uplink_acceleration: settings.uplink_acceleration.of_dataplane(),
    };
    let dataplane = dataplane::Dataplane::open(&options).context("open the dataplane")?;
    tracing::info!(frontends = dataplane.adopted(), "the dataplane is open; what was programmed is adopted");
    Ok(Some(services::Dataplane::new(dataplane)))
}

/// Images that come with the node. One that cannot be read is told, and its pods will say so.
async fn import_images(runtime: &Runtime, dir: &Path) {
    let archives = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()),
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "read the folder of image archives");
            return;
        }
    };
    for archive in archives {
        match runtime.import_archive(&archive, None).await {
            Ok(images) => {
                let names: Vec<String> = images.into_iter().flat_map(|image| image.repo_tags).collect();
                tracing::info!(archive = %archive.display(), images = ?names, "imported");
            }
            Err(error) => {
                let error = api::chain(&error);
                tracing::error!(archive = %archive.display(), error, "import an image archive");
            }
        }
    }
}
