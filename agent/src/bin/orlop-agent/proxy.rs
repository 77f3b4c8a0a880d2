//! `orlop-agent proxy`: the service load balancer alone, from flags to serving, in kube-proxy's place.
//!
//! Health is told from the start. Everything else waits until a kubelet has registered the Node, since its addresses say where node ports
//! answer; until then the kernel goes on with what an earlier process programmed, as it does after the end of this one.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use agent::events::{Recorder, Source};
use agent::service_proxy::node;
use agent::service_proxy::pages::{Pages, Ports};
use agent::service_proxy::{place, show_as};
use agent::services::{Dataplane, Directory, Progress};
use agent::settings::{self, ProxyFlags, ProxySettings, ProxyTask};
use agent::{KUBELET_VERSION, VERSION, admin, api, network, policies, services};
use anyhow::Context;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{Tasks, run, start_logging};

pub fn main(flags: ProxyFlags) -> anyhow::Result<()> {
    let print_config = flags.print_config;
    match flags.load()? {
        ProxyTask::CleanUp { bpf_pin_root, log_format } => {
            start_logging(log_format);
            dataplane::remove_all(&bpf_pin_root).context("remove what was programmed")?;
            tracing::info!(path = %bpf_pin_root.display(), "removed what was programmed");
            Ok(())
        }
        ProxyTask::Serve(settings) if print_config => {
            print!("{}", settings.to_yaml()?);
            Ok(())
        }
        ProxyTask::Serve(settings) => {
            start_logging(settings.log_format);
            tracing::info!(
                version = VERSION,
                kubernetes = KUBELET_VERSION,
                node = settings.node_name,
                "orlop-agent proxy"
            );
            run(|shutdown| boot(*settings, shutdown))
        }
    }
}

async fn boot(settings: ProxySettings, shutdown: CancellationToken) -> anyhow::Result<Tasks> {
    place::check_bpf_file_system(&settings.bpf_pin_root)?;
    place::warn_of_partial_cgroup(&settings.dataplane_cgroup);
    let client = api::client_of(&settings.access).await?;
    let ports = Ports::bind(settings.healthz, settings.metrics)?;

    let tasks = Tasks::new();
    let source = Source::kube_proxy(settings.node_name.clone());
    let recorder = Recorder::start(client.clone(), source, shutdown.clone());
    let progress = Progress::default();
    let (own_node, node_task) = node::watch(client.clone(), settings.node_name.clone(), shutdown.clone());
    tasks.push(node_task);
    let pages = Pages::new(own_node.clone(), progress.clone(), recorder.clone());
    tasks.push(tokio::spawn(ports.run(pages.clone(), shutdown.clone())));
    tracing::info!(healthz = ?settings.healthz, metrics = ?settings.metrics, "listening");

    let node_ips = node_ips(&settings, &own_node).await;
    let uplinks = network::discover(&settings.uplinks, &node_ips).await?;
    tracing::info!(links = ?uplinks.names, addresses = ?uplinks.addresses, "uplinks");
    let node_addresses = settings.node_ports.choose(&node_ips, &uplinks.addresses);
    if node_addresses.is_empty() {
        tracing::warn!("no address of the uplinks is one of --nodeport-addresses: node ports answer nowhere");
    }
    let dataplane = open_dataplane(&settings, uplinks.names, &node_ips)?;
    let directory = Directory::default();
    pages.show(dataplane.clone(), directory.clone());
    if let Some(questions) = settings.admin_socket.as_deref().and_then(bind_questions) {
        let context = admin::Context {
            runtime: None,
            dataplane: Some(dataplane.clone()),
            directory: directory.clone(),
            policies: policies::Guard::none(),
            shutdown: shutdown.clone(),
        };
        tasks.push(tokio::spawn(admin::run(questions, context)));
    }
    let (_cache, departures, service_task) = services::start(services::Context {
        client,
        node_name: settings.node_name,
        node: own_node,
        node_addresses,
        dataplane: Some(dataplane),
        bypass: None,
        directory,
        recorder,
        progress,
        shutdown,
    });
    tasks.push(service_task);
    // The ends of pods are known from their slices alone.
    departures.caught_up();
    Ok(tasks)
}

/// Where `orlopctl` asks. A node whose Services nobody can ask about is led all the same: a container may have no such folder, or one that
/// cannot be written.
fn bind_questions(path: &Path) -> Option<UnixListener> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let made = std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()));
    match made.and_then(|()| Ok(admin::bind(path)?)) {
        Ok(questions) => Some(questions),
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "orlopctl cannot ask this proxy (--admin-socket)");
            None
        }
    }
}

/// The Node's addresses once it is registered; while it has none, the one of IPv4 that the machine's default route sends from.
async fn node_ips(settings: &ProxySettings, own_node: &agent::node::OwnNode) -> Vec<IpAddr> {
    let addresses = node::registered(own_node).await;
    if !addresses.is_empty() {
        return addresses;
    }
    let address = settings::route_source();
    tracing::warn!(node = settings.node_name, ?address, "the Node has no InternalIP yet");
    address.map(IpAddr::from).into_iter().collect()
}

fn open_dataplane(
    settings: &ProxySettings,
    uplinks: Vec<String>,
    node_ips: &[IpAddr],
) -> anyhow::Result<Dataplane> {
    let options = dataplane::Options {
        pin_root: settings.bpf_pin_root.clone(),
        cgroup: settings.dataplane_cgroup.clone(),
        uplinks,
        uplink_hook: dataplane::UplinkHook::default(),
        uplink_acceleration: settings.uplink_acceleration.of_dataplane(),
    };
    let dataplane = dataplane::Dataplane::open(&options).context("open the dataplane")?;
    tracing::info!(frontends = dataplane.adopted(), "the dataplane is open; what was programmed is adopted");
    let dataplane = Dataplane::new(dataplane);
    show_as(&dataplane, node_ips).context("show the node's address")?;
    policies::give_up(&dataplane).context("take back policies that an earlier agent enforced")?;
    let retained = dataplane.with(|dataplane| dataplane.retain_packets());
    retained.context("take back what an earlier agent did for pods' packets")?;
    let retained = dataplane.with(|dataplane| dataplane.retain_clients(&HashSet::new()));
    retained.context("forget the addresses that an earlier agent told of")?;
    Ok(dataplane)
}
