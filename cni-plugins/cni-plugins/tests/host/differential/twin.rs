//! One of the two hosts of a case: a network namespace for the host, one for each container, and folders of state.
//!
//! Both hosts are made alike, one after the other, with the same names and paths, so that what is seen of them can be compared
//! as text. Plugins run through `ip netns exec`, which also gives them the namespace's own `/sys`.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use linux::{
    netlink::{Link, Netlink},
    netns::{self, Netns},
};
use serde_json::{Value, json};

use super::{
    super::node::{block_on, wait_for_plugins},
    case::{Call, Case, End, Run, Step},
    observe::{self, Snapshot},
};

pub const HOST: &str = "host";
pub const NAMESPACES: &str = "/run/netns";
const LAST: &str = "last";
/// The kernel takes a namespace apart in its own time.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Where plugins keep state.
pub const STATE: [&str; 3] = ["/var/lib/cni", "/run/cni", "/run/flannel"];

/// Whose executables run.
#[derive(Debug, Clone)]
pub struct Implementation {
    pub plugins: PathBuf,
    /// The whole `PATH` of its plugins: the reference runs `nft`, and must not find `iptables`.
    pub tools: PathBuf,
}

/// What a call answered, and what the host is like after it.
#[derive(Debug)]
pub struct Seen {
    /// Among the row's steps.
    pub index: usize,
    pub what: String,
    /// The document without the words for people: of an error only its code.
    pub answer: Value,
    /// As it came, for a reader of a failure.
    pub raw: String,
    pub call: Call,
    pub state: Snapshot,
}

/// See the module. It takes its namespaces and folders along.
pub struct Twin<'a> {
    case: &'a Case,
    implementation: &'a Implementation,
    /// By container and link: what the last ADD answered.
    results: BTreeMap<(String, String), Value>,
    /// Those whose namespace is there.
    containers: Vec<&'a str>,
}

impl<'a> Twin<'a> {
    pub fn new(case: &'a Case, implementation: &'a Implementation) -> Self {
        for name in std::iter::once(HOST).chain(case.containers()) {
            netns::create(Path::new(NAMESPACES).join(name)).expect("a namespace");
        }
        let twin = Self { case, implementation, results: BTreeMap::new(), containers: case.containers() };
        twin.run(HOST, &["ip", "link", "set", "lo", "up"].map(str::to_owned));
        for (path, text) in &case.files {
            fs::create_dir_all(Path::new(path).parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        for command in &case.prepare {
            twin.run(HOST, command);
        }
        twin
    }

    /// Goes through the steps; each call is seen with the state after it: of the host and the call's container, in the end
    /// of all.
    pub fn go(&mut self) -> Vec<Seen> {
        let mut seen: Vec<Seen> = Vec::new();
        for (index, step) in self.case.steps.iter().enumerate() {
            match step {
                Step::Run(Run { run, container }) => {
                    self.run(container.as_deref().unwrap_or(HOST), run);
                }
                Step::End(End { end }) => self.end(end),
                Step::Call(call) => {
                    let plugin = call.plugin.as_deref().unwrap_or(&self.case.plugin);
                    let what =
                        format!("step {index}: {plugin} {} {} {}", call.verb, call.container, call.ifname);
                    let output = self.call(plugin, call);
                    let raw = String::from_utf8_lossy(&output.stdout).into_owned();
                    let answer = answer(&output, &raw);
                    if call.verb == "ADD" && output.status.success() {
                        self.results.insert(attachment(call), answer.clone());
                    }
                    let is_last = index + 1 == self.case.steps.len();
                    assert!(is_last || call.differs.is_none(), "{}: {what}: goes on", self.case.name);
                    let mut containers = self.containers.clone();
                    containers.retain(|container| is_last || *container == call.container);
                    let known = seen.last().map(|seen| seen.state.roles.clone()).unwrap_or_default();
                    let state = observe::snapshot(&containers, known);
                    let stderr = String::from_utf8_lossy(&output.stderr);
                    seen.push(Seen {
                        index,
                        what,
                        answer,
                        raw: format!("{raw}{stderr}"),
                        call: *call.clone(),
                        state,
                    });
                }
            }
        }
        seen
    }

    fn call(&self, plugin: &str, call: &Call) -> Output {
        let mut command = netns_exec(HOST);
        command
            .arg(self.implementation.plugins.join(plugin))
            .env_clear()
            .env("PATH", &self.implementation.tools)
            .env("CNI_COMMAND", &call.verb)
            .env("CNI_CONTAINERID", &call.container)
            .env("CNI_NETNS", Path::new(NAMESPACES).join(&call.container))
            .env("CNI_IFNAME", &call.ifname)
            .env("CNI_ARGS", &call.args)
            .env("CNI_PATH", &self.implementation.plugins);
        for (name, value) in &call.env {
            if value.is_empty() {
                command.env_remove(name)
            } else {
                command.env(name, value)
            };
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip netns exec starts");
        let mut stdin = child.stdin.take().expect("its standard input");
        // A plugin may refuse before it reads.
        let text = call.stdin.clone().unwrap_or_else(|| self.config(call).to_string());
        let _ = stdin.write_all(text.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    fn config(&self, call: &Call) -> Value {
        let mut config = self.case.config.clone();
        if let Some(change) = &call.config {
            json_patch::merge(&mut config, change);
        }
        let given = call.chained || matches!(call.verb.as_str(), "CHECK" | "DEL");
        if let Some(result) = self.results.get(&attachment(call)).filter(|_| given && !call.forgetful)
            && config.get("prevResult").is_none()
        {
            config["prevResult"] = result.clone();
        }
        config
    }

    /// What it was connected to changes some time after, since sockets of processes that have ended hold a namespace for a
    /// grace period: a link to it, which goes with all its others, tells when.
    fn end(&mut self, container: &str) {
        let link = ["ip", "link", "add", LAST, "type", "veth", "peer", "name", LAST, "netns", container];
        self.run(HOST, &link.map(str::to_owned));
        netns::remove(Path::new(NAMESPACES).join(container)).expect("its name is removed");
        self.containers.retain(|other| *other != container);
        harness::wait::until(
            &format!("{}: the end of {container}'s links", self.case.name),
            END_LIMIT,
            || {
                let stays = links(HOST).iter().any(|link| link.name == LAST);
                if stays { Err(format!("{LAST} is there")) } else { Ok(()) }
            },
        );
        // Waits for the lock that all of that was done under.
        self.run(HOST, &["ip", "link", "set", "lo", "up"].map(str::to_owned));
    }

    fn run(&self, namespace: &str, command: &[String]) {
        let output = netns_exec(namespace).args(command).output().expect("ip netns exec starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {command:?} in {namespace}: {stderr}", self.case.name);
    }
}

impl Drop for Twin<'_> {
    fn drop(&mut self) {
        wait_for_plugins();
        for name in self.containers.iter().copied().chain([HOST]) {
            netns::remove(Path::new(NAMESPACES).join(name)).expect("its name is removed");
        }
        // Plugins have been seen to leave files where namespaces were.
        let _ = fs::remove_dir_all(NAMESPACES);
        for folder in STATE {
            let _ = fs::remove_dir_all(folder);
        }
        for path in self.case.files.keys().map(Path::new) {
            let _ = fs::remove_file(path);
            // With the folders that were made for it: those that are empty now.
            let _ = path.ancestors().skip(1).try_for_each(fs::remove_dir);
        }
    }
}

fn links(namespace: &str) -> Vec<Link> {
    let netns = Netns::open(Path::new(NAMESPACES).join(namespace)).expect("a namespace");
    block_on(async { Netlink::open_in(&netns).expect("a socket").links().await.expect("the links") })
}

pub fn netns_exec(namespace: &str) -> Command {
    // By its path: the plugins' own `PATH` is none to find it in.
    let mut command = Command::new(find("ip"));
    command.args(["netns", "exec", namespace]);
    command
}

/// Where the system's tool of this name is.
pub fn find(tool: &str) -> PathBuf {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|folder| Path::new(folder).join(tool));
    folders.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{tool} is not installed"))
}

fn attachment(call: &Call) -> (String, String) {
    (call.container.clone(), call.ifname.clone())
}

/// What must be equal of an answer.
fn answer(output: &Output, text: &str) -> Value {
    let document: Value = match text.trim() {
        "" => Value::Null,
        text => {
            serde_json::from_str(text).unwrap_or_else(|error| json!(format!("no JSON ({error}): {text}")))
        }
    };
    if output.status.success() {
        return document;
    }
    json!({"exit": output.status.code(), "code": document.get("code")})
}
