//! The leases: found by owner, each with a task that extends it until it is released, refused or over.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cni::{AddResult, ErrorReply};
use linux::{
    netlink::{Link, MacAddress, Netlink},
    netns::Netns,
};
use tokio::{sync::Mutex as AsyncMutex, task::AbortHandle};

use crate::dhcp::{
    config::Options,
    exchange::{self, Client, Extended},
    flags::Flags,
    keep::{Held, Keep, Owner},
    lease::{Lease, Next},
    talk::Question,
};

/// Leases of one node.
const LEASE_LIMIT: usize = 8192;

/// See the module.
pub(super) struct Table {
    flags: Flags,
    keep: Keep,
    entries: Mutex<HashMap<Owner, Arc<Entry>>>,
}

/// One owner's place. Whoever holds the lock of `held` is the one who speaks to servers for it.
#[derive(Default)]
struct Entry {
    held: AsyncMutex<Option<Held>>,
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

impl Table {
    /// Goes on with what an earlier daemon held.
    pub(super) fn adopt(flags: Flags, keep: Keep) -> io::Result<Arc<Self>> {
        let all = keep.all()?;
        let table = Arc::new(Self { flags, keep, entries: Mutex::default() });
        for held in all {
            let owner = held.owner.clone();
            let entry = Arc::new(Entry { held: AsyncMutex::new(Some(held)), ..Entry::default() });
            table.entries().insert(owner.clone(), entry.clone());
            table.start(owner, &entry);
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

    /// The lease that the owner has for this link, or a new one.
    async fn add(self: &Arc<Self>, owner: Owner, question: &Question) -> Result<AddResult, ErrorReply> {
        let entry = self.entry(&owner)?;
        let mut held = entry.held.lock().await;
        let place = Place::find(&self.flags, question).await?;
        if let Some(held) = held.as_ref().filter(|held| held.mac == place.mac) {
            return Ok(held.lease.result(question.priority));
        }
        // A lease of a link that was replaced is nobody's any more.
        entry.set_task(None);
        let acquired = self.acquire(&owner, question, place).await;
        let new = match acquired {
            Ok(new) => new,
            Err(error) => {
                *held = None;
                drop(held);
                self.remove(&owner, &entry);
                return Err(error);
            }
        };
        let result = new.lease.result(question.priority);
        *held = Some(new);
        self.start(owner, &entry);
        Ok(result)
    }

    async fn acquire(&self, owner: &Owner, question: &Question, place: Place) -> Result<Held, ErrorReply> {
        place.bring_up().await?;
        let client_id = owner.client_id();
        let client = self.client(&place, &client_id, &question.options)?;
        let ack = client.acquire().await.map_err(ErrorReply::internal)?;
        let lease = Lease::of(&ack, now()).map_err(ErrorReply::internal)?;
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

    async fn check(&self, owner: &Owner) -> Result<(), ErrorReply> {
        let entry = self.entries().get(owner).cloned();
        let held = match &entry {
            Some(entry) => entry.held.lock().await.is_some(),
            None => false,
        };
        if held {
            Ok(())
        } else {
            Err(ErrorReply::internal(format!("no DHCP lease of {}", owner.client_id())))
        }
    }

    /// Gives the lease back. None is success, and so is a namespace that is gone: the server's clock then frees the address.
    async fn release(&self, owner: &Owner) {
        let Some(entry) = self.entries().get(owner).cloned() else { return };
        entry.set_task(None);
        let held = entry.held.lock().await.take();
        if let Some(held) = held {
            if let Err(error) = self.give_back(&held).await {
                eprintln!("{}: release {}: {error}", owner.client_id(), held.lease.address);
            }
            self.forget(owner);
        }
        self.remove(owner, &entry);
    }

    async fn give_back(&self, held: &Held) -> Result<(), String> {
        let Ok(place) = Place::of(&self.flags, held).await else { return Ok(()) };
        let client_id = held.owner.client_id();
        let client = self.client(&place, &client_id, &held.options).map_err(|error| error.to_string())?;
        client.release(&held.lease).await.map_err(|error| error.to_string())
    }

    async fn collect(&self, question: &Question) {
        let is_kept = |owner: &Owner| {
            let attachment = (owner.container_id.clone(), owner.ifname.clone());
            owner.network != question.network || question.valid.contains(&attachment)
        };
        let lost: Vec<Owner> = self.entries().keys().filter(|owner| !is_kept(owner)).cloned().collect();
        for owner in &lost {
            self.release(owner).await;
        }
    }

    fn start(self: &Arc<Self>, owner: Owner, entry: &Arc<Entry>) {
        let task = tokio::spawn(self.clone().extend(owner, entry.clone()));
        entry.set_task(Some(task.abort_handle()));
    }

    /// The task of one lease.
    async fn extend(self: Arc<Self>, owner: Owner, entry: Arc<Entry>) {
        while let Some(pause) = self.step(&entry).await {
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
        if self.remove(&owner, &entry) {
            self.forget(&owner);
        }
    }

    /// Seconds until the next step; none when the lease is over.
    async fn step(&self, entry: &Entry) -> Option<u64> {
        let mut held = entry.held.lock().await;
        let current = held.as_mut()?;
        let (of_all, pause) = match current.lease.next(now()) {
            Next::Wait(seconds) => return Some(seconds),
            Next::Renew { pause } => (false, pause),
            Next::Rebind { pause } => (true, pause),
            Next::Over => {
                self.end(held.take()?, "is over").await;
                return None;
            }
        };
        // Its container is gone, and nobody said so: then there is nothing to extend.
        let Ok(place) = Place::of(&self.flags, current).await else {
            held.take();
            return None;
        };
        let client_id = current.owner.client_id();
        let client = self.client(&place, &client_id, &current.options).ok()?;
        match client.extend(&current.lease, of_all).await {
            Extended::NoAnswer => Some(pause),
            Extended::Refused => {
                self.end(held.take()?, "was refused").await;
                None
            }
            Extended::Acknowledged(ack) => {
                match Lease::of(&ack, now()) {
                    Ok(lease) => current.lease = lease,
                    Err(error) => eprintln!("{client_id}: {error}"),
                }
                if let Err(error) = self.keep.store(current) {
                    eprintln!("{client_id}: keep the lease: {error}");
                }
                Some(0)
            }
        }
    }

    /// An address that is somebody else's by now must not be used.
    async fn end(&self, held: Held, why: &str) {
        eprintln!(
            "{}: the lease of {} {why}: its link goes down",
            held.owner.client_id(),
            held.lease.address
        );
        if let Ok(place) = Place::of(&self.flags, &held).await
            && let Err(error) = place.netlink.set_link_down(place.link.index).await
        {
            eprintln!("{error}");
        }
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

    fn entry(&self, owner: &Owner) -> Result<Arc<Entry>, ErrorReply> {
        let mut entries = self.entries();
        if entries.len() >= LEASE_LIMIT && !entries.contains_key(owner) {
            return Err(ErrorReply::internal(format!(
                "{LEASE_LIMIT} DHCP leases are held, which is the limit"
            )));
        }
        Ok(entries.entry(owner.clone()).or_default().clone())
    }

    /// Takes the owner's place out, unless it is another one by now.
    fn remove(&self, owner: &Owner, entry: &Arc<Entry>) -> bool {
        let mut entries = self.entries();
        let is_this = entries.get(owner).is_some_and(|present| Arc::ptr_eq(present, entry));
        is_this && entries.remove(owner).is_some()
    }

    fn forget(&self, owner: &Owner) {
        if let Err(error) = self.keep.forget(owner) {
            eprintln!("{}: {error}", owner.client_id());
        }
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

    /// Where a lease was given; an error when that is not there any more.
    async fn of(flags: &Flags, held: &Held) -> Result<Self, String> {
        let place = Self::look(flags, &held.netns, &held.owner.ifname).await?;
        if place.mac == held.mac { Ok(place) } else { Err("another link has the name".to_owned()) }
    }

    async fn look(flags: &Flags, netns: &Path, ifname: &str) -> Result<Self, String> {
        let netns = Netns::open(flags.on_host(netns)).map_err(|error| error.to_string())?;
        let netlink = Netlink::open_in(&netns).map_err(|error| error.to_string())?;
        let link = netlink.link(ifname).await.map_err(|error| error.to_string())?;
        let mac = link.mac.ok_or_else(|| format!("link {ifname:?} has no hardware address"))?.0;
        Ok(Self { netns, netlink, link, mac })
    }

    async fn bring_up(&self) -> Result<(), ErrorReply> {
        if self.link.up {
            return Ok(());
        }
        self.netlink.set_link_up(self.link.index).await.map_err(ErrorReply::internal)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
