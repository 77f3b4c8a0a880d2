//! Three nodes on one network, each with a pod, and an API server: namespaces, a real server, and of each agent what leads to
//! other nodes' pods.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use agent::events::{Recorder, Source};
use agent::network::overlay::Overlay;
use agent::network::{self, routes};
use agent::settings::{Machine, Raw, Settings};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Long enough for a machine that is emulated.
pub const LIMIT: Duration = Duration::from_secs(120);
/// One attempt to reach a pod.
const ATTEMPT: Duration = Duration::from_secs(1);
/// The network that the nodes share, and the API server's place in it.
pub const NETWORK: &str = "net0";
const SERVER_ADDRESS: &str = "10.85.0.1";
const NODES: [u8; 3] = [1, 2, 3];
const PORT: u16 = 7000;

pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `ip` prints in a node.
pub fn shown(node: u8, arguments: &str) -> String {
    let output = Command::new("ip").args(["-n", &host(node)]).args(arguments.split(' ')).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn host(node: u8) -> String {
    format!("node-{node}")
}

fn pod(node: u8) -> String {
    format!("pod-{node}")
}

/// A node's pod, by family.
pub fn pod_addresses(node: u8) -> [IpAddr; 2] {
    [[10, 244, node, 2].into(), [0xfd00, 0x244, 0, node.into(), 0, 0, 0, 2].into()]
}

/// Runs `work` on a thread of its own inside a namespace.
pub fn inside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// What a pod answers: whom it saw, and then what it was sent.
fn serve() {
    let listener = TcpListener::bind(("::", PORT)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let mut asked = Vec::new();
            let _ = stream.read_to_end(&mut asked);
            let _ = stream.write_all(format!("{peer}\n").as_bytes()).and_then(|()| stream.write_all(&asked));
        }
    });
}

/// Asks from inside a namespace, and gives whom the pod saw, and what came back.
pub fn ask(from: &str, to: IpAddr, question: &[u8]) -> Result<(IpAddr, Vec<u8>), String> {
    let question = question.to_vec();
    let asked = inside(from, move || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), ATTEMPT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.write_all(&question)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    });
    let answer = asked.join().unwrap().map_err(|error| format!("{from} to {to}: {error}"))?;
    let end = answer.iter().position(|byte| *byte == b'\n').ok_or("no answer")?;
    let peer = String::from_utf8_lossy(&answer[..end]).parse().map_err(|_| "no address".to_owned())?;
    Ok((peer, answer[end + 1..].to_vec()))
}

/// What leads to other nodes' pods on one node; ends when it is dropped, and leaves what it made.
pub struct Agent {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    /// Index of its overlay's link.
    pub link: Option<u32>,
    /// Bytes that a pod may send.
    pub mtu: u32,
}

impl Agent {
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()),
            "the agent's part ended well"
        );
    }
}

pub struct Cluster {
    server: Child,
    data: tempfile::TempDir,
    pub backend: &'static str,
}

impl Cluster {
    pub fn new(backend: &'static str) -> Self {
        harness::private_host::require();
        for line in [
            format!("link add {NETWORK} type bridge"),
            format!("addr add {SERVER_ADDRESS}/24 dev {NETWORK}"),
            format!("link set {NETWORK} up"),
        ] {
            ip(&line);
        }
        for node in NODES {
            make_node(node);
        }
        let data = tempfile::tempdir().unwrap();
        let server = harness::server::start(SERVER_ADDRESS, data.path());
        Self { server, data, backend }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.data.path().join("admin.kubeconfig")
    }

    /// Starts a node's part of the agent at an address, which the node gets, and makes its pod if it has none.
    pub fn start(&self, node: u8, address: &str) -> Agent {
        let (stop, ready) = (CancellationToken::new(), mpsc::channel());
        let settings = settings(node, address, self.backend, &self.kubeconfig());
        let shutdown = stop.clone();
        let thread = inside(&host(node), move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(node, &settings, &ready.0, shutdown));
        });
        let (link, mtu) = ready.1.recv_timeout(LIMIT).expect("the agent's part starts");
        let agent = Agent { stop, thread: Some(thread), link, mtu };
        make_pod(node, agent.mtu);
        agent
    }

    /// Takes the Node out of the API.
    pub fn delete(&self, node: u8) {
        self.with_nodes(|nodes| async move {
            nodes.delete(&host(node), &DeleteParams::default()).await.unwrap();
        });
    }

    /// What a node tells the others.
    pub fn annotations(&self, node: u8) -> BTreeMap<String, String> {
        self.with_nodes(|nodes| async move {
            nodes.get(&host(node)).await.unwrap().metadata.annotations.unwrap_or_default()
        })
    }

    /// A Node that nobody is behind.
    pub fn add(&self, name: &str, address: &str, pods: &str, annotations: BTreeMap<String, String>) {
        let new = json!({
            "metadata": {"name": name, "annotations": annotations}, "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        });
        let new: Node = serde_json::from_value(new).unwrap();
        let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        self.with_nodes(|nodes| async move {
            nodes.create(&PostParams::default(), &new).await.unwrap();
            let patch = Patch::Merge(addresses);
            nodes.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
        });
    }

    fn with_nodes<T, F: Future<Output = T>>(&self, work: impl FnOnce(Api<Node>) -> F) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(async { work(Api::all(agent::api::client(&self.kubeconfig()).await.unwrap())).await })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        for node in NODES {
            // The kernel takes namespaces apart later.
            ip(&format!("link del n{node}"));
            for namespace in [pod(node), host(node)] {
                if Path::new("/run/netns").join(&namespace).exists() {
                    ip(&format!("netns del {namespace}"));
                }
            }
        }
        ip(&format!("link del {NETWORK}"));
        // `ip netns` mounts its folder onto itself.
        nix::mount::umount("/run/netns").unwrap();
        fs::remove_dir("/run/netns").unwrap();
    }
}

fn make_node(node: u8) {
    let name = host(node);
    for line in [
        format!("netns add {name}"),
        format!("link add n{node} type veth peer name eth0 netns {name}"),
        format!("link set n{node} master {NETWORK}"),
        format!("link set n{node} up"),
        format!("-n {name} link set lo up"),
        format!("-n {name} link set eth0 up"),
        format!("-n {name} addr add fd00:85::1{node}/64 dev eth0 nodad"),
    ] {
        ip(&line);
    }
    let forward = || {
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(Path::new("/proc/sys/net").join(switch), "1").unwrap();
        }
    };
    inside(&name, forward).join().unwrap();
}

fn make_pod(node: u8, mtu: u32) {
    let (name, pod) = (host(node), pod(node));
    if Path::new("/run/netns").join(&pod).exists() {
        return;
    }
    for line in [
        format!("netns add {pod}"),
        format!("-n {name} link add pod0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}"),
        format!("-n {name} addr add 10.244.{node}.1/24 dev pod0"),
        format!("-n {name} addr add fd00:244:0:{node}::1/64 dev pod0 nodad"),
        format!("-n {name} link set pod0 up"),
        format!("-n {pod} addr add 10.244.{node}.2/24 dev eth0"),
        format!("-n {pod} addr add fd00:244:0:{node}::2/64 dev eth0 nodad"),
        format!("-n {pod} link set eth0 up"),
        format!("-n {pod} link set lo up"),
        format!("-n {pod} route add default via 10.244.{node}.1"),
        format!("-n {pod} route add default via fd00:244:0:{node}::1"),
    ] {
        ip(&line);
    }
    inside(&pod, serve).join().unwrap();
}

fn settings(node: u8, address: &str, backend: &str, kubeconfig: &Path) -> Settings {
    let nowhere = || Some("/nowhere".to_owned());
    let raw = Raw {
        node_name: Some(host(node)),
        node_ip: Some(address.to_owned()),
        kubeconfig: Some(kubeconfig.to_str().unwrap().to_owned()),
        tls_cert_file: nowhere(),
        tls_private_key_file: nowhere(),
        client_ca_file: nowhere(),
        dataplane_cgroup: nowhere(),
        cluster_cidr: Some("10.244.0.0/16,fd00:244::/32".to_owned()),
        network_backend: Some(backend.to_owned()),
        ..Raw::default()
    };
    Settings::validate(raw, &Machine::default()).unwrap()
}

async fn run(
    node: u8,
    settings: &Settings,
    ready: &mpsc::Sender<(Option<u32>, u32)>,
    shutdown: CancellationToken,
) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let name = host(node);
    // The address that it had before is another's by now.
    ip(&format!("-n {name} -4 addr flush dev eth0"));
    ip(&format!("-n {name} addr add {}/24 dev eth0", settings.node_ips.v4));
    let node_ips: Vec<IpAddr> = settings.node_ips.iter().collect();
    let uplinks = network::discover(&settings.uplinks, &node_ips).await.unwrap();
    let overlay = Overlay::open(settings, &uplinks).await.unwrap();
    let client = agent::api::client(&settings.kubeconfig).await.unwrap();
    register(node, settings, overlay.as_ref(), &Api::all(client.clone())).await;
    let recorder = Recorder::start(client.clone(), Source::kubelet(name.clone()), shutdown.clone());
    let mtu = overlay.as_ref().map_or(uplinks.mtu, |overlay| overlay.mtu);
    ready.send((overlay.as_ref().map(|overlay| overlay.link), mtu)).unwrap();
    routes::run(routes::Context {
        client,
        node_name: name,
        cluster: settings.cluster_cidr.clone(),
        uplinks: uplinks.names,
        overlay,
        recorder,
        shutdown,
    })
    .await;
}

async fn register(node: u8, settings: &Settings, overlay: Option<&Overlay>, nodes: &Api<Node>) {
    let name = host(node);
    let pods = [format!("10.244.{node}.0/24"), format!("fd00:244:0:{node}::/64")];
    let annotations = network::annotations(settings, overlay);
    let new = json!({
        "metadata": {"name": name, "annotations": annotations}, "spec": {"podCIDR": pods[0], "podCIDRs": pods},
    });
    let new: Node = serde_json::from_value(new).unwrap();
    match nodes.create(&PostParams::default(), &new).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
            nodes.patch(&name, &PatchParams::default(), &patch).await.unwrap();
        }
        created => drop(created.unwrap()),
    }
    let addresses = [settings.node_ips.v4.to_string(), format!("fd00:85::1{node}")];
    let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
    let patch = Patch::Merge(json!({"status": {"addresses": addresses}}));
    nodes.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
}
