//! Running one plugin: find the executable, give it environment and configuration, read its one document.
//!
//! Owns the process: its three pipes with their limits, its time limit, and its end. The child is killed when the
//! future is dropped or the limit is reached, with what it started in its process group if that is its own. It refuses
//! output that is not one JSON object, and turns an error document into [`ExecError::Refused`].

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command as Process},
};

use crate::{
    ErrorReply,
    json::{DOCUMENT_LIMIT, JsonError, parse_object},
};

/// Bytes of what a plugin said that are kept for the error: the last ones.
const TAIL_LIMIT: usize = 16 << 10;
/// A plugin that takes longer is stuck: kubelet gives up on a sandbox after four minutes.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(220);

/// The verbs of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    /// As `CNI_COMMAND` spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One call of one plugin. Variables of this process are inherited; those in `env` win.
#[derive(Debug, Clone)]
pub struct Call {
    pub plugin: PathBuf,
    pub verb: Verb,
    /// `CNI_*` variables besides `CNI_COMMAND`.
    pub env: Vec<(&'static str, OsString)>,
    /// Standard input.
    pub config: Vec<u8>,
    pub time_limit: Duration,
    pub group: Group,
}

/// Which process group a plugin runs in: what a kill of it takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// One of its own, killed whole: a plugin that it delegates to, or a shell's child, does not go on after it.
    Own,
    /// The caller's, for a plugin that delegates: who kills that one's group kills this one too.
    Callers,
}

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    #[error("invalid plugin name {name:?}: expected the name of an executable, not a path")]
    InvalidName { name: String },
    #[error("failed to find plugin {name:?} in path [{}]", display_dirs(.searched))]
    NotFound { name: String, searched: Vec<PathBuf> },
    #[error("start {verb} of {plugin}: {error}")]
    Start { verb: Verb, plugin: PathBuf, error: io::Error },
    #[error("talk to {plugin} during {verb}: {error}")]
    Pipe { verb: Verb, plugin: PathBuf, error: io::Error },
    #[error("{verb} of {plugin}: no answer within {seconds} s, killed")]
    TimedOut { verb: Verb, plugin: PathBuf, seconds: u64 },
    #[error("{verb} of {plugin}: more than {} bytes on standard output, killed", DOCUMENT_LIMIT)]
    TooMuchOutput { verb: Verb, plugin: PathBuf },
    /// The plugin said no, by the protocol.
    #[error("{verb} of {plugin}: {reply}")]
    Refused { verb: Verb, plugin: PathBuf, reply: ErrorReply },
    #[error("{verb} of {plugin}: {status} without an error document{}{}", display_tail("output", .stdout), display_tail("error", .stderr))]
    Failed { verb: Verb, plugin: PathBuf, status: ExitStatus, stdout: String, stderr: String },
    #[error("{verb} of {plugin}: output: {error}{}", display_tail("error", .stderr))]
    Output { verb: Verb, plugin: PathBuf, error: JsonError, stderr: String },
}

impl ExecError {
    /// The plugin's own error document, if that is what failed.
    pub fn reply(&self) -> Option<&ErrorReply> {
        match self {
            Self::Refused { reply, .. } => Some(reply),
            _ => None,
        }
    }

    /// Whether the plugin may have done a part of its work, and so needs an undo: it began, and did not say no.
    pub fn is_cut_off(&self) -> bool {
        match self {
            Self::InvalidName { .. } | Self::NotFound { .. } | Self::Start { .. } | Self::Refused { .. } => {
                false
            }
            Self::Pipe { .. }
            | Self::TimedOut { .. }
            | Self::TooMuchOutput { .. }
            | Self::Failed { .. }
            | Self::Output { .. } => true,
        }
    }
}

/// Looks for an executable of this name in the folders, in their order.
///
/// # Errors
/// When the name is a path, or no folder has a regular file of that name.
pub fn find_plugin(name: &str, dirs: &[PathBuf]) -> Result<PathBuf, ExecError> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(ExecError::InvalidName { name: name.to_owned() });
    }
    let mut candidates = dirs.iter().filter(|dir| !dir.as_os_str().is_empty()).map(|dir| dir.join(name));
    let found = candidates.find(|path| path.is_file());
    found.ok_or_else(|| ExecError::NotFound { name: name.to_owned(), searched: dirs.to_vec() })
}

impl Call {
    /// Runs the plugin to its end. The document is none when a successful plugin printed nothing (DEL, CHECK, GC and
    /// STATUS do).
    ///
    /// # Errors
    /// See [`ExecError`].
    pub async fn run(&self) -> Result<Option<Map<String, Value>>, ExecError> {
        let mut running = self.start()?;
        let finished = tokio::time::timeout(self.time_limit, self.converse(&mut running)).await;
        let Ok(finished) = finished else {
            running.kill().await;
            let seconds = self.time_limit.as_secs();
            return Err(ExecError::TimedOut { verb: self.verb, plugin: self.plugin.clone(), seconds });
        };
        let Output { status, stdout, stderr } = finished?;
        self.judge(status, &stdout, stderr)
    }

    fn start(&self) -> Result<Running, ExecError> {
        let mut process = Process::new(&self.plugin);
        process.env("CNI_COMMAND", self.verb.as_str());
        for (name, value) in &self.env {
            process.env(name, value);
        }
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        if self.group == Group::Own {
            process.process_group(0);
        }
        let child = process.spawn().map_err(|error| ExecError::Start {
            verb: self.verb,
            plugin: self.plugin.clone(),
            error,
        })?;
        Ok(Running { child, group: self.group })
    }

    async fn converse(&self, running: &mut Running) -> Result<Output, ExecError> {
        let child = &mut running.child;
        let failed = |error| ExecError::Pipe { verb: self.verb, plugin: self.plugin.clone(), error };
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let feed = async {
            let Some(mut stdin) = stdin else { return Ok(()) };
            match stdin.write_all(&self.config).await {
                // A plugin need not read its configuration (VERSION does not).
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
                _ => Ok(()),
            }
        };
        let (fed, stdout, stderr) = tokio::join!(feed, read_limited(stdout), read_tail(stderr));
        fed.map_err(failed)?;
        let stdout = stdout.map_err(failed)?;
        let stderr = stderr.map_err(failed)?;
        if stdout.len() > DOCUMENT_LIMIT {
            running.kill().await;
            return Err(ExecError::TooMuchOutput { verb: self.verb, plugin: self.plugin.clone() });
        }
        let status = child.wait().await.map_err(failed)?;
        Ok(Output { status, stdout, stderr })
    }

    fn judge(
        &self,
        status: ExitStatus,
        stdout: &[u8],
        stderr: String,
    ) -> Result<Option<Map<String, Value>>, ExecError> {
        let (verb, plugin) = (self.verb, self.plugin.clone());
        if !status.success() {
            return Err(match serde_json::from_slice::<ErrorReply>(stdout) {
                Ok(reply) if reply.code != 0 || !reply.msg.is_empty() => {
                    ExecError::Refused { verb, plugin, reply }
                }
                _ => {
                    let stdout = text(&stdout[stdout.len().saturating_sub(TAIL_LIMIT)..]);
                    ExecError::Failed { verb, plugin, status, stdout, stderr }
                }
            });
        }
        if stdout.trim_ascii().is_empty() {
            return Ok(None);
        }
        let document = parse_object(stdout);
        document.map(Some).map_err(|error| ExecError::Output { verb, plugin, error, stderr })
    }
}

/// A started plugin; one that is dropped before its end was awaited is killed.
struct Running {
    child: Child,
    group: Group,
}

impl Running {
    /// The error that matters is why; the child is ours, so it can be killed and reaped.
    async fn kill(&mut self) {
        self.kill_group();
        let _ = self.child.kill().await;
    }

    /// Until the child's end was awaited, no other group has its number. The kernel lets no fork escape such a kill.
    fn kill_group(&self) {
        let id = self.child.id().filter(|_| self.group == Group::Own);
        if let Some(group) = id.and_then(|id| Pid::from_raw(id.cast_signed())) {
            // One that is gone needs no kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
    }
}

struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

/// Reads to the end, or to one byte more than a document may have.
async fn read_limited(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(DOCUMENT_LIMIT as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Reads to the end, keeping the last bytes.
async fn read_tail(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut pipe) = pipe else { return Ok(String::new()) };
    let mut tail = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = pipe.read(&mut chunk).await?;
        if count == 0 {
            return Ok(text(&tail));
        }
        tail.extend_from_slice(&chunk[..count]);
        if tail.len() > 2 * TAIL_LIMIT {
            tail.drain(..tail.len() - TAIL_LIMIT);
        }
    }
}

fn display_dirs(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir: &PathBuf| dir.as_path()).map(Path::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn display_tail(stream: &str, tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!("; standard {stream}: {tail}") }
}

#[cfg(test)]
mod tests;
