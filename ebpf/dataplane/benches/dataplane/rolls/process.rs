//! A part of the run that is a process of its own: this executable in another role, told what to do in lines, and answering in lines.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<BufReader<ChildStdout>>,
}

impl Process {
    pub fn start(role: &str, arguments: &[&str]) -> Self {
        let own = std::env::current_exe().expect("the own executable");
        let mut command = Command::new(own);
        command.args([super::ROLE, role]).args(arguments);
        Self::start_command(command)
    }

    /// The same of another program.
    pub fn start_command(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start a process");
        let (input, output) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        Self { child, input, output }
    }

    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("it is told nothing any more");
        writeln!(input, "{line}").expect("tell a process");
    }

    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        let output = self.output.as_mut().expect("somebody else hears it");
        output.read_line(&mut line).expect("hear a process");
        assert!(!line.is_empty(), "a process of the bench has ended");
        line.trim_end().to_owned()
    }

    /// Tells it to do something and waits until that is done.
    pub fn ask(&mut self, line: &str) {
        self.tell(line);
        assert_eq!(self.hear(), "ok", "{line}");
    }

    /// For somebody who hears it from now on.
    pub fn take_output(&mut self) -> BufReader<ChildStdout> {
        self.output.take().expect("nobody else hears it")
    }

    /// SIGKILL, whatever it is about.
    pub fn kill(mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("kill a process");
    }

    /// It ends by itself once it is told nothing any more.
    pub fn end(mut self) {
        self.input = None;
        let status = self.child.wait().expect("wait for a process");
        assert!(status.success(), "{status}");
    }
}

/// What a process is told, line by line.
pub fn orders() -> impl Iterator<Item = String> {
    std::io::stdin().lines().map(|line| line.expect("read the orders"))
}
