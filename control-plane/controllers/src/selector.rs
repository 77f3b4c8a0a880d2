//! Label selectors as controllers use them.
//!
//! Input: the selectors of API objects. Output: yes or no for a set of labels. An absent selector selects nothing, an
//! empty one everything, as upstream has it. Refuses selectors that do not parse.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// A compiled label selector.
#[derive(Clone, Debug)]
pub struct Matcher(Selector);

impl Matcher {
    /// Compiles a selector; the error says what is wrong with it.
    pub fn new(selector: &LabelSelector) -> Result<Self, String> {
        Selector::try_from(selector.clone()).map(Self).map_err(|error| error.0)
    }

    /// Whether every object is selected.
    pub fn selects_all(&self) -> bool {
        self.0.selects_all()
    }

    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.matches(labels.unwrap_or(&NO_LABELS))
    }
}

/// Whether `labels` has every pair of a Service's selector. An empty selector selects nothing.
pub fn service_selects(
    selector: Option<&BTreeMap<String, String>>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let (Some(selector), Some(labels)) = (selector, labels) else { return false };
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
