//! Label selectors, read into a form in which equal ones are equal. Pure: labels in, whether they match out.
//!
//! The rules are those of `k8s.io/apimachinery/pkg/labels`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

#[cfg(test)]
mod tests;

pub type Labels = BTreeMap<String, String>;

/// What labels must be like. Without requirements everything matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Selector {
    /// In order, each once.
    requirements: Arc<[Requirement]>,
}

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    key: Box<str>,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    In(BTreeSet<Box<str>>),
    /// A label that is not there has none of the values.
    NotIn(BTreeSet<Box<str>>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Without what cannot be read, so that it may match more than it should; of that, the field and what is wrong with it.
    pub fn read(selector: &LabelSelector) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let labels = selector.match_labels.iter().flatten().map(|(key, value)| Requirement {
            key: key.as_str().into(),
            test: Test::In([value.as_str().into()].into()),
        });
        let expressions = selector.match_expressions.iter().flatten().enumerate();
        let expressions = expressions.filter_map(|(index, expression)| {
            let problem = |(field, text): (&str, String)| {
                problems.push(format!("matchExpressions[{index}].{field}: {text}"));
            };
            requirement(expression).map_err(problem).ok()
        });
        let requirements: BTreeSet<Requirement> = labels.chain(expressions).collect();
        (Self { requirements: requirements.into_iter().collect() }, problems)
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&*self.key).map(String::as_str);
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    }
}

/// On failure the field that cannot be used, and why.
fn requirement(expression: &LabelSelectorRequirement) -> Result<Requirement, (&'static str, String)> {
    let operator = expression.operator.as_str();
    let values: BTreeSet<Box<str>> =
        expression.values.iter().flatten().map(|value| value.as_str().into()).collect();
    let test = match (operator, values.is_empty()) {
        ("In", false) => Test::In(values),
        ("NotIn", false) => Test::NotIn(values),
        ("Exists", true) => Test::Exists,
        ("DoesNotExist", true) => Test::DoesNotExist,
        ("In" | "NotIn", true) => return Err(("values", format!("{operator} needs at least one"))),
        ("Exists" | "DoesNotExist", false) => return Err(("values", format!("{operator} takes none"))),
        _ => {
            let text = format!("\"{operator}\" is none of In, NotIn, Exists, DoesNotExist");
            return Err(("operator", text));
        }
    };
    if expression.key.is_empty() {
        return Err(("key", "is empty".to_owned()));
    }
    Ok(Requirement { key: expression.key.as_str().into(), test })
}
