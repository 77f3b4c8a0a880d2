//! One node of the cluster: its folder, its credentials, what runs on it, and the start of its machine.
//!
//! Node `i` is called `node-i`; the first one runs the server too. A node joins with certificates that `orlop-server
//! node-credentials` signs with the cluster's authority, which lies in the first node's folder.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::wanted::Wanted;
use super::{folder, network, state};
use crate::machine::{Machine, Part, parts};
use crate::{dist, images, process};

const SERVICE_CIDR: &str = "10.96.0.0/16";
const POD_CIDR: &str = "10.244.0.0/16";
/// What follows them where there is IPv6 too.
const SERVICE_CIDR_V6: &str = "fd00:96::/112";
const POD_CIDR_V6: &str = "fd00:244::/48";
/// Where a host says its name servers, the better one first: a stub resolver of the host does not listen for machines.
const RESOLV_CONF: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];

/// A node, by its number from 1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub address: String,
    pub address_v6: Option<String>,
    pub runs_server: bool,
}

impl Node {
    fn numbered(number: u8, dual_stack: bool) -> Self {
        Self {
            name: format!("node-{number}"),
            address: network::node_address(number),
            address_v6: dual_stack.then(|| network::node_address_v6(number)),
            runs_server: number == 1,
        }
    }

    fn addresses(&self) -> Vec<String> {
        std::iter::once(self.address.clone()).chain(self.address_v6.clone()).collect()
    }

    pub fn folder(&self) -> PathBuf {
        folder().join("nodes").join(&self.name)
    }

    pub fn logs(&self) -> PathBuf {
        self.folder().join("logs")
    }
}

/// The nodes of a cluster, the server's first.
pub fn all(wanted: &Wanted) -> Vec<Node> {
    (1..=wanted.nodes).map(|number| Node::numbered(number, wanted.dual_stack)).collect()
}

/// The folders of nodes that there are, whatever was wanted.
pub fn folders() -> Vec<PathBuf> {
    fs::read_dir(folder().join("nodes")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The server's data, with the cluster's authority.
pub fn server_data() -> PathBuf {
    Node::numbered(1, false).folder().join("var-lib-orlop/server")
}

fn server_url() -> String {
    format!("https://{}:6443", network::node_address(1))
}

/// Writes what the node needs and starts its machine; what is left of a dead one of the same name goes first. The switch is there.
pub fn start(node: &Node, wanted: &Wanted) -> Result<()> {
    state::clear_part(&node.name)?;
    let folder = node.folder();
    for name in ["logs", "credentials", "var-lib-orlop"] {
        fs::create_dir_all(folder.join(name))
            .with_context(|| format!("create {name} in {}", folder.display()))?;
    }
    let dist = dist::folder(if wanted.debug { dist::Profile::Debug } else { dist::Profile::Release });
    let mut parts = vec![agent_part(node, &dist, wanted)];
    if node.runs_server {
        parts.insert(0, server_part(node, &dist, wanted));
    }
    let machine = Machine { name: node.name.clone(), cgroup: state::cgroup_of(&node.name), parts };
    machine.write(&folder)?;
    make_credentials(node, &dist)?;
    write_registries(node, wanted)?;
    write_name_servers(&folder)?;
    parts::forget(&folder)?;
    let started = start_init(node);
    if started.is_err()
        && let Err(error) = state::clear_part(&node.name)
    {
        eprintln!("up: take {} away again: {error:#}", node.name);
    }
    started
}

/// Runs the stage `machine start` up to the machine's pid 1, which is connected in between.
fn start_init(node: &Node) -> Result<()> {
    let mut start = Command::new(std::env::current_exe().context("find own executable")?);
    start.args(["machine", "start"]).arg(node.folder()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = start.spawn().context("start the machine")?;
    let mut answers = BufReader::new(child.stdout.take().context("the machine has no output")?);
    let mut input = child.stdin.take().context("the machine has no input")?;
    let mut go = || -> Result<()> {
        ensure!(read_line(&mut answers)? == "ready", "the machine did not start: see the message above");
        network::connect(&node.name, &node.addresses(), child.id())?;
        input.write_all(b"go\n").context("start the machine")?;
        let pid = read_line(&mut answers)?;
        ensure!(pid.parse::<u32>().is_ok(), "the machine did not report its pid 1: see logs/init.log");
        Ok(())
    };
    let gone = go();
    // Without its input the stage ends by itself.
    drop(input);
    child.wait().context("wait for the machine's start")?;
    gone.with_context(|| format!("start {}", node.name))
}

fn read_line(answers: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    answers.read_line(&mut line).context("read the machine's answer")?;
    Ok(line.trim().to_owned())
}

/// The node's certificates and kubeconfig; makes the cluster's authority when there is none.
fn make_credentials(node: &Node, dist: &Path) -> Result<()> {
    let mut command = Command::new(dist.join("bin/orlop-server"));
    command.arg("node-credentials").arg("--data-dir").arg(server_data());
    command.args(["--node", &node.name, "--address", &node.address, "--server", &server_url()]);
    command.arg("--out").arg(node.folder().join("credentials"));
    process::run_quietly(&format!("making the credentials of {}", node.name), &mut command).map(drop)
}

/// The registries file, JSON being YAML. Mirrors on the host's loopback are reached through the relay.
fn write_registries(node: &Node, wanted: &Wanted) -> Result<()> {
    let mut registries: Vec<(&str, Vec<String>)> = Vec::new();
    for mirror in &wanted.mirrors {
        match registries.iter_mut().find(|(name, _)| *name == mirror.registry) {
            Some((_, mirrors)) => mirrors.push(mirror.seen_by_nodes()),
            None => registries.push((&mirror.registry, vec![mirror.seen_by_nodes()])),
        }
    }
    let entry = |(name, mirrors): &(&str, Vec<String>)| json!({"name": name, "mirrors": mirrors});
    let file = json!({"registries": registries.iter().map(entry).collect::<Vec<_>>()});
    fs::write(registries_file(node), file.to_string()).context("write registries.yaml")
}

fn registries_file(node: &Node) -> PathBuf {
    node.folder().join("registries.yaml")
}

/// The machine has its own /run, where the host's resolv.conf often leads: it gets a copy.
fn write_name_servers(folder: &Path) -> Result<()> {
    let found = RESOLV_CONF.iter().find_map(|path| fs::read(path).ok());
    fs::write(folder.join("resolv.conf"), found.unwrap_or_default()).context("write resolv.conf")
}

/// As flags take them.
fn ranges(wanted: &Wanted, v4: &str, v6: &str) -> String {
    if wanted.dual_stack { format!("{v4},{v6}") } else { v4.to_owned() }
}

fn server_part(node: &Node, dist: &Path, wanted: &Wanted) -> Part {
    let mut command = vec![dist.join("bin/orlop-server").display().to_string()];
    command.extend(
        [
            "--data-dir",
            "/var/lib/orlop/server",
            "--advertise-address",
            &node.address,
            "--service-cluster-ip-range",
            &ranges(wanted, SERVICE_CIDR, SERVICE_CIDR_V6),
            "--cluster-cidr",
            &ranges(wanted, POD_CIDR, POD_CIDR_V6),
        ]
        .map(str::to_owned),
    );
    command.extend(wanted.server_flags.iter().cloned());
    Part { name: "server".into(), command, environment: Vec::new() }
}

fn agent_part(node: &Node, dist: &Path, wanted: &Wanted) -> Part {
    let credentials = node.folder().join("credentials");
    let path = |path: PathBuf| path.display().to_string();
    let mut command = vec![
        path(dist.join("bin/orlop-agent")),
        "--node-name".into(),
        node.name.clone(),
        "--node-ip".into(),
        node.addresses().join(","),
        "--kubeconfig".into(),
        path(credentials.join("kubeconfig")),
        "--tls-cert-file".into(),
        path(credentials.join("kubelet.crt")),
        "--tls-private-key-file".into(),
        path(credentials.join("kubelet.key")),
        "--client-ca-file".into(),
        path(credentials.join("client-ca.crt")),
        "--shim".into(),
        path(dist.join("bin/orlop-shim")),
        "--cni-bin-dir".into(),
        path(dist.join("cni")),
        "--cluster-cidr".into(),
        ranges(wanted, POD_CIDR, POD_CIDR_V6),
        "--image-archives-dir".into(),
        path(images::folder()),
        "--registries-file".into(),
        path(registries_file(node)),
    ];
    command.extend(wanted.agent_flags.iter().cloned());
    Part { name: "agent".into(), command, environment: Vec::new() }
}
