//! One rule of a role: what it allows, and which rules others cover. Pure.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value};

use super::super::Attributes;
use crate::object::items;

const ALL: &str = "*";
/// Bytes of a text that count as much as another one.
const LONG: usize = 1 << 10;
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

    /// How much work [`missing`] has with it: one for each verb on each resource (and name) or path, more where they are long.
    pub fn size(&self) -> usize {
        let size = |list: &[String]| {
            list.iter().fold(0usize, |size, text| size.saturating_add(1 + text.len() / LONG))
        };
        let names = if self.names.is_empty() { 1 } else { size(&self.names) };
        let sizes = [size(&self.groups), size(&self.resources), names, size(&self.verbs)];
        let resources = sizes.into_iter().fold(1, usize::saturating_mul);
        resources.saturating_add(size(&self.paths).saturating_mul(size(&self.verbs)))
    }

    /// One after the other: there may be many more than fit into memory.
    fn objects(&self) -> impl Iterator<Item = Object<'_>> {
        let resources = self.groups.iter().flat_map(move |group| {
            self.resources.iter().flat_map(move |resource| {
                self.each_name().map(move |name| Object::Resource { group, resource, name })
            })
        });
        resources.chain(self.paths.iter().map(|path| Object::Path(path)))
    }

    /// None once, for all names.
    fn each_name(&self) -> impl Iterator<Item = Option<&str>> {
        let all = self.names.is_empty().then_some(None);
        all.into_iter().chain(self.names.iter().map(|name| Some(name.as_str())))
    }

    /// Whether it allows anything on all that is meant.
    fn covers(&self, object: Object<'_>) -> bool {
        match object {
            Object::Path(path) => has_path(&self.paths, path),
            Object::Resource { group, resource, name } => {
                has_or_all(&self.groups, group)
                    && has_resource(&self.resources, resource)
                    && (self.names.is_empty() || name.is_some_and(|name| has(&self.names, name)))
            }
        }
    }
}

/// What a verb is used on. Borrows, for a rule that is taken apart would be far larger than it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Object<'a> {
    /// One object of a resource, or all.
    Resource {
        group: &'a str,
        resource: &'a str,
        name: Option<&'a str>,
    },
    Path(&'a str),
}

/// Verbs on one resource (and name) or path that are not held.
#[derive(Debug)]
pub struct Missing<'a> {
    object: Object<'a>,
    verbs: Vec<&'a str>,
}

impl Missing<'_> {
    pub fn to_rule(&self) -> Rule {
        let one = |text: &str| vec![text.to_owned()];
        let rule =
            Rule { verbs: self.verbs.iter().map(|verb| (*verb).to_owned()).collect(), ..Rule::default() };
        match self.object {
            Object::Path(path) => Rule { paths: one(path), ..rule },
            Object::Resource { group, resource, name } => Rule {
                groups: one(group),
                resources: one(resource),
                names: name.into_iter().flat_map(one).collect(),
                ..rule
            },
        }
    }
}

/// What administrators may.
pub fn everything() -> [Rule; 2] {
    let all = || vec![ALL.to_owned()];
    let resources = Rule { groups: all(), resources: all(), verbs: all(), ..Rule::default() };
    [resources, Rule { paths: all(), verbs: all(), ..Rule::default() }]
}

/// What of `wanted` the rules `held` do not allow, in few rules: the verbs on one resource (and name) are joined, those on paths
/// are not. Takes as long as `wanted` has size ([`Rule::size`]).
pub fn missing<'a>(held: &[Rule], wanted: &'a [Rule]) -> Vec<Missing<'a>> {
    let mut all: Vec<Missing<'_>> = Vec::new();
    let mut places = HashMap::new();
    // A rule without verbs has no size, however many objects it names.
    let wanted = wanted.iter().filter(|rule| !rule.verbs.is_empty());
    for (rule, object) in wanted.flat_map(|rule| rule.objects().map(move |object| (rule, object))) {
        let held: Vec<&Rule> = held.iter().filter(|rule| rule.covers(object)).collect();
        let is_held = |verb: &str| held.iter().any(|rule| has_or_all(&rule.verbs, verb));
        let mut verbs = rule.verbs.iter().map(String::as_str).filter(|verb| !is_held(verb)).peekable();
        if matches!(object, Object::Path(_)) {
            all.extend(verbs.map(|verb| Missing { object, verbs: vec![verb] }));
        } else if verbs.peek().is_some() {
            let place = *places.entry(object).or_insert(all.len());
            match all.get_mut(place) {
                Some(known) => known.verbs.extend(verbs),
                None => all.push(Missing { object, verbs: verbs.collect() }),
            }
        }
    }
    all
}

/// As upstream writes a rule in a sentence: `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object {
            Object::Path(path) => write!(f, "{{NonResourceURLs:[{path:?}]")?,
            Object::Resource { group, resource, name } => {
                write!(f, "{{APIGroups:[{group:?}], Resources:[{resource:?}]")?;
                name.map_or(Ok(()), |name| write!(f, ", ResourceNames:[{name:?}]"))?;
            }
        }
        write!(f, ", Verbs:{}}}", Quoted(&self.verbs))
    }
}

/// A list of texts as Go's `%q` writes it.
pub struct Quoted<'a, T>(pub &'a [T]);

impl<T: fmt::Debug> fmt::Display for Quoted<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, text) in self.0.iter().enumerate() {
            write!(f, "{}{text:?}", if index == 0 { "" } else { " " })?;
        }
        f.write_str("]")
    }
}
