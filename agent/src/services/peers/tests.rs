use std::cell::RefCell;
use std::pin::pin;

use futures::channel::mpsc;
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
    Peers::of("node-a".to_owned())
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

fn listed(nodes: impl IntoIterator<Item = Node>) -> Vec<Event<Node>> {
    let nodes = nodes.into_iter().map(Event::InitApply);
    std::iter::once(Event::Init).chain(nodes).chain([Event::InitDone]).collect()
}

#[test]
fn nobody_is_believed_while_no_service_asks() {
    let mut peers = of_node_a();
    assert_eq!(peers.take_changed(), None, "what an earlier agent wrote stays until Services are known");
    let b = node("node-b", "192.0.2.2", "10.244.1.0/24");
    let all = vec!["10.244.1.0", "192.0.2.2"];
    for _ in 0..2 {
        peers.on_wanted(false);
        assert_eq!(peers.take_changed(), Some(Vec::new()));
        assert_eq!(peers.take_changed(), None);
        peers.on_wanted(true);
        assert_eq!(peers.take_changed(), None, "Nodes are not known yet");
        assert_eq!(written(&mut peers, listed([b.clone()])), std::slice::from_ref(&all));
    }
}

#[test]
fn an_earlier_agents_nodes_stay_until_all_are_known_where_a_service_asks() {
    let mut peers = of_node_a();
    peers.on_wanted(true);
    assert_eq!(peers.take_changed(), None);
    assert_eq!(written(&mut peers, listed([])), [Vec::<String>::new()]);
}

type Said = Result<Event<Node>, watcher::Error>;

#[tokio::test]
async fn nodes_are_watched_while_a_service_asks() {
    let wanted = Wanted::default();
    let (written, watches) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let watch = || {
        let (sender, receiver) = mpsc::unbounded::<Said>();
        watches.borrow_mut().push(sender);
        receiver.boxed()
    };
    let write = |addresses: &[IpAddr]| {
        written.borrow_mut().push(addresses.to_vec());
        Ok(())
    };
    let mut following = pin!(follow(of_node_a(), wanted.0.subscribe(), watch, write));
    // Whether each watch goes on, and what is written once all that was said is done.
    let mut then = || {
        assert!(following.as_mut().now_or_never().is_none(), "it runs until it is dropped");
        let go_on: Vec<bool> = watches.borrow().iter().map(|watch| !watch.is_closed()).collect();
        (go_on, written.take())
    };
    let b = node("node-b", "192.0.2.2", "10.244.1.0/24");
    let all: Vec<IpAddr> = ["10.244.1.0", "192.0.2.2"].map(|address| address.parse().unwrap()).into();
    assert_eq!(then(), (vec![], vec![]), "not all Services are known");
    for begun in 0..2 {
        let mut go_on = vec![false; begun];
        wanted.set(false);
        assert_eq!(then(), (go_on.clone(), vec![vec![]]));
        wanted.set(false);
        assert_eq!(then(), (go_on.clone(), vec![]), "that is no news");
        go_on.push(true);
        wanted.set(true);
        assert_eq!(then(), (go_on.clone(), vec![]), "Nodes are not known yet");
        for event in listed([b.clone()]) {
            watches.borrow()[begun].unbounded_send(Ok(event)).unwrap();
        }
        assert_eq!(then(), (go_on, vec![all.clone()]));
    }
}
