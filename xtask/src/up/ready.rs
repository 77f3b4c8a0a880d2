//! Waiting until the cluster works: every part of every machine runs, the API answers, every node is Ready.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use super::nodes::{self, Node};
use crate::machine::parts::{self, Status, Verdict};
use crate::{process, setup};

#[cfg(test)]
mod tests;

/// How long the API may take to answer and the first node to become Ready, and how much longer for each further node.
const READY_LIMIT: Duration = Duration::from_secs(60);
const READY_LIMIT_PER_NODE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(100);
/// Of every node: name, the Ready condition's status, when it was last said.
const LINES: &str = "jsonpath={range .items[*]}{.metadata.name} \
                     {.status.conditions[?(@.type=='Ready')].status} \
                     {.status.conditions[?(@.type=='Ready')].lastHeartbeatTime}{\"\\n\"}{end}";

/// What is waited for.
pub struct Wish<'a> {
    pub nodes: &'a [Node],
    /// Nodes that were started, and when: what the API knows of them from before does not count.
    pub started: &'a [Node],
    pub since: Timestamp,
}

/// Waits until every part runs, the API answers and every node is Ready. A part that keeps ending is not waited for.
pub fn wait(wish: &Wish<'_>, kubeconfig: &Path) -> Result<()> {
    let limit = READY_LIMIT + READY_LIMIT_PER_NODE * u32::try_from(wish.nodes.len()).unwrap_or(u32::MAX);
    let deadline = Instant::now() + limit;
    let kubectl = setup::kubectl()?;
    let before: Vec<Vec<Status>> = wish.nodes.iter().map(|node| parts::read(&node.folder())).collect();
    loop {
        let healthy = are_healthy(wish.nodes, &before)?;
        let unready = if healthy { ask(wish, &kubectl, kubeconfig)? } else { None };
        if unready.as_ref().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let logs = unready.iter().flatten().next().unwrap_or(&wish.nodes[0]).logs();
            let names = unready.map_or("the API".to_owned(), |nodes| names(&nodes));
            bail!("{names} is not ready after {limit:?}: look into {}", logs.display());
        }
        std::thread::sleep(PAUSE);
    }
}

fn names(nodes: &[Node]) -> String {
    nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn are_healthy(nodes: &[Node], before: &[Vec<Status>]) -> Result<bool> {
    let mut healthy = true;
    for (node, before) in nodes.iter().zip(before) {
        match parts::judge(before, &parts::read(&node.folder()), parts::clock()) {
            Verdict::Healthy => {}
            Verdict::Wait => healthy = false,
            Verdict::GiveUp { name, last_exit } => {
                let log = node.logs().join(format!("{name}.log"));
                bail!(
                    "the {name} of {} ends again and again ({last_exit}): look into {}",
                    node.name,
                    log.display()
                );
            }
        }
    }
    Ok(healthy)
}

/// Asks the API, with the kubeconfig that the server has written, which nodes are not Ready; `None` without an answer.
fn ask(wish: &Wish<'_>, kubectl: &Path, kubeconfig: &Path) -> Result<Option<Vec<Node>>> {
    let source = nodes::server_data().join("admin.kubeconfig");
    if !source.is_file() {
        return Ok(None);
    }
    let found = fs::read(&source).with_context(|| format!("read {}", source.display()))?;
    if fs::read(kubeconfig).ok().as_ref() != Some(&found) {
        put(kubeconfig, &found)?;
    }
    let mut get = Command::new(kubectl);
    get.arg("--kubeconfig").arg(kubeconfig).args(["get", "nodes", "-o", LINES]);
    Ok(process::probe(&mut get).map(|listed| unready(wish, &listed)))
}

/// Replaces the user's file at once: a kubectl may be about to read it.
fn put(kubeconfig: &Path, content: &[u8]) -> Result<()> {
    let partial = kubeconfig.with_extension("partial");
    let written = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
    written
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&partial, kubeconfig))
        .with_context(|| format!("write {}", kubeconfig.display()))
}

/// The nodes that the listed lines do not show as Ready, or not since they were started.
fn unready(wish: &Wish<'_>, listed: &str) -> Vec<Node> {
    let is_ready = |node: &&Node| {
        let line = listed.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let Some([_, status, at]) = line.into_iter().find_map(|words| match <[&str; 3]>::try_from(words) {
            Ok(words) if words[0] == node.name => Some(words),
            _ => None,
        }) else {
            return false;
        };
        // Times in the API are whole seconds.
        let news = at.parse::<Timestamp>().is_ok_and(|at| at.as_second() >= wish.since.as_second());
        status == "True" && (news || !wish.started.contains(node))
    };
    wish.nodes.iter().filter(|node| !is_ready(node)).cloned().collect()
}
