//! Telling whoever started this process that it serves: systemd's notification protocol (sd_notify(3)).
//!
//! In: `NOTIFY_SOCKET` of the environment. Out: one datagram per state. Without the variable nothing is sent. Refuses to
//! fail the caller: a supervisor that does not listen is its own problem, and is logged.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

const VARIABLE: &str = "NOTIFY_SOCKET";

/// What to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    Stopping,
}

impl State {
    fn as_text(self) -> &'static str {
        match self {
            Self::Ready => "READY=1",
            Self::Stopping => "STOPPING=1",
        }
    }
}

/// Tells the supervisor, if there is one.
pub fn notify(state: State) {
    let Ok(socket) = std::env::var(VARIABLE) else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(socket, %error, "cannot notify the supervisor");
    }
}

/// A leading `@` stands for the abstract name space of unix(7).
fn send(socket: &str, state: State) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_text().as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::{State, send};

    #[test]
    fn a_supervisor_hears_one_datagram_per_state() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).expect("bind");
        for (state, expected) in [(State::Ready, "READY=1"), (State::Stopping, "STOPPING=1")] {
            send(path.to_str().expect("text"), state).expect("sent");
            let mut buffer = [0; 64];
            let length = supervisor.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
        assert!(send("/nowhere/at/all", State::Ready).is_err());
    }
}
