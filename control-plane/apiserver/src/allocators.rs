//! Cluster addresses and node ports: who has which, in memory, rebuilt from the store at start.
//!
//! Input: a service and, for an update, its old state. Output: the service with its address and node ports filled in,
//! and a reservation. A reservation that is dropped without `keep` gives back what it took. [`Bookkeeping`] ties that to
//! the commit of the service, so that an address is taken exactly when its service is stored. Refuses what is taken or out of range, in upstream's words.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::Ipv4Network;
use serde_json::{Value, json};

use crate::error::FieldError;
use crate::kinds::needs_health_check_port;
use crate::object::{child, items, text};

/// Random tries before the range is searched from its start.
const RANDOM_TRIES: usize = 8;

#[derive(Debug, Default)]
struct Taken {
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

/// The two allocators.
#[derive(Clone)]
pub struct Allocators {
    range: Ipv4Network,
    ports: RangeInclusive<u16>,
    taken: Arc<Mutex<Taken>>,
}

/// What an allocation took. Dropped without [`Reservation::keep`], it is given back.
pub struct Reservation {
    allocators: Allocators,
    addresses: Vec<Ipv4Addr>,
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
    pub fn new(range: Ipv4Network, ports: RangeInclusive<u16>) -> Self {
        Allocators { range, ports, taken: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a stored service has.
    pub fn adopt(&self, service: &Value) {
        let mut taken = self.lock();
        taken.addresses.extend(address_of(service));
        taken.ports.extend(ports_of(service));
    }

    /// Gives back what `old` had and `new` (nothing, when deleted) has not.
    pub fn release(&self, old: &Value, new: Option<&Value>) {
        let kept_address = new.and_then(address_of);
        let kept_ports: HashSet<u16> = new.into_iter().flat_map(ports_of).collect();
        let mut taken = self.lock();
        if let Some(address) = address_of(old).filter(|address| Some(*address) != kept_address) {
            taken.addresses.remove(&address);
        }
        for port in ports_of(old).into_iter().filter(|port| !kept_ports.contains(port)) {
            taken.ports.remove(&port);
        }
    }

    /// Fills in the address, the node ports and the health check port of `service`.
    pub fn allocate(&self, service: &mut Value, old: Option<&Value>) -> Result<Reservation, Vec<FieldError>> {
        let mut reservation =
            Reservation { allocators: self.clone(), addresses: Vec::new(), ports: Vec::new() };
        let mut errors = Vec::new();
        let kind = text(service, "/spec/type").to_owned();
        if kind == "ExternalName" {
            let spec = child(service, "spec");
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        } else if let Err(error) = self.address(service, old, &mut reservation) {
            errors.push(error);
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

    fn address(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), FieldError> {
        let mut wanted = text(service, "/spec/clusterIP").to_owned();
        if wanted.is_empty() {
            wanted =
                items(service, "/spec/clusterIPs").first().and_then(Value::as_str).unwrap_or("").to_owned();
        }
        if wanted != "None" {
            let held = old.and_then(address_of);
            let address = match wanted.parse::<Ipv4Addr>() {
                Ok(address) if held == Some(address) => address,
                Ok(address) => self.take_address(address, reservation)?,
                Err(_) if wanted.is_empty() => self.any_address(reservation)?,
                Err(_) => return Ok(()),
            };
            wanted = address.to_string();
        }
        let spec = child(service, "spec");
        spec.insert("clusterIPs".into(), json!([wanted]));
        spec.insert("clusterIP".into(), wanted.into());
        Ok(())
    }

    fn take_address(&self, address: Ipv4Addr, reservation: &mut Reservation) -> Result<Ipv4Addr, FieldError> {
        let refused = |why: String| {
            let detail = format!("failed to allocate IP {address}: {why}");
            FieldError::invalid("spec.clusterIPs", json!([address.to_string()]), &detail)
        };
        if !self.is_usable(address) {
            let range = self.range;
            return Err(refused(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
            )));
        }
        if !self.lock().addresses.insert(address) {
            return Err(refused("provided IP is already allocated".into()));
        }
        reservation.addresses.push(address);
        Ok(address)
    }

    fn is_usable(&self, address: Ipv4Addr) -> bool {
        self.range.contains(address) && address != self.range.network() && address != self.range.broadcast()
    }

    fn any_address(&self, reservation: &mut Reservation) -> Result<Ipv4Addr, FieldError> {
        let mut taken = self.lock();
        let random = (0..RANDOM_TRIES).filter_map(|_| self.range.nth(random() % self.range.size()));
        let first = self.range.nth(1);
        let found = random.chain(self.range.iter()).find(|address| {
            self.is_usable(*address) && Some(*address) != first && !taken.addresses.contains(address)
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

fn address_of(service: &Value) -> Option<Ipv4Addr> {
    match text(service, "/spec/clusterIP").parse() {
        Ok(IpAddr::V4(address)) => Some(address),
        _ => None,
    }
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
        Allocators::new("10.96.0.0/29".parse().unwrap(), 30000..=30001)
    }

    fn service(kind: &str, address: &str, node_port: u64) -> Value {
        json!({"spec": {"type": kind, "clusterIP": address, "ports": [{"port": 80, "nodePort": node_port}]}})
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
        let allocators = Allocators::new("10.96.0.0/29".parse().unwrap(), 30000..=30002);
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
        let mut first = service("NodePort", "None", 30000);
        first["spec"]["clusterIP"] = "10.96.0.2".into();
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
