//! Results of 0.1.0 and 0.2.0: at most one address of each family, with its routes inside.

use serde_json::{Map, Value, json};

use super::{AddResult, Dns, IpConfig, ResultError, Route, put};
use crate::{
    Version,
    json::{JsonError, Object},
};

pub(super) fn read(root: &Object<'_>) -> Result<AddResult, JsonError> {
    let mut result = AddResult { dns: Dns::read(root)?, ..AddResult::default() };
    for key in ["ip4", "ip6"] {
        let Some(family) = root.object(key)? else { continue };
        let address = family.required("ip", family.cidr("ip")?)?;
        if address.is_ipv4() != (key == "ip4") {
            return Err(JsonError::key(family.place_of("ip"), format!("{address} is of the other family")));
        }
        result.ips.push(IpConfig { interface: None, address, gateway: family.ip("gateway")? });
        result.routes.extend(Route::read_all(&family)?);
    }
    Ok(result)
}

pub(super) fn write(result: &AddResult, version: Version) -> Result<Value, ResultError> {
    let mut map = Map::new();
    map.insert("cniVersion".to_owned(), json!(version.as_str()));
    for (key, is_ipv4) in [("ip4", true), ("ip6", false)] {
        let Some(ip) = result.ips.iter().find(|ip| ip.address.is_ipv4() == is_ipv4) else { continue };
        let mut family = Map::new();
        family.insert("ip".to_owned(), json!(ip.address.to_string()));
        put(&mut family, "gateway", ip.gateway.map(|gateway| gateway.to_string()));
        let routes: Vec<Value> =
            result.routes.iter().filter(|route| route.dst.is_ipv4() == is_ipv4).map(write_route).collect();
        if !routes.is_empty() {
            family.insert("routes".to_owned(), Value::Array(routes));
        }
        map.insert(key.to_owned(), Value::Object(family));
    }
    if !map.contains_key("ip4") && !map.contains_key("ip6") {
        return Err(ResultError::NoAddress { version });
    }
    map.insert("dns".to_owned(), result.dns.write());
    Ok(Value::Object(map))
}

fn write_route(route: &Route) -> Value {
    let mut map = Map::new();
    map.insert("dst".to_owned(), json!(route.dst.to_string()));
    put(&mut map, "gw", route.gw.map(|gw| gw.to_string()));
    Value::Object(map)
}
