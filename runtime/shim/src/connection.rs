//! One client of the shim's socket: bytes and descriptors in, frames out, never waiting.
//!
//! Refuses clients of another protocol version, frames that are too long, and clients that do not read their answers.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use shim_protocol::{Call, FromShim, Hello};

/// Bytes of answers and events that wait for a client before it is dropped.
const MAX_OUTGOING_BYTES: usize = 8 * 1024 * 1024;
/// Descriptors that arrived and that no request took yet.
const MAX_WAITING_FDS: usize = 64;
/// Bytes read by one call.
const CHUNK_BYTES: usize = 16 * 1024;

/// A client.
#[derive(Debug)]
pub struct Connection {
    /// Its socket.
    pub socket: UnixStream,
    greeted: bool,
    incoming: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    outgoing: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// Takes a connected, non-blocking socket.
    pub fn new(socket: UnixStream) -> Self {
        Connection {
            socket,
            greeted: false,
            incoming: Vec::new(),
            fds: VecDeque::new(),
            outgoing: VecDeque::new(),
        }
    }

    /// Reads what is there and returns the calls that became complete. `Ok(None)`: the client is gone.
    pub fn receive(&mut self, hello: &Hello) -> Result<Option<Vec<Call>>> {
        let mut chunk = [0_u8; CHUNK_BYTES];
        let mut calls = Vec::new();
        loop {
            let mut fds = Vec::new();
            match linux::scm::receive(&self.socket, &mut chunk, &mut fds) {
                Ok(0) => return Ok(None),
                Ok(count) => self.incoming.extend_from_slice(&chunk[..count]),
                Err(error) if error.errno() == Some(libc::EAGAIN) => return Ok(Some(calls)),
                Err(error) if error.errno() == Some(libc::ECONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            self.fds.extend(fds);
            if self.fds.len() > MAX_WAITING_FDS {
                bail!("client sent more than {MAX_WAITING_FDS} descriptors without requests for them");
            }
            if !self.greeted && !self.greet(hello)? {
                continue;
            }
            while let Some(call) = shim_protocol::take_frame::<Call>(&mut self.incoming)? {
                calls.push(call);
            }
        }
    }

    fn greet(&mut self, hello: &Hello) -> Result<bool> {
        let Some(theirs) = shim_protocol::take_frame::<Hello>(&mut self.incoming)? else { return Ok(false) };
        self.send(hello, Vec::new())?;
        if theirs.version != hello.version {
            bail!("client speaks version {} and this shim {}", theirs.version, hello.version);
        }
        self.greeted = true;
        Ok(true)
    }

    /// The descriptors that belong to the oldest request that did not take its own yet.
    pub fn take_fds(&mut self, count: usize) -> Result<Vec<OwnedFd>> {
        if self.fds.len() < count {
            bail!("{count} descriptors announced, {} arrived", self.fds.len());
        }
        Ok(self.fds.drain(..count).collect())
    }

    /// Queues a message and sends what can be sent.
    pub fn send(&mut self, message: &impl Serialize, fds: Vec<OwnedFd>) -> Result<()> {
        let bytes = shim_protocol::encode(message)?;
        self.outgoing.push_back(Outgoing { bytes, sent: 0, fds });
        let waiting: usize = self.outgoing.iter().map(|frame| frame.bytes.len() - frame.sent).sum();
        self.flush()?;
        if waiting > MAX_OUTGOING_BYTES && self.is_pending() {
            bail!("client does not read its answers");
        }
        Ok(())
    }

    /// Sends what can be sent.
    pub fn flush(&mut self) -> Result<()> {
        while let Some(frame) = self.outgoing.front_mut() {
            let fds: Vec<_> = frame.fds.iter().map(AsFd::as_fd).collect();
            match linux::scm::send(&self.socket, &frame.bytes[frame.sent..], &fds) {
                Ok(count) => {
                    frame.sent += count;
                    frame.fds.clear();
                }
                Err(error) if error.errno() == Some(libc::EAGAIN) => return Ok(()),
                Err(error) => return Err(error).context("answer a client"),
            }
            if frame.sent == frame.bytes.len() {
                self.outgoing.pop_front();
            }
        }
        Ok(())
    }

    /// Whether answers wait for the client to read.
    pub fn is_pending(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends an event; false when the client has to be dropped.
    pub fn tell(&mut self, event: &FromShim) -> bool {
        !self.greeted || self.send(event, Vec::new()).is_ok()
    }
}
