//! UDP sockets whose backend has gone.
//!
//! A connected UDP socket is translated once and sends to its backend from then on; nothing tells it that the backend is gone. So the
//! programs note such sockets, and this module finds those whose service does not lead to their backend any more, which does not
//! serve while it terminates either, and ends them: their owners get an error at once, and connect again. Sockets that talk to
//! the pod's own address are not noted.

use std::collections::HashMap;
use std::net::SocketAddr;

use dataplane_abi::Connected;
use linux::netns::{self, Netns};
use linux::sockets::{ConnectedSocket, Sockets};

use crate::kernel::MapError;
use crate::{Dataplane, model};

/// A connected UDP socket that is led to nobody.
#[derive(Debug, Clone, Copy)]
pub struct Orphan {
    cookie: u64,
    connected: Connected,
}

impl Orphan {
    /// The number that no other socket ever has.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Where it sends to.
    pub fn backend(&self) -> SocketAddr {
        model::socket_address(self.connected.backend_address, self.connected.backend_port_be)
    }
}

/// Why sockets could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    #[error("find network namespaces")]
    Namespaces(#[source] linux::Error),
    #[error("know network namespace {path}")]
    Namespace { path: std::path::PathBuf, source: netns::Error },
    #[error("in network namespace {path}")]
    Sockets { path: std::path::PathBuf, source: Box<linux::netlink::Error> },
}

impl Dataplane {
    /// Whether a backend may have gone from a service since the last call, so that [`Self::orphans`] is worth asking.
    pub fn may_have_orphans(&mut self) -> bool {
        std::mem::take(&mut self.adopted_orphans) | self.model.let_go()
    }

    /// The UDP sockets that are connected through a service to a backend that this has no more. What a program that was under way
    /// is about to note is there after [`crate::wait_for_readers`].
    pub fn orphans(&self) -> Result<Vec<Orphan>, MapError> {
        let all = self.kernel.connected()?;
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let serves = self.model.serves();
        let orphans = all.into_iter().map(|(cookie, connected)| Orphan { cookie, connected });
        let is_served = |Connected { slot, backend, generation, .. }| serves(slot, backend, generation);
        Ok(orphans.filter(|orphan| !is_served(orphan.connected)).collect())
    }

    /// Forgets sockets that [`end`] ended. The others may be about to connect; closing them forgets them.
    pub fn forget(&mut self, ended: &[Orphan]) -> Result<(), MapError> {
        let mut result = Ok(());
        for orphan in ended {
            result = result.and(self.kernel.forget_connected(orphan.cookie, orphan.connected));
        }
        result
    }
}

/// What became of orphans.
#[derive(Debug, Default)]
pub struct Ended {
    pub ended: Vec<Orphan>,
    /// The last failure: sockets of a namespace may not have been ended.
    pub failure: Option<EndError>,
}

/// Ends the sockets, in whatever network namespace they are. One that its owner has closed, or that is not connected to the backend
/// (any more, or yet), is left alone. Blocks: it looks through `/proc` for namespaces.
pub fn end(orphans: &[Orphan]) -> Ended {
    let mut by_netns: HashMap<u64, HashMap<u64, Orphan>> = HashMap::new();
    for orphan in orphans {
        by_netns.entry(orphan.connected.netns).or_default().insert(orphan.cookie, *orphan);
    }
    let mut all = Ended::default();
    let namespaces = match netns::of_processes() {
        Ok(namespaces) => namespaces,
        Err(error) => return Ended { failure: Some(EndError::Namespaces(error)), ..all },
    };
    for netns in namespaces {
        let place = || netns.path().to_owned();
        let cookie = match netns.cookie() {
            Ok(cookie) => cookie,
            Err(source) => {
                all.failure = Some(EndError::Namespace { path: place(), source });
                continue;
            }
        };
        let Some(wanted) = by_netns.remove(&cookie) else { continue };
        if let Err(source) = end_in(&netns, &wanted, &mut all.ended) {
            all.failure = Some(EndError::Sockets { path: place(), source: Box::new(source) });
        }
        if by_netns.is_empty() {
            break;
        }
    }
    all
}

/// Sockets by cookie.
fn end_in(
    netns: &Netns,
    wanted: &HashMap<u64, Orphan>,
    ended: &mut Vec<Orphan>,
) -> Result<(), linux::netlink::Error> {
    let sockets = Sockets::open_in(netns)?;
    let mut doomed = sockets.connected_datagrams()?;
    let orphan = |socket: &ConnectedSocket| {
        let orphan = wanted.get(&socket.cookie)?;
        (socket.peer == orphan.backend()).then_some(*orphan)
    };
    doomed.retain(|socket| orphan(socket).is_some());
    let verdicts = sockets.end(&doomed)?;
    ended.extend(doomed.iter().zip(verdicts).filter_map(|(socket, ended)| orphan(socket).filter(|_| ended)));
    Ok(())
}
