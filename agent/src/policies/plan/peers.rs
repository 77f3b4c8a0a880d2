//! The pods that selectors reach, found by address and by namespace. Pure.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Namespaces, Peer, Pod, Uid};
use crate::policies::selector::Labels;

/// What selectors look at.
#[derive(Debug, Clone, Copy)]
pub struct Cluster<'a> {
    pub namespaces: &'a HashMap<String, Arc<Labels>>,
    pub peers: &'a Peers,
}

impl Cluster<'_> {
    /// Whether a rule's selectors reach the pod; blocks reach addresses, not pods.
    pub fn reaches(&self, peer: &Peer, namespace: &str, pod: &Pod) -> bool {
        match peer {
            Peer::Everybody => true,
            Peer::Pods { namespaces, pods } => self.holds(namespaces, namespace) && pods.matches(&pod.labels),
            Peer::Block(_) => false,
        }
    }

    pub fn holds(&self, namespaces: &Namespaces, namespace: &str) -> bool {
        match namespaces {
            Namespaces::One(name) => **name == *namespace,
            Namespaces::Matching(selector) => {
                self.namespaces.get(namespace).is_some_and(|labels| selector.matches(labels))
            }
        }
    }
}

#[derive(Debug, Default)]
pub struct Peers {
    /// With their namespaces.
    by_uid: HashMap<Uid, (String, Pod)>,
    by_namespace: HashMap<String, BTreeSet<Uid>>,
    by_address: HashMap<IpAddr, BTreeSet<Uid>>,
}

impl Peers {
    /// The addresses for which that may make a difference.
    pub fn set(&mut self, namespace: &str, pod: &Pod) -> Vec<IpAddr> {
        if self.by_uid.get(&pod.uid).is_some_and(|(_, before)| before == pod) {
            return Vec::new();
        }
        let mut touched = self.remove(&pod.uid);
        touched.extend(&pod.ips);
        for ip in &pod.ips {
            self.by_address.entry(*ip).or_default().insert(pod.uid.clone());
        }
        self.by_namespace.entry(namespace.to_owned()).or_default().insert(pod.uid.clone());
        self.by_uid.insert(pod.uid.clone(), (namespace.to_owned(), pod.clone()));
        touched
    }

    /// The addresses for which that may make a difference.
    pub fn remove(&mut self, uid: &str) -> Vec<IpAddr> {
        let Some((namespace, pod)) = self.by_uid.remove(uid) else { return Vec::new() };
        remove_from(&mut self.by_namespace, &namespace, uid);
        pod.ips.iter().for_each(|ip| remove_from(&mut self.by_address, ip, uid));
        pod.ips
    }

    /// The pods that have an address, and their namespaces.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = (&str, &Pod)> {
        let uids = self.by_address.get(&address).into_iter().flatten();
        uids.filter_map(|uid| self.by_uid.get(uid)).map(|(namespace, pod)| (namespace.as_str(), pod))
    }

    /// The addresses of the pods of a namespace.
    pub fn addresses(&self, namespace: &str) -> impl Iterator<Item = IpAddr> {
        let uids = self.by_namespace.get(namespace).into_iter().flatten();
        uids.filter_map(|uid| self.by_uid.get(uid)).flat_map(|(_, pod)| pod.ips.iter().copied())
    }

    /// Those that have pods.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.by_namespace.keys().map(String::as_str)
    }
}

fn remove_from<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<Uid>>, key: &K, uid: &str) {
    if let Some(uids) = index.get_mut(key) {
        uids.remove(uid);
        if uids.is_empty() {
            index.remove(key);
        }
    }
}
