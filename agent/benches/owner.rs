//! The owner of the dataplane in `cargo xtask bench dataplane rolls`, as it is on a node: `orlop-agent proxy`, told by an API server.
//!
//! Hears orders, line by line, and answers each in a line. A Service with its endpoints becomes a Service and an EndpointSlice; the answer comes when the
//! API server has them: the agent learns of it when it does. Whoever gives the orders kills the agent by its number.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// This node, and the other one.
const NODES: [&str; 2] = ["node-a", "node-b"];
const METRICS: &str = "127.0.0.1:10249";
const LIMIT: Duration = Duration::from_secs(60);
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

struct Owner {
    server: Child,
    agent: Option<Child>,
    /// The API server's.
    data: tempfile::TempDir,
    /// Of the agent.
    log: PathBuf,
    flags: Vec<String>,
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
    created: HashSet<String>,
}

/// Arguments: the node's address, the agent's log, and its flags.
fn main() {
    harness::private_host::require();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [node, log, flags @ ..] = &arguments[..] else {
        panic!("give the node's address, a file, and flags")
    };
    let mut owner = Owner::begin(node, log.into(), flags);
    for order in std::io::stdin().lines() {
        let order = order.expect("read the orders");
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            ["start"] => println!("{}", owner.start()),
            ["stop"] => {
                owner.stop();
                println!("ok");
            }
            ["publish", name, cluster_ip, node_port, policy, local, far] => {
                owner.publish(name, [cluster_ip, node_port].map(address), policy, [local, far]);
                println!("ok");
            }
            _ => panic!("the owner knows nothing of {order}"),
        }
    }
    owner.end();
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

impl Owner {
    fn begin(node: &str, log: PathBuf, flags: &[String]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let data = tempfile::tempdir().expect("a folder");
        let server = harness::server::start(node, data.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let kubeconfig = data.path().join("admin.kubeconfig");
        let client = runtime.block_on(agent::api::client(&kubeconfig)).expect("a client");
        let kubeconfig = kubeconfig.display().to_string();
        let own =
            ["proxy", "--hostname-override", NODES[0], "--kubeconfig", &kubeconfig, "--admin-socket", ""];
        let flags = own.map(str::to_owned).into_iter().chain(flags.iter().cloned()).collect();
        let owner = Self { server, agent: None, data, log, flags, runtime, client, created: HashSet::new() };
        let named = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODES[0]}});
        owner.create("/api/v1/nodes", &named);
        let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": node}]}});
        owner.patch(&format!("/api/v1/nodes/{}/status", NODES[0]), &addresses);
        owner
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(body.to_string().into_bytes()).expect("a request");
        self.runtime.block_on(self.client.request(request))
    }

    /// The API server may have just begun.
    fn create(&self, path: &str, object: &Value) {
        wait::until("the object is created", LIMIT, || {
            self.ask("POST", path, object).map(drop).map_err(|error| format!("{path}: {error}"))
        });
    }

    fn patch(&self, path: &str, patch: &Value) {
        self.ask("PATCH", path, patch).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    fn publish(
        &mut self,
        name: &str,
        [cluster_ip, node_port]: [SocketAddr; 2],
        policy: &str,
        lists: [&str; 2],
    ) {
        let (mut endpoints, mut target_port) = (Vec::new(), 0);
        for (list, node) in lists.iter().zip(NODES) {
            for endpoint in list.split(',').map(address) {
                let conditions = json!({"ready": true, "serving": true, "terminating": false});
                target_port = endpoint.port();
                endpoints.push(json!({
                    "addresses": [endpoint.ip()], "nodeName": node, "conditions": conditions,
                }));
            }
        }
        if !self.created.insert(name.to_owned()) {
            return self.patch(&format!("{SLICES}/{name}"), &json!({"endpoints": endpoints}));
        }
        let port = json!({"port": cluster_ip.port(), "nodePort": node_port.port(), "protocol": "TCP"});
        let service = json!({
            "kind": "Service", "apiVersion": "v1", "metadata": {"name": name},
            "spec": {
                "type": "NodePort", "clusterIP": cluster_ip.ip(), "ports": [port],
                "internalTrafficPolicy": policy, "externalTrafficPolicy": policy,
            },
        });
        self.create(SERVICES, &service);
        let slice = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"port": target_port, "protocol": "TCP"}], "endpoints": endpoints,
        });
        self.create(SLICES, &slice);
    }

    /// Returns the agent's number, once its first full sync is done.
    fn start(&mut self) -> u32 {
        if let Some(mut killed) = self.agent.take() {
            killed.wait().expect("wait for the agent");
        }
        let log = File::options().create(true).append(true).open(&self.log).expect("open the agent's log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-agent"));
        command.args(&self.flags).env("RUST_LOG", "info").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let agent = self.agent.insert(command.spawn().expect("start the agent"));
        let (number, log) = (agent.id(), self.log.clone());
        wait::until("the agent has programmed all", LIMIT, || has_synced(&log));
        number
    }

    fn stop(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM).expect("ask the agent to end");
        let status = agent.wait().expect("wait for the agent");
        assert!(status.success(), "the agent ended with {status}: see {}", self.log.display());
    }

    fn end(mut self) {
        if self.agent.is_some() {
            self.stop();
        }
        self.server.kill().and_then(|()| self.server.wait()).expect("end the server");
        self.data.close().expect("remove the folder");
    }
}

fn has_synced(log: &Path) -> Result<(), String> {
    let ask = || {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    };
    let page = ask().map_err(|error: std::io::Error| format!("{error}: see {}", log.display()))?;
    let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds ";
    let at = page.lines().find_map(|line| line.strip_prefix(name)).ok_or("there is no time of a sync")?;
    if at.parse::<f64>().is_ok_and(|at| at > 0.0) {
        Ok(())
    } else {
        Err(format!("the last sync was at {at}"))
    }
}
