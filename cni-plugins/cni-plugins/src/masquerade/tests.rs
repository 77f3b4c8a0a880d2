//! The comments, which rules on running nodes are found by.

use super::Owner;

fn comment(network: &str, ifname: &str, container_id: &str) -> String {
    Owner { network, container_id, ifname }.comment()
}

#[test]
fn comments_are_those_of_the_reference() {
    for (network, ifname, container_id, expected) in [
        ("unit-test", "eth0", "one", "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one"),
        ("unit-test", "eth0", "two", "6fd94d501e58f0aa-d750b2c8f0f25d5f, net: unit-test, if: eth0, id: two"),
        (
            "alternate",
            "net1",
            "three",
            "82783ef24bdc7036-acb19d111858e348, net: alternate, if: net1, id: three",
        ),
    ] {
        assert_eq!(comment(network, ifname, container_id), expected);
    }
}

#[test]
fn long_comments_are_cut_where_the_tool_would_refuse_them() {
    let id = "a".repeat(100);
    let text = comment("pods", "e\"th0", &id);
    assert_eq!(text.len(), 128);
    assert!(text.contains(", net: pods, if: eth0, id: aaa"), "{text}");
    let owner = Owner { network: "pods", container_id: &id, ifname: "e\"th0" };
    assert!(text.starts_with(&owner.hash()), "the hash is of the name as it is");
}

#[test]
fn comments_are_cut_between_characters() {
    let network = "n".repeat(128 - "6fd94d501e58f0aa-287fc69eff0574a2, net: , if: ".len() - 1);
    let text = comment(&network, "é0", "one");
    assert_eq!(text.len(), 127);
    assert!(text.ends_with(", if: "), "{text}");
}
