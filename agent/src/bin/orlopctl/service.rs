//! `orlopctl service`: what to ask, and how the answers look on a terminal.
//!
//! Pure. The agent knows and explains; here stand verbs and tables.

use std::collections::BTreeMap;

use agent::admin::{Address, Client, Namespace, Question, ServiceName};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Column, cell, rows, table};

#[cfg(test)]
#[path = "service/tests.rs"]
mod tests;

#[derive(Subcommand)]
pub enum Verb {
    /// Services that this node serves, with their endpoints and the flows led since they were programmed
    #[command(alias = "list")]
    Ls {
        /// Of this namespace alone
        #[arg(short, long, value_name = "NAMESPACE")]
        namespace: Option<Namespace>,
    },
    /// All about one Service: its addresses, its endpoints, and what the kernel holds for it
    Get {
        /// The Service
        #[arg(value_name = "NAMESPACE/NAME | ADDRESS:PORT[/PROTOCOL]")]
        of: ServiceName,
    },
    /// Endpoints as the kernel has them: number, generation, who lists them, connections
    Backends {
        /// Of this Service alone
        #[arg(value_name = "NAMESPACE/NAME | ADDRESS:PORT[/PROTOCOL]")]
        of: Option<ServiceName>,
    },
    /// Clients that session affinity leads to their last endpoint
    Affinity {
        /// Of this Service alone
        #[arg(value_name = "NAMESPACE/NAME | ADDRESS:PORT[/PROTOCOL]")]
        of: Option<ServiceName>,
    },
    /// What was refused or dropped, what that means, and what to do
    Drops,
    /// Where a client that asks would be led, step by step, from the kernel's own maps
    Trace {
        /// Where it asks
        #[arg(value_name = "ADDRESS:PORT[/PROTOCOL]")]
        to: Address,
        /// Who asks: an address outside, pod:NAMESPACE/NAME of this node, or node
        #[arg(long, value_name = "CLIENT[:PORT]")]
        from: Client,
    },
}

impl Verb {
    pub fn question(&self) -> Question {
        match self {
            Self::Ls { namespace } => Question::Services { namespace: namespace.clone() },
            Self::Get { of } => Question::Service { of: of.clone() },
            Self::Backends { of } => Question::Backends { of: of.clone() },
            Self::Affinity { of } => Question::Affinity { of: of.clone() },
            Self::Drops => Question::Drops,
            Self::Trace { to, from } => Question::Trace { to: *to, from: from.clone() },
        }
    }
}

const SERVICES: &[Column] = &[
    ("NAMESPACE", "/namespace"),
    ("NAME", "/name"),
    ("TYPE", "/type"),
    ("CLUSTER-IP", "/cluster_ips"),
    ("EXTERNAL-IP", "/external_ips"),
    ("PORT(S)", "/ports"),
    ("SCHEDULER", "/scheduler"),
    ("ENDPOINTS", "/endpoints"),
    ("FLOWS", "/flows"),
    ("REFUSED", "/refused"),
];
const FRONTENDS: &[Column] = &[
    ("FRONTEND", "/address"),
    ("KIND", "/kind"),
    ("FLOWS", "/flows"),
    ("NO-ENDPOINT", "/refused_no_endpoint"),
    ("NOT-IN-RANGES", "/refused_source_range"),
    ("SLOT", "/kernel/slot"),
    ("INSIDE", "/inside"),
    ("OUTSIDE", "/outside"),
];
const ENDPOINTS: &[Column] = &[
    ("ENDPOINT", "/address"),
    ("NUMBER", "/number"),
    ("GENERATION", "/generation"),
    ("INSIDE", "/inside"),
    ("OUTSIDE", "/outside"),
    ("FRONTENDS", "/frontends"),
];
const BACKENDS: &[Column] = &[
    ("ENDPOINT", "/address"),
    ("NUMBER", "/number"),
    ("GENERATION", "/generation"),
    ("CONNECTIONS", "/connections"),
    ("FAILURES", "/failures"),
    ("ASIDE", "/aside_seconds"),
    ("SERVICES", "/services"),
    ("DRAINING", "/draining"),
];
const CLIENTS: &[Column] = &[
    ("FRONTEND", "/frontend"),
    ("SERVICE", "/service"),
    ("CLIENT", "/client"),
    ("ORIGIN", "/origin"),
    ("ENDPOINT", "/endpoint/address"),
    ("SECONDS-LEFT", "/seconds_left"),
];
const DROPS: &[Column] = &[("REASON", "/reason"), ("COUNT", "/count"), ("MEANING", "/says")];
const CANDIDATES: &[Column] = &[
    ("CANDIDATE", "/address"),
    ("NUMBER", "/number"),
    ("GENERATION", "/generation"),
    ("SHARE", "/shares"),
    ("CONNECTIONS", "/connections"),
    ("ASIDE", "/aside"),
];

/// The answer to a verb, for people.
pub fn text(verb: &Verb, answer: &Value) -> String {
    match verb {
        Verb::Ls { .. } => limited(SERVICES, answer, "name a namespace with -n"),
        Verb::Get { .. } => service(answer),
        Verb::Backends { .. } => {
            let items: Vec<Value> = rows(&answer["items"]).iter().map(backend).collect();
            let answer = json!({"total": answer["total"], "items": items});
            limited(BACKENDS, &answer, "name a Service")
        }
        Verb::Affinity { .. } => limited(CLIENTS, answer, "name a Service"),
        Verb::Drops => drops(answer),
        Verb::Trace { .. } => trace(answer),
    }
}

/// A table, and how many rows it has not.
fn limited(columns: &[Column], answer: &Value, hint: &str) -> String {
    let items = rows(&answer["items"]);
    let total = answer["total"].as_u64().unwrap_or_default();
    let missing = total.saturating_sub(items.len() as u64);
    let mut text = table(columns, items);
    if missing > 0 {
        text.push_str(&format!("and {missing} more of {total}: {hint}\n"));
    }
    text
}

fn drops(answer: &Value) -> String {
    let said = rows(answer).iter().map(|row| {
        let says = format!("{}; {}", cell(row.get("meaning")), cell(row.get("remedy")));
        json!({"reason": row["reason"], "count": row["count"], "says": says})
    });
    table(DROPS, &said.collect::<Vec<_>>())
}

fn trace(answer: &Value) -> String {
    let mut text = format!("{} -> {}\n", cell(answer.get("from")), cell(answer.get("to")));
    for (number, step) in (1..).zip(rows(&answer["steps"])) {
        text.push_str(&format!("{number:>2}. {:<10} {}\n", cell(step.get("step")), cell(step.get("says"))));
    }
    text.push_str(&format!("=> {}\n", cell(answer.get("says"))));
    if !answer["candidates"].is_null() {
        text.push_str(&format!(
            "\n{}",
            limited(CANDIDATES, &answer["candidates"], "orlopctl service get shows shares")
        ));
    }
    text
}

/// As `kubectl describe` shows an object, and two tables.
fn service(answer: &Value) -> String {
    let name = match (&answer["namespace"], &answer["name"]) {
        (Value::String(namespace), Value::String(name)) => format!("{namespace}/{name}"),
        _ => "of no Service that is known yet: left by an earlier agent".to_owned(),
    };
    let mut text = format!("{:<26}{name}\n", "Service:");
    let seconds = |value: &Value| value.as_u64().map(|seconds| format!("{seconds} s"));
    let ranges = answer.get("source_ranges").filter(|ranges| !ranges.is_null());
    let fields = [
        ("Type:", Some(cell(answer.get("type")))),
        ("Scheduler:", Some(cell(answer.get("scheduler")))),
        (
            "Session affinity:",
            Some(seconds(&answer["affinity_seconds"]).unwrap_or_else(|| "none".to_owned())),
        ),
        ("Internal traffic policy:", Some(cell(answer.get("internal_traffic_policy")))),
        ("External traffic policy:", Some(cell(answer.get("external_traffic_policy")))),
        ("Forwarding mode:", Some(cell(answer.get("forwarding_mode")))),
        (
            "Source ranges:",
            Some(ranges.map_or_else(|| "none: everybody may ask".to_owned(), |ranges| cell(Some(ranges)))),
        ),
        ("Health check port:", answer["health_check_port"].as_u64().map(|port| port.to_string())),
    ];
    if answer["name"].is_string() {
        for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            text.push_str(&format!("{name:<26}{value}\n"));
        }
    }
    let frontends = rows(&answer["frontends"]);
    let shown: Vec<Value> = frontends.iter().map(frontend).collect();
    let endpoints: Vec<Value> = endpoints(frontends);
    let total = |frontend: &Value| frontend["endpoints_total"].as_u64().unwrap_or_default();
    let is_cut = |frontend: &&Value| total(frontend) > rows(&frontend["endpoints"]).len() as u64;
    let cut = match frontends.iter().find(is_cut) {
        Some(frontend) => format!("of {} for {}\n", total(frontend), cell(frontend.get("address"))),
        None => String::new(),
    };
    format!("{text}\n{}\n{}{cut}", table(FRONTENDS, &shown), table(ENDPOINTS, &endpoints))
}

/// With its tables in words.
fn frontend(frontend: &Value) -> Value {
    let mut shown = frontend.clone();
    // What is wanted and not programmed has none.
    if frontend["kernel"].is_null() {
        return shown;
    }
    for origin in ["inside", "outside"] {
        let table = &frontend["kernel"][origin];
        let number = |name: &str| table[name].as_u64().unwrap_or_default();
        let lookup = if number("lookup") == 0 { String::new() } else { format!("+{}", number("lookup")) };
        shown[origin] = match number("length") {
            0 => json!("none"),
            length => json!(format!("{length}{lookup}@{} #{}", number("offset"), number("generation"))),
        };
    }
    shown
}

/// Says how many Services are not named.
fn backend(backend: &Value) -> Value {
    let mut shown = backend.clone();
    for list in ["services", "draining"] {
        let named = rows(&backend[list]).len() as u64;
        let more = backend[format!("{list}_total")].as_u64().unwrap_or_default().saturating_sub(named);
        if let (Value::Array(all), 1..) = (&mut shown[list], more) {
            all.push(json!(format!("and {more} more")));
        }
    }
    shown
}

/// Each endpoint once, with the frontends that lead to it in the same way.
fn endpoints(frontends: &[Value]) -> Vec<Value> {
    let mut all: BTreeMap<Vec<String>, (Value, Vec<&Value>)> = BTreeMap::new();
    for frontend in frontends {
        for endpoint in rows(&frontend["endpoints"]) {
            let key = ENDPOINTS.iter().map(|(_, path)| cell(endpoint.pointer(path))).collect();
            all.entry(key).or_insert_with(|| (endpoint.clone(), Vec::new())).1.push(&frontend["address"]);
        }
    }
    let row = |(mut row, led): (Value, Vec<&Value>)| {
        row["frontends"] = if led.len() == frontends.len() { json!("all") } else { json!(led) };
        row
    };
    all.into_values().map(row).collect()
}
