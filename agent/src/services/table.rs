//! Services by namespace and name, with what an environment needs of them.
//!
//! A value that is copied on write per namespace: a change costs O(services of that namespace) only while somebody holds a
//! snapshot, else O(1).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// One Service that has a cluster IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub cluster_ip: String,
    /// In the order of the Service.
    pub ports: Vec<EntryPort>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPort {
    pub name: Option<String>,
    pub port: i32,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// All Services that have a cluster IP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceTable {
    namespaces: HashMap<String, Arc<BTreeMap<String, Entry>>>,
}

impl ServiceTable {
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.namespaces.get(namespace)?.get(name)
    }

    /// The Services of a namespace, by name.
    pub fn namespace(&self, namespace: &str) -> impl Iterator<Item = (&str, &Entry)> {
        let services = self.namespaces.get(namespace);
        services.into_iter().flat_map(|services| services.iter()).map(|(name, entry)| (name.as_str(), entry))
    }

    pub fn set(&mut self, namespace: &str, name: &str, entry: Entry) {
        let services = self.namespaces.entry(namespace.to_owned()).or_default();
        Arc::make_mut(services).insert(name.to_owned(), entry);
    }

    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(services) = self.namespaces.get_mut(namespace) else { return };
        Arc::make_mut(services).remove(name);
        if services.is_empty() {
            self.namespaces.remove(namespace);
        }
    }
}
