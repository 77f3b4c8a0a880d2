//! What a start finds: living shims are adopted, what an earlier process did not finish is finished or taken back.
//!
//! | found | done |
//! |---|---|
//! | sandbox in phase Ready, shim answers | adopted with its containers |
//! | container that its shim still starts | waited for, at most [`START_LIMIT`]; then it counts as running, without a pid |
//! | sandbox in phase Ready, shim gone | containers killed and recorded as exited with 255, sandbox not ready |
//! | sandbox in phase Stopped | kept, its network taken down again |
//! | sandbox in phase Creating or Removing, or without a phase | shim killed; removed in the background |
//! | shim without a sandbox directory | killed |
//! | network plugin that still works for a sandbox | killed before anything is taken back |
//! | container without `meta.json`, or of a sandbox that is not kept | processes killed, directory removed |

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shim_protocol::{Answer, Record, Request};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Runtime;
use super::containers::KILL_LIMIT;
use super::sandboxes::remove_directory;
use super::state::{Container, ContainerMeta, Phase, Sandbox, SandboxMeta, learn, load};
use crate::error::Error;
use crate::sandbox::SandboxConfig;
use crate::shims::{self, Living};

/// Longest look for network plugins of an earlier process, and wait for their end.
const CALLS_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for all starts that an earlier process began.
const START_LIMIT: Duration = Duration::from_secs(10);

impl Runtime {
    pub(super) async fn adopt(&self, living: &[Living]) -> Result<(), Error> {
        let mut found = BTreeMap::new();
        for id in names(&self.0.config.root.join("sandboxes")) {
            let meta = load::<SandboxMeta>(&self.0.config.sandbox_dir(&id).join("meta.json"));
            found.insert(id.clone(), meta.unwrap_or_else(|| half_made(&id)));
        }
        for shim in living {
            let phase = found.get(&shim.sandbox).map(|meta| meta.phase);
            self.end_unwanted(shim, phase).await;
        }
        // What plugins started for a pod that stays may be meant to stay with it.
        let unsettled = found.iter().filter(|(_, meta)| meta.phase != Phase::Ready);
        let unsettled: BTreeSet<String> = unsettled.map(|(id, _)| id.clone()).collect();
        let ended = move |given_up: &CancellationToken| {
            crate::network::end_calls(|sandbox| unsettled.contains(sandbox), given_up);
        };
        if !ends_within(CALLS_LIMIT, ended).await {
            tracing::warn!(
                "network plugins of an earlier process are looked for no longer: some may be left"
            );
        }
        self.remove_leftovers(&found);
        self.load_containers(&found).await;
        for (id, meta) in found {
            match meta.phase {
                Phase::Creating | Phase::Removing => self.remove_in_background(meta, Arc::default()),
                Phase::Ready | Phase::Stopped => self.adopt_sandbox(&id, meta).await,
            }
        }
        self.await_starts().await;
        Ok(())
    }

    /// A shim that nobody keeps ends before its containers are removed: it writes into their directories how they ended.
    async fn end_unwanted(&self, shim: &Living, phase: Option<Phase>) {
        let (config, sandbox) = (self.0.config.clone(), shim.sandbox.clone());
        let end = match phase {
            Some(phase) if is_kept(phase) => return,
            // Its mounts are needed until its network is taken down.
            Some(_) => shims::kill,
            None => {
                tracing::warn!(sandbox, pid = shim.pid, "shim without a sandbox is killed");
                shims::destroy
            }
        };
        let _ = tokio::task::spawn_blocking(move || end(&config, &sandbox)).await;
    }

    /// Lets starts that an earlier process asked for come to their end, so that nobody takes such a container for one that was never started.
    async fn await_starts(&self) {
        let starting =
            |container: &&Container| container.record.borrow().as_ref().is_some_and(Record::is_starting);
        let records: Vec<_> = {
            let tables = self.0.tables();
            tables
                .containers
                .values()
                .filter(starting)
                .map(|container| container.record.subscribe())
                .collect()
        };
        let ended = async {
            for mut record in records {
                let _ = record.wait_for(|record| !record.as_ref().is_some_and(Record::is_starting)).await;
            }
        };
        if tokio::time::timeout(START_LIMIT, ended).await.is_err() {
            tracing::warn!("containers whose start was under way still start, and count as running");
        }
    }

    /// Mounts, and files of shims, of sandboxes that do not exist any more.
    fn remove_leftovers(&self, found: &BTreeMap<String, SandboxMeta>) {
        let config = &self.0.config;
        let mut seen = BTreeSet::new();
        seen.extend(names(&config.netns_dir()));
        seen.extend(names(&config.state.join("shm")));
        let of_shims = names(&config.shim_dir());
        let ids =
            of_shims.iter().filter_map(|name| name.strip_suffix(".sock").or(name.strip_suffix(".json")));
        seen.extend(ids.map(str::to_owned));
        for id in seen.iter().filter(|name| crate::config::is_id(name)).filter(|id| !found.contains_key(*id))
        {
            shims::take_off(config, id);
        }
    }

    async fn load_containers(&self, sandboxes: &BTreeMap<String, SandboxMeta>) {
        for id in names(&self.0.config.root.join("containers")) {
            let directory = self.0.config.container_dir(&id);
            let meta = load::<ContainerMeta>(&directory.join("meta.json"));
            let kept = |meta: &ContainerMeta| {
                sandboxes.get(&meta.sandbox).is_some_and(|sandbox| is_kept(sandbox.phase))
            };
            match meta {
                Some(meta) if kept(&meta) => {
                    let record = load::<Record>(&directory.join("record.json"));
                    let layers = self.0.store.hold(meta.layers.clone());
                    self.0.tables().containers.insert(id, Container::new(meta, record, layers));
                }
                other => self.drop_container(&id, other.map(|meta| meta.cgroup), &directory).await,
            }
        }
    }

    /// A container that is not kept. Its control group may be known by name only.
    async fn drop_container(&self, id: &str, cgroup: Option<String>, directory: &Path) {
        tracing::warn!(container = id, "half-made or abandoned container is removed");
        let layout = self.0.layout.clone();
        let _ = tokio::task::spawn_blocking(move || {
            if let Some(Ok(group)) = cgroup.map(|path| layout.group(&path)) {
                let _ = group.kill(KILL_LIMIT);
                let _ = group.remove();
            }
        })
        .await;
        if let Err(error) = remove_directory(directory) {
            tracing::warn!(container = id, %error, "directory of a container cannot be removed");
        }
    }

    async fn adopt_sandbox(&self, id: &str, meta: SandboxMeta) {
        let phase = meta.phase;
        self.0.tables().sandboxes.insert(id.to_owned(), Sandbox::new(meta.clone()));
        match self.connect(id).await {
            Ok(shim) => {
                if let Ok((Answer::Containers(reports), _)) = shim.call(Request::List, Vec::new()).await {
                    for report in reports {
                        self.0.note(&report.container, |known| learn(known, report.record));
                    }
                    self.keep_shim(id, shim).await;
                }
            }
            Err(error) => tracing::warn!(sandbox = id, %error, "shim does not answer"),
        }
        let adopted = self.0.tables().sandboxes.get(id).is_some_and(|sandbox| sandbox.shim.is_some());
        if !adopted {
            let (config, sandbox) = (self.0.config.clone(), id.to_owned());
            let _ = tokio::task::spawn_blocking(move || shims::kill(&config, &sandbox)).await;
        }
        self.bury_if_unkept(id, adopted).await;
        let network = self.0.tables().sandboxes.get(id).map(|sandbox| Arc::clone(&sandbox.network));
        if let (Phase::Stopped, Some(network)) = (phase, network) {
            self.disconnect_in_background(meta, network);
        }
    }

    /// Containers that count as running and that no shim keeps are ended.
    async fn bury_if_unkept(&self, sandbox: &str, adopted: bool) {
        if !adopted {
            self.bury_containers(sandbox).await;
        }
    }
}

/// Whether work that blocks ends in time. It has a thread that nobody waits for any longer, and that is told so: that of the reactor would hold
/// up its end.
async fn ends_within(limit: Duration, work: impl FnOnce(&CancellationToken) + Send + 'static) -> bool {
    let (done, ended) = oneshot::channel();
    let given_up = CancellationToken::new();
    let _on_return = given_up.clone().drop_guard();
    let work = move || {
        work(&given_up);
        // Nobody waits any more.
        let _late = done.send(());
    };
    let started = std::thread::Builder::new().name("end-calls".into()).spawn(work);
    started.is_ok() && matches!(tokio::time::timeout(limit, ended).await, Ok(Ok(())))
}

/// Whether a sandbox in this phase stays, and its containers with it.
fn is_kept(phase: Phase) -> bool {
    matches!(phase, Phase::Ready | Phase::Stopped)
}

/// A sandbox of which only the directory is known.
fn half_made(id: &str) -> SandboxMeta {
    SandboxMeta {
        id: id.to_owned(),
        config: SandboxConfig {
            linux: crate::sandbox::LinuxSandboxConfig {
                cgroup_parent: format!("/orlop/{id}"),
                ..crate::sandbox::LinuxSandboxConfig::default()
            },
            ..SandboxConfig::default()
        },
        created_at: 0,
        phase: Phase::Creating,
        ips: Vec::new(),
        own_network: true,
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_look_that_hangs_is_given_up_and_told_so() {
        let (release, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let look = move |given_up: &CancellationToken| {
            assert!(held.recv().is_err());
            tell.send(given_up.is_cancelled()).unwrap();
        };
        assert!(!ends_within(Duration::from_millis(5), look).await);
        drop(release);
        assert!(told.recv().unwrap());
        let in_time = |given_up: &CancellationToken| assert!(!given_up.is_cancelled());
        assert!(ends_within(CALLS_LIMIT, in_time).await);
    }
}
