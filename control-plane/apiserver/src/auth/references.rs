//! Which Secrets and ConfigMaps the pods of each node refer to: what a node may read.
//!
//! Input: the store's changes. Output: whether a node has a pod that refers to an object. Kept up with every change of a
//! pod, so that a question costs one look-up however many pods there are. Bounded by the pods in the store. A pod counts
//! until it is removed: its node needs what it refers to until its end.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::cache::{Cache, Filter, Page};
use crate::object::{self, items, text};
use crate::storage::{Change, Key, Write};

/// The index; shared by all requests.
#[derive(Default)]
pub struct References {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What each bound pod refers to.
    pods: HashMap<Key, Vec<Reference>>,
    /// How many pods make each reference.
    counts: HashMap<Reference, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reference {
    node: String,
    object: Key,
}

impl References {
    /// The index of the pods that the cache has.
    pub fn of(cache: &Cache) -> Self {
        let references = References::default();
        if let Ok(listed) = cache.list("pods", &Filter::default(), &Page::default()) {
            let mut state = references.lock();
            for pod in listed.entries {
                state.replace(&pod.key, references_of(&pod.key, &pod.value()));
            }
        }
        references
    }

    /// Takes over changes; called in revision order, and before anybody can see them: a node may ask for a Secret as
    /// soon as it has seen the pod.
    pub fn apply(&self, changes: &[Change]) {
        for change in changes.iter().filter(|change| change.write.key().parts().0 == "pods") {
            let (key, references) = match &change.write {
                Write::Put { key, value } => {
                    (key, references_of(key, &object::decode(change.revision, value)))
                }
                Write::Delete { key, .. } => (key, Vec::new()),
            };
            self.lock().replace(key, references);
        }
    }

    /// Whether a pod that is bound to the node refers to the object.
    pub fn has(&self, node: &str, object: &Key) -> bool {
        let reference = Reference { node: node.to_owned(), object: object.clone() };
        self.lock().counts.contains_key(&reference)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn replace(&mut self, pod: &Key, new: Vec<Reference>) {
        for reference in &new {
            *self.counts.entry(reference.clone()).or_default() += 1;
        }
        let old = if new.is_empty() { self.pods.remove(pod) } else { self.pods.insert(pod.clone(), new) };
        for reference in old.into_iter().flatten() {
            if let Some(count) = self.counts.get_mut(&reference) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&reference);
                }
            }
        }
    }
}

/// What a pod refers to, each once; nothing while it is not bound.
fn references_of(key: &Key, pod: &Value) -> Vec<Reference> {
    let (_, namespace, _) = key.parts();
    let node = text(pod, "/spec/nodeName");
    if node.is_empty() {
        return Vec::new();
    }
    let names = ["secrets", "configmaps"].into_iter().flat_map(|resource| {
        names_of(pod, resource == "secrets").into_iter().map(move |name| (resource, name))
    });
    let object = |(resource, name)| Key::new(resource, namespace, name);
    names.map(|name| Reference { node: node.to_owned(), object: object(name) }).collect()
}

/// Names of the Secrets, or of the ConfigMaps, that a pod uses.
fn names_of(pod: &Value, secret: bool) -> BTreeSet<&str> {
    let (volume, source, env, env_from) = if secret {
        ("/secret/secretName", "/secret/name", "/valueFrom/secretKeyRef/name", "/secretRef/name")
    } else {
        ("/configMap/name", "/configMap/name", "/valueFrom/configMapKeyRef/name", "/configMapRef/name")
    };
    let mut names = BTreeSet::new();
    for item in items(pod, "/spec/volumes") {
        names.insert(text(item, volume));
        names.extend(items(item, "/projected/sources").iter().map(|item| text(item, source)));
    }
    let containers = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"];
    for container in containers.iter().flat_map(|list| items(pod, list)) {
        names.extend(items(container, "/env").iter().map(|item| text(item, env)));
        names.extend(items(container, "/envFrom").iter().map(|item| text(item, env_from)));
    }
    if secret {
        names.extend(items(pod, "/spec/imagePullSecrets").iter().map(|item| text(item, "/name")));
    }
    names.remove("");
    names
}

#[cfg(test)]
mod tests {
    //! References come and go with the pods that make them.

    use serde_json::json;

    use super::*;

    fn put(name: &str, node: &str, secret: &str) -> Change {
        let pod = json!({"metadata": {"name": name, "namespace": "x"}, "spec": {"nodeName": node,
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": secret}},
                {"name": "w", "projected": {"sources": [{"configMap": {"name": "ca"}}]}}],
            "initContainers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}]}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "settings"}}]}]}});
        let write = Write::Put { key: Key::new("pods", "x", name), value: object::encode(&pod) };
        Change { revision: 1, write }
    }

    fn delete(name: &str) -> Change {
        let write = Write::Delete { key: Key::new("pods", "x", name), last: object::encode(&json!({})) };
        Change { revision: 2, write }
    }

    #[test]
    fn every_way_to_refer_counts() {
        let references = References::default();
        references.apply(&[put("p", "n1", "vol")]);
        for (resource, name, expected) in [
            ("secrets", "vol", true),
            ("secrets", "pull", true),
            ("secrets", "env", true),
            ("configmaps", "ca", true),
            ("configmaps", "settings", true),
            ("secrets", "settings", false),
            ("configmaps", "vol", false),
        ] {
            assert_eq!(references.has("n1", &Key::new(resource, "x", name)), expected, "{resource} {name}");
            assert!(!references.has("n2", &Key::new(resource, "x", name)), "another node");
            assert!(!references.has("n1", &Key::new(resource, "y", name)), "another namespace");
        }
    }

    #[test]
    fn references_end_with_the_last_pod_that_makes_them() {
        let references = References::default();
        let has = |secret: &str| references.has("n1", &Key::new("secrets", "x", secret));
        references.apply(&[put("unbound", "", "s"), put("other", "n2", "s")]);
        assert!(!has("s"));
        references.apply(&[put("a", "n1", "s"), put("a", "n1", "s"), put("b", "n1", "s")]);
        references.apply(&[delete("a")]);
        assert!(has("s"), "of the other pod");
        references.apply(&[put("b", "n1", "t")]);
        assert!(!has("s") && has("t"));
        references.apply(&[delete("b"), delete("b"), delete("other"), delete("unbound")]);
        assert!(!has("t"));
        let state = references.lock();
        assert!(state.pods.is_empty() && state.counts.is_empty(), "nothing is kept");
    }
}
