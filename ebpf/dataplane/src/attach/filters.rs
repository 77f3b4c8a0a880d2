//! Programs of uplinks and pods' links as filters of a clsact qdisc, for kernels without TCX (before 6.6).
//!
//! Such an attachment cannot be pinned. It is found again by its priority and its name, which is the program's and the folder
//! of the maps it works on: `orlop_ingress:/sys/fs/bpf/orlop/v<layout>`. Another dataplane's filters and anybody else's are left
//! alone, and so is a clsact qdisc that has any of them. A clsact qdisc whose last filter was ours is removed with it:
//! the kernel does not say who made it.
//!
//! Every call works in the calling thread's network namespace and blocks.

use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::{ProgramFd, TcAttachType};
use linux::netlink::{Classifiers, Direction, Filter, FilterPlace, Netlink};
use linux::netns::{self, Netns};

use super::{Identity, OpenError, POD_PROGRAMS, UPLINK_PROGRAMS};

/// Before filters whose maker chose no priority (49152 and below), behind those that asked to be first.
const PRIORITY: u16 = 1000;
const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Where one of our filters belongs: a link's index and a direction.
pub type Place = (u32, Direction);

/// A program that an interface is to run.
pub struct Wanted<'a> {
    pub interface: &'a str,
    pub link: u32,
    pub direction: TcAttachType,
    pub program: &'static str,
    /// The folder of the program's maps.
    pub pins: &'a Path,
    pub fd: &'a ProgramFd,
    pub identity: &'a Identity,
}

impl Wanted<'_> {
    pub fn place(&self) -> Place {
        (self.link, direction(self.direction))
    }
}

fn direction(attach: TcAttachType) -> Direction {
    if attach == TcAttachType::Egress { Direction::Egress } else { Direction::Ingress }
}

/// Makes the interface run the program: an equal filter stays as it is, one of ours with another program gets the new one
/// in place.
pub fn attach(wanted: &Wanted<'_>) -> Result<(), OpenError> {
    let (link, direction) = wanted.place();
    let name = format!("{}:{}", wanted.program, wanted.pins.display());
    let place = FilterPlace { link, direction, priority: PRIORITY, name };
    converse(async |netlink| {
        ensure_clsact(netlink, wanted).await?;
        let present = netlink.filters(link, direction).await.map_err(failed)?;
        let ours = present
            .iter()
            .find(|filter| filter.priority == PRIORITY && filter.name.as_deref() == Some(&place.name));
        match ours {
            Some(filter) if filter.program.is_some_and(|id| wanted.identity.is_of(id)) => Ok(()),
            Some(filter) => {
                tracing::info!(
                    filter = place.name,
                    interface = wanted.interface,
                    "replacing the attached program"
                );
                netlink.replace_bpf_filter(&place, filter.handle, wanted.fd.as_fd()).await.map_err(failed)
            }
            None => netlink.add_bpf_filter(&place, wanted.fd.as_fd()).await.map_err(failed),
        }
    })
}

async fn ensure_clsact(netlink: &Netlink, wanted: &Wanted<'_>) -> Result<(), OpenError> {
    let present = netlink.classifiers().await.map_err(failed)?;
    match present.iter().find(|(link, _)| *link == wanted.link) {
        Some((_, Classifiers::Clsact)) => Ok(()),
        Some((_, Classifiers::Ingress)) => {
            Err(OpenError::IngressQdisc { interface: wanted.interface.to_owned() })
        }
        None => netlink.add_clsact(wanted.link).await.map_err(failed),
    }
}

/// Removes those of our filters that `stale` picks by their place and the folder in their name.
pub fn remove(stale: impl Fn(Place, &Path) -> bool + Send + Sync) -> Result<(), OpenError> {
    converse(async |netlink| {
        for (link, kind) in netlink.classifiers().await.map_err(failed)? {
            if kind == Classifiers::Clsact {
                remove_from(netlink, link, &stale).await?;
            }
        }
        Ok(())
    })
}

async fn remove_from(
    netlink: &Netlink,
    link: u32,
    stale: &(impl Fn(Place, &Path) -> bool + Sync),
) -> Result<(), OpenError> {
    let mut removed = false;
    for direction in DIRECTIONS {
        let present = netlink.filters(link, direction).await.map_err(failed)?;
        let doomed = |filter: &&Filter| folder(filter).is_some_and(|folder| stale((link, direction), folder));
        for filter in present.iter().filter(doomed) {
            gone_is_fine(netlink.del_filter(filter).await)?;
            removed = true;
        }
    }
    if removed && is_bare(netlink, link).await? {
        gone_is_fine(netlink.del_clsact(link).await)?;
    }
    Ok(())
}

async fn is_bare(netlink: &Netlink, link: u32) -> Result<bool, OpenError> {
    for direction in DIRECTIONS {
        if !netlink.filters(link, direction).await.map_err(failed)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The folder in the name of a filter of ours.
fn folder(filter: &Filter) -> Option<&Path> {
    let (program, folder) = filter.name.as_deref()?.split_once(':')?;
    let ours =
        UPLINK_PROGRAMS.iter().map(|(known, ..)| *known).chain(POD_PROGRAMS.iter().map(|(known, _)| *known));
    (ours.into_iter().any(|known| known == program) && filter.priority == PRIORITY).then(|| Path::new(folder))
}

/// Our filters that work on the maps in a folder: the link's index and name, and the program.
pub fn on_links(pins: &Path) -> Result<Vec<(u32, String, String)>, OpenError> {
    converse(async |netlink| {
        let mut found = Vec::new();
        for (link, kind) in netlink.classifiers().await.map_err(failed)? {
            if kind != Classifiers::Clsact {
                continue;
            }
            let Some(shown) = netlink.find_link_by_index(link).await.map_err(failed)? else { continue };
            for direction in DIRECTIONS {
                let present = netlink.filters(link, direction).await.map_err(failed)?;
                let ours = present.iter().filter(|filter| folder(filter) == Some(pins));
                let programs = ours.filter_map(|filter| filter.name.as_deref()?.split_once(':'));
                found.extend(programs.map(|(program, _)| (link, shown.name.clone(), program.to_owned())));
            }
        }
        Ok(found)
    })
}

/// Removes our filters that work on the maps in a folder from a link, which may be gone.
pub fn remove_from_one(link: u32, pins: &Path) -> Result<(), OpenError> {
    converse(async |netlink| {
        let all = netlink.classifiers().await.map_err(failed)?;
        if !all.contains(&(link, Classifiers::Clsact)) {
            return Ok(());
        }
        remove_from(netlink, link, &|_, folder| folder == pins).await
    })
}

fn gone_is_fine(removed: Result<(), linux::netlink::Error>) -> Result<(), OpenError> {
    match removed {
        Err(error) if !error.is_gone() => Err(failed(error)),
        _ => Ok(()),
    }
}

fn failed(source: linux::netlink::Error) -> OpenError {
    OpenError::Filter { source: Box::new(source) }
}

/// Talks to the kernel's traffic control in this thread's network namespace, from a thread and a runtime of its own: the
/// caller may be inside a runtime that must not be entered again.
fn converse<T: Send>(
    work: impl AsyncFnOnce(&Netlink) -> Result<T, OpenError> + Send,
) -> Result<T, OpenError> {
    let namespace = |source| failed(linux::netlink::Error::Netns(source));
    let here = Netns::current().map_err(namespace)?;
    netns::in_netns_async(here.as_fd(), || async { work(&Netlink::open().map_err(failed)?).await })
        .map_err(namespace)?
}
