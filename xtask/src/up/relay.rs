//! The way from the nodes to registries on the host's loopback: a process that listens on the host's end of the bridge.
//!
//! In: `--registry-mirror` with a loopback address. Out: the same port at [`HOST_ADDRESS`], for the nodes alone, passed on byte by
//! byte. A process of the cluster's cgroup, so that `down` ends it. A registry that listens on all addresses is reached by the
//! nodes directly, and its port is left alone. Knows nothing of HTTP.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use linux::machine::{self, Leaf};
use nix::sys::socket::{setsockopt, sockopt};

use super::network::{HOST_ADDRESS, HOST_LINK};
use super::{folder, state};
use crate::up::wanted::Wanted;

#[cfg(test)]
mod tests;

/// The name of its cgroup among the machines'.
const NAME: &str = "relay";
/// Connections at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 256;

/// What to pass on: `HOST:PORT` of each mirror that only the host reaches.
pub fn targets(wanted: &Wanted) -> Vec<String> {
    let local = wanted.mirrors.iter().filter(|mirror| mirror.is_on_loopback());
    let mut targets: Vec<String> = local.map(|mirror| format!("{}:{}", mirror.host, mirror.port)).collect();
    targets.sort();
    targets.dedup();
    targets
}

/// Starts the process unless it runs or nothing is to be passed on.
pub fn start(wanted: &Wanted) -> Result<()> {
    let targets = targets(wanted);
    if targets.is_empty() || !state::leaf_of(NAME)?.processes().is_empty() {
        return Ok(());
    }
    let log = folder().join("relay.log");
    let log = std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut relay = Command::new(std::env::current_exe().context("find own executable")?);
    relay.args(["machine", "relay"]).args(&targets).current_dir("/").process_group(0);
    let mut child =
        relay.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().context("start the relay")?;
    let mut answer = String::new();
    BufReader::new(child.stdout.take().context("the relay has no output")?)
        .read_line(&mut answer)
        .context("read the relay's answer")?;
    ensure!(
        answer.trim() == "ready",
        "the relay did not start: see {}",
        folder().join("relay.log").display()
    );
    child.stdin.take().context("the relay has no input")?.write_all(b"go\n").context("start the relay")
}

/// The process. It joins the cluster's cgroup before anything else, and ends when nobody tells it to go on.
pub fn serve(targets: &[String]) -> Result<()> {
    Leaf::create(machine::hierarchies()?, state::cgroup_of(NAME))?.join()?;
    let mut listeners = Vec::new();
    for target in targets {
        listeners.extend(listen(target)?.map(|listener| (listener, target.clone())));
    }
    println!("ready");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("wait for `up`")?;
    ensure!(answer.trim() == "go", "`up` went away");
    let open = Arc::new(AtomicUsize::new(0));
    for (listener, target) in listeners {
        let open = open.clone();
        thread::spawn(move || accept(&listener, &target, &open));
    }
    loop {
        thread::park();
    }
}

/// Takes the target's port at the host's address; `None` when the target itself has it already.
fn listen(target: &str) -> Result<Option<TcpListener>> {
    let port = target.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let port = port.with_context(|| format!("{target}: no port"))?;
    let address: Ipv4Addr = HOST_ADDRESS.parse().context("parse the host's address")?;
    match TcpListener::bind((address, port)) {
        Ok(listener) => {
            // What comes by other links is not for us, whatever address it is sent to.
            setsockopt(&listener, sockopt::BindToDevice, &HOST_LINK.into())
                .with_context(|| format!("bind port {port} to {HOST_LINK}"))?;
            Ok(Some(listener))
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let reached = TcpStream::connect((address, port));
            reached.with_context(|| {
                format!("port {port} of {HOST_ADDRESS} is taken, and nobody answers there")
            })?;
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("listen at {HOST_ADDRESS}:{port}")),
    }
}

fn accept(listener: &TcpListener, target: &str, open: &Arc<AtomicUsize>) {
    for stream in listener.incoming() {
        let Ok(client) = stream else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (target, open) = (target.to_owned(), open.clone());
        thread::spawn(move || {
            if let Err(error) = pass(&client, &target) {
                eprintln!("relay to {target}: {error}");
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Both ways until each side has said all it had to say.
fn pass(client: &TcpStream, target: &str) -> std::io::Result<()> {
    let server = TcpStream::connect(target)?;
    thread::scope(|scope| {
        let up = scope.spawn(|| one_way(client, &server));
        let down = one_way(&server, client);
        up.join().unwrap_or(Ok(())).and(down)
    })
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
    let copied = std::io::copy(&mut from, &mut to);
    // A side that has gone away has heard enough; one that failed must not keep the other waiting.
    let how = if copied.is_ok() { Shutdown::Write } else { Shutdown::Both };
    let _ = to.shutdown(how);
    copied.map(drop)
}
