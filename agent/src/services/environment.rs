//! The environment variables by which a container learns of Services, named and valued as the kubelet does.
//!
//! Pure. The `kubernetes` Service of namespace `default` is always there, the pod's own namespace only when the pod wants
//! service links. A Service of the pod's own namespace hides the one of `default` with the same name.

use std::collections::BTreeMap;

use super::{Entry, EntryPort, ServiceTable};

#[cfg(test)]
mod tests;

const MASTER_NAMESPACE: &str = "default";
const MASTER_SERVICE: &str = "kubernetes";

/// The variables of a pod in `namespace`, by service name.
pub fn variables(namespace: &str, enable_service_links: bool, table: &ServiceTable) -> Vec<(String, String)> {
    let mut visible: BTreeMap<&str, &Entry> = BTreeMap::new();
    if let Some(master) = table.get(MASTER_NAMESPACE, MASTER_SERVICE) {
        visible.insert(MASTER_SERVICE, master);
    }
    if enable_service_links {
        visible.extend(table.namespace(namespace));
    }
    visible.into_iter().flat_map(|(name, entry)| of_service(name, entry)).collect()
}

fn of_service(name: &str, entry: &Entry) -> Vec<(String, String)> {
    let Some(first) = entry.ports.first() else { return Vec::new() };
    let prefix = variable_name(name);
    let mut variables = vec![
        (format!("{prefix}_SERVICE_HOST"), entry.cluster_ip.clone()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in &entry.ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let name = format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name));
            variables.push((name, port.port.to_string()));
        }
    }
    variables.push((format!("{prefix}_PORT"), url(&entry.cluster_ip, first)));
    for port in &entry.ports {
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, port.protocol.to_uppercase());
        variables.extend([
            (port_prefix.clone(), url(&entry.cluster_ip, port)),
            (format!("{port_prefix}_PROTO"), port.protocol.to_lowercase()),
            (format!("{port_prefix}_PORT"), port.port.to_string()),
            (format!("{port_prefix}_ADDR"), entry.cluster_ip.clone()),
        ]);
    }
    variables
}

/// Docker's link format: `tcp://10.0.0.1:80`.
fn url(cluster_ip: &str, port: &EntryPort) -> String {
    let host = if cluster_ip.contains(':') { format!("[{cluster_ip}]") } else { cluster_ip.to_owned() };
    format!("{}://{host}:{}", port.protocol.to_lowercase(), port.port)
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}
