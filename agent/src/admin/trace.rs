//! A trace in words: what each step of the programs found, and what becomes of the flow.
//!
//! Pure: `dataplane` walked, and the directory is asked before.

use dataplane::trace::{By, Candidate, Endpoint, Step, Trace, Verdict};
use dataplane::{Frontend, Origin, Scheduler, Selection};
use serde::Serialize;
use serde_json::{Value, json};

use super::question::Client;
use crate::services::{Owner, scheduler_name};

#[cfg(test)]
mod tests;

/// Other addresses and ports that are named where nothing answers.
pub const MAX_NEIGHBOURS: usize = 16;

/// Candidates in one answer.
const MAX_CANDIDATES: usize = 1000;

/// What was asked, and what is known beside the trace.
pub struct Asked {
    pub to: Frontend,
    pub from: Client,
    pub origin: Origin,
    pub owner: Option<Owner>,
    /// Frontends at the same address, at most [`MAX_NEIGHBOURS`].
    pub neighbours: Vec<Frontend>,
    /// A Service that has this address and port, though the dataplane does not lead it there.
    pub wanted_by: Option<String>,
    /// Whether clients on the node find an endpoint.
    pub serves_inside: bool,
}

/// A step, for people and programs.
#[derive(Debug, Serialize)]
struct Said {
    step: &'static str,
    says: String,
    found: Value,
}

pub fn explain(asked: &Asked, trace: &Trace) -> Value {
    let origin = Said { step: "origin", says: origin(asked), found: json!(origin_name(asked.origin)) };
    let steps = trace.steps.iter().map(|step| say(asked, step));
    let steps: Vec<Said> = std::iter::once(origin).chain(steps).collect();
    let (verdict, says) = conclude(asked, &trace.verdict);
    let (endpoint, candidates) = match &trace.verdict {
        Verdict::Led { endpoint, .. } => (Some(shown(endpoint)), None),
        Verdict::OneOf { candidates, places, next } => {
            let first = candidates.iter().take(MAX_CANDIDATES);
            let rows: Vec<Value> = first.map(|one| candidate(one, *places)).collect();
            (next.as_ref().map(shown), Some(json!({"total": candidates.len(), "items": rows})))
        }
        _ => (None, None),
    };
    json!({
        "to": asked.to.to_string(),
        "from": asked.from.to_string(),
        "origin": origin_name(asked.origin),
        "service": asked.owner.as_ref().map(|owner| owner.key.to_string()),
        "steps": steps,
        "verdict": verdict,
        "says": says,
        "endpoint": endpoint,
        "candidates": candidates,
    })
}

pub fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Inside => "inside",
        Origin::Outside => "outside",
    }
}

pub fn shown(Endpoint { number, generation, address }: &Endpoint) -> Value {
    json!({"address": address.to_string(), "number": number, "generation": generation})
}

fn candidate(Candidate { endpoint, shares, connections, is_aside }: &Candidate, places: u32) -> Value {
    let mut value = shown(endpoint);
    value["shares"] = json!(format!("{shares}/{places}"));
    value["connections"] = json!(connections);
    value["aside"] = json!(is_aside);
    value
}

fn origin(asked: &Asked) -> String {
    match &asked.from {
        Client::Node => {
            "inside: a socket in the node's own network is led when it connects or sends".to_owned()
        }
        Client::Pod(pod) => {
            format!("inside: a socket of pod {pod} on this node is led when it connects or sends")
        }
        Client::Outside { address, .. } => {
            format!("outside: packets of {address} are led when they come in by an uplink")
        }
    }
}

fn say(asked: &Asked, step: &Step) -> Said {
    let (name, says) = match step {
        Step::NewFlow => {
            ("flow", format!("none is known between {} and {}: a new one", asked.from, asked.to))
        }
        Step::KnownFlow { endpoint, stays: true } => {
            ("flow", format!("known, and stays with {}", numbered(endpoint)))
        }
        Step::KnownFlow { endpoint, stays: false } => (
            "flow",
            format!(
                "known, with {}, which is not the service's any more (or the client may not ask any more): packets of an open TCP connection \
                 go on there, a new connection or a datagram is led anew",
                numbered(endpoint)
            ),
        ),
        Step::Slot { slot, selection } => {
            ("frontend", format!("{}: slot {slot}, {}", whose(asked), table(*selection)))
        }
        Step::NoSourceRanges => ("sources", "no source ranges: everybody may ask".to_owned()),
        Step::SourceRanges { set, hold: true } => {
            ("sources", format!("set {set} holds {}", client_address(asked)))
        }
        Step::SourceRanges { set, hold: false } => {
            ("sources", format!("no range of set {set} holds {}", client_address(asked)))
        }
        Step::UnknownClient { set } => (
            "sources",
            format!(
                "set {set}, but nobody told the dataplane of the client's addresses: it may ask whatever they are (orlop-agent proxy knows no pods; under an agent, its log says why)"
            ),
        ),
        Step::NoAffinity => ("affinity", "none: each flow is a choice of its own".to_owned()),
        Step::NotRemembered { seconds } => (
            "affinity",
            format!("{seconds} s, and this client is not remembered: a new choice, which it will stay with"),
        ),
        Step::Remembered { seconds, ago, endpoint, stays } => {
            ("affinity", remembered(*seconds, *ago, endpoint, *stays))
        }
        Step::Scheduler { scheduler } => ("scheduler", scheduler_says(*scheduler, &asked.from).to_owned()),
    };
    Said { step: name, says, found: found(step) }
}

/// Whoever is on the node may have several.
fn client_address(asked: &Asked) -> &'static str {
    match asked.origin {
        Origin::Inside => "an address of the client",
        Origin::Outside => "the client's address",
    }
}

/// The same for programs.
fn found(step: &Step) -> Value {
    match step {
        Step::NewFlow | Step::NoSourceRanges | Step::NoAffinity => Value::Null,
        Step::KnownFlow { endpoint, stays } => json!({"endpoint": shown(endpoint), "stays": stays}),
        Step::Slot { slot, selection } => json!({"slot": slot, "selection": selected(*selection)}),
        Step::SourceRanges { set, hold } => json!({"set": set, "hold": hold}),
        Step::UnknownClient { set } => json!({"set": set}),
        Step::NotRemembered { seconds } => json!({"seconds": seconds}),
        Step::Remembered { seconds, ago, endpoint, stays } => {
            json!({"seconds": seconds, "ago": ago, "endpoint": shown(endpoint), "stays": stays})
        }
        Step::Scheduler { scheduler } => json!(scheduler_name(*scheduler)),
    }
}

/// A selection's word, taken apart.
pub fn selected(selection: Selection) -> Value {
    let Selection { offset, length, generation, .. } = selection;
    let lookup = selection.lookup_size();
    json!({"offset": offset, "length": length, "lookup": lookup, "generation": generation})
}

fn remembered(seconds: u32, ago: u64, endpoint: &Endpoint, stays: bool) -> String {
    let last = format!("{seconds} s, and this client was led to {} {ago} s ago", numbered(endpoint));
    if stays {
        format!("{last}: it stays there")
    } else if ago > u64::from(seconds) {
        format!("{last}: too long ago, a new choice")
    } else {
        format!("{last}, which is not the service's any more, or is set aside: a new choice")
    }
}

/// What a frontend is of whom.
fn whose(asked: &Asked) -> String {
    match &asked.owner {
        Some(Owner { key, kind, port }) => {
            let kind = kind.as_str();
            let name = if port.name.is_empty() { port.port.to_string() } else { port.name.clone() };
            format!("{} is a {kind} of {key}, port {name}", asked.to)
        }
        None => {
            format!("{} was left by an earlier agent, and no Service of the API has claimed it yet", asked.to)
        }
    }
}

fn table(selection: Selection) -> String {
    let Selection { offset, length, generation, .. } = selection;
    if length == 0 {
        return "an empty table".to_owned();
    }
    let places = if length == 1 { "1 place".to_owned() } else { format!("{length} places") };
    let lookup = match selection.lookup_size() {
        0 => String::new(),
        size => format!(" and a lookup table of {size}"),
    };
    format!("{places} from {offset} on{lookup}, selection {generation}")
}

fn scheduler_says(scheduler: Scheduler, from: &Client) -> &'static str {
    match scheduler {
        Scheduler::Random => "random: any endpoint, by its shares",
        Scheduler::RoundRobin => "rr: each place of the table in turn",
        Scheduler::LeastConnection => {
            "lc: the one with the fewest connections, of at most 8 places from a random one on"
        }
        Scheduler::SourceHash => {
            "sh: by the hash of the client's address (on the node: of its network namespace)"
        }
        Scheduler::Maglev if matches!(from, Client::Outside { port: Some(_), .. }) => {
            "mh: by the hash of the client's address and port"
        }
        Scheduler::Maglev => {
            "mh: this client's port is not known, so any endpoint by its shares; give ADDRESS:PORT for a client outside"
        }
    }
}

fn numbered(Endpoint { number, generation, address }: &Endpoint) -> String {
    format!("{address} (number {number}, generation {generation})")
}

/// A word for programs, and a sentence.
fn conclude(asked: &Asked, verdict: &Verdict) -> (&'static str, String) {
    let inside = asked.origin == Origin::Inside;
    match verdict {
        Verdict::Answer { pod } => {
            ("answer", format!("taken for the answer to a flow that {pod} began, and led there: no Service is looked for"))
        }
        Verdict::NotLed => ("no service", no_service(asked)),
        Verdict::Loopback if inside => {
            ("no service", "a pod's loopback is its own: there, only the node's own sockets find Services".to_owned())
        }
        Verdict::Loopback => ("no service", "the kernel drops what comes from outside to its loopback".to_owned()),
        Verdict::PacketsAlone => (
            "no service",
            "the kernel tells of no SCTP socket: led are packets, from outside and of pods with orlop.dev/services: packets".to_owned(),
        ),
        Verdict::Forbidden if inside => {
            let packets = match asked.from {
                Client::Node => "",
                _ => " (with orlop.dev/services: packets, its packets are dropped)",
            };
            (
                "refused",
                format!("refused (EPERM): none of the Service's loadBalancerSourceRanges holds an address of {}{packets}", asked.from),
            )
        }
        Verdict::Forbidden => (
            "dropped",
            format!("dropped: none of the Service's loadBalancerSourceRanges holds {}", asked.from),
        ),
        Verdict::NoEndpoint if inside => ("refused", "refused (ECONNREFUSED): no endpoint is ready that its traffic policy and weights allow".to_owned()),
        Verdict::NoEndpoint if asked.serves_inside => (
            "dropped",
            "dropped: this node has no endpoint for traffic from outside (externalTrafficPolicy Local), others have".to_owned(),
        ),
        Verdict::NoEndpoint => ("dropped", "dropped: no endpoint is ready that its traffic policy and weights allow".to_owned()),
        Verdict::LeftToNode => {
            ("refused", "no endpoint is ready: left to the node's kernel, which refuses at its own address".to_owned())
        }
        Verdict::Led { endpoint, by } => {
            let why = match by {
                By::Flow => "as the flow was before",
                By::Affinity => "where the client was before",
                By::Hash => "by its hash, each time",
            };
            ("led", format!("led to {}, {why}", numbered(endpoint)))
        }
        Verdict::OneOf { candidates, next, .. } => {
            let taken: Vec<&Candidate> = candidates.iter().filter(|one| one.shares > 0).collect();
            let says = match (taken.as_slice(), next) {
                (several, Some(next)) => {
                    let next = numbered(next);
                    format!("led to the next of {}: {next}, if nobody else asks first", several.len())
                }
                ([one], None) => format!("led to {}, the only candidate", numbered(&one.endpoint)),
                (several, None) => format!("led to one of {} candidates, by their shares", several.len()),
            };
            ("one of", says)
        }
    }
}

/// With the nearest reason.
fn no_service(asked: &Asked) -> String {
    let address = asked.to.address;
    let on = match asked.origin {
        Origin::Inside => "the socket connects to the address itself",
        Origin::Outside => "the packet goes on as it is",
    };
    if let Some(service) = &asked.wanted_by {
        return format!(
            "{service} has this address and port, but this node does not lead it: see the Service's Events; {on}"
        );
    }
    if asked.neighbours.is_empty() {
        return format!("no Service answers at {address}; {on}");
    }
    let port = |other: &Frontend| format!("{}/{}", other.port, other.protocol.name());
    let ports: Vec<String> = asked.neighbours.iter().map(port).collect();
    let more = if ports.len() == MAX_NEIGHBOURS { " and maybe more" } else { "" };
    let (wanted, ports) = (port(&asked.to), ports.join(", "));
    format!("{address} answers at {ports}{more}, not at {wanted}; {on}")
}
