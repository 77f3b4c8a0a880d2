//! One container as its shim keeps it: streams, log, attachments, and the durable record of its start and exit.
//!
//! ```text
//! Starting --worker reports a pid--> Running --first process reaped--> Exited --deleted--> (forgotten)
//!     \--worker reports a failure--> recorded as exited (and forgotten)
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use linux::cgroup::{Group, OomWatch};
use shim_protocol::{Exit, Record};

use crate::log_file::LogFile;
use crate::stdio::{AttachmentId, Input, MAX_ATTACHMENTS, Output, Progress, Sink, Which};

/// Times that one output is read when its container ended; more than a pipe or a terminal can hold.
const DRAIN_ROUNDS: usize = 128;

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Id.
    pub id: String,
    /// Control group.
    pub group: Group,
    /// OCI bundle.
    pub bundle: PathBuf,
    /// 0 while it starts.
    pub record: Record,
    /// Everybody in it ends with its first process.
    pub own_pid_namespace: bool,
    /// stdout, or everything of a terminal.
    pub stdout: Option<Output>,
    /// stderr.
    pub stderr: Option<Output>,
    /// stdin, while it is open.
    pub input: Option<Input>,
    /// The terminal's master, for resizing.
    pub terminal: Option<OwnedFd>,
    /// Notices kills for memory.
    pub oom: Option<OomWatch>,
    /// Kills for memory that were reported.
    pub oom_kills: u64,
    record_path: PathBuf,
    log: Option<LogFile>,
    stdin_once: bool,
    attachments: AttachmentId,
}

/// Descriptors of an attachment.
#[derive(Debug, Default)]
pub struct Attachment {
    /// To read the container's stdin from.
    pub stdin: Option<OwnedFd>,
    /// To write its stdout to.
    pub stdout: Option<OwnedFd>,
    /// To write its stderr to.
    pub stderr: Option<OwnedFd>,
}

impl Container {
    /// A container that is about to start.
    pub fn new(request: &shim_protocol::StartContainer, group: Group) -> io::Result<Container> {
        Ok(Container {
            id: request.container.clone(),
            group,
            bundle: request.bundle.clone(),
            record: Record::default(),
            own_pid_namespace: request.own_pid_namespace,
            stdout: None,
            stderr: None,
            input: None,
            terminal: None,
            oom: None,
            oom_kills: 0,
            record_path: request.record.clone(),
            log: request.log.as_deref().map(LogFile::open).transpose()?,
            stdin_once: request.stdin_once,
            attachments: 0,
        })
    }

    /// Whether its first process runs.
    pub fn is_running(&self) -> bool {
        self.record.pid > 0 && self.record.exit.is_none()
    }

    /// The first process runs: write that down, and watch for kills.
    pub fn started(&mut self, pid: i32) -> io::Result<()> {
        self.record = Record { pid, started_at: shim_protocol::now(), exit: None };
        self.oom = OomWatch::new(&self.group).ok();
        write_record(&self.record_path, &self.record)
    }

    /// There will be no first process.
    pub fn start_failed(&mut self, message: &str) -> Exit {
        let message = format!("{}: {message}", shim_protocol::START_FAILED);
        let exit = Exit::start_error(message, shim_protocol::now());
        self.record.exit = Some(exit.clone());
        if let Err(error) = write_record(&self.record_path, &self.record) {
            eprintln!("record the failed start of {}: {error}", self.id);
        }
        exit
    }

    /// The first process ended: the rest of its output goes to the log, then the record is made durable.
    pub fn exited(&mut self, code: i32) -> Exit {
        for which in [Which::Stdout, Which::Stderr] {
            for _ in 0..DRAIN_ROUNDS {
                if self.pump_output(which) != Progress::Moved {
                    break;
                }
            }
        }
        self.input = None;
        let kills = linux::cgroup::oom_kills(&self.group);
        let exit = Exit { code, finished_at: shim_protocol::now(), oom_killed: kills > 0, ..Exit::default() };
        self.record.exit = Some(exit.clone());
        if let Err(error) = write_record(&self.record_path, &self.record) {
            eprintln!("record the exit of {}: {error}", self.id);
        }
        self.oom = None;
        if self.own_pid_namespace {
            // Nobody is left who could write; a terminal or pipe that somebody else holds open must not keep attachments waiting.
            self.end_output(Which::Stdout);
            self.end_output(Which::Stderr);
        }
        exit
    }

    /// Moves output on; at its end closes it.
    pub fn pump_output(&mut self, which: Which) -> Progress {
        let mut gone = Vec::new();
        let (output, log) = match which {
            Which::Stdout => (&mut self.stdout, &mut self.log),
            Which::Stderr => (&mut self.stderr, &mut self.log),
        };
        let Some(output) = output.as_mut() else { return Progress::Ended };
        let progress = output.pump(log.as_mut(), &mut gone);
        if progress == Progress::Ended {
            self.end_output(which);
        }
        for id in gone {
            self.detach(id);
        }
        progress
    }

    fn end_output(&mut self, which: Which) {
        let output = match which {
            Which::Stdout => self.stdout.take(),
            Which::Stderr => self.stderr.take(),
        };
        let Some(mut output) = output else { return };
        output.finish(self.log.as_mut());
        for (_, sink) in &mut output.readers {
            // What does not fit into a reader's pipe now is lost to it; the log has all of it.
            let _ = sink.flush();
        }
    }

    /// Moves attached input on; at its end lets go of the writer, and of stdin itself when it is served once.
    pub fn pump_input(&mut self, writer: AttachmentId) {
        let Some(input) = self.input.as_mut() else { return };
        if input.pump(writer) == Progress::Ended {
            input.writers.retain(|(id, _)| *id != writer);
            if self.stdin_once && input.writers.is_empty() && !input.sink.is_pending() {
                self.input = None;
            }
        }
    }

    /// Feeds what waits for the container to read its stdin.
    pub fn flush_input(&mut self) {
        let Some(input) = self.input.as_mut() else { return };
        let failed = input.sink.flush().is_err();
        let served =
            self.stdin_once && self.attachments > 0 && input.writers.is_empty() && !input.sink.is_pending();
        if failed || served {
            self.input = None;
        }
    }

    /// Joins the streams.
    pub fn attach(&mut self, attachment: Attachment) -> Result<(), &'static str> {
        let readers =
            self.stdout.iter().chain(&self.stderr).map(|output| output.readers.len()).max().unwrap_or(0);
        let writers = self.input.as_ref().map_or(0, |input| input.writers.len());
        if readers.max(writers) >= MAX_ATTACHMENTS {
            return Err("too many attachments");
        }
        self.attachments += 1;
        let id = self.attachments;
        for (fd, output) in [(attachment.stdout, &mut self.stdout), (attachment.stderr, &mut self.stderr)] {
            if let (Some(fd), Some(output)) = (fd, output) {
                output.readers.push((id, Sink::new(fd)));
            }
        }
        if let (Some(fd), Some(input)) = (attachment.stdin, &mut self.input) {
            input.writers.push((id, fd));
        }
        Ok(())
    }

    /// Leaves the streams.
    pub fn detach(&mut self, id: AttachmentId) {
        for output in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            output.readers.retain(|(other, _)| *other != id);
        }
        if let Some(input) = &mut self.input {
            input.writers.retain(|(other, _)| *other != id);
        }
    }

    /// Writes to an attached reader what waits for it; lets go of it when it is gone.
    pub fn flush_reader(&mut self, which: Which, id: AttachmentId, failed: bool) {
        let output = match which {
            Which::Stdout => &mut self.stdout,
            Which::Stderr => &mut self.stderr,
        };
        let Some(output) = output else { return };
        let sink = output.readers.iter_mut().find(|(other, _)| *other == id);
        let gone = sink.is_some_and(|(_, sink)| sink.flush().is_err()) || failed;
        if gone {
            self.detach(id);
        }
    }

    /// Opens the log anew.
    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), LogFile::reopen)
    }

    /// New kills for memory since the last call.
    pub fn take_oom(&mut self) -> bool {
        if let Some(watch) = &self.oom {
            watch.acknowledge();
        }
        let kills = linux::cgroup::oom_kills(&self.group);
        std::mem::replace(&mut self.oom_kills, kills) < kills
    }
}

fn write_record(path: &Path, record: &Record) -> io::Result<()> {
    linux::files::append_line(path, &serde_json::to_vec(record)?)
}
