//! `orlopctl`: the node's own tool. Asks the agent of this node, opens a shell inside a node that `up` made, backs up and
//! checks the control plane's store.
//!
//! In: a subcommand. Out: a table on stdout, or JSON with `--json`; a backup's file. Changes nothing else.

#[path = "orlopctl/service.rs"]
mod service;

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use agent::admin::{Question, ask};
use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

const AGENT_SOCKET: &str = "/run/orlop/agent.sock";
const PROXY_SOCKET: &str = "/run/orlop/proxy.sock";
/// Characters of an id that are shown.
const SHORT_ID: usize = 13;
/// What a shell reports for a command that a signal ended: this plus the signal's number.
const SIGNAL_CODE: u8 = 128;

#[derive(Parser)]
#[command(name = "orlopctl", about = "Looks into a node", version)]
struct Arguments {
    /// The agent's socket [default: /run/orlop/agent.sock, or where there is none /run/orlop/proxy.sock, which is `orlop-agent proxy`'s]
    #[arg(long, value_name = "FILE", global = true)]
    socket: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Images in this node's store
    Images,
    /// Pod sandboxes on this node
    Sandboxes,
    /// Containers on this node
    Containers,
    /// Services: what they are led to, by what, and why not
    Service {
        #[command(subcommand)]
        verb: service::Verb,
    },
    /// The same as `service ls`
    Services,
    /// Pods that NetworkPolicies select, and which
    Policies,
    /// What the BPF programs counted
    Counters,
    /// A shell, or a command, inside a node that `cargo xtask up` made
    NodeShell {
        /// The node's name
        node: String,
        /// Where `up` keeps its things
        #[arg(long, value_name = "DIR", default_value = "target/up")]
        dir: PathBuf,
        /// A command instead of a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// The control plane's store: back it up, check it
    Store {
        #[command(subcommand)]
        verb: StoreVerb,
    },
}

#[derive(Subcommand)]
enum StoreVerb {
    /// Save a copy of a running control plane's store, as of one moment.
    ///
    /// To go back to it: stop orlop-server, put the file in the place of store.redb in its data directory, start orlop-server.
    Backup {
        /// The kubeconfig of an administrator: admin.kubeconfig in the server's data directory
        #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
        kubeconfig: PathBuf,
        /// Where to save it; replaced if it exists [default: store-TIME.redb]
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Check that a backup, or the store of a stopped server, is sound
    Check {
        /// A backup, or store.redb in the server's data directory
        file: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { socket, json, verb } = Arguments::parse();
    let ask = |question: Question| ask(&socket.unwrap_or_else(default_socket), &question);
    let (question, columns): (Question, &[Column]) = match &verb {
        Verb::Images => (Question::Images, IMAGES),
        Verb::Sandboxes => (Question::Sandboxes, SANDBOXES),
        Verb::Containers => (Question::Containers, CONTAINERS),
        Verb::Policies => (Question::Policies, POLICIES),
        Verb::Counters => (Question::Counters, &[]),
        Verb::Services => {
            let verb = service::Verb::Ls { namespace: None };
            return show(json, &ask(verb.question())?, |answer| service::text(&verb, answer));
        }
        Verb::Service { verb } => {
            return show(json, &ask(verb.question())?, |answer| service::text(verb, answer));
        }
        Verb::NodeShell { node, dir, command } => return node_shell(&dir.join("nodes").join(node), command),
        Verb::Store { verb: StoreVerb::Backup { kubeconfig, to } } => {
            return store_backup(kubeconfig, to.as_deref());
        }
        Verb::Store { verb: StoreVerb::Check { file } } => return store_check(file),
    };
    show(json, &ask(question)?, |answer| match answer {
        Value::Object(counters) => {
            counters.iter().map(|(name, count)| format!("{name:<24}{count:>12}\n")).collect()
        }
        _ => table(columns, rows(answer)),
    })
}

/// Prints an answer, for people or as it is.
fn show(json: bool, answer: &Value, text: impl FnOnce(&Value) -> String) -> anyhow::Result<ExitCode> {
    let shown = if json { format!("{}\n", serde_json::to_string_pretty(answer)?) } else { text(answer) };
    print!("{shown}");
    Ok(ExitCode::SUCCESS)
}

/// Where the agent of this node listens, or the service proxy alone.
fn default_socket() -> PathBuf {
    let agent = PathBuf::from(AGENT_SOCKET);
    let proxy = PathBuf::from(PROXY_SOCKET);
    if !agent.exists() && proxy.exists() { proxy } else { agent }
}

fn rows(answer: &Value) -> &[Value] {
    answer.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A heading and where its value is in the answer.
type Column = (&'static str, &'static str);

const IMAGES: &[Column] = &[("IMAGE", "/repo_tags"), ("ID", "/id"), ("BYTES", "/size")];
const POLICIES: &[Column] = &[
    ("NAMESPACE", "/namespace"),
    ("POD", "/pod"),
    ("LINK", "/link"),
    ("INGRESS", "/ingress"),
    ("EGRESS", "/egress"),
    ("PROBLEM", "/problem"),
];
const SANDBOXES: &[Column] = &[
    ("SANDBOX", "/id"),
    ("NAMESPACE", "/config/namespace"),
    ("POD", "/config/name"),
    ("STATE", "/state"),
    ("IP", "/ips"),
    ("SHIM", "/shim_pid"),
];
const CONTAINERS: &[Column] = &[
    ("CONTAINER", "/id"),
    ("SANDBOX", "/sandbox"),
    ("NAME", "/config/name"),
    ("ATTEMPT", "/config/attempt"),
    ("STATE", "/state"),
    ("PID", "/pid"),
    ("EXIT", "/exit_code"),
];
fn table(columns: &[Column], rows: &[Value]) -> String {
    let heading: Vec<String> = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    let cells = |row: &Value| columns.iter().map(|(_, path)| cell(row.pointer(path))).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(rows.iter().map(cells)).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0))
        .collect();
    let line = |line: &Vec<String>| {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    lines.iter().map(line).collect()
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => short(text),
        Some(Value::Array(values)) if values.is_empty() => "none".to_owned(),
        Some(Value::Array(values)) => {
            values.iter().map(|value| cell(Some(value))).collect::<Vec<_>>().join(",")
        }
        Some(other) => other.to_string(),
    }
}

/// Ids are cut, everything else is whole.
fn short(text: &str) -> String {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_id = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { digits[..SHORT_ID].to_owned() } else { text.to_owned() }
}

/// Saves a backup and says what to do with it.
fn store_backup(kubeconfig: &Path, to: Option<&Path>) -> anyhow::Result<ExitCode> {
    let now = jiff::Timestamp::now().strftime("store-%Y%m%dT%H%M%SZ.redb").to_string();
    let to = to.unwrap_or(Path::new(&now));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed already");
    }
    let bytes = runtime.block_on(async {
        let client = agent::api::client(kubeconfig).await?;
        anyhow::Ok(agent::backup::save(&client, to).await?)
    })?;
    let path = to.display();
    println!("saved {bytes} bytes to {path}; check it with `orlopctl store check {path}`");
    Ok(ExitCode::SUCCESS)
}

/// The server's own executable knows its store; it lies beside this one, or is found as any other command.
fn store_check(file: &Path) -> anyhow::Result<ExitCode> {
    let beside = std::env::current_exe().context("find this executable")?.with_file_name("orlop-server");
    let server = if beside.exists() { beside } else { PathBuf::from("orlop-server") };
    let error = Command::new(&server).args(["store", "check"]).arg(file).exec();
    Err(error).with_context(|| {
        format!("run {}: a store is checked where the control plane is installed", server.display())
    })
}

/// The process that is pid 1 of the machine whose folder this is, by its command line (`xtask machine init FOLDER`).
fn init_of(folder: &Path) -> anyhow::Result<u32> {
    let folder = folder
        .canonicalize()
        .with_context(|| format!("find {}: is there such a node, and is it up?", folder.display()))?;
    let arguments = [b"machine", b"init".as_slice(), folder.as_os_str().as_bytes()];
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Anybody may call a process so.
        if entry.metadata().is_ok_and(|process| process.uid() != 0) {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.split(|byte| *byte == 0).skip(1).take(3).eq(arguments) {
            return Ok(pid);
        }
    }
    bail!("the node of {} is not up: start it with `cargo xtask up`", folder.display())
}

/// Enters the namespaces of the machine whose folder this is, and runs a program there.
fn node_shell(folder: &Path, command: &[String]) -> anyhow::Result<ExitCode> {
    let pid = init_of(folder)?;
    // All are opened before the first is entered: afterwards these paths lead elsewhere. The mount namespace is the last.
    let kinds = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let mut namespaces = Vec::new();
    for (name, kind) in kinds {
        let path = format!("/proc/{pid}/ns/{name}");
        let file = File::open(&path).with_context(|| format!("open {path}: needs root"))?;
        namespaces.push((name, kind, file));
    }
    for (name, kind, file) in &namespaces {
        setns(file, *kind).with_context(|| format!("enter the node's {name} namespace"))?;
    }
    std::env::set_current_dir("/").context("go to the node's root folder")?;
    let shell = [if Path::new("/bin/bash").exists() { "/bin/bash".to_owned() } else { "/bin/sh".to_owned() }];
    let words = if command.is_empty() { &shell[..] } else { command };
    // A child, because the pid namespace counts for children only.
    let status = Command::new(&words[0])
        .args(&words[1..])
        .status()
        .with_context(|| format!("run {} inside the node", words[0]))?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
        (None, Some(signal)) => {
            Ok(ExitCode::from(SIGNAL_CODE.saturating_add(u8::try_from(signal).unwrap_or(0))))
        }
        (None, None) => bail!("{} ended in an unknown way", words[0]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{POLICIES, short, table};

    #[test]
    fn tables_are_aligned() {
        let rows = [
            json!({"namespace": "default", "pod": "web-0", "link": "veth1", "ingress": ["a", "b"]}),
            json!({"namespace": "kube-system", "pod": "dns", "link": null, "ingress": [], "problem": "no room"}),
        ];
        let expected = "\
NAMESPACE     POD     LINK    INGRESS   EGRESS   PROBLEM
default       web-0   veth1   a,b       -        -
kube-system   dns     -       none      -        no room
";
        assert_eq!(table(POLICIES, &rows), expected);
    }

    #[test]
    fn only_ids_are_cut() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(short(&id), "0123456789abc");
        assert_eq!(short(&format!("sha256:{id}")), "0123456789abc");
        assert_eq!(short("docker.io/library/busybox:latest"), "docker.io/library/busybox:latest");
    }
}
