//! Exec, attach and their waiting ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use shim_protocol::{ExecProcess, Request};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;

use super::containers::{not_found, wrong_state};
use super::state::{ContainerMeta, load};
use super::{Inner, Runtime};
use crate::container::{ContainerId, ContainerState};
use crate::error::Error;
use crate::exec::{ExecConfig, ExecSession, ExecSyncResult};
use crate::shims::client::Client;
use crate::spec;
use crate::streams::{ReadStream, WriteStream};

/// Sandbox and number of an exec.
pub(super) type ExecKey = (String, u64);
/// Longest wait for the output of a process that was killed at its timeout.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
const CHUNK_BYTES: usize = 16 * 1024;

/// Our ends and the process's ends of the wanted streams.
#[derive(Default)]
struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    theirs: Vec<OwnedFd>,
}

fn system(operation: &str) -> impl FnOnce(linux::Error) -> Error {
    let operation = operation.to_owned();
    move |source| Error::System { operation, source }
}

fn io(operation: &str) -> impl FnOnce(std::io::Error) -> Error {
    let operation = operation.to_owned();
    move |source| Error::Io { operation, source }
}

impl Pipes {
    fn new(stdin: bool, stdout: bool, stderr: bool) -> Result<Pipes, Error> {
        let mut pipes = Pipes::default();
        if stdin {
            let (read, write) = linux::fds::pipe().map_err(system("make stdin"))?;
            pipes.stdin = Some(write);
            pipes.theirs.push(read);
        }
        for (wanted, ours) in [(stdout, &mut pipes.stdout), (stderr, &mut pipes.stderr)] {
            if wanted {
                let (read, write) = linux::fds::pipe().map_err(system("make output"))?;
                *ours = Some(read);
                pipes.theirs.push(write);
            }
        }
        Ok(pipes)
    }

    fn session(
        self,
        terminal: Option<OwnedFd>,
        exit: oneshot::Receiver<Result<i32, Error>>,
    ) -> Result<ExecSession, Error> {
        Ok(ExecSession {
            stdin: self.stdin.map(WriteStream::new).transpose().map_err(io("watch stdin"))?,
            stdout: self.stdout.map(ReadStream::new).transpose().map_err(io("watch stdout"))?,
            stderr: self.stderr.map(ReadStream::new).transpose().map_err(io("watch stderr"))?,
            terminal,
            exit,
        })
    }
}

impl Inner {
    pub(super) fn exec_ended(&self, key: ExecKey, result: Result<i32, Error>) {
        if let Some(waiting) = self.execs().remove(&key) {
            let _ = waiting.send(result);
        }
    }

    /// Tells everybody who waits for a process of this sandbox that its shim is gone.
    pub(super) fn end_execs(&self, sandbox: &str) {
        let keys: Vec<ExecKey> = self.execs().keys().filter(|(other, _)| other == sandbox).cloned().collect();
        for key in keys {
            self.exec_ended(key, Err(Error::ShimGone { sandbox: sandbox.into() }));
        }
    }
}

impl Runtime {
    pub(super) fn running(
        &self,
        operation: &'static str,
        id: &ContainerId,
    ) -> Result<(ContainerMeta, Arc<Client>), Error> {
        let tables = self.0.tables();
        let container = tables.containers.get(&id.0).ok_or_else(|| not_found(id))?;
        if container.state() != ContainerState::Running {
            return Err(wrong_state(operation, id, container.state()));
        }
        let shim = tables.sandboxes.get(&container.meta.sandbox).and_then(|sandbox| sandbox.shim.clone());
        let shim = shim.ok_or_else(|| Error::ShimGone { sandbox: container.meta.sandbox.clone() })?;
        Ok((container.meta.clone(), shim))
    }

    pub(super) async fn exec_inner(
        &self,
        id: &ContainerId,
        config: ExecConfig,
    ) -> Result<ExecSession, Error> {
        self.start_exec(id, config).await.map(|(session, _)| session)
    }

    async fn start_exec(
        &self,
        id: &ContainerId,
        config: ExecConfig,
    ) -> Result<(ExecSession, (Arc<Client>, u64)), Error> {
        if config.command.is_empty() {
            return Err(Error::InvalidArgument { field: "cmd".into(), reason: "is empty".into() });
        }
        if config.tty && config.stderr {
            let reason = "a terminal has no separate stderr";
            return Err(Error::InvalidArgument { field: "stderr".into(), reason: reason.into() });
        }
        let (meta, shim) = self.running("exec in container", id)?;
        let path = self.0.config.container_dir(&id.0).join("config.json");
        let spec: Value = load(&path).ok_or_else(|| not_found(id))?;
        let process = spec::exec_process(&spec, &config.command, config.tty);
        let piped = |wanted: bool| wanted && !config.tty;
        let mut pipes = Pipes::new(piped(config.stdin), piped(config.stdout), piped(config.stderr))?;
        let exec = self.0.next_exec.fetch_add(1, Ordering::Relaxed);
        let (sender, exit) = oneshot::channel();
        self.0.execs().insert((meta.sandbox.clone(), exec), sender);
        let request = ExecProcess {
            exec,
            container: id.0.clone(),
            process,
            stdin: piped(config.stdin),
            stdout: piped(config.stdout),
            stderr: piped(config.stderr),
            tty: config.tty,
        };
        let theirs = std::mem::take(&mut pipes.theirs);
        match shim.call(Request::Exec(Box::new(request)), theirs).await {
            Ok((_, mut fds)) => {
                let terminal = fds.pop();
                if let Some(terminal) = &terminal {
                    let copy = || terminal.try_clone().map_err(io("duplicate terminal"));
                    pipes.stdin = config.stdin.then(copy).transpose()?;
                    pipes.stdout = config.stdout.then(copy).transpose()?;
                }
                Ok((pipes.session(terminal, exit)?, (shim, exec)))
            }
            Err(error) => {
                self.0.execs().remove(&(meta.sandbox, exec));
                Err(error)
            }
        }
    }

    pub(super) async fn exec_sync_inner(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecSyncResult, Error> {
        let operation = format!("exec {command:?} in container \"{id}\"");
        let config = ExecConfig { command, stdin: false, stdout: true, stderr: true, tty: false };
        let (mut session, (shim, exec)) = self.start_exec(id, config).await?;
        let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
        let outputs = tokio::spawn(async move { tokio::join!(collect(stdout), collect(stderr)) });
        let abort = outputs.abort_handle();
        let limit = timeout.filter(|limit| !limit.is_zero()).unwrap_or(Duration::MAX);
        let exit_code = match tokio::time::timeout(limit, session.wait()).await {
            Ok(result) => result?,
            Err(_) => {
                let kill = Request::SignalExec { exec, signal: rustix::process::Signal::KILL.as_raw() };
                let _ = shim.call(kill, Vec::new()).await;
                abort.abort();
                return Err(Error::Timeout { operation });
            }
        };
        // A child that it left behind may hold the pipes open for ever.
        let (stdout, stderr) = match tokio::time::timeout(DRAIN_LIMIT, outputs).await {
            Ok(Ok(collected)) => collected,
            Ok(Err(_)) | Err(_) => {
                abort.abort();
                return Err(Error::Timeout { operation: format!("{operation}: read its output") });
            }
        };
        Ok(ExecSyncResult { exit_code, stdout, stderr })
    }

    pub(super) async fn attach_inner(&self, id: &ContainerId, stdin: bool) -> Result<ExecSession, Error> {
        let (meta, shim) = self.running("attach to container", id)?;
        if stdin && !meta.config.stdin {
            let reason = "the container was made without stdin";
            return Err(Error::InvalidArgument { field: "stdin".into(), reason: reason.into() });
        }
        let stderr = !meta.config.tty;
        let mut pipes = Pipes::new(stdin, true, stderr)?;
        let theirs = std::mem::take(&mut pipes.theirs);
        let record = self.0.tables().containers.get(&id.0).map(|container| container.record.subscribe());
        let request = Request::Attach { container: id.0.clone(), stdin, stdout: true, stderr };
        let (_, mut fds) = shim.call(request, theirs).await?;
        let (sender, exit) = oneshot::channel();
        if let Some(mut record) = record {
            tokio::spawn(async move {
                let ended = record
                    .wait_for(|record| record.as_ref().is_some_and(|record| record.exit.is_some()))
                    .await;
                if let Some(exit) = ended.ok().and_then(|record| record.as_ref()?.exit.clone()) {
                    let _ = sender.send(Ok(exit.code));
                }
            });
        }
        pipes.session(fds.pop(), exit)
    }
}

/// Reads to the end, keeping at most [`crate::EXEC_SYNC_OUTPUT_BYTES`].
async fn collect(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let mut kept = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(count) = stream.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let space = crate::EXEC_SYNC_OUTPUT_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..count.min(space)]);
    }
    kept
}
