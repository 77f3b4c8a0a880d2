//! What happens without being asked for, and the subscription to it.
//!
//! A bounded broadcast: a reader that falls behind by more than [`EVENT_QUEUE_EVENTS`] is told to list again; nobody waits for it.

use tokio::sync::broadcast;

use crate::container::ContainerId;
use crate::sandbox::SandboxId;

/// Events kept for the slowest reader.
pub const EVENT_QUEUE_EVENTS: usize = 1024;

/// Something changed in a sandbox or a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container was created.
    ContainerCreated {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Itself.
        container: ContainerId,
    },
    /// A container runs.
    ContainerStarted {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Itself.
        container: ContainerId,
    },
    /// A container exited; its log is complete and its exit code recorded.
    ContainerExited {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Itself.
        container: ContainerId,
        /// 128 + signal for a killed one.
        exit_code: i32,
    },
    /// The kernel killed a process of the container for memory; the container may live on.
    ContainerOom {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Itself.
        container: ContainerId,
    },
    /// The sandbox's shim is gone: its containers are killed and reported as exited, the sandbox is not ready.
    SandboxGone {
        /// Itself.
        sandbox: SandboxId,
    },
    /// The reader was too slow and missed events: call `Runtime::list` again.
    Lagged,
}

/// A subscription.
#[derive(Debug)]
pub struct Events {
    pub(crate) receiver: broadcast::Receiver<Event>,
}

impl Events {
    /// The next event; `None` once the runtime is dropped. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Lagged),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
