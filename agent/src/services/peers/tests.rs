use serde_json::json;

use super::*;

fn node(name: &str, address: &str, pods: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": address}, {"type": "ExternalIP", "address": "203.0.113.9"},
            {"type": "Hostname", "address": name},
        ]},
    }))
    .unwrap()
}

/// What is to be written after each event, where that is anything.
fn written(peers: &mut Peers, events: impl IntoIterator<Item = Event<Node>>) -> Vec<Vec<String>> {
    let changed = events.into_iter().filter_map(|event| {
        peers.on_event(Ok(event));
        peers.take_changed()
    });
    changed.map(|addresses| addresses.iter().map(ToString::to_string).collect()).collect()
}

fn of_node_a() -> Peers {
    Peers { own_name: "node-a".to_owned(), ..Peers::default() }
}

#[test]
fn other_nodes_are_written_once_all_are_known_and_when_they_change() {
    let events = [
        Event::Init,
        Event::InitApply(node("node-a", "192.0.2.1", "10.244.0.0/24")),
        Event::InitApply(node("node-b", "192.0.2.2", "10.244.1.0/24")),
        Event::InitApply(node("node-c", "2001:db8::3", "10.244.2.0/24")),
        Event::InitDone,
        // Nothing that matters here.
        Event::Apply(node("node-b", "192.0.2.2", "10.244.1.0/24")),
        Event::Delete(node("node-c", "2001:db8::3", "10.244.2.0/24")),
        Event::Apply(node("node-b", "192.0.2.7", "10.244.1.0/24")),
    ];
    let all = vec!["10.244.1.0", "10.244.2.0", "192.0.2.2", "2001:db8::3"];
    let [one, moved] = ["192.0.2.2", "192.0.2.7"].map(|address| vec!["10.244.1.0", address]);
    assert_eq!(written(&mut of_node_a(), events), [all, one, moved]);
}

#[test]
fn a_node_that_went_while_the_watch_was_broken_is_believed_no_more() {
    let (b, c) = (node("node-b", "192.0.2.2", "10.244.1.0/24"), node("node-c", "192.0.2.3", "10.244.2.0/24"));
    let events = [
        Event::Init,
        Event::InitApply(b.clone()),
        Event::InitApply(c),
        Event::InitDone,
        Event::Init,
        Event::InitApply(b),
        Event::InitDone,
    ];
    let both = vec!["10.244.1.0", "10.244.2.0", "192.0.2.2", "192.0.2.3"];
    assert_eq!(written(&mut of_node_a(), events), [both, vec!["10.244.1.0", "192.0.2.2"]]);
}
