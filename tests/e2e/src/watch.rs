//! A watch of objects through kubectl: every event with the moment at which it arrived.

use std::io::BufReader;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kubectl::Kubectl;

/// Events that nobody has taken yet; kubectl waits when there are more, and their moments are late then.
const UNREAD: usize = 10_000;

/// What a watch has to say.
pub enum Said {
    /// `{type, object}`.
    Event(Instant, Value),
    Nothing,
    /// The watch has ended: what happens from now on is not seen.
    Ended,
}

pub struct Watch {
    kubectl: Child,
    events: Receiver<(Instant, Value)>,
}

impl Watch {
    /// Begins with an event for each object that there is.
    pub fn start(kubectl: &Kubectl, kind: &str) -> Self {
        let mut command = kubectl.command(&["get", kind, "--watch", "--output-watch-events", "-o", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("start kubectl");
        let output = child.stdout.take().expect("its output");
        let (sender, events) = sync_channel(UNREAD);
        // The moment counts at which an event arrives, so nothing else is done here.
        std::thread::spawn(move || {
            let all = serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter();
            for event in all.map_while(Result::ok) {
                if sender.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
        Self { kubectl: child, events }
    }

    /// The next event, if there is one within `limit`.
    pub fn next(&self, limit: Duration) -> Said {
        match self.events.recv_timeout(limit) {
            Ok((at, event)) => Said::Event(at, event),
            Err(RecvTimeoutError::Timeout) => Said::Nothing,
            Err(RecvTimeoutError::Disconnected) => Said::Ended,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
