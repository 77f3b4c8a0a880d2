use super::*;

fn node(number: u8) -> Node {
    Node {
        name: format!("node-{number}"),
        address: String::new(),
        address_v6: None,
        runs_server: number == 1,
    }
}

fn waiting_for(started: &[Node], listed: &str) -> String {
    let nodes = [node(1), node(2)];
    let since: Timestamp = "2026-01-01T00:00:10.7Z".parse().expect("a time");
    names(&unready(&Wish { nodes: &nodes, started, since }, listed))
}

#[test]
fn every_node_has_to_be_there_and_ready() {
    assert_eq!(waiting_for(&[], ""), "node-1, node-2");
    assert_eq!(waiting_for(&[], "node-1 True 2026-01-01T00:00:00Z\n"), "node-2");
    let listed = "node-1 True 2026-01-01T00:00:00Z\nnode-2 Unknown 2026-01-01T00:00:00Z\n";
    assert_eq!(waiting_for(&[], listed), "node-2");
    // A node that never said anything.
    assert_eq!(waiting_for(&[], "node-1 True 2026-01-01T00:00:00Z\nnode-2  \n"), "node-2");
    assert_eq!(waiting_for(&[], &listed.replace("Unknown", "True")), "");
}

#[test]
fn what_a_started_node_said_in_its_former_life_does_not_count() {
    let before = "node-1 True 2026-01-01T00:00:00Z\nnode-2 True 2026-01-01T00:00:09Z\n";
    assert_eq!(waiting_for(&[node(2)], before), "node-2");
    assert_eq!(waiting_for(&[node(2)], &before.replace("00:09Z", "00:10Z")), "");
}
