//! UDP sockets whose backend has gone.
//!
//! A connected UDP socket is translated once and sends to its backend from then on; nothing tells it that the backend is gone. So the
//! programs note such sockets, and this module finds those whose service does not lead to their backend any more, which does not
//! serve while it terminates either, and ends them: their owners get an error at once, and connect again. Sockets that talk to
//! the pod's own address are not noted.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::{io, panic, thread};

use dataplane_abi::Connected;
use linux::netns::{self, Netns};
use linux::sockets::{Family, Sockets};

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
    Namespace { path: std::path::PathBuf, source: io::Error },
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
    /// One of the failures: sockets of a namespace may not have been ended.
    pub failure: Option<EndError>,
}

impl Ended {
    fn and(mut self, other: Self) -> Self {
        self.ended.extend(other.ended);
        Self { failure: self.failure.or(other.failure), ..self }
    }
}

/// Those of one network namespace, by cookie.
type OfNetns = HashMap<u64, Orphan>;

/// Threads that go through namespaces: most of the work is the kernel's, for which each namespace is another one's.
const MOST_WORKERS: usize = 4;

/// Ends the sockets, in whatever network namespace they are. One that its owner has closed, or that is not connected to the backend
/// (any more, or yet), is left alone. Blocks: it looks through `/proc` for namespaces.
pub fn end(orphans: &[Orphan]) -> Ended {
    let mut by_netns: HashMap<u64, OfNetns> = HashMap::new();
    for orphan in orphans {
        by_netns.entry(orphan.connected.netns).or_default().insert(orphan.cookie, *orphan);
    }
    let namespaces = match netns::of_processes() {
        Ok(namespaces) => namespaces,
        Err(error) => return Ended { failure: Some(EndError::Namespaces(error)), ..Ended::default() },
    };
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = processors.min(MOST_WORKERS).min(by_netns.len());
    let left = Mutex::new((namespaces.into_iter(), by_netns));
    thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(|| work(&left))).collect();
        let own = work(&left);
        let others = others.into_iter().map(|other| match other.join() {
            Ok(ended) => ended,
            Err(panicked) => panic::resume_unwind(panicked),
        });
        others.fold(own, Ended::and)
    })
}

/// Namespaces that nobody has looked at, and what is wanted of those that were not found.
type Left = (std::vec::IntoIter<Netns>, HashMap<u64, OfNetns>);

fn work(left: &Mutex<Left>) -> Ended {
    let mut all = Ended::default();
    let lock = || left.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || {
        let (namespaces, wanted) = &mut *lock();
        if wanted.is_empty() { None } else { namespaces.next() }
    };
    while let Some(netns) = next() {
        let place = || netns.path().to_owned();
        let known = Sockets::open_in(&netns).map(|sockets| (sockets.netns_cookie(), sockets));
        let (cookie, sockets) = match known {
            Ok((Ok(cookie), sockets)) => (cookie, sockets),
            Ok((Err(source), _)) => {
                all.failure = Some(EndError::Namespace { path: place(), source });
                continue;
            }
            Err(source) => {
                all.failure = Some(EndError::Sockets { path: place(), source: Box::new(source) });
                continue;
            }
        };
        let Some(wanted) = lock().1.remove(&cookie) else { continue };
        if let Err(source) = end_in(&sockets, wanted, &mut all.ended) {
            all.failure = Some(EndError::Sockets { path: place(), source: Box::new(source) });
        }
    }
    all
}

/// For each list the kernel goes through the sockets of all namespaces: the second family is asked for what the first one has not.
fn end_in(
    sockets: &Sockets,
    mut wanted: OfNetns,
    ended: &mut Vec<Orphan>,
) -> Result<(), linux::netlink::Error> {
    for family in Family::ALL {
        if wanted.is_empty() {
            break;
        }
        let (mut doomed, mut orphans) = (Vec::new(), Vec::new());
        for socket in sockets.connected_datagrams(family)? {
            // One with another peer is found, too: it is nobody's orphan.
            let Some(orphan) = wanted.remove(&socket.cookie) else { continue };
            if socket.peer == orphan.backend() {
                doomed.push(socket);
                orphans.push(orphan);
            }
        }
        let verdicts = sockets.end(&doomed)?;
        ended.extend(orphans.into_iter().zip(verdicts).filter_map(|(orphan, ended)| ended.then_some(orphan)));
    }
    Ok(())
}
