//! Cluster addresses and node ports: who has which, in memory, rebuilt from the store at start.
//!
//! Input: a service and, for an update, its old state. Output: the service with its address and node ports filled in,
//! and a reservation. A reservation that is dropped without `keep` gives back what it took. [`Bookkeeping`] ties that to
//! the commit of the service, so that an address is taken exactly when its service is stored. Refuses what is taken or out of range, in upstream's words.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::error::FieldError;
use crate::kinds::needs_health_check_port;
use crate::object::{child, items, text};
use families::Family;

mod families;

/// Random tries before the range is searched from its start.
const RANDOM_TRIES: usize = 8;

#[derive(Debug, Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    ports: HashSet<u16>,
}

/// The two allocators.
#[derive(Clone)]
pub struct Allocators {
    /// At most one of each family; the first one's is the default.
    ranges: Arc<[IpNetwork]>,
    ports: RangeInclusive<u16>,
    taken: Arc<Mutex<Taken>>,
}

/// What an allocation took. Dropped without [`Reservation::keep`], it is given back.
pub struct Reservation {
    allocators: Allocators,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Reservation {
    pub fn keep(mut self) {
        self.addresses.clear();
        self.ports.clear();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut taken = self.allocators.lock();
        self.addresses.iter().for_each(|address| {
            taken.addresses.remove(address);
        });
        self.ports.iter().for_each(|port| {
            taken.ports.remove(port);
        });
    }
}

/// What the commit of a service's write settles: what it took is kept or given back, what it left is given back.
pub struct Bookkeeping {
    allocators: Allocators,
    reservation: Option<Reservation>,
    old: Option<Value>,
    new: Option<Value>,
}

impl Bookkeeping {
    /// For a service that becomes `new` (nothing, when deleted) from `old` (nothing, when created).
    pub fn new(
        allocators: &Allocators,
        reservation: Option<Reservation>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Self {
        Bookkeeping { allocators: allocators.clone(), reservation, old: old.cloned(), new: new.cloned() }
    }

    /// The write is stored. Dropped without this, the write was refused.
    pub fn stored(mut self) {
        if let Some(reservation) = self.reservation.take() {
            reservation.keep();
        }
        if let Some(old) = &self.old {
            self.allocators.release(old, self.new.as_ref());
        }
    }
}

impl Allocators {
    /// `ranges`: of cluster addresses, one or one of each family.
    pub fn new(ranges: &[IpNetwork], ports: RangeInclusive<u16>) -> Self {
        Allocators { ranges: ranges.into(), ports, taken: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a stored service has.
    pub fn adopt(&self, service: &Value) {
        let mut taken = self.lock();
        taken.addresses.extend(families::addresses(service));
        taken.ports.extend(ports_of(service));
    }

    /// Gives back what `old` had and `new` (nothing, when deleted) has not.
    pub fn release(&self, old: &Value, new: Option<&Value>) {
        let kept: Vec<IpAddr> = new.map(families::addresses).unwrap_or_default();
        let kept_ports: HashSet<u16> = new.into_iter().flat_map(ports_of).collect();
        let mut taken = self.lock();
        for address in families::addresses(old).into_iter().filter(|address| !kept.contains(address)) {
            taken.addresses.remove(&address);
        }
        for port in ports_of(old).into_iter().filter(|port| !kept_ports.contains(port)) {
            taken.ports.remove(&port);
        }
    }

    /// Fills in the families, the addresses, the node ports and the health check port of `service`.
    pub fn allocate(&self, service: &mut Value, old: Option<&Value>) -> Result<Reservation, Vec<FieldError>> {
        let mut reservation =
            Reservation { allocators: self.clone(), addresses: Vec::new(), ports: Vec::new() };
        let mut errors = Vec::new();
        let kind = text(service, "/spec/type").to_owned();
        if kind == "ExternalName" {
            let spec = child(service, "spec");
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(field);
            }
        } else if !old.is_some_and(|old| families::is_unchanged(service, old)) {
            let configured: Vec<Family> = self.ranges.iter().map(|range| Family::of(range.ip())).collect();
            families::settle(service, old, &configured)?;
            if let Err(error) = self.addresses(service, old, &mut reservation) {
                errors.push(error);
            }
        }
        if kind == "NodePort" || kind == "LoadBalancer" {
            self.node_ports(service, old, &mut reservation, &mut errors);
        } else {
            let ports = child(service, "spec").get_mut("ports").and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
                port.remove("nodePort");
            }
        }
        // After the node ports, of which the service may have chosen some.
        if needs_health_check_port(service)
            && let Err(error) = self.health_check_port(service, old, &mut reservation)
        {
            errors.push(error);
        }
        if errors.is_empty() { Ok(reservation) } else { Err(errors) }
    }

    fn addresses(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), FieldError> {
        let mut wanted = Vec::new();
        if text(service, "/spec/clusterIP") == "None" {
            wanted.push("None".to_owned());
        } else {
            let mut asked = families::spelled(service).into_iter();
            let held = old.map(families::addresses).unwrap_or_default();
            for family in families::of(service) {
                let address = match asked.next() {
                    Some((text, address)) if held.contains(&address) => text,
                    Some((text, address)) => self.take_address(address, reservation).map(|()| text)?,
                    None => self.any_address(family, reservation)?.to_string(),
                };
                wanted.push(address);
            }
        }
        let spec = child(service, "spec");
        spec.insert("clusterIP".into(), wanted.first().cloned().into());
        spec.insert("clusterIPs".into(), wanted.into());
        Ok(())
    }

    fn range(&self, family: Family) -> Option<IpNetwork> {
        self.ranges.iter().copied().find(|range| Family::of(range.ip()) == family)
    }

    fn take_address(&self, address: IpAddr, reservation: &mut Reservation) -> Result<(), FieldError> {
        let refused = |why: String| {
            let detail = format!("failed to allocate IP {address}: {why}");
            FieldError::invalid("spec.clusterIPs", json!([address.to_string()]), &detail)
        };
        let range = self.range(Family::of(address));
        if !range.is_some_and(|range| is_usable(range, address)) {
            let range = range.map_or_else(|| "none".to_owned(), |range| range.to_string());
            return Err(refused(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
            )));
        }
        if !self.lock().addresses.insert(address) {
            return Err(refused("provided IP is already allocated".into()));
        }
        reservation.addresses.push(address);
        Ok(())
    }

    fn any_address(&self, family: Family, reservation: &mut Reservation) -> Result<IpAddr, FieldError> {
        let mut taken = self.lock();
        let found = self.range(family).and_then(|range| {
            let mut all = (0..RANDOM_TRIES).filter_map(|_| random_address(range)).chain(range.iter());
            let first = nth(range, 1);
            all.find(|address| {
                is_usable(range, *address) && Some(*address) != first && !taken.addresses.contains(address)
            })
        });
        let Some(address) = found else {
            let detail = "failed to allocate a serviceIP: range is full";
            return Err(FieldError::invalid("spec.clusterIPs", Value::Null, detail));
        };
        taken.addresses.insert(address);
        reservation.addresses.push(address);
        Ok(address)
    }

    fn node_ports(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
        errors: &mut Vec<FieldError>,
    ) {
        let held: HashSet<u16> = old.into_iter().flat_map(ports_of).collect();
        let ports = child(service, "spec").get_mut("ports").and_then(Value::as_array_mut);
        // One service may use one number for TCP and UDP.
        let mut own: HashSet<u16> = HashSet::new();
        for (index, port) in ports.into_iter().flatten().enumerate() {
            let path = format!("spec.ports[{index}].nodePort");
            let wanted = port["nodePort"].as_u64().filter(|number| *number != 0);
            let taken = match wanted {
                Some(number) => self.take_port(
                    number,
                    &path,
                    |port| held.contains(&port) || own.contains(&port),
                    reservation,
                ),
                None => self.any_port(&path, reservation),
            };
            match taken {
                Ok(number) => {
                    own.insert(number);
                    port["nodePort"] = number.into();
                }
                Err(error) => errors.push(error),
            }
        }
    }

    fn health_check_port(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), FieldError> {
        let path = "spec.healthCheckNodePort";
        let held = old.and_then(health_check_port_of);
        let wanted = service["spec"]["healthCheckNodePort"].as_u64().filter(|number| *number != 0);
        let number = match wanted {
            Some(number) => self.take_port(number, path, |port| held == Some(port), reservation)?,
            None => self.any_port(path, reservation)?,
        };
        service["spec"]["healthCheckNodePort"] = number.into();
        Ok(())
    }

    fn take_port(
        &self,
        number: u64,
        path: &str,
        is_own: impl Fn(u16) -> bool,
        reservation: &mut Reservation,
    ) -> Result<u16, FieldError> {
        let port = u16::try_from(number).ok().filter(|port| self.ports.contains(port));
        let Some(port) = port else {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.start(),
                self.ports.end()
            );
            return Err(FieldError::invalid(path, number, &detail));
        };
        if is_own(port) {
            return Ok(port);
        }
        if !self.lock().ports.insert(port) {
            return Err(FieldError::invalid(path, number, "provided port is already allocated"));
        }
        reservation.ports.push(port);
        Ok(port)
    }

    fn any_port(&self, path: &str, reservation: &mut Reservation) -> Result<u16, FieldError> {
        let mut taken = self.lock();
        let count = u32::from(self.ports.end() - self.ports.start()) + 1;
        let random = (0..RANDOM_TRIES).map(|_| self.ports.start() + (random() % count) as u16);
        let found = random.chain(self.ports.clone()).find(|port| !taken.ports.contains(port));
        let Some(port) = found else {
            let detail = "failed to allocate a nodePort: range is full";
            return Err(FieldError::invalid(path, Value::Null, detail));
        };
        taken.ports.insert(port);
        reservation.ports.push(port);
        Ok(port)
    }
}

fn random() -> u32 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]])
}

/// Not the network's own address (in IPv6 any router's), and in IPv4 not the broadcast.
fn is_usable(range: IpNetwork, address: IpAddr) -> bool {
    range.contains(address) && address != range.network() && (range.is_ipv6() || address != range.broadcast())
}

/// The address at a place of a range.
pub fn nth(range: IpNetwork, place: u32) -> Option<IpAddr> {
    match range {
        IpNetwork::V4(range) => range.nth(place).map(IpAddr::V4),
        IpNetwork::V6(range) => range.nth(place.into()).map(IpAddr::V6),
    }
}

/// Of a range of IPv6 one of the first 2^32.
fn random_address(range: IpNetwork) -> Option<IpAddr> {
    let size = match range {
        IpNetwork::V4(range) => range.size(),
        IpNetwork::V6(range) => u32::try_from(range.size()).unwrap_or(u32::MAX),
    };
    nth(range, random() % size)
}

fn ports_of(service: &Value) -> Vec<u16> {
    let numbers = items(service, "/spec/ports").iter().filter_map(|port| port_of(&port["nodePort"]));
    numbers.chain(health_check_port_of(service)).collect()
}

fn health_check_port_of(service: &Value) -> Option<u16> {
    port_of(&service["spec"]["healthCheckNodePort"])
}

fn port_of(number: &Value) -> Option<u16> {
    number.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    //! Taking, refusing, giving back.

    use super::*;

    fn allocators() -> Allocators {
        Allocators::new(&["10.96.0.0/29".parse().unwrap()], 30000..=30001)
    }

    fn service(kind: &str, address: &str, node_port: u64) -> Value {
        let addresses = if address.is_empty() { json!([]) } else { json!([address]) };
        json!({"spec": {"type": kind, "clusterIP": address, "clusterIPs": addresses,
            "ports": [{"port": 80, "nodePort": node_port}]}})
    }

    fn body(result: Result<Reservation, Vec<FieldError>>) -> String {
        result.err().unwrap()[0].body.clone()
    }

    #[test]
    fn an_address_is_taken_until_its_service_is_gone() {
        let allocators = allocators();
        let mut first = service("ClusterIP", "10.96.0.5", 0);
        allocators.allocate(&mut first, None).unwrap().keep();
        assert_eq!(first["spec"]["clusterIPs"], json!(["10.96.0.5"]));
        let again = allocators.allocate(&mut service("ClusterIP", "10.96.0.5", 0), None);
        assert!(body(again).ends_with("failed to allocate IP 10.96.0.5: provided IP is already allocated"));
        assert!(
            allocators.allocate(&mut first.clone(), Some(&first)).is_ok(),
            "its own address is no conflict"
        );
        allocators.release(&first, None);
        drop(allocators.allocate(&mut service("ClusterIP", "10.96.0.5", 0), None).unwrap());
        assert!(
            allocators.allocate(&mut service("ClusterIP", "10.96.0.5", 0), None).is_ok(),
            "dropped: given back"
        );
        let outside = allocators.allocate(&mut service("ClusterIP", "10.97.0.1", 0), None);
        assert!(body(outside).contains("is not in the valid range. The range of valid IPs is 10.96.0.0/29"));
    }

    #[test]
    fn an_address_of_each_family() {
        let ranges = ["10.96.0.0/29", "fd00:96::/112"].map(|range| range.parse().unwrap());
        let allocators = Allocators::new(&ranges, 30000..=30001);
        let dual = |addresses: Value| {
            json!({"spec": {"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack", "ports": [],
                "clusterIP": addresses[0], "clusterIPs": addresses}})
        };
        let mut first = dual(json!(["fd00:96::7"]));
        allocators.allocate(&mut first, None).unwrap().keep();
        let taken: Vec<IpAddr> = families::addresses(&first);
        assert_eq!((taken[0], taken[1].is_ipv4()), ("fd00:96::7".parse().unwrap(), true));
        assert_eq!(first["spec"]["clusterIP"], "fd00:96::7");
        let body = |addresses| body(allocators.allocate(&mut dual(addresses), None));
        let wanted = "failed to allocate IP fd00:96::7: provided IP is already allocated";
        assert!(body(json!(["fd00:96::7"])).ends_with(wanted));
        assert!(body(json!(["fd00:97::7"])).contains("The range of valid IPs is fd00:96::/112"));
        // Of an allocation that fails, the address that was free is given back.
        let free = if taken[1].to_string() == "10.96.0.4" { "10.96.0.5" } else { "10.96.0.4" };
        assert!(body(json!([free, "fd00:96::7"])).ends_with(wanted));
        assert!(allocators.allocate(&mut service("ClusterIP", free, 0), None).is_ok());
        let mut single = first.clone();
        single["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        allocators.allocate(&mut single, Some(&first)).unwrap().keep();
        assert_eq!(single["spec"]["clusterIPs"], json!(["fd00:96::7"]));
        allocators.release(&first, Some(&single));
        let mut again = dual(json!(["fd00:96::8", taken[1].to_string()]));
        assert!(allocators.allocate(&mut again, None).is_ok(), "the second address is free again");
    }

    #[test]
    fn ranges_end() {
        let allocators = allocators();
        let mut seen = HashSet::new();
        for _ in 0..5 {
            let mut next = service("ClusterIP", "", 0);
            allocators.allocate(&mut next, None).unwrap().keep();
            assert!(seen.insert(next["spec"]["clusterIP"].as_str().unwrap().to_owned()));
        }
        assert!(!seen.contains("10.96.0.1"), "the first address is for the API server");
        assert!(body(allocators.allocate(&mut service("ClusterIP", "", 0), None)).ends_with("range is full"));
    }

    #[test]
    fn a_local_load_balancer_has_a_health_check_port_as_long_as_it_is_local() {
        let allocators = Allocators::new(&["10.96.0.0/29".parse().unwrap()], 30000..=30002);
        let mut first = service("LoadBalancer", "10.96.0.2", 30000);
        first["spec"]["externalTrafficPolicy"] = "Local".into();
        allocators.allocate(&mut first, None).unwrap().keep();
        let port = first["spec"]["healthCheckNodePort"].as_u64().unwrap();
        assert!((30001..=30002).contains(&port));
        assert!(allocators.allocate(&mut first.clone(), Some(&first)).is_ok(), "its own port is no conflict");
        let taken = allocators.allocate(&mut service("NodePort", "10.96.0.3", port), None);
        assert!(body(taken).ends_with("provided port is already allocated"));
        let mut cluster = first.clone();
        cluster["spec"]["externalTrafficPolicy"] = "Cluster".into();
        cluster["spec"].as_object_mut().unwrap().remove("healthCheckNodePort");
        allocators.allocate(&mut cluster, Some(&first)).unwrap().keep();
        assert_eq!(cluster["spec"].get("healthCheckNodePort"), None);
        allocators.release(&first, Some(&cluster));
        assert!(allocators.allocate(&mut service("NodePort", "10.96.0.3", port), None).is_ok());
    }

    #[test]
    fn node_ports() {
        let allocators = allocators();
        let mut first = service("NodePort", "10.96.0.2", 30000);
        allocators.allocate(&mut first, None).unwrap().keep();
        let taken = allocators.allocate(&mut service("NodePort", "10.96.0.3", 30000), None);
        assert!(body(taken).ends_with("provided port is already allocated"));
        let outside = allocators.allocate(&mut service("NodePort", "10.96.0.3", 80), None);
        assert!(body(outside).ends_with("The range of valid ports is 30000-30001"));
        let mut plain = first.clone();
        plain["spec"]["type"] = "ClusterIP".into();
        allocators.allocate(&mut plain, Some(&first)).unwrap().keep();
        allocators.release(&first, Some(&plain));
        assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
        assert!(allocators.allocate(&mut service("NodePort", "10.96.0.3", 30000), None).is_ok());
    }
}
