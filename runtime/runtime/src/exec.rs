//! A process in a running container, and the streams to it.
//!
//! Without a terminal the streams are pipes that the process itself holds: neither the shim nor the runtime copies bytes. With one they are
//! the terminal's master. Refuses nothing; [`crate::Runtime::exec`] has checked the arguments.

use std::os::fd::OwnedFd;

use tokio::sync::oneshot;

use crate::error::Error;
use crate::streams::{ReadStream, WriteStream};

/// ExecRequest.
#[derive(Clone, Debug, Default)]
pub struct ExecConfig {
    /// Command and arguments; no shell.
    pub command: Vec<String>,
    /// Wants stdin.
    pub stdin: bool,
    /// Wants stdout.
    pub stdout: bool,
    /// Wants stderr; must be false with a terminal.
    pub stderr: bool,
    /// Wants a terminal.
    pub tty: bool,
}

/// Result of a finished exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSyncResult {
    /// 128 + signal for a killed one.
    pub exit_code: i32,
    /// At most [`crate::EXEC_SYNC_OUTPUT_BYTES`].
    pub stdout: Vec<u8>,
    /// At most [`crate::EXEC_SYNC_OUTPUT_BYTES`].
    pub stderr: Vec<u8>,
}

/// A running exec or an attachment. Dropping it closes the streams; the process is not killed by that (a terminal hangs up).
#[derive(Debug)]
pub struct ExecSession {
    /// To the process; drop it to close.
    pub stdin: Option<WriteStream>,
    /// From the process; with a terminal everything arrives here.
    pub stdout: Option<ReadStream>,
    /// From the process.
    pub stderr: Option<ReadStream>,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) exit: oneshot::Receiver<Result<i32, Error>>,
}

/// The part of a session that sets the terminal's size; it can be kept apart from the streams.
#[derive(Debug)]
pub struct Resizer {
    terminal: OwnedFd,
}

impl Resizer {
    /// Sets the terminal's size in characters.
    ///
    /// # Errors
    /// The kernel's, with the name of the call.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), Error> {
        linux::pty::set_window_size(&self.terminal, linux::pty::WindowSize { columns, rows })
            .map_err(|source| Error::System { operation: "resize terminal".into(), source })
    }
}

impl ExecSession {
    /// A handle for resizing; `None` without a terminal.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn resizer(&self) -> Result<Option<Resizer>, Error> {
        let Some(terminal) = &self.terminal else { return Ok(None) };
        let terminal = terminal
            .try_clone()
            .map_err(|source| Error::Io { operation: "duplicate terminal".into(), source })?;
        Ok(Some(Resizer { terminal }))
    }

    /// Waits for the process to end: its exit code, 128 + signal for a killed one. Cancel safe; later calls after the first answer fail.
    ///
    /// # Errors
    /// [`Error::ShimGone`] when the shim died meanwhile.
    pub async fn wait(&mut self) -> Result<i32, Error> {
        match (&mut self.exit).await {
            Ok(result) => result,
            Err(_) => Err(Error::ShimGone { sandbox: String::new() }),
        }
    }
}
