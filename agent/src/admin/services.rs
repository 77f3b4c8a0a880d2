//! Answers about Services: what the API asks for, beside what the kernel's maps hold.
//!
//! In: the directory, the dataplane, this node's pods. Out: JSON. Changes nothing. Each list has a limit, and says how many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane::trace::Client as TracedClient;
use dataplane::{Frontend, Origin, Programmed, Protocol, ServiceCounts};
use serde_json::{Value, json};

use super::pods::{Pods, node_cookie};
use super::question::{Address, Client, Namespace, ServiceName};
use super::trace;
use crate::api::chain;
use crate::kubelet_api::DATAPLANE_COUNTERS;
use crate::services::plan::{ByFamily, Key, Port, Service, TrafficPolicy};
use crate::services::{DROPS, Dataplane, Directory, Known, scheduler_name};

#[cfg(test)]
mod tests;

/// Services in one answer.
const MAX_SERVICES: usize = 20_000;
/// Backends in one answer.
const MAX_BACKENDS: usize = 10_000;
/// Services that one backend is told to be listed by.
const MAX_LISTED: usize = 16;
/// Endpoints of one address in one answer.
const MAX_ENDPOINTS: usize = 1000;
/// Clients with session affinity in one answer.
const MAX_CLIENTS: usize = 1000;

type Answer = Result<Value, String>;

/// What the answers come from.
pub struct Desk<'a> {
    pub directory: &'a Directory,
    pub dataplane: &'a Dataplane,
    pub pods: &'a Pods,
}

/// What was refused or dropped, each reason with what to do about it.
pub fn drops(dataplane: &Dataplane) -> Answer {
    let counters = dataplane.with(|dataplane| dataplane.counters()).map_err(|error| chain(&error))?;
    let row = |drop: &crate::services::DropReason| {
        let (_, reason) = DATAPLANE_COUNTERS.iter().find(|(number, _)| *number == drop.counter)?;
        let count = counters.get(drop.counter as usize)?;
        Some(json!({"reason": reason, "count": count, "meaning": drop.meaning, "remedy": drop.remedy}))
    };
    let mut rows: Vec<Value> = DROPS.iter().filter_map(row).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row["count"].as_u64()));
    Ok(Value::Array(rows))
}

/// At most `limit` rows, and how many there are.
fn limited(rows: Vec<Value>, limit: usize) -> Value {
    let total = rows.len();
    let items: Vec<Value> = rows.into_iter().take(limit).collect();
    json!({"total": total, "items": items})
}

impl Desk<'_> {
    /// The Services that have an address here.
    pub fn list(&self, namespace: Option<&Namespace>) -> Answer {
        let frontends = self.directory.all_frontends();
        let counts: HashMap<Frontend, ServiceCounts> =
            self.dataplane.with(|dataplane| dataplane.service_counts()).into_iter().collect();
        let wanted = |(key, known): &(Arc<Key>, Known)| {
            namespace.is_none_or(|namespace| namespace.0 == key.namespace)
                && !known.service.cluster_ips.is_empty()
        };
        let services: Vec<_> = self.directory.services().into_iter().filter(wanted).collect();
        let row = |(key, known): &(Arc<Key>, Known)| {
            let own = frontends.get(key).map(Vec::as_slice).unwrap_or_default();
            self.row(key, known, own, &counts)
        };
        Ok(limited(services.iter().map(row).collect(), MAX_SERVICES))
    }

    fn row(
        &self,
        key: &Key,
        Known { kind, service }: &Known,
        own: &[Frontend],
        counts: &HashMap<Frontend, ServiceCounts>,
    ) -> Value {
        let endpoints = self.dataplane.with(|dataplane| dataplane.endpoints_of(own));
        let sum = total(own.iter().filter_map(|frontend| counts.get(frontend)));
        let outside = service.external_ips.iter().chain(&service.balancer_ips);
        json!({
            "namespace": key.namespace,
            "name": key.name,
            "type": kind.as_str(),
            "cluster_ips": texts(&service.cluster_ips),
            "external_ips": outside.map(ToString::to_string).collect::<BTreeSet<_>>(),
            "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
            "scheduler": scheduler_name(service.scheduling.scheduler),
            "endpoints": endpoints,
            "flows": sum.led,
            "refused": sum.no_backend + sum.forbidden,
        })
    }

    /// All about one Service, or about a frontend that no Service has claimed.
    pub fn get(&self, of: &ServiceName) -> Answer {
        let (key, found) = self.find(of)?;
        let frontends = key.as_ref().map_or(found, |key| self.directory.frontends(key));
        let known = key.as_ref().and_then(|key| self.directory.get(key));
        let mut value = match (&key, &known) {
            (Some(key), Some(known)) => head(key, known),
            _ => json!({"namespace": null, "name": null}),
        };
        let rows: Result<Vec<Value>, String> =
            frontends.iter().map(|frontend| self.frontend(*frontend)).collect();
        value["frontends"] = Value::Array(rows?);
        Ok(value)
    }

    fn frontend(&self, frontend: Frontend) -> Answer {
        let owner = self.directory.owner(frontend);
        let programmed = self.dataplane.with(|dataplane| dataplane.programmed(frontend));
        let mut value = json!({
            "address": frontend.to_string(),
            "kind": owner.as_ref().map(|owner| owner.kind.as_str()),
            "port": owner.as_ref().map(|owner| port(&owner.port)),
            "kernel": null,
        });
        if let Some(programmed) = programmed.map_err(|error| chain(&error))? {
            kernel(&mut value, &programmed);
        }
        Ok(value)
    }

    /// Every backend, of one Service or of all.
    pub fn backends(&self, of: Option<&ServiceName>) -> Answer {
        let frontends = of.map(|of| self.find(of)).transpose()?.map(|(_, frontends)| frontends);
        let all = self.dataplane.with(|dataplane| dataplane.backends(frontends.as_deref()));
        let rows = all.iter().map(|backend| {
            let mut row = trace::shown(&backend.endpoint);
            for (name, frontends) in [("services", &backend.listed), ("draining", &backend.draining)] {
                let all: BTreeSet<String> = frontends.iter().map(|frontend| self.named(*frontend)).collect();
                row[format!("{name}_total")] = json!(all.len());
                row[name] = all.into_iter().take(MAX_LISTED).collect();
            }
            row["failures"] = json!(backend.failures);
            row["aside_seconds"] = json!(backend.aside_seconds);
            row["connections"] = json!(backend.counts.then_some(backend.connections));
            row
        });
        Ok(limited(rows.collect(), MAX_BACKENDS))
    }

    /// The Service and port of a frontend; its address, where no Service has claimed it.
    fn named(&self, frontend: Frontend) -> String {
        match self.directory.owner(frontend) {
            Some(owner) => format!("{}:{}", owner.key, owner.port.port),
            None => frontend.to_string(),
        }
    }

    /// The clients that stay with an endpoint.
    pub fn affinity(&self, of: Option<&ServiceName>) -> Answer {
        let wanted = of.map(|of| self.find(of)).transpose()?;
        let wanted: Option<BTreeSet<Frontend>> = wanted.map(|(_, frontends)| frontends.into_iter().collect());
        let all = self.dataplane.with(|dataplane| dataplane.staying()).map_err(|error| chain(&error))?;
        let is_wanted = |frontend| wanted.as_ref().is_none_or(|wanted| wanted.contains(&frontend));
        let mut all: Vec<_> = all.into_iter().filter(|stays| is_wanted(stays.frontend)).collect();
        all.sort_by_key(|stays| (stays.frontend, stays.origin, stays.client));
        let inside = all.iter().take(MAX_CLIENTS).any(|stays| stays.origin == Origin::Inside);
        let names = if inside { self.pods.by_cookie() } else { HashMap::new() };
        let row = |stays: &dataplane::Stays| {
            let client = match stays.origin {
                Origin::Outside => stays.address().to_string(),
                Origin::Inside => match (stays.packets(), names.get(&stays.netns())) {
                    (Some(address), _) => format!("packets of {address}"),
                    (None, Some(name)) => name.clone(),
                    (None, None) => format!("network namespace {}", stays.netns()),
                },
            };
            json!({
                "frontend": stays.frontend.to_string(),
                "service": self.directory.owner(stays.frontend).map(|owner| owner.key.to_string()),
                "origin": trace::origin_name(stays.origin),
                "client": client,
                "endpoint": trace::shown(&stays.endpoint),
                "seconds_left": stays.seconds,
            })
        };
        let rows: Vec<Value> = all.iter().take(MAX_CLIENTS).map(row).collect();
        Ok(json!({"total": all.len(), "items": rows}))
    }

    /// Where a client would be led, and why.
    pub fn trace(&self, to: &Address, from: &Client) -> Answer {
        let to = self.frontend_of(to)?;
        let (from, client) = self.client(from)?;
        let (traced, neighbours, serves_inside) = self.dataplane.with(|dataplane| {
            let mut neighbours = dataplane.neighbours(to);
            neighbours.truncate(trace::MAX_NEIGHBOURS);
            let serves_inside = !dataplane.inside_is_empty(to);
            (dataplane.trace(to, client), neighbours, serves_inside)
        });
        let asked = trace::Asked {
            to,
            from,
            origin: client.origin(),
            owner: self.directory.owner(to),
            neighbours,
            wanted_by: self.directory.claimant(to).map(|key| key.to_string()),
            serves_inside,
        };
        Ok(trace::explain(&asked, &traced.map_err(|error| chain(&error))?))
    }

    /// An address without a protocol means the one that is there.
    fn frontend_of(&self, Address { address, protocol }: &Address) -> Result<Frontend, String> {
        let at = |protocol| Frontend { address: address.ip(), port: address.port(), protocol };
        if let Some(protocol) = protocol {
            return Ok(at(*protocol));
        }
        let there = self.dataplane.with(|dataplane| dataplane.neighbours(at(Protocol::Tcp)));
        let there: Vec<Frontend> = there.into_iter().filter(|other| other.port == address.port()).collect();
        match there.as_slice() {
            [] => Ok(at(Protocol::Tcp)),
            [one] => Ok(*one),
            several => {
                let several: Vec<String> = several.iter().map(ToString::to_string).collect();
                Err(format!("{address} answers over several protocols: say which, {}", several.join(" or ")))
            }
        }
    }

    /// The client as the dataplane knows it. An address of a pod here is that pod's sockets.
    fn client(&self, from: &Client) -> Result<(Client, TracedClient), String> {
        let inside = |netns| TracedClient::Inside { netns };
        match from {
            Client::Node => Ok((Client::Node, inside(node_cookie()?))),
            Client::Pod(pod) => Ok((from.clone(), inside(self.pods.cookie(pod)?))),
            Client::Outside { address, .. } if address.is_loopback() => {
                Err(format!("{address} is this node itself: ask as `node`"))
            }
            Client::Outside { address, port } => match self.pods.at(*address) {
                Some(pod) => {
                    let netns = self.pods.cookie(&pod)?;
                    Ok((Client::Pod(pod), inside(netns)))
                }
                None if Self::is_own(*address) => Err(format!("{address} is this node's own: ask as `node`")),
                None => Ok((from.clone(), TracedClient::Outside { address: *address, port: *port })),
            },
        }
    }

    /// Whether it is an address of this node.
    fn is_own(address: IpAddr) -> bool {
        let of = |interface: nix::ifaddrs::InterfaceAddress| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        };
        nix::ifaddrs::getifaddrs().is_ok_and(|mut all| all.any(|interface| of(interface) == Some(address)))
    }

    /// A Service's name and all its frontends; by an address, those that are there, and whose they are if that is known.
    fn find(&self, of: &ServiceName) -> Result<(Option<Arc<Key>>, Vec<Frontend>), String> {
        let address = match of {
            ServiceName::Key(key) => {
                let known = self.directory.get(key);
                let known = known.ok_or_else(|| {
                    format!(
                        "there is no Service {key}, or none that the API has told this agent of yet: `orlopctl service ls` lists those \
                         that are known; what is led already can be asked for by ADDRESS:PORT"
                    )
                })?;
                if known.service.cluster_ips.is_empty() {
                    return Err(format!(
                        "Service {key} has no address to lead: it is headless, an ExternalName, or left to another proxy by its labels"
                    ));
                }
                return Ok((Some(Arc::new(key.clone())), self.directory.frontends(key)));
            }
            ServiceName::Address(address) => address,
        };
        let of_port = |other: &Frontend| {
            other.port == address.address.port()
                && address.protocol.is_none_or(|wanted| wanted == other.protocol)
        };
        let probe = Frontend {
            address: address.address.ip(),
            port: address.address.port(),
            protocol: address.protocol.unwrap_or(Protocol::Tcp),
        };
        let at_address = self.dataplane.with(|dataplane| dataplane.neighbours(probe));
        let there: Vec<Frontend> = at_address.iter().copied().filter(of_port).collect();
        let Some(first) = there.first() else {
            // One that the kernel refused is told with the rest of its Service.
            if let Some(key) = self.directory.claimant(probe) {
                return Ok((Some(key), Vec::new()));
            }
            let others: Vec<String> =
                at_address.iter().take(trace::MAX_NEIGHBOURS).map(ToString::to_string).collect();
            let hint = if others.is_empty() {
                "nor at another port of that address: `orlopctl service ls` lists the addresses".to_owned()
            } else {
                format!("but at {}", others.join(", "))
            };
            return Err(format!("no Service answers at {address}, {hint}"));
        };
        let owner = |frontend| self.directory.owner(frontend).map(|owner| owner.key);
        let first_owner = owner(*first);
        if there.iter().any(|frontend| owner(*frontend) != first_owner) {
            let of = |frontend: &Frontend| format!("{frontend} of {}", self.named(*frontend));
            let all: Vec<String> = there.iter().map(of).collect();
            return Err(format!(
                "{address} is of several Services: say which protocol, {}",
                all.join(" or ")
            ));
        }
        Ok((first_owner, there))
    }
}

/// What the API says of a Service.
fn head(key: &Key, Known { kind, service }: &Known) -> Value {
    json!({
        "namespace": key.namespace,
        "name": key.name,
        "type": kind.as_str(),
        "scheduler": scheduler_name(service.scheduling.scheduler),
        "affinity_seconds": service.affinity_seconds,
        "internal_traffic_policy": policy(service.internal_policy),
        "external_traffic_policy": policy(service.external_policy),
        "forwarding_mode": if service.direct_return { "dsr" } else { "snat" },
        "source_ranges": source_ranges(service),
        "health_check_port": service.health_check_port,
        "publish_not_ready_addresses": service.publish_not_ready,
    })
}

/// `None`: everybody may ask.
fn source_ranges(service: &Service) -> Option<Vec<String>> {
    let ByFamily { v4, v6 } = &service.source_ranges;
    if v4.is_none() && v6.is_none() {
        return None;
    }
    let all = [v4, v6].into_iter().flatten().flat_map(|ranges| ranges.iter());
    Some(all.map(ToString::to_string).collect())
}

fn policy(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

/// As kubectl shows a port: `80:30080/TCP`.
fn port(port: &Port) -> String {
    let node_port = port.node_port.map_or_else(String::new, |node_port| format!(":{node_port}"));
    format!("{}{node_port}/{}", port.port, port.protocol.name())
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// What the maps hold for a frontend.
fn kernel(value: &mut Value, programmed: &Programmed) {
    let Programmed { slot, service, counts, tables: [inside, outside] } = programmed;
    value["flows"] = json!(counts.led);
    value["refused_no_endpoint"] = json!(counts.no_backend);
    value["refused_source_range"] = json!(counts.forbidden);
    let mut endpoints: BTreeMap<SocketAddr, Value> = BTreeMap::new();
    for (name, table) in [("inside", inside), ("outside", outside)] {
        for (endpoint, places) in &table.endpoints {
            let row = endpoints.entry(endpoint.address).or_insert_with(|| trace::shown(endpoint));
            row[name] = json!(format!("{places}/{}", table.selection.length));
        }
    }
    value["endpoints_total"] = json!(endpoints.len());
    value["endpoints"] = endpoints.into_values().take(MAX_ENDPOINTS).collect();
    value["kernel"] = json!({
        "slot": slot,
        "flags": service.flags,
        "affinity_seconds": service.affinity_seconds,
        "source_set": service.sources,
        "turns": service.turns,
        "inside": trace::selected(inside.selection),
        "outside": trace::selected(outside.selection),
    });
}

/// The counts of all frontends of a Service.
fn total<'a>(counts: impl Iterator<Item = &'a ServiceCounts>) -> ServiceCounts {
    counts.fold(ServiceCounts::default(), |sum, one| ServiceCounts {
        led: sum.led + one.led,
        no_backend: sum.no_backend + one.no_backend,
        forbidden: sum.forbidden + one.forbidden,
    })
}
