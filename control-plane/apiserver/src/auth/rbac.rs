//! Roles and bindings, as decisions need them (upstream's RBAC authorizer).
//!
//! Input: the store's changes; a user and what they want. Output: allowed, by which binding; or which roles are bound and
//! missing. Kept up with every change of a role or binding, so that a decision looks at the bindings that name the user or one
//! of their groups, for the whole cluster and for the namespace, however many others there are. Bounded by the objects in the
//! store. A binding whose role is missing allows nothing.

mod rule;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde_json::Value;

use super::{Attributes, User};
use crate::cache::{Cache, Filter, Page};
use crate::kinds::RBAC_GROUP as GROUP;
use crate::object::{self, items, text};
use crate::storage::{Change, Key, Write};

pub use rule::{Quoted, Rule, everything, missing};

const ROLES: [&str; 2] = ["clusterroles", "roles"];
const BINDINGS: [&str; 2] = ["clusterrolebindings", "rolebindings"];

/// The index; shared by all requests.
#[derive(Default)]
pub struct Rbac {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    roles: HashMap<Key, Arc<[Rule]>>,
    bindings: HashMap<Key, Binding>,
    /// The bindings that name a subject, and how each of them calls it.
    held: HashMap<Holder, BTreeMap<Key, String>>,
}

/// A subject in the namespace of a binding; in none for the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Holder {
    namespace: String,
    subject: Subject,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    /// A service account is a user, too.
    User(String),
    Group(String),
}

struct Binding {
    role: Key,
    /// Upstream's words for it, without the subject.
    text: String,
    /// Subjects, each with upstream's words for it.
    holders: BTreeMap<Holder, String>,
}

/// A binding that names a user.
struct Held<'a> {
    binding: &'a Binding,
    subject: &'a str,
    /// None where the role is missing.
    rules: Option<&'a [Rule]>,
}

/// What a change of a role or binding comes to.
enum Update {
    Role(Key, Option<Vec<Rule>>),
    Binding(Key, Option<Binding>),
}

impl Rbac {
    /// The index of the roles and bindings that the cache has.
    pub fn of(cache: &Cache) -> Self {
        let rbac = Rbac::default();
        for storage in ROLES.iter().chain(&BINDINGS) {
            let Ok(listed) = cache.list(storage, &Filter::default(), &Page::default()) else { continue };
            for entry in listed.entries {
                rbac.replace(Update::of(&entry.key, Some(&entry.value())));
            }
        }
        rbac
    }

    /// Takes over changes; called in revision order, and before anybody can see them: what was granted holds as soon as it
    /// can be read.
    pub fn apply(&self, changes: &[Change]) {
        for change in changes {
            let storage = change.write.key().parts().0;
            if ROLES.contains(&storage) || BINDINGS.contains(&storage) {
                self.replace(match &change.write {
                    Write::Put { key, value } => {
                        Update::of(key, Some(&object::decode(change.revision, value)))
                    }
                    Write::Delete { key, .. } => Update::of(key, None),
                });
            }
        }
    }

    fn replace(&self, update: Update) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match update {
            Update::Role(key, Some(rules)) => drop(state.roles.insert(key, rules.into())),
            Update::Role(key, None) => drop(state.roles.remove(&key)),
            Update::Binding(key, binding) => state.bind(key, binding),
        }
    }

    /// Whether a role that is bound to the user allows it: by which binding; or else why that may be wrong, where it may.
    pub fn allows(&self, user: &User, wanted: &Attributes) -> Result<String, String> {
        self.decide(user, &wanted.namespace, |rule| rule.allows(wanted))
    }

    /// The same for a path that is no resource's.
    pub fn allows_path(&self, user: &User, verb: &str, path: &str) -> Result<String, String> {
        self.decide(user, "", |rule| rule.allows_path(verb, path))
    }

    fn decide(&self, user: &User, namespace: &str, allows: impl Fn(&Rule) -> bool) -> Result<String, String> {
        let state = self.read();
        let mut missing = BTreeSet::new();
        for held in state.held_by(user, namespace) {
            match held.rules {
                Some(rules) if rules.iter().any(&allows) => {
                    return Ok(format!("RBAC: allowed by {} to {}", held.binding.text, held.subject));
                }
                Some(_) => {}
                None => drop(missing.insert(missing_role(&held.binding.role))),
            }
        }
        let missing = missing.into_iter().collect::<Vec<_>>();
        Err(match missing.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// All rules that the user has: in the whole cluster, and in the namespace if one is given.
    pub fn rules_of(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let state = self.read();
        let rules = state.held_by(user, namespace).filter_map(|held| held.rules);
        rules.flatten().cloned().collect()
    }

    /// The rules of a role, if there is one.
    pub fn role(&self, key: &Key) -> Option<Arc<[Rule]>> {
        self.read().roles.get(key).cloned()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Replaces a binding.
    fn bind(&mut self, key: Key, new: Option<Binding>) {
        for holder in self.bindings.remove(&key).into_iter().flat_map(|binding| binding.holders.into_keys()) {
            if let Some(bindings) = self.held.get_mut(&holder) {
                bindings.remove(&key);
                if bindings.is_empty() {
                    self.held.remove(&holder);
                }
            }
        }
        let Some(new) = new else { return };
        for (holder, text) in &new.holders {
            self.held.entry(holder.clone()).or_default().insert(key.clone(), text.clone());
        }
        self.bindings.insert(key, new);
    }

    /// The bindings that name a user or one of their groups, each once: those of the cluster, then those of the namespace.
    fn held_by<'a>(&'a self, user: &User, namespace: &str) -> impl Iterator<Item = Held<'a>> + use<'a> {
        let groups = user.groups.iter().cloned().map(Subject::Group);
        let subjects: Vec<Subject> =
            std::iter::once(Subject::User(user.name.clone())).chain(groups).collect();
        let namespaces = ["", namespace].into_iter().take(if namespace.is_empty() { 1 } else { 2 });
        let holders = namespaces.flat_map(|namespace| {
            let in_it = |subject: &Subject| Holder { namespace: namespace.into(), subject: subject.clone() };
            subjects.iter().map(in_it).collect::<Vec<_>>()
        });
        let holders: Vec<Holder> = holders.collect();
        let mut seen = BTreeSet::new();
        let bindings = holders.into_iter().flat_map(|holder| self.held.get(&holder).into_iter().flatten());
        bindings.filter(move |(key, _)| seen.insert(*key)).filter_map(|(key, subject)| {
            let binding = self.bindings.get(key)?;
            let rules = self.roles.get(&binding.role).map(|rules| &**rules);
            Some(Held { binding, subject, rules })
        })
    }
}

impl Update {
    fn of(key: &Key, value: Option<&Value>) -> Update {
        if ROLES.contains(&key.parts().0) {
            Update::Role(key.clone(), value.map(Rule::all_of))
        } else {
            Update::Binding(key.clone(), value.and_then(|value| Binding::of(key, value)))
        }
    }
}

impl Binding {
    /// Nothing, where it refers to no role.
    fn of(key: &Key, value: &Value) -> Option<Binding> {
        let (_, namespace, name) = key.parts();
        let role = role_of(value, namespace)?;
        let (kind, name) = match namespace {
            "" => ("ClusterRoleBinding", name.to_owned()),
            _ => ("RoleBinding", format!("{name}/{namespace}")),
        };
        let (role_kind, role_name) = (text(value, "/roleRef/kind"), text(value, "/roleRef/name"));
        let subjects = items(value, "/subjects").iter().filter_map(|subject| Subject::of(subject, namespace));
        let holder = |subject| Holder { namespace: namespace.to_owned(), subject };
        Some(Binding {
            role,
            text: format!("{kind} {name:?} of {role_kind} {role_name:?}"),
            holders: subjects.map(|(subject, text)| (holder(subject), text)).collect(),
        })
    }
}

impl Subject {
    /// The subject of a binding in a namespace (or in none), and upstream's words for it.
    fn of(subject: &Value, namespace: &str) -> Option<(Subject, String)> {
        let (kind, name) = (text(subject, "/kind"), text(subject, "/name"));
        let own = || name.to_owned();
        match kind {
            "User" => Some((Subject::User(own()), format!("{kind} {name:?}"))),
            "Group" => Some((Subject::Group(own()), format!("{kind} {name:?}"))),
            "ServiceAccount" => {
                let given = text(subject, "/namespace");
                let namespace = if given.is_empty() { namespace } else { given };
                let user = Subject::User(format!("system:serviceaccount:{namespace}:{name}"));
                (!namespace.is_empty()).then(|| (user, format!("{kind} {:?}", format!("{name}/{namespace}"))))
            }
            _ => None,
        }
    }
}

/// The key of the role that a binding in a namespace (or in none) refers to.
pub fn role_of(binding: &Value, namespace: &str) -> Option<Key> {
    let name = text(binding, "/roleRef/name");
    match text(binding, "/roleRef/kind") {
        "ClusterRole" => Some(Key::new("clusterroles", "", name)),
        "Role" if !namespace.is_empty() => Some(Key::new("roles", namespace, name)),
        _ => None,
    }
}

fn missing_role(key: &Key) -> String {
    let (storage, _, name) = key.parts();
    format!("{}.{GROUP} {name:?} not found", storage.trim_end_matches('s'))
}

#[cfg(test)]
mod tests;
