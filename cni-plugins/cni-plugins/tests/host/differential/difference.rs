//! What differs between the twins after the same calls, and is not accepted.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    case::{Accepted, Case, Differs},
    twin::Seen,
};

/// What the reference says of every error that it has no code for.
const UNSPECIFIC: u32 = 999;

/// A report by step; nothing when all is as it should be.
pub fn differences(case: &Case, everywhere: &[Accepted], expected: &[Seen], found: &[Seen]) -> Vec<String> {
    let mut unused: BTreeSet<&str> = case.accepted.iter().map(|accepted| accepted.line.as_str()).collect();
    let mut report = Vec::new();
    for (expected, found) in expected.iter().zip(found) {
        let mut lines = match &expected.call.differs {
            Some(differs) => not_as_said(differs, expected, found),
            None => of_step(expected, found),
        };
        lines.retain(|line| {
            let mut all = case.accepted.iter().chain(everywhere);
            let accepted = all.find(|accepted| {
                accepted.step.is_none_or(|step| step == expected.index) && has_parts(line, &accepted.line)
            });
            if let Some(accepted) = accepted {
                unused.remove(accepted.line.as_str());
            }
            accepted.is_none()
        });
        if !lines.is_empty() {
            report.push(format!("{}\n{}", expected.what, lines.join("\n")));
            report.push(format!("  reference said: {}", expected.raw.replace('\n', " ")));
            report.push(format!("  ours said: {}", found.raw.replace('\n', " ")));
        }
    }
    report.extend(unused.into_iter().map(|line| format!("accepted, but not seen: {line}")));
    report
}

fn answers(expected: &Seen, found: &Seen) -> [String; 2] {
    [expected, found].map(|seen| seen.state.roles.answer(&seen.answer))
}

fn of_step(expected: &Seen, found: &Seen) -> Vec<String> {
    let mut lines = Vec::new();
    let answers = answers(expected, found);
    let answers = match expected.call.code {
        Some(code) => as_precise(answers, code),
        None => answers,
    };
    if answers[0] != answers[1] {
        lines.push(format!("  - {}", answers[0]));
        lines.push(format!("  + {}", answers[1]));
    }
    for (sign, seen, other) in [("-", expected, found), ("+", found, expected)] {
        let links: Vec<_> = seen.state.links.difference(&other.state.links).collect();
        lines.extend(links.iter().map(|link| format!("  {sign} {} has the link {}", link.0, link.1)));
        let only_here = seen.state.lines.difference(&other.state.lines);
        let others = only_here.filter(|line| !links.iter().any(|(host, link)| is_about(line, host, link)));
        lines.extend(others.map(|line| format!("  {sign} {line}")));
    }
    lines
}

/// What is seen of a link needs no lines where the whole link is on one side only.
fn is_about(line: &str, host: &str, link: &str) -> bool {
    let of_host = line.strip_prefix(host).and_then(|rest| rest.strip_prefix(' '));
    of_host.is_some_and(|rest| {
        let places = [format!("links {link} "), format!("/{link}/"), format!("\"{link}\"")];
        places.iter().any(|place| rest.contains(place))
    })
}

/// The reference's unspecific code becomes the precise one that is expected of ours.
fn as_precise([expected, found]: [String; 2], code: u32) -> [String; 2] {
    let error = |code: u32| json!({"exit": 1, "code": code}).to_string();
    if expected == error(UNSPECIFIC) {
        [error(code), found]
    } else {
        [expected, format!("{found}, not as expected of both")]
    }
}

/// One of the two succeeded and the other did not, so that only the answers can be compared.
fn not_as_said(differs: &Differs, expected: &Seen, found: &Seen) -> Vec<String> {
    let [expected, found] = answers(expected, found);
    let mut lines = Vec::new();
    if !has_parts(&expected, &differs.reference) {
        lines.push(format!("  - {expected}, not {}", differs.reference));
    }
    if !has_parts(&found, &differs.ours) {
        lines.push(format!("  + {found}, not {}", differs.ours));
    }
    lines
}

fn has_parts(line: &str, parts: &str) -> bool {
    parts.split(" … ").all(|part| line.contains(part))
}
