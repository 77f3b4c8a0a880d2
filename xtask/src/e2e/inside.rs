//! The program inside the virtual machine: runs what it is told over a virtio port, and says how each command ended.
//!
//! In: one [`Request`] a line. Out: one [`Answer`] a line, first of all [`Answer::Hello`]. One command at a time; what it prints
//! goes out as it comes. It decides nothing and checks nothing: a command that did not run to its end is never a success, since
//! only [`Answer::Ended`] says so.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The name of the virtio port, and where udev links it.
pub const PORT: &str = "orlop";
const PORTS: &str = "/dev/virtio-ports";
/// How much of one line is passed on; the rest of it comes as further lines.
const LINE_LIMIT: u64 = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub id: u64,
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// It is ended after this many seconds.
    pub limit_seconds: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The machine has booted so far that commands can run.
    Hello { kernel: String },
    /// What the running command printed.
    Line(String),
    /// The exit code, or none for a command that a signal ended.
    Ended { id: u64, code: Option<i32> },
    /// The command could not be run.
    Failed { id: u64, error: String },
}

/// Serves until the other side goes away.
pub fn run() -> Result<()> {
    let path = Path::new(PORTS).join(PORT);
    let port = OpenOptions::new().read(true).write(true).open(&path);
    let port = port.with_context(|| format!("open {}", path.display()))?;
    let requests = BufReader::new(port.try_clone().context("share the port")?);
    let kernel =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    say(&port, &Answer::Hello { kernel: kernel.trim().to_owned() })?;
    for line in requests.lines() {
        let request: Request =
            serde_json::from_str(&line.context("read a request")?).context("parse a request")?;
        let ended = execute(&request, |line| say(&port, &Answer::Line(line)));
        let id = request.id;
        say(&port, &ended.unwrap_or_else(|error| Answer::Failed { id, error: format!("{error:#}") }))?;
    }
    Ok(())
}

fn say(mut port: impl Write, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    port.write_all(&line).context("write an answer")
}

fn execute(request: &Request, mut pass_on: impl FnMut(String) -> Result<()>) -> Result<Answer> {
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &request.limit_seconds.to_string()]).args(&request.command);
    command.envs(request.environment.iter().cloned());
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("start the command")?;
    // The command keeps the only writers.
    drop(command);
    let mut output = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut limited = std::io::Read::take(&mut output, LINE_LIMIT);
        if limited.read_until(b'\n', &mut line).context("read the command's output")? == 0 {
            break;
        }
        pass_on(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned())?;
    }
    let status = child.wait().context("wait for the command")?;
    Ok(Answer::Ended { id: request.id, code: status.code() })
}
