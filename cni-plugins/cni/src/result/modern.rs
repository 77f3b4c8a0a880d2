//! Results of 0.3.0 and later: lists of interfaces, addresses and routes.
//!
//! Up to 0.4.0 an address says its family (`"version": "4"`); MTU, socket path and PCI id of an interface came with
//! the types of 1.0.0 and later.

use serde_json::{Map, Value, json};

use super::{AddResult, Dns, Interface, IpConfig, Route, positive, put};
use crate::{
    Version,
    json::{JsonError, Object},
};

pub(super) fn read(root: &Object<'_>) -> Result<AddResult, JsonError> {
    let interfaces = root.array("interfaces")?.into_iter();
    let ips = root.array("ips")?.into_iter();
    let result = AddResult {
        interfaces: interfaces
            .map(|(place, value)| read_interface(&Object::of(value, place)?))
            .collect::<Result<_, _>>()?,
        ips: ips.map(|(place, value)| read_ip(&Object::of(value, place)?)).collect::<Result<_, _>>()?,
        routes: Route::read_all(root)?,
        dns: Dns::read(root)?,
    };
    Ok(result)
}

fn read_interface(interface: &Object<'_>) -> Result<Interface, JsonError> {
    let text = |key: &str| -> Result<Option<String>, JsonError> {
        Ok(interface.string(key)?.filter(|text| !text.is_empty()).map(str::to_owned))
    };
    Ok(Interface {
        name: interface.required("name", text("name")?)?,
        mac: text("mac")?,
        mtu: positive(interface.number("mtu")?),
        sandbox: text("sandbox")?,
        socket_path: text("socketPath")?,
        pci_id: text("pciID")?,
    })
}

fn read_ip(ip: &Object<'_>) -> Result<IpConfig, JsonError> {
    Ok(IpConfig {
        interface: ip.number("interface")?,
        address: ip.required("address", ip.cidr("address")?)?,
        gateway: ip.ip("gateway")?,
    })
}

pub(super) fn write(result: &AddResult, version: Version) -> Value {
    let mut map = Map::new();
    map.insert("cniVersion".to_owned(), json!(version.as_str()));
    if !result.interfaces.is_empty() {
        let interfaces = result.interfaces.iter().map(|interface| write_interface(interface, version));
        map.insert("interfaces".to_owned(), interfaces.collect());
    }
    if !result.ips.is_empty() {
        let ips = result.ips.iter().map(|ip| write_ip(ip, version));
        map.insert("ips".to_owned(), ips.collect());
    }
    if !result.routes.is_empty() {
        map.insert("routes".to_owned(), result.routes.iter().map(write_route).collect());
    }
    // Before 1.0.0 the reference library writes the key also when there is nothing in it.
    if version < Version::V1_0_0 || !result.dns.is_empty() {
        map.insert("dns".to_owned(), result.dns.write());
    }
    Value::Object(map)
}

fn write_interface(interface: &Interface, version: Version) -> Value {
    let mut map = Map::new();
    map.insert("name".to_owned(), json!(interface.name));
    put(&mut map, "mac", interface.mac.as_deref());
    put(&mut map, "sandbox", interface.sandbox.as_deref());
    if version >= Version::V1_0_0 {
        put(&mut map, "mtu", interface.mtu);
        put(&mut map, "socketPath", interface.socket_path.as_deref());
        put(&mut map, "pciID", interface.pci_id.as_deref());
    }
    Value::Object(map)
}

fn write_ip(ip: &IpConfig, version: Version) -> Value {
    let mut map = Map::new();
    if version < Version::V1_0_0 {
        let family = if ip.address.is_ipv4() { "4" } else { "6" };
        map.insert("version".to_owned(), json!(family));
    }
    put(&mut map, "interface", ip.interface);
    map.insert("address".to_owned(), json!(ip.address.to_string()));
    put(&mut map, "gateway", ip.gateway.map(|gateway| gateway.to_string()));
    Value::Object(map)
}

fn write_route(route: &Route) -> Value {
    let mut map = Map::new();
    map.insert("dst".to_owned(), json!(route.dst.to_string()));
    put(&mut map, "gw", route.gw.map(|gw| gw.to_string()));
    put(&mut map, "mtu", route.mtu);
    put(&mut map, "advmss", route.advmss);
    put(&mut map, "priority", route.priority);
    put(&mut map, "table", route.table);
    put(&mut map, "scope", route.scope);
    Value::Object(map)
}
