//! Tables for aliases and names, and the order of GC.

use std::cell::RefCell;

use cni::ErrorReply;

use super::{Alias, Link, in_order, port_name, random_name, unfinished_group};
use crate::plugin::block_on;

#[test]
fn aliases_read_back_and_foreign_ones_do_not() {
    let alias = Alias { network: "pods", container_id: "abc", ifname: "eth0" };
    let text = alias.text().expect("it is short");
    assert_eq!(text, "cni:pods:abc:eth0");
    assert_eq!(Alias::parse(&text), Some(alias));
    for foreign in ["", "cni", "cni:pods:abc", "cni:pods:abc:eth0:x", "uplink:pods:abc:eth0"] {
        assert_eq!(Alias::parse(foreign), None, "{foreign:?}");
    }
    let long = "a".repeat(300);
    assert_eq!(Alias { container_id: &long, ..alias }.text(), None);
}

#[test]
fn an_attachments_link_is_known_with_and_without_its_alias() {
    let alias = Alias { network: "pods", container_id: "abc", ifname: "eth0" };
    let link = |name: &str, group: u32, alias: Option<&str>| Link {
        name: name.to_owned(),
        group,
        alias: alias.map(str::to_owned),
        ..Link::default()
    };
    let (name, group) = (port_name("pods", "abc", "eth0"), unfinished_group("pods"));
    for (found, expected) in [
        (link(&name, group, None), true),
        (link("veth00000000", 0, Some("cni:pods:abc:eth0")), true),
        (link(&name, 0, None), false),
        (link(&name, unfinished_group("other"), None), false),
        (link("veth00000000", group, None), false),
        (link(&name, 0, Some("cni:pods:abc:eth1")), false),
    ] {
        assert_eq!(alias.is_of(&found), expected, "{found:?}");
    }
}

#[test]
fn the_hash_stays_the_same() {
    // Links of a running node were named by it.
    assert_eq!(port_name("pods", "abc", "eth0"), "veth2e773186");
    assert_ne!(port_name("pods", "ab", "ceth0"), port_name("pods", "abc", "eth0"));
    assert_ne!(unfinished_group("pods"), 0);
}

#[test]
fn names_are_links_names() {
    let name = random_name().expect("a random name");
    assert_eq!(name.len(), 12);
    assert!(cni::interface_name(&name).is_ok() && name.starts_with("veth"));
}

#[test]
fn gc_goes_on_after_an_error_but_keeps_leases_of_links_that_may_stand() {
    for (errors, expected, told) in [
        (["", "", ""], "links rules leases", "no error"),
        (["", "stuck rule", ""], "links rules leases", "stuck rule"),
        (["stuck link", "", ""], "links rules", "stuck link"),
        (["stuck link", "stuck rule", "no"], "links rules", "stuck link; also: stuck rule"),
    ] {
        let collected = RefCell::new(Vec::new());
        let collect = async |what, error: &str| {
            collected.borrow_mut().push(what);
            if error.is_empty() { Ok(()) } else { Err(ErrorReply::internal(error)) }
        };
        let [link, rule, lease] = errors;
        let done = in_order(collect("links", link), collect("rules", rule), collect("leases", lease));
        let error = block_on(done).map_or_else(|error| error.to_string(), |()| "no error".to_owned());
        assert_eq!((collected.borrow().join(" ").as_str(), error.as_str()), (expected, told), "{errors:?}");
    }
}
