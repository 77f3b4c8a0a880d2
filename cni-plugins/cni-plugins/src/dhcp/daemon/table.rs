//! The leases: found by owner, each with a task that extends it until it is released, refused or over.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cni::{AddResult, ErrorReply};
use linux::{
    clock,
    netlink::{self, Link, MacAddress, Netlink},
    netns::{self, Netns},
};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify, Semaphore, SemaphorePermit},
    task::AbortHandle,
    time::timeout,
};

use super::shares::Shares;
use crate::dhcp::{
    config::Options,
    exchange::{self, Asked, Client, Extended},
    flags::Flags,
    keep::{Held, Keep, Owner},
    lease::{Lease, Next},
    talk::Question,
};

/// Leases of one node.
const LEASE_LIMIT: usize = 8192;
/// Leases that are over, and whose links go down, at a time.
const END_LIMIT: usize = 4;
/// Seconds until what this host could not do is tried again.
const TROUBLE_PAUSE: u64 = 10;
/// Seconds until a lease is looked at again at the latest: the runtime's timers do not count those in which the host is suspended.
const LONGEST_PAUSE: u64 = 60;

/// See the module.
pub(super) struct Table {
    flags: Flags,
    keep: Keep,
    entries: Mutex<HashMap<Owner, Arc<Entry>>>,
    /// ADDs that may have sockets at a time. Taken before an entry's lock, so that nobody who wants that waits for other owners' ADDs.
    adds: Arc<Semaphore>,
    /// Leases that are given back at a time.
    releases: Semaphore,
    /// Leases that are extended at a time; the others wait.
    renewals: Semaphore,
    ends: Semaphore,
}

/// One owner's place. Whoever holds the lock of `held` is the one who speaks to servers for it.
#[derive(Default)]
struct Entry {
    held: Arc<AsyncMutex<Option<Held>>>,
    /// Told by a DEL and by GC: the ADDs that there are end.
    deleted: Notify,
    /// Extends what is held. Aborting it is safe at any point: it tells nobody what it has not put into `held`.
    task: Mutex<Option<AbortHandle>>,
}

impl Entry {
    /// Replaces the task that there may be; none ends it.
    fn set_task(&self, task: Option<AbortHandle>) {
        let mut present = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = std::mem::replace(&mut *present, task) {
            earlier.abort();
        }
    }
}

/// What a call or a task has of an entry while it looks at it, or waits for it; so an entry stays the owner's only one for as long as
/// anybody has it. The last one takes it out, with its file, when it is empty, also when the call was given up.
struct Visit {
    table: Arc<Table>,
    owner: Owner,
    entry: Arc<Entry>,
}

impl Visit {
    fn again(&self) -> Self {
        Self { table: self.table.clone(), owner: self.owner.clone(), entry: self.entry.clone() }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut entries = self.table.entries();
        // That of the table and this one: while the table is locked, nobody else gets one.
        let is_last = Arc::strong_count(&self.entry) == 2;
        if is_last && self.entry.held.try_lock().is_ok_and(|held| held.is_none()) {
            entries.remove(&self.owner);
            self.table.forget(&self.owner);
        }
    }
}

impl Table {
    /// Goes on with what an earlier daemon held, with so much at a time.
    pub(super) fn adopt(flags: Flags, keep: Keep, shares: Shares) -> io::Result<Arc<Self>> {
        let all = keep.all()?;
        let table = Arc::new(Self {
            flags,
            keep,
            entries: Mutex::default(),
            adds: Arc::new(Semaphore::new(shares.adds)),
            releases: Semaphore::new(shares.releases),
            renewals: Semaphore::new(shares.renewals),
            ends: Semaphore::new(END_LIMIT),
        });
        for held in all {
            let owner = held.owner.clone();
            let held = Arc::new(AsyncMutex::new(Some(held)));
            let entry = Arc::new(Entry { held, ..Entry::default() });
            table.entries().insert(owner.clone(), entry.clone());
            table.start(&Visit { table: table.clone(), owner, entry });
        }
        Ok(table)
    }

    pub(super) async fn answer(self: &Arc<Self>, question: Question) -> Result<AddResult, ErrorReply> {
        let owner = Owner {
            network: question.network.clone(),
            container_id: question.container_id.clone(),
            ifname: question.ifname.clone(),
        };
        match question.verb.as_str() {
            "ADD" => self.add(owner, &question).await,
            "CHECK" => self.check(&owner).await.map(|()| AddResult::default()),
            "DEL" => {
                self.release(&owner).await;
                Ok(AddResult::default())
            }
            "GC" => {
                self.collect(&question).await;
                Ok(AddResult::default())
            }
            _ => Ok(AddResult::default()),
        }
    }

    async fn add(self: &Arc<Self>, owner: Owner, question: &Question) -> Result<AddResult, ErrorReply> {
        let visit = self.enter(owner)?;
        let deleted = visit.entry.deleted.notified();
        tokio::select! {
            added = self.add_to(&visit, question) => added,
            () = deleted => Err(ErrorReply::internal("a DEL or GC of the same attachment came before the lease")),
        }
    }

    /// The lease that the owner has for this link, or a new one. Dropping it is safe at any point: asking for one then ends by itself.
    async fn add_to(self: &Arc<Self>, visit: &Visit, question: &Question) -> Result<AddResult, ErrorReply> {
        let turn = self.adds.clone().acquire_owned().await.map_err(ErrorReply::internal)?;
        let mut held = visit.entry.held.clone().lock_owned().await;
        let place = Place::find(&self.flags, question).await?;
        let is_good = |held: &&mut Held| held.mac == place.mac && held.lease.left(now()) > 0;
        if let Some(held) = held.as_mut().filter(is_good) {
            return Ok(held.lease.result(question.priority));
        }
        // A lease of a link that was replaced is nobody's any more.
        visit.entry.set_task(None);
        *held = None;
        let (_asker, asked) = Asked::new();
        let (table, again, question) = (self.clone(), visit.again(), question.clone());
        let acquired = tokio::spawn(async move {
            let _turn = turn;
            let visit = again;
            // Let go of before the visit ends.
            let mut held = held;
            let new = table.acquire(&visit.owner, &question, place, asked).await?;
            let result = new.lease.result(question.priority);
            let lease = &new.lease;
            eprintln!("{}: {} for {} s", visit.owner.client_id(), lease.address, lease.left(now()));
            *held = Some(new);
            table.start(&visit);
            Ok(result)
        });
        acquired.await.map_err(ErrorReply::internal)?
    }

    /// When nobody waits for it any more, an address that the server gave all the same is given back.
    async fn acquire(
        &self,
        owner: &Owner,
        question: &Question,
        place: Place,
        mut asked: Asked,
    ) -> Result<Held, ErrorReply> {
        place.bring_up().await?;
        let client_id = owner.client_id();
        let client = self.client(&place, &client_id, &question.options)?;
        let ack = client.acquire(&mut asked).await.map_err(ErrorReply::internal)?;
        let lease = Lease::of(&ack, now()).map_err(ErrorReply::internal)?;
        if asked.is_given_up() {
            let released = client.release(&lease).await;
            return Err(ErrorReply::internal(format!("{} came too late: {released:?}", lease.address)));
        }
        let held = Held {
            owner: owner.clone(),
            netns: question.netns.clone().unwrap_or_default(),
            mac: place.mac,
            options: question.options.clone(),
            lease,
        };
        if let Err(error) = self.keep.store(&held) {
            // Without the file a killed daemon would forget it, and the address would be lost under a living container.
            let released = client.release(&held.lease).await;
            let reply = ErrorReply::internal(format!("keep the lease: {error}"));
            return Err(match released {
                Ok(()) => reply,
                Err(left) => reply.with_details(format!("release {}: {left}", held.lease.address)),
            });
        }
        Ok(held)
    }

    async fn check(self: &Arc<Self>, owner: &Owner) -> Result<(), ErrorReply> {
        let visit = self.find(owner, &self.entries());
        let held = match &visit {
            Some(visit) => visit.entry.held.lock().await.is_some(),
            None => false,
        };
        if held {
            Ok(())
        } else {
            Err(ErrorReply::internal(format!("no DHCP lease of {}", owner.client_id())))
        }
    }

    /// Gives the lease back. None is success, and so is one whose server cannot be told: that server's clock then frees the address.
    async fn release(self: &Arc<Self>, owner: &Owner) {
        let found = {
            let entries = self.entries();
            let found = self.find(owner, &entries);
            if found.is_none() {
                // A file that could not be read has no entry. The lock is held, so that no ADD stores one meanwhile.
                self.forget(owner);
            }
            found
        };
        let Some(visit) = found else { return };
        // What waits for a server is not waited for.
        visit.entry.deleted.notify_waiters();
        visit.entry.set_task(None);
        let mut held = visit.entry.held.lock().await;
        // That of an ADD which was done by then.
        visit.entry.set_task(None);
        // A daemon that ends meanwhile leaves it to the next one.
        if let Some(held) = held.as_ref()
            && let Err(error) = self.give_back(held).await
        {
            eprintln!(
                "{}: the server is not told that {} is free, and holds it until the lease is over: {error}",
                owner.client_id(),
                held.lease.address
            );
        }
        *held = None;
        self.forget(owner);
    }

    async fn give_back(&self, held: &Held) -> Result<(), String> {
        let _turn = self.releases.acquire().await.map_err(|error| error.to_string())?;
        let place = Place::of(&self.flags, held).await.map_err(|error| error.to_string())?;
        let client_id = held.owner.client_id();
        let client = self.client(&place, &client_id, &held.options).map_err(|error| error.to_string())?;
        client.release(&held.lease).await.map_err(|error| error.to_string())
    }

    async fn collect(self: &Arc<Self>, question: &Question) {
        let is_kept = |owner: &Owner| {
            let attachment = (owner.container_id.clone(), owner.ifname.clone());
            owner.network != question.network || question.valid.contains(&attachment)
        };
        let lost: Vec<Owner> = self.entries().keys().filter(|owner| !is_kept(owner)).cloned().collect();
        for owner in &lost {
            self.release(owner).await;
        }
    }

    fn start(self: &Arc<Self>, visit: &Visit) {
        let task = tokio::spawn(self.clone().extend(visit.again()));
        visit.entry.set_task(Some(task.abort_handle()));
    }

    /// The task of one lease.
    async fn extend(self: Arc<Self>, visit: Visit) {
        let entry = &visit.entry;
        loop {
            let left = entry.held.lock().await.as_ref().map_or(0, |held| held.lease.left(now()));
            let turn = self.turn(left).await;
            let mut held = entry.held.lock().await;
            let Some(pause) = self.step(&mut held).await else { return };
            drop((held, turn));
            tokio::time::sleep(Duration::from_secs(pause.min(LONGEST_PAUSE))).await;
        }
    }

    /// Waits until a lease is one of those that may have a socket. After the seconds that it lasts it may have one of the places of those
    /// that are over, too.
    async fn turn(&self, left: u64) -> Option<SemaphorePermit<'_>> {
        // Neither is ever closed, so there is always a permit in the end.
        match timeout(Duration::from_secs(left), self.renewals.acquire()).await {
            Ok(renewal) => renewal.ok(),
            Err(_elapsed) => tokio::select! {
                renewal = self.renewals.acquire() => renewal.ok(),
                end = self.ends.acquire() => end.ok(),
            },
        }
    }

    /// Does what is due. Seconds until the next step; none when there is no lease any more.
    async fn step(&self, held: &mut Option<Held>) -> Option<u64> {
        let current = held.as_mut()?;
        let begin = now();
        let next = current.lease.next(begin);
        let pause = match next {
            Next::Wait(seconds) => return Some(seconds),
            Next::Renew { pause } | Next::Rebind { pause } => pause,
            Next::LastTry => 0,
            Next::Over => return self.end(held).await,
        };
        let (client_id, address) = (current.owner.client_id(), current.lease.address);
        let asked = self.ask(current, next).await;
        current.lease.retry_at(begin + pause);
        match asked {
            Ok(Extended::NoAnswer) if next == Next::LastTry => {
                current.lease.end();
                self.end(held).await
            }
            Ok(Extended::NoAnswer) => Some(0),
            Ok(Extended::Refused) => {
                eprintln!("{client_id}: the lease of {address} was refused");
                current.lease.end();
                self.end(held).await
            }
            Ok(Extended::Acknowledged(ack)) => match Lease::of(&ack, now()) {
                Ok(lease) => {
                    current.lease = lease;
                    if let Err(error) = self.keep.store(current) {
                        eprintln!("{client_id}: keep the lease: {error}");
                    }
                    Some(0)
                }
                Err(error) => {
                    eprintln!("{client_id}: the lease of {address} is not extended: {error}");
                    if next == Next::LastTry {
                        current.lease.end();
                        return self.end(held).await;
                    }
                    Some(0)
                }
            },
            // Its container is gone, and nobody said so: then there is nothing to extend.
            Err(PlaceError::Gone(why)) => {
                eprintln!("{client_id}: the lease of {address} is given up: {why}");
                *held = None;
                None
            }
            Err(PlaceError::Trouble(error)) => {
                eprintln!("{client_id}: extend the lease of {address}: {error}");
                if next == Next::LastTry {
                    return self.end(held).await;
                }
                current.lease.retry_at(begin + pause.min(TROUBLE_PAUSE));
                Some(0)
            }
        }
    }

    async fn ask(&self, held: &Held, next: Next) -> Result<Extended, PlaceError> {
        let place = Place::of(&self.flags, held).await?;
        let client_id = held.owner.client_id();
        let client = self.client(&place, &client_id, &held.options);
        let client = client.map_err(|error| PlaceError::Trouble(error.to_string()))?;
        Ok(match next {
            Next::LastTry => client.regain(&held.lease).await,
            next => client.extend(&held.lease, matches!(next, Next::Rebind { .. })).await,
        })
    }

    /// An address that is somebody else's by now must not be used. Seconds until that is tried again; none when it is done.
    async fn end(&self, held: &mut Option<Held>) -> Option<u64> {
        let current = held.as_ref()?;
        let client_id = current.owner.client_id();
        eprintln!("{client_id}: the lease of {} is over: its link goes down", current.lease.address);
        if let Err(PlaceError::Trouble(error)) = self.take_down(current).await {
            eprintln!("{client_id}: {error}");
            return Some(TROUBLE_PAUSE);
        }
        *held = None;
        None
    }

    async fn take_down(&self, held: &Held) -> Result<(), PlaceError> {
        let place = Place::of(&self.flags, held).await?;
        place.netlink.set_link_down(place.link.index).await.map_err(PlaceError::of_netlink)
    }

    fn client<'a>(
        &self,
        place: &Place,
        client_id: &'a str,
        options: &'a Options,
    ) -> Result<Client<'a>, ErrorReply> {
        let socket = exchange::open(&place.netns, place.link.index)?;
        let mac = MacAddress(place.mac);
        let (broadcast, limits) = (self.flags.broadcast, self.flags.limits);
        Ok(Client { socket, mac, client_id, options, broadcast, limits })
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<Owner, Arc<Entry>>> {
        // Each change of the table is one call, so it is whole also after a panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner's entry, a new one where there is none.
    fn enter(self: &Arc<Self>, owner: Owner) -> Result<Visit, ErrorReply> {
        let mut entries = self.entries();
        if entries.len() >= LEASE_LIMIT && !entries.contains_key(&owner) {
            return Err(ErrorReply::internal(format!(
                "{LEASE_LIMIT} DHCP leases are held, which is the limit"
            )));
        }
        let entry = entries.entry(owner.clone()).or_default().clone();
        Ok(Visit { table: self.clone(), owner, entry })
    }

    /// The owner's entry, where there is one.
    fn find(self: &Arc<Self>, owner: &Owner, entries: &HashMap<Owner, Arc<Entry>>) -> Option<Visit> {
        let entry = entries.get(owner)?.clone();
        Some(Visit { table: self.clone(), owner: owner.clone(), entry })
    }

    fn forget(&self, owner: &Owner) {
        if let Err(error) = self.keep.forget(owner) {
            eprintln!("{}: forget the lease: {error}", owner.client_id());
        }
    }
}

/// Why a place was not reached.
#[derive(Debug, thiserror::Error)]
enum PlaceError {
    /// The namespace is no more, or the link: nobody uses the address.
    #[error("{0}")]
    Gone(String),
    /// This host's, at this time (no files, no memory): it says nothing about the container.
    #[error("{0}")]
    Trouble(String),
}

impl PlaceError {
    fn of_netns(error: netns::Error) -> Self {
        let text = error.to_string();
        if error.is_gone() { Self::Gone(text) } else { Self::Trouble(text) }
    }

    fn of_netlink(error: netlink::Error) -> Self {
        let text = error.to_string();
        if error.is_gone() { Self::Gone(text) } else { Self::Trouble(text) }
    }
}

/// Where a lease is used.
struct Place {
    netns: Netns,
    netlink: Netlink,
    link: Link,
    mac: [u8; 6],
}

impl Place {
    /// Where a plugin says.
    async fn find(flags: &Flags, question: &Question) -> Result<Self, ErrorReply> {
        let path = question.netns.as_deref();
        let path = path.ok_or_else(|| ErrorReply::internal("no network namespace given"))?;
        Self::look(flags, path, &question.ifname).await.map_err(ErrorReply::internal)
    }

    /// Where a lease was given.
    async fn of(flags: &Flags, held: &Held) -> Result<Self, PlaceError> {
        let place = Self::look(flags, &held.netns, &held.owner.ifname).await?;
        if place.mac == held.mac {
            Ok(place)
        } else {
            Err(PlaceError::Gone("another link has the name".to_owned()))
        }
    }

    async fn look(flags: &Flags, netns: &Path, ifname: &str) -> Result<Self, PlaceError> {
        let netns = Netns::open(flags.on_host(netns)).map_err(PlaceError::of_netns)?;
        let netlink = Netlink::open_in(&netns).map_err(PlaceError::of_netlink)?;
        let link = netlink.link(ifname).await.map_err(PlaceError::of_netlink)?;
        let Some(MacAddress(mac)) = link.mac else {
            return Err(PlaceError::Gone(format!("link {ifname:?} has no hardware address")));
        };
        Ok(Self { netns, netlink, link, mac })
    }

    async fn bring_up(&self) -> Result<(), ErrorReply> {
        if self.link.up {
            return Ok(());
        }
        self.netlink.set_link_up(self.link.index).await.map_err(ErrorReply::internal)
    }
}

/// Of no clock that somebody sets: a step of the wall's would end a lease, or renew it late.
fn now() -> u64 {
    clock::since_boot()
}

#[cfg(test)]
mod tests;
