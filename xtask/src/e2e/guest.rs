//! A running virtual machine as the outside sees it: QEMU's process and the commands that run inside.
//!
//! QEMU's standard input and output are the port that [`super::inside`] serves. Every wait has a deadline. Dropping a
//! [`Guest`] ends QEMU; should this process be killed before, the pid namespace that both are in ends it.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::inside::{Answer, Request};

#[cfg(test)]
mod tests;

/// Answers that wait to be looked at; then QEMU waits.
const WAITING_ANSWERS: usize = 1024;
/// How much longer than the command's own limit its end is waited for.
const GRACE: Duration = Duration::from_secs(30);
/// How many of a failed command's last lines its error repeats.
const ERROR_LINES: usize = 15;
const EXIT_PAUSE: Duration = Duration::from_millis(50);

pub struct Guest {
    qemu: Child,
    requests: ChildStdin,
    answers: Receiver<Answer>,
    console: PathBuf,
    asked: u64,
}

/// What to run inside.
pub struct Call<'a> {
    pub command: &'a [&'a str],
    pub environment: &'a [(&'a str, String)],
    pub limit: Duration,
}

impl<'a> Call<'a> {
    pub fn new(command: &'a [&'a str], limit: Duration) -> Self {
        Self { command, environment: &[], limit }
    }
}

impl Guest {
    /// Starts QEMU; `console` is where it writes the serial console.
    pub fn start(mut qemu: Command, console: PathBuf) -> Result<Self> {
        let mut qemu = qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start QEMU")?;
        let requests = qemu.stdin.take().context("QEMU has no input")?;
        let output = qemu.stdout.take().context("QEMU has no output")?;
        let (sender, answers) = mpsc::sync_channel(WAITING_ANSWERS);
        std::thread::spawn(move || pass_on(output, &sender));
        Ok(Self { qemu, requests, answers, console, asked: 0 })
    }

    /// Waits until the program inside says hello; the kernel's version.
    pub fn wait_hello(&mut self, limit: Duration) -> Result<String> {
        match self.next(Instant::now() + limit)? {
            Answer::Hello { kernel } => Ok(kernel),
            other => bail!("the machine said {other:?} before hello"),
        }
    }

    /// Runs a command that must succeed; what it printed.
    pub fn run(&mut self, call: &Call<'_>, mut each_line: impl FnMut(&str)) -> Result<String> {
        let mut output = String::new();
        let code = self.run_any(call, |line| {
            each_line(line);
            output.push_str(line);
            output.push('\n');
        })?;
        let name = call.command.join(" ");
        match code {
            Some(0) => Ok(output),
            Some(124 | 137) => bail!("`{name}` was ended after {:?}: {}", call.limit, last_lines(&output)),
            Some(code) => bail!("`{name}` ended with {code}: {}", last_lines(&output)),
            None => bail!("`{name}` was ended by a signal: {}", last_lines(&output)),
        }
    }

    /// Runs a command; its exit code.
    pub fn run_any(&mut self, call: &Call<'_>, mut each_line: impl FnMut(&str)) -> Result<Option<i32>> {
        self.asked += 1;
        let request = Request {
            id: self.asked,
            command: call.command.iter().map(|word| (*word).to_owned()).collect(),
            environment: call
                .environment
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            limit_seconds: call.limit.as_secs(),
        };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.requests.write_all(&line).context("ask the machine")?;
        let deadline = Instant::now() + call.limit + GRACE;
        loop {
            match self.next(deadline)? {
                Answer::Line(text) => each_line(&text),
                Answer::Ended { id, code } if id == self.asked => return Ok(code),
                Answer::Failed { id, error } if id == self.asked => bail!("run {:?}: {error}", call.command),
                // Of a command that was given up.
                Answer::Ended { .. } | Answer::Failed { .. } => {}
                Answer::Hello { .. } => bail!("the machine started again by itself"),
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Answer> {
        match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine does not answer; its console ends with: {}", self.last_console())
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("QEMU ended; the console ends with: {}", self.last_console())
            }
        }
    }

    fn last_console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&bytes))
    }

    /// Waits until the machine has powered itself off.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.qemu.try_wait().context("wait for QEMU")? {
                ensure!(status.success(), "QEMU ended with {status}");
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the machine is still on; its console: {}",
                self.last_console()
            );
            std::thread::sleep(EXIT_PAUSE);
        }
    }

    /// Ends QEMU at once, as if the machine had lost its power.
    pub fn cut(&mut self) -> Result<()> {
        self.qemu.kill().context("kill QEMU")?;
        self.qemu.wait().context("wait for QEMU").map(drop)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.cut();
    }
}

fn pass_on(output: ChildStdout, answers: &SyncSender<Answer>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        let answer = match serde_json::from_str(&line) {
            Ok(answer) => answer,
            Err(_) => Answer::Line(line),
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// The end of a text, for an error.
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(ERROR_LINES);
    lines[from..].iter().map(|line| format!("\n    {line}")).collect()
}
