//! Services, Endpoints, EndpointSlices and NetworkPolicies.

use serde_json::Value;

use super::{AGE, Column, NAME, age, column, labels, or_none, wide};
use crate::object::{items, name, text};
use crate::selectors::text_of;

pub(in crate::kinds) const SERVICE: &[Column] = &[
    NAME,
    column("Type", "string"),
    column("Cluster-IP", "string"),
    column("External-IP", "string"),
    column("Port(s)", "string"),
    AGE,
    wide("Selector", "string"),
];

pub(in crate::kinds) fn service(service: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(service, "/spec/ports")
        .iter()
        .map(|port| {
            let node = port["nodePort"].as_i64().filter(|number| *number != 0);
            let node = node.map_or(String::new(), |number| format!(":{number}"));
            format!("{}{node}/{}", port["port"], text(port, "/protocol"))
        })
        .collect();
    let address = match items(service, "/spec/clusterIPs").first().and_then(Value::as_str) {
        Some(address) => address.to_owned(),
        None => or_none(text(service, "/spec/clusterIP").to_owned()),
    };
    vec![
        name(service).into(),
        text(service, "/spec/type").into(),
        address.into(),
        external(service).into(),
        or_none(ports.join(",")).into(),
        age(service, now),
        labels(service, "/spec/selector").into(),
    ]
}

fn external(service: &Value) -> String {
    let listed = |pointer: &str, field: &str| -> Vec<String> {
        let field = format!("/{field}");
        let one = |item: &Value| item.as_str().unwrap_or(text(item, &field)).to_owned();
        items(service, pointer).iter().map(one).filter(|address| !address.is_empty()).collect()
    };
    let mut addresses = listed("/spec/externalIPs", "");
    match text(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let mut ingress = listed("/status/loadBalancer/ingress", "ip");
            ingress.append(&mut addresses);
            if ingress.is_empty() { "<pending>".to_owned() } else { ingress.join(",") }
        }
        _ => or_none(addresses.join(",")),
    }
}

pub(in crate::kinds) const ENDPOINTS: &[Column] = &[NAME, column("Endpoints", "string"), AGE];

/// Addresses that a row shows before it says how many more there are.
const SHOWN: usize = 3;

fn shown(list: Vec<String>) -> String {
    let more = list.len().saturating_sub(SHOWN);
    let text = list.into_iter().take(SHOWN).collect::<Vec<_>>().join(",");
    if more > 0 { format!("{text} + {more} more...") } else { or_none(text) }
}

pub(in crate::kinds) fn endpoints(endpoints: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut list = Vec::new();
    for subset in items(endpoints, "/subsets") {
        let addresses = items(subset, "/addresses").iter().map(|address| text(address, "/ip"));
        let ports = items(subset, "/ports");
        for address in addresses {
            if ports.is_empty() {
                list.push(address.to_owned());
            }
            list.extend(ports.iter().map(|port| format!("{address}:{}", port["port"])));
        }
    }
    vec![name(endpoints).into(), shown(list).into(), age(endpoints, now)]
}

pub(in crate::kinds) const ENDPOINT_SLICE: &[Column] =
    &[NAME, column("AddressType", "string"), column("Ports", "string"), column("Endpoints", "string"), AGE];

pub(in crate::kinds) fn endpoint_slice(slice: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(slice, "/ports")
        .iter()
        .map(|port| match port["port"].as_i64() {
            Some(number) => number.to_string(),
            None if !text(port, "/name").is_empty() => text(port, "/name").to_owned(),
            None => "*".to_owned(),
        })
        .collect();
    let unset = |text: String| if text == "<none>" { "<unset>".to_owned() } else { text };
    let addresses = items(slice, "/endpoints").iter().flat_map(|endpoint| items(endpoint, "/addresses"));
    let addresses = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    vec![
        name(slice).into(),
        text(slice, "/addressType").into(),
        unset(shown(ports)).into(),
        unset(shown(addresses)).into(),
        age(slice, now),
    ]
}

pub(in crate::kinds) const NETWORK_POLICY: &[Column] = &[NAME, column("Pod-Selector", "string"), AGE];

pub(in crate::kinds) fn network_policy(policy: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let pods = or_none(text_of(&policy["spec"]["podSelector"]));
    vec![name(policy).into(), pods.into(), age(policy, now)]
}
