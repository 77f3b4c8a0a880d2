//! Which address families a Service has, and which policy: what it asks for, completed by what the cluster has. Pure.
//!
//! Rules and words are upstream's. A Service gets no address and loses none unless its policy says so: what an update leaves alone stays as
//! it is when the cluster changes.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::error::FieldError;
use crate::object::{child, items, text};

#[cfg(test)]
mod tests;

const SINGLE: &str = "SingleStack";
const REQUIRE: &str = "RequireDualStack";
const POLICY: &str = "spec.ipFamilyPolicy";
const HEADLESS: &str = "None";

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.as_str() == name)
    }

    /// The name in `ipFamilies`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// The families of a Service as it says.
pub fn of(service: &Value) -> Vec<Family> {
    texts(service, "/spec/ipFamilies").into_iter().filter_map(Family::named).collect()
}

/// Whether an update leaves alone what concerns the families of a Service that has some.
pub fn is_unchanged(service: &Value, old: &Value) -> bool {
    let same = |field: &str| service["spec"][field] == old["spec"][field];
    let fields = ["type", "ipFamilyPolicy", "ipFamilies", "clusterIP", "clusterIPs"];
    !of(old).is_empty() && fields.into_iter().all(same)
}

/// Completes `ipFamilies`, `ipFamilyPolicy` and `clusterIPs` of a valid Service that is no ExternalName and not unchanged.
/// `configured`: the cluster's families, the default one first.
pub fn settle(
    service: &mut Value,
    old: Option<&Value>,
    configured: &[Family],
) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    let without_pods = text(service, "/spec/clusterIP") == HEADLESS
        && service["spec"]["selector"].as_object().is_none_or(|selector| selector.is_empty());
    let policy = policy(service, old, without_pods);
    child(service, "spec").insert("ipFamilyPolicy".into(), policy.clone().into());
    if let Some(old) = old {
        release(service, old, &policy, &mut errors);
    }
    if policy == SINGLE {
        let plural = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
        for (list, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if items(service, &format!("/spec/{list}")).len() == 2 {
                errors.push(FieldError::invalid(POLICY, SINGLE, &format!("{plural} {what} are specified")));
            }
        }
    }
    let mut families = of(service);
    for (index, address) in addresses(service).into_iter().enumerate().skip(families.len()) {
        let family = Family::of(address);
        if configured.contains(&family) {
            families.push(family);
        } else {
            let detail = format!("{} is not configured on this cluster", family.as_str());
            let listed = service["spec"]["clusterIPs"].clone();
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{index}]"), listed, &detail));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    // Whoever makes the endpoints of such a Service may choose any family.
    if !without_pods {
        errors.extend(not_configured(&families, &policy, configured));
        if !errors.is_empty() {
            return Err(errors);
        }
    }
    if families.is_empty() {
        families.extend(configured.first());
    }
    if let [one] = families[..]
        && policy != SINGLE
        && (without_pods || configured.len() == 2)
    {
        families.push(one.other());
    }
    let names: Vec<&str> = families.into_iter().map(Family::as_str).collect();
    child(service, "spec").insert("ipFamilies".into(), json!(names));
    Ok(())
}

fn policy(service: &Value, old: Option<&Value>, without_pods: bool) -> String {
    let asked = text(service, "/spec/ipFamilyPolicy");
    let before = old.map_or("", |old| text(old, "/spec/ipFamilyPolicy"));
    let default = if without_pods { REQUIRE } else { SINGLE };
    [asked, before].into_iter().find(|policy| !policy.is_empty()).unwrap_or(default).to_owned()
}

/// The second family goes when the policy says so, and never without it.
fn release(service: &mut Value, old: &Value, policy: &str, errors: &mut Vec<FieldError>) {
    for (list, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let pointer = format!("/spec/{list}");
        let (now, before) = (items(service, &pointer), items(old, &pointer));
        if policy == SINGLE {
            if now == before
                && let [first, _] = now
            {
                let first = json!([first]);
                child(service, "spec").insert(list.into(), first);
            }
        } else if now.len() == 1 && before.len() == 2 {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(FieldError::invalid(POLICY, policy, &detail));
        }
    }
}

fn not_configured(families: &[Family], policy: &str, configured: &[Family]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if policy == REQUIRE && configured.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid(POLICY, policy, detail));
    }
    for (index, family) in families.iter().enumerate().filter(|(_, family)| !configured.contains(family)) {
        let path = format!("spec.ipFamilies[{index}]");
        errors.push(FieldError::invalid(path, family.as_str(), "not configured on this cluster"));
    }
    errors
}

/// The cluster IPs that are addresses.
pub fn addresses(service: &Value) -> Vec<IpAddr> {
    spelled(service).into_iter().map(|(_, address)| address).collect()
}

/// The same, with how the Service spells them.
pub fn spelled(service: &Value) -> Vec<(String, IpAddr)> {
    let texts = texts(service, "/spec/clusterIPs").into_iter();
    texts.filter_map(|text| Some((text.to_owned(), text.parse().ok()?))).collect()
}

fn texts<'a>(service: &'a Value, pointer: &str) -> Vec<&'a str> {
    items(service, pointer).iter().filter_map(Value::as_str).collect()
}
