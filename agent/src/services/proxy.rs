//! The task that owns Services: two watches, the own Node's zone and the ends of this node's pods in; the cache, the dataplane, health
//! check ports, whether pods' SCTP is led and the wakes of `orphans` and `peers` out.
//!
//! ```text
//! Syncing --both watches listed once; ending pods and zone known, or CATCH_UP later--> Running --every change--> Running
//! ```
//! While Syncing the dataplane keeps what an earlier agent left: connections go on being translated, nothing is refused because
//! its slices have not been listed yet, and nobody is sent again to a pod that had left, of which slices may not know. On the
//! way to Running everything wanted is written, then what nobody wants is removed. Running writes what changed. What the
//! dataplane refuses is told as an event and tried again after [`RETRY`]; other Services go on. Who ends a pod is answered once
//! the dataplane was written: while Syncing it may still hold what an earlier agent wrote, so nobody is answered then.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use dataplane::{Frontend, Target, WriteError};
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::departures::Notice;
use super::plan::{Change, Changes, HealthCheck, Key, Planner};
use super::{CacheWriter, Context, convert, health, orphans, peers};
use super::{Known, Type};
use crate::api::{Listing, News, chain, watched};
use crate::events::EventType;

#[cfg(test)]
mod tests;

/// How long a write that the dataplane refused waits.
const RETRY: Duration = Duration::from_secs(30);
/// How long after the watches the first write waits for news of the pods that were ending when the agent began.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Where a node is.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Watch events that are taken in before the dataplane is written once.
const BATCH_EVENTS: usize = 1024;
/// Frontends that are written together: whoever else wants the dataplane waits about a millisecond for them.
const TOGETHER: usize = 256;

type Watched<K> = Result<Event<K>, watcher::Error>;

struct Proxy {
    context: Context,
    cache: CacheWriter,
    planner: Planner,
    services: Listing<Key>,
    slices: Listing<Key>,
    /// Ends of pods that an earlier agent began are known.
    caught_up: bool,
    /// So is the own Node, and with it the zone.
    located: bool,
    /// What an earlier agent programmed could not be removed.
    stale: bool,
    /// When that is waited for no longer; none: the watches have not been listed.
    catch_up_by: Option<Instant>,
    running: bool,
    /// Frontends whose last write failed.
    failed: BTreeSet<Frontend>,
    retry_at: Option<Instant>,
    health: health::Servers,
    wake_orphans: orphans::Wake,
    /// Whether a Service asks for direct return.
    wants_peers: peers::Wanted,
    /// Services whose health check port could not be opened.
    unhealthy: BTreeSet<Key>,
    /// Whether pods' SCTP was to be led when that was last tried, and whether it could be done.
    sctp: Option<(bool, bool)>,
    /// The try that goes on: the kernel verifies programs meanwhile, and Services are not to wait for that.
    leading: Option<(bool, JoinHandle<bool>)>,
    /// Those who end a pod and wait for the next write: at most one for each pod, since each gives up in time.
    waiting: Vec<oneshot::Sender<()>>,
}

/// Runs until shutdown.
pub async fn run(context: Context, cache: CacheWriter, notices: mpsc::Receiver<Notice>) {
    let config = watcher::Config::default();
    let services: Api<ApiService> = Api::all(context.client.clone());
    let slices: Api<EndpointSlice> = Api::all(context.client.clone());
    let services = pin!(watched(watcher(services, config.clone())));
    let slices = pin!(watched(watcher(slices, config.labels(convert::SERVED))));
    let shutdown = context.shutdown.clone();
    let dataplane = context.dataplane.clone();
    let (client, node_name) = (context.client.clone(), context.node_name.clone());
    let proxy = Proxy::new(context, cache);
    let (wake, wants_peers) = (proxy.wake_orphans.clone(), proxy.wants_peers.clone());
    // Cancel-safe: between two polls all state is in the maps, which the next agent adopts.
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = proxy.watch(services, slices, notices) => {}
        () = orphans::run(dataplane.clone(), wake) => {}
        () = peers::run(client, node_name, dataplane, wants_peers) => {}
    }
}

impl Proxy {
    fn new(context: Context, cache: CacheWriter) -> Self {
        Self {
            planner: Planner::new(context.node_addresses.clone()),
            health: health::Servers::everywhere(context.progress.clone()),
            context,
            cache,
            services: Listing::default(),
            slices: Listing::default(),
            caught_up: false,
            located: false,
            stale: false,
            catch_up_by: None,
            running: false,
            failed: BTreeSet::new(),
            retry_at: None,
            unhealthy: BTreeSet::new(),
            sctp: None,
            leading: None,
            wake_orphans: orphans::Wake::default(),
            wants_peers: peers::Wanted::default(),
            waiting: Vec::new(),
        }
    }

    async fn watch(
        mut self,
        mut services: impl Stream<Item = Watched<ApiService>> + Unpin,
        mut slices: impl Stream<Item = Watched<EndpointSlice>> + Unpin,
        mut notices: mpsc::Receiver<Notice>,
    ) {
        loop {
            let wake_at = if self.running { self.retry_at } else { self.catch_up_by };
            // `next` and `recv` take an item only when they return it, a task goes on, and a timer has nothing to lose: each arm is cancel-safe.
            tokio::select! {
                Some(notice) = notices.recv() => self.on_notice(notice),
                Ok(()) = self.context.node.changed() => self.on_node(),
                Some(event) = services.next() => self.on_service(event),
                Some(event) = slices.next() => self.on_slice(event),
                (leads, done) = led(&mut self.leading) => self.on_led(leads, done),
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => self.wake(),
                else => return,
            }
            for _ in 0..BATCH_EVENTS {
                if let Ok(notice) = notices.try_recv() {
                    self.on_notice(notice);
                } else if let Some(Some(event)) = services.next().now_or_never() {
                    self.on_service(event);
                } else if let Some(Some(event)) = slices.next().now_or_never() {
                    self.on_slice(event);
                } else {
                    break;
                }
            }
            self.flush();
            self.answer();
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Departs { pod, stage, applied } => {
                self.planner.depart(&pod, stage);
                self.waiting.retain(|waiting| !waiting.is_closed());
                self.waiting.extend(applied);
            }
            Notice::CaughtUp => self.caught_up = true,
        }
    }

    /// The cloud's controller may label the node late, and its administrator at any time.
    fn on_node(&mut self) {
        // A Node that is deleted is made again: the machine stays where it is.
        let Some(node) = self.context.node.borrow_and_update().clone() else { return };
        self.located = true;
        let labels = node.metadata.labels.as_ref();
        self.planner.set_zone(labels.and_then(|labels| labels.get(ZONE_LABEL)).map(String::as_str));
    }

    fn wake(&mut self) {
        if self.running {
            self.retry_at = None;
            self.retry();
            return;
        }
        if !self.caught_up {
            tracing::warn!("this node's pods are not known yet: those that end may get connections");
        }
        if !self.located {
            tracing::warn!("this node's zone is not known yet: its pods may be led to other zones");
        }
        (self.caught_up, self.located) = (true, true);
    }

    /// Tells those who end pods that the dataplane follows. What it refused has been reported and does not hold them up.
    fn answer(&mut self) {
        if self.running || self.context.dataplane.is_none() {
            for waiting in self.waiting.drain(..) {
                // One that gave up in the meantime has gone on without the answer.
                let _gave_up = waiting.send(());
            }
        }
    }

    fn on_service(&mut self, event: Watched<ApiService>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return warn_watch("services", &error),
        };
        match self.services.on_event(event, |object| convert::key(&object.metadata)) {
            Some(News::Is(key, object)) => self.apply_service(key, &object),
            Some(News::Gone(key)) => {
                self.context.progress.service_changed();
                self.planner.remove_service(&key);
                self.context.directory.remove(&key);
                self.cache.change(|table| table.remove(&key.namespace, &key.name));
            }
            Some(News::All(seen)) => {
                let gone = self.planner.retain_services(&seen);
                gone.iter().for_each(|key| self.context.directory.remove(key));
                self.cache
                    .change(|table| gone.iter().for_each(|key| table.remove(&key.namespace, &key.name)));
                self.cache.set_synced();
            }
            None => {}
        }
    }

    fn apply_service(&mut self, key: Key, object: &ApiService) {
        self.context.progress.service_changed();
        self.cache.change(|table| match convert::entry(object) {
            Some(entry) => table.set(&key.namespace, &key.name, entry),
            None => table.remove(&key.namespace, &key.name),
        });
        let (service, problems) = convert::service(object);
        if self.planner.service(&key).is_none_or(|before| **before != service) {
            self.report(&key, &service.uid, &problems);
        }
        self.planner.set_service(key.clone(), service);
        if let Some(service) = self.planner.service(&key).cloned() {
            let kind = Type::named(object.spec.as_ref().and_then(|spec| spec.type_.as_deref()));
            self.context.directory.set(&key, Known { kind, service });
        }
    }

    fn on_slice(&mut self, event: Watched<EndpointSlice>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return warn_watch("endpointslices", &error),
        };
        match self.slices.on_event(event, |object| convert::key(&object.metadata)) {
            Some(News::Is(key, object)) => self.apply_slice(key, &object),
            Some(News::Gone(key)) => {
                self.context.progress.endpoints_changed();
                self.planner.remove_slice(&key);
            }
            Some(News::All(seen)) => self.planner.retain_slices(&seen),
            None => {}
        }
    }

    fn apply_slice(&mut self, key: Key, object: &EndpointSlice) {
        self.context.progress.endpoints_changed();
        let Some(service) = convert::slice_service(&object.metadata) else {
            self.planner.remove_slice(&key);
            return;
        };
        let (slice, problems) = convert::slice(object, &self.context.node_name);
        let uid = self.planner.service(&service).map(|service| service.uid.clone());
        self.report(&service, &uid.unwrap_or_default(), &problems);
        self.planner.set_slice(key, service, slice);
    }

    fn report(&self, key: &Key, uid: &str, problems: &[String]) {
        for problem in problems {
            self.warn(key, uid, "InvalidService", problem.clone());
        }
    }

    fn warn(&self, key: &Key, uid: &str, reason: &str, message: String) {
        tracing::warn!(service = %key, reason, message);
        self.context.recorder.record(convert::reference(key, uid), EventType::Warning, reason, message);
    }

    /// Writes what changed, once both watches have been listed and ending pods are known.
    fn flush(&mut self) {
        let returns_directly = self.planner.returns_directly();
        // One says it for all; that none does is known once all are.
        if returns_directly || self.services.listed_once {
            self.wants_peers.set(returns_directly);
        }
        if !self.services.listed_once || !self.slices.listed_once {
            return;
        }
        self.catch_up_by.get_or_insert_with(|| Instant::now() + CATCH_UP);
        if !self.caught_up || !self.located {
            return;
        }
        let begun = Instant::now();
        let changes = self.planner.take_changes();
        self.write(changes);
        if !self.running {
            self.running = true;
            self.remove_stale();
        }
        if self.sctp.is_none_or(|(leads, _)| leads != self.planner.leads_sctp()) {
            self.lead_sctp();
        }
        if let Some(dataplane) = &self.context.dataplane {
            self.wake_orphans.after_writes(dataplane);
        }
        self.context.progress.written(begun.elapsed(), self.failed.is_empty() && !self.stale);
    }

    fn write(&mut self, Changes { changes, conflicts, health_checks }: Changes) {
        for conflict in conflicts {
            let message = format!("{} belongs to service {}", conflict.frontend, conflict.winner);
            let uid = self.planner.service(&conflict.loser).map(|service| service.uid.clone());
            self.warn(&conflict.loser, &uid.unwrap_or_default(), "AddressConflict", message);
        }
        self.execute(changes);
        for (service, check) in &health_checks {
            self.health.make_way(service, *check);
        }
        for (service, check) in health_checks {
            self.check_health(&service, check);
        }
    }

    /// In their order.
    fn execute(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut sets = Vec::new();
        for change in changes {
            match change {
                Change::Set { frontend, target, service } => sets.push((frontend, target, service)),
                Change::Remove { frontend } => {
                    self.set(std::mem::take(&mut sets));
                    self.remove(frontend);
                }
            }
            if sets.len() == TOGETHER {
                self.set(std::mem::take(&mut sets));
            }
        }
        self.set(sets);
    }

    fn remove(&mut self, frontend: Frontend) {
        let Some(dataplane) = self.context.dataplane.clone() else { return };
        self.failed.remove(&frontend);
        self.context.directory.disown(frontend);
        if let Err(error) = dataplane.with(|dataplane| dataplane.remove(frontend)) {
            tracing::error!(?frontend, error = chain(&error), "cannot remove a frontend");
            self.failed.insert(frontend);
            self.schedule_retry();
        }
    }

    fn set(&mut self, sets: Vec<(Frontend, Target, Key)>) {
        let Some(dataplane) = self.context.dataplane.clone().filter(|_| !sets.is_empty()) else { return };
        // Whose they are, is told though the kernel may refuse them.
        let anothers: Vec<Frontend> = sets
            .iter()
            .filter(|(frontend, _, service)| self.context.directory.own(*frontend, service))
            .map(|(frontend, ..)| *frontend)
            .collect();
        let (wanted, services): (Vec<(Frontend, Target)>, Vec<Key>) =
            sets.into_iter().map(|(frontend, target, service)| ((frontend, target), service)).unzip();
        let ends = dataplane.with(|dataplane| {
            anothers.into_iter().for_each(|frontend| dataplane.begin_counts(frontend));
            let ends = dataplane.set_all(&wanted).into_iter().zip(&wanted);
            ends.map(|(end, (frontend, _))| end.map(|()| dataplane.lacks_lookup(*frontend)))
                .collect::<Vec<_>>()
        });
        for ((end, (frontend, _)), service) in ends.into_iter().zip(wanted).zip(&services) {
            match end {
                Ok(lacks_lookup) => {
                    self.failed.remove(&frontend);
                    if lacks_lookup {
                        self.report_lack(frontend, service);
                    }
                }
                Err(error) => self.set_failed(frontend, service, &error),
            }
        }
    }

    /// Pods' SCTP is led by packets while a Service needs that. What changes while a try goes on is seen after it.
    fn lead_sctp(&mut self) {
        let Some(bypass) = self.context.bypass.clone().filter(|_| self.leading.is_none()) else { return };
        let leads = self.planner.leads_sctp();
        self.leading = Some((leads, tokio::task::spawn_blocking(move || bypass.lead_sctp(leads))));
    }

    fn on_led(&mut self, leads: bool, done: bool) {
        (self.leading, self.sctp) = (None, Some((leads, done)));
        if !done {
            self.schedule_retry();
        }
    }

    fn report_lack(&self, frontend: Frontend, service: &Key) {
        let uid = self.planner.service(service).map(|service| service.uid.clone()).unwrap_or_default();
        let message = format!(
            "{frontend} has no lookup table, of which this node has no room for more: when its endpoints change, more clients are led anew"
        );
        self.warn(service, &uid, "NoLookupTable", message);
    }

    fn set_failed(&mut self, frontend: Frontend, service: &Key, error: &WriteError) {
        // Told once per outage of a frontend, not at every retry.
        if self.failed.insert(frontend) {
            let uid = self.planner.service(service).map(|service| service.uid.clone());
            self.warn(service, &uid.unwrap_or_default(), "FailedToProgram", chain(error));
        }
        self.schedule_retry();
    }

    /// Whoever leaves the translation to somebody else leaves this to them too.
    fn check_health(&mut self, service: &Key, check: Option<HealthCheck>) {
        if self.context.dataplane.is_none() {
            return;
        }
        let Err(error) = self.health.set(service, check) else {
            self.unhealthy.remove(service);
            return;
        };
        // Told once per outage.
        if self.unhealthy.insert(service.clone()) {
            let uid = self.planner.service(service).map(|service| service.uid.clone());
            let (node, port) = (&self.context.node_name, check.map_or(0, |check| check.port));
            let message =
                format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {error}");
            self.warn(service, &uid.unwrap_or_default(), "FailedToStartServiceHealthcheck", message);
        }
        self.schedule_retry();
    }

    fn schedule_retry(&mut self) {
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    fn retry(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.remove_stale();
        }
        let change = |frontend| {
            let wanted = self.planner.desired(&frontend);
            match wanted.map(|(service, target)| (service.clone(), target.clone())) {
                Some((service, target)) => Change::Set { frontend, target, service },
                None => Change::Remove { frontend },
            }
        };
        let changes: Vec<Change> = self.failed.iter().copied().map(change).collect();
        self.execute(changes);
        for service in self.unhealthy.clone() {
            self.check_health(&service, self.planner.health_check(&service));
        }
        if self.sctp.is_some_and(|(_, done)| !done) {
            self.lead_sctp();
        }
    }

    /// What an earlier agent programmed and nobody wants any more.
    fn remove_stale(&mut self) {
        let Some(dataplane) = self.context.dataplane.clone() else { return };
        let keep = self.planner.frontends();
        match dataplane.with(|dataplane| dataplane.retain(&keep)) {
            Ok(removed) => tracing::info!(frontends = keep.len(), removed, "services are programmed"),
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot remove stale frontends, trying again");
                self.stale = true;
                self.schedule_retry();
            }
        }
    }
}

/// Whether SCTP was to be led, and whether it could be done; never, if nobody tries.
async fn led(leading: &mut Option<(bool, JoinHandle<bool>)>) -> (bool, bool) {
    match leading {
        // One that panicked has told, and is tried again.
        Some((leads, trying)) => (*leads, trying.await.unwrap_or(false)),
        None => std::future::pending().await,
    }
}

fn warn_watch(resource: &str, error: &watcher::Error) {
    tracing::warn!(resource, error = chain(error), "watch failed, retrying with back-off");
}
