//! The shim's loop: everything it keeps, what it watches, and what it does when something becomes ready.
//!
//! The set of watched descriptors is rebuilt for every round from the state itself (there are a handful), so there is no registration that could
//! go stale. Handlers wait for no other process: descriptors are non-blocking, and what takes longer than a file operation is a worker's. Files are
//! written here: log lines into the page cache, and at each start and end of a container its record with fdatasync, before anybody is told. A disk
//! that stalls therefore stalls this loop, as it stalls a containerd shim's log; exits are then told late, not wrongly.

mod requests;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};
use linux::cgroup::Layout;
use linux::process::SingleThreaded;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{WaitOptions, WaitStatus};
use shim_protocol::{Answer, Exit, Failure, FailureKind, FromShim, Hello, ShimConfig, ShimEvent};

use crate::connection::Connection;
use crate::container::Container;
use crate::sandbox::Sandbox;
use crate::stdio::{Input, Output, Which};
use crate::worker::{self, Outcome};
use watch::{Ready, Token};

/// Clients at a time.
const MAX_CONNECTIONS: usize = 16;
/// Exits of processes that a worker has started and not yet reported.
const MAX_UNCLAIMED_EXITS: usize = 1024;
/// Signals that must not end a shim.
const DEAF_TO: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// The shim.
pub struct Keeper {
    config: ShimConfig,
    sandbox: Sandbox,
    layout: Layout,
    proof: SingleThreaded,
    listener: UnixListener,
    signals: SignalFd,
    null: OwnedFd,
    connections: BTreeMap<u32, Connection>,
    containers: BTreeMap<u32, Container>,
    execs: HashMap<u64, i32>,
    workers: BTreeMap<u32, Worker>,
    /// Wait statuses of processes that no one is known to have started yet.
    unclaimed: HashMap<i32, i32>,
    next: u32,
    ending: bool,
}

/// A worker under way, and who waits for it.
struct Worker {
    result: OwnedFd,
    /// Connection and call; `None` when nobody asked.
    caller: Option<(u32, u64)>,
    task: Task,
}

/// What a worker does, with what is needed when it is done.
enum Task {
    Start { slot: u32, streams: Pipes },
    Exec { exec: u64 },
    Delete { container: String },
    Kill,
}

/// The shim's ends of a new container's pipes.
#[derive(Debug, Default)]
struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    wants_stdin: bool,
}

/// What a shim keeps from its start to its end.
pub struct Kept {
    /// The pod's namespaces and mounts.
    pub sandbox: Sandbox,
    /// Where clients come.
    pub listener: UnixListener,
    /// /dev/null
    pub null: OwnedFd,
}

impl Keeper {
    /// Takes over a sandbox and its listening socket.
    pub fn new(config: ShimConfig, layout: Layout, kept: Kept) -> Result<Keeper> {
        let Kept { sandbox, listener, null } = kept;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        for signal in DEAF_TO {
            mask.add(signal);
        }
        mask.thread_block().context("block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("signalfd")?;
        Ok(Keeper {
            layout,
            proof: SingleThreaded::verify()?,
            config,
            sandbox,
            listener,
            signals,
            null,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: HashMap::new(),
            workers: BTreeMap::new(),
            unclaimed: HashMap::new(),
            next: 0,
            ending: false,
        })
    }

    /// Runs until it is told to end; returns the exit code.
    pub fn run(&mut self) -> i32 {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    eprintln!("wait for events: {error:#}");
                    return 1;
                }
            };
            for event in ready {
                self.handle(event);
            }
            if self.ending && self.connections.values().all(|connection| !connection.is_pending()) {
                return 0;
            }
        }
    }

    fn handle(&mut self, ready: Ready) {
        match ready.token {
            Token::Listener => self.accept(),
            Token::Signals => self.reap(),
            Token::Connection(id) => self.serve(id),
            Token::Worker(id) => self.finish_worker(id),
            Token::Output(slot, which) => {
                if let Some(container) = self.containers.get_mut(&slot) {
                    container.pump_output(which);
                }
            }
            Token::Reader(slot, which, id) => {
                if let Some(container) = self.containers.get_mut(&slot) {
                    container.flush_reader(which, id, ready.failed);
                }
            }
            Token::Stdin(slot) => {
                if let Some(container) = self.containers.get_mut(&slot) {
                    if ready.failed {
                        container.input = None;
                    }
                    container.flush_input();
                }
            }
            Token::Writer(slot, id) => {
                if let Some(container) = self.containers.get_mut(&slot) {
                    container.pump_input(id);
                }
            }
            Token::Oom(slot) => self.oom(slot),
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if self.connections.len() >= MAX_CONNECTIONS || socket.set_nonblocking(true).is_err() {
                eprintln!("a client was refused: {} are connected", self.connections.len());
                continue;
            }
            let id = self.fresh();
            self.connections.insert(id, Connection::new(socket));
        }
    }

    fn fresh(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn hello(&self) -> Hello {
        Hello {
            version: shim_protocol::VERSION,
            sandbox: self.config.sandbox.clone(),
            pid: std::process::id().cast_signed(),
        }
    }

    fn serve(&mut self, id: u32) {
        let hello = self.hello();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let received = connection.flush().and_then(|()| connection.receive(&hello));
        match received {
            Ok(Some(calls)) => {
                for call in calls {
                    self.call(id, call);
                }
            }
            Ok(None) => {
                self.connections.remove(&id);
            }
            Err(error) => {
                eprintln!("client: {error:#}");
                self.connections.remove(&id);
            }
        }
    }

    fn answer(&mut self, (connection, call): (u32, u64), result: Result<Answer, Failure>, fds: Vec<OwnedFd>) {
        let Some(client) = self.connections.get_mut(&connection) else { return };
        if let Err(error) = client.send(&FromShim::Answer { id: call, result }, fds) {
            eprintln!("client: {error:#}");
            self.connections.remove(&connection);
        }
    }

    fn tell(&mut self, event: ShimEvent) {
        let message = FromShim::Event(event);
        self.connections.retain(|_, connection| connection.tell(&message));
    }

    /// Collects every child that ended: first processes of containers, exec'd processes, workers, and orphans that nobody asks about.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.ended(pid.as_raw_nonzero().get(), exit_code(status));
        }
    }

    fn ended(&mut self, pid: i32, code: i32) {
        let slot = self
            .containers
            .iter()
            .find(|(_, container)| container.is_running() && container.record.pid == pid);
        if let Some(slot) = slot.map(|(slot, _)| *slot) {
            return self.container_ended(slot, code);
        }
        if let Some(exec) = self.execs.iter().find(|(_, other)| **other == pid).map(|(exec, _)| *exec) {
            self.execs.remove(&exec);
            return self.tell(ShimEvent::ExecExited { exec, code });
        }
        let expected =
            self.workers.values().any(|worker| matches!(worker.task, Task::Start { .. } | Task::Exec { .. }));
        if expected && self.unclaimed.len() < MAX_UNCLAIMED_EXITS {
            self.unclaimed.insert(pid, code);
        }
    }

    fn container_ended(&mut self, slot: u32, code: i32) {
        self.oom(slot);
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let exit: Exit = container.exited(code);
        let id = container.id.clone();
        let group = (!container.own_pid_namespace).then(|| container.group.clone());
        if let Some(group) = group {
            // Its processes do not end with the first one.
            self.work(None, Task::Kill, &[], move || {
                group.kill(requests::KILL_DEADLINE)?;
                Ok((Outcome::Done, None))
            });
        }
        self.tell(ShimEvent::Exited { container: id, exit });
    }

    fn oom(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        if container.take_oom() {
            let id = container.id.clone();
            self.tell(ShimEvent::Oom { container: id });
        }
    }

    /// Starts a worker; when that fails, its caller is told at once.
    fn work(
        &mut self,
        caller: Option<(u32, u64)>,
        task: Task,
        places: &[OwnedFd],
        work: impl FnOnce() -> worker::Work,
    ) {
        match worker::spawn(self.proof, places, work) {
            Ok(result) => {
                let id = self.fresh();
                self.workers.insert(id, Worker { result, caller, task });
            }
            Err(error) => {
                if let Task::Start { slot, .. } = task {
                    self.containers.remove(&slot);
                }
                self.refuse(caller, FailureKind::Other, format!("{error:#}"));
            }
        }
    }

    fn refuse(&mut self, caller: Option<(u32, u64)>, kind: FailureKind, message: String) {
        match caller {
            Some(caller) => self.answer(caller, Err(Failure { kind, message }), Vec::new()),
            None => eprintln!("worker: {message}"),
        }
    }

    fn finish_worker(&mut self, id: u32) {
        let Some(worker) = self.workers.remove(&id) else { return };
        let (outcome, fd) = worker::receive(&worker.result);
        match (worker.task, outcome) {
            (Task::Start { slot, streams }, Outcome::Running { pid, warnings }) => {
                self.started(worker.caller, slot, pid, (streams, fd), warnings);
            }
            (Task::Exec { exec }, Outcome::Running { pid, .. }) => {
                self.execs.insert(exec, pid);
                if let Some(caller) = worker.caller {
                    let started = Answer::ExecStarted { pid, terminal: fd.is_some() };
                    self.answer(caller, Ok(started), fd.into_iter().collect());
                }
                self.claim(pid);
            }
            (Task::Start { slot, .. }, Outcome::Failed { message }) => {
                self.start_failed(worker.caller, slot, message);
            }
            (Task::Exec { .. }, Outcome::Failed { message }) => {
                self.refuse(worker.caller, FailureKind::Start, message);
            }
            (Task::Delete { container }, Outcome::Done) => {
                self.containers.retain(|_, other| other.id != container);
                if let Some(caller) = worker.caller {
                    self.answer(caller, Ok(Answer::Done), Vec::new());
                }
            }
            (_, Outcome::Failed { message }) => self.refuse(worker.caller, FailureKind::Other, message),
            (_, _) => {}
        }
        if self.workers.is_empty() {
            self.unclaimed.clear();
        }
    }

    fn started(
        &mut self,
        caller: Option<(u32, u64)>,
        slot: u32,
        pid: i32,
        (pipes, terminal): (Pipes, Option<OwnedFd>),
        warnings: Vec<String>,
    ) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        if let Err(error) = connect(container, pipes, terminal) {
            eprintln!("streams of {}: {error:#}", container.id);
        }
        if let Err(error) = container.started(pid) {
            eprintln!("record the start of {}: {error}", container.id);
        }
        let started_at = container.record.started_at;
        let event = ShimEvent::Started { container: container.id.clone(), record: container.record.clone() };
        if let Some(caller) = caller {
            self.answer(caller, Ok(Answer::Started { pid, started_at, warnings }), Vec::new());
        }
        self.tell(event);
        self.claim(pid);
    }

    /// Written down, and told to everybody but who asked: he may be gone, and who came in his place knows the container as starting.
    fn start_failed(&mut self, caller: Option<(u32, u64)>, slot: u32, message: String) {
        if let Some(mut container) = self.containers.remove(&slot) {
            let exit = container.start_failed(&message);
            let event = FromShim::Event(ShimEvent::Exited { container: container.id.clone(), exit });
            let asker = caller.map(|(connection, _)| connection);
            self.connections.retain(|id, connection| Some(*id) == asker || connection.tell(&event));
        }
        self.refuse(caller, FailureKind::Start, message);
    }

    /// The process may have ended before its worker reported it.
    fn claim(&mut self, pid: i32) {
        if let Some(code) = self.unclaimed.remove(&pid) {
            self.ended(pid, code);
        }
    }
}

fn connect(container: &mut Container, pipes: Pipes, terminal: Option<OwnedFd>) -> Result<()> {
    if let Some(terminal) = terminal {
        linux::fds::set_non_blocking(&terminal)?;
        container.stdout = Some(Output::new(terminal.try_clone()?, Which::Stdout));
        if pipes.wants_stdin {
            container.input = Some(Input::new(terminal.try_clone()?));
        }
        container.terminal = Some(terminal);
        return Ok(());
    }
    for fd in [&pipes.stdin, &pipes.stdout, &pipes.stderr].into_iter().flatten() {
        linux::fds::set_non_blocking(fd)?;
    }
    container.stdout = pipes.stdout.map(|fd| Output::new(fd, Which::Stdout));
    container.stderr = pipes.stderr.map(|fd| Output::new(fd, Which::Stderr));
    container.input = pipes.stdin.map(Input::new);
    Ok(())
}

/// As shells and Kubernetes count: 128 + signal for a killed process.
fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}
