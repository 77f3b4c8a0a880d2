//! One rule of a role: what it allows, and which rules others cover. Pure.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value};

use super::super::Attributes;
use crate::object::items;

const ALL: &str = "*";
/// A rule's lists, as the API names them, in the order in which upstream writes them.
const FIELDS: [&str; 5] = ["apiGroups", "resources", "nonResourceURLs", "resourceNames", "verbs"];

/// Verbs on resources, or on paths that are no resources'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub groups: Vec<String>,
    /// With a subresource behind a slash, where one is meant.
    pub resources: Vec<String>,
    pub paths: Vec<String>,
    /// Names of objects; none are all.
    pub names: Vec<String>,
    pub verbs: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

fn has_or_all(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted || item == ALL)
}

fn has_path(list: &[String], path: &str) -> bool {
    list.iter()
        .any(|item| item == path || (item.ends_with(ALL) && path.starts_with(item.trim_end_matches(ALL))))
}

/// `*`, the resource itself, or `*/subresource`.
fn has_resource(list: &[String], resource: &str) -> bool {
    let of_any = |item: &String| match (item.strip_prefix("*/"), resource.split_once('/')) {
        (Some(every), Some((_, subresource))) => every == subresource,
        _ => false,
    };
    has_or_all(list, resource) || list.iter().any(of_any)
}

impl Rule {
    /// The rules of a role.
    pub fn all_of(role: &Value) -> Vec<Rule> {
        items(role, "/rules").iter().map(Rule::of).collect()
    }

    pub fn of(value: &Value) -> Rule {
        let [groups, resources, paths, names, verbs] = FIELDS.map(|field| {
            let list = items(value, &format!("/{field}"));
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        });
        Rule { groups, resources, paths, names, verbs }
    }

    fn lists(&self) -> [(&'static str, &Vec<String>); 5] {
        let lists = [&self.groups, &self.resources, &self.paths, &self.names, &self.verbs];
        std::array::from_fn(|index| (FIELDS[index], lists[index]))
    }

    /// As the API writes it; empty lists are left out.
    pub fn to_value(&self) -> Value {
        let given = self.lists().into_iter().filter(|(_, list)| !list.is_empty());
        Value::Object(
            given.map(|(field, list)| (field.to_owned(), list.clone().into())).collect::<Map<_, _>>(),
        )
    }

    pub fn allows(&self, wanted: &Attributes) -> bool {
        has_or_all(&self.verbs, &wanted.verb)
            && has_or_all(&self.groups, &wanted.group)
            && has_resource(&self.resources, &wanted.resource_path())
            && (self.names.is_empty() || has(&self.names, &wanted.object_name()))
    }

    pub fn allows_path(&self, verb: &str, path: &str) -> bool {
        has_or_all(&self.verbs, verb) && has_path(&self.paths, path)
    }

    /// How many rules [`missing`] would take it apart into.
    pub fn size(&self) -> usize {
        let lengths = [self.groups.len(), self.resources.len(), self.names.len().max(1), self.verbs.len()];
        let resources = lengths.into_iter().fold(1, usize::saturating_mul);
        resources.saturating_add(self.paths.len().saturating_mul(self.verbs.len()))
    }

    /// One rule for each verb on each resource (and name) or path.
    fn atoms(&self) -> Vec<Rule> {
        let one = |text: &String| vec![text.clone()];
        let names: Vec<Vec<String>> =
            if self.names.is_empty() { vec![vec![]] } else { self.names.iter().map(one).collect() };
        let mut atoms = Vec::new();
        for group in &self.groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    atoms.extend(names.iter().map(|names| Rule {
                        groups: one(group),
                        resources: one(resource),
                        names: names.clone(),
                        verbs: one(verb),
                        ..Rule::default()
                    }));
                }
            }
        }
        for path in &self.paths {
            let rule = |verb| Rule { paths: one(path), verbs: one(verb), ..Rule::default() };
            atoms.extend(self.verbs.iter().map(rule));
        }
        atoms
    }

    /// Whether it allows all that an atom does.
    fn covers(&self, atom: &Rule) -> bool {
        let every = |wanted: &[String], holds: &dyn Fn(&str) -> bool| wanted.iter().all(|text| holds(text));
        every(&atom.verbs, &|verb| has_or_all(&self.verbs, verb))
            && every(&atom.groups, &|group| has_or_all(&self.groups, group))
            && every(&atom.resources, &|resource| has_resource(&self.resources, resource))
            && every(&atom.paths, &|path| has_path(&self.paths, path))
            && (self.names.is_empty()
                || (!atom.names.is_empty() && every(&atom.names, &|name| has(&self.names, name))))
    }
}

/// What administrators may.
pub fn everything() -> [Rule; 2] {
    let all = || vec![ALL.to_owned()];
    let resources = Rule { groups: all(), resources: all(), verbs: all(), ..Rule::default() };
    [resources, Rule { paths: all(), verbs: all(), ..Rule::default() }]
}

/// What of `wanted` the rules `held` do not allow, in few rules. Takes as long as `wanted` has size ([`Rule::size`]).
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let atoms = wanted.iter().flat_map(Rule::atoms);
    compact(atoms.filter(|atom| !held.iter().any(|rule| rule.covers(atom))))
}

/// Joins the verbs on one resource (and name); atoms of paths stay as they are.
fn compact(atoms: impl Iterator<Item = Rule>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut places = HashMap::new();
    for mut atom in atoms {
        let place = (atom.groups.clone(), atom.resources.clone(), atom.names.clone());
        match places.get(&place) {
            Some(index) if atom.paths.is_empty() => {
                let rule: &mut Rule = &mut rules[*index];
                rule.verbs.append(&mut atom.verbs);
            }
            _ => {
                if atom.paths.is_empty() {
                    places.insert(place, rules.len());
                }
                rules.push(atom);
            }
        }
    }
    rules
}

/// As upstream writes a rule in a sentence: `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["APIGroups", "Resources", "NonResourceURLs", "ResourceNames", "Verbs"];
        let lists = names.into_iter().zip(self.lists()).filter(|(_, (_, list))| !list.is_empty());
        let parts: Vec<String> = lists.map(|(name, (_, list))| format!("{name}:{}", quoted(list))).collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

/// A list of texts as Go's `%q` writes it.
pub fn quoted(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", quoted.join(" "))
}
