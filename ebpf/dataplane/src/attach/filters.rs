//! Programs of uplinks and pods' links as filters of a clsact qdisc, for kernels without TCX (before 6.6).
//!
//! Such an attachment cannot be pinned. It is found again by its priority and its name, which is the program's and the folder
//! of the maps it works on: `orlop_ingress:/sys/fs/bpf/orlop/v<layout>`. Another dataplane's filters and anybody else's are left
//! alone, and so is a clsact qdisc that has any of them. A clsact qdisc whose last filter was ours is removed with it:
//! the kernel does not say who made it.
//!
//! Every call works in the calling thread's network namespace and blocks.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::{ProgramFd, TcAttachType, loaded_programs};
use linux::netlink::{Classifiers, Direction, Filter, FilterPlace, Netlink};
use linux::netns::{self, Netns};

use super::{Identity, LinkProgram, OpenError, Order, link_programs};

/// Before filters whose maker chose no priority (49152 and below), behind those that asked to be first.
const FIRST_PRIORITY: u16 = 999;
const LAST_PRIORITY: u16 = 1000;
const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// One of our filters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The link's index.
    pub link: u32,
    pub direction: Direction,
    pub program: String,
    /// Of the maps that it works on.
    pub folder: PathBuf,
}

/// A program that an interface is to run.
pub struct Wanted<'a> {
    pub interface: &'a str,
    pub link: u32,
    pub program: LinkProgram,
    /// The folder of the program's maps.
    pub pins: &'a Path,
    pub fd: &'a ProgramFd,
    pub identity: &'a Identity,
}

impl Wanted<'_> {
    pub fn place(&self) -> Place {
        Place {
            link: self.link,
            direction: direction(self.program.direction),
            program: self.program.name.to_owned(),
            folder: self.pins.to_owned(),
        }
    }
}

fn direction(attach: TcAttachType) -> Direction {
    if attach == TcAttachType::Egress { Direction::Egress } else { Direction::Ingress }
}

fn priority(order: Order) -> u16 {
    if order == Order::First { FIRST_PRIORITY } else { LAST_PRIORITY }
}

/// Makes the interface run the program: an equal filter stays as it is, one of ours with another program gets the new one
/// in place.
pub fn attach(wanted: &Wanted<'_>) -> Result<(), OpenError> {
    let Place { link, direction, program, folder } = wanted.place();
    let name = format!("{program}:{}", folder.display());
    let priority = priority(wanted.program.order);
    let place = FilterPlace { link, direction, priority, name };
    converse(async |netlink| {
        let made = ensure_clsact(netlink, wanted).await?;
        let run = run_at(netlink, &place, wanted).await;
        if run.is_err() && made {
            undo_clsact(netlink, wanted).await;
        }
        run
    })
}

async fn run_at(netlink: &Netlink, place: &FilterPlace, wanted: &Wanted<'_>) -> Result<(), OpenError> {
    let present = netlink.filters(place.link, place.direction).await.map_err(failed)?;
    let ours = present
        .iter()
        .find(|filter| filter.priority == place.priority && filter.name.as_deref() == Some(&place.name));
    match ours {
        Some(filter) if filter.program.is_some_and(|id| wanted.identity.is_of(id)) => Ok(()),
        Some(filter) => {
            tracing::info!(
                filter = place.name,
                interface = wanted.interface,
                "replacing the attached program"
            );
            netlink.replace_bpf_filter(place, filter.handle, wanted.fd.as_fd()).await.map_err(failed)
        }
        None => netlink.add_bpf_filter(place, wanted.fd.as_fd()).await.map_err(failed),
    }
}

/// Takes back a qdisc that was just made, unless somebody put a filter there meanwhile. What fails is told, as more is not to be done.
async fn undo_clsact(netlink: &Netlink, wanted: &Wanted<'_>) {
    let undone = match is_bare(netlink, wanted.link).await {
        Ok(true) => gone_is_fine(netlink.del_clsact(wanted.link).await),
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = undone {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(interface = wanted.interface, error, "remove the clsact qdisc that was just made");
    }
}

/// Whether it was made.
async fn ensure_clsact(netlink: &Netlink, wanted: &Wanted<'_>) -> Result<bool, OpenError> {
    let present = netlink.classifiers().await.map_err(failed)?;
    match present.iter().find(|(link, _)| *link == wanted.link) {
        Some((_, Classifiers::Clsact)) => Ok(false),
        Some((_, Classifiers::Ingress)) => {
            Err(OpenError::IngressQdisc { interface: wanted.interface.to_owned() })
        }
        None => netlink.add_clsact(wanted.link).await.map(|()| true).map_err(failed),
    }
}

/// Gives the filters that work on the maps in one folder their names for another. They run the same programs as before.
pub fn move_all(from: &Path, to: &Path) -> Result<(), OpenError> {
    converse(async |netlink| {
        for (link, kind) in netlink.classifiers().await.map_err(failed)? {
            if kind != Classifiers::Clsact {
                continue;
            }
            for direction in DIRECTIONS {
                for filter in netlink.filters(link, direction).await.map_err(failed)? {
                    let place = ours(&filter, link, direction).filter(|place| place.folder == from);
                    if let Some(place) = place {
                        let name = format!("{}:{}", place.program, to.display());
                        rename(netlink, &filter, name).await?;
                    }
                }
            }
        }
        Ok(())
    })
}

async fn rename(netlink: &Netlink, filter: &Filter, name: String) -> Result<(), OpenError> {
    let Some(program) =
        loaded_programs().filter_map(Result::ok).find(|loaded| Some(loaded.id()) == filter.program)
    else {
        // Removed a moment ago.
        return Ok(());
    };
    let program = program.fd().map_err(|source| super::load_error(&name, source))?;
    let Filter { link, direction, priority, handle, .. } = *filter;
    let place = FilterPlace { link, direction, priority, name };
    netlink.replace_bpf_filter(&place, handle, program.as_fd()).await.map_err(failed)
}

/// Removes those of our filters that `stale` picks.
pub fn remove(stale: impl Fn(&Place) -> bool + Send + Sync) -> Result<(), OpenError> {
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
    stale: &(impl Fn(&Place) -> bool + Sync),
) -> Result<(), OpenError> {
    let mut removed = false;
    for direction in DIRECTIONS {
        let present = netlink.filters(link, direction).await.map_err(failed)?;
        let doomed = |filter: &&Filter| ours(filter, link, direction).is_some_and(|place| stale(&place));
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

/// The filter, if it is one of ours.
fn ours(filter: &Filter, link: u32, direction: Direction) -> Option<Place> {
    let (program, folder) = filter.name.as_deref()?.split_once(':')?;
    let is_ours = link_programs().any(|known| known == program)
        && [FIRST_PRIORITY, LAST_PRIORITY].contains(&filter.priority);
    is_ours.then(|| Place { link, direction, program: program.to_owned(), folder: folder.into() })
}

/// Our filters that work on the maps in a folder, and their programs.
pub fn placed(pins: &Path) -> Result<Vec<(Place, Option<u32>)>, OpenError> {
    converse(async |netlink| {
        let mut found = Vec::new();
        for (link, kind) in netlink.classifiers().await.map_err(failed)? {
            if kind != Classifiers::Clsact {
                continue;
            }
            for direction in DIRECTIONS {
                for filter in netlink.filters(link, direction).await.map_err(failed)? {
                    let place = ours(&filter, link, direction).filter(|place| place.folder == pins);
                    found.extend(place.map(|place| (place, filter.program)));
                }
            }
        }
        Ok(found)
    })
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
                let ours = present.iter().filter_map(|filter| ours(filter, link, direction));
                let ours = ours.filter(|place| place.folder == pins);
                found.extend(ours.map(|place| (link, shown.name.clone(), place.program)));
            }
        }
        Ok(found)
    })
}

/// Removes those of our filters that `stale` picks from a link, which may be gone.
pub fn remove_from_one(link: u32, stale: impl Fn(&Place) -> bool + Send + Sync) -> Result<(), OpenError> {
    converse(async |netlink| {
        let all = netlink.classifiers().await.map_err(failed)?;
        if !all.contains(&(link, Classifiers::Clsact)) {
            return Ok(());
        }
        remove_from(netlink, link, &stale).await
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
