//! What clients ask for: each request is checked against the state, then done at once or handed to a worker.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use linux::cgroup::Group;
use shim_protocol::{
    Answer, Call, ContainerReport, ExecProcess, Failure, FailureKind, Request, StartContainer,
};

use super::{Keeper, Pipes, Task};
use crate::container::{Attachment, Container};
use crate::worker::{Outcome, exec, start};

/// Longest wait for the processes of a control group to end after SIGKILL.
pub(super) const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Containers of one sandbox.
const MAX_CONTAINERS: usize = 1024;
/// Exec'd processes that run at a time.
const MAX_EXECS: usize = 1024;

type Caller = (u32, u64);

fn failure(kind: FailureKind, message: impl std::fmt::Display) -> Failure {
    Failure { kind, message: message.to_string() }
}

impl Keeper {
    pub(super) fn call(&mut self, connection: u32, call: Call) {
        let caller = (connection, call.id);
        let outcome = match call.request {
            Request::List => Ok(Some(Answer::Containers(self.reports()))),
            Request::Start(request) => self.start(caller, *request).map(|()| None),
            Request::Exec(request) => self.exec(caller, *request).map(|()| None),
            Request::Signal { container, signal, all } => {
                self.signal(&container, signal, all).map(|()| Some(Answer::Done))
            }
            Request::SignalExec { exec, signal } => {
                self.signal_exec(exec, signal).map(|()| Some(Answer::Done))
            }
            Request::Delete { container, cgroup } => self.delete(caller, container, &cgroup).map(|()| None),
            Request::Attach { container, stdin, stdout, stderr } => {
                return self.attach(caller, &container, [stdin, stdout, stderr]);
            }
            Request::ReopenLog { container } => self.reopen(&container).map(|()| Some(Answer::Done)),
            Request::Shutdown => self.shut_down().map(|()| Some(Answer::Done)),
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(answer)) => self.answer(caller, Ok(answer), Vec::new()),
            Err(failure) => self.answer(caller, Err(failure), Vec::new()),
        }
    }

    /// Also those that start: a client that takes another's place must not think that they were never started.
    fn reports(&self) -> Vec<ContainerReport> {
        self.containers
            .values()
            .map(|container| ContainerReport {
                container: container.id.clone(),
                record: container.record.clone(),
            })
            .collect()
    }

    fn slot(&self, id: &str) -> Result<u32, Failure> {
        let found = self.containers.iter().find(|(_, container)| container.id == id).map(|(slot, _)| *slot);
        found.ok_or_else(|| failure(FailureKind::NotFound, format_args!("container \"{id}\": not found")))
    }

    fn running(&self, id: &str) -> Result<(u32, &Container), Failure> {
        let slot = self.slot(id)?;
        match self.containers.get(&slot).filter(|container| container.is_running()) {
            Some(container) => Ok((slot, container)),
            None => Err(failure(FailureKind::State, format_args!("container \"{id}\": not running"))),
        }
    }

    fn start(&mut self, caller: Caller, request: StartContainer) -> Result<(), Failure> {
        if self.ending || self.slot(&request.container).is_ok() {
            return Err(failure(FailureKind::State, "the container exists already or the sandbox ends"));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(failure(
                FailureKind::Other,
                format_args!("the sandbox has {MAX_CONTAINERS} containers"),
            ));
        }
        self.begin_start(caller, request)
            .map_err(|error| failure(FailureKind::Other, format_args!("{error:#}")))
    }

    fn begin_start(&mut self, caller: Caller, request: StartContainer) -> Result<()> {
        let group = self.layout.group(&request.cgroup)?;
        let container = Container::new(&request, group.clone()).context("open the log")?;
        group.create()?;
        let unified = group.open_unified()?;
        let (pipes, theirs) = self.make_pipes(&request)?;
        let slot = self.fresh();
        self.containers.insert(slot, container);
        let config = self.config.clone();
        let sandbox = std::mem::take(&mut self.sandbox);
        self.work(Some(caller), Task::Start { slot, streams: pipes }, unified.as_slice(), || {
            start::run(start::Start {
                request: &request,
                sandbox: &sandbox,
                group: &group,
                oci_root: &config.oci_root,
                cgroup_root: &config.cgroup_root,
                filters: config.seccomp_filters.as_deref(),
                streams: theirs,
            })
        });
        self.sandbox = sandbox;
        Ok(())
    }

    /// The shim's ends and the container's ends; with a terminal there are none.
    fn make_pipes(&self, request: &StartContainer) -> Result<(Pipes, Option<[OwnedFd; 3]>)> {
        let mut pipes = Pipes { wants_stdin: request.stdin, ..Pipes::default() };
        if request.tty {
            return Ok((pipes, None));
        }
        let stdin = if request.stdin {
            let (read, write) = linux::fds::pipe()?;
            pipes.stdin = Some(write);
            read
        } else {
            self.null.try_clone()?
        };
        let (stdout, stdout_write) = linux::fds::pipe()?;
        let (stderr, stderr_write) = linux::fds::pipe()?;
        pipes.stdout = Some(stdout);
        pipes.stderr = Some(stderr);
        Ok((pipes, Some([stdin, stdout_write, stderr_write])))
    }

    fn exec(&mut self, caller: Caller, request: ExecProcess) -> Result<(), Failure> {
        let wanted = [request.stdin, request.stdout, request.stderr].map(|wanted| wanted && !request.tty);
        let fds = self.take_streams(caller.0, wanted)?;
        if self.execs.len() >= MAX_EXECS || self.execs.contains_key(&request.exec) {
            return Err(failure(FailureKind::Other, "too many exec'd processes, or one with this id"));
        }
        let (_, container) = self.running(&request.container)?;
        let (pid, bundle, group) = (container.record.pid, container.bundle.clone(), container.group.clone());
        let filters = self.config.seccomp_filters.clone();
        let places = self.exec_places(&group, pid).map_err(|error| failure(FailureKind::Other, error))?;
        self.work(Some(caller), Task::Exec { exec: request.exec }, &places, || {
            exec::run(exec::Exec {
                process: &request.process,
                tty: request.tty,
                streams: fds,
                container_pid: pid,
                bundle: &bundle,
                group: &group,
                filters: filters.as_deref(),
            })
        });
        Ok(())
    }

    /// Where a further process of a container may begin: in the container's own group, or, as runc has it, in that of its first process, where
    /// the own one takes no process (it hands controllers down to groups below) or is gone (its first process moved away).
    fn exec_places(&self, group: &Group, first: i32) -> Result<Vec<OwnedFd>, linux::Error> {
        let of_first = match self.layout.unified_group_of(first)? {
            Some(other) if other.path() != group.path() => other.open_unified()?,
            _ => None,
        };
        let own = match group.open_unified() {
            Err(error) if error.is_not_found() && of_first.is_some() => None,
            opened => opened?,
        };
        Ok(own.into_iter().chain(of_first).collect())
    }

    fn take_streams(&mut self, connection: u32, wanted: [bool; 3]) -> Result<[Option<OwnedFd>; 3], Failure> {
        let count = wanted.iter().filter(|wanted| **wanted).count();
        let client = self.connections.get_mut(&connection);
        let mut fds = client
            .context("the client is gone")
            .and_then(|client| client.take_fds(count))
            .map_err(|error| failure(FailureKind::Other, error))?
            .into_iter();
        Ok(wanted.map(|wanted| if wanted { fds.next() } else { None }))
    }

    fn signal(&self, id: &str, signal: i32, all: bool) -> Result<(), Failure> {
        let slot = self.slot(id)?;
        let Some(container) = self.containers.get(&slot) else { return Ok(()) };
        if all {
            for pid in container.group.processes() {
                kill(pid, signal);
            }
        } else if container.is_running() {
            // Our own child that is not reaped yet: its number cannot belong to anybody else.
            kill(container.record.pid, signal);
        }
        Ok(())
    }

    fn signal_exec(&self, exec: u64, signal: i32) -> Result<(), Failure> {
        if let Some(pid) = self.execs.get(&exec) {
            kill(*pid, signal);
        }
        Ok(())
    }

    fn delete(&mut self, caller: Caller, container: String, cgroup: &str) -> Result<(), Failure> {
        let group = self.layout.group(cgroup).map_err(|error| failure(FailureKind::Other, error))?;
        self.work(Some(caller), Task::Delete { container }, &[], move || {
            remove(&group)?;
            Ok((Outcome::Done, None))
        });
        Ok(())
    }

    fn attach(&mut self, caller: Caller, id: &str, wanted: [bool; 3]) {
        let result = self.begin_attach(caller.0, id, wanted);
        let (result, fds) = match result {
            Ok(terminal) => {
                (Ok(Answer::Attached { terminal: terminal.is_some() }), terminal.into_iter().collect())
            }
            Err(failure) => (Err(failure), Vec::new()),
        };
        self.answer(caller, result, fds);
    }

    fn begin_attach(
        &mut self,
        connection: u32,
        id: &str,
        wanted: [bool; 3],
    ) -> Result<Option<OwnedFd>, Failure> {
        let [stdin, stdout, stderr] = self.take_streams(connection, wanted)?;
        for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
            linux::fds::set_non_blocking(fd).map_err(|error| failure(FailureKind::Other, error))?;
        }
        let (slot, container) = self.running(id)?;
        let terminal = container.terminal.as_ref().map(OwnedFd::try_clone).transpose();
        let terminal = terminal.map_err(|error| failure(FailureKind::Other, error))?;
        if let Some(container) = self.containers.get_mut(&slot) {
            container
                .attach(Attachment { stdin, stdout, stderr })
                .map_err(|message| failure(FailureKind::Other, message))?;
        }
        Ok(terminal)
    }

    fn reopen(&mut self, id: &str) -> Result<(), Failure> {
        let slot = self.slot(id)?;
        let Some(container) = self.containers.get_mut(&slot) else { return Ok(()) };
        container
            .reopen_log()
            .map_err(|error| failure(FailureKind::Other, format_args!("reopen the log: {error}")))
    }

    fn shut_down(&mut self) -> Result<(), Failure> {
        if self.containers.values().any(|container| container.record.exit.is_none()) {
            return Err(failure(FailureKind::State, "containers run"));
        }
        if let Err(error) = std::fs::remove_file(&self.config.socket) {
            eprintln!("remove {}: {error}", self.config.socket.display());
        }
        self.sandbox.destroy();
        self.ending = true;
        Ok(())
    }
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: takes its arguments by value.
    if unsafe { libc::kill(pid, signal) } < 0 {
        eprintln!("signal {signal} to {pid}: {}", std::io::Error::last_os_error());
    }
}

/// Kills what is left and removes the directories.
fn remove(group: &Group) -> Result<()> {
    if group.exists() {
        group.kill(KILL_DEADLINE)?;
        group.remove()?;
    }
    Ok(())
}
