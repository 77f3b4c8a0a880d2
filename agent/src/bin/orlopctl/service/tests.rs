use clap::Parser;

use super::super::{Arguments, Verb as Command};
use super::*;

fn verb(words: &str) -> Verb {
    let words = ["orlopctl", "service"].into_iter().chain(words.split(' '));
    match Arguments::try_parse_from(words).map_err(|error| error.to_string()).unwrap().verb {
        Command::Service { verb } => verb,
        _ => panic!("not about Services"),
    }
}

#[test]
fn verbs_are_questions() {
    let questions = [
        ("ls", json!({"services": {"namespace": null}})),
        ("ls -n kube-system", json!({"services": {"namespace": "kube-system"}})),
        ("get default/web", json!({"service": {"of": "default/web"}})),
        ("get 10.96.0.10:53/udp", json!({"service": {"of": "10.96.0.10:53/UDP"}})),
        ("backends", json!({"backends": {"of": null}})),
        ("affinity [fd00::a]:80", json!({"affinity": {"of": "[fd00::a]:80"}})),
        ("drops", json!("drops")),
        (
            "trace 10.96.0.10:80 --from pod:default/shell",
            json!({"trace": {"to": "10.96.0.10:80", "from": "pod:default/shell"}}),
        ),
    ];
    for (words, question) in questions {
        assert_eq!(serde_json::to_value(verb(words).question()).unwrap(), question, "{words}");
    }
}

#[test]
fn a_word_that_is_none_is_refused_before_anybody_is_asked() {
    let error = |words: &[&str]| match Arguments::try_parse_from([&["orlopctl", "service"], words].concat()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{words:?}"),
    };
    let said = error(&["get", "web"]);
    assert!(said.contains("\"web\" is not a Service: NAMESPACE/NAME, or ADDRESS:PORT"), "{said}");
    let said = error(&["trace", "10.96.0.10", "--from", "node"]);
    assert!(said.contains("is not an address and port"), "{said}");
    let said = error(&["trace", "10.96.0.10:80", "--from", "pod:shell"]);
    assert!(said.contains("pod:NAMESPACE/NAME, or node"), "{said}");
}

#[test]
fn services_are_a_table_that_tells_what_is_missing() {
    let row = json!({
        "namespace": "default", "name": "web", "type": "NodePort", "cluster_ips": ["10.96.0.10"], "external_ips": [],
        "ports": ["80:30080/TCP"], "scheduler": "random", "endpoints": 2, "flows": 7, "refused": 0,
    });
    let answer = json!({"total": 3, "items": [row]});
    let expected = "\
NAMESPACE   NAME   TYPE       CLUSTER-IP   EXTERNAL-IP   PORT(S)        SCHEDULER   ENDPOINTS   FLOWS   REFUSED
default     web    NodePort   10.96.0.10   none          80:30080/TCP   random      2           7       0
and 2 more of 3: name a namespace with -n
";
    assert_eq!(text(&verb("ls"), &answer), expected);
}

#[test]
fn a_service_is_described_with_what_the_kernel_holds() {
    let table = json!({"offset": 120, "length": 2, "lookup": 0, "generation": 9});
    let nothing = json!({"offset": 0, "length": 0, "lookup": 0, "generation": 9});
    let endpoint = json!({"address": "10.244.0.5:8080", "number": 3, "generation": 21, "inside": "2/2"});
    let answer = json!({
        "namespace": "default", "name": "web", "type": "ClusterIP", "scheduler": "rr", "affinity_seconds": null,
        "internal_traffic_policy": "Cluster", "external_traffic_policy": "Local", "forwarding_mode": "snat", "source_ranges": null, "health_check_port": null,
        "frontends": [
            {
                "address": "10.96.0.10:80/TCP", "kind": "cluster IP", "flows": 7, "refused_no_endpoint": 0, "refused_source_range": 0,
                "kernel": {"slot": 5, "inside": table, "outside": nothing}, "endpoints": [endpoint],
            },
            {"address": "10.96.0.10:81/TCP", "kind": "cluster IP"},
        ],
    });
    let expected = "\
Service:                  default/web
Type:                     ClusterIP
Scheduler:                rr
Session affinity:         none
Internal traffic policy:  Cluster
External traffic policy:  Local
Forwarding mode:          snat
Source ranges:            none: everybody may ask

FRONTEND            KIND         FLOWS   NO-ENDPOINT   NOT-IN-RANGES   SLOT   INSIDE     OUTSIDE
10.96.0.10:80/TCP   cluster IP   7       0             0               5      2@120 #9   none
10.96.0.10:81/TCP   cluster IP   -       -             -               -      -          -

ENDPOINT          NUMBER   GENERATION   INSIDE   OUTSIDE   FRONTENDS
10.244.0.5:8080   3        21           2/2      -         10.96.0.10:80/TCP
";
    assert_eq!(text(&verb("get default/web"), &answer), expected);
    let unknown = json!({"namespace": null, "name": null, "frontends": []});
    let said = text(&verb("get 10.96.0.10:80"), &unknown);
    assert!(said.starts_with("Service:                  of no Service that is known yet"), "{said}");
}

#[test]
fn a_trace_is_numbered() {
    let answer = json!({
        "from": "node", "to": "10.96.0.10:80/TCP", "says": "led to one of 2 candidates",
        "steps": [{"step": "origin", "says": "inside"}, {"step": "frontend", "says": "slot 5"}],
        "candidates": {
            "total": 2,
            "items": [{"address": "10.244.0.5:8080", "number": 3, "generation": 21, "shares": "1/2", "connections": 0, "aside": false}],
        },
    });
    let expected = "\
node -> 10.96.0.10:80/TCP
 1. origin     inside
 2. frontend   slot 5
=> led to one of 2 candidates

CANDIDATE         NUMBER   GENERATION   SHARE   CONNECTIONS   ASIDE
10.244.0.5:8080   3        21           1/2     0             false
and 1 more of 2: orlopctl service get shows shares
";
    assert_eq!(text(&verb("trace 10.96.0.10:80 --from node"), &answer), expected);
}

#[test]
fn a_drop_says_in_one_line_what_it_means_and_what_to_do() {
    let answer = json!([{"reason": "packet_hairpin", "count": 4, "meaning": "a packet came back", "remedy": "use a socket"}]);
    let expected = "\
REASON           COUNT   MEANING
packet_hairpin   4       a packet came back; use a socket
";
    assert_eq!(text(&verb("drops"), &answer), expected);
}

#[test]
fn a_backend_says_how_many_services_are_not_named() {
    let row = json!({
        "address": "10.244.0.5:8080", "number": 3, "generation": 21, "connections": null, "failures": 3, "aside_seconds": 28,
        "services": ["default/a:80", "default/b:80"],
        "services_total": 5, "draining": [], "draining_total": 0,
    });
    let expected = "\
ENDPOINT          NUMBER   GENERATION   CONNECTIONS   FAILURES   ASIDE   SERVICES                               DRAINING
10.244.0.5:8080   3        21           -             3          28      default/a:80,default/b:80,and 3 more   none
";
    assert_eq!(text(&verb("backends"), &json!({"total": 1, "items": [row]})), expected);
}
