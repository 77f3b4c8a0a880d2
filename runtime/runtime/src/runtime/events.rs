//! What shims say unasked, turned into state and into the library's events.
//!
//! One task per sandbox, in the order in which its shim speaks. When the shim is gone, the task ends what the shim kept.

use std::sync::{Arc, Weak};

use shim_protocol::{Exit, Record, ShimEvent};
use tokio::sync::mpsc;

use super::state::{Phase, learn, now, save};
use super::{Inner, Runtime};
use crate::container::ContainerId;
use crate::event::Event;
use crate::sandbox::SandboxId;
use crate::shims::client::{Client, FromClient};

/// Exit code of a container of which nobody saw the end, as containerd.
pub(super) const UNKNOWN_EXIT_CODE: i32 = 255;

pub(super) async fn serve(
    inner: Weak<Inner>,
    sandbox: String,
    mut messages: mpsc::UnboundedReceiver<FromClient>,
) {
    while let Some(message) = messages.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        match message {
            FromClient::Event(event) => inner.take_event(&sandbox, event),
            FromClient::Gone => return Runtime(inner).shim_gone(&sandbox).await,
        }
    }
}

impl Inner {
    fn take_event(&self, sandbox: &str, event: ShimEvent) {
        match event {
            ShimEvent::Started { container, record } => {
                self.note(&container, |known| learn(known, record));
                let container = ContainerId(container);
                self.announce(Event::ContainerStarted { sandbox: SandboxId(sandbox.into()), container });
            }
            ShimEvent::Exited { container, exit } => self.take_exit(sandbox, container, exit),
            ShimEvent::ExecExited { exec, code } => {
                self.exec_ended((sandbox.to_owned(), exec), Ok(code));
            }
            ShimEvent::Oom { container } => {
                let container = ContainerId(container);
                self.announce(Event::ContainerOom { sandbox: SandboxId(sandbox.into()), container });
            }
        }
    }

    fn take_exit(&self, sandbox: &str, container: String, exit: Exit) {
        let exit_code = exit.code;
        self.note(&container, |known| {
            known.get_or_insert_default().exit.get_or_insert(exit);
        });
        let container = ContainerId(container);
        self.announce(Event::ContainerExited { sandbox: SandboxId(sandbox.into()), container, exit_code });
    }

    /// Changes a container's record, and wakes who waits for that.
    pub(super) fn note(&self, container: &str, change: impl FnOnce(&mut Option<Record>)) {
        if let Some(container) = self.tables().containers.get(container) {
            container.record.send_modify(change);
        }
    }

    pub(super) fn announce(&self, event: Event) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }
}

impl Runtime {
    /// Keeps a connected shim in its sandbox's entry. When it ended already, its end found no entry or one without it, and is dealt with here.
    pub(super) async fn keep_shim(&self, sandbox: &str, shim: Arc<Client>) {
        if let Some(known) = self.0.tables().sandboxes.get_mut(sandbox) {
            known.shim = Some(Arc::clone(&shim));
        }
        if shim.is_gone() {
            self.shim_gone(sandbox).await;
        }
    }

    /// The shim ended without being asked: nobody reaps or logs for its containers any more, so they are ended too.
    async fn shim_gone(&self, sandbox: &str) {
        {
            let mut tables = self.0.tables();
            let Some(known) = tables.sandboxes.get_mut(sandbox) else { return };
            if known.shim.take().is_none() || known.meta.phase != Phase::Ready {
                return;
            }
        }
        tracing::error!(sandbox, "shim is gone, its containers are killed");
        self.bury_containers(sandbox).await;
        self.0.announce(Event::SandboxGone { sandbox: SandboxId(sandbox.into()) });
    }

    /// Kills the containers of a sandbox without a shim, and records their end.
    pub(super) async fn bury_containers(&self, sandbox: &str) {
        self.0.end_execs(sandbox);
        for meta in self.0.containers_of(sandbox) {
            let path = self.0.config.container_dir(&meta.id).join("record.json");
            // The shim may have recorded the end and died before it could tell.
            let record = super::state::load::<Record>(&path);
            let Some(mut record) = record.or_else(|| self.0.record_of(&meta.id)) else { continue };
            if let Ok(group) = self.0.layout.group(&meta.cgroup) {
                let killed =
                    tokio::task::spawn_blocking(move || group.kill(super::containers::KILL_LIMIT)).await;
                if let Ok(Err(error)) = killed {
                    tracing::warn!(container = meta.id, %error, "container without a shim is not dead yet");
                }
            }
            let recorded = record.exit.is_some();
            let exit = record.exit.get_or_insert_with(|| Exit {
                code: UNKNOWN_EXIT_CODE,
                finished_at: now(),
                reason: "Unknown".into(),
                message: "the container's shim ended before it did".into(),
                oom_killed: false,
            });
            let exit = exit.clone();
            // Each record is a line more.
            if !recorded && let Err(error) = save(&path, &record) {
                tracing::warn!(container = meta.id, %error, "end of a container is not recorded");
            }
            let pending = self.0.record_of(&meta.id).is_none_or(|known| known.exit.is_none());
            self.0.note(&meta.id, |known| *known = Some(record));
            if pending {
                let (sandbox, container) = (SandboxId(sandbox.into()), ContainerId(meta.id));
                self.0.announce(Event::ContainerExited { sandbox, container, exit_code: exit.code });
            }
        }
    }
}
