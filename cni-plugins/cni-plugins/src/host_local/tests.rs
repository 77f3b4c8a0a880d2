//! `host-local` as a whole, in a temporary folder: sequences of calls, and properties of long ones.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    path::Path,
};

use cni::{AddResult, ErrorReply, Version};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::HostLocal;
use crate::plugin::{Plugin, Request};

fn request(container_id: &str, config: &Value) -> Request {
    let request = Request::of_config("pods", config.clone());
    Request { container_id: container_id.to_owned(), version: Version::V1_1_0, ..request }
}

fn config(dir: &Path, ranges: Value) -> Value {
    json!({"name": "pods", "ipam": {"type": "host-local", "dataDir": dir, "ranges": ranges}})
}

fn addresses(result: &AddResult) -> Vec<String> {
    result.ips.iter().map(|ip| ip.address.to_string()).collect()
}

fn add(id: &str, config: &Value) -> Result<Vec<String>, ErrorReply> {
    HostLocal.add(&request(id, config)).map(|result| addresses(&result))
}

#[test]
fn one_address_of_each_set_and_the_same_again_after_release() {
    let dir = tempfile::tempdir().expect("a folder");
    let both = config(
        dir.path(),
        json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64", "gateway": "fd00::ffff"}]]),
    );
    let result = HostLocal.add(&request("a", &both)).expect("addresses");
    assert_eq!(addresses(&result), ["10.1.0.2/24", "fd00::1/64"]);
    let gateways: Vec<_> = result.ips.iter().filter_map(|ip| ip.gateway).map(|g| g.to_string()).collect();
    assert_eq!(gateways, ["10.1.0.1", "fd00::ffff"]);
    HostLocal.check(&request("a", &both)).expect("it has addresses");
    let error = add("a", &both).expect_err("it has addresses");
    assert!(
        error.msg.contains("10.1.0.2 has been allocated to a, duplicate allocation is not allowed"),
        "{error}"
    );
    HostLocal.del(&request("a", &both)).expect("a release");
    HostLocal.del(&request("a", &both)).expect("nothing to release");
    HostLocal.check(&request("a", &both)).expect_err("it has no addresses");
    assert_eq!(add("b", &both), Ok(vec!["10.1.0.3/24".to_owned(), "fd00::2/64".to_owned()]));
}

#[test]
fn requested_addresses_are_given_or_nothing_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let ask = |ips: Value| {
        let mut config = config(dir.path(), json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]));
        config["runtimeConfig"] = json!({"ips": ips});
        config
    };
    assert_eq!(
        add("a", &ask(json!(["fd00::9", "10.1.0.9"]))),
        Ok(vec!["10.1.0.9/24".to_owned(), "fd00::9/64".to_owned()])
    );
    for (ips, message) in [
        (
            json!(["10.1.0.9"]),
            "requested IP address 10.1.0.9 is not available in range set 10.1.0.1-10.1.0.254",
        ),
        (json!(["10.1.0.1"]), "requested ip 10.1.0.1 is subnet's gateway"),
        (json!(["10.1.0.7", "10.2.0.7"]), "failed to allocate all requested IPs: 10.2.0.7"),
        (json!(["10.1.0.7", "fd00::9"]), "failed to allocate for range 1"),
    ] {
        let error = add("b", &ask(ips)).expect_err(message);
        assert!(error.msg.contains(message), "{error}");
        HostLocal.check(&request("b", &ask(json!([])))).expect_err("nothing was kept");
    }
}

#[test]
fn an_exhausted_set_says_so_to_add_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config(dir.path(), json!([[{"subnet": "10.1.0.0/30"}]]));
    assert_eq!(add("a", &config), Ok(vec!["10.1.0.2/30".to_owned()]));
    let error = add("b", &config).expect_err("none is free");
    assert!(error.msg.contains("no IP addresses available in range set: 10.1.0.1-10.1.0.2"), "{error}");
    HostLocal.status(&request("", &config)).expect("the node is well");
    std::fs::remove_dir_all(dir.path().join("pods")).expect("no leases");
    std::fs::write(dir.path().join("pods"), "").expect("a file in their place");
    let status = HostLocal.status(&request("", &config)).expect_err("leases cannot be read");
    assert_eq!(status.code, cni::code::PLUGIN_NOT_AVAILABLE);
}

#[test]
fn collection_keeps_valid_attachments() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path(), json!([[{"subnet": "10.1.0.0/24"}]]));
    add("keep", &config).expect("an address");
    add("drop", &config).expect("an address");
    HostLocal.gc(&request("", &config)).expect_err("without the list, nothing may be removed");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    HostLocal.gc(&request("", &config)).expect("a collection");
    HostLocal.check(&request("keep", &config)).expect("it is kept");
    HostLocal.check(&request("drop", &config)).expect_err("it is gone");
}

#[test]
fn a_far_free_address_is_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config(dir.path(), json!([[{"subnet": "10.1.0.0/24"}]]));
    for index in 0..253 {
        add(&format!("c{index}"), &config).expect("an address");
    }
    add("one-more", &config).expect_err("the range is full");
    HostLocal.del(&request("c200", &config)).expect("a release");
    assert_eq!(add("one-more", &config), Ok(vec!["10.1.0.202/24".to_owned()]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the sequence of calls: no address twice, all of the range can be had, and a freed one comes again only
    /// after the others that are free.
    #[test]
    fn addresses_go_round(calls in proptest::collection::vec((0u8..12, any::<bool>()), 1..60)) {
        let dir = tempfile::tempdir().expect("a folder");
        let config = config(dir.path(), json!([[{"subnet": "10.1.0.0/28", "rangeEnd": "10.1.0.9"}]]));
        let all: Vec<IpAddr> = (2..=9).map(|low| IpAddr::from([10, 1, 0, low])).collect();
        let mut leased: BTreeMap<u8, IpAddr> = BTreeMap::new();
        let mut last: Option<IpAddr> = None;
        for (who, adds) in calls {
            let id = format!("c{who}");
            if !adds {
                prop_assert_eq!(HostLocal.del(&request(&id, &config)), Ok(()));
                leased.remove(&who);
                continue;
            }
            let given = HostLocal.add(&request(&id, &config)).ok().map(|result| result.ips[0].address.ip());
            let used: BTreeSet<IpAddr> = leased.values().copied().collect();
            let after = last.and_then(|last| all.iter().position(|address| *address == last)).map_or(0, |at| at + 1);
            let expected = (0..all.len()).map(|step| all[(after + step) % all.len()]).find(|a| !used.contains(a));
            let Entry::Vacant(lease) = leased.entry(who) else {
                prop_assert_eq!(given, None);
                continue;
            };
            prop_assert_eq!(given, expected);
            if let Some(given) = given {
                lease.insert(given);
                last = Some(given);
            }
        }
    }
}
