use std::sync::Arc;

use dataplane::Protocol;

use super::*;
use crate::services::AddressKind;
use crate::services::plan::{Key, Port};

fn frontend(port: u16) -> Frontend {
    Frontend { address: [10, 96, 0, 10].into(), port, protocol: Protocol::Tcp }
}

fn endpoint(number: u32) -> Endpoint {
    let address = ([10, 244, 0, number as u8], 8080).into();
    Endpoint { number, generation: 20 + number, address }
}

fn asked(from: Client) -> Asked {
    let key = Arc::new(Key { namespace: "default".into(), name: "web".into() });
    let port = Port { name: "http".into(), port: 80, protocol: Protocol::Tcp, node_port: None };
    let origin = if matches!(from, Client::Outside { .. }) { Origin::Outside } else { Origin::Inside };
    Asked {
        to: frontend(80),
        from,
        origin,
        owner: Some(Owner { key, kind: AddressKind::ClusterIp, port }),
        neighbours: Vec::new(),
        wanted_by: None,
        serves_inside: true,
    }
}

fn outside(port: Option<u16>) -> Client {
    Client::Outside { address: [192, 0, 2, 9].into(), port }
}

fn slot() -> Step {
    Step::Slot { slot: 5, selection: Selection { offset: 120, length: 3, lookup: 1, generation: 9 } }
}

/// Steps and conclusion, line by line.
fn lines(asked: &Asked, steps: Vec<Step>, verdict: Verdict) -> Vec<String> {
    let value = explain(asked, &Trace { steps, verdict });
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let step = |step: &Value| format!("{}: {}", text(&step["step"]), text(&step["says"]));
    let steps = value["steps"].as_array().unwrap().iter().map(step);
    steps.chain([format!("{}: {}", text(&value["verdict"]), text(&value["says"]))]).collect()
}

fn conclusion(asked: &Asked, verdict: Verdict) -> String {
    lines(asked, Vec::new(), verdict).pop().unwrap()
}

#[test]
fn a_trace_from_outside_in_words() {
    let steps = vec![
        Step::NewFlow,
        slot(),
        Step::SourceRanges { set: 4, hold: true },
        Step::NoAffinity,
        Step::Scheduler { scheduler: Scheduler::Maglev },
    ];
    let verdict = Verdict::Led { endpoint: endpoint(2), by: By::Hash };
    assert_eq!(
        lines(&asked(outside(Some(4000))), steps, verdict),
        [
            "origin: outside: packets of 192.0.2.9 are led when they come in by an uplink",
            "flow: none is known between 192.0.2.9:4000 and 10.96.0.10:80/TCP: a new one",
            "frontend: 10.96.0.10:80/TCP is a cluster IP of default/web, port http: slot 5, 3 places from 120 on and a lookup table of 16381, selection 9",
            "sources: set 4 holds the client's address",
            "affinity: none: each flow is a choice of its own",
            "scheduler: mh: by the hash of the client's address and port",
            "led: led to 10.244.0.2:8080 (number 2, generation 22), by its hash, each time",
        ]
    );
}

#[test]
fn a_trace_of_a_pod_in_words() {
    let pod = Client::Pod(Key { namespace: "default".into(), name: "shell".into() });
    let remembered = |ago, stays| Step::Remembered { seconds: 60, ago, endpoint: endpoint(1), stays };
    let told = |step| lines(&asked(pod.clone()), vec![step], Verdict::NoEndpoint)[1].clone();
    assert_eq!(
        told(Step::SourceRanges { set: 4, hold: false }),
        "sources: no range of set 4 holds an address of the client"
    );
    assert!(told(Step::UnknownClient { set: 4 }).ends_with(
        "it may ask whatever they are (orlop-agent proxy knows no pods; under an agent, its log says why)"
    ));
    let refused = conclusion(&asked(pod.clone()), Verdict::Forbidden);
    assert!(refused.ends_with("(with orlop.dev/services: packets, its packets are dropped)"), "{refused}");
    assert_eq!(
        told(remembered(7, true)),
        "affinity: 60 s, and this client was led to 10.244.0.1:8080 (number 1, generation 21) 7 s ago: it stays there"
    );
    assert!(told(remembered(61, false)).ends_with("61 s ago: too long ago, a new choice"));
    assert!(
        told(remembered(7, false))
            .ends_with("which is not the service's any more, or is set aside: a new choice")
    );
    let candidate =
        |number, shares, is_aside| Candidate { endpoint: endpoint(number), shares, connections: 0, is_aside };
    let candidates = vec![candidate(1, 2, false), candidate(2, 0, true)];
    let verdict = Verdict::OneOf { candidates, places: 2, next: None };
    let value = explain(&asked(pod), &Trace { steps: vec![slot()], verdict });
    assert_eq!(value["from"], "pod:default/shell");
    assert_eq!(value["candidates"]["items"][0]["shares"], "2/2");
    assert_eq!(value["candidates"]["items"][1]["aside"], true);
    assert_eq!(value["says"], "led to 10.244.0.1:8080 (number 1, generation 21), the only candidate");
}

#[test]
fn where_nobody_answers_the_nearest_reason_is_told() {
    let mut asked = asked(Client::Node);
    asked.owner = None;
    let says = |asked: &Asked| conclusion(asked, Verdict::NotLed);
    let end = "the socket connects to the address itself";
    assert_eq!(says(&asked), format!("no service: no Service answers at 10.96.0.10; {end}"));
    asked.neighbours = vec![frontend(443), Frontend { protocol: Protocol::Udp, ..frontend(80) }];
    assert_eq!(
        says(&asked),
        format!("no service: 10.96.0.10 answers at 443/TCP, 80/UDP, not at 80/TCP; {end}")
    );
    asked.wanted_by = Some("default/web".to_owned());
    assert!(says(&asked).contains("default/web has this address and port, but this node does not lead it"));
}

#[test]
fn a_refusal_tells_which() {
    let mut outside = asked(outside(None));
    let says = |asked: &Asked, verdict| conclusion(asked, verdict);
    assert!(says(&outside, Verdict::NoEndpoint).contains("externalTrafficPolicy Local"));
    outside.serves_inside = false;
    assert_eq!(
        says(&outside, Verdict::NoEndpoint),
        "dropped: dropped: no endpoint is ready that its traffic policy and weights allow"
    );
    assert!(says(&outside, Verdict::Forbidden).ends_with("loadBalancerSourceRanges holds 192.0.2.9"));
    assert!(says(&outside, Verdict::LeftToNode).starts_with("refused: "));
    assert!(says(&outside, Verdict::Answer { pod: endpoint(3).address }).contains("10.244.0.3:8080 began"));
    let inside = asked(Client::Node);
    assert_eq!(
        says(&inside, Verdict::Forbidden),
        "refused: refused (EPERM): none of the Service's loadBalancerSourceRanges holds an address of node"
    );
    assert_eq!(
        says(&inside, Verdict::NoEndpoint),
        "refused: refused (ECONNREFUSED): no endpoint is ready that its traffic policy and weights allow"
    );
    assert!(
        says(&inside, Verdict::PacketsAlone).starts_with("no service: the kernel tells of no SCTP socket")
    );
    assert!(says(&inside, Verdict::Loopback).contains("a pod's loopback is its own"));
}
