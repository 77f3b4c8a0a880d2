//! What the loop waits for, derived from the keeper's state, and what came of it.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags};

use super::Keeper;
use crate::stdio::{AttachmentId, Which};

/// What a descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    Signals,
    Connection(u32),
    Worker(u32),
    /// Output of a container.
    Output(u32, Which),
    /// An attached reader of an output.
    Reader(u32, Which, AttachmentId),
    /// A container's stdin.
    Stdin(u32),
    /// An attached writer of a container's stdin.
    Writer(u32, AttachmentId),
    Oom(u32),
}

/// Something is ready.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub token: Token,
    /// The other side is gone.
    pub failed: bool,
}

#[derive(Default)]
struct WatchList<'a> {
    tokens: Vec<Token>,
    fds: Vec<PollFd<'a>>,
}

impl<'a> WatchList<'a> {
    fn add(&mut self, token: Token, fd: BorrowedFd<'a>, flags: PollFlags) {
        self.tokens.push(token);
        self.fds.push(PollFd::from_borrowed_fd(fd, flags));
    }
}

fn when(condition: bool, flags: PollFlags) -> PollFlags {
    if condition { flags } else { PollFlags::empty() }
}

impl Keeper {
    /// Waits until something is ready. Results of workers come before signals: a process is then known before its exit is handled.
    pub(super) fn wait(&self) -> Result<Vec<Ready>> {
        let mut list = WatchList::default();
        for (id, worker) in &self.workers {
            list.add(Token::Worker(*id), worker.result.as_fd(), PollFlags::IN);
        }
        list.add(Token::Signals, self.signals.as_fd(), PollFlags::IN);
        list.add(Token::Listener, self.listener.as_fd(), PollFlags::IN);
        for (id, connection) in &self.connections {
            let flags = PollFlags::IN | when(connection.is_pending(), PollFlags::OUT);
            list.add(Token::Connection(*id), connection.socket.as_fd(), flags);
        }
        self.watch_streams(&mut list);
        match rustix::event::poll(&mut list.fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ended = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        let happened = list.tokens.iter().zip(&list.fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(happened
            .map(|(token, fd)| Ready { token: *token, failed: fd.revents().intersects(ended) })
            .collect())
    }

    fn watch_streams<'a>(&'a self, list: &mut WatchList<'a>) {
        for (slot, container) in &self.containers {
            for (which, output) in [(Which::Stdout, &container.stdout), (Which::Stderr, &container.stderr)] {
                let Some(output) = output else { continue };
                // A held-back output is left out entirely: its hang-up would be reported again and again.
                if !output.is_held_back() {
                    list.add(Token::Output(*slot, which), output.fd.as_fd(), PollFlags::IN);
                }
                for (id, sink) in &output.readers {
                    let flags = when(sink.is_pending(), PollFlags::OUT);
                    list.add(Token::Reader(*slot, which, *id), sink.fd.as_fd(), flags);
                }
            }
            if let Some(input) = &container.input {
                // A terminal's hang-up is seen, and handled, on its output side.
                if container.terminal.is_none() || input.sink.is_pending() {
                    let flags = when(input.sink.is_pending(), PollFlags::OUT);
                    list.add(Token::Stdin(*slot), input.sink.fd.as_fd(), flags);
                }
                for (id, fd) in input.writers.iter().filter(|_| !input.is_held_back()) {
                    list.add(Token::Writer(*slot, *id), fd.as_fd(), PollFlags::IN);
                }
            }
            if let Some(oom) = &container.oom {
                let flags = if oom.is_readable_kind() { PollFlags::IN } else { PollFlags::PRI };
                list.add(Token::Oom(*slot), oom.as_fd(), flags);
            }
        }
    }
}
