//! Who owns whom: the garbage collector's picture of all objects.
//!
//! Input: objects as they are seen and as they go. Output: [`Effect`]s, uids that need a look. Pure state, no I/O. Work
//! per change is O(owners and dependents that changed). An owner that is named but was never seen stands in the graph as
//! virtual until somebody asked the API server whether it exists.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::key::ObjectKey;
use crate::ownership::is_deleting;

/// Waits for the dependents that block.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Lets the dependents live on.
pub const FINALIZER_ORPHAN: &str = "orphan";

/// An object by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub api_version: String,
    pub kind: String,
    pub key: ObjectKey,
    pub uid: String,
}

/// What a change asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Look whether the object of this uid has to go.
    Check(String),
    /// Take the object of this uid out of its dependents' owners.
    Orphan(String),
}

/// An object and its ties.
#[derive(Clone, Debug)]
pub struct Item {
    pub identity: Identity,
    pub owners: Vec<OwnerReference>,
    /// Uids of the objects that name this one as an owner.
    pub dependents: BTreeSet<String>,
    /// Named by a dependent, never seen.
    pub is_virtual: bool,
    pub deleting: bool,
    /// Being deleted in the foreground.
    pub foreground: bool,
    /// Being deleted without its dependents.
    pub orphaning: bool,
}

impl Item {
    /// Whether the object waits for this owner to let it go before the owner can go.
    pub fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|own| own.uid == owner && own.block_owner_deletion == Some(true))
    }
}

/// All objects that were seen or named.
#[derive(Debug, Default)]
pub struct Graph {
    items: HashMap<String, Item>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The uids of all objects that were seen or named.
    pub fn uids(&self) -> Vec<String> {
        self.items.keys().cloned().collect()
    }

    /// The objects that name `uid` as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<Item> {
        let Some(item) = self.items.get(uid) else { return Vec::new() };
        item.dependents.iter().filter_map(|dependent| self.items.get(dependent).cloned()).collect()
    }

    /// Takes over an object's present state.
    pub fn observe(&mut self, identity: Identity, meta: &ObjectMeta) -> BTreeSet<Effect> {
        let uid = identity.uid.clone();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let deleting = is_deleting(meta);
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        let (foreground, orphaning) =
            (deleting && has(FINALIZER_FOREGROUND), deleting && has(FINALIZER_ORPHAN));
        let mut before = self.items.remove(&uid);
        let dependents = before.as_mut().map(|before| std::mem::take(&mut before.dependents));
        let dependents = dependents.unwrap_or_default();
        let item = Item { identity, owners, dependents, is_virtual: false, deleting, foreground, orphaning };
        let mut effects = BTreeSet::new();
        self.relink(before.as_ref(), &item, &mut effects);
        transitions(before.as_ref(), &item, &mut effects);
        self.items.insert(uid, item);
        effects
    }

    /// Forgets an object that is gone, be it seen or only named.
    pub fn forget(&mut self, uid: &str) -> BTreeSet<Effect> {
        let mut effects = BTreeSet::new();
        let Some(item) = self.items.remove(uid) else { return effects };
        for owner in &item.owners {
            self.unlink(&owner.uid, uid);
            self.check_waiting(&owner.uid, &mut effects);
        }
        effects.extend(item.dependents.iter().cloned().map(Effect::Check));
        if !item.dependents.is_empty() {
            // The dependents still name it: it stays as virtual until they are gone too.
            let ghost = Item {
                owners: Vec::new(),
                is_virtual: true,
                deleting: false,
                foreground: false,
                orphaning: false,
                ..item
            };
            self.items.insert(uid.to_owned(), ghost);
        }
        effects
    }

    /// Ties an object to the owners it names now, and unties it from those it named before.
    fn relink(&mut self, before: Option<&Item>, item: &Item, effects: &mut BTreeSet<Effect>) {
        let uid = &item.identity.uid;
        let former = before.map(|before| before.owners.as_slice()).unwrap_or_default();
        for owner in former {
            let kept = item.owners.iter().find(|own| own.uid == owner.uid);
            if kept.is_none() {
                self.unlink(&owner.uid, uid);
            }
            // An owner that waits for its dependents may have one less to wait for.
            if kept.is_none_or(|kept| kept.block_owner_deletion != owner.block_owner_deletion) {
                self.check_waiting(&owner.uid, effects);
            }
        }
        let mut lost = false;
        for owner in &item.owners {
            let is_new = !former.iter().any(|own| own.uid == owner.uid);
            lost |= self.link(owner, item) && is_new;
            let waits = self.items.get(&owner.uid).is_some_and(|owner| owner.foreground);
            if is_new && waits {
                effects.insert(Effect::Check(uid.clone()));
            }
        }
        for owner in item.owners.iter().filter(|_| lost) {
            if self.items.get(&owner.uid).is_some_and(|owner| owner.is_virtual) {
                effects.insert(Effect::Check(owner.uid.clone()));
            }
        }
        // Losing an owner may leave only absent ones.
        if before.is_some() && former.iter().any(|owner| !item.owners.iter().any(|own| own.uid == owner.uid))
        {
            effects.insert(Effect::Check(uid.clone()));
        }
    }

    /// Whether nothing speaks against the object: it is not being deleted, and its owners were seen and stay.
    pub fn is_held(&self, item: &Item) -> bool {
        let solid = |owner: &OwnerReference| {
            self.items.get(&owner.uid).is_some_and(|owner| !owner.is_virtual && !owner.foreground)
        };
        !item.is_virtual && !item.foreground && item.owners.iter().all(solid)
    }

    /// Adds a dependent to its owner; true where the owner was never seen.
    fn link(&mut self, owner: &OwnerReference, dependent: &Item) -> bool {
        let entry = self.items.entry(owner.uid.clone()).or_insert_with(|| Item {
            identity: Identity {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                key: ObjectKey::new(&dependent.identity.key.namespace, &owner.name),
                uid: owner.uid.clone(),
            },
            owners: Vec::new(),
            dependents: BTreeSet::new(),
            is_virtual: true,
            deleting: false,
            foreground: false,
            orphaning: false,
        });
        entry.dependents.insert(dependent.identity.uid.clone());
        entry.is_virtual
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        let Some(item) = self.items.get_mut(owner) else { return };
        item.dependents.remove(dependent);
        if item.is_virtual && item.dependents.is_empty() {
            self.items.remove(owner);
        }
    }

    fn check_waiting(&self, owner: &str, effects: &mut BTreeSet<Effect>) {
        if self.items.get(owner).is_some_and(|owner| owner.foreground) {
            effects.insert(Effect::Check(owner.to_owned()));
        }
    }
}

/// What the start of a deletion asks for.
fn transitions(before: Option<&Item>, item: &Item, effects: &mut BTreeSet<Effect>) {
    let uid = &item.identity.uid;
    if item.orphaning && !before.is_some_and(|before| before.orphaning) {
        effects.insert(Effect::Orphan(uid.clone()));
    }
    if item.foreground && !before.is_some_and(|before| before.foreground) {
        effects.extend(item.dependents.iter().cloned().map(Effect::Check));
        effects.insert(Effect::Check(uid.clone()));
    }
}
